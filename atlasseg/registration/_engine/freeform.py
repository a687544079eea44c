"""Free-form deformation: B-spline coefficients that maximise the similarity minus the energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.registration._engine import bspline, fields
from atlasseg.registration._engine.batch import Pair
from atlasseg.registration._engine.dense import has_converged
from atlasseg.registration._engine.pyramid import VALID, Level, choose_factors
from atlasseg.similarity import SimilarityMetric
from atlasseg.threads import run_slices
from atlasseg.transforms import BSplineField
from atlasseg.volume import Float32, Float64, Grid

MOMENTUM, MEMORY = 0.9, 0.99
"""Decay rates of Adam for the mean gradient and its mean square."""


@dataclass(frozen=True)
class Schedule:
    """Parameters of the optimisation; see :func:`atlasseg.registration.ffd.register`."""

    shrink_factors: tuple[int, ...]
    iterations: tuple[int, ...]
    spacing_voxels: float
    similarity: SimilarityMetric
    bending: float
    folding: float
    step_voxels: float
    tolerance: float
    mixed: bool = False
    """Hold images in float16 on a GPU."""


class Lattice:
    """Control points over a whole grid, n intervals along each axis, with the positions of voxels of a level."""

    def __init__(self, grid: Grid, intervals: tuple[int, int, int]) -> None:
        self.grid, self.intervals = grid, intervals
        self.spacing_voxels = np.array(grid.shape) / intervals

    def matrices(self, level: Level) -> list[Float32]:
        """Make the three banded matrices from coefficients to the voxels of a level."""
        to_grid = np.linalg.inv(self.grid.affine) @ level.affine
        out = []
        for axis, n in enumerate(level.shape):
            voxel = np.arange(n) * to_grid[axis, axis] + to_grid[axis, 3]
            inside = np.clip((voxel + 0.5) / self.spacing_voxels[axis], 0, self.intervals[axis])
            out.append(bspline.evaluate_basis(inside, self.intervals[axis]))
        return out

    def transform(self, coefficients: Float32) -> BSplineField:
        """Convert coefficients in voxels of the grid to a transform in RAS+ mm."""
        affine = self.grid.affine.copy()
        affine[:3, :3] = self.grid.affine[:3, :3] * self.spacing_voxels
        affine[:3, 3] = self.grid.affine[:3, :3] @ (-0.5 - self.spacing_voxels) + self.grid.affine[:3, 3]
        return BSplineField(coefficients.astype(np.float64) @ self.grid.affine[:3, :3].T, affine)


def make_lattices(grid: Grid, spacing_voxels: float, shrink_factors: Sequence[int]) -> list[Lattice]:
    """Make one lattice per level; the number of intervals doubles when the voxels of the level are half as large."""
    finest = grid.spacing_mm.min()
    coarsest = max(shrink_factors)
    counts = np.maximum(
        1, np.rint(np.array(grid.shape) * grid.spacing_mm / (spacing_voxels * finest * coarsest))
    ).astype(int)
    out = []
    for shrink in shrink_factors:
        i, j, k = (int(c) for c in counts * 2 ** round(np.log2(coarsest / shrink)))
        out.append(Lattice(grid, (i, j, k)))
    return out


def solve(pair: Pair, schedule: Schedule, grid: Grid) -> tuple[BSplineField, float]:
    """Optimise the spline u of ``matrix_mm @ (x + u(x))`` for a pair; return it with its similarity."""
    fixed, moving = pair.fixed, pair.moving
    coefficients, value = None, 0.0
    levels = make_lattices(grid, schedule.spacing_voxels, schedule.shrink_factors)
    for n, (shrink, iterations, lattice) in enumerate(
        zip(schedule.shrink_factors, schedule.iterations, levels, strict=True)
    ):
        if coefficients is None:
            coefficients = np.zeros((*(c + 3 for c in lattice.intervals), 3), np.float32)
        elif lattice.intervals != levels[n - 1].intervals:
            coefficients = bspline.apply_matrices(
                [bspline.make_refinement(c) for c in levels[n - 1].intervals], coefficients
            )
        level = fixed.level(fixed.factors(shrink))
        other = moving.level(choose_factors(level, moving))
        coefficients, value = _optimise_level(
            level, other, pair.start_mm, coefficients, lattice, iterations, schedule, pair.known
        )
    assert coefficients is not None
    return levels[-1].transform(coefficients), value


def _optimise_level(
    fixed: Level,
    moving: Level,
    matrix_mm: Float64,
    coefficients: Float32,
    lattice: Lattice,
    iterations: int,
    schedule: Schedule,
    known: bool,
) -> tuple[Float32, float]:
    matrices = lattice.matrices(fixed)
    adjoint = bspline.transpose_all(matrices)
    per_level = (lattice.grid.spacing_mm / fixed.spacing_mm).astype(
        np.float32
    )  # voxels of the level per voxel of the grid
    in_finest = (lattice.grid.spacing_mm / lattice.grid.spacing_mm.min()).astype(np.float32)
    gram = [
        bspline.compute_grams(n, float(s))
        for n, s in zip(lattice.intervals, lattice.spacing_voxels * in_finest, strict=True)
    ]
    step = schedule.step_voxels * fixed.spacing_mm.min() / lattice.grid.spacing_mm.min()
    mean, square = np.zeros_like(coefficients), np.zeros(coefficients.shape[:3], np.float32)
    values: list[float] = []
    for n in range(iterations):
        field = bspline.apply_matrices(matrices, coefficients * per_level)
        value, slope = similarity(fixed, moving, matrix_mm, field, schedule.similarity, known)
        values.append(value)
        if has_converged(values, schedule.tolerance):
            break
        gradient = bspline.apply_matrices(adjoint, slope) * per_level
        if schedule.bending:
            gradient -= schedule.bending * bspline.bending(coefficients * in_finest, gram)[1] * in_finest
        if schedule.folding:
            per_interval = (1 / lattice.spacing_voxels).astype(np.float32)
            gradient -= (
                schedule.folding * bspline.folding(coefficients * per_interval, lattice.intervals)[1] * per_interval
            )
        gradient /= in_finest**2  # steepest ascent in mm for any shape of voxels
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        square = MEMORY * square + (1 - MEMORY) * np.sum((gradient * in_finest) ** 2, axis=-1)
        size = np.sqrt(square / (1 - MEMORY ** (n + 1)))
        rate = step / (1 - MOMENTUM ** (n + 1)) / (size + 1e-3 * size.max() + np.float32(1e-30))
        coefficients = coefficients + rate[..., None].astype(np.float32) * mean
    return coefficients, values[-1] if values else 0.0


def similarity(
    fixed: Level, moving: Level, matrix_mm: Float64, field: Float32, measure: SimilarityMetric, known: bool
) -> tuple[float, Float32]:
    """Compute the similarity under ``matrix_mm (x + field(x))`` and its exact derivative in the field."""
    to_moving = (np.linalg.inv(moving.affine) @ matrix_mm @ fixed.affine)[:3]
    where = (moving.mask == VALID).astype(np.uint8) if known else np.zeros((0, 0, 0), np.uint8)
    warped, weight = np.empty(fixed.shape, np.float32), np.empty(fixed.shape, np.float32)
    out, value = np.zeros_like(field), 0.0
    for f, m, w in zip(fixed.channels, moving.channels, fixed.weights, strict=True):
        run_slices(fields.warp, len(warped), m, where, fixed.mask, to_moving, field, warped, weight)
        part, slope, _ = measure.derivatives(f, warped, weight)
        value += w * part / len(fixed.channels)
        scale = np.float32(w / max(float(weight.sum()), 1))
        run_slices(fields.add_moving_slope, len(out), m, to_moving, field, slope, scale, out)
    return value, out / np.float32(len(fixed.channels))
