"""Grids of larger voxels, for searches that need no detail."""

from __future__ import annotations

import numpy as np

from atlasseg.volume import Float32, Grid, Image


def first_channel(image: Image) -> Float32:
    """(I, J, K) contiguous."""
    return np.ascontiguousarray(image.channels[..., 0])


def coarser(grid: Grid, spacing_mm: float) -> Grid:
    """A grid over the same box, of voxels at least `spacing_mm` a side where the grid's are smaller."""
    factors = np.maximum(spacing_mm / grid.spacing_mm, 1)
    shape = np.maximum(np.ceil(np.array(grid.shape) / factors - 1e-6), 1).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factors
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
