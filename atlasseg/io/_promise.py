"""What a header promises, compared with what its file holds, before memory is taken for it.

A damaged or hostile header can promise gigabytes in a file of a few hundred bytes. Every reader of volumes comes here
first. Streams that are compressed are decompressed once in small pieces, which also compares their checksums.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from atlasseg.errors import InputError

DEFLATE_RATIO = 1032
"""No stream of deflate (gzip, zlib) becomes longer than this times its own length."""

_PIECE = 1 << 20
_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zlib": zlib.decompressobj,
}
_MAX_AXES = 8


def check_shape(path: Path, shape: Sequence[int]) -> None:
    """Refuse a header whose axes have no or a negative number of voxels.

    Raises
    ------
    InputError
    """
    if not 1 <= len(shape) <= _MAX_AXES or min(shape) < 1:
        raise InputError(f"{path}: expected at least one voxel along each axis, got shape {tuple(shape)}.")


def promised_bytes(shape: Sequence[int], itemsize: int, *, offset: int = 0) -> int:
    """Count the bytes of values of `itemsize` bytes on a grid, behind `offset` bytes of header."""
    return offset + math.prod(int(n) for n in shape) * int(itemsize)


def check_length(path: Path, expected: int, found: int, *, what: str = "bytes") -> None:
    """Refuse a file that is shorter than its header says.

    Raises
    ------
    InputError
    """
    if found < expected:
        raise InputError(
            f"{path}: the file is truncated, or its header is damaged: expected {expected} {what} by its header, "
            f"got {found}. Copy or convert it again."
        )


def check_stream(path: Path, expected: int, *, method: str = "gzip", start: int = 0, length: int | None = None) -> None:
    """Refuse compressed values that are damaged, or fewer than `expected` bytes, before memory is taken for them.

    Parameters
    ----------
    path : Path
        The file that holds them.
    expected : int
        Bytes after decompression.
    method : {"gzip", "zlib"}
    start, length : int
        Where the compressed bytes begin and how many they are; by default all to the end of the file.

    Raises
    ------
    InputError
    """
    held = path.stat().st_size - start
    if length is not None:
        check_length(path, length, held, what="compressed bytes")
    if held * DEFLATE_RATIO < expected:
        check_length(path, expected, held * DEFLATE_RATIO)
    found = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            for piece in _decompress(file, method):
                found += piece
                if found > expected + _PIECE:
                    break
    except EOFError:
        check_length(path, max(expected, found + 1), found)
    except (zlib.error, OSError) as error:
        raise InputError(
            f"{path}: the compressed values are damaged after {found} bytes ({error}). Copy or convert the file again."
        ) from error
    check_length(path, expected, found)


def check_gzip_length(path: Path, expected: int) -> None:
    """Refuse a gzip file that cannot hold `expected` bytes, mostly without decompressing it.

    The length that the file notes at its end is believed where it agrees: the reader compares it with the checksum
    later. Else the file is decompressed in pieces.

    Raises
    ------
    InputError
    """
    size = path.stat().st_size
    if size * DEFLATE_RATIO < expected:
        check_length(path, expected, size * DEFLATE_RATIO)
    with path.open("rb") as file:
        file.seek(-min(4, size), 2)
        noted = int.from_bytes(file.read(4), "little")
    if noted != expected % (1 << 32):
        check_stream(path, expected)


def _decompress(file: IO[bytes], method: str) -> Iterator[int]:
    """How many bytes come out of each piece; EOFError where the stream ends too soon."""
    make = _DECODERS[method]
    decoder, rest = make(), b""
    while True:
        if decoder.eof:  # a gzip file may have several parts, and zeros behind them
            rest = (decoder.unused_data or file.read(_PIECE)).lstrip(b"\0")
            if not rest or method == "zlib":
                return
            decoder = make()
        data = rest or decoder.unconsumed_tail or file.read(_PIECE)
        rest = b""
        made = len(decoder.decompress(data, _PIECE))
        if not (data or made or decoder.eof):
            raise EOFError
        yield made
