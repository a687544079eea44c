"""Free-form deformation of `freeform` in torch: all moving images of a target in one tensor.

The steps are the same as in `freeform`, and the results are equal up to the order of float32 sums. Coefficients are
(N, 3, A, B, C). Every image has its own rate, and leaves the batch when it has converged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from atlasseg.registration._engine import bspline
from atlasseg.registration._engine.batch import Pair
from atlasseg.registration._engine.dense import has_converged
from atlasseg.registration._engine.freeform import MEMORY, MOMENTUM, Lattice, Schedule, make_lattices
from atlasseg.registration._engine.pyramid import Level, choose_factors
from atlasseg.registration._engine.torch_ops import MovingBatch, fit_to_memory, solve_in_batches
from atlasseg.similarity import SimilarityMetric
from atlasseg.transforms import BSplineField
from atlasseg.volume import Float32, Grid


def solve(pairs: Sequence[Pair], schedule: Schedule, grid: Grid, *, device: str) -> list[tuple[BSplineField, float]]:
    """Optimise the splines of all pairs of one fixed image at once, like `freeform.solve`.

    Raises
    ------
    InputError
        A single pair does not fit into the memory of the GPU.
    """
    size, each = fit_to_memory(pairs[0].fixed.valid.size, len(pairs), device)
    return solve_in_batches(
        len(pairs), size, lambda part: _solve([pairs[n] for n in part], schedule, grid, device), each
    )


@torch.no_grad()
def _solve(pairs: Sequence[Pair], schedule: Schedule, grid: Grid, device: str) -> list[tuple[BSplineField, float]]:
    fixed = pairs[0].fixed
    levels = make_lattices(grid, schedule.spacing_voxels, schedule.shrink_factors)
    coefficients = torch.zeros((len(pairs), 3, *(c + 3 for c in levels[0].intervals)), device=device)
    values = [0.0] * len(pairs)
    for n, (shrink, iterations, lattice) in enumerate(
        zip(schedule.shrink_factors, schedule.iterations, levels, strict=True)
    ):
        if n > 0 and lattice.intervals != levels[n - 1].intervals:
            finer = [bspline.make_refinement(c) for c in levels[n - 1].intervals]
            coefficients = product(_on(device, finer), coefficients)
        level = fixed.level(fixed.factors(shrink))
        coefficients, values = _optimise_level(level, pairs, coefficients, lattice, iterations, schedule, device)
    out = coefficients.movedim(1, -1).cpu().numpy()
    return [(levels[-1].transform(c), value) for c, value in zip(out, values, strict=True)]


def _optimise_level(
    fixed: Level,
    pairs: Sequence[Pair],
    coefficients: Tensor,
    lattice: Lattice,
    iterations: int,
    schedule: Schedule,
    device: str,
) -> tuple[Tensor, list[float]]:
    levels = [pair.moving.level(choose_factors(fixed, pair.moving)) for pair in pairs]
    batch = MovingBatch(fixed, levels, [pair.known for pair in pairs], device, mixed=schedule.mixed)
    to_moving = batch.matrix(range(len(pairs)), [pair.start_mm for pair in pairs])
    matrices = _on(device, lattice.matrices(fixed))
    finest = lattice.grid.spacing_mm.min()

    def along_axes(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)[None, :, None, None, None]

    per_level = along_axes(lattice.grid.spacing_mm / fixed.spacing_mm)
    in_finest = along_axes(lattice.grid.spacing_mm / finest)
    per_interval = along_axes(1 / lattice.spacing_voxels)
    lengths = lattice.spacing_voxels * lattice.grid.spacing_mm / finest
    gram = [_on(device, bspline.compute_grams(n, float(s))) for n, s in zip(lattice.intervals, lengths, strict=True)]
    step = schedule.step_voxels * fixed.spacing_mm.min() / finest
    result, active = coefficients.clone(), torch.arange(len(pairs), device=device)
    mean, square = torch.zeros_like(coefficients), torch.zeros_like(coefficients[:, :1])
    values: list[list[float]] = [[] for _ in pairs]
    for n in range(iterations):
        field = product(matrices, coefficients * per_level)
        value, slope = similarity(batch, active, to_moving[active], field, schedule.similarity)
        going = []
        for m, (index, v) in enumerate(zip(active.tolist(), value.tolist(), strict=True)):
            values[index].append(v)
            if has_converged(values[index], schedule.tolerance):
                result[index] = coefficients[m]
            else:
                going.append(m)
        if not going:
            break
        if len(going) < len(active):
            kept = torch.tensor(going, device=device)
            active, coefficients, slope = active[kept], coefficients[kept], slope[kept]
            mean, square = mean[kept], square[kept]
        gradient = product([m.T for m in matrices], slope) * per_level
        if schedule.bending:
            gradient -= schedule.bending * bending_slope(coefficients * in_finest, gram) * in_finest
        if schedule.folding:
            bent = folding_slope(coefficients * per_interval, lattice.intervals)
            gradient -= schedule.folding * bent * per_interval
        gradient /= in_finest**2
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        square = MEMORY * square + (1 - MEMORY) * (gradient * in_finest).square().sum(dim=1, keepdim=True)
        size = (square / (1 - MEMORY ** (n + 1))).sqrt()
        floor = 1e-3 * size.amax(dim=(1, 2, 3, 4), keepdim=True) + 1e-30
        coefficients = coefficients + step / (1 - MOMENTUM ** (n + 1)) / (size + floor) * mean
        result[active] = coefficients
    return result, [v[-1] if v else 0.0 for v in values]


def similarity(
    batch: MovingBatch, active: Tensor, matrix: Tensor, field: Tensor, measured: SimilarityMetric
) -> tuple[Tensor, Tensor]:
    """Compute the similarity (N,) under ``matrix (x + field(x))`` and its derivative (N, 3, I, J, K) in the field."""
    there = batch.there(matrix, field)
    warped, weight = batch.warp(active, there)
    channels = warped.shape[1]
    scale = (1 / weight.sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1)) / channels
    value, out = torch.zeros(len(active), device=field.device), torch.zeros_like(field)
    for c in range(channels):
        part, slope, _ = measured.derivatives_torch(batch.target[:, c : c + 1], warped[:, c : c + 1], weight)
        value += batch.weights[c] * part / channels
        out += torch.einsum(
            "nab,naijk->nbijk", matrix[:, :, :3], batch.slope(active, c, there) * (batch.weights[c] * scale * slope)
        )
    return value, out


def product(matrices: Sequence[Tensor], values: Tensor) -> Tensor:
    """Apply a matrix (out, in) along each of the last three axes."""
    for axis, matrix in zip((2, 3, 4), matrices, strict=True):
        values = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return values


def bending_slope(coefficients: Tensor, gram: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute the derivative of `bspline.bending`."""
    out = torch.zeros_like(coefficients)
    for orders, factor in bspline.SECOND_DERIVATIVES:
        out += factor * product([g[order] for g, order in zip(gram, orders, strict=True)], coefficients)
    return 2 * out


