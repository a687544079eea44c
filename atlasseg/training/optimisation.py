"""Optimisers and how the learning rate falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atlasseg.recipe.training import Training


def make_optimiser(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Make the optimiser of a recipe; its weight decay is decoupled in AdamW."""
    rate, decay = training.learning_rate, training.weight_decay
    match training.optimiser:
        case "sgd":
            nesterov = training.momentum > 0
            return torch.optim.SGD(
                parameters, lr=rate, momentum=training.momentum, nesterov=nesterov, weight_decay=decay
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, momentum=training.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, betas=(training.momentum, 0.999), weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, betas=(training.momentum, 0.999), weight_decay=decay)


def learning_rate(training: Training, t: float) -> float:
    """The rate after a share `t` (0 to 1) of the training: see `recipe.training.Training`.

    Examples
    --------
    >>> training = Training(decay="cosine", learning_rate=1.0, warmup_fraction=0.0)
    >>> [round(learning_rate(training, t), 3) for t in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    t = min(max(t, 0.0), 1.0)
    rate, stages = training.decay_rate, training.decay_stages
    match training.decay:
        case "none":
            factor = 1.0
        case "inverse":
            factor = 1 / (1 + rate * t)
        case "exponential":
            factor = math.exp(-rate * t)
        case "step":
            factor = math.exp(-rate * min(math.floor(t * stages), stages - 1) / stages)
        case "cosine":
            factor = (1 + math.cos(math.pi * t)) / 2
        case "poly":
            factor = (1 - t) ** training.decay_power
    rising = min(1.0, (t + 1e-3) / training.warmup_fraction) if training.warmup_fraction else 1.0
    return training.learning_rate * factor * rising


def absolute_sum(parameters: list[nn.Parameter]) -> Tensor:
    """Sum of absolute weights, biases and norms left out."""
    return torch.stack([p.abs().sum() for p in parameters if p.ndim > 1]).sum()
