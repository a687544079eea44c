"""The composed updates of `dense` in torch: all moving images of a target in one tensor, on CUDA or the CPU.

The same steps with the same numbers up to the order of float32 sums. Every image is independent of the others in its
batch: each has its own step, and leaves the batch when it has converged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atlasseg.errors import InputError
from atlasseg.registration._engine.dense import Schedule, has_converged
from atlasseg.registration._engine.fields import EDGE_VOXELS, gaussian_taps
from atlasseg.registration._engine.pyramid import COUNTED, Level, Prepared, matching_factors, refined
from atlasseg.similarity import FLAT_WINDOW
from atlasseg.volume import Float32, Float64

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SCALARS_PER_VOXEL = 48
"""float32 that a pair needs per voxel at the peak, from the tensors alive in `box_sum` of nine window terms."""

MEMORY_SHARE = 0.8
"""Batches are cut to this share of the free memory of the GPU."""


def solve(
    fixed: Prepared,
    moving: Sequence[Prepared],
    matrices_mm: Sequence[Float64],
    starts: Sequence[Float32 | None],
    schedule: Schedule,
    *,
    known: Sequence[bool],
    device: str,
) -> list[tuple[Float32, float]]:
    """As `dense.solve`, for many moving images at once.

    Raises
    ------
    InputError
        One pair alone does not fit the GPU's memory.
    """

    def part(indices: Sequence[int]) -> list[tuple[Float32, float]]:
        return _solve(
            fixed,
            [moving[n] for n in indices],
            [matrices_mm[n] for n in indices],
            [starts[n] for n in indices],
            schedule,
            [known[n] for n in indices],
            device,
        )

    each = 4 * SCALARS_PER_VOXEL * fixed.counted.size
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else each * len(moving)
    return in_batches(
        len(moving), max(1, int(MEMORY_SHARE * free / each)) if device == "cuda" else len(moving), part, each
    )


def in_batches(count: int, size: int, solve: Callable[[Sequence[int]], list[Result]], bytes_each: int) -> list[Result]:
    """Solve `count` items at most `size` at a time, in half the size where the GPU's memory does not do."""
    out: list[Result] = []
    while len(out) < count:
        batch = range(len(out), min(count, len(out) + size))
        try:
            out += solve(batch)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                free, total = torch.cuda.mem_get_info()
                raise InputError(
                    f"one registration does not fit the GPU's memory: about {bytes_each / 2**30:.1f} GiB are wanted, "
                    f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free; use device='cpu' or a mask"
                ) from error
            size = max(1, len(batch) // 2)
            logger.warning("out of GPU memory with %d images at once: going on with %d", len(batch), size)
    return out


def _solve(
    fixed: Prepared,
    moving: Sequence[Prepared],
    matrices_mm: Sequence[Float64],
    starts: Sequence[Float32 | None],
    schedule: Schedule,
    known: Sequence[bool],
    device: str,
) -> list[tuple[Float32, float]]:
    full = fixed.level((1, 1, 1))
    before, values = full, [0.0] * len(moving)
    current = [np.zeros((*full.shape, 3), np.float32) if s is None else s for s in starts]
    for shrink, iterations, sigma in zip(
        schedule.shrink_factors, schedule.iterations, schedule.field_sigma_voxels, strict=True
    ):
        if iterations == 0:
            continue
        level = fixed.level(fixed.factors(shrink))
        others = [m.level(matching_factors(level, m)) for m in moving]
        fields = np.stack([refined(field, before, level) for field in current])
        climbed, values = _climb(level, others, matrices_mm, fields, iterations, sigma, schedule, known, device)
        current, before = list(climbed), level
    return [(refined(field, before, full), value) for field, value in zip(current, values, strict=True)]


class Movings:
    """Moving levels of different shapes in one tensor, filled up with zeros that are never sampled."""

    def __init__(
        self, fixed: Level, moving: Sequence[Level], matrices_mm: Sequence[Float64], known: Sequence[bool], device: str
    ) -> None:
        shape = np.max([m.shape for m in moving], axis=0)
        channels = len(moving[0].channels)
        stack = np.zeros((len(moving), channels + 1, *shape), np.float32)
        for n, (level, has_mask) in enumerate(zip(moving, known, strict=True)):
            i, j, k = level.shape
            for c, channel in enumerate(level.channels):
                stack[n, c, :i, :j, :k] = channel
            stack[n, channels, :i, :j, :k] = (level.mask == COUNTED) if has_mask else 1
        to_moving = np.stack(
            [np.linalg.inv(m.affine) @ t @ fixed.affine for m, t in zip(moving, matrices_mm, strict=True)]
        )
        self.stack = torch.from_numpy(stack).to(device)
        self.matrix = torch.from_numpy(to_moving[:, :3].astype(np.float32)).to(device)
        self.last = torch.tensor([[n - 1 for n in m.shape] for m in moving], dtype=torch.float32, device=device)

    def warp(self, which: Tensor, field: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, I, J, K) values at ``matrix (x + field)``, and (N, 1, I, J, K) the mask where they are known."""
        position = voxels(field.shape[2:], field.device) + field
        matrix, last = self.matrix[which], self.last[which][:, :, None, None, None]
        there = torch.einsum("nab,nbijk->naijk", matrix[:, :, :3], position) + matrix[:, :, 3, None, None, None]
        inside = ((there >= -EDGE_VOXELS) & (there <= last + EDGE_VOXELS)).all(dim=1, keepdim=True)
        there = torch.minimum(there.clamp_min(0), last)
        at = self.stack[which]
        warped = sample(at[:, :-1], there)
        nearest = sample(at[:, -1:], torch.floor(there + 0.5)) > 0.5
        return warped, (mask & inside & nearest).to(torch.float32)


def voxels(shape: Sequence[int], device: torch.device) -> Tensor:
    """(1, 3, I, J, K) indices of the voxels."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(values: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation of (N, C, ...) at (N, 3, I, J, K) voxel indices, the border's values beyond it."""
    size = torch.tensor([max(n - 1, 1) for n in values.shape[2:]], dtype=torch.float32, device=values.device)
    grid = (position.movedim(1, -1) * (2 / size) - 1).flip(-1)
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)


