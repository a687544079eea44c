"""Cross-entropy and soft Dice loss, marginal over labels that were not annotated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from atlasseg.refinement.network.cases import IGNORED


def loss(logits: Tensor, truth: Tensor, unknown: Tensor, *, cross_entropy: float = 1.0, dice: float = 1.0) -> Tensor:
    """Compute the weighted sum of cross-entropy and soft Dice of a batch.

    If labels were not annotated in a case, its background may contain them: their probabilities are added to that of
    the background [1]_, and the Dice of that case excludes them and the background.

    Parameters
    ----------
    logits : (B, L, I, J, K)
    truth : (B, I, J, K) int64
        Codes of the labels; `cases.IGNORED` where the label is unknown.
    unknown : (B, L) bool
        Labels that were not annotated.
    cross_entropy, dice : float
        Weights. The Dice [2]_ is computed for the whole batch and averaged over its labels without the background.

    References
    ----------
    .. [1] Shi, G., Xiao, L., Chen, Y., Zhou, S. K. (2021). Marginal loss and exclusion loss for partially supervised
       multi-organ segmentation. Medical Image Analysis 70, 101979.
    .. [2] Milletari, F., Navab, N., Ahmadi, S.-A. (2016). V-Net: fully convolutional neural networks for volumetric
       medical image segmentation. 3DV, 565-571.
    """
    known = truth != IGNORED
    code = truth.clamp(min=0)
    log_p = functional.log_softmax(logits.float(), dim=1)
    if bool(unknown.any()):
        log_p = _merge_unknown(log_p, unknown)
    entropy = -log_p.gather(1, code[:, None])[:, 0]
    total = cross_entropy * (entropy * known).sum() / known.sum().clamp(min=1)
    if dice == 0 or logits.shape[1] == 1:
        return total
    p = log_p.exp() * known[:, None]
    counts = (~unknown).float()
    own = p.gather(1, code[:, None])[:, 0]
    batch, labels = unknown.shape
    nothing = logits.new_zeros((batch, labels), dtype=torch.float32)
    flat = code.reshape(batch, -1)
    met = nothing.scatter_add(1, flat, own.reshape(batch, -1))
    true = nothing.scatter_add(1, flat, known.reshape(batch, -1).float())
    met, true = (met * counts).sum(0)[1:], (true * counts).sum(0)[1:]
    seen = (p.sum(dim=(2, 3, 4)) * counts).sum(0)[1:]
    present = (true > 0).float()
    score = (2 * met + 1e-5) / (true + seen + 1e-5)
    return total + dice * ((1 - score) * present).sum() / present.sum().clamp(min=1)


def _merge_unknown(log_p: Tensor, unknown: Tensor) -> Tensor:
    """Add the probability of the labels that were not annotated to that of the background."""
    mask = unknown[:, :, None, None, None].clone()
    mask[:, 0] = True
    background = torch.logsumexp(log_p.masked_fill(~mask, -torch.inf), dim=1, keepdim=True)
    rest = log_p[:, 1:].masked_fill(unknown[:, 1:, None, None, None], -30.0)
    return torch.cat([background, rest], dim=1)


def deep_supervision_loss(
    out: Tensor, log_prior: Tensor | None, truth: Tensor, unknown: Tensor, *, cross_entropy: float, dice: float
) -> Tensor:
    """Sum the loss over the output resolutions of a network; each coarser one has half the weight of the last."""
    heads = out.unbind(1) if out.ndim == 6 else (out,)
    total = out.new_zeros((), dtype=torch.float32)
    weights = [0.5**n for n in range(len(heads))]
    for head, weight in zip(heads, weights, strict=True):
        logits = head if log_prior is None else head + log_prior
        total = total + weight / sum(weights) * loss(logits, truth, unknown, cross_entropy=cross_entropy, dice=dice)
    return total
