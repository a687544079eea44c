"""Inputs of the network: scan and fused probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

UNCERTAINTY = 0.02
"""Sum of the minimum probabilities of all other labels, so that logarithms of probabilities are finite."""


def network_inputs(scan: Tensor, prior: Tensor, groups: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    """Make the inputs of the network, and the log prior to which its output is added, if any.

    `scan` is (B, C, ...), `prior` (B, L, ...), and `groups` (L,) the input channel of each label.
    """
    if kind == "none":
        return scan, None
    count = int(groups.max()) + 1
    if count == prior.shape[1]:
        grouped = prior
    else:
        grouped = prior.new_zeros((prior.shape[0], count, *prior.shape[2:])).index_add_(1, groups, prior)
    shown = torch.cat([scan, grouped], dim=1)
    return shown, prior.clamp(min=UNCERTAINTY / max(prior.shape[1] - 1, 1)).log() if kind == "residual" else None


def dense(codes: Tensor, shares: Tensor, labels: int) -> Tensor:
    """Convert the (k, ...) most probable labels to probabilities (L, ...) of all labels."""
    out = shares.new_zeros((labels, *shares.shape[1:]))
    return out.scatter_add_(0, codes.long(), shares)
