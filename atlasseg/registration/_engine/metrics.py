"""The similarity that registration climbs: one of five measures, each with its derivatives in the warped image.

All are greater where the images are more alike, and of a scale near 1. ``measure`` returns the value, and the first
and the second derivative (sign changed, so 0 or above, as Gauss-Newton has it) of the value *times the number of voxels
that count*, in every voxel of the warped image, for weights held as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numba
import numpy as np

from atlasseg.errors import InputError
from atlasseg.registration._engine import histogram, lncc
from atlasseg.volume import Float32, Float64

Metric = Literal[
    "local_correlation", "correlation", "mean_squares", "mutual_information", "normalized_mutual_information"
]

FLAT = 1e-12
"""Variances, of intensities that span 0 to 1, below this are nothing."""


@dataclass(frozen=True)
class Similarity:
    """What is optimised.

    Attributes
    ----------
    metric : str
        `local_correlation` (mean squared, whatever the contrast), `correlation` (global, signed), `mean_squares` (minus
        the mean squared difference over the fixed image's variance), `mutual_information` (nats) or
        `normalized_mutual_information` (less 1, its value for independent images).
    radius_voxels : int
        Of the windows of the local correlation.

    Raises
    ------
    InputError
        There is no such metric, or the radius is below 1.
    """

    metric: Metric = "local_correlation"
    radius_voxels: int = 2

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise InputError(f"metric must be one of {', '.join(get_args(Metric))}; got {self.metric!r}")
        if self.radius_voxels < 1:
            raise InputError(f"radius_voxels must be 1 or above, got {self.radius_voxels}")

    def __str__(self) -> str:
        return self.metric.replace("_", " ")

    def measure(self, fixed: Float32, warped: Float32, weight: Float32) -> tuple[float, Float32, Float32]:
        """Value, first and second derivative; all (I, J, K), `weight` 1 where voxels count and 0 elsewhere."""
        if self.metric == "local_correlation":
            return lncc.lncc_gradient(fixed, warped, weight, radius_voxels=self.radius_voxels)
        if self.metric in ("mutual_information", "normalized_mutual_information"):
            normalized = self.metric == "normalized_mutual_information"
            return histogram.information_gradient(fixed, warped, weight, normalized=normalized)
        value, factors = quadratic(self.metric, lncc.sums(fixed, warped, weight).sum(axis=0))
        gradient, curvature = np.empty_like(warped), np.empty_like(warped)
        _combined(fixed, warped, weight, *factors.astype(np.float32), gradient, curvature)
        return float(value), gradient, curvature


def quadratic(metric: Metric, sums: Float64) -> tuple[Float64, Float64]:
    """Correlation or mean squares from the sums (..., 6), where voxels count, of 1, f, w, f f, w w and f w.

    Returns
    -------
    value : (...) float64
    factors : (..., 4) float64
        The derivative is ``a f + b w + c``, the curvature d. That of the correlation leaves out the mean and the scale
        that the correlation takes off, a part of rank two: it is no less than Gauss-Newton's.
    """
    n = np.maximum(sums[..., 0], 1)
    mean_f, mean_w, ff, ww, fw = np.moveaxis(sums[..., 1:] / n[..., None], -1, 0)
    var_f, var_w = np.maximum(ff - mean_f**2, FLAT), np.maximum(ww - mean_w**2, FLAT)
    zero = np.zeros_like(n)
    if metric == "mean_squares":
        return -(ff - 2 * fw + ww) / var_f, np.stack([2 / var_f, -2 / var_f, zero, 2 / var_f], axis=-1)
    norm = np.sqrt(var_f * var_w)
    r = (fw - mean_f * mean_w) / norm
    factors = np.stack([1 / norm, -r / var_w, r * mean_w / var_w - mean_f / norm, 1 / var_w], axis=-1)
    flat = (var_f <= FLAT) | (var_w <= FLAT)
    return np.where(flat, 0, r), np.where(flat[..., None], 0, factors)


@numba.njit(cache=True, nogil=True, parallel=True)
def _combined(f, w, m, a, b, c, d, gradient, curvature):  # type: ignore[no-untyped-def]
    ni, nj, nk = f.shape
    for i in numba.prange(ni):
        for j in range(nj):
            for k in range(nk):
                gradient[i, j, k] = m[i, j, k] * (a * f[i, j, k] + b * w[i, j, k] + c)
                curvature[i, j, k] = m[i, j, k] * d