def along(values: Tensor, axis: int, taps: Sequence[float], *, repeat_edge: bool) -> Tensor:
    """Weighted sum of shifted copies along an axis, symmetric taps; beyond the borders the edge's value, or nothing."""
    radius, n = len(taps) // 2, values.shape[axis]
    if repeat_edge:
        first, last = values.narrow(axis, 0, 1), values.narrow(axis, n - 1, 1)
        ends = [first] * radius, [last] * radius
    else:
        nothing = torch.zeros_like(values.narrow(axis, 0, 1))
        ends = [nothing] * radius, [nothing] * radius
    padded = torch.cat([*ends[0], values, *ends[1]], dim=axis)
    out = padded.narrow(axis, 0, n) * taps[0]
    for t in range(1, len(taps)):
        out.add_(padded.narrow(axis, t, n), alpha=taps[t])
    return out


def box_sum(values: Tensor, radius_voxels: int) -> Tensor:
    """Sums over windows, nothing beyond the borders."""
    for axis in (2, 3, 4):
        values = along(values, axis, [1.0] * (2 * radius_voxels + 1), repeat_edge=False)
    return values


def smooth(values: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """Gaussian along the last three axes, edges repeated."""
    for axis, sigma in enumerate(sigma_voxels):
        taps = gaussian_taps(sigma)
        if taps.size > 1:
            values = along(values, axis + 2, taps.tolist(), repeat_edge=True)
    return values


def lncc_gradient(fixed: Tensor, warped: Tensor, weight: Tensor, radius_voxels: int) -> tuple[Tensor, Tensor]:
    """(N,) mean squared local correlation, and the derivative of its sum, as `lncc.lncc_gradient`; (N, 1, I, J, K)."""
    count = weight.sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1)

    def flat(image: Tensor) -> Tensor:
        mean = (image * weight).sum(dim=(1, 2, 3, 4), keepdim=True) / count
        variance = ((image - mean).square() * weight).sum(dim=(1, 2, 3, 4), keepdim=True) / count
        return FLAT_WINDOW * variance.clamp_min(1e-12)

    terms = [weight, weight * fixed, weight * warped]
    terms += [terms[1] * fixed, terms[2] * warped, terms[1] * warped]
    n, sum_f, sum_w, sum_ff, sum_ww, sum_fw = (box_sum(t, radius_voxels) for t in terms)
    del terms
    n = n.clamp_min(1)
    mean_f, mean_w = sum_f / n, sum_w / n
    var_f, var_w, cov = sum_ff - sum_f * mean_f, sum_ww - sum_w * mean_w, sum_fw - sum_f * mean_w
    use = (weight > 0) & (var_f > flat(fixed) * n) & (var_w > flat(warped) * n)
    one, zero = torch.ones_like(cov), torch.zeros_like(cov)
    cov = torch.where(use, cov, zero)
    a = 2 * cov / torch.where(use, var_f * var_w, one)
    b = a * cov / torch.where(use, var_w, one)
    value = (a * cov).sum(dim=(1, 2, 3, 4)) / 2 / count.flatten()
    c = a * mean_f - b * mean_w
    gradient = fixed * box_sum(a, radius_voxels) - warped * box_sum(b, radius_voxels) - box_sum(c, radius_voxels)
    return value, gradient * weight


