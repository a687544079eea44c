"""Joint histogram of two images and its derivatives, for the inner loop of registration on the CPU.

Each plane has its own histogram, and they are added in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from atlasseg.similarity._parzen import PADDING_BINS
from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64

Tables = Callable[[Float64, float, float], tuple[float, Float64, Float64]]
"""Function of an unnormalised joint histogram (bins of fixed, bins of warped), the bins of the warped image per unit of
intensity, and the number of voxels in the mask. It returns

- the value,
- a table (bins, bins): the derivative of a voxel is the sum of the slopes of its spline times the table,
- the curvature (bins,) of a voxel in each bin of the fixed image.
"""

SPLINE_VARIANCE = 1 / 3
"""Variance of a cubic B-spline in bins: spread of a value by the Parzen window."""


def derivatives(
    tables: Tables, fixed: Float32, warped: Float32, weight: Float32, bins: int
) -> tuple[float, Float32, Float32]:
    """Compute `SimilarityMetric.derivatives` of a metric of the joint histogram.

    Gauss-Newton has no exact form here. Instead, the curvature is that of the logarithm of a Gaussian: the warped
    intensities in each bin of the fixed image have a variance v, and the information falls with the square of a change
    of intensity over 2 v.
    """
    gradient, curvature = np.zeros_like(warped), np.zeros_like(warped)
    planes = len(fixed)
    ends = np.empty((planes, 4))
    run_slices(_ranges, planes, fixed, warped, weight, ends)
    low_f, high_f, low_w, high_w = ends[:, 0].min(), ends[:, 1].max(), ends[:, 2].min(), ends[:, 3].max()
    if not (high_f > low_f and high_w > low_w):  # constant image or no voxel
        return 0.0, gradient, curvature
    inner = bins - 2 * PADDING_BINS
    scale_f, scale_w = inner / (high_f - low_f), inner / (high_w - low_w)
    inside = (low_f, scale_f, low_w, scale_w)
    joint = np.zeros((planes, bins, bins))
    run_slices(_histograms, planes, fixed, warped, weight, *inside, bins, PADDING_BINS, joint)
    value, table, spread = tables(joint.sum(axis=0), scale_w, float(np.count_nonzero(weight)))
    run_slices(_gather, planes, fixed, warped, weight, *inside, table, spread, PADDING_BINS, gradient, curvature)
    return value, gradient, curvature


def row_variances(joint: Float64) -> Float64:
    """Variance (bins,) of warped intensities in each bin of the fixed ones, in bins; at least that of the spline."""
    at = np.arange(joint.shape[1])
    share = np.maximum(joint.sum(axis=1), 1e-300)
    mean = joint @ at / share
    return np.asarray(np.maximum(joint @ at**2 / share - mean**2, SPLINE_VARIANCE))


@numba.njit(cache=True, nogil=True)
def _ranges(start, stop, f, w, m, out):  # type: ignore[no-untyped-def]
    """(planes, 4): minimum and maximum of both images inside the mask."""
    _, nj, nk = f.shape
    for i in range(start, stop):
        low_f, high_f, low_w, high_w = np.inf, -np.inf, np.inf, -np.inf
        for j in range(nj):
            for k in range(nk):
                if m[i, j, k] > 0:
                    low_f, high_f = min(low_f, f[i, j, k]), max(high_f, f[i, j, k])
                    low_w, high_w = min(low_w, w[i, j, k]), max(high_w, w[i, j, k])
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = low_f, high_f, low_w, high_w


@numba.njit(cache=True, nogil=True)
def _histograms(start, stop, f, w, m, low_f, scale_f, low_w, scale_w, bins, padding, out):  # type: ignore[no-untyped-def]
    """(planes, bins, bins): hard bins of the fixed image, cubic B-spline window on the warped one."""
    _, nj, nk = f.shape
    for i in range(start, stop):
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


@numba.njit(cache=True, nogil=True)
def _gather(start, stop, f, w, m, low_f, scale_f, low_w, scale_w, table, spread, padding, gradient, curvature):  # type: ignore[no-untyped-def]
    """Derivative of each voxel: slopes of the spline times the table row of its fixed bin."""
    _, nj, nk = f.shape
    bins = table.shape[0]
    for i in range(start, stop):
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
