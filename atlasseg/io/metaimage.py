"""MetaImage: ``.mha``, and ``.mhd`` with ``.raw`` or ``.zraw``.

ITK's reader ends the process on some damaged headers, so the text header is parsed here. For headers with rare features
(a list of files) :func:`read_metaimage` returns None, and ITK reads the file in a child process.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.interop import place_from_lps
from atlasseg.io._promise import check_length, check_shape, check_stream, promised_bytes
from atlasseg.io._source import Source, log
from atlasseg.volume import SourceHeader

_TYPES = {
    "MET_CHAR": "i1",
    "MET_ASCII_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MAX_HEADER = 1 << 16
_MAX_CHANNELS = 1 << 12
_ZLIB_OR_GZIP = 47  # window bits: 32 detects zlib or gzip headers


def read_metaimage(path: Path) -> Source | None:
    """Read a MetaImage file; returns None if its header needs ITK.

    Raises
    ------
    InputError
        The header is damaged, or the file is shorter than its header says.
    """
    header, start = _read_header(path)
    data_file = header["ElementDataFile"]
    if not _flag(header, "BinaryData", default=True):
        raise InputError(f"{path}: expected values in binary, got BinaryData = {header['BinaryData'][:20]}.")
    if data_file.split()[0] == "LIST" or "%" in data_file:
        return None
    axes = _numbers(path, header, "DimSize", int(_numbers(path, header, "NDims", 1)[0]))
    shape = [int(n) for n in axes]
    check_shape(path, shape)
    channels = int(_numbers(path, header, "ElementNumberOfChannels", 1, default=[1])[0])
    kind = header.get("ElementType", "").removesuffix("_ARRAY")
    if kind not in _TYPES or not 1 <= channels <= _MAX_CHANNELS:
        raise InputError(
            f"{path}: expected an ElementType of plain numbers in 1 to {_MAX_CHANNELS} channels, "
            f"got {kind or 'none'} in {channels}."
        )
    big = _flag(header, "BinaryDataByteOrderMSB") or _flag(header, "ElementByteOrderMSB")
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")
    values = path if data_file == "LOCAL" else path.parent / data_file
    if not values.is_file():
        raise InputError(f"{path}: expected its values in {data_file}, found no such file. Copy both.")
    content = _read_values(
        path, values, header, start if values == path else 0, promised_bytes([*shape, channels], dtype.itemsize)
    )
    array = np.frombuffer(content, dtype).reshape([channels, *shape], order="F")
    array = np.moveaxis(array, 0, -1) if channels > 1 else array[0]
    array = array.astype(dtype.newbyteorder("="), copy=False)
    affine = _affine(path, header, len(shape)) if len(shape) >= 3 else np.eye(4)
    return Source(array, affine, SourceHeader(path, array.dtype.name))


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Keys and values of the header, and the position of its end."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    header: dict[str, str] = {}
    at = 0
    while (end := head.find(b"\n", at)) >= 0 or at < len(head):
        line = head[at : end if end >= 0 else len(head)].decode("latin-1")
        at = end + 1 if end >= 0 else len(head)
        key, separator, value = line.partition("=" if "=" in line else ":")
        if not separator:
            if line.strip():
                raise InputError(f"{path}: expected lines KEY = VALUE in the header, got {line.strip()[:40]!r}.")
            continue
        header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile" and value.strip():
            return header, at
    raise InputError(f"{path}: expected a MetaImage header that ends with ElementDataFile, found none.")


def _read_values(path: Path, values: Path, header: dict[str, str], start: int, expected: int) -> bytes:
    size = values.stat().st_size
    if not _flag(header, "CompressedData"):
        skip = int(_numbers(path, header, "HeaderSize", 1, default=[0])[0])
        begin = size - expected if skip == -1 else start + max(skip, 0)
        check_length(values, begin + expected, size)
        check_length(values, expected, size)
        with values.open("rb") as file:
            file.seek(begin)
            return file.read(expected)
    given = int(_numbers(path, header, "CompressedDataSize", 1, default=[0])[0])
    length = given if given > 0 else size - start
    check_length(values, length, size - start, what="compressed bytes")
    with values.open("rb") as file:
        file.seek(start)
        gzipped = file.read(2) == b"\x1f\x8b"
    check_stream(values, expected, method="gzip" if gzipped else "zlib", start=start)
    with values.open("rb") as file:
        file.seek(start)
        return zlib.decompressobj(wbits=_ZLIB_OR_GZIP).decompress(file.read(length), expected)


def _affine(path: Path, header: dict[str, str], dimension: int) -> NDArray[np.float64]:
    """Voxel to RAS+ mm."""
    spacing_key = "ElementSpacing" if "ElementSpacing" in header else "ElementSize"
    if spacing_key not in header:
        log.warning("%s: the header has no ElementSpacing; a voxel size of 1 mm is used, as in ITK", path)
    spacing = _numbers(path, header, spacing_key, dimension, default=[1.0] * dimension)
    unit = np.eye(dimension).ravel().tolist()
    matrix = next((key for key in ("TransformMatrix", "Rotation", "Orientation") if key in header), "TransformMatrix")
    place = next((key for key in ("Offset", "Position", "Origin") if key in header), "Offset")
    direction = np.reshape(_numbers(path, header, matrix, dimension**2, default=unit), (dimension, dimension)).T
    origin = _numbers(path, header, place, dimension, default=[0.0] * dimension)
    slope = _numbers(path, header, "ElementToIntensityFunctionSlope", 1, default=[1.0])[0]
    if slope != 1:
        log.warning("%s: the header scales intensities by %g; this is ignored, as in ITK", path, slope)
    if min(spacing[:3]) <= 0:
        raise InputError(f"{path}: expected voxel sizes above 0 in {spacing_key}, got {header[spacing_key]!r}.")
    return place_from_lps(direction[:3, :3], spacing[:3], origin[:3])


def _flag(header: dict[str, str], key: str, *, default: bool = False) -> bool:
    return header[key][:1].upper() in ("T", "1") if key in header else default


def _numbers(
    path: Path, header: dict[str, str], key: str, count: int, *, default: list[float] | list[int] | None = None
) -> list[float]:
    if key not in header and default is not None:
        return [float(value) for value in default]
    try:
        numbers = [float(part) for part in header.get(key, "").split()]
    except ValueError:
        numbers = []
    if not 1 <= count <= 64 or len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(f"{path}: expected {count} numbers as {key}, got {header.get(key, 'nothing')[:60]!r}.")
    return numbers
