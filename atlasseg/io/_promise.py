"""Checks of the data size in a header against the actual file, before memory is allocated.

A damaged or hostile header can announce gigabytes in a file of a few hundred bytes. Every reader of volumes runs these
checks first. Compressed data are decompressed once in small pieces, which also verifies their checksums.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from atlasseg.errors import InputError

DEFLATE_RATIO = 1032
"""Maximum compression ratio of a deflate stream (gzip, zlib)."""

_PIECE = 1 << 20
_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zlib": zlib.decompressobj,
}
_MAX_AXES = 8


def check_shape(path: Path, shape: Sequence[int]) -> None:
    """Check that every axis in a header has at least one voxel.

    Raises
    ------
    InputError
    """
    if not 1 <= len(shape) <= _MAX_AXES or min(shape) < 1:
        raise InputError(f"{path}: expected at least one voxel along each axis, got shape {tuple(shape)}.")


def promised_bytes(shape: Sequence[int], itemsize: int, *, offset: int = 0) -> int:
    """Compute the file size in bytes: `offset` bytes of header, then values of `itemsize` bytes on a grid."""
    return offset + math.prod(int(n) for n in shape) * int(itemsize)


def check_length(path: Path, expected: int, found: int, *, what: str = "bytes") -> None:
    """Check that a file is not shorter than its header says.

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
    """Check that compressed values are undamaged and have at least `expected` bytes, before memory is allocated.

    Parameters
    ----------
    path : Path
        File with the compressed values.
    expected : int
        Bytes after decompression.
    method : {"gzip", "zlib"}
    start, length : int
        Offset and number of the compressed bytes; by default all bytes to the end of the file.

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
    """Check that a gzip file holds at least `expected` bytes, in most cases without decompressing it.

    If the length at the end of the file agrees, it is trusted, since the reader verifies the checksum later. Otherwise
    the file is decompressed in pieces.

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
    """Yield the number of decompressed bytes of each piece; raises EOFError if the stream ends too early."""
    make = _DECODERS[method]
    decoder, rest = make(), b""
    while True:
        if decoder.eof:  # a gzip file may have several members, and padding with zeros
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
