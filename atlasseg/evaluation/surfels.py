r"""Surface Dice with surface elements, as in google-deepmind's ``surface-distance``.

Each corner of a voxel has eight adjacent voxels, each inside or outside the structure: 256 neighbour codes. If they are
not all equal, marching cubes makes triangles there. The *surfel* (surface element) of the corner has their area and the
position of the corner. With :math:`D_S` the distance of each surfel of the segmentation to the nearest surfel of the
reference, :math:`A_S` its area, and :math:`D_R` and :math:`A_R` those of the reference, surface Dice at the tolerance
:math:`\tau` is the fraction of the area within it:

.. math::

    \frac{\sum_{D_S \le \tau} A_S + \sum_{D_R \le \tau} A_R}{\sum A_S + \sum A_R}

Voxels beyond the grid are background. Distances and areas are computed by the affine, so that an oblique
grid has the values of its voxel sizes, and a sheared grid those of its true geometry.

References
----------
Nikolov et al. (2021), Clinically applicable segmentation of head and neck anatomy for radiotherapy: deep learning
algorithm development and validation study, JMIR 23(7):e26151. The areas are those of the lookup table of
https://github.com/google-deepmind/surface-distance (Apache License 2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numba
import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.evaluation.surface import check_masks, directed_distances_mm, foreground_box
from atlasseg.volume import Float64, Grid, Int64

__all__ = ["SurfelDistances", "Surfels", "find_surfels", "surface_dice", "surfel_areas_mm2", "surfel_distances"]

_BITS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])
"""Bit of each of the 2x2x2 voxels around a corner in the neighbour code."""

_EIGHTHS = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, -1, 1), (1, 1, -1)),
    0b00000111: ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, -1), (1, -1, 1), (1, -1, -1)),
    0b00010111: ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    0b00011000: ((1, -1, -1), (1, -1, -1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, -1, -1)),
    0b00011011: ((1, 1, 1), (3, 3, 3), (0, 2, -2), (2, 0, -2)),
    0b00011110: ((4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)),
    0b00111100: ((2, -2, 0), (2, -2, 0), (2, -2, 0), (2, -2, 0)),
    0b01101001: ((1, -1, -1), (1, -1, 1), (1, 1, -1), (1, 1, 1)),
}
"""Normals of the triangles of the 13 neighbour codes with triangles that are not equal by rotation or inversion.

