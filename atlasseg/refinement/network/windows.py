"""Sliding windows of a network over a whole scan, blended slab by slab to limit memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasseg.errors import InputError
from atlasseg.refinement.network.cases import Case, LabelEncoding
from atlasseg.refinement.network.inputs import dense, network_inputs
from atlasseg.volume import Float32

Predictor = Callable[[Tensor, Tensor | None], Tensor]
"""Function of inputs (1, C, ...) and log prior (1, L, ...) or None that returns probabilities (1, L, ...)."""

SIGMA_SHARE = 0.125
"""Standard deviation of a window's Gaussian weight, as a fraction of its edge."""


def make_predictor(
    networks: Sequence[torch.nn.Module],
    temperatures: Sequence[float],
    flips: Sequence[int],
    half: torch.dtype | None = None,
) -> Predictor:
    """Make a predictor: mean probability of networks over all flips of the axes `flips`, calibrated by temperature.

    If `half` is given, convolutions are computed in it, everything else in 32 bits.
    """
    turnings = [
        tuple(a for a, on in zip(flips, chosen, strict=True) if on) for chosen in product((0, 1), repeat=len(flips))
    ]

    def predict(shown: Tensor, log_prior: Tensor | None) -> Tensor:
        total: Tensor | None = None
        for network, temperature in zip(networks, temperatures, strict=True):
            for turning in turnings:
                axes = [axis + 2 for axis in turning]
                with torch.autocast(shown.device.type, dtype=half, enabled=half is not None):
                    logits = network(shown.flip(axes) if axes else shown)
                logits = logits.float()
                logits = logits.flip(axes) if axes else logits
                if log_prior is not None:
                    logits = logits + log_prior
                p = torch.softmax(logits.div_(temperature), dim=1)
                total = p if total is None else total.add_(p)
        assert total is not None
        return total.div_(len(networks) * len(turnings))

    return predict


def slabs(
    case: Case,
    coding: LabelEncoding,
    predict: Predictor,
    *,
    window: tuple[int, int, int],
    prior: str,
    overlap: float = 0.5,
    device: str = "cpu",
) -> Iterator[tuple[int, Tensor]]:
    """Compute the probabilities of a whole case, slab by slab along its first axis.

    Windows overlap and are blended by Gaussian weights. Only the slab to which windows are still
    added is in memory: L labels times the thickness of a window times the other two axes, and one window.

    Parameters
    ----------
    case : Case
        The scan.
    coding : LabelEncoding
        Codes of the L labels.
    predict : Predictor
        Function of a window, from `make_predictor`.
    window : three ints
        Size of a window in voxels.
    prior : str
        As in `recipe.training.Refiner`.
    overlap : float
        Overlap of windows as a fraction of their edge, 0 to below 1.
    device : str
        "cpu" or "cuda".

    Yields
    ------
    first : int
        Index at which the slab begins.
    probabilities : (L, n, J, K) float32
        Probabilities, on the device.

    Raises
    ------
    InputError
        The GPU memory is too small.
    """
    size = case.scan.shape[1:]
    starts = [_starts(n, w, overlap) for n, w in zip(size, window, strict=True)]
    weight = _gaussian(window).to(device)
    groups = torch.tensor(coding.groups, device=device)
    scan, codes, shares = (torch.from_numpy(array) for array in (case.scan, case.codes, case.shares))
    inner = tuple(min(n, w) for n, w in zip(size, window, strict=True))
    blended = torch.zeros((len(coding), inner[0], *size[1:]), device=device)
    weights = torch.zeros((inner[0], *size[1:]), device=device)
    for number, first in enumerate(starts[0]):
        for second, third in product(starts[1], starts[2]):
            box = tuple(slice(s, s + n) for s, n in zip((first, second, third), inner, strict=True))
            try:
                image, some, their = (array[:, *box].to(device) for array in (scan, codes, shares))
                shown, log_prior, place = _pad(image, some, their, coding, window, groups, prior)
                with torch.inference_mode():
                    p = predict(shown, log_prior)[0][:, *place]
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{case.id}: expected GPU memory for a window of {' x '.join(map(str, window))} voxels "
                    f"with {len(coding)} labels, got less. Use another GPU, or device='cpu'."
                ) from error
            here = weight[place]
            into = (slice(None), *box[1:])
            blended[:, *into] += p * here
            weights[into] += here
        until = starts[0][number + 1] if number + 1 < len(starts[0]) else first + inner[0]
        done = until - first
        yield first, blended[:, :done] / weights[:done]
        rest = inner[0] - done
        blended[:, :rest] = blended[:, done:].clone()
        blended[:, rest:] = 0
        weights[:rest] = weights[done:].clone()
        weights[rest:] = 0


def probabilities(case: Case, coding: LabelEncoding, predict: Predictor, **settings: object) -> Float32:
    """Compute the probabilities (L, I, J, K) of a whole small case; settings as for `slabs`."""
    return torch.cat([slab.cpu() for _, slab in slabs(case, coding, predict, **settings)], 1).numpy()  # type: ignore[arg-type]


def _starts(size: int, window: int, overlap: float) -> list[int]:
    if size <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    count = -(-(size - window) // step) + 1
    return [int(s) for s in np.unique(np.round(np.linspace(0, size - window, count)).astype(int))]


def _gaussian(window: tuple[int, int, int]) -> Tensor:
    edges = [
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / (SIGMA_SHARE * n)) ** 2)
        for n in window
    ]
    out: Tensor = edges[0][:, None, None] * edges[1][:, None] * edges[2]
    return out.clamp(min=1e-4)


def _pad(
    scan: Tensor,
    codes: Tensor,
    shares: Tensor,
    coding: LabelEncoding,
    window: tuple[int, int, int],
    groups: Tensor,
    prior: str,
) -> tuple[Tensor, Tensor | None, tuple[slice, ...]]:
    """Make the inputs for a box, and its position in the window: in the centre if the box is smaller."""
    before = [(w - n) // 2 for w, n in zip(window, scan.shape[1:], strict=True)]
    place = tuple(slice(b, b + n) for b, n in zip(before, scan.shape[1:], strict=True))
    image = scan.new_zeros((1, scan.shape[0], *window))
    into: Any = (0, slice(None), *place)
    image[into] = scan
    fused = shares.new_zeros((1, len(coding), *window))
    fused[:, 0] = 1
    fused[into] = dense(codes, shares, len(coding))
    shown, log_prior = network_inputs(image, fused, groups, prior)
    return shown.contiguous(memory_format=torch.channels_last_3d), log_prior, place


def sparse_entries(slab: Tensor, least: float, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Float32]:
    """Voxels (n, 3), codes and probabilities (n,) of a (L, I, J, K) slab: the `most` largest of at least `least`."""
    top, codes = (found.cpu().numpy() for found in torch.topk(slab, min(most, slab.shape[0]), dim=0))
    rank, i, j, k = np.nonzero(top >= least)
    return np.stack([i, j, k], 1), codes[rank, i, j, k], top[rank, i, j, k]
