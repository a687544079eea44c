"""What every transform can do, and the ones that need no samples: affine, inverse, and one after the other."""

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
from atlasseg.transforms import _kernels
from atlasseg.volume import Float32, Float64, Grid
from atlasseg.volume.grid import spelled

if TYPE_CHECKING:
    import SimpleITK as sitk

logger = logging.getLogger(__name__)

INVERSE_TOLERANCE_MM = 1e-4
"""`Inverse` has converged at a point when the transform brings it back to within this distance."""

INVERSE_MAX_ITERATIONS = 200
"""Steps of the fixed-point iteration of `Inverse`, after which a point is given up."""


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
        for part in (*parts_of(self), *parts_of(first)):
            if parts and isinstance(part, Affine) and isinstance(parts[-1], Affine):
                parts[-1] = Affine(parts[-1].matrix @ part.matrix)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) float64: where the voxels of `grid` go, in RAS+ mm. As calling it, but faster."""
        return self(grid_points(grid))

    @property
    def domain(self) -> Grid | None:
        """Grid of the samples that give the transform; None where it is given by a formula."""
        return None

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """The transform for SimpleITK, on LPS+ mm points.

        Parameters
        ----------
        grid : Grid, optional
            Where a transform that ITK has no form for (the inverse of a displacement field or spline) is sampled as a
            displacement field; by default its `domain`.

        Returns
        -------
        SimpleITK.Transform

        Raises
        ------
        InputError
            A grid is needed to sample the transform, and none is given.

        Examples
        --------
        >>> Affine.translation((1, 2, 3)).to_sitk().TransformPoint((0.0, 0.0, 0.0))
        (-1.0, -2.0, 3.0)
        """
        where = grid or self.domain
        if where is None:
            raise InputError(
                f"{type(self).__name__}: expected a grid to sample the transform on, since ITK has no form for it. "
                "Give grid=."
            )
        return interop.field_to_sitk(self.displacements_mm(where), where.affine)

    def displacements_mm(self, grid: Grid) -> Float32:
        """(I, J, K, 3) float32: how far the voxels of `grid` are moved, in RAS+ mm."""
        field = np.empty((*grid.shape, 3), np.float32)
        for start, stop in slabs(grid):
            part = grid.cropped((start, 0, 0), (stop, *grid.shape[1:]))
            field[start:stop] = self.on_grid(part) - grid_points(part)
        return field


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
        points, shape = as_points(points_mm)
        moved: Float64 = _kernels.affine_points(points, self.matrix)
        return moved.reshape(shape)

    def __invert__(self) -> Affine:
        inverse = inverse_matrix(self.matrix)
        inverse[3] = (0, 0, 0, 1)
        return Affine(inverse)

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        return grid_points(Grid(grid.shape, self.matrix @ grid.affine))

    def __repr__(self) -> str:
        linear = self.matrix[:3, :3]
        u, scales, vt = np.linalg.svd(linear)
        cosine = (np.trace(u @ vt * np.sign(np.linalg.det(u @ vt))) - 1) / 2
        facts = [
            f"translation: {spelled(self.matrix[:3, 3])} mm",
            f"rotation: {np.degrees(np.arccos(np.clip(cosine, -1, 1))):.3g} degrees",
            f"stretch: {spelled(scales)}",
        ]
        return f"Affine({'; '.join(facts)}{'; mirrors' if np.linalg.det(linear) < 0 else ''})"

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """The transform for SimpleITK, an AffineTransform on LPS+ mm points; `grid` is not needed."""
        return interop.affine_to_sitk(self.matrix)


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    r"""The inverse of a transform that has no inverse in closed form, found point by point by fixed-point iteration.

    For a point :math:`y` it starts from :math:`x = y` and repeats

    .. math::

        x \leftarrow x - s \, (t(x) - y)

    until ``|t(x) - y| <= INVERSE_TOLERANCE_MM``. The step :math:`s` begins at 1 and is halved for a point whose
    distance grew. A point that has not converged after `INVERSE_MAX_ITERATIONS` steps, because the transform folds or
    jumps there, keeps the nearest :math:`x` that was found, and a warning in the log says how many there were and how
    far off.

    References
    ----------
    Chen et al. 2008, A simple fixed-point approach to invert a deformation field, Med Phys 35(1).
    """

    transform: Transform

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
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
                "the inverse of a transform was not found at %d of %d points (up to %.3g mm off): it folds there",
                active.size,
                len(target),
                error[active].max(),
            )
        return best.reshape(shape)

    def __invert__(self) -> Transform:
        return self.transform

    @property
    def domain(self) -> Grid | None:
        """Grid of the samples that give the transform that is inverted; None where it is given by a formula."""
        return self.transform.domain

    def __repr__(self) -> str:
        return f"Inverse({self.transform!r})"


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
        flat = tuple(part for transform in self.transforms for part in parts_of(transform))
        object.__setattr__(self, "transforms", flat)

    def __call__(self, points_mm: ArrayLike) -> Float64:
        """(..., 3) where the points go."""
        points = np.asarray(points_mm, np.float64)
        for transform in reversed(self.transforms):
            points = transform(points)
        return points

    def __invert__(self) -> Transform:
        return Chain(tuple(~transform for transform in reversed(self.transforms)))

    def to_sitk(self, *, grid: Grid | None = None) -> sitk.Transform:
        """The transforms for SimpleITK, as a CompositeTransform; `grid` as of :meth:`.Transform.to_sitk`."""
        return interop.chain_to_sitk([part.to_sitk(grid=grid) for part in self.transforms])

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"

    def on_grid(self, grid: Grid) -> Float64:
        """(I, J, K, 3) where the voxels go."""
        rest = list(self.transforms)
        while rest and isinstance(last := rest[-1], Affine):  # an affine takes a grid to a grid
            grid = Grid(grid.shape, last.matrix @ grid.affine)
            rest.pop()
        points = rest.pop().on_grid(grid) if rest else grid_points(grid)
        return Chain(tuple(rest))(points)


def grid_points(grid: Grid) -> Float64:
    """(I, J, K, 3) float64 centres of the voxels in RAS+ mm."""
    points = np.zeros((*grid.shape, 3))
    _kernels.add_grid_points(points, grid.affine)
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


def parts_of(transform: Transform) -> tuple[Transform, ...]:
    """The transforms of a chain, or the one that it is."""
    return transform.transforms if isinstance(transform, Chain) else (transform,)


def shape3(array: NDArray[np.generic]) -> tuple[int, int, int]:
    """The first three axes of a shape."""
    return array.shape[0], array.shape[1], array.shape[2]


def as_points(points_mm: ArrayLike) -> tuple[Float64, tuple[int, ...]]:
    """Points as a contiguous (N, 3) array, and the shape that they came in."""
    points = np.asarray(points_mm, np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise InputError(f"points have shape (..., 3), got {points.shape}")
    return np.ascontiguousarray(points.reshape(-1, 3)), points.shape
