"""From images to prepared pairs and back: what all methods of the engine share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numba
import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.registration._engine import fields
from atlasseg.registration._engine.pyramid import VALID, Level, Prepared, prepare
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, grid_points
from atlasseg.volume import Float32, Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.6
"""Pairs run side by side only as far as they fit this share of the free memory."""

VOXELS_FOR_THREADS = 1 << 18
"""Smaller volumes are registered by one thread: others would spend more time waiting than working."""

LEAST_OVERLAP = 0.05
"""Share of the fixed foreground that an initial transform must bring into the moving field of view."""

OVERLAP_POINTS = 5000
"""Voxels at which that is looked up."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Pair:
    """A fixed and a moving image, prepared, and where they start: ``matrix_mm before(x)``."""

    fixed: Prepared
    moving: Prepared
    matrix_mm: Float64 | None
    """(4, 4) fixed to moving RAS+ mm; None where nothing is known."""
    before: Transform | None
    """Of fixed points, before the matrix; None where that is all."""
    known: bool
    """The moving image has a mask."""
    initial: Transform | None = None
    """What was given."""

    @property
    def start_mm(self) -> Float64:
        """The matrix of a pair that has one."""
        assert self.matrix_mm is not None
        return self.matrix_mm

    def displacement(self, level: Level) -> Float32:
        """(I, J, K, 3) where `before` moves the voxels of a level of the fixed image, in its voxels.

        The last voxels of a coarse level may lie beyond the image: they move as its border does.
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


def pairs(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
) -> list[Pair]:
    """Prepare every pair; the fixed image once.

    Raises
    ------
    InputError
        The sequences differ in length, the images in channels, an image is constant, a mask empty.
    GeometryError
        A mask is not on its image's grid, or an initial transform leaves the fields of view without overlap.
    """
    for given, what in ((initial, "initial transforms"), (moving_masks, "moving masks")):
        if given is not None and len(given) != len(moving):
            raise InputError(f"{len(given)} {what} for {len(moving)} moving images: one for each is wanted")
    target = prepare(fixed, fixed_mask)

    def pair(n: int) -> Pair:
        image, mask = moving[n], None if moving_masks is None else moving_masks[n]
        if image.channels.shape[3] != fixed.channels.shape[3]:
            raise InputError(
                f"{image.name or f'moving image {n}'} has {image.channels.shape[3]} channels, "
                f"{fixed.name or 'the fixed image'} has {fixed.channels.shape[3]}"
            )
        start = None if initial is None else initial[n]
        matrix, before = (None, None) if start is None else split(start)
        if start is not None:
            _check_overlap(target, image.grid, start, fixed.name, image.name)
        return Pair(target, prepare(image, mask, cut=False), matrix, before, mask is not None, start)

    return side_by_side(range(len(moving)), pair, workers=numba.get_num_threads(), size=fixed.array.size)


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
            f"under the initial transform: {inside.mean():.1%} of the foreground lies in the moving field of view, "
            f"{LEAST_OVERLAP:.0%} is wanted"
        )


def split(transform: Transform) -> tuple[Float64, Transform | None]:
    """A transform as a matrix and what comes before it, if anything."""
    match transform:
        case Affine():
            return transform.matrix, None
        case Chain(transforms=(Affine() as last, *rest)) if rest:
            return last.matrix, Chain(tuple(rest))
    return np.eye(4), transform


def carried(pair: Pair) -> Pair:
    """The pair with the moving image carried onto the fixed grid, where its start is more than a matrix."""
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
        fields.warp(channel, known, everywhere, to_moving, displacement_voxels, warped, weight)
        channels.append(warped)
    on_fixed = Prepared(tuple(channels), fixed.affine, weight > 0, fixed.start, moving.name)
    return replace(pair, moving=on_fixed, matrix_mm=np.eye(4), before=None, known=True)


def require(values: Mapping[str, float], *, least: float, above: bool = False) -> None:
    """Raise `InputError` naming the first of the values that is below `least`, or, with `above`, not above it."""
    for name, value in values.items():
        if not (value > least if above else value >= least):
            raise InputError(f"{name} must be {'above' if above else 'at least'} {least:g}, got {value:g}")


def is_mixed(precision: str) -> bool:
    """Whether the precision is mixed; raise `InputError` where it is neither that nor single."""
    if precision not in ("single", "mixed"):
        raise InputError(f"precision must be 'single' or 'mixed', got {precision!r}")
    return precision == "mixed"


def schedule_of(
    fixed: Prepared, shrink_factors: tuple[int, ...], iterations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The levels and their iterations: as given, or by default as many of powers of two as there is room for.

    Raises
    ------
    InputError
        The two differ in length, or a number is out of its range.
    """
    if not iterations or min(iterations) < 0 or min(shrink_factors, default=1) < 1:
        raise InputError(
            f"iterations must be 0 or above and shrink_factors 1 or above, got {iterations}, {shrink_factors}"
        )
    if shrink_factors and len(shrink_factors) != len(iterations):
        raise InputError(
            f"{len(shrink_factors)} shrink_factors and {len(iterations)} iterations: one of each a level is wanted"
        )
    shrinks = shrink_factors or tuple(fixed.schedule(2 ** (len(iterations) - 1)))
    return shrinks, iterations[len(iterations) - len(shrinks) :]


