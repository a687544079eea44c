"""Base class of transforms, affine transforms, numerical inverses, and chains."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg import interop
from atlasseg.errors import GeometryError, InputError
from atlasseg.threads import run_slices
from atlasseg.transforms import _kernels
from atlasseg.volume import Float32, Float64, Grid
from atlasseg.volume.grid import format_numbers

if TYPE_CHECKING:
    import SimpleITK as sitk

logger = logging.getLogger(__name__)

INVERSE_TOLERANCE_MM = 1e-4
"""Convergence tolerance of `Inverse` at each point."""

INVERSE_MAX_ITERATIONS = 200
"""Maximum number of fixed-point iterations of `Inverse`."""


class Transform(ABC):
    """Spatial transform: maps points in RAS+ mm to points in RAS+ mm."""

    @abstractmethod
    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points.

        Parameters
        ----------
        points_mm : (..., 3)
            Points in RAS+ mm.

        Returns
        -------
        (..., 3) float64
            Mapped points in RAS+ mm.
        """

    @abstractmethod
    def __invert__(self) -> Transform:
        """Inverse transform."""

    def __matmul__(self, first: Transform) -> Transform:
        """Composition: apply `first`, then this transform. Consecutive affine transforms are merged into one."""
        parts: list[Transform] = []
        for part in (*list_parts(self), *list_parts(first)):
            if parts and isinstance(part, Affine) and isinstance(parts[-1], Affine):
                parts[-1] = Affine(parts[-1].matrix @ part.matrix)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def on_grid(self, grid: Grid) -> Float64:
        """Map the voxel centres of a grid. This is faster than calling the transform.

        Parameters
        ----------
        grid : Grid
            The grid.

        Returns
        -------
        (I, J, K, 3) float64
            Mapped points in RAS+ mm.
        """
        return self(grid_points(grid))

    @property
    def domain(self) -> Grid | None:
        """Grid on which a sampled transform is defined; None for a transform with a formula."""
        return None

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """Convert to a SimpleITK transform of points in LPS+ mm.

        Parameters
        ----------
        grid : Grid, optional
            Grid of the displacement field for transforms without a counterpart in ITK (the inverse of a displacement
            field or spline); by default the `domain`.

        Returns
        -------
        SimpleITK.Transform

        Raises
        ------
        InputError
            The transform needs a grid, and none is given.

        Examples
        --------
        >>> Affine.translation((1, 2, 3)).to_sitk().TransformPoint((0.0, 0.0, 0.0))
        (-1.0, -2.0, 3.0)
        """
        where = grid or self.domain
        if where is None:
            raise InputError(
                f"{type(self).__name__}: expected a grid for the displacement field, since ITK has no such transform. "
                "Give grid=."
            )
        return interop.field_to_sitk(self.displacements_mm(where), where.affine)

    def displacements_mm(self, grid: Grid) -> Float32:
        """Compute the displacement of each voxel centre of a grid.

        Parameters
        ----------
        grid : Grid
            The grid.

        Returns
        -------
        (I, J, K, 3) float32
            Displacements in RAS+ mm.
        """
        field = np.empty((*grid.shape, 3), np.float32)
        for start, stop in split_slabs(grid):
            part = grid.cropped((start, 0, 0), (stop, *grid.shape[1:]))
            field[start:stop] = self.on_grid(part) - grid_points(part)
        return field


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """Affine transform ``x -> A x + b``.

    Parameters
    ----------
    matrix : (4, 4) float64
        RAS+ mm to RAS+ mm; invertible, with the last row 0 0 0 1.

    Raises
    ------
    GeometryError
        The matrix does not have this form, or is not invertible.
    """

    matrix: Float64

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise GeometryError(
                f"affine transform: expected a finite 4x4 matrix with the last row 0 0 0 1, got {self.matrix!r}"
            )
        if np.linalg.det(matrix[:3, :3]) == 0:
            raise GeometryError(f"affine transform: expected an invertible matrix, got {matrix.tolist()}")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> Affine:
        """Create the identity transform."""
        return cls(np.eye(4))

    @classmethod
    def translation(cls, offset_mm: ArrayLike) -> Affine:
        """Create the translation ``x -> x + offset_mm``.

        Parameters
        ----------
        offset_mm : (3,) float
            Offset in RAS+ mm.
        """
        matrix = np.eye(4)
        matrix[:3, 3] = offset_mm
        return cls(matrix)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points of shape (..., 3)."""
        points, shape = as_points(points_mm)
        moved = np.empty_like(points)
        run_slices(_kernels.map_points, len(points), points, self.matrix, moved)
        return moved.reshape(shape)

    def __invert__(self) -> Affine:
        inverse = invert_matrix(self.matrix)
        inverse[3] = (0, 0, 0, 1)
        return Affine(inverse)

    def on_grid(self, grid: Grid) -> Float64:
        """Map the voxel centres of a grid, (I, J, K, 3)."""
        return grid_points(Grid(grid.shape, self.matrix @ grid.affine))

    def __repr__(self) -> str:
        linear = self.matrix[:3, :3]
        u, scales, vt = np.linalg.svd(linear)
        cosine = (np.trace(u @ vt * np.sign(np.linalg.det(u @ vt))) - 1) / 2
        facts = [
            f"translation: {format_numbers(self.matrix[:3, 3])} mm",
            f"rotation: {np.degrees(np.arccos(np.clip(cosine, -1, 1))):.3g} degrees",
            f"stretch: {format_numbers(scales)}",
        ]
        return f"Affine({'; '.join(facts)}{'; mirrors' if np.linalg.det(linear) < 0 else ''})"

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """Convert to a SimpleITK AffineTransform of points in LPS+ mm; `grid` is ignored."""
        return interop.affine_to_sitk(self.matrix)


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    r"""Numerical inverse of a transform without a closed-form inverse, by fixed-point iteration at each point.

    For a point :math:`y` the iteration starts from :math:`x = y` and repeats

    .. math::

        x \leftarrow x - s \, (t(x) - y)

    until ``|t(x) - y| <= INVERSE_TOLERANCE_MM``. The step size :math:`s` is 1 at the start and is halved for a point
    whose distance increased. A point that has not converged after `INVERSE_MAX_ITERATIONS` steps, because the transform
    folds or is discontinuous there, keeps the best :math:`x`; a warning states the number of such points and their
    largest error.

    Parameters
    ----------
    transform : Transform
        Transform to invert.

    References
    ----------
    Chen et al. 2008, A simple fixed-point approach to invert a deformation field, Med Phys 35(1).
    """

    transform: Transform

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points of shape (..., 3)."""
        target, shape = as_points(points_mm)
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
                "the inverse of a transform did not converge at %d of %d points (errors up to %.3g mm): it folds there",
                active.size,
                len(target),
                error[active].max(),
            )
        return best.reshape(shape)

    def __invert__(self) -> Transform:
        return self.transform

    @property
    def domain(self) -> Grid | None:
        """Domain of the transform that is inverted."""
        return self.transform.domain

    def __repr__(self) -> str:
        return f"Inverse({self.transform!r})"


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Composition of several transforms, the last applied first, as in ITK: ``Chain((a, b))(x) == a(b(x))``.

    Parameters
    ----------
    transforms : sequence of Transform
        Nested chains are flattened. ``a @ b`` also merges consecutive affine transforms.
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        flat = tuple(part for transform in self.transforms for part in list_parts(transform))
        object.__setattr__(self, "transforms", flat)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """Map points of shape (..., 3)."""
        points = np.asarray(points_mm, np.float64)
        for transform in reversed(self.transforms):
            points = transform(points)
        return points

    def __invert__(self) -> Transform:
        return Chain(tuple(~transform for transform in reversed(self.transforms)))

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """Convert to a SimpleITK CompositeTransform; `grid` as for :meth:`.Transform.to_sitk`."""
        return interop.chain_to_sitk([part.to_sitk(grid=grid) for part in self.transforms])

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"

    def on_grid(self, grid: Grid) -> Float64:
        """Map the voxel centres of a grid, (I, J, K, 3)."""
        rest = list(self.transforms)
        while rest and isinstance(last := rest[-1], Affine):  # an affine transform maps a grid to a grid
            grid = Grid(grid.shape, last.matrix @ grid.affine)
            rest.pop()
        points = rest.pop().on_grid(grid) if rest else grid_points(grid)
        return Chain(tuple(rest))(points)


