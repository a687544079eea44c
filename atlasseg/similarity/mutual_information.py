"""Mutual information, for images of different contrasts."""

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

__all__ = ["MutualInformation"]


@register_metric
@dataclass(frozen=True)
class MutualInformation(SimilarityMetric):
    """Mutual information in nats of Parzen-windowed histograms [1]_, 0 or more: for images of different contrasts.

    Mean over the channels; 0 if one image is constant.

    Parameters
    ----------
    bins : int
        Number of bins per image, at least 6.

    References
    ----------
    .. [1] Mattes, D., et al. (2003). PET-CT image registration in the chest using free-form deformations. IEEE Trans
       Med Imaging 22(1), 120-128 (equations 4 to 12).
    """

    bins: int = 32
    name = "mutual_information"

    def __post_init__(self) -> None:
        _parzen.check_bins(self.bins)

    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Mutual information and its derivative for a constant range of the bins."""
        return _parzen.value_and_gradient(information, fixed, warped, self.bins, mask, constant=self.unrelated)

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Value and derivatives by compiled kernels; for the curvature see `_histogram.derivatives`."""
        return _histogram.derivatives(tables, fixed, warped, weight, self.bins)

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `derivatives`, by torch."""
        from atlasseg.similarity._histogram_torch import derivatives

        return derivatives(tables, fixed, warped, weight, self.bins)


def tables(joint: Float64, scale: float, count: float) -> tuple[float, Float64, Float64]:
    """Compute value and look-up tables of a joint histogram; see `_histogram.Tables`."""
    total = float(joint.sum())
    joint = joint / total
    value, of_joint = information(joint)
    spread = scale**2 / _histogram.row_variances(joint)
    return value, (of_joint - float((of_joint * joint).sum())) * (scale * count / total), spread


def information(joint: Float64) -> tuple[float, Float64]:
    """Compute the mutual information of a joint histogram with sum 1, and its derivative in each bin, up to a constant.

    Parameters
    ----------
    joint : (bins of fixed, bins of warped) float64
        Histogram. The marginal of the fixed image must not depend on the variable of the derivative.
    """
    marginals = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    value = float((joint * log_ratio(joint, marginals)).sum())
    return value, log_ratio(joint, np.broadcast_to(joint.sum(axis=0), joint.shape))
