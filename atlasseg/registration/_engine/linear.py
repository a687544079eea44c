"""Rigid, similarity and affine registration: Gauss-Newton, from the best of several starts.

The search is a generator: it yields the level and the matrices it wants to know the similarity of, and is sent what
came out. Here the compiled kernels answer for one pair after the other; `linear_torch` answers for many at once.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numba
import numpy as np

from atlasseg.device import Device, resolve_device
from atlasseg.errors import GeometryError
from atlasseg.registration._engine import fields
from atlasseg.registration._engine.batch import Pair, each, pairs
from atlasseg.registration._engine.pyramid import VALID, Level, Prepared, matching_factors
from atlasseg.registration._engine.search import Factors, Fit, Result, Search
from atlasseg.similarity import SimilarityMetric
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

TransformModel = Literal["rigid", "similarity", "affine"]

STAGES: dict[TransformModel, tuple[TransformModel, ...]] = {
    "rigid": ("rigid",),
    "similarity": ("rigid", "similarity"),
    "affine": ("rigid", "similarity", "affine"),
}
"""The motions an unguided registration goes through at its coarsest level."""

START_VOXELS = 20
"""Starts are compared on a level of about this many voxels along the longest axis."""

NEARLY_COARSE = 1.5
"""The coarsest level of the schedule serves for that as long as its voxels are no more than this factor too small."""

START_ANGLES_DEGREES = (-25.0, 25.0)
"""Rotations about each axis that are tried beside none."""

LEAST_OVERLAP = 0.3
"""A start must bring at least this share of the fixed mask into the moving image's field of view."""

KEPT_STARTS = 3
"""So many of the best starts are registered rigidly before one is chosen."""

EXTENT_DIFFERENCE = 0.15
"""Along an axis where the foregrounds' extents differ by more than this share of the larger one, the smaller may be cut
off at either end: their low and their high edges are brought together as well as their middles."""

ADVANTAGE = 0.02
"""The header's alignment, and those of edges, take the place of a usual start where they gain this share ..."""

ELSEWHERE_VOXELS = 1.5
"""... and end this far from it, on average over the corners of the level's grid."""

ROTATION_COST = 0.1
"""Share of the similarity that a turn by 180 degrees away from the header's orientation must gain ..."""

FREE_COSINE = 0.5
"""... falling to none for a turn by 60 degrees, whose cosine this is."""

CONVERGED = 1e-4
"""Gauss-Newton ends when a step gains less than this in the similarity."""


def generators(model: TransformModel) -> Float64:
    """(P, 4, 4) infinitesimal motions: translations, rotations, then scaling, or scalings and shears."""
    basis = []

    def unit(*entries: tuple[int, int, float]) -> None:
        matrix = np.zeros((4, 4))
        for i, j, value in entries:
            matrix[i, j] = value
        basis.append(matrix)

    for i in range(3):
        unit((i, 3, 1.0))
    if model == "affine":
        for i, j in itertools.product(range(3), repeat=2):
            unit((i, j, 1.0))
        return np.stack(basis)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        unit((i, j, -1.0), (j, i, 1.0))
    if model == "similarity":
        unit(*((i, i, 1.0) for i in range(3)))
    return np.stack(basis)


def fit(fixed: Level, moving: Level, matrix_mm: Float64, similarity: SimilarityMetric, *, known: bool) -> Fit:
    """Similarity under ``matrix_mm`` (4, 4), fixed to moving RAS+ mm, and its derivatives."""
    to_moving = np.linalg.inv(moving.affine) @ matrix_mm @ fixed.affine
    warped, weight = np.empty(fixed.shape, np.float32), np.empty(fixed.shape, np.float32)
    nowhere = np.zeros((*fixed.shape, 3), np.float32)
    where = (moving.mask == VALID).astype(np.uint8) if known else np.zeros((0, 0, 0), np.uint8)
    value, sums = 0.0, np.zeros(72)
    for f, m in zip(fixed.channels, moving.channels, strict=True):
        fields.warp(m, where, fixed.mask, to_moving[:3], nowhere, warped, weight)
        part, gradient, curvature = similarity.derivatives(f, warped, weight)
        value += part / len(fixed.channels)
        sums += _moments(gradient, curvature, warped).sum(axis=0)
    second = np.zeros((3, 3, 4, 4))
    a, b = np.triu_indices(3)
    d, e = np.triu_indices(4)
    block = sums[12:].reshape(6, 10)
    for p, q, row in zip(a, b, block, strict=True):
        symmetric = np.zeros((4, 4))
        symmetric[d, e] = row
        symmetric[e, d] = row
        second[p, q] = second[q, p] = symmetric
    hessian = second.transpose(0, 2, 1, 3).reshape(12, 12)
    overlap = float(weight.sum() / np.count_nonzero(fixed.mask == VALID))
    return Fit(value, sums[:12].reshape(3, 4), hessian, overlap)


