"""The part of a target where the atlases' labels land: the rest need not be registered finely, nor fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.errors import GeometryError, InputError
from atlasseg.transforms import Transform
from atlasseg.volume import Grid, LabelMap, Mask

__all__ = ["box_around"]


def box_around(
    labels: Sequence[LabelMap | Mask], transforms: Sequence[Transform], grid: Grid, *, margin_mm: float = 10.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The box of voxels of `grid` that holds everything the atlases have labelled, and a margin.

    Parameters
    ----------
    labels : sequence of LabelMap or Mask
        Of the atlases, each on its own grid; everything that is not 0 counts.
    transforms : sequence of Transform
        One for each: takes points of the target to points of the atlas (`moving_from_fixed`, RAS+ mm).
    grid : Grid
        The target's.
    margin_mm : float
        Added on every side, and cut at the grid's border.

    Returns
    -------
    start, stop : (3,) int64
        As for `Grid.cropped`.

    Raises
    ------
    GeometryError
        No label lands on the grid.
    InputError
        The margin is negative, or there is not one transform for each atlas.
    """
    if not margin_mm >= 0:
        raise InputError(f"margin_mm: expected 0 or more, got {margin_mm}")
    if len(labels) != len(transforms):
        raise InputError(f"expected one transform for each of {len(labels)} label maps, got {len(transforms)}")
    first, last = np.full(3, np.inf), np.full(3, -np.inf)
    index_from_mm = np.linalg.inv(grid.affine)
    for volume, transform in zip(labels, transforms, strict=True):
        labelled = volume.array != 0
        outer = np.argwhere(labelled & ~ndimage.binary_erosion(labelled))
        if outer.size == 0:
            continue
        points = outer @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        landed = (~transform)(points) @ index_from_mm[:3, :3].T + index_from_mm[:3, 3]
        first, last = np.minimum(first, landed.min(axis=0)), np.maximum(last, landed.max(axis=0))
    margin = margin_mm * np.linalg.norm(index_from_mm[:3, :3], axis=1)  # how far along each axis a ball reaches
    if np.isfinite(first).all():
        start = np.maximum(np.floor(first - margin), 0).astype(np.int64)
        stop = np.minimum(np.ceil(last + margin) + 1, grid.shape).astype(np.int64)
        if (start < stop).all():
            return start, stop
    names = ", ".join(repr(volume.name) for volume in labels)
    raise GeometryError(f"no label of {names} lands on the target's grid of {grid.shape} voxels")
