"""Diffeomorphic registration of `dense` in torch: all moving images of a target in one tensor, on CUDA or the CPU.

The steps are the same as in `dense`, and the results are equal up to the order of float32 sums. Every image is
independent of the others in its batch: it has its own step, and leaves the batch when it has converged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from atlasseg.registration._engine import folds
from atlasseg.registration._engine.batch import Pair
from atlasseg.registration._engine.dense import Schedule, Solution, has_converged
from atlasseg.registration._engine.pyramid import Level, choose_factors, resample_field
from atlasseg.registration._engine.torch_ops import (
    MovingBatch,
    compute_slopes,
    fit_to_memory,
    sample,
    smooth,
    smooth_halved,
    solve_in_batches,
)
from atlasseg.volume import Float32


def solve(pairs: Sequence[Pair], schedule: Schedule, *, device: str) -> list[Solution]:
    """Optimise the displacements of all pairs of one fixed image at once, like `dense.solve`.

    Raises
    ------
    InputError
        A single pair does not fit into the memory of the GPU.
    """
    size, each = fit_to_memory(pairs[0].fixed.valid.size, len(pairs), device)
    return solve_in_batches(len(pairs), size, lambda part: _solve([pairs[n] for n in part], schedule, device), each)


def _solve(pairs: Sequence[Pair], schedule: Schedule, device: str) -> list[Solution]:
    fixed = pairs[0].fixed
    full = fixed.level((1, 1, 1))
    found: list[Float32] = []
    values, before, repaired = [0.0] * len(pairs), full, [0] * len(pairs)
    for shrink, iterations, sigma in zip(
        schedule.shrink_factors, schedule.iterations, schedule.total_field_sigma_voxels, strict=True
    ):
        if iterations == 0:
            continue
        level = fixed.level(fixed.factors(shrink))
        start = [resample_field(u, before, level) for u in found] or [pair.displacement(level) for pair in pairs]
        fields, values = _optimise_level(level, pairs, np.stack(start), iterations, sigma, schedule, device)
        whole = [folds.repair(field) for field in fields]
        found, before = [field for field, _ in whole], level
        repaired = [n + count for n, (_, count) in zip(repaired, whole, strict=True)]
    ended = [resample_field(u, before, full) for u in found] or [pair.displacement(full) for pair in pairs]
    whole = [folds.repair(field) for field in ended]
    return [Solution(field, value, n + count) for (field, count), value, n in zip(whole, values, repaired, strict=True)]


@torch.no_grad()
def _optimise_level(
    fixed: Level,
    pairs: Sequence[Pair],
    start: Float32,
    iterations: int,
    sigma_voxels: float,
    schedule: Schedule,
    device: str,
) -> tuple[Float32, list[float]]:
    levels = [pair.moving.level(choose_factors(fixed, pair.moving)) for pair in pairs]
    batch = MovingBatch(fixed, levels, [pair.known for pair in pairs], device, mixed=schedule.mixed)
    matrices = batch.matrix(range(len(pairs)), [pair.start_mm for pair in pairs])
    target, metric = batch.target, schedule.similarity
    finest = fixed.spacing_mm.min() / fixed.spacing_mm
    scale = torch.tensor(finest**2, dtype=torch.float32, device=device)[None, :, None, None, None]
    update_sigma, total_field_sigma = schedule.update_sigma_voxels * finest, sigma_voxels * finest
    last = torch.tensor([n - 1 for n in fixed.shape], dtype=torch.float32, device=device)[None, :, None, None, None]
    result = torch.from_numpy(np.ascontiguousarray(np.moveaxis(start, -1, 1))).to(device)
    active, field = torch.arange(len(pairs), device=device), result.clone()
    values: list[list[float]] = [[] for _ in pairs]
    for _ in range(iterations):
        warped, weight = batch.warp(active, batch.there(matrices[active], field))
        value, update = torch.zeros(len(active), device=device), torch.zeros_like(field)
        for c in range(target.shape[1]):
            part, gradient, _ = metric.derivatives_torch(target[:, c : c + 1], warped[:, c : c + 1], weight)
            value += batch.weights[c] * part / target.shape[1]
            update += batch.weights[c] * gradient * compute_slopes(warped[:, c : c + 1]) * scale
        update = (smooth_halved if schedule.mixed else smooth)(update, update_sigma.tolist())
        longest = update.square().sum(dim=1).amax(dim=(1, 2, 3)).sqrt()
        going = []
        for n, (index, v, size) in enumerate(zip(active.tolist(), value.tolist(), longest.tolist(), strict=True)):
            values[index].append(v)
            if has_converged(values[index], schedule.tolerance) or size == 0:
                result[index] = field[n]
            else:
                going.append(n)
        if not going:
            break
        if len(going) < len(active):
            kept = torch.tensor(going, device=device)
            active, field, update, longest = active[kept], field[kept], update[kept], longest[kept]
        step = update * (schedule.step_voxels / longest)[:, None, None, None, None]
        at = torch.minimum((batch.here + step).clamp_min(0), last)
        field = smooth(step + sample(field, at), total_field_sigma.tolist())
        result[active] = field
    return result.movedim(1, -1).cpu().numpy(), [v[-1] for v in values]
