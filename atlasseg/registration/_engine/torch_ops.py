"""Torch operations of the engines: moving images as one tensor, sampling, smoothing, batches that fit the memory.

Images are (N, C, I, J, K), fields (N, 3, I, J, K) in voxels of their own grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atlasseg.errors import InputError
from atlasseg.registration._engine.fields import EDGE_VOXELS, make_gaussian_taps
from atlasseg.registration._engine.pyramid import VALID, Level
from atlasseg.volume import Float64

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SCALARS_PER_VOXEL = 48
"""Peak float32 values per voxel and pair: the tensors of the nine window sums of the local correlation."""

MEMORY_SHARE = 0.8
"""Fraction of the free GPU memory that a batch may use."""


class MovingBatch:
    """One level of many moving images as one tensor, with smaller images padded.

    With `mixed` they are held in float16, which keeps 3 digits of intensities from 0 to 1, and sampled in float32.
    """

    def __init__(
        self, fixed: Level, moving: Sequence[Level], known: Sequence[bool], device: str, *, mixed: bool = False
    ) -> None:
        shape = np.max([m.shape for m in moving], axis=0)
        channels = len(moving[0].channels)
        stack = np.zeros((len(moving), channels + 1, *shape), np.float32)
        for n, (level, has_mask) in enumerate(zip(moving, known, strict=True)):
            i, j, k = level.shape
            for c, channel in enumerate(level.channels):
                stack[n, c, :i, :j, :k] = channel
            stack[n, channels, :i, :j, :k] = (level.mask == VALID) if has_mask else 1
        self.stack = torch.from_numpy(stack).to(device, torch.float16 if mixed else torch.float32)
        self.last = torch.tensor([[n - 1 for n in m.shape] for m in moving], dtype=torch.float32, device=device)
        self.target = torch.from_numpy(np.stack(fixed.channels))[None].to(device)
        self.wanted = torch.from_numpy(fixed.mask > 0).to(device)
        self.valid = torch.from_numpy(fixed.mask == VALID)[None, None].to(device)
        self.here = make_voxels(fixed.shape, self.target.device)
        self.weights = fixed.weights
        self._fixed_affine = fixed.affine
        self._from_mm = [np.linalg.inv(m.affine) for m in moving]

    def matrix(self, which: Sequence[int], matrices_mm: Sequence[Float64]) -> Tensor:
        """Convert maps from fixed to moving mm to maps (N, 3, 4) from voxels to voxels of the images `which`."""
        parts = [self._from_mm[n] @ m @ self._fixed_affine for n, m in zip(which, matrices_mm, strict=True)]
        return torch.from_numpy(np.stack(parts)[:, :3].astype(np.float32)).to(self.stack.device)

    def there(self, matrix: Tensor, field: Tensor | None) -> Tensor:
        """Compute the positions ``matrix (x + field)``, (N, 3, I, J, K), in moving voxels."""
        position = self.here if field is None else self.here + field
        moved = torch.einsum("nab,nbijk->naijk", matrix[:, :, :3], position.expand(len(matrix), -1, -1, -1, -1))
        return moved + matrix[:, :, 3, None, None, None]

    def warp(self, which: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the images `which` at moving voxels, (N, C, I, J, K), with weights (N, 1, I, J, K): 1 where known."""
        last = self.last[which][:, :, None, None, None]
        inside = ((there >= -EDGE_VOXELS) & (there <= last + EDGE_VOXELS)).all(dim=1, keepdim=True)
        at, there = self.stack[which].float(), torch.minimum(there.clamp_min(0), last)
        warped = torch.where(self.wanted, sample(at[:, :-1], there), 0.0)
        nearest = sample(at[:, -1:], torch.floor(there + 0.5)) > 0.5
        return warped, (self.valid & inside & nearest).to(torch.float32)

    def slope(self, which: Tensor, channel: int, there: Tensor) -> Tensor:
        """Compute the derivative (N, 3, I, J, K) of the linearly sampled value in the position; 0 beyond the border."""
        last = self.last[which][:, :, None, None, None]
        inside = (there >= 0) & (there <= last)
        there = torch.minimum(there.clamp_min(0), last)
        low = torch.floor(there)
        part, low = there - low, low.long()
        high = torch.minimum(low + 1, last.long())
        values = self.stack[:, channel]
        n = which[:, None, None, None]
        corner = {
            bits: values[n, *(high[:, a] if bit else low[:, a] for a, bit in enumerate(bits))]
            for bits in product((0, 1), repeat=3)
        }
        out = []
        for axis in range(3):
            b, c = (a for a in range(3) if a != axis)
            fb, fc = part[:, b], part[:, c]
            total = torch.zeros_like(fb)
            for bits, value in corner.items():
                share = (fb if bits[b] else 1 - fb) * (fc if bits[c] else 1 - fc)
                total += share * value if bits[axis] else -share * value
            out.append(total)
        return torch.stack(out, dim=1) * inside


def make_voxels(shape: Sequence[int], device: torch.device) -> Tensor:
    """Make the voxel indices, (1, 3, I, J, K)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(values: Tensor, position: Tensor) -> Tensor:
    """Interpolate (N, C, ...) linearly at (N, 3, I, J, K) voxel indices; constant beyond the border."""
    size = torch.tensor([max(n - 1, 1) for n in values.shape[2:]], dtype=torch.float32, device=values.device)
    grid = (position.movedim(1, -1) * (2 / size) - 1).flip(-1)
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)


def convolve(values: Tensor, axis: int, taps: Sequence[float], *, repeat_edge: bool) -> Tensor:
    """Convolve along an axis with symmetric taps; beyond the borders the edge is repeated, or 0."""
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


def smooth(values: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """Smooth by a Gaussian along the last three axes, edges repeated."""
    for axis, sigma in enumerate(sigma_voxels):
        taps = make_gaussian_taps(sigma)
        if taps.size > 1:
            values = convolve(values, axis + 2, taps.tolist(), repeat_edge=True)
    return values


def smooth_halved(values: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """Smooth in float16, each of the N scaled to a maximum of 1: 3 digits at half the memory traffic."""
    largest = values.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-30)
    return smooth((values / largest).half(), sigma_voxels).float() * largest


def compute_slopes(image: Tensor) -> Tensor:
    """Compute central differences (N, 3, I, J, K); one-sided, halved, at the borders."""
    out = []
    for axis in (2, 3, 4):
        n = image.shape[axis]
        padded = torch.cat([image.narrow(axis, 0, 1), image, image.narrow(axis, n - 1, 1)], dim=axis)
        out.append((padded.narrow(axis, 2, n) - padded.narrow(axis, 0, n)) / 2)
    return torch.cat(out, dim=1)


def fit_to_memory(voxels: int, count: int, device: str) -> tuple[int, int]:
    """Compute how many of `count` registrations fit into the GPU memory at once, and the bytes of each."""
    each = 4 * SCALARS_PER_VOXEL * voxels
    if device != "cuda":
        return count, each
    return max(1, int(MEMORY_SHARE * torch.cuda.mem_get_info()[0] / each)), each


def solve_in_batches(
    count: int, size: int, solve: Callable[[Sequence[int]], list[Result]], bytes_each: int
) -> list[Result]:
    """Solve `count` items in batches of at most `size`; halve the size when the GPU is out of memory."""
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
                    f"one registration does not fit into the GPU memory: expected {bytes_each / 2**30:.1f} GiB, "
                    f"got {free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB. Use device='cpu' or a mask"
                ) from error
            size = max(1, len(batch) // 2)
            logger.warning("out of GPU memory with %d images in a batch: continuing with %d", len(batch), size)
    return out
