"""The joint histogram of two images and its derivatives, for the inner loop of registration on the CPU.

Every plane has a histogram of its own, and they are added in order: any number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from atlasseg.similarity._parzen import PADDING_BINS
from atlasseg.volume import Float32, Float64

Tables = Callable[[Float64, float, float], tuple[float, Float64, Float64]]
"""From a joint histogram (bins of fixed, bins of warped) that is not normalised, bins of the warped image in a unit of
intensity, and the number of voxels that count, to

- the value,
- a table (bins, bins): the derivative of a voxel is the sum of its spline's slopes times these,
- (bins,) the curvature of a voxel in each bin of the fixed image.
"""

SPLINE_VARIANCE = 1 / 3
"""Of a cubic B-spline, in bins: what the Parzen window alone spreads a value."""


def derivatives(
    tables: Tables, fixed: Float32, warped: Float32, weight: Float32, bins: int
) -> tuple[float, Float32, Float32]:
    """`SimilarityMetric.derivatives` of a metric of the joint histogram.

    Gauss-Newton has no exact form here. The curvature is that of the logarithm of a Gaussian instead: the warped
    intensities in each bin of the fixed image have a variance v, and the information falls with the square of a change
    of intensity over 2 v.
    """
    gradient, curvature = np.zeros_like(warped), np.zeros_like(warped)
    ends = _ranges(fixed, warped, weight)
    low_f, high_f, low_w, high_w = ends[:, 0].min(), ends[:, 1].max(), ends[:, 2].min(), ends[:, 3].max()
    if not (high_f > low_f and high_w > low_w):  # constant, or no voxel at all
        return 0.0, gradient, curvature
    inner = bins - 2 * PADDING_BINS
    scale_f, scale_w = inner / (high_f - low_f), inner / (high_w - low_w)
    joint = _histograms(fixed, warped, weight, low_f, scale_f, low_w, scale_w, bins, PADDING_BINS).sum(axis=0)
    value, table, spread = tables(joint, scale_w, float(np.count_nonzero(weight)))
    _gather(fixed, warped, weight, low_f, scale_f, low_w, scale_w, table, spread, PADDING_BINS, gradient, curvature)
    return value, gradient, curvature


def row_variances(joint: Float64) -> Float64:
    """(bins,) variance, in bins, of the warped intensities in each bin of the fixed ones, at least the spline's."""
    at = np.arange(joint.shape[1])
    share = np.maximum(joint.sum(axis=1), 1e-300)
    mean = joint @ at / share
    return np.asarray(np.maximum(joint @ at**2 / share - mean**2, SPLINE_VARIANCE))


@numba.njit(cache=True, nogil=True, parallel=True)
def _ranges(f, w, m):  # type: ignore[no-untyped-def]
    """(planes, 4): least and largest of both images where they count."""
    ni, nj, nk = f.shape
    out = np.empty((ni, 4))
    for i in numba.prange(ni):
        low_f, high_f, low_w, high_w = np.inf, -np.inf, np.inf, -np.inf
        for j in range(nj):
            for k in range(nk):
                if m[i, j, k] > 0:
                    low_f, high_f = min(low_f, f[i, j, k]), max(high_f, f[i, j, k])
                    low_w, high_w = min(low_w, w[i, j, k]), max(high_w, w[i, j, k])
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = low_f, high_f, low_w, high_w
    return out


@numba.njit(cache=True, nogil=True, parallel=True)
def _histograms(f, w, m, low_f, scale_f, low_w, scale_w, bins, padding):  # type: ignore[no-untyped-def]
    """(planes, bins, bins): the fixed image falls in hard bins, the warped one is spread by a cubic B-spline."""
    ni, nj, nk = f.shape
    out = np.zeros((ni, bins, bins))
    for i in numba.prange(ni):
        here = out[i]
        for j in range(nj):
            for k in range(nk):
                if m[i, j, k] > 0:
                    row = min(int((f[i, j, k] - low_f) * scale_f), bins - 2 * padding - 1) + padding
                    term = (w[i, j, k] - low_w) * scale_w + padding
                    first = min(int(term), bins - padding - 1) - 1
                    t = term - (first + 1)
                    into = here[row]
                    into[first] += (1 - t) ** 3 / 6
                    into[first + 1] += (4 - 6 * t**2 + 3 * t**3) / 6
                    into[first + 2] += (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6
                    if first + 3 < bins:
                        into[first + 3] += t**3 / 6
    return out


@numba.njit(cache=True, nogil=True, parallel=True)
def _gather(f, w, m, low_f, scale_f, low_w, scale_w, table, spread, padding, gradient, curvature):  # type: ignore[no-untyped-def]
    """Derivative of every voxel: the spline's slopes against its fixed bin's row of the table."""
    ni, nj, nk = f.shape
    bins = table.shape[0]
    for i in numba.prange(ni):
        for j in range(nj):
            for k in range(nk):
                if m[i, j, k] > 0:
                    row = min(int((f[i, j, k] - low_f) * scale_f), bins - 2 * padding - 1) + padding
                    term = (w[i, j, k] - low_w) * scale_w + padding
                    first = min(int(term), bins - padding - 1) - 1
                    t = term - (first + 1)
                    of = table[row]
                    slope = -((1 - t) ** 2) / 2 * of[first]
                    slope += (1.5 * t**2 - 2 * t) * of[first + 1]
                    slope += (0.5 + t - 1.5 * t**2) * of[first + 2]
                    if first + 3 < bins:
                        slope += t**2 / 2 * of[first + 3]
                    gradient[i, j, k] = slope
                    curvature[i, j, k] = spread[row]
