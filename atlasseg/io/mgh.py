"""FreeSurfer's MGH format, compressed (``.mgz``) or not, read with nibabel."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.io._promise import check_gzip_length, check_length, check_shape, promised_bytes
from atlasseg.io._source import Source
from atlasseg.volume import SourceHeader

_HEADER = struct.Struct(">6i")  # version, four axes, type of the values
_OFFSET = 284
_ITEM_SIZES = {0: 1, 1: 4, 3: 4, 4: 2}


@contextmanager
def open_mgh(path: Path) -> Iterator[Source]:
    """Open an MGH file; its values are read from the stream."""
    import nibabel

    with path.open("rb") as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
        start = stream.read(_HEADER.size)
        check_length(path, _HEADER.size, len(start))
        version, *axes, kind = _HEADER.unpack(start)
        if version != 1 or kind not in _ITEM_SIZES:
            raise InputError(
                f"{path}: expected an MGH file of version 1 and type 0, 1, 3 or 4, got version {version}, type {kind}. "
                "Convert it with mri_convert."
            )
        check_shape(path, axes)
        expected = promised_bytes(axes, _ITEM_SIZES[kind], offset=_OFFSET)
        if compressed:
            check_gzip_length(path, expected)
        else:
            check_length(path, expected, path.stat().st_size)
        stream.seek(0)
        header = nibabel.freesurfer.mghformat.MGHHeader.from_fileobj(stream)
        affine = np.asarray(header.get_affine(), np.float64)
        source = SourceHeader(path, np.dtype(header.get_data_dtype()).name)
        yield Source(nibabel.MGHImage.ImageArrayProxy(stream, header, mmap=False), affine, source)
        while compressed and stream.read(1 << 20):  # read to the end, where gzip verifies its checksum
            pass