def field_transform(displacement_voxels: Float32, fixed: Prepared, grid: Grid) -> DisplacementField:
    """A displacement on the prepared grid as a transform on the whole grid; beyond the cut it goes on unchanged."""
    padding = [
        (start, whole - start - part)
        for start, whole, part in zip(fixed.start, grid.shape, displacement_voxels.shape[:3], strict=True)
    ]
    in_mm = displacement_voxels.reshape(-1, 3) @ grid.affine[:3, :3].T.astype(np.float32)
    whole_mm = np.pad(in_mm.reshape(displacement_voxels.shape), [*padding, (0, 0)], mode="edge")
    return DisplacementField(whole_mm, grid.affine)


def each(pairs: Sequence[Pair], solve: Callable[[Pair], Result], *, bytes_needed: int) -> list[Result]:
    """Solve every pair, as many side by side as the memory allows."""
    workers = min(numba.get_num_threads(), max(1, int(MEMORY_SHARE * _free_bytes() / max(bytes_needed, 1))))
    size = max((pair.fixed.valid.size for pair in pairs), default=0)
    return side_by_side(pairs, solve, workers=workers, size=size)


def side_by_side(items: Sequence[Item], work: Callable[[Item], Result], *, workers: int, size: int) -> list[Result]:
    """Work on every item, several side by side on one core each: faster than all cores on one, and the same bits.

    `size` is the voxels of one item: where they cannot run side by side, small ones are given one core all the same.
    """
    threads = numba.get_num_threads()
    workers = min(len(items), workers)
    if workers < 2 or not _may_run_side_by_side():
        numba.set_num_threads(1 if size < VOXELS_FOR_THREADS else threads)
        try:
            return [work(item) for item in items]
        finally:
            numba.set_num_threads(threads)

    def alone(item: Item) -> Result:
        numba.set_num_threads(1)
        return work(item)

    with ThreadPoolExecutor(workers, thread_name_prefix="register") as pool:
        return list(pool.map(alone, items))


@numba.njit(cache=True, parallel=True)
def _touch(x):  # type: ignore[no-untyped-def]
    for i in numba.prange(x.size):
        x[i] = 0


def _may_run_side_by_side() -> bool:
    """Whether numba's threads may be used from several threads at once: not so with its own plain pool."""
    _touch(np.zeros(1))
    return numba.threading_layer() in ("omp", "tbb")


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # macOS and Windows
        import psutil

        return int(psutil.virtual_memory().available)
