"""Pairs of files (NIfTI and Analyze) and FreeSurfer's MGH, through nibabel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from atlasseg.io._source import Source, log
from atlasseg.io.nifti import read_geometry
from atlasseg.volume import SourceHeader


def open_with_nibabel(path: Path) -> Source:
    """Open a pair of files or an MGH file; its values are read on demand."""
    import nibabel

    image = nibabel.load(path)
    if isinstance(image, nibabel.Nifti1Pair):
        affine, source = read_geometry(path, image.header)
    else:
        affine, source = np.asarray(image.affine, np.float64), SourceHeader(path, np.dtype(image.get_data_dtype()).name)
        if not isinstance(image, nibabel.MGHImage):
            log.warning("%s: an Analyze header does not tell left from right: orientation is guessed", path)
    return Source(image.dataobj, affine, source)
