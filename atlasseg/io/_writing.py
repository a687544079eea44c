"""A volume of any type to a file of any format that is written, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.files import atomic_write
from atlasseg.io._source import Like, Volume, log
from atlasseg.io._suffixes import NIFTI_SUFFIXES, WRITTEN_BY_ITK, volume_suffix
from atlasseg.io.itk_formats import write_with_itk
from atlasseg.io.nifti import write_nifti
from atlasseg.itk import is_orthonormal, shear_degrees
from atlasseg.volume import Grid, ProbabilityMap, SourceHeader


def write_volume(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    volume: Volume,
    like: Like,
    *,
    labels: Sequence[int] | None = None,
) -> None:
    suffix = volume_suffix(path.name)
    if suffix not in (*NIFTI_SUFFIXES, *WRITTEN_BY_ITK):
        raise InputError(f"{path}: volumes are written as {', '.join((*NIFTI_SUFFIXES, *WRITTEN_BY_ITK))}")
    affine = volume.affine
    if like is None:
        source = SourceHeader() if isinstance(volume, ProbabilityMap) else volume.source_header
    elif isinstance(like, SourceHeader):
        source = like
    else:
        if not like.grid.matches(volume.grid):
            raise GeometryError(
                f"{path}: the result (shape {volume.shape}) is not on the grid of {like.name or 'the volume'} (shape "
                f"{like.shape}) that it should be written like: affines {affine.tolist()} and {like.affine.tolist()}"
            )
        affine, source = like.affine, like.source_header
    grid = Grid(volume.shape, affine)
    if suffix in NIFTI_SUFFIXES and not is_orthonormal(grid):
        log.warning(
            "%s: the axes are sheared by %.3g degrees, as by a tilted gantry. The file is right, but ITK, ANTs and "
            "Slicer cannot open it. For a copy that they can open: atlasseg convert %s OUT.nii.gz --orthogonal",
            path,
            shear_degrees(grid),
            path,
        )
    with atomic_write(path) as temporary:
        if suffix in WRITTEN_BY_ITK:
            assert not isinstance(volume, ProbabilityMap)
            write_with_itk(temporary, replace(volume, affine=affine), dtype)
        else:
            write_nifti(temporary, volumes, dtype, volume, affine, source, labels, suffix.endswith(".gz"))
