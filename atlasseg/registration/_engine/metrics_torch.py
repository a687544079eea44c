"""The measures of `metrics` in torch, of many warped images against one fixed image.

The same numbers up to the order of float32 sums. Histograms are added up in whole numbers, so that they are the same
in whatever order a GPU adds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atlasseg.registration._engine.histogram import BINS, tables
from atlasseg.registration._engine.metrics import Similarity, quadratic
from atlasseg.registration._engine.torch_ops import box_sum
from atlasseg.similarity import FLAT_WINDOW, PADDING_BINS

UNITS = 2.0**32
"""Of a Parzen weight of 1 in the sums of a histogram."""


def measure(similarity: Similarity, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `Similarity.measure`: (N,) values, (N, 1, I, J, K) first and second derivatives.

    Parameters
    ----------
    similarity : Similarity
    fixed : (1, 1, I, J, K) float32
    warped, weight : (N, 1, I, J, K) float32
    """
    if similarity.metric == "local_correlation":
        return _local_correlation(fixed, warped, weight, similarity.radius_voxels)
    if similarity.metric in ("mutual_information", "normalized_mutual_information"):
        return _information(fixed, warped, weight, normalized=similarity.metric == "normalized_mutual_information")
    f, w = fixed * weight, warped * weight
    terms = weight, f, w, f * fixed, w * warped, f * warped
    sums = torch.stack([t.sum(dim=(1, 2, 3, 4), dtype=torch.float64) for t in terms], dim=-1)
    value, factors = quadratic(similarity.metric, sums.cpu().numpy())
    a, b, c, d = _like(factors.T, warped)[..., None, None, None, None]
    return _like(value, warped), (a * fixed + b * warped + c) * weight, d * weight


def _like(values: object, other: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(other.device, torch.float32)


def _local_correlation(
    fixed: Tensor, warped: Tensor, weight: Tensor, radius_voxels: int
) -> tuple[Tensor, Tensor, Tensor]:
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
    curvature = box_sum(b, radius_voxels)
    gradient = fixed * box_sum(a, radius_voxels) - warped * curvature - box_sum(c, radius_voxels)
    return value, gradient * weight, curvature * weight


def _information(fixed: Tensor, warped: Tensor, weight: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor, Tensor]:
    count = len(warped)
    valid = weight.flatten(1) > 0
    f, w = (x.expand_as(weight).flatten(1).double() for x in (fixed, warped))
    ends = [
        (torch.where(valid, x, torch.inf).amin(dim=1), torch.where(valid, x, -torch.inf).amax(dim=1)) for x in (f, w)
    ]
    varied = (ends[0][1] > ends[0][0]) & (ends[1][1] > ends[1][0])
    inner = BINS - 2 * PADDING_BINS
    scale_f, scale_w = (torch.where(varied, inner / (high - low), 0.0) for low, high in ends)
    low_f, low_w = (torch.where(varied, low, 0.0) for low, _ in ends)
    row = ((f - low_f[:, None]) * scale_f[:, None]).long().clamp(0, inner - 1) + PADDING_BINS
    term = (w - low_w[:, None]) * scale_w[:, None] + PADDING_BINS
    first = term.long().clamp(PADDING_BINS, BINS - PADDING_BINS - 1) - 1
    t = term - (first + 1)
    splines = (1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6
    joint = torch.zeros((count, BINS * BINS + 1), dtype=torch.int64, device=warped.device)  # the last bin: nowhere
    bins = [torch.where(valid & (first + n < BINS), row * BINS + first + n, BINS * BINS) for n in range(4)]
    for index, share in zip(bins, splines, strict=True):
        joint.scatter_add_(1, index, torch.where(valid, share * UNITS, 0.0).round().long())
    sums = joint[:, :-1].double().div(UNITS).reshape(count, BINS, BINS).cpu().numpy()
    values, table, spread = np.zeros(count), np.zeros((count, BINS * BINS + 1)), np.zeros((count, BINS))
    for n in torch.nonzero(varied).flatten().tolist():
        values[n], of, spread[n] = tables(sums[n], float(scale_w[n]), float(valid[n].sum()), normalized=normalized)
        table[n, :-1] = of.ravel()
    look_up, curved = (torch.from_numpy(x).to(warped.device) for x in (table, spread))
    slopes = -((1 - t) ** 2) / 2, 1.5 * t**2 - 2 * t, 0.5 + t - 1.5 * t**2, t**2 / 2
    gradient = sum(slope * look_up.gather(1, index) for slope, index in zip(slopes, bins, strict=True))
    curvature = curved.gather(1, row) * valid
    return (
        _like(values, warped),
        torch.as_tensor(gradient).reshape(warped.shape).float(),
        curvature.reshape(warped.shape).float(),
    )
