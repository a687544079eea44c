"""Diffeomorphic registration by composed updates: the inner loop on the CPU.

Each iteration warps the moving image once and takes the derivative of the similarity for a small step *before* the
current warp: the closed-form derivative in the warped image times the gradient of the warped image, so that no gradient
of the moving image is sampled. It smooths this update, scales its longest vector to a fixed step, composes it with the
field, and smooths the field slightly. The field stays a diffeomorphism as long as each step is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.registration._engine import fields, folds
from atlasseg.registration._engine.batch import Pair
from atlasseg.registration._engine.pyramid import VALID, Level, choose_factors, resample_field
from atlasseg.similarity import SimilarityMetric
from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64

CONVERGENCE_WINDOW = 10
"""Number of iterations whose mean similarity is compared with that of the same number before, to stop a level."""


@dataclass(frozen=True)
class Schedule:
    """Parameters of the optimisation; see :func:`atlasseg.registration.diffeomorphic.register`."""

    shrink_factors: tuple[int, ...]
    iterations: tuple[int, ...]
    similarity: SimilarityMetric
    update_sigma_voxels: float
    total_field_sigma_voxels: tuple[float, ...]
    step_voxels: float
    tolerance: float
    mixed: bool = False
    """Hold images and updates in float16 on a GPU."""


def bytes_needed(voxels: int, channels: int) -> int:
    """Estimate the memory of one pair at full resolution: five fields, both images, and the window sums."""
    return voxels * (5 * 12 + 4 * (8 + 3 * channels) + 2)


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of the optimisation of a pair.

    Parameters
    ----------
    field : (I, J, K, 3) float32
        Displacement in voxels of the fixed image, without folds.
    similarity : float
        Similarity at the finest level.
    repaired : int
        Number of folded voxels, of the grids of all levels, that were repaired after a level.
    """

    field: Float32
    similarity: float
    repaired: int


def solve(pair: Pair, schedule: Schedule) -> Solution:
    """Optimise the displacement u of ``matrix_mm @ (x + u(x))`` for a pair; folds are repaired after every level."""
    fixed, moving = pair.fixed, pair.moving
    field: Float32 | None = None
    before, value, repaired = fixed.level((1, 1, 1)), 0.0, 0
    for shrink, iterations, sigma in zip(
        schedule.shrink_factors, schedule.iterations, schedule.total_field_sigma_voxels, strict=True
    ):
        if iterations == 0:
            continue
        level = fixed.level(fixed.factors(shrink))
        field = pair.displacement(level) if field is None else resample_field(field, before, level)
        other = moving.level(choose_factors(level, moving))
        field, value = _optimise_level(level, other, pair.start_mm, field, iterations, sigma, schedule, pair.known)
        field, count = folds.repair(field)
        before, repaired = level, repaired + count
    full = fixed.level((1, 1, 1))
    field, count = folds.repair(pair.displacement(full) if field is None else resample_field(field, before, full))
    return Solution(field, value, repaired + count)


def _optimise_level(
    fixed: Level,
    moving: Level,
    matrix_mm: Float64,
    field: Float32,
    iterations: int,
    sigma_voxels: float,
    schedule: Schedule,
    known: bool,
) -> tuple[Float32, float]:
    shape = fixed.shape
    to_moving = (np.linalg.inv(moving.affine) @ matrix_mm @ fixed.affine)[:3]
    where = (moving.mask == VALID).astype(np.uint8) if known else np.zeros((0, 0, 0), np.uint8)
    warped, weight = np.empty(shape, np.float32), np.empty(shape, np.float32)
    composed, scratch = np.empty_like(field), np.empty_like(field)
    update, update_scratch = np.zeros_like(field), np.zeros_like(field)
    finest = fixed.spacing_mm.min() / fixed.spacing_mm
    update_sigma = tuple(float(s) for s in schedule.update_sigma_voxels * finest)
    total_field_sigma = tuple(float(s) for s in sigma_voxels * finest)
    reach = [fields.make_gaussian_taps(s).size // 2 for s in update_sigma]
    near, everywhere = (fields.find_row_spans(m, reach) for m in (fixed.mask == VALID, np.ones(shape, bool)))
    values: list[float] = []
    for _ in range(iterations):
        value = 0.0
        for c, (f, m, w) in enumerate(zip(fixed.channels, moving.channels, fixed.weights, strict=True)):
            run_slices(fields.warp, len(warped), m, where, fixed.mask, to_moving, field, warped, weight)
            part, slope, _ = schedule.similarity.derivatives(f, warped, weight)
            value += w * part / len(fixed.channels)
            slope = slope if w == 1 else slope * np.float32(w)
            run_slices(fields.metric_gradient, len(slope), slope, warped, finest**2, c > 0, near, update)
        values.append(value)
        if has_converged(values, schedule.tolerance):
            break
        fields.smooth(update, update_sigma, update, update_scratch, near)
        longest = float(np.sqrt(fields.largest_square(update)))
        if longest == 0:
            break
        run_slices(fields.compose, len(field), field, update, schedule.step_voxels / longest, composed)
        fields.smooth(composed, total_field_sigma, field, scratch, everywhere)
    return field, values[-1]


def has_converged(values: Sequence[float], tolerance: float) -> bool:
    """Return whether the mean of the last `CONVERGENCE_WINDOW` values gained less than `tolerance`."""
    n = CONVERGENCE_WINDOW
    return len(values) >= 2 * n and float(np.mean(values[-n:]) - np.mean(values[-2 * n : -n])) < tolerance
