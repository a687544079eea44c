"""Searches of `linear` in torch: all pairs of a fixed image in lockstep, with their similarities in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from atlasseg.registration._engine.batch import Pair
from atlasseg.registration._engine.pyramid import choose_factors
from atlasseg.registration._engine.search import Factors, Fit, Query, Result, Search
from atlasseg.registration._engine.torch_ops import MovingBatch, compute_slopes, fit_to_memory, solve_in_batches
from atlasseg.similarity import SimilarityMetric
from atlasseg.volume import Float64


def run_search(
    pairs: Sequence[Pair],
    steps: Callable[[Pair], Search[Result]],
    similarity: SimilarityMetric,
    *,
    device: str,
    finest: Factors,
) -> list[Result]:
    """Run the searches of all pairs.

    Raises
    ------
    InputError
        A single pair does not fit into the memory of the GPU.
    """
    size, each = fit_to_memory(pairs[0].fixed.level(finest).mask.size, len(pairs), device)

    def part(indices: Sequence[int]) -> list[Result]:
        chosen = [pairs[n] for n in indices]
        return _run_batch(chosen, [steps(pair) for pair in chosen], similarity, device)

    return solve_in_batches(len(pairs), size, part, each)


def _run_batch(
    pairs: Sequence[Pair], searches: Sequence[Search[Result]], similarity: SimilarityMetric, device: str
) -> list[Result]:
    stacks: dict[Factors, MovingBatch] = {}
    results: dict[int, Result] = {}
    asked: dict[int, Query] = {n: next(steps) for n, steps in enumerate(searches)}
    while asked:
        fits: dict[int, list[Fit]] = {n: [] for n in asked}
        for factors in dict.fromkeys(factors for factors, _ in asked.values()):
            if factors not in stacks:
                level = pairs[0].fixed.level(factors)
                others = [pair.moving.level(choose_factors(level, pair.moving)) for pair in pairs]
                stacks[factors] = MovingBatch(level, others, [pair.known for pair in pairs], device)
            wanted = [(n, m) for n, (at, matrices) in asked.items() if at == factors for m in matrices]
            which, matrices_mm = [n for n, _ in wanted], [m for _, m in wanted]
            for n, fit in zip(which, fit_many(stacks[factors], which, matrices_mm, similarity), strict=True):
                fits[n].append(fit)
        for n in list(asked):
            try:
                asked[n] = searches[n].send(fits[n])
            except StopIteration as done:
                results[n] = done.value
                del asked[n]
    return [results[n] for n in range(len(pairs))]


@torch.no_grad()
def fit_many(
    batch: MovingBatch, which: Sequence[int], matrices_mm: Sequence[Float64], similarity: SimilarityMetric
) -> list[Fit]:
    """Compute `linear.fit` for the moving images `which`, each under its (4, 4) matrix."""
    index = torch.tensor(which, device=batch.stack.device)
    warped, weight = batch.warp(index, batch.there(batch.matrix(which, matrices_mm), None))
    channels = warped.shape[1]
    value = torch.zeros(len(which), dtype=torch.float64, device=warped.device)
    gradient, hessian = np.zeros((len(which), 3, 4)), np.zeros((len(which), 12, 12))
    for c in range(channels):
        image = warped[:, c : c + 1]
        part, first, second = similarity.derivatives_torch(batch.target[:, c : c + 1], image, weight)
        value += batch.weights[c] * part / channels
        of_first, of_second = _moments(first, second, compute_slopes(image))
        gradient += batch.weights[c] * of_first
        hessian += batch.weights[c] * of_second
    overlap = weight.sum(dim=(1, 2, 3, 4)) / batch.valid.sum()
    return [Fit(*each) for each in zip(value.tolist(), gradient, hessian, overlap.tolist(), strict=True)]


def _moments(gradient: Tensor, curvature: Tensor, slope: Tensor) -> tuple[Float64, Float64]:
    """Compute the sums (N, 3, 4) of g s_a x_d and (N, 12, 12) of h s_a s_b x_d x_e; x = (i, j, k, 1).

    Sums in coordinates from -1 to 1, along one axis after the other; converted to voxels in float64.
    """
    shape = slope.shape[2:]
    a, b = np.triu_indices(3)
    values = torch.cat([gradient * slope, curvature * slope[:, a] * slope[:, b]], dim=1)
    to_voxels = np.eye(4)
    for axis in (2, 1, 0):
        half = (shape[axis] - 1) / 2
        to_voxels[axis, axis], to_voxels[axis, 3] = max(half, 1), half
        at = (torch.arange(shape[axis], dtype=values.dtype, device=values.device) - half) / max(half, 1)
        values = (values @ torch.stack([at**0, at, at**2], dim=-1)).double()  # the last axis: its powers
        values = values.movedim(-1, 2)
    sums = values.cpu().numpy()  # (N, 9, power of i, of j, of k)
    power = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    first = sums[:, :3][:, :, power[:, 0], power[:, 1], power[:, 2]] @ to_voxels.T
    both = power[:, None] + power[None]
    packed = to_voxels @ sums[:, 3:][:, :, both[..., 0], both[..., 1], both[..., 2]] @ to_voxels.T
    second = np.empty((len(sums), 3, 3, 4, 4))
    second[:, a, b] = second[:, b, a] = packed
    return first, second.transpose(0, 1, 3, 2, 4).reshape(-1, 12, 12)