def optimise(
    fixed: Prepared, factors: Factors, matrix_mm: Float64, model: TransformModel, *, iterations: int
) -> Search[tuple[Float64, Fit]]:
    """Levenberg-Marquardt from ``matrix_mm``, the motion composed before it: matrix <- matrix exp(step)."""
    level = fixed.level(factors)
    inverse = np.linalg.inv(level.affine)
    centre = np.eye(4)
    centre[:3, 3] = (level.affine @ [*((np.array(level.shape) - 1) / 2), 1])[:3]
    moves = centre @ generators(model) @ np.linalg.inv(centre)
    linear = (inverse @ moves @ level.affine)[:, :3].reshape(len(moves), 12)
    (best,) = yield factors, [matrix_mm]
    damping = 1e-2
    for _ in range(iterations):
        hessian = linear @ best.hessian @ linear.T
        diagonal = np.diag(hessian)
        ridge = damping * diagonal + 1e-9 * diagonal.max()
        if not diagonal.max() > 0:
            break
        step = np.linalg.solve(hessian + np.diag(ridge), linear @ best.gradient.reshape(12))
        trial = matrix_mm @ exponential(np.tensordot(step, moves, 1))
        trial[3] = (0, 0, 0, 1)
        (at,) = yield factors, [trial]
        if at.value > best.value and at.overlap > min(LEAST_OVERLAP, best.overlap):
            gained = at.value - best.value
            matrix_mm, best = trial, at
            damping = max(damping / 4, 1e-4)
            if gained < CONVERGED:
                break
        else:
            damping *= 8
            if damping > 1e3:
                break
    return matrix_mm, best


@numba.njit(cache=True, nogil=True, parallel=True)
def _moments(gradient, curvature, warped):  # type: ignore[no-untyped-def]
    """(I, 72) sums over planes: g s_a x_d (12), h s_a s_b x_d x_e (6 x 10); s the slope, x = (i, j, k, 1)."""
    ni, nj, nk = warped.shape
    out = np.zeros((ni, 72))
    for i in numba.prange(ni):
        here = out[i]
        before, after = max(i - 1, 0), min(i + 1, ni - 1)
        s, x = np.empty(3), np.empty(4)
        x[0], x[3] = i, 1.0
        for j in range(nj):
            low, high = max(j - 1, 0), min(j + 1, nj - 1)
            x[1] = j
            for k in range(nk):
                g, h = gradient[i, j, k], curvature[i, j, k]
                if g == 0 and h == 0:
                    continue
                x[2] = k
                s[0] = (warped[after, j, k] - warped[before, j, k]) * 0.5
                s[1] = (warped[i, high, k] - warped[i, low, k]) * 0.5
                s[2] = (warped[i, j, min(k + 1, nk - 1)] - warped[i, j, max(k - 1, 0)]) * 0.5
                n = 12
                for a in range(3):
                    for d in range(4):
                        here[4 * a + d] += g * s[a] * x[d]
                    for b in range(a, 3):
                        hab = h * s[a] * s[b]
                        for d in range(4):
                            for e in range(d, 4):
                                here[n] += hab * x[d] * x[e]
                                n += 1
    return out