def slopes(image: Tensor) -> Tensor:
    """(N, 3, I, J, K) half the difference of the neighbours, at the borders of the voxel and its one neighbour."""
    out = []
    for axis in (2, 3, 4):
        n = image.shape[axis]
        padded = torch.cat([image.narrow(axis, 0, 1), image, image.narrow(axis, n - 1, 1)], dim=axis)
        out.append((padded.narrow(axis, 2, n) - padded.narrow(axis, 0, n)) / 2)
    return torch.cat(out, dim=1)


@torch.no_grad()
def _climb(
    fixed: Level,
    moving: Sequence[Level],
    matrices_mm: Sequence[Float64],
    start: Float32,
    iterations: int,
    sigma_voxels: float,
    schedule: Schedule,
    known: Sequence[bool],
    device: str,
) -> tuple[Float32, list[float]]:
    movings = Movings(fixed, moving, matrices_mm, known, device)
    target = torch.from_numpy(np.stack(fixed.channels))[None].to(device)
    wanted = torch.from_numpy(fixed.mask > 0).to(device)
    counted = torch.from_numpy(fixed.mask == COUNTED)[None, None].to(device)
    finest = fixed.spacing_mm.min() / fixed.spacing_mm
    scale = torch.tensor(finest**2, dtype=torch.float32, device=device)[None, :, None, None, None]
    update_sigma, field_sigma = schedule.update_sigma_voxels * finest, sigma_voxels * finest
    here = voxels(fixed.shape, torch.device(device))
    result = torch.from_numpy(np.ascontiguousarray(np.moveaxis(start, -1, 1))).to(device)
    active, field = torch.arange(len(moving), device=device), result.clone()
    values: list[list[float]] = [[] for _ in moving]
    for _ in range(iterations):
        warped, weight = movings.warp(active, field, counted)
        warped = torch.where(wanted, warped, 0.0)
        value, update = torch.zeros(len(active), device=device), torch.zeros_like(field)
        for c in range(target.shape[1]):
            part, gradient = lncc_gradient(target[:, c : c + 1], warped[:, c : c + 1], weight, schedule.radius_voxels)
            value += part / target.shape[1]
            update += gradient * slopes(warped[:, c : c + 1]) * scale
        update = smooth(update, update_sigma.tolist())
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
        last = torch.tensor([n - 1 for n in fixed.shape], dtype=torch.float32, device=device)[None, :, None, None, None]
        field = smooth(step + sample(field, torch.minimum((here + step).clamp_min(0), last)), field_sigma.tolist())
        result[active] = field
    return result.movedim(1, -1).cpu().numpy(), [v[-1] for v in values]
