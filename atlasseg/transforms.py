"""Data types: spatial transforms, from RAS+ millimetres to RAS+ millimetres.

A transform is a function of points: ``t(points_mm)``; ``a @ b`` is `a` after `b`, so ``(a @ b)(x) == a(b(x))``;
``~t`` is the inverse. A registration returns `moving_from_fixed`: it takes points of the fixed (target) image to
points of the moving (atlas) image, which is what resampling pulls with.

ITK's files and its LPS axes are the matter of :mod:`atlasseg.itk`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Grid

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

logger = logging.getLogger(__name__)

EDGE_VOXELS = 0.5 + 1e-6
"""How far beyond the centres of its outermost voxels a volume reaches: half a voxel, and rounding."""

INVERSE_TOLERANCE_MM = 1e-4
"""`Inverse` has converged at a point when the transform brings it back to within this distance."""

INVERSE_MAX_ITERATIONS = 200
"""Steps of the fixed-point iteration of `Inverse`, after which a point is given up."""

ALIGNED_TOLERANCE = 1e-7
"""Axes of two grids are parallel when over the whole grid they part by less than this many voxels."""


class Transform(ABC):
    """A function from points to points, both in RAS+ mm."""

    @abstractmethod
    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Where the points go.

        Parameters
        ----------
        points_mm : (..., 3)
            RAS+ mm.

        Returns
        -------
        (..., 3) float64
            RAS+ mm.
        """

    @abstractmethod
    def __invert__(self) -> Transform:
        """The transform that takes every point back."""

    def __matmul__(self, first: Transform) -> Transform:
        """The transform that applies `first` and then this one; neighbouring affines are folded into one."""
        parts: list[Transform] = []
        for part in (*_parts(self), *_parts(first)):
            if parts and isinstance(part, Affine) and isinstance(parts[-1], Affine):
                parts[-1] = Affine(parts[-1].matrix @ part.matrix)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) float64: where the voxels of `grid` go, in RAS+ mm. As calling it, but faster."""
        return self(grid_points(grid))


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """``x -> A x + b``.

    Parameters
    ----------
    matrix : (4, 4) float64
        RAS+ mm to RAS+ mm, last row 0 0 0 1, invertible.

    Raises
    ------
    GeometryError
        The matrix is not such a matrix.
    """

    matrix: Float64

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise GeometryError(
                f"an affine transform must be a finite 4x4 matrix ending in 0 0 0 1, got {self.matrix!r}"
            )
        if np.linalg.det(matrix[:3, :3]) == 0:
            raise GeometryError(f"an affine transform must be invertible, got {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> Affine:
        """The transform that moves nothing."""
        return cls(np.eye(4))

    @classmethod
    def translation(cls, offset_mm: ArrayLike) -> Affine:
        """``x -> x + offset_mm``, (3,)."""
        matrix = np.eye(4)
        matrix[:3, 3] = offset_mm
        return cls(matrix)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        points, shape = _as_points(points_mm)
        moved: Float64 = _affine_points(points, self.matrix)
        return moved.reshape(shape)

    def __invert__(self) -> Affine:
        inverse = inverse_matrix(self.matrix)
        inverse[3] = (0, 0, 0, 1)
        return Affine(inverse)

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        return grid_points(Grid(grid.shape, self.matrix @ grid.affine))


@dataclass(frozen=True, eq=False)
class DisplacementField(Transform):
    """``x -> x + u(x)``, u linear between voxels, and 0 outside the grid (beyond half a voxel), as in ITK.

    Parameters
    ----------
    displacement_mm : (I, J, K, 3) float32
        RAS+ mm.
    affine : (4, 4) float64
        Voxel to RAS+ mm.

    Raises
    ------
    InputError
        The array has another shape, or values that are not finite.
    """

    displacement_mm: Float32
    affine: Float64

    def __post_init__(self) -> None:
        field = np.ascontiguousarray(self.displacement_mm, dtype=np.float32)
        if field.ndim != 4 or field.shape[3] != 3:
            raise InputError(f"a displacement field has shape (I, J, K, 3), got {field.shape}")
        if not np.isfinite(field).all():
            raise InputError(f"{int((~np.isfinite(field)).sum())} values of a displacement field are NaN or infinite")
        object.__setattr__(self, "displacement_mm", field)
        object.__setattr__(self, "affine", Grid(_shape3(field), self.affine).affine)

    @property
    def grid(self) -> Grid:
        """Where the displacements are given."""
        return Grid(_shape3(self.displacement_mm), self.affine)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        points, shape = _as_points(points_mm)
        moved: Float64 = _displaced_linear(points, self.displacement_mm, inverse_matrix(self.affine))
        return moved.reshape(shape)

    def __invert__(self) -> Transform:
        return Inverse(self)

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        if grid.shape == self.grid.shape and np.array_equal(grid.affine, self.affine):
            return grid_points(grid) + self.displacement_mm
        return self(grid_points(grid))


@dataclass(frozen=True, eq=False)
class BSplineField(Transform):
    """``x -> x + sum of coefficients times cubic B-splines``: ITK's `BSplineTransform` of order 3.

    The spline is defined where all the 64 control points around a point exist, so one control point inside the
    border of the control grid; elsewhere the point stays where it is, as in ITK.

    Parameters
    ----------
    coefficients_mm : (A, B, C, 3) float64
        RAS+ mm, at least 4 control points along each axis.
    affine : (4, 4) float64
        Index of a control point to RAS+ mm.

    Raises
    ------
    InputError
        The array has another shape, or values that are not finite.

    References
    ----------
    Rueckert et al. 1999, Nonrigid registration using free-form deformations, IEEE TMI 18(8), equation 3.
    """

    coefficients_mm: Float64
    affine: Float64

    def __post_init__(self) -> None:
        field = np.ascontiguousarray(self.coefficients_mm, dtype=np.float64)
        if field.ndim != 4 or field.shape[3] != 3 or min(field.shape[:3]) < 4:
            raise InputError(f"B-spline coefficients have shape (A, B, C, 3), A, B, C at least 4; got {field.shape}")
        if not np.isfinite(field).all():
            raise InputError(f"{int((~np.isfinite(field)).sum())} B-spline coefficients are NaN or infinite")
        object.__setattr__(self, "coefficients_mm", field)
        object.__setattr__(self, "affine", Grid(_shape3(field), self.affine).affine)

    @property
    def grid(self) -> Grid:
        """Where the control points lie."""
        return Grid(_shape3(self.coefficients_mm), self.affine)

    @classmethod
    def control_grid(cls, grid: Grid, spacing_mm: float | ArrayLike) -> Grid:
        """The smallest control grid, parallel to `grid` and centred on it, whose spline is defined on all its voxels.

        Parameters
        ----------
        grid : Grid
        spacing_mm : float or (3,)
            At most this far apart do control points lie, in mm; reduced so that a whole number of steps spans the grid.
        """
        steps, first = [], []
        for n, size, wanted in zip(grid.shape, grid.spacing_mm, np.broadcast_to(spacing_mm, 3), strict=True):
            length = n * size  # to the outer faces of the voxels
            count = max(1, int(np.ceil(length / wanted - 1e-6)))
            steps.append((count, length / count / size))
            first.append(-0.5 - length / count / size)
        affine = grid.affine.copy()
        affine[:3, :3] = grid.affine[:3, :3] * [step for _, step in steps]
        affine[:3, 3] = grid.affine[:3, :3] @ np.array(first) + grid.affine[:3, 3]
        a, b, c = (count + 3 for count, _ in steps)
        return Grid((a, b, c), affine)

    def refined(self) -> BSplineField:
        """The same spline, exactly, on a control grid of half the spacing: N control points become 2 N - 3."""
        fine = self.coefficients_mm
        for axis in range(3):
            c = np.moveaxis(fine, axis, 0)
            out = np.empty((2 * len(c) - 3, *c.shape[1:]))
            out[0::2] = (c[:-1] + c[1:]) / 2
            out[1::2] = (c[:-2] + 6 * c[1:-1] + c[2:]) / 8
            fine = np.moveaxis(out, 0, axis)
        affine = self.affine.copy()
        affine[:3, :3] /= 2
        affine[:3, 3] += affine[:3, :3].sum(axis=1)  # the first new control point lies half a step further in
        return BSplineField(fine, affine)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        points, shape = _as_points(points_mm)
        moved: Float64 = _displaced_cubic(points, self.coefficients_mm, inverse_matrix(self.affine))
        return moved.reshape(shape)

    def __invert__(self) -> Transform:
        return Inverse(self)

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        index = inverse_matrix(self.affine) @ grid.affine  # voxel to index of control point
        steps = index[:3, :3]
        axes = np.abs(steps).argmax(axis=1)  # the axis of the grid that runs along each axis of the control grid
        along = np.zeros((3, 3))
        along[np.arange(3), axes] = steps[np.arange(3), axes]
        apart = np.abs(steps - along) @ (np.array(grid.shape) - 1)
        if len(set(axes.tolist())) < 3 or apart.max() > ALIGNED_TOLERANCE:
            return self(grid_points(grid))
        lines = [np.arange(grid.shape[axis]) * along[a, axis] + index[a, 3] for a, axis in enumerate(axes)]
        firsts, weights = zip(*(_cubic_taps(x, n) for x, n in zip(lines, self.grid.shape, strict=True)), strict=True)
        points = np.empty((*grid.shape, 3))
        by_control_axis = points.transpose((*axes.tolist(), 3))  # a view: filling it fills `points`
        _add_separable(by_control_axis, self.coefficients_mm, *firsts, *weights)
        _add_grid_points(points, grid.affine)
        return points


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    """The inverse of a transform that has none in closed form, found point by point by fixed-point iteration.

    For y, x <- x - s (t(x) - y) from x = y, until ``|t(x) - y| <= INVERSE_TOLERANCE_MM``; the step s begins at 1
    and is halved for a point whose distance grew. A point that has not converged after `INVERSE_MAX_ITERATIONS`
    steps, because the transform folds or jumps there, keeps the nearest x that was found, and a warning in the
    log says how many there were and how far off.

    References
    ----------
    Chen et al. 2008, A simple fixed-point approach to invert a deformation field, Med Phys 35(1).
    """

    transform: Transform

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        target, shape = _as_points(points_mm)
        best = target.copy()
        away = self.transform(best) - target
        error = np.linalg.norm(away, axis=1)
        step = np.ones(len(target))
        active = np.flatnonzero(error > INVERSE_TOLERANCE_MM)
        for _ in range(INVERSE_MAX_ITERATIONS):
            if active.size == 0:
                break
            trial = best[active] - step[active, None] * away[active]
            trial_away = self.transform(trial) - target[active]
            trial_error = np.linalg.norm(trial_away, axis=1)
            better = trial_error < error[active]
            gained = active[better]
            best[gained], away[gained], error[gained] = trial[better], trial_away[better], trial_error[better]
            step[active[~better]] /= 2
            active = active[error[active] > INVERSE_TOLERANCE_MM]
        if active.size:
            logger.warning(
                "the inverse of a transform was not found at %d of %d points (up to %.3g mm off): it folds there",
                active.size,
                len(target),
                error[active].max(),
            )
        return best.reshape(shape)

    def __invert__(self) -> Transform:
        return self.transform


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Several transforms, the last applied first, as in ITK's composite: ``Chain((a, b))(x) == a(b(x))``.

    Parameters
    ----------
    transforms : sequence of Transform
        Chains within are flattened; ``a @ b`` also folds neighbouring affines.
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        flat = tuple(part for transform in self.transforms for part in _parts(transform))
        object.__setattr__(self, "transforms", flat)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        points = np.asarray(points_mm, np.float64)
        for transform in reversed(self.transforms):
            points = transform(points)
        return points

    def __invert__(self) -> Transform:
        return Chain(tuple(~transform for transform in reversed(self.transforms)))

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        rest = list(self.transforms)
        while rest and isinstance(last := rest[-1], Affine):  # an affine takes a grid to a grid
            grid = Grid(grid.shape, last.matrix @ grid.affine)
            rest.pop()
        points = rest.pop().on_grid(grid) if rest else grid_points(grid)
        return Chain(tuple(rest))(points)


def to_displacement_field(transform: Transform, grid: Grid) -> DisplacementField:
    """The transform sampled at the voxels of `grid`.

    Between voxels it is the linear interpolation of these samples; outside the grid it is the identity.
    """
    field = np.empty((*grid.shape, 3), np.float32)
    for start, stop in slabs(grid):
        part = grid.cropped((start, 0, 0), (stop, *grid.shape[1:]))
        field[start:stop] = transform.on_grid(part) - grid_points(part)
    return DisplacementField(field, grid.affine)


def grid_points(grid: Grid) -> Float64:
    """(I, J, K, 3) float64 centres of the voxels in RAS+ mm."""
    points = np.zeros((*grid.shape, 3))
    _add_grid_points(points, grid.affine)
    return points


def inverse_matrix(matrix: Float64) -> Float64:
    """(4, 4) inverse of an affine matrix."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def slabs(grid: Grid, voxels: int = 1 << 19) -> Iterable[tuple[int, int]]:
    """Ranges ``start, stop`` of the first axis that hold about `voxels` voxels each, to bound memory.

    They depend on the grid alone, so that what is computed slab by slab is the same for any number of threads.
    """
    rows = max(1, voxels // (grid.shape[1] * grid.shape[2]))
    return [(start, min(start + rows, grid.shape[0])) for start in range(0, grid.shape[0], rows)]


def _parts(transform: Transform) -> tuple[Transform, ...]:
    return transform.transforms if isinstance(transform, Chain) else (transform,)


def _shape3(array: NDArray[np.generic]) -> tuple[int, int, int]:
    return array.shape[0], array.shape[1], array.shape[2]


def _as_points(points_mm: ArrayLike) -> tuple[Float64, tuple[int, ...]]:
    points = np.asarray(points_mm, np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise InputError(f"points have shape (..., 3), got {points.shape}")
    return np.ascontiguousarray(points.reshape(-1, 3)), points.shape


def _cubic_taps(x: Float64, size: int) -> tuple[NDArray[np.int64], Float64]:
    """First of the 4 control points around each of the (N,) indices x, and their (N, 4) weights; 0 where undefined."""
    base, weights = np.zeros(len(x), np.int64), np.zeros((len(x), 4))
    for n, value in enumerate(x):
        base[n] = _cubic_weights(value, size, weights[n])
    return base, weights


@numba.njit(cache=True)
def _cubic_weights(x, size, weights):  # type: ignore[no-untyped-def]
    """Fill the (4,) weights of the control points around index x; return the first of these, or -1 outside."""
    if x < 1 - 1e-9 or x > size - 2 + 1e-9:
        weights[:] = 0
        return -1
    base = min(max(int(np.floor(x)), 1), size - 3)
    t = x - base
    s = 1 - t
    weights[0] = s * s * s / 6
    weights[1] = 2 / 3 - t * t * (2 - t) / 2
    weights[2] = 2 / 3 - s * s * (2 - s) / 2
    weights[3] = t * t * t / 6
    return base - 1


@numba.njit(cache=True, parallel=True)
def _affine_points(points, m):  # type: ignore[no-untyped-def]
    out = np.empty_like(points)
    for n in numba.prange(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        for a in range(3):
            out[n, a] = m[a, 0] * x + m[a, 1] * y + m[a, 2] * z + m[a, 3]
    return out


@numba.njit(cache=True, parallel=True)
def _add_grid_points(out, m):  # type: ignore[no-untyped-def]
    for i in numba.prange(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                for a in range(3):
                    out[i, j, k, a] += m[a, 0] * i + m[a, 1] * j + m[a, 2] * k + m[a, 3]


@numba.njit(cache=True, parallel=True)
def _displaced_linear(points, field, inverse):  # type: ignore[no-untyped-def]
    out = points.copy()
    last = np.array(field.shape[:3]) - 1
    for n in numba.prange(points.shape[0]):
        low = np.empty(3, np.int64)
        high = np.empty(3, np.int64)
        t = np.empty(3)
        inside = True
        for a in range(3):
            x = inverse[a, 3]
            for b in range(3):
                x += inverse[a, b] * points[n, b]
            if not (x >= -EDGE_VOXELS and x <= last[a] + EDGE_VOXELS):
                inside = False
                break
            x = min(max(x, 0.0), float(last[a]))
            low[a] = int(x)
            high[a] = min(low[a] + 1, last[a])
            t[a] = x - low[a]
        if not inside:
            continue
        for corner in range(8):
            i, w = (high[0], t[0]) if corner & 4 else (low[0], 1 - t[0])
            j, v = (high[1], t[1]) if corner & 2 else (low[1], 1 - t[1])
            k, u = (high[2], t[2]) if corner & 1 else (low[2], 1 - t[2])
            w = w * v * u
            for a in range(3):
                out[n, a] += w * field[i, j, k, a]
    return out


@numba.njit(cache=True, parallel=True)
def _displaced_cubic(points, field, inverse):  # type: ignore[no-untyped-def]
    out = points.copy()
    for n in numba.prange(points.shape[0]):
        first = np.empty(3, np.int64)
        weights = np.empty((3, 4))
        inside = True
        for a in range(3):
            x = inverse[a, 3]
            for b in range(3):
                x += inverse[a, b] * points[n, b]
            first[a] = _cubic_weights(x, field.shape[a], weights[a])
            inside = inside and first[a] >= 0
        if not inside:
            continue
        for i in range(4):
            for j in range(4):
                w = weights[0, i] * weights[1, j]
                for k in range(4):
                    for a in range(3):
                        out[n, a] += w * weights[2, k] * field[first[0] + i, first[1] + j, first[2] + k, a]
    return out


@numba.njit(cache=True, parallel=True)
def _add_separable(out, field, first0, first1, first2, weights0, weights1, weights2):  # type: ignore[no-untyped-def]
    """Fill (I, J, K, 3) `out` with the spline at the grid of the three axes' taps: 4 + 4 + 4 products a voxel."""
    _, b, c, _ = field.shape
    for i in numba.prange(out.shape[0]):
        plane = np.zeros((b, c, 3))
        if first0[i] >= 0:
            for tap in range(4):
                plane += weights0[i, tap] * field[first0[i] + tap]
        for j in range(out.shape[1]):
            line = np.zeros((c, 3))
            if first1[j] >= 0:
                for tap in range(4):
                    line += weights1[j, tap] * plane[first1[j] + tap]
            for k in range(out.shape[2]):
                for a in range(3):
                    value = 0.0
                    if first2[k] >= 0:
                        for tap in range(4):
                            value += weights2[k, tap] * line[first2[k] + tap, a]
                    out[i, j, k, a] = value
