"""Rigid, similarity and affine registration by Gauss-Newton optimisation from the best of several initial alignments.

The search is a generator: it yields a level and matrices, and receives their similarities and derivatives. Here the
compiled kernels compute them for one pair after the other; `linear_torch` computes them for many pairs at once.
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
from atlasseg.registration._engine.batch import Pair, prepare_pairs, solve_each
from atlasseg.registration._engine.pyramid import VALID, Level, Prepared, choose_factors
from atlasseg.registration._engine.search import Factors, Fit, Result, Search
from atlasseg.similarity import SimilarityMetric
from atlasseg.threads import run_slices
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Float64, Grid, Image, Mask

logger = logging.getLogger(__name__)

TransformModel = Literal["rigid", "similarity", "affine"]

STAGES: dict[TransformModel, tuple[TransformModel, ...]] = {
    "rigid": ("rigid",),
    "similarity": ("rigid", "similarity"),
    "affine": ("rigid", "similarity", "affine"),
}
"""Sequence of transform models at the coarsest level of a registration without an initial transform."""

START_VOXELS = 20
"""Initial alignments are compared on a level with about this many voxels along the longest axis."""

NEARLY_COARSE = 1.5
"""The coarsest level of the schedule is used for this if its voxels are at most this factor too small."""

START_ANGLES_DEGREES = (-25.0, 25.0)
"""Initial rotations about each axis, besides none."""

LEAST_OVERLAP = 0.3
"""Fraction of the fixed mask that an initial alignment must map into the field of view of the moving image."""

KEPT_STARTS = 3
"""Number of best initial alignments that are optimised rigidly before one is chosen."""

EXTENT_DIFFERENCE = 0.15
"""Relative difference of the foreground extents along an axis above which one image may be cut off: then the low edges
and the high edges are aligned as well as the centres."""

ADVANTAGE = 0.02
"""Relative gain in similarity for which the alignment of the headers, or of edges, replaces another start ..."""

ELSEWHERE_VOXELS = 1.5
"""... if it ends at least this far away, on average over the corners of the grid of the level."""

ROTATION_COST = 0.1
"""Relative gain in similarity required for a rotation by 180 degrees from the orientation of the headers ..."""

FREE_COSINE = 0.5
"""... which falls to 0 for a rotation by 60 degrees, whose cosine this is."""

CONVERGED = 1e-4
"""Gain in similarity per step below which Gauss-Newton stops."""


def generators(model: TransformModel) -> Float64:
    """List the generators (P, 4, 4) of a model: translations, rotations, then scaling, or scalings and shears."""
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
    """Compute the similarity and its derivatives under ``matrix_mm`` (4, 4), fixed to moving RAS+ mm."""
    to_moving = np.linalg.inv(moving.affine) @ matrix_mm @ fixed.affine
    warped, weight = np.empty(fixed.shape, np.float32), np.empty(fixed.shape, np.float32)
    nowhere = np.zeros((*fixed.shape, 3), np.float32)
    where = (moving.mask == VALID).astype(np.uint8) if known else np.zeros((0, 0, 0), np.uint8)
    value, sums = 0.0, np.zeros(72)
    for f, m, w in zip(fixed.channels, moving.channels, fixed.weights, strict=True):
        run_slices(fields.warp, len(warped), m, where, fixed.mask, to_moving[:3], nowhere, warped, weight)
        part, gradient, curvature = similarity.derivatives(f, warped, weight)
        value += w * part / len(fixed.channels)
        moments = np.zeros((len(warped), 72))
        run_slices(_moments, len(warped), gradient, curvature, warped, moments)
        sums += w * moments.sum(axis=0)
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
    """Optimise ``matrix_mm`` by Levenberg-Marquardt, with compositional updates: matrix <- matrix exp(step)."""
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


@numba.njit(cache=True, nogil=True)
def _moments(start, stop, gradient, curvature, warped, out):  # type: ignore[no-untyped-def]
    """Sum over planes (I, 72): g s_a x_d (12), h s_a s_b x_d x_e (6 x 10); s is the slope, x = (i, j, k, 1)."""
    ni, nj, nk = warped.shape
    for i in range(start, stop):
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


def exponential(matrix: Float64) -> Float64:
    """Compute the exponential of a (4, 4) matrix by scaling and squaring; unlike SciPy's it starts no BLAS threads."""
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
    """Compute the centre of mass (3,) of the intensities in the mask, in RAS+ mm."""
    mass = np.where(level.mask == VALID, sum(level.channels), 0).astype(np.float64)
    total = mass.sum()
    mean = [
        float((mass.sum(axis=tuple(b for b in range(3) if b != a)) * np.arange(mass.shape[a])).sum() / total)
        for a in range(3)
    ]
    return np.asarray((level.affine @ [*mean, 1])[:3])


