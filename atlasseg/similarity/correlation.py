"""Global correlation, for images with linearly related intensities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.similarity import _moments
from atlasseg.similarity.metric import SimilarityMetric, checked_images, register_metric, spread
from atlasseg.volume import Bool, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Correlation"]


@register_metric
@dataclass(frozen=True)
class Correlation(SimilarityMetric):
    """Global (Pearson) correlation in [-1, 1], mean over the channels; 0 if one image is constant."""

    name = "correlation"

    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Correlation and its derivative, ``a / |a||b| - r b / |b|^2`` with a and b the images minus their means."""
        f, w, inside = checked_images(fixed, warped, mask)
        a, b = f[inside] - f[inside].mean(axis=0), w[inside] - w[inside].mean(axis=0)
        aa, bb, ab = (a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)
        varied = (aa > 0) & (bb > 0)
        norm = np.sqrt(np.where(varied, aa * bb, 1))
        r = np.where(varied, ab / norm, 0)
        gradient = np.where(varied, a / norm - r * b / np.where(varied, bb, 1), 0) / r.size
        return float(r.mean()), spread(gradient, inside, warped)

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Correlation and its derivatives. The curvature ignores that mean and scale are removed from the images.

        The ignored part has rank two, and the curvature is at least that of Gauss-Newton.
        """
        return _moments.derivatives(_quadratic, fixed, warped, weight)

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `derivatives`, by torch."""
        return _moments.derivatives_torch(_quadratic, fixed, warped, weight)


def _quadratic(summed: Float64) -> tuple[Float64, Float64]:
    """Value and factors from the sums; see `_moments.Quadratic`."""
    mean_f, mean_w, _, _, fw, var_f, var_w = _moments.central(summed)
    norm = np.sqrt(var_f * var_w)
    r = (fw - mean_f * mean_w) / norm
    factors = np.stack([1 / norm, -r / var_w, r * mean_w / var_w - mean_f / norm, 1 / var_w], axis=-1)
    flat = (var_f <= _moments.FLAT) | (var_w <= _moments.FLAT)
    return np.where(flat, 0, r), np.where(flat[..., None], 0, factors)
