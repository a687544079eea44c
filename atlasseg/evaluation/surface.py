"""Surface distances of two segmentations, in mm.

The surface of a structure is the set of its voxels with at least one face neighbour outside the structure. Voxels
beyond the grid are outside. The position of a surface voxel is its centre in mm, by the affine, so that distances
include spacing, obliqueness and shear. With D_S the distances from each surface voxel of the segmentation to the
nearest one of the reference, and D_R those from the reference to the segmentation:

- Hausdorff distance: the larger of max D_S and max D_R;
- its 95th percentile: the larger of the 95th percentiles of D_S and of D_R (linear between ranks);
- average symmetric surface distance: mean of D_S and D_R together;
- surface Dice of voxels at a tolerance: the fraction of D_S and D_R together within it. The usual surface Dice
  weights surface elements by area; it is in :mod:`atlasseg.evaluation.surfels`.

A structure that is missing in one volume has no distance. It gets the worst value: `worst_distance_mm`
for distances, 0 for surface Dice. It is not left out, since a missed structure would then improve the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Float64, Grid, Int64

__all__ = ["SurfaceDistances", "surface_distances", "worst_distance_mm"]


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces in both directions.

    Parameters
    ----------
    to_reference_mm : (N,)
        Distance of each surface voxel of the segmentation to the nearest of the reference.
    to_segmentation_mm : (M,)
        Distance of each surface voxel of the reference to the nearest of the segmentation.
    worst_mm : float
        Distance if one of the surfaces is empty.
    """

    to_reference_mm: Float64
    to_segmentation_mm: Float64
    worst_mm: float

    @property
    def missing(self) -> bool:
        """Whether one of the surfaces is empty."""
        return self.to_reference_mm.size == 0 or self.to_segmentation_mm.size == 0

    def hausdorff_mm(self, percentile: float = 100.0) -> float:
        """Compute the Hausdorff distance or a percentile of it.

        Parameters
        ----------
        percentile : float
            Percentile of the distances, 0 to 100. 100: Hausdorff distance; 95: HD95.

        Returns
        -------
        float
            The larger of the two directed distances, in mm.
        """
        if self.missing:
            return self.worst_mm
        directed = (self.to_reference_mm, self.to_segmentation_mm)
        return max(float(np.percentile(d, percentile)) for d in directed)

    def average_mm(self) -> float:
        """Compute the average symmetric surface distance (ASSD).

        Returns
        -------
        float
            Mean distance in mm.
        """
        if self.missing:
            return self.worst_mm
        total = self.to_reference_mm.sum() + self.to_segmentation_mm.sum()
        return float(total / (self.to_reference_mm.size + self.to_segmentation_mm.size))

    def surface_dice_voxels(self, tolerance_mm: float) -> float:
        """Compute the surface Dice of voxels.

        All surface voxels have equal weights. The usual surface Dice weights surfels by area, and is usually higher:
        :func:`atlasseg.evaluation.surfels.surface_dice`.

        Parameters
        ----------
        tolerance_mm : float
            Tolerance in mm, 0 or more.

        Returns
        -------
        float
            Fraction of the surface voxels of both volumes within the tolerance of the other surface, 0 to 1.

        Raises
        ------
        InputError
            The tolerance is negative.
        """
        if not tolerance_mm >= 0:
            raise InputError(f"tolerance_mm: expected 0 or more, got {tolerance_mm}")
        if self.missing:
            return 0.0
        limit = tolerance_mm * (1 + 1e-9)  # include distances equal to the tolerance in spite of rounding
        near = int((self.to_reference_mm <= limit).sum() + (self.to_segmentation_mm <= limit).sum())
        return near / (self.to_reference_mm.size + self.to_segmentation_mm.size)


def worst_distance_mm(grid: Grid) -> float:
    """Compute the largest distance between two corner voxels: an upper limit of all distances in the grid.

    Parameters
    ----------
    grid : Grid
        Grid of the segmentations.

    Returns
    -------
    float
        Distance in mm.
    """
    corners = grid.corners_mm
    return float(np.linalg.norm(corners[:, None] - corners[None], axis=-1).max())