def box_centre(level: Level) -> Float64:
    """Compute the centre (3,) of the bounding box of the mask, in RAS+ mm."""
    where = np.argwhere(level.mask == VALID)
    return np.asarray((level.affine @ [*((where.min(axis=0) + where.max(axis=0)) / 2), 1])[:3])


def rotation(axis: int, degrees: float) -> Float64:
    """Make the rotation (3, 3) about a RAS axis."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i] = out[j, j] = c
    out[i, j], out[j, i] = -s, s
    return out


def principal_axes(level: Level) -> Float64:
    """Compute the principal axes of the mass, as columns (3, 3) in RAS+ mm, the longest first."""
    at = np.argwhere(level.mask == VALID)
    mass = sum(c[tuple(at.T)].astype(np.float64) for c in level.channels)
    away = at @ level.affine[:3, :3].T + level.affine[:3, 3] - centroid(level)
    return np.asarray(np.linalg.eigh((away * np.asarray(mass)[:, None]).T @ away)[1][:, ::-1])


def list_axis_rotations(fixed: Level, moving: Level) -> list[Float64]:
    """List the four rotations (3, 3) that align the principal axes of the two images."""
    here, there = principal_axes(fixed), principal_axes(moving)
    flips = [np.diag(signs) for signs in itertools.product((1.0, -1.0), repeat=3)]
    turns = [there @ flip @ here.T for flip in flips]
    return [turn for turn in turns if np.linalg.det(turn) > 0]


def list_edge_alignments(fixed: Level, moving: Level) -> list[Float64]:
    """List translations (4, 4) that align edges of the foreground boxes where their extents differ.

    If the field of view cuts off one foreground, the centres do not correspond, but the edges at the other end do.
    Along each RAS axis with extents that differ by `EXTENT_DIFFERENCE`, the low edges, the centres and the high edges
    are aligned, in all combinations except that of all centres.
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


def find_start(fixed: Prepared, moving: Prepared, factors: Factors) -> Search[Float64]:
    """Find the initial rigid transform (4, 4), fixed to moving RAS+ mm: the best of several after a short optimisation.

    Candidates are the alignments of the headers, of the centres of mass and of the centres of the boxes, each with
    several rotations; and that of the principal axes. The best ones are optimised. The alignment of the headers and the
    best of `list_edge_alignments` are always optimised; one of them is chosen if it ends clearly better, as it does if
    one image shows only a part of the other.

    Raises
    ------
    GeometryError
        No alignment maps `LEAST_OVERLAP` of the fixed mask into the moving image.
    """
    level = fixed.level(factors)
    other = moving.level(choose_factors(level, moving))
    turns = [np.eye(3)] + [rotation(axis, angle) for axis in range(3) for angle in START_ANGLES_DEGREES]
    masses, middles = (centroid(level), centroid(other)), (box_centre(level), box_centre(other))
    starts = [np.eye(4)]
    for (here, there), turn in [
        *itertools.product((masses, middles), turns),
        *((masses, turn) for turn in list_axis_rotations(level, other)),
    ]:
        matrix = np.eye(4)
        matrix[:3, :3] = turn
        matrix[:3, 3] = there - turn @ here
        starts.append(matrix)
    usual = len(starts)
    starts += list_edge_alignments(level, other)
    fits = yield factors, starts
    able = [n for n, fit in enumerate(fits) if fit.overlap >= LEAST_OVERLAP]
    if not able:
        raise GeometryError(
            f"the images do not overlap: expected {LEAST_OVERLAP:.0%} of the foreground of the fixed image in the "
            f"field of view of {moving.name or 'the moving image'}, got at most {max(f.overlap for f in fits):.0%}"
        )
    ranked = sorted(able, key=lambda n: -score_start(fits[n], starts[n]))
    likely = [n for n in ranked if n < usual][:KEPT_STARTS]
    further = [n for n in ranked if n == 0 and n not in likely] + [n for n in ranked if n >= usual][:KEPT_STARTS]
    best, best_score = starts[ranked[0]], -np.inf
    least_mm = ELSEWHERE_VOXELS * float(level.spacing_mm.min())
    for n in [*likely, *further]:
        matrix, reached = yield from optimise(fixed, factors, starts[n], "rigid", iterations=8)
        value = score_start(reached, matrix)
        needed = best_score
        if n in further and np.isfinite(best_score):
            needed += ADVANTAGE * abs(best_score)
            if distance_mm(matrix, best, level) < least_mm:
                continue
        if value > needed:
            best, best_score = matrix, value
    return best


def distance_mm(one: Float64, other: Float64, level: Level) -> float:
    """Compute the mean distance between the images of the corners of a level under two (4, 4) matrices."""
    corners_mm = np.c_[Grid(level.shape, level.affine).corners_mm, np.ones(8)]
    return float(np.linalg.norm(corners_mm @ (one - other)[:3].T, axis=1).mean())


