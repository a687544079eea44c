"""Local correlation: correlation in the window around each voxel, for locally linear relations of intensities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from atlasseg.errors import InputError
from atlasseg.similarity._local_correlation_numba import FLAT_WINDOW, lncc_gradient
from atlasseg.similarity.metric import SimilarityMetric, checked_images, register_metric, spread
from atlasseg.volume import Bool, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LocalCorrelation", "local_correlation_map"]


@register_metric
@dataclass(frozen=True)
class LocalCorrelation(SimilarityMetric):
    """Mean of the squared local correlation over the mask, in [0, 1], as in ANTs and greedy [1]_ (equation 7).

    It is squared, so an inverted contrast has the same value. Windows have ``2 radius_voxels + 1`` voxels along each
    axis and are cut at the borders of the volume and of the mask. The correlation of flat windows is 0 (see
    `FLAT_WINDOW`).

    Parameters
    ----------
    radius_voxels : int
        Radius of the windows, at least 1.

    References
    ----------
    .. [1] Avants, B. B., Epstein, C. L., Grossman, M., Gee, J. C. (2008). Symmetric diffeomorphic image registration
       with cross-correlation. Medical Image Analysis 12(1), 26-41.
    """

    radius_voxels: int = 2
    name = "local_correlation"

    def __post_init__(self) -> None:
        if self.radius_voxels < 1:
            raise InputError(f"local correlation: expected radius_voxels of at least 1, got {self.radius_voxels}")

    def value(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
        """Mean of the squared local correlation."""
        f, w, inside = checked_images(fixed, warped, mask)
        return _Windows(f, w, inside, self.radius_voxels).mean_square()

    def value_and_gradient(self, fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
        """Mean of the squared local correlation and its derivative in closed form.

        With window sums c (covariance), u and v (variances) around each voxel, ``a = 2 c / (u v)`` and ``b = a c / v``,
        the derivative at a voxel is ``f S(a) - w S(b) - S(a mean_f - b mean_w)``, where S sums over the windows that
        contain it.
        """
        f, w, inside = checked_images(fixed, warped, mask)
        window = _Windows(f, w, inside, self.radius_voxels)
        a = 2 * window.covariance / window.product
        b = a * window.covariance / window.variance_warped
        c = a * window.mean_fixed - b * window.mean_warped
        sums = [box_sum(part, self.radius_voxels) for part in (a, b, c)]
        gradient = (window.f * sums[0] - window.w * sums[1] - sums[2]) / (inside.sum() * f.shape[-1])
        return window.mean_square(), spread(gradient[inside], inside, warped)

    def derivatives(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Value and derivatives in float32 by compiled kernels, with the curvature of Gauss-Newton."""
        return lncc_gradient(fixed, warped, weight, radius_voxels=self.radius_voxels)

    def derivatives_torch(self, fixed: Tensor, warped: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `derivatives`, by torch."""
        return _derivatives_torch(fixed, warped, weight, self.radius_voxels)


def local_correlation_map(
    fixed: Float32, warped: Float32, *, radius_voxels: int = 2, mask: Bool | None = None
) -> Float32:
    """Compute the signed correlation in the box around each voxel, in [-1, 1].

    The box has ``2 radius_voxels + 1`` voxels along each axis and is cut at the borders of the volume and of the mask.
    It is 0 outside the mask and in flat windows (see `FLAT_WINDOW`). For several channels, the result is their mean.

    Parameters
    ----------
    fixed, warped : (I, J, K) or (I, J, K, C) float
        Images on one grid.
    radius_voxels : int
        Radius of the box, at least 1.
    mask : (I, J, K) bool, optional
        Voxels to compare. Default: all.

    Returns
    -------
    (I, J, K) float32

    Raises
    ------
    InputError
        The shapes differ, the mask is empty or the radius is below 1.
    """
    if radius_voxels < 1:
        raise InputError(f"local correlation: expected radius_voxels of at least 1, got {radius_voxels}")
    f, w, inside = checked_images(fixed, warped, mask)
    window = _Windows(f, w, inside, radius_voxels)
    signed: Float32 = (window.covariance / np.sqrt(window.product)).mean(axis=-1).astype(np.float32)
    return signed


def box_sum(values: NDArray[Any], radius_voxels: int) -> Float64:
    """Sum over the box of ``2 radius_voxels + 1`` voxels per axis around each voxel, with zeros beyond the borders.

    Running sums along the first three axes, so the cost does not depend on the radius. Further axes are independent.
    """
    width = 2 * radius_voxels + 1
    out = np.asarray(values, np.float64)
    for axis in range(3):
        out = uniform_filter1d(out, width, axis=axis, mode="constant")
    return out * float(width) ** 3


class _Windows:
    """Window sums of two (I, J, K, C) images for local correlation."""

    def __init__(self, f: Float64, w: Float64, inside: Bool, radius_voxels: int) -> None:
        self.inside = inside
        m = inside[..., None].astype(np.float64)
        # Images are centred first, to avoid cancellation in the differences of sums below.
        self.f, self.w = f - f[inside].mean(axis=0), w - w[inside].mean(axis=0)
        flat_fixed, flat_warped = (FLAT_WINDOW * x[inside].var(axis=0) for x in (f, w))
        n = np.maximum(box_sum(m, radius_voxels), 1)
        self.mean_fixed = box_sum(m * self.f, radius_voxels) / n
        self.mean_warped = box_sum(m * self.w, radius_voxels) / n
        self.covariance = box_sum(m * self.f * self.w, radius_voxels) - n * self.mean_fixed * self.mean_warped
        variance_fixed = box_sum(m * self.f**2, radius_voxels) - n * self.mean_fixed**2
        self.variance_warped = box_sum(m * self.w**2, radius_voxels) - n * self.mean_warped**2
        varied = inside[..., None] & (variance_fixed > n * flat_fixed)
        varied &= self.variance_warped > n * flat_warped
        self.covariance[~varied] = 0
        variance_fixed[~varied] = 1
        self.variance_warped[~varied] = 1
        self.product = variance_fixed * self.variance_warped

    def mean_square(self) -> float:
        return float((self.covariance**2 / self.product)[self.inside].mean())


def _derivatives_torch(
    fixed: Tensor, warped: Tensor, weight: Tensor, radius_voxels: int
) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    from atlasseg.similarity._torch import box_sum

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
