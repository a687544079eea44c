"""Normalised mutual information, for partly overlapping images of different contrasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.similarity import _histogram, _parzen
from atlasseg.similarity._parzen import log_ratio
from atlasseg.similarity.metric import SimilarityMetric, register_metric
from atlasseg.volume import Bool, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NormalizedMutualInformation"]


@register_metric
@dataclass(frozen=True)
class NormalizedMutualInformation(SimilarityMetric):
    """``(H(fixed) + H(warped)) / H(fixed, warped)``, 1 (independent) to 2 [1]_: for images of different contrasts.

    Histograms are those of `mutual_information`. Mean over the channels; 1 if one image is
    constant.

    Parameters
    ----------
    bins : int
        Number of bins per image, at least 6.

    References
    ----------
    .. [1] Studholme, C., Hill, D. L. G., Hawkes, D. J. (1999). An overlap invariant entropy measure of 3D medical image
       alignment. Pattern Recognition 32(1), 71-86.
    """

    bins: int = 32
    name = "normalized_mutual_information"
    unrelated = 1.0

    def __post_init__(self) -> None:
        _parzen.check_bins(self.bins)

    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Normalised mutual information and its derivative for a constant range of the bins."""
        return _parzen.value_and_gradient(
            normalized_information, fixed, warped, self.bins, mask, constant=self.unrelated
        )

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Value minus 1 and derivatives by compiled kernels; for the curvature see `_histogram.derivatives`."""
        return _histogram.derivatives(tables, fixed, warped, weight, self.bins)

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `derivatives`, by torch."""
        from atlasseg.similarity._histogram_torch import derivatives

        return derivatives(tables, fixed, warped, weight, self.bins)


def tables(joint: Float64, scale: float, count: float) -> tuple[float, Float64, Float64]:
    """Compute value minus 1 and look-up tables of a joint histogram; see `_histogram.Tables`."""
    total = float(joint.sum())
    joint = joint / total
    value, of_joint = normalized_information(joint)
    spread = scale**2 / _histogram.row_variances(joint)
    positive = joint[joint > 0]
    spread *= value / -float((positive * np.log(positive)).sum())
    return value - 1, (of_joint - float((of_joint * joint).sum())) * (scale * count / total), spread


def normalized_information(joint: Float64) -> tuple[float, Float64]:
    """Compute normalised mutual information of a joint histogram with sum 1, and its derivative, up to a constant."""
    one = np.ones_like(joint)
    log_joint, log_warped = log_ratio(joint, one), np.broadcast_to(log_ratio(joint.sum(axis=0), one[0]), joint.shape)
    log_fixed = log_ratio(joint.sum(axis=1), one[:, 0])
    h_joint = -float((joint * log_joint).sum())
    h_both = -float((joint * log_warped).sum()) - float((joint.sum(axis=1) * log_fixed).sum())
    return h_both / h_joint, (h_both * log_joint - h_joint * log_warped) / h_joint**2
