"""NIfTI and Analyze file pairs, ``.hdr`` and ``.img``, read with nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.io._nifti_header import SpacingSource, read_geometry
from atlasseg.io._promise import check_gzip_length, check_length, check_shape, promised_bytes
from atlasseg.io._source import Source, log
from atlasseg.volume import SourceHeader


def open_pair(path: Path, spacing_from: SpacingSource = "sform") -> Source:
    """Open a pair of files by the name of one of them; values are read on demand."""
    import nibabel

    image = nibabel.load(path)
    _check_values(path, image)
    if isinstance(image, nibabel.Nifti1Pair):
        affine, source = read_geometry(path, image.header, spacing_from)
    else:
        affine, source = np.asarray(image.affine, np.float64), SourceHeader(path, np.dtype(image.get_data_dtype()).name)
        log.warning("%s: an Analyze header does not distinguish left from right; the orientation is guessed", path)
    return Source(image.dataobj, affine, source)


def _check_values(path: Path, image: Any) -> None:
    """Check that the file of values exists and is not shorter than the header says."""
    values = Path(image.file_map["image"].filename)
    if not values.is_file():
        raise InputError(f"{path}: expected its values in {values.name} beside it, found no such file. Copy both.")
    check_shape(path, image.shape)
    expected = promised_bytes(image.shape, image.get_data_dtype().itemsize, offset=int(image.dataobj.offset))
    with values.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        check_gzip_length(values, expected)
    else:
        check_length(values, expected, values.stat().st_size)
