"""Grids: shape and affine of a volume, and the header fields of its source file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import GeometryError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

SAME_GRID_TOLERANCE_VOXELS = 0.01
"""Largest distance between corresponding corners of two matching grids, in voxels."""

OBLIQUE_DEGREES = 1.0
"""Smallest angle between the axes of an oblique grid and the anatomical axes."""

FLAT = 1e-9
"""An affine is singular if the volume of a voxel is at most this fraction of the product of its edge lengths."""


def _is_flat(edges: Float64) -> bool:
    return bool(abs(np.linalg.det(edges)) <= FLAT * np.prod(np.linalg.norm(edges, axis=0)))


def format_numbers(numbers: ArrayLike, separator: str = ", ") -> str:
    """Format numbers with four significant digits."""
    return separator.join(
        f"{number:.4g}" for number in np.round(np.atleast_1d(np.asarray(numbers, np.float64)), 4) + 0.0
    )


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid of a volume: shape and affine.

    Parameters
    ----------
    shape : (I, J, K)
        Number of voxels along each axis, each at least 1.
    affine : (4, 4) float64
        Voxel indices to RAS+ mm. Must be invertible; may be sheared or left-handed.

    Raises
    ------
    GeometryError
        The affine is not finite or not invertible.
    """

    shape: tuple[int, int, int]
    affine: Float64

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or _is_flat(affine[:3, :3]):
            raise GeometryError(f"affine: expected a finite, invertible 4x4 matrix, got {self.affine!r}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"grid: expected three axes of at least one voxel, got shape {self.shape}")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> Float64:
        """Voxel size along each axis in mm, (3,)."""
        spacing: Float64 = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing

    @property
    def corners_mm(self) -> Float64:
        """Centres of the eight corner voxels in RAS+ mm, (8, 3)."""
        last = np.array(self.shape) - 1
        corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def centre_mm(self) -> Float64:
        """Centre of the grid in RAS+ mm, (3,)."""
        return self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]

    @property
    def orientation(self) -> str:
        """Orientation code, e.g. ``"RAS"``: the nearest anatomical direction of each axis."""
        return "".join(("LR", "PA", "IS")[axis][ahead] for axis, ahead in self.nearest_axes)

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an axis of the grid and its nearest anatomical axis, in degrees."""
        directions = self.affine[:3, :3] / self.spacing_mm
        cosines = [abs(directions[axis, n]) for n, (axis, _) in enumerate(self.nearest_axes)]
        return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())

    @property
    def nearest_axes(self) -> list[tuple[int, bool]]:
        """Nearest RAS axis (0, 1, 2) of each array axis, and whether both have the same direction."""
        from nibabel.orientations import io_orientation

        return [(int(axis), bool(direction > 0)) for axis, direction in io_orientation(self.affine)]

    def describe(self) -> str:
        """Describe shape, spacing and orientation in one line, as in the ``repr`` of the data types.

        Returns
        -------
        str
        """
        tilt = self.tilt_degrees
        oblique = f" (oblique, {tilt:.3g} degrees)" if tilt >= OBLIQUE_DEGREES else ""
        shape, spacing = " x ".join(map(str, self.shape)), format_numbers(self.spacing_mm, " x ")
        return f"shape: {shape}; spacing: {spacing} mm; orientation: {self.orientation}{oblique}"

    def __repr__(self) -> str:
        return f"Grid({self.describe()}; centre: {format_numbers(self.centre_mm)} mm)"

    def matches(self, other: Grid) -> bool:
        """Test whether both grids have the same shape and the same corners within `SAME_GRID_TOLERANCE_VOXELS`.

        Parameters
        ----------
        other : Grid
            The other grid.

        Returns
        -------
        bool
        """
        if self.shape != other.shape:
            return False
        apart_mm = np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max()
        return bool(apart_mm <= SAME_GRID_TOLERANCE_VOXELS * self.spacing_mm.min())

    def cropped(self, start: ArrayLike, stop: ArrayLike) -> Grid:
        """Make the grid of ``array[start:stop]``.

        Parameters
        ----------
        start, stop : (3,) int
            First voxel, and last voxel + 1, along each axis.

        Returns
        -------
        Grid
        """
        first, end = np.asarray(start, int), np.asarray(stop, int)
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ first
        size = end - first
        return Grid((int(size[0]), int(size[1]), int(size[2])), affine)


@dataclass(frozen=True)
class SourceHeader:
    """Header fields of the file that a volume was read from, used to write results in the same way.

    Parameters
    ----------
    path : Path, optional
        The file.
    dtype : str, optional
        Data type on disk, as a NumPy name.
    sform_code, qform_code : int
        Codes of a NIfTI header.
    qform : (4, 4) nested tuple, optional
        Affine of the qform, voxel to RAS+ mm.
    version : {1, 2}
        Version of the NIfTI format.
    unit : str
        Unit of lengths in the file.
    pixdim_mm : (3,) float, optional
        Voxel size by pixdim, if it differs from that of the sform.
    """

    path: Path | None = None
    dtype: str | None = None
    sform_code: int = 1
    qform_code: int = 1
    qform: tuple[tuple[float, ...], ...] | None = None
    version: int = 1
    unit: str = "mm"
    pixdim_mm: tuple[float, float, float] | None = None

    def cropped(self, start: ArrayLike) -> SourceHeader:
        """Make the header of a cropped volume, with the qform moved accordingly.

        Parameters
        ----------
        start : (3,) int
            First voxel of the cropped volume.

        Returns
        -------
        SourceHeader
        """
        if self.qform is None:
            return self
        qform = np.array(self.qform)
        qform[:3, 3] += qform[:3, :3] @ np.asarray(start)
        return replace(self, qform=tuple(tuple(row) for row in qform.tolist()))