def grid_points(grid: Grid) -> Float64:
    """Compute the voxel centres of a grid.

    Parameters
    ----------
    grid : Grid
        The grid.

    Returns
    -------
    (I, J, K, 3) float64
        Points in RAS+ mm.
    """
    points = np.zeros((*grid.shape, 3))
    run_slices(_kernels.add_grid_points, len(points), grid.affine, points)
    return points


def invert_matrix(matrix: Float64) -> Float64:
    """Invert an affine matrix.

    Parameters
    ----------
    matrix : (4, 4) float64
        Affine matrix.

    Returns
    -------
    (4, 4) float64
    """
    return np.asarray(np.linalg.inv(matrix), np.float64)


def split_slabs(grid: Grid, voxels: int = 1 << 19) -> Iterable[tuple[int, int]]:
    """Split a grid along the first axis into slabs ``start, stop`` of about `voxels` voxels each, to limit memory.

    The slabs depend on the grid only, so results computed slab by slab are the same for any number of threads.

    Parameters
    ----------
    grid : Grid
        The grid.
    voxels : int
        Approximate number of voxels of a slab.

    Returns
    -------
    sequence of (int, int)
        First and last + 1 index of each slab.
    """
    rows = max(1, voxels // (grid.shape[1] * grid.shape[2]))
    return [(start, min(start + rows, grid.shape[0])) for start in range(0, grid.shape[0], rows)]


def list_parts(transform: Transform) -> tuple[Transform, ...]:
    """List the transforms of a chain, or the transform itself."""
    return transform.transforms if isinstance(transform, Chain) else (transform,)


def shape3(array: NDArray[np.generic]) -> tuple[int, int, int]:
    """Sizes of the first three axes of an array."""
    return array.shape[0], array.shape[1], array.shape[2]


def as_points(points_mm: ArrayLike) -> tuple[Float64, tuple[int, ...]]:
    """Convert points to a contiguous (N, 3) array; also returns their original shape."""
    points = np.asarray(points_mm, np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise InputError(f"expected points of shape (..., 3), got {points.shape}")
    return np.ascontiguousarray(points.reshape(-1, 3)), points.shape