def exponential(matrix: Float64) -> Float64:
    """Of a (4, 4) matrix, by its series after halving it until small: SciPy's wakes all BLAS threads for it."""
    halvings = max(0, int(np.ceil(np.log2(max(float(np.abs(matrix).sum(axis=0).max()), 1e-300)))) + 3)
    small = matrix / 2.0**halvings
    out, term = np.eye(4), np.eye(4)
    for n in range(1, 13):
        term = term @ small / n
        out = out + term
    for _ in range(halvings):
        out = out @ out
    return out


def centroid(level: Level) -> Float64:
    """(3,) centre of mass of the intensities that count, in RAS+ mm."""
    mass = np.where(level.mask == VALID, sum(level.channels), 0).astype(np.float64)
    total = mass.sum()
    mean = [
        float((mass.sum(axis=tuple(b for b in range(3) if b != a)) * np.arange(mass.shape[a])).sum() / total)
        for a in range(3)
    ]
    return np.asarray((level.affine @ [*mean, 1])[:3])


def middle(level: Level) -> Float64:
    """(3,) middle of the box of what counts, in RAS+ mm."""
    where = np.argwhere(level.mask == VALID)
    return np.asarray((level.affine @ [*((where.min(axis=0) + where.max(axis=0)) / 2), 1])[:3])


def rotation(axis: int, degrees: float) -> Float64:
    """(3, 3) rotation about a RAS axis."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i] = out[j, j] = c
    out[i, j], out[j, i] = -s, s
    return out


def principal_axes(level: Level) -> Float64:
    """(3, 3) columns: the axes of the mass about its centre in RAS+ mm, the longest first."""
    at = np.argwhere(level.mask == VALID)
    mass = sum(c[tuple(at.T)].astype(np.float64) for c in level.channels)
    away = at @ level.affine[:3, :3].T + level.affine[:3, 3] - centroid(level)
    return np.asarray(np.linalg.eigh((away * np.asarray(mass)[:, None]).T @ away)[1][:, ::-1])


def aligning_turns(fixed: Level, moving: Level) -> list[Float64]:
    """The four rotations (3, 3) that bring the principal axes of one mass onto those of the other."""
    here, there = principal_axes(fixed), principal_axes(moving)
    flips = [np.diag(signs) for signs in itertools.product((1.0, -1.0), repeat=3)]
    turns = [there @ flip @ here.T for flip in flips]
    return [turn for turn in turns if np.linalg.det(turn) > 0]


def edge_alignments(fixed: Level, moving: Level) -> list[Float64]:
    """Translations (4, 4) that bring edges of the foregrounds' boxes together where their extents differ.

    A foreground that is cut off by the field of view has its centre elsewhere than the whole one, but its other end in
    the same place. Along each RAS axis with extents that differ by `EXTENT_DIFFERENCE` the low edges, the middles and
    the high edges are brought together, in all combinations but that of all middles.
    """
    boxes = []
    for level in (fixed, moving):
        points_mm = np.argwhere(level.mask == VALID) @ level.affine[:3, :3].T + level.affine[:3, 3]
        boxes.append((points_mm.min(axis=0), points_mm.max(axis=0)))
    (low_f, high_f), (low_m, high_m) = boxes
    extent_f, extent_m = high_f - low_f, high_m - low_m
    differ = np.abs(extent_f - extent_m) > EXTENT_DIFFERENCE * np.maximum(extent_f, extent_m)
    out = []
    for share in itertools.product(*((0.5, 0.0, 1.0) if d else (0.5,) for d in differ)):
        if set(share) != {0.5}:
            matrix = np.eye(4)
            matrix[:3, 3] = low_m + extent_m * share - (low_f + extent_f * share)
            out.append(matrix)
    return out


def start(fixed: Prepared, moving: Prepared, factors: Factors) -> Search[Float64]:
    """(4, 4) rigid fixed to moving RAS+ mm: the best of several starts after a short optimisation.

    The usual starts are the header's alignment, and the centres of mass and the middles on each other, each with
    several rotations; the centres of mass also with the principal axes on each other. The best of them are optimised.
    So are, whatever their similarity before, the header's alignment and the best `edge_alignments`; one of those is
    taken where it ends clearly better, as it does where one of the images shows a part of the other.

    Raises
    ------
    GeometryError
        No start brings `LEAST_OVERLAP` of the fixed mask into the moving image.
    """
    level = fixed.level(factors)
    other = moving.level(matching_factors(level, moving))
    turns = [np.eye(3)] + [rotation(axis, angle) for axis in range(3) for angle in START_ANGLES_DEGREES]
    masses, middles = (centroid(level), centroid(other)), (middle(level), middle(other))
    starts = [np.eye(4)]
    for (here, there), turn in [
        *itertools.product((masses, middles), turns),
        *((masses, turn) for turn in aligning_turns(level, other)),
    ]:
        matrix = np.eye(4)
        matrix[:3, :3] = turn
        matrix[:3, 3] = there - turn @ here
        starts.append(matrix)
    usual = len(starts)
    starts += edge_alignments(level, other)
    fits = yield factors, starts
    able = [n for n, fit in enumerate(fits) if fit.overlap >= LEAST_OVERLAP]
    if not able:
        raise GeometryError(
            f"the images do not overlap: no start brings {LEAST_OVERLAP:.0%} of the fixed image's foreground into the "
            f"field of view of {moving.name or 'the moving image'}, at best {max(f.overlap for f in fits):.0%}"
        )
    ranked = sorted(able, key=lambda n: -score(fits[n], starts[n]))
    likely = [n for n in ranked if n < usual][:KEPT_STARTS]
    further = [n for n in ranked if n == 0 and n not in likely] + [n for n in ranked if n >= usual][:KEPT_STARTS]
    best, best_score = starts[ranked[0]], -np.inf
    least_mm = ELSEWHERE_VOXELS * float(level.spacing_mm.min())
    for n in [*likely, *further]:
        matrix, reached = yield from optimise(fixed, factors, starts[n], "rigid", iterations=8)
        value = score(reached, matrix)
        needed = best_score
        if n in further and np.isfinite(best_score):
            needed += ADVANTAGE * abs(best_score)
            if distance_mm(matrix, best, level) < least_mm:
                continue
        if value > needed:
            best, best_score = matrix, value
    return best


def distance_mm(one: Float64, other: Float64, level: Level) -> float:
    """Mean distance between where two (4, 4) matrices take the corners of a level's grid."""
    corners_mm = np.c_[Grid(level.shape, level.affine).corners_mm, np.ones(8)]
    return float(np.linalg.norm(corners_mm @ (one - other)[:3].T, axis=1).mean())


