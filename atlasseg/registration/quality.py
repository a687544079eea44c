"""Regularity of a transform: Jacobian determinant on a grid, folds, and standard deviation of the log determinant.

The Jacobian determinant of a map is the volume of a unit volume after the map. Where it is zero or negative, the map
folds and is not a valid deformation of an anatomy. The standard deviation of its logarithm (SDlogJ) measures how
unevenly volumes change: Leow et al., "Statistical properties of Jacobian maps and the realization of unbiased
large-deformation nonlinear image registration", IEEE TMI 26(6), 2007. Both are the regularity measures of the Learn2Reg
challenge (Hering et al., IEEE TMI 42(3), 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from atlasseg.errors import GeometryError, InputError
from atlasseg.threads import run_slices
from atlasseg.transforms import Transform, split_slabs
from atlasseg.volume import Float32, Float64, Grid, Mask

__all__ = ["RegistrationQuality", "compute_jacobian_determinant", "measure_quality"]

DETERMINANT_FLOOR = 1e-9
"""Lower limit of determinants in SDlogJ, so that folded voxels have a large effect instead of being left out."""


@dataclass(frozen=True)
class RegistrationQuality:
    """Regularity of a transform over the voxels of a grid or a mask.

    Parameters
    ----------
    voxels : int
        Number of voxels measured.
    jacobian_min, jacobian_max, jacobian_mean : float
        Range and mean of the Jacobian determinant, in mm^3 of output per mm^3 of input: 1 means no change of volume.
    folded_share : float
        Fraction of the voxels, 0 to 1, with a determinant of 0 or less. A reflection counts as folded everywhere.
    sd_log_jacobian : float
        Standard deviation of the natural logarithm of the determinant (SDlogJ); 0 for affine maps without reflection.
    """

    voxels: int
    jacobian_min: float
    jacobian_max: float
    jacobian_mean: float
    folded_share: float
    sd_log_jacobian: float

    def __str__(self) -> str:
        return (
            f"Jacobian {self.jacobian_min:.3g} to {self.jacobian_max:.3g}, folded {100 * self.folded_share:.3g} % of "
            f"{self.voxels} voxels, SDlogJ {self.sd_log_jacobian:.3g}"
        )


def compute_jacobian_determinant(transform: Transform, grid: Grid) -> Float32:
    """Compute the Jacobian determinant of a transform at every voxel centre of a grid.

    Derivatives are central differences between neighbouring voxel centres, one-sided on the faces of the grid. They are
    taken along the axes of the grid and converted to millimetres by its affine, so that an affine transform is exact on
    any grid, oblique or anisotropic.

    Parameters
    ----------
    transform : Transform
        Maps (N, 3) RAS+ mm points to RAS+ mm points.
    grid : Grid
        Grid of the result. Along an axis with a single voxel (a single slice) the transform counts as a translation.

    Returns
    -------
    (I, J, K) float32
        Determinant, dimensionless.

    Raises
    ------
    InputError
        The transform maps a voxel to NaN or infinity.
    """
    per_voxel_mm3 = float(np.linalg.det(grid.affine[:3, :3]))
    out = np.empty(grid.shape, np.float32)
    for start, stop in split_slabs(grid):
        first, last = max(start - 1, 0), min(stop + 1, grid.shape[0])  # with a neighbour on each side
        mapped_mm = _map_grid(transform, grid.cropped((first, 0, 0), (last, *grid.shape[1:])))
        inside = tuple(slice(0, n) for n in mapped_mm.shape[:3])
        for axis in np.flatnonzero(np.array(grid.shape) == 1):
            step_mm = grid.affine[:3, axis]
            mapped_mm = np.concatenate([mapped_mm, mapped_mm + step_mm], axis=axis)
        determinants = np.empty(mapped_mm.shape[:3])
        run_slices(_compute_determinants, len(mapped_mm), np.ascontiguousarray(mapped_mm), determinants)
        determinants = determinants[inside]
        out[start:stop] = determinants[start - first : stop - first] / per_voxel_mm3
    return out


def _map_grid(transform: Transform, grid: Grid) -> Float64:
    """Transform the voxel centres of a grid, (I, J, K, 3)."""
    points_mm = np.ascontiguousarray(transform.on_grid(grid))
    lost = ~np.isfinite(points_mm).all(axis=-1)
    if lost.any():
        raise InputError(
            f"transform: expected finite points, got NaN or infinity at {int(lost.sum())} voxels of the grid"
        )
    return points_mm


def measure_quality(transform: Transform, grid: Grid, *, mask: Mask | None = None) -> RegistrationQuality:
    """Measure the regularity of a transform on a grid, optionally only inside a mask.

    Parameters
    ----------
    transform : Transform
        Maps (N, 3) RAS+ mm points to RAS+ mm points, such as a registration's moving_from_fixed.
    grid : Grid
        Grid to measure on: for a registration, that of the fixed image.
    mask : Mask, optional
        Measure only inside; on `grid`. Derivatives still use neighbours outside.

    Returns
    -------
    RegistrationQuality

    Raises
    ------
    GeometryError
        The mask is not on the grid.
    InputError
        The mask is empty, or the transform gives NaN.
    """
    if mask is not None:
        if not mask.grid.matches(grid):
            raise GeometryError(
                f"mask {mask.name!r} is not on the grid: expected shape {grid.shape}, got {mask.shape} "
                "or another affine"
            )
        if not mask.array.any():
            raise InputError(f"mask {mask.name!r} is empty: expected voxels inside, got none")
    jacobian = compute_jacobian_determinant(transform, grid)
    measured = (jacobian.reshape(-1) if mask is None else jacobian[mask.array]).astype(np.float64)
    return RegistrationQuality(
        voxels=int(measured.size),
        jacobian_min=float(measured.min()),
        jacobian_max=float(measured.max()),
        jacobian_mean=float(measured.mean()),
        folded_share=float((measured <= 0).mean()),
        sd_log_jacobian=float(np.log(np.maximum(measured, DETERMINANT_FLOOR)).std()),
    )


@njit(cache=True, nogil=True)
def _compute_determinants(start: int, stop: int, mapped_mm: Float64, out: Float64) -> None:
    """Compute the determinant of the derivative of a map with respect to the voxel index.

    Parameters
    ----------
    start, stop : int
        Planes.
    mapped_mm : (I, J, K, 3) float64
        Transformed voxel centres; at least 2 voxels along each axis.
    out : (I, J, K) float64
        In mm^3 per voxel, by central differences, one-sided on the faces.
    """
    planes, rows, columns = mapped_mm.shape[:3]
    for i in range(start, stop):
        i0, i1 = max(i - 1, 0), min(i + 1, planes - 1)
        for j in range(rows):
            j0, j1 = max(j - 1, 0), min(j + 1, rows - 1)
            for k in range(columns):
                k0, k1 = max(k - 1, 0), min(k + 1, columns - 1)
                a0 = mapped_mm[i1, j, k, 0] - mapped_mm[i0, j, k, 0]
                a1 = mapped_mm[i1, j, k, 1] - mapped_mm[i0, j, k, 1]
                a2 = mapped_mm[i1, j, k, 2] - mapped_mm[i0, j, k, 2]
                b0 = mapped_mm[i, j1, k, 0] - mapped_mm[i, j0, k, 0]
                b1 = mapped_mm[i, j1, k, 1] - mapped_mm[i, j0, k, 1]
                b2 = mapped_mm[i, j1, k, 2] - mapped_mm[i, j0, k, 2]
                c0 = mapped_mm[i, j, k1, 0] - mapped_mm[i, j, k0, 0]
                c1 = mapped_mm[i, j, k1, 1] - mapped_mm[i, j, k0, 1]
                c2 = mapped_mm[i, j, k1, 2] - mapped_mm[i, j, k0, 2]
                volume = a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)
                out[i, j, k] = volume / ((i1 - i0) * (j1 - j0) * (k1 - k0))
