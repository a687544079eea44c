"""Transforms sampled on a grid: displacement fields and cubic B-splines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from atlasseg import interop
from atlasseg.errors import InputError
from atlasseg.threads import run_slices
from atlasseg.transforms import _kernels
from atlasseg.transforms.base import Inverse, Transform, as_points, grid_points, invert_matrix, shape3
from atlasseg.volume import Float32, Float64, Grid

if TYPE_CHECKING:
    import SimpleITK as sitk

ALIGNED_TOLERANCE = 1e-7
"""Two grids are parallel if their axes deviate by at most this many voxels over the whole grid."""


@dataclass(frozen=True, eq=False)
class DisplacementField(Transform):
    """Displacement field ``x -> x + u(x)``. u is interpolated linearly; it is 0 outside the grid, as in ITK.

    The grid extends half a voxel beyond the centres of its outermost voxels.

    Parameters
    ----------
    displacement_mm : (I, J, K, 3) float32
        Displacements u in RAS+ mm.
    affine : (4, 4) float64
        Voxel to RAS+ mm.

    Raises
    ------
    InputError
        The array has another shape, or holds NaN or infinity.
    """

    displacement_mm: Float32
    affine: Float64

    def __post_init__(self) -> None:
        field = np.ascontiguousarray(self.displacement_mm, dtype=np.float32)
        if field.ndim != 4 or field.shape[3] != 3:
            raise InputError(f"displacement field: expected shape (I, J, K, 3), got {field.shape}")
        if not np.isfinite(field).all():
            raise InputError(
                f"displacement field: expected finite values, got {int((~np.isfinite(field)).sum())} NaN or infinite"
            )
        object.__setattr__(self, "displacement_mm", field)
        object.__setattr__(self, "affine", Grid(shape3(field), self.affine).affine)

    @property
    def grid(self) -> Grid:
        """Grid of the displacements."""
        return Grid(shape3(self.displacement_mm), self.affine)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points of shape (..., 3)."""
        points, shape = as_points(points_mm)
        moved, inverse = points.copy(), invert_matrix(self.affine)
        run_slices(_kernels.displace_linear, len(points), points, self.displacement_mm, inverse, moved)
        return moved.reshape(shape)

    def __invert__(self) -> Transform:
        return Inverse(self)

    @property
    def domain(self) -> Grid | None:
        """Grid of the displacements, the same as `grid`."""
        return self.grid

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """Convert to a SimpleITK DisplacementFieldTransform in LPS+ mm; `grid` is ignored."""
        return interop.field_to_sitk(self.displacement_mm, self.affine)

    def __repr__(self) -> str:
        longest = float(np.sqrt((self.displacement_mm**2).sum(axis=3).max()))
        return f"DisplacementField({self.grid.describe()}; largest displacement: {longest:.3g} mm)"

    def on_grid(self, grid: Grid) -> Float64:
        """Map the voxel centres of a grid, (I, J, K, 3)."""
        if grid.shape == self.grid.shape and np.array_equal(grid.affine, self.affine):
            return grid_points(grid) + self.displacement_mm
        return self(grid_points(grid))