The length of a normal is the area of its triangle, in eighths of a voxel face; its sign is arbitrary.
"""


@cache
def _normals() -> tuple[NDArray[np.int64], ...]:
    """The normals of all 256 neighbour codes, in eighths: (T, 3) for each code, T from 0 to 4."""
    found: dict[int, NDArray[np.int64]] = {}
    for code, normals in _EIGHTHS.items():
        inside = (code & _BITS) > 0
        for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
            turned = np.flip(inside.transpose(order), [axis for axis in range(3) if signs[axis] < 0])
            same = int(_BITS[turned].sum())
            there = np.array(normals)[:, order] * np.array(signs)
            found.setdefault(same, there)
            found.setdefault(255 - same, there)
    return tuple(found.get(code, np.zeros((0, 3), np.int64)) for code in range(256))


def surfel_areas_mm2(affine: Float64) -> Float64:
    """Compute the area of the surfel of each neighbour code.

    Parameters
    ----------
    affine : (4, 4)
        Voxel to mm; the translation is not used.

    Returns
    -------
    (256,) float64
        Areas in mm2. The code has one bit for each of the 2x2x2 voxels around a corner inside the structure: 128 for
        the first along all axes, then 64, 32, ... with the last axis fastest. The area is 0 for the codes 0 and 255.

    Examples
    --------
    >>> areas = surfel_areas_mm2(np.diag([1.0, 1.0, 2.0, 1.0]))
    >>> float(areas[0b11110000]), float(areas[0b11001100]), float(areas[0b10101010])  # faces across the three axes
    (2.0, 2.0, 1.0)
    """
    steps = affine[:3, :3].T
    faces = np.cross(np.roll(steps, -1, axis=0), np.roll(steps, -2, axis=0))  # normals of a voxel's three faces, mm2
    return np.array([np.linalg.norm(normals @ faces, axis=1).sum() / 8 for normals in _normals()])


@dataclass(frozen=True, eq=False)
class Surfels:
    """Surfels of one structure.

    Parameters
    ----------
    corners : (N,) int64
        Flat index (C order, ascending) of the corner of each surfel in the (I + 1, J + 1, K + 1) corners of the grid:
        the corner (i, j, k) is before voxel (i, j, k) along all axes.
    codes : (N,) uint8
        Neighbour code of each surfel (see `surfel_areas_mm2`).
    """

    corners: Int64
    codes: NDArray[np.uint8]


NO_SURFELS = Surfels(np.zeros(0, np.int64), np.zeros(0, np.uint8))
"""Surfels of an absent structure."""


@dataclass(frozen=True, eq=False)
class SurfelDistances:
    """Distances between the surfels of two structures in both directions, and areas of the surfels.

    Parameters
    ----------
    to_reference_mm, segmentation_areas_mm2 : (N,)
        Distance of each surfel of the segmentation to the nearest of the reference, and its area.
    to_segmentation_mm, reference_areas_mm2 : (M,)
        Distance of each surfel of the reference to the nearest of the segmentation, and its area.
    """

    to_reference_mm: Float64
    segmentation_areas_mm2: Float64
    to_segmentation_mm: Float64
    reference_areas_mm2: Float64

    def surface_dice(self, tolerance_mm: float) -> float:
        """Compute the surface Dice.

        Parameters
        ----------
        tolerance_mm : float
            Tolerance in mm, 0 or more.

        Returns
        -------
        float
            Fraction of the area of both surfaces within the tolerance of the other surface, 0 to 1. 0 if one surface
            is empty, NaN if both are.

        Raises
        ------
        InputError
            The tolerance is negative.
        """
        if not tolerance_mm >= 0:
            raise InputError(f"tolerance_mm: expected 0 or more, got {tolerance_mm}")
        if self.to_reference_mm.size == 0 or self.to_segmentation_mm.size == 0:
            return float("nan") if self.to_reference_mm.size == self.to_segmentation_mm.size else 0.0
        limit = tolerance_mm * (1 + 1e-9)  # include distances equal to the tolerance in spite of rounding
        near = self.segmentation_areas_mm2[self.to_reference_mm <= limit].sum()
        near += self.reference_areas_mm2[self.to_segmentation_mm <= limit].sum()
        return float(near / (self.segmentation_areas_mm2.sum() + self.reference_areas_mm2.sum()))


def find_surfels(labels: NDArray[np.integer]) -> dict[int, Surfels]:
    """Find the surfels of each label except background (0), in one pass over the bounding box of the labels.

    Parameters
    ----------
    labels : (I, J, K) int
        Labels, in the range of int32.

    Returns
    -------
    dict of int to Surfels
        Surfels of each label.
    """
    box = foreground_box(labels != 0)
    if box is None:
        return {}
    corners = tuple(n + 1 for n in labels.shape)
    padded = np.pad(labels[box].astype(np.int32, copy=False), 1)
    number = _count_surfels(padded)
    values, index, codes = np.empty(number, np.int32), np.empty((number, 3), np.int32), np.empty(number, np.uint8)
    _fill_surfels(padded, values, index, codes)
    index += np.array([part.start for part in box], np.int32)
    flat = np.ravel_multi_index(tuple(index.T.astype(np.int64)), corners)
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    parts = (np.split(array[order], starts[1:]) for array in (flat, codes))
    return {int(label): Surfels(*of_label) for label, *of_label in zip(found, *parts, strict=True)}


def surfel_distances(segmentation: Surfels, reference: Surfels, grid: Grid) -> SurfelDistances:
    """Compute the distances between the surfels of two structures in both directions.

    Parameters
    ----------
    segmentation, reference : Surfels
        Surfels of the structures, from `find_surfels`.
    grid : Grid
        Grid of both structures.

    Returns
    -------
    SurfelDistances
    """
    corners = (grid.shape[0] + 1, grid.shape[1] + 1, grid.shape[2] + 1)
    there, back = directed_distances_mm(segmentation.corners, reference.corners, Grid(corners, grid.affine))
    areas = surfel_areas_mm2(grid.affine)
    return SurfelDistances(there, areas[segmentation.codes], back, areas[reference.codes])


def surface_dice(
    segmentation: NDArray[np.generic], reference: NDArray[np.generic], grid: Grid, *, tolerance_mm: float
) -> float:
    """Compute the surface Dice (normalized surface distance, NSD) of two masks on one grid.

    Parameters
    ----------
    segmentation, reference : (I, J, K)
        Masks; voxels other than 0 are the structure.
    grid : Grid
        Grid of the masks.
    tolerance_mm : float
        Tolerance in mm, 0 or more.

    Returns
    -------
    float
        Fraction of the area within the tolerance, 0 to 1. 0 if one of the masks is empty, NaN if both are.

    Raises
    ------
    GeometryError
        A mask does not have the shape of the grid.
    InputError
        The tolerance is negative.

    Examples
    --------
    >>> one, other = np.zeros((2, 6, 5, 5), bool)
    >>> one[1:3, 1:4, 1:4], other[1:4, 1:4, 1:4] = True, True
    >>> grid = Grid((6, 5, 5), np.diag([1.0, 1.0, 1.5, 1.0]))
    >>> round(surface_dice(one, other, grid, tolerance_mm=0.5), 3), surface_dice(one, other, grid, tolerance_mm=1)
    (0.792, 1.0)
    """
    check_masks(segmentation, reference, grid)
    of_both = [find_surfels((mask != 0).view(np.uint8)).get(1, NO_SURFELS) for mask in (segmentation, reference)]
    return surfel_distances(of_both[0], of_both[1], grid).surface_dice(tolerance_mm)


@numba.njit(cache=True)
def _count_surfels(padded):  # type: ignore[no-untyped-def]
    """Count the surfels of all labels in a volume padded with background."""
    number = 0
    around = np.empty(8, np.int32)
    for i in range(padded.shape[0] - 1):
        for j in range(padded.shape[1] - 1):
            for k in range(padded.shape[2] - 1):
                if _look_around(padded, i, j, k, around):
                    for n in range(8):
                        number += _is_first(around, n)
    return number


@numba.njit(cache=True)
def _fill_surfels(padded, values, index, codes):  # type: ignore[no-untyped-def]
    """Fill in label, corner and neighbour code of each surfel."""
    at = 0
    around = np.empty(8, np.int32)
    for i in range(padded.shape[0] - 1):
        for j in range(padded.shape[1] - 1):
            for k in range(padded.shape[2] - 1):
                if not _look_around(padded, i, j, k, around):
                    continue
                for n in range(8):
                    if _is_first(around, n):
                        code = 0
                        for m in range(8):
                            if around[m] == around[n]:
                                code += 128 >> m
                        values[at], codes[at] = around[n], code
                        index[at, 0], index[at, 1], index[at, 2] = i, j, k
                        at += 1


@numba.njit(cache=True)
def _look_around(padded, i, j, k, around):  # type: ignore[no-untyped-def]
    """Fill in the labels of the 2x2x2 voxels around a corner; return whether they differ."""
    differ = False
    for n in range(8):
        around[n] = padded[i + (n >> 2), j + (n >> 1 & 1), k + (n & 1)]
        differ = differ or around[n] != around[0]
    return differ


@numba.njit(cache=True)
def _is_first(around, n):  # type: ignore[no-untyped-def]
    """Whether a label other than background occurs at `n` for the first time around a corner."""
    first = around[n] != 0
    for m in range(n):
        first = first and around[m] != around[n]
    return first
