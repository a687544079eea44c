"""A volume of any type to a file of any format that is written, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.files import atomic_write
from atlasseg.io._source import Like, Volume, log
from atlasseg.io._suffixes import NIFTI_SUFFIXES
from atlasseg.io.itk_formats import write_with_itk
from atlasseg.io.nifti import write_nifti
from atlasseg.itk import is_orthonormal, shear_degrees
from atlasseg.volume import Float64, Grid, ProbabilityMap, SourceHeader


@dataclass(frozen=True, eq=False)
class Content:
    """Content of a file.

    Attributes
    ----------
    volume : Image, LabelMap, Mask or ProbabilityMap
    affine : (4, 4) float64
        Voxel to RAS+ mm, that the file gets.
    arrays : iterable of (I, J, K) array
        Channels of the volume, or probabilities of `labels`, one at a time.
    dtype : dtype
        Type of the values in the file.
    source_header : SourceHeader
        Source of sform, qform, unit and version, for formats that have them.
    labels : sequence of int, optional
        Labels of a probability map, one for each array.
    fields : mapping of str to str, optional
        Further keys of the header, for NRRD.
    """

    volume: Volume
    affine: Float64
    arrays: Iterable[NDArray[Any]]
    dtype: np.dtype[Any]
    source_header: SourceHeader
    labels: Sequence[int] | None
    fields: Mapping[str, str] | None = None


def _write_nifti(path: Path, content: Content) -> None:
    volume, compress = content.volume, path.name.lower().endswith(".gz")
    arrays, labels = content.arrays, content.labels
    write_nifti(path, arrays, content.dtype, volume, content.affine, content.source_header, labels, compress)


def _write_by_itk(path: Path, content: Content) -> None:
    assert not isinstance(content.volume, ProbabilityMap)
    write_with_itk(path, replace(content.volume, affine=content.affine), content.dtype, content.fields)


WRITERS: dict[str, Callable[[Path, Content], None]] = {
    ".nii.gz": _write_nifti,
    ".nii": _write_nifti,
    ".nrrd": _write_by_itk,
    ".mha": _write_by_itk,
}
"""Writer of each suffix."""


def write_volume(
    path: Path,
    volumes: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    volume: Volume,
    like: Like,
    *,
    labels: Sequence[int] | None = None,
    fields: Mapping[str, str] | None = None,
) -> None:
    suffix = max((known for known in WRITERS if path.name.lower().endswith(known)), key=len, default="")
    if not suffix:
        raise InputError(f"{path}: expected a name that ends in {', '.join(WRITERS)}")
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
        WRITERS[suffix](temporary, Content(volume, affine, volumes, dtype, source, labels, fields))
