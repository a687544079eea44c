"""Optimiser, learning rate, and the moving average of the weights.

The learning rate is a function of the elapsed fraction of the training, not one of torch's schedulers: those count
steps, and a training may be limited in minutes. A function has no state to save, and torch's schedulers compute each
rate from the last one and drift from the formula (CONTRIBUTING gives the figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
    """Compute the learning rate after a fraction `t` (0 to 1) of the training: see `recipe.training.Training`.

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


def average_weights(network: nn.Module, decay: float) -> AveragedModel:
    """Make the exponential moving average of a network's weights and buffers; `update_parameters` adds a step to it.

    It starts with the initial weights. At step n, counted from 0, its decay is the smaller of `decay` and
    (1 + n) / (10 + n), so that the initial weights lose their influence. With `decay` 0 it is the network itself.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            step = int(count) - 1
            decayed = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
            decayed(averages, weights, count)
        else:  # counters of a batch norm
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)

    model = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    model.update_parameters(network)
    return model.eval()


def absolute_sum(parameters: list[nn.Parameter]) -> Tensor:
    """Sum the absolute weights, without biases and normalisation layers."""
    return torch.stack([p.abs().sum() for p in parameters if p.ndim > 1]).sum()
