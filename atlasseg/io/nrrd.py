"""NRRD, ``.nrrd`` and ``.nhdr``: check of the text header against the file, before SimpleITK reads it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from atlasseg.errors import InputError
from atlasseg.io._promise import check_length, check_shape, check_stream, promised_bytes

_SIZES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t"
    "|ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t"
    "|ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
_ITEM_SIZES = {name: size for size, names in _SIZES.items() for name in names.split("|")}
_GZIP, _TEXT = ("gzip", "gz"), ("text", "txt", "ascii", "hex")
_MAX_HEADER = 1 << 20


def read_nrrd_header(path: Path) -> tuple[dict[str, str], int]:
    """Read the fields and the key/value pairs of a NRRD header.

    Returns
    -------
    header : dict of str to str
        Fields in lower case; keys as they are.
    start : int
        Byte offset of the values in a file with attached header.

    Raises
    ------
    InputError
        The file has no NRRD header.
    """
    header: dict[str, str] = {}
    with path.open("rb") as file:
        magic = file.readline(_MAX_HEADER)
        if not magic.startswith(b"NRRD"):
            raise InputError(f"{path}: expected a NRRD file, which begins with NRRD, got {magic[:4]!r}.")
        for raw in _lines(file):
            line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            if not line:
                break
            if line.startswith("#"):
                continue
            key, separator, value = line.partition(":=")
            if separator:
                header[key] = value
            else:
                field, _, value = line.partition(":")
                header[field.strip().lower()] = value.strip()
        return header, file.tell()


def check_nrrd(path: Path, header: dict[str, str], start: int) -> bool:
    """Check that a NRRD file holds as many values as its header says.

    Returns
    -------
    bool
        False for a header with rare features (values as text, a list of files, bytes to skip). Such a file must be read
        in a child process.

    Raises
    ------
    InputError
        The header is damaged, or the file is shorter than its header says.
    """
    kind, encoding = header.get("type", ""), header.get("encoding", "").lower()
    sizes = header.get("sizes", "").split()
    if kind.lower() not in _ITEM_SIZES or not sizes or not all(size.isdigit() for size in sizes):
        raise InputError(
            f"{path}: expected a type of plain numbers and sizes in the header, got type {kind[:40]!r} and sizes "
            f"{' '.join(sizes)[:60]!r}."
        )
    shape = [int(size) for size in sizes]
    check_shape(path, shape)
    expected = promised_bytes(shape, _ITEM_SIZES[kind.lower()])
    if encoding not in ("raw", *_GZIP, *_TEXT):
        raise InputError(f"{path}: expected raw, gzip or text values, got {encoding[:40]!r}. Save it with gzip.")
    data_file = header.get("data file", header.get("datafile", ""))
    skips = [header.get(key, "0") for key in ("byte skip", "byteskip", "line skip", "lineskip")]
    if data_file.startswith("LIST") or "%" in data_file or any(skip != "0" for skip in skips):
        return False
    values, begin = (path.parent / data_file, 0) if data_file else (path, start)
    if not values.is_file():
        raise InputError(f"{path}: expected its values in {data_file}, found no such file. Copy both.")
    if encoding == "raw":
        check_length(values, begin + expected, values.stat().st_size)
    elif encoding in _GZIP:
        check_stream(values, expected, start=begin)
    else:  # at least two characters per value
        check_length(values, begin + 2 * expected // _ITEM_SIZES[kind.lower()] - 1, values.stat().st_size)
        return False
    return True


def _lines(file: IO[bytes]) -> list[bytes]:
    """Yield lines up to an empty one, with a limit on their total size."""
    found: list[bytes] = []
    left = _MAX_HEADER
    while left > 0 and (line := file.readline(left)):
        left -= len(line)
        found.append(line)
        if not line.strip():
            break
    return found
