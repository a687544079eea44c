"""Joint histograms as in `_histogram` by torch, of many warped images and one fixed image.

The results are equal up to the order of float32 sums. Histograms are summed as integers, so that they are equal for
any order of the additions on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atlasseg.similarity._histogram import Tables
from atlasseg.similarity._parzen import PADDING_BINS
from atlasseg.similarity._torch import like

UNITS = 2.0**32
"""Integer value of a Parzen weight of 1 in the sums of a histogram."""


def derivatives(
    tables: Tables, fixed: Tensor, warped: Tensor, weight: Tensor, bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `_histogram.derivatives` of many warped images."""
    count = len(warped)
    valid = weight.flatten(1) > 0
    f, w = (x.expand_as(weight).flatten(1).double() for x in (fixed, warped))
    ends = [
        (torch.where(valid, x, torch.inf).amin(dim=1), torch.where(valid, x, -torch.inf).amax(dim=1)) for x in (f, w)
    ]
    varied = (ends[0][1] > ends[0][0]) & (ends[1][1] > ends[1][0])
    inner = bins - 2 * PADDING_BINS
    scale_f, scale_w = (torch.where(varied, inner / (high - low), 0.0) for low, high in ends)
    low_f, low_w = (torch.where(varied, low, 0.0) for low, _ in ends)
    row = ((f - low_f[:, None]) * scale_f[:, None]).long().clamp(0, inner - 1) + PADDING_BINS
    term = (w - low_w[:, None]) * scale_w[:, None] + PADDING_BINS
    first = term.long().clamp(PADDING_BINS, bins - PADDING_BINS - 1) - 1
    t = term - (first + 1)
    splines = (1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6
    joint = torch.zeros(
        (count, bins * bins + 1), dtype=torch.int64, device=warped.device
    )  # the last bin: outside the mask
    index_of = [torch.where(valid & (first + n < bins), row * bins + first + n, bins * bins) for n in range(4)]
    for index, share in zip(index_of, splines, strict=True):
        joint.scatter_add_(1, index, torch.where(valid, share * UNITS, 0.0).round().long())
    sums = joint[:, :-1].double().div(UNITS).reshape(count, bins, bins).cpu().numpy()
    values, table, spread = np.zeros(count), np.zeros((count, bins * bins + 1)), np.zeros((count, bins))
    for n in torch.nonzero(varied).flatten().tolist():
        values[n], of, spread[n] = tables(sums[n], float(scale_w[n]), float(valid[n].sum()))
        table[n, :-1] = of.ravel()
    look_up, curved = (torch.from_numpy(x).to(warped.device) for x in (table, spread))
    slopes = -((1 - t) ** 2) / 2, 1.5 * t**2 - 2 * t, 0.5 + t - 1.5 * t**2, t**2 / 2
    gradient = sum(slope * look_up.gather(1, index) for slope, index in zip(slopes, index_of, strict=True))
    curvature = curved.gather(1, row) * valid
    return (
        like(values, warped),
        torch.as_tensor(gradient).reshape(warped.shape).float(),
        curvature.reshape(warped.shape).float(),
    )