@dataclass(frozen=True, eq=False)
class BSplineField(Transform):
    """Free-form deformation by cubic B-splines, the same as ITK's `BSplineTransform` of order 3.

    ``x -> x + sum of coefficients times B-splines``. The spline is defined where all 64 control points around a point
    exist, that is, from one control point inside the border of the control grid. Outside, it is the identity, as in
    ITK.

    Parameters
    ----------
    coefficients_mm : (A, B, C, 3) float64
        Coefficients in RAS+ mm, at least 4 control points along each axis.
    affine : (4, 4) float64
        Index of a control point to RAS+ mm.

    Raises
    ------
    InputError
        The array has another shape, or holds NaN or infinity.

    References
    ----------
    Rueckert et al. 1999, Nonrigid registration using free-form deformations, IEEE TMI 18(8), equation 3.
    """

    coefficients_mm: Float64
    affine: Float64

    def __post_init__(self) -> None:
        field = np.ascontiguousarray(self.coefficients_mm, dtype=np.float64)
        if field.ndim != 4 or field.shape[3] != 3 or min(field.shape[:3]) < 4:
            raise InputError(
                f"B-spline coefficients: expected shape (A, B, C, 3) with A, B, C of at least 4, got {field.shape}"
            )
        if not np.isfinite(field).all():
            raise InputError(
                f"B-spline coefficients: expected finite values, got {int((~np.isfinite(field)).sum())} NaN or infinite"
            )
        object.__setattr__(self, "coefficients_mm", field)
        object.__setattr__(self, "affine", Grid(shape3(field), self.affine).affine)

    @property
    def grid(self) -> Grid:
        """Grid of the control points."""
        return Grid(shape3(self.coefficients_mm), self.affine)

    @classmethod
    def control_grid(cls, grid: Grid, spacing_mm: float | ArrayLike) -> Grid:
        """Create the smallest control grid that is parallel to `grid` and defines the spline on all its voxels.

        Parameters
        ----------
        grid : Grid
            Grid on which the spline is defined.
        spacing_mm : float or (3,)
            Maximum spacing of the control points in mm. It is reduced so that a whole number of steps spans the grid.
        """
        steps, first = [], []
        for n, size, max_mm in zip(grid.shape, grid.spacing_mm, np.broadcast_to(spacing_mm, 3), strict=True):
            length = n * size  # between the outer faces of the voxels
            count = max(1, int(np.ceil(length / max_mm - 1e-6)))
            steps.append((count, length / count / size))
            first.append(-0.5 - length / count / size)
        affine = grid.affine.copy()
        affine[:3, :3] = grid.affine[:3, :3] * [step for _, step in steps]
        affine[:3, 3] = grid.affine[:3, :3] @ np.array(first) + grid.affine[:3, 3]
        a, b, c = (count + 3 for count, _ in steps)
        return Grid((a, b, c), affine)

    def refined(self) -> BSplineField:
        """Compute exactly the same spline on a control grid of half the spacing; N control points become 2 N - 3.

        Returns
        -------
        BSplineField
        """
        fine = self.coefficients_mm
        for axis in range(3):
            c = np.moveaxis(fine, axis, 0)
            out = np.empty((2 * len(c) - 3, *c.shape[1:]))
            out[0::2] = (c[:-1] + c[1:]) / 2
            out[1::2] = (c[:-2] + 6 * c[1:-1] + c[2:]) / 8
            fine = np.moveaxis(out, 0, axis)
        affine = self.affine.copy()
        affine[:3, :3] /= 2
        affine[:3, 3] += affine[:3, :3].sum(axis=1)  # the first new control point is half an old step further inside
        return BSplineField(fine, affine)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points of shape (..., 3)."""
        points, shape = as_points(points_mm)
        moved, inverse = points.copy(), invert_matrix(self.affine)
        run_slices(_kernels.displace_cubic, len(points), points, self.coefficients_mm, inverse, moved)
        return moved.reshape(shape)

    def __invert__(self) -> Transform:
        return Inverse(self)

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """Convert to a SimpleITK BSplineTransform of order 3 in LPS+ mm; `grid` is ignored."""
        return interop.spline_to_sitk(self.coefficients_mm, self.affine)

    def __repr__(self) -> str:
        longest = float(np.sqrt((self.coefficients_mm**2).sum(axis=3).max()))
        return f"BSplineField(control points: {self.grid.describe()}; largest coefficient: {longest:.3g} mm)"

    def on_grid(self, grid: Grid) -> Float64:
        """Map the voxel centres of a grid, (I, J, K, 3)."""
        index = invert_matrix(self.affine) @ grid.affine  # voxel to index of control point
        steps = index[:3, :3]
        axes = np.abs(steps).argmax(axis=1)  # grid axis along each axis of the control grid
        along = np.zeros((3, 3))
        along[np.arange(3), axes] = steps[np.arange(3), axes]
        apart = np.abs(steps - along) @ (np.array(grid.shape) - 1)
        if len(set(axes.tolist())) < 3 or apart.max() > ALIGNED_TOLERANCE:
            return self(grid_points(grid))
        lines = [np.arange(grid.shape[axis]) * along[a, axis] + index[a, 3] for a, axis in enumerate(axes)]
        firsts, weights = zip(
            *(_kernels.cubic_taps(x, n) for x, n in zip(lines, self.grid.shape, strict=True)), strict=True
        )
        points = np.empty((*grid.shape, 3))
        by_control_axis = points.transpose((*axes.tolist(), 3))  # a view: filling it fills `points`
        spline = self.coefficients_mm, *firsts, *weights
        run_slices(_kernels.add_separable, len(by_control_axis), *spline, by_control_axis)
        run_slices(_kernels.add_grid_points, len(points), grid.affine, points)
        return points


def to_displacement_field(transform: Transform, grid: Grid) -> DisplacementField:
    """Sample a transform at the voxel centres of `grid` as a displacement field.

    The field is interpolated linearly between voxel centres, and is the identity outside the grid.

    Parameters
    ----------
    transform : Transform
        Transform of points in RAS+ mm.
    grid : Grid
        Grid of the field.

    Returns
    -------
    DisplacementField
    """
    return DisplacementField(transform.displacements_mm(grid), grid.affine)