def score_start(fit: Fit, matrix_mm: Float64) -> float:
    """Compute the score that ranks alignments: similarity, reduced for low overlap and for a large rotation."""
    cosine = (np.trace(nearest_rotation(matrix_mm)) - 1) / 2
    turned = max(0.0, FREE_COSINE - cosine) / (FREE_COSINE + 1)
    share = min(1.0, 0.5 + fit.overlap / 2) * (1 - ROTATION_COST * turned)
    return float(fit.value * share if fit.value > 0 else fit.value / share)


def nearest_rotation(matrix: Float64) -> Float64:
    """Compute the rotation (3, 3) nearest to the linear part of a (4, 4) matrix."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return np.asarray(left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right)


def choose_levels(fixed: Prepared, finest: int) -> tuple[Factors, list[Factors]]:
    """Choose the level for comparing alignments, and those of `Prepared.schedule` down to ``finest`` times the voxel.

    Alignments far from the solution can be compared only on coarse voxels. If the schedule has no level that is coarse
    enough, as for a slab that is thin along one axis, the first level is coarser than all levels of the schedule.
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
    """Search the matrix (4, 4), fixed to moving RAS+ mm, and its fit; an affine search begins with a rigid one."""
    coarse, levels = choose_levels(fixed, finest)
    stages = STAGES[model] if initial is None else STAGES[model][-1:]
    matrix = initial
    if matrix is None:
        matrix = yield from find_start(fixed, moving, coarse)
    for n, factors in enumerate(levels):
        for stage in stages if n == 0 else stages[-1:]:
            matrix, best = yield from optimise(fixed, factors, matrix, stage, iterations=iterations)
    return matrix, best


def run_search(pair: Pair, steps: Search[Result], similarity: SimilarityMetric) -> Result:
    """Run the search of a pair with the compiled kernels."""
    fits: list[Fit] | None = None
    try:
        while True:
            factors, wanted = next(steps) if fits is None else steps.send(fits)
            level = pair.fixed.level(factors)
            other = pair.moving.level(choose_factors(level, pair.moving))
            fits = [fit(level, other, matrix, similarity, known=pair.known) for matrix in wanted]
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def approximate_start(pair: Pair) -> Float64 | None:
    """Approximate the initial transform of a pair by an affine matrix, in least squares over the fixed image."""
    if pair.matrix_mm is None or pair.before is None:
        return pair.matrix_mm
    level = pair.fixed.level((1, 1, 1))
    x = np.stack([*np.indices(level.shape), np.ones(level.shape)], axis=-1).reshape(-1, 4)
    moved, *_ = np.linalg.lstsq(x, pair.displacement(level).reshape(-1, 3).astype(np.float64), rcond=None)
    voxels = np.eye(4)
    voxels[:3] += moved.T
    return np.asarray(pair.matrix_mm @ level.affine @ voxels @ np.linalg.inv(level.affine))


def register_pairs(
    prepared: Sequence[Pair],
    model: TransformModel,
    similarity: SimilarityMetric,
    *,
    device: Literal["cpu", "cuda"],
    finest: int = 2,
    iterations: int = 30,
) -> list[Float64]:
    """Compute linear registrations of all pairs of one fixed image, from their initial transforms."""
    if not prepared:
        return []

    def steps(pair: Pair) -> Search[tuple[Float64, Fit]]:
        return search(pair.fixed, pair.moving, model, approximate_start(pair), finest=finest, iterations=iterations)

    fixed = prepared[0].fixed
    if device == "cuda":
        from atlasseg.registration._engine import linear_torch

        at = choose_levels(fixed, finest)[1][-1]
        found = linear_torch.run_search(prepared, steps, similarity, device=device, finest=at)
    else:
        found = solve_each(
            prepared, lambda pair: run_search(pair, steps(pair), similarity), bytes_needed=64 * fixed.valid.size
        )
    for pair, (_, reached) in zip(prepared, found, strict=True):
        logger.info("%s: %s, %s %.3f", pair.moving.name or "a moving image", model, similarity, reached.value)
    return [matrix for matrix, _ in found]


def add_affine_start(
    prepared: Sequence[Pair], similarity: SimilarityMetric, *, device: Literal["cpu", "cuda"]
) -> list[Pair]:
    """Register the pairs without an initial transform by an affine transform."""
    lacking = [pair for pair in prepared if pair.matrix_mm is None]
    found = iter(register_pairs(lacking, "affine", similarity, device=device))
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
    channel_weights: Sequence[float] = (),
) -> list[Transform]:
    """Register all moving images by one transform model, as in :mod:`rigid`, :mod:`similarity` and :mod:`affine`."""
    machine = resolve_device(device)
    prepared = prepare_pairs(fixed, moving, initial, fixed_mask, moving_masks, channel_weights)
    found = register_pairs(prepared, model, similarity, device=machine, finest=finest, iterations=iterations)
    return [Affine(matrix) for matrix in found]