def score(fit: Fit, matrix_mm: Float64) -> float:
    """What starts are ranked by: the similarity, less for little overlap and for a turn away from the headers' axes."""
    cosine = (np.trace(nearest_rotation(matrix_mm)) - 1) / 2
    turned = max(0.0, FREE_COSINE - cosine) / (FREE_COSINE + 1)
    share = min(1.0, 0.5 + fit.overlap / 2) * (1 - ROTATION_COST * turned)
    return float(fit.value * share if fit.value > 0 else fit.value / share)


def nearest_rotation(matrix: Float64) -> Float64:
    """(3, 3) rotation nearest to the linear part of a (4, 4) matrix."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return np.asarray(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


def levels_of(fixed: Prepared, finest: int) -> tuple[Factors, list[Factors]]:
    """The level that starts are compared on, and those of `Prepared.schedule` down to ``finest`` times the voxel.

    Starts far from the truth only tell apart on coarse voxels: where the schedule has none that are coarse enough, as
    for a slab that is thin along one axis, the level of the starts is coarser than all of its levels.
    """
    shrinks = [s for s in fixed.schedule() if s >= finest] or fixed.schedule()[:1]
    first = max(1, round(max(fixed.valid.shape) / START_VOXELS))
    if first <= NEARLY_COARSE * shrinks[0]:
        first = min(first, shrinks[0])
    return fixed.factors(first), [fixed.factors(s) for s in shrinks]


def search(
    fixed: Prepared,
    moving: Prepared,
    model: TransformModel,
    initial: Float64 | None,
    *,
    finest: int,
    iterations: int,
) -> Search[tuple[Float64, Fit]]:
    """(4, 4) fixed to moving RAS+ mm, and how well it fits; an affine begins with a rigid and a similarity search."""
    coarse, levels = levels_of(fixed, finest)
    stages = STAGES[model] if initial is None else STAGES[model][-1:]
    matrix = initial
    if matrix is None:
        matrix = yield from start(fixed, moving, coarse)
    for n, factors in enumerate(levels):
        for stage in stages if n == 0 else stages[-1:]:
            matrix, best = yield from optimise(fixed, factors, matrix, stage, iterations=iterations)
    return matrix, best


def run_search(pair: Pair, steps: Search[Result], similarity: SimilarityMetric) -> Result:
    """Run the search of a pair to its end on the compiled kernels."""
    fits: list[Fit] | None = None
    try:
        while True:
            factors, wanted = next(steps) if fits is None else steps.send(fits)
            level = pair.fixed.level(factors)
            other = pair.moving.level(matching_factors(level, pair.moving))
            fits = [fit(level, other, matrix, similarity, known=pair.known) for matrix in wanted]
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def as_matrix(pair: Pair) -> Float64 | None:
    """The linear map nearest, in least squares over the fixed image, to where the pair starts."""
    if pair.matrix_mm is None or pair.before is None:
        return pair.matrix_mm
    level = pair.fixed.level((1, 1, 1))
    x = np.stack([*np.indices(level.shape), np.ones(level.shape)], axis=-1).reshape(-1, 4)
    moved, *_ = np.linalg.lstsq(x, pair.displacement(level).reshape(-1, 3).astype(np.float64), rcond=None)
    voxels = np.eye(4)
    voxels[:3] += moved.T
    return np.asarray(pair.matrix_mm @ level.affine @ voxels @ np.linalg.inv(level.affine))


def matrices(
    prepared: Sequence[Pair],
    model: TransformModel,
    similarity: SimilarityMetric,
    *,
    device: Literal["cpu", "cuda"],
    finest: int = 2,
    iterations: int = 30,
) -> list[Float64]:
    """Linear registrations of all pairs of one fixed image, from where they start, on the device."""
    if not prepared:
        return []

    def steps(pair: Pair) -> Search[tuple[Float64, Fit]]:
        return search(pair.fixed, pair.moving, model, as_matrix(pair), finest=finest, iterations=iterations)

    fixed = prepared[0].fixed
    if device == "cuda":
        from atlasseg.registration._engine import linear_torch

        at = levels_of(fixed, finest)[1][-1]
        found = linear_torch.run_search(prepared, steps, similarity, device=device, finest=at)
    else:
        found = each(
            prepared, lambda pair: run_search(pair, steps(pair), similarity), bytes_needed=64 * fixed.valid.size
        )
    for pair, (_, reached) in zip(prepared, found, strict=True):
        logger.info("%s: %s, %s %.3f", pair.moving.name or "a moving image", model, similarity, reached.value)
    return [matrix for matrix, _ in found]


def begin(prepared: Sequence[Pair], similarity: SimilarityMetric, *, device: Literal["cpu", "cuda"]) -> list[Pair]:
    """The pairs with an affine registration as the matrix of those that have none."""
    lacking = [pair for pair in prepared if pair.matrix_mm is None]
    found = iter(matrices(lacking, "affine", similarity, device=device))
    return [pair if pair.matrix_mm is not None else replace(pair, matrix_mm=next(found)) for pair in prepared]


def register_all(
    fixed: Image,
    moving: Sequence[Image],
    model: TransformModel,
    *,
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
    similarity: SimilarityMetric,
    finest: int,
    iterations: int,
    device: Device,
) -> list[Transform]:
    """What :mod:`rigid`, :mod:`similarity` and :mod:`affine` share."""
    machine = resolve_device(device)
    prepared = pairs(fixed, moving, initial, fixed_mask, moving_masks)
    found = matrices(prepared, model, similarity, device=machine, finest=finest, iterations=iterations)
    return [Affine(matrix) for matrix in found]
