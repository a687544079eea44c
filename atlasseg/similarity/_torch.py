"""Helpers of the metrics' torch implementations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def like(values: object, other: Tensor) -> Tensor:
    """Convert an array to a float32 tensor on the device of another tensor."""
    return torch.from_numpy(np.asarray(values)).to(other.device, torch.float32)


def box_sum(values: Tensor, radius_voxels: int) -> Tensor:
    """Sum over windows along the last three axes, with zeros beyond the borders."""
    for axis in (2, 3, 4):
        n = values.shape[axis]
        nothing = [torch.zeros_like(values.narrow(axis, 0, 1))] * radius_voxels
        padded = torch.cat([*nothing, values, *nothing], dim=axis)
        out = padded.narrow(axis, 0, n) * 1.0
        for t in range(1, 2 * radius_voxels + 1):
            out.add_(padded.narrow(axis, t, n))
        values = out
    return values
