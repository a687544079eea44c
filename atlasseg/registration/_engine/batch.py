"""Pairs of images for the registration engine: preparation, initial transforms, parallel execution."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.registration._engine import fields
from atlasseg.registration._engine.pyramid import VALID, Level, Prepared, prepare
from atlasseg.threads import count_threads, limit_threads, map_in_threads, run_slices
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Float32, Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.6
"""Pairs run in parallel only as long as they fit into this fraction of the free memory."""

VOXELS_FOR_THREADS = 1 << 18
"""Smaller volumes are registered by one thread, since more threads would mostly wait for each other."""

LEAST_OVERLAP = 0.05
"""Fraction of the fixed foreground that an initial transform must map into the moving field of view."""

OVERLAP_POINTS = 5000
"""Number of voxels at which the overlap is measured."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Pair:
    """Prepared fixed and moving images with their initial transform ``matrix_mm before(x)``."""

    fixed: Prepared
    moving: Prepared
    matrix_mm: Float64 | None
    """(4, 4) fixed to moving RAS+ mm; None without an initial transform."""
    before: Transform | None
    """Transform of fixed points that is applied before the matrix; None if the matrix is all."""
    known: bool
    """Whether the moving image has a mask."""
    initial: Transform | None = None
    """Initial transform as given by the caller."""

    @property
    def start_mm(self) -> Float64:
        """Matrix of a pair with an initial transform."""
        assert self.matrix_mm is not None
        return self.matrix_mm

    def displacement(self, level: Level) -> Float32:
        """Sample the displacement (I, J, K, 3) of `before` at a level of the fixed image, in voxels of the level.

        The last voxels of a coarse level may lie beyond the image: they take the displacement of its border.
        """
        if self.before is None:
            return np.zeros((*level.shape, 3), np.float32)
        if level.shape == self.fixed.valid.shape:
            grid = Grid(level.shape, level.affine)
            moved_mm = self.before.on_grid(grid) - grid_points(grid)
        else:
            at = np.linalg.inv(self.fixed.affine) @ level.affine
            last = np.array(self.fixed.valid.shape) - 1
            lines = [np.clip(np.arange(n) * at[a, a] + at[a, 3], 0, last[a]) for a, n in enumerate(level.shape)]
            voxels = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
            points_mm = voxels @ self.fixed.affine[:3, :3].T + self.fixed.affine[:3, 3]
            moved_mm = self.before(points_mm) - points_mm
        return np.ascontiguousarray(moved_mm @ np.linalg.inv(level.affine[:3, :3]).T, dtype=np.float32)


def prepare_pairs(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
    channel_weights: Sequence[float] = (),
) -> list[Pair]:
    """Prepare all pairs of one fixed image.

    Raises
    ------
    InputError
        The sequences differ in length, the images differ in channels, an image is constant, or a mask is empty.
    GeometryError
        A mask is not on the grid of its image, or the images do not overlap under an initial transform.
    """
    for given, what in ((initial, "initial transforms"), (moving_masks, "moving masks")):
        if given is not None and len(given) != len(moving):
            raise InputError(f"{what}: expected one per moving image ({len(moving)}), got {len(given)}")
    target = prepare(fixed, fixed_mask, channel_weights=channel_weights)

    def pair(n: int) -> Pair:
        image, mask = moving[n], None if moving_masks is None else moving_masks[n]
        if image.channels.shape[3] != fixed.channels.shape[3]:
            raise InputError(
                f"{image.name or f'moving image {n}'}: expected {fixed.channels.shape[3]} channels like "
                f"{fixed.name or 'the fixed image'}, got {image.channels.shape[3]}"
            )
        start = None if initial is None else initial[n]
        matrix, before = (None, None) if start is None else split(start)
        if start is not None:
            _check_overlap(target, image.grid, start, fixed.name, image.name)
        return Pair(target, prepare(image, mask, cut=False), matrix, before, mask is not None, start)

    return run_in_parallel(range(len(moving)), pair, workers=count_threads(), size=fixed.array.size)