def on_surface(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Find the surface voxels of all labels: those that differ from a face neighbour, or are at the edge of the grid.

    Parameters
    ----------
    labels : (I, J, K)
        Labels, or a mask.

    Returns
    -------
    (I, J, K) bool
        True for surface voxels, including background voxels next to a label.
    """
    surface = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)
        out = np.moveaxis(surface, axis, 0)
        differ = along[1:] != along[:-1]
        out[1:] |= differ
        out[:-1] |= differ
        out[0] = out[-1] = True
    return surface


def surfaces(labels: NDArray[np.integer]) -> dict[int, Int64]:
    """List the flat (C order) ascending indices of the surface voxels of each label except background (0)."""
    flat = np.flatnonzero(on_surface(labels) & (labels != 0))
    values = labels.reshape(-1)[flat]
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    return {int(v): part for v, part in zip(found, np.split(flat[order], starts[1:]), strict=True)} if flat.size else {}


def distances(segmentation: ArrayLike, reference: ArrayLike, grid: Grid) -> SurfaceDistances:
    """Compute distances between two surfaces, given as flat indices of voxels in a grid (see `surfaces`)."""
    s, r = np.asarray(segmentation, np.int64), np.asarray(reference, np.int64)
    return SurfaceDistances(*directed_distances_mm(s, r, grid), worst_distance_mm(grid))


def directed_distances_mm(one: Int64, other: Int64, grid: Grid) -> tuple[Float64, Float64]:
    """Compute the distances from each point of one set to the nearest of the other, in both directions.

    Parameters
    ----------
    one, other : (N,) and (M,) int64
        Flat indices (C order, without repetition) of voxels of the grid.
    grid : Grid
        Grid of the voxels.

    Returns
    -------
    (N,), (M,) float64
        Distances in mm; infinite if the other set is empty.
    """
    from scipy.spatial import cKDTree

    def points_mm(flat: Int64) -> Float64:
        voxels = np.stack(np.unravel_index(flat, grid.shape), axis=-1)
        placed: Float64 = voxels @ grid.affine[:3, :3].T
        return placed

    def directed(start: Int64, end: Int64) -> Float64:
        out = np.zeros(start.size)
        off = ~np.isin(start, end, assume_unique=True)  # the others are on the surface, at 0 mm
        if end.size == 0:
            out[:] = np.inf
        elif off.any():
            out[off] = cKDTree(points_mm(end)).query(points_mm(start[off]))[0]
        return out

    return directed(one, other), directed(other, one)


def surface_distances(
    segmentation: NDArray[np.generic], reference: NDArray[np.generic], grid: Grid
) -> SurfaceDistances:
    """Compute the distances between the surfaces of two masks on one grid.

    Parameters
    ----------
    segmentation, reference : (I, J, K)
        Masks; voxels other than 0 are the structure.
    grid : Grid
        Grid of the masks.

    Returns
    -------
    SurfaceDistances

    Raises
    ------
    GeometryError
        A mask does not have the shape of the grid.

    Examples
    --------
    >>> one, other = np.zeros((2, 1, 5, 1), bool)
    >>> one[0, 0], other[0, 2] = True, True
    >>> surface_distances(one, other, Grid((1, 5, 1), np.diag([1, 1.5, 1, 1]))).hausdorff_mm()
    3.0
    """
    check_masks(segmentation, reference, grid)
    return distances(_mask_surface(segmentation), _mask_surface(reference), grid)


def check_masks(segmentation: NDArray[np.generic], reference: NDArray[np.generic], grid: Grid) -> None:
    """Check that both masks have the shape of the grid."""
    for mask in (segmentation, reference):
        if mask.shape != grid.shape:
            raise GeometryError(f"expected a mask of shape {grid.shape}, got {mask.shape}.")


def foreground_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """Compute the bounding box of the True voxels; None without any."""
    from scipy.ndimage import find_objects

    found = find_objects(inside.view(np.uint8), max_label=1)[0]
    return None if found is None else (found[0], found[1], found[2])


def _mask_surface(mask: NDArray[np.generic]) -> Int64:
    """Flat indices of the surface voxels of one mask, computed in its bounding box."""
    inside = mask.astype(bool)
    box = foreground_box(inside)
    if box is None:
        return np.zeros(0, np.int64)
    # voxels at the edge of the box are next to background or the edge of the grid: surface in both cases
    crop = inside[box]
    found = np.argwhere(on_surface(crop) & crop) + [part.start for part in box]
    return np.asarray(np.ravel_multi_index(tuple(found.T), mask.shape), np.int64)
