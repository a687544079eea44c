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
from atlasseg.io._source import Like, Volume
from atlasseg.io._suffixes import NIFTI_SUFFIXES, WRITTEN_BY_ITK, volume_suffix
from atlasseg.io.itk_formats import write_with_itk
from atlasseg.io.nifti import write_nifti
from atlasseg.volume import ProbabilityMap, SourceHeader


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
    with atomic_write(path) as temporary:
        if suffix in WRITTEN_BY_ITK:
            assert not isinstance(volume, ProbabilityMap)
            write_with_itk(temporary, replace(volume, affine=affine), dtype)
        else:
            write_nifti(temporary, volumes, dtype, volume, affine, source, labels, suffix.endswith(".gz"))
