"""Mean squared difference, for images of one contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.similarity import _moments
from atlasseg.similarity.metric import SimilarityMetric, checked_images, register_metric, spread
from atlasseg.volume import Bool, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MeanSquares"]


@register_metric
@dataclass(frozen=True)
class MeanSquares(SimilarityMetric):
    """Mean squared difference over the mask and all channels, 0 for equal images: for images of one contrast.

    Registration maximises its negative, divided by the variance of the fixed image.
    """

    name = "mean_squares"
    greater_is_better = False

    def value(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
        """Mean squared difference."""
        f, w, inside = checked_images(fixed, warped, mask)
        return float(np.mean((w[inside] - f[inside]) ** 2))

    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Mean squared difference and its derivative ``2 (warped - fixed) / n``."""
        f, w, inside = checked_images(fixed, warped, mask)
        difference = w[inside] - f[inside]
        return float(np.mean(difference**2)), spread(2 * difference / difference.size, inside, warped)

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Negative mean squared difference over the variance of the fixed image, with exact curvature."""
        return _moments.derivatives(_quadratic, fixed, warped, weight)

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `derivatives`, by torch."""
        return _moments.derivatives_torch(_quadratic, fixed, warped, weight)


def _quadratic(summed: Float64) -> tuple[Float64, Float64]:
    """Value and factors from the sums; see `_moments.Quadratic`."""
    _, _, ff, ww, fw, var_f, _ = _moments.central(summed)
    zero = np.zeros_like(var_f)
    return -(ff - 2 * fw + ww) / var_f, np.stack([2 / var_f, -2 / var_f, zero, 2 / var_f], axis=-1)