def _check_overlap(fixed: Prepared, moving: Grid, initial: Transform, fixed_name: str, moving_name: str) -> None:
    where = np.argwhere(fixed.valid)
    where = where[:: max(1, len(where) // OVERLAP_POINTS)]
    points_mm = where @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    to_voxels = np.linalg.inv(moving.affine)
    voxels = initial(points_mm) @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    inside = ((voxels >= -0.5) & (voxels <= np.array(moving.shape) - 0.5)).all(axis=1)
    if inside.mean() < LEAST_OVERLAP:
        raise GeometryError(
            f"{fixed_name or 'the fixed image'} and {moving_name or 'the moving image'} do not overlap "
            f"under the initial transform: expected at least {LEAST_OVERLAP:.0%} of the foreground in the moving field "
            f"of view, got {inside.mean():.1%}"
        )


def split(transform: Transform) -> tuple[Float64, Transform | None]:
    """Split a transform into a matrix and the transform applied before it (None for an affine transform)."""
    match transform:
        case Affine():
            return transform.matrix, None
        case Chain(transforms=(Affine() as last, *rest)) if rest:
            return last.matrix, Chain(tuple(rest))
    return np.eye(4), transform


def resample_moving(pair: Pair) -> Pair:
    """Resample the moving image of a pair to the fixed grid if its initial transform is not affine."""
    if pair.matrix_mm is None or pair.before is None:
        return pair
    fixed, moving = pair.fixed, pair.moving
    to_moving = (np.linalg.inv(moving.affine) @ pair.matrix_mm @ fixed.affine)[:3]
    known = moving.valid.astype(np.uint8) if pair.known else np.zeros((0, 0, 0), np.uint8)
    everywhere = np.full(fixed.valid.shape, VALID, np.uint8)
    weight = np.empty(fixed.valid.shape, np.float32)
    displacement_voxels = pair.displacement(fixed.level((1, 1, 1)))
    channels = []
    for channel in moving.channels:
        warped = np.empty(fixed.valid.shape, np.float32)
        given = channel, known, everywhere, to_moving, displacement_voxels
        run_slices(fields.warp, len(warped), *given, warped, weight)
        channels.append(warped)
    on_fixed = Prepared(tuple(channels), fixed.affine, weight > 0, fixed.start, moving.name, moving.weights)
    return replace(pair, moving=on_fixed, matrix_mm=np.eye(4), before=None, known=True)


def require(values: Mapping[str, float], *, least: float, above: bool = False) -> None:
    """Raise an `InputError` that names the first value below `least` (with `above`: at or below it)."""
    for name, value in values.items():
        if not (value > least if above else value >= least):
            raise InputError(f"{name} must be {'above' if above else 'at least'} {least:g}, got {value:g}")


def is_mixed(precision: str) -> bool:
    """Return whether the precision is mixed; raise an `InputError` if it is neither mixed nor single."""
    if precision not in ("single", "mixed"):
        raise InputError(f"precision: expected 'single' or 'mixed', got {precision!r}")
    return precision == "mixed"


def choose_schedule(
    fixed: Prepared, shrink_factors: tuple[int, ...], iterations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose shrink factors and iterations: the given ones, or by default powers of two as the image size allows.

    Raises
    ------
    InputError
        The two differ in length, or a number is out of range.
    """
    if not iterations or min(iterations) < 0 or min(shrink_factors, default=1) < 1:
        raise InputError(
            f"expected iterations of at least 0 and shrink_factors of at least 1, got {iterations}, {shrink_factors}"
        )
    if shrink_factors and len(shrink_factors) != len(iterations):
        raise InputError(
            f"iterations: expected one per level ({len(shrink_factors)} shrink_factors), got {len(iterations)}"
        )
    shrinks = shrink_factors or tuple(fixed.schedule(2 ** (len(iterations) - 1)))
    return shrinks, iterations[len(iterations) - len(shrinks) :]


def make_field_transform(displacement_voxels: Float32, fixed: Prepared, grid: Grid) -> DisplacementField:
    """Convert a displacement on the prepared grid to a transform on the whole grid, constant beyond the crop."""
    padding = [
        (start, whole - start - part)
        for start, whole, part in zip(fixed.start, grid.shape, displacement_voxels.shape[:3], strict=True)
    ]
    in_mm = displacement_voxels.reshape(-1, 3) @ grid.affine[:3, :3].T.astype(np.float32)
    whole_mm = np.pad(in_mm.reshape(displacement_voxels.shape), [*padding, (0, 0)], mode="edge")
    return DisplacementField(whole_mm, grid.affine)


def solve_each(pairs: Sequence[Pair], solve: Callable[[Pair], Result], *, bytes_needed: int) -> list[Result]:
    """Solve all pairs, as many in parallel as the memory allows."""
    workers = min(count_threads(), max(1, int(MEMORY_SHARE * _get_free_bytes() / max(bytes_needed, 1))))
    size = max((pair.fixed.valid.size for pair in pairs), default=0)
    return run_in_parallel(pairs, solve, workers=workers, size=size)


def run_in_parallel(items: Sequence[Item], work: Callable[[Item], Result], *, workers: int, size: int) -> list[Result]:
    """Apply `work` to all items in parallel on one core each: faster than all cores on one item, with the same result.

    `size` is the number of voxels of an item. Small items use one core even if they cannot run in parallel.
    """
    workers = min(len(items), workers)
    if workers < 2:
        with limit_threads(1 if size < VOXELS_FOR_THREADS else count_threads()):
            return [work(item) for item in items]
    return map_in_threads(work, items, workers=workers)


def _get_free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # macOS and Windows
        import psutil

        return int(psutil.virtual_memory().available)