def folding_slope(coefficients: Tensor, intervals: Sequence[int]) -> Tensor:
    """Compute the derivative of `bspline.folding`."""
    at = [np.arange(n + 1, dtype=np.float64) for n in intervals]
    device = coefficients.device.type
    value = _on(device, [bspline.evaluate_basis(x, n) for x, n in zip(at, intervals, strict=True)])
    slope = _on(device, [bspline.evaluate_basis(x, n, 1) for x, n in zip(at, intervals, strict=True)])
    matrices = [[slope[a] if a == axis else value[a] for a in range(3)] for axis in range(3)]
    # (N, component, I, J, K, axis)
    jacobian = torch.stack([product(m, coefficients) for m in matrices], dim=-1).double().movedim(1, -2)
    a, b, c = (jacobian + torch.eye(3, device=jacobian.device, dtype=jacobian.dtype)).unbind(dim=-2)
    cofactor = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-2)
    det = (a * cofactor[..., 0, :]).sum(dim=-1)
    change = bspline.folding_change(det.cpu().numpy()) / float(np.prod(det.shape[1:]))
    pull = (torch.from_numpy(change).to(det.device)[..., None, None] * cofactor).float().movedim(-2, 1)
    out = torch.zeros_like(coefficients)
    for axis in range(3):
        out += product([m.T for m in matrices[axis]], pull[..., axis])
    return out


def _on(device: str, arrays: Sequence[Float32]) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays]
