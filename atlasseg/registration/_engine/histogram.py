"""Mutual information of two images and its derivative, for the inner loop of registration on the CPU.

The same numbers as :func:`atlasseg.similarity.mutual_information_gradient` and its normalised sister. Every plane has a
histogram of its own, and they are added in order: any number of threads gives the same bits.

References
----------
.. [1] Mattes, D., et al. (2003). PET-CT image registration in the chest using free-form deformations. IEEE Trans Med
   Imaging 22(1), 120-128 (equations 4 to 12).
.. [2] Studholme, C., Hill, D. L. G., Hawkes, D. J. (1999). An overlap invariant entropy measure of 3D medical image
   alignment. Pattern Recognition 32(1), 71-86.
"""

from __future__ import annotations

import numba
import numpy as np

from atlasseg.similarity import PADDING_BINS, information, normalized_information
from atlasseg.volume import Float32, Float64

BINS = 32

SPLINE_VARIANCE = 1 / 3
"""Of a cubic B-spline, in bins: what the Parzen window alone spreads a value."""


def information_gradient(
    fixed: Float32, warped: Float32, weight: Float32, *, normalized: bool
) -> tuple[float, Float32, Float32]:
    """Mutual information in nats, or the normalised less 1; and the derivatives of it times the voxels in `warped`.

    Parameters, result and errors as in :func:`atlasseg.registration._engine.lncc.lncc_gradient`. Gauss-Newton has no
    exact form here. Its place takes the curvature of the logarithm of a Gaussian: the warped intensities in each bin of
    the fixed image have a variance v, and the information falls with the square of a change of intensity over 2 v.
    """
    gradient, curvature = np.zeros_like(warped), np.zeros_like(warped)
    ends = _ranges(fixed, warped, weight)
    low_f, high_f, low_w, high_w = ends[:, 0].min(), ends[:, 1].max(), ends[:, 2].min(), ends[:, 3].max()
    if not (high_f > low_f and high_w > low_w):  # constant, or no voxel at all
        return 0.0, gradient, curvature
    inner = BINS - 2 * PADDING_BINS
    scale_f, scale_w = inner / (high_f - low_f), inner / (high_w - low_w)
    joint = _histograms(fixed, warped, weight, low_f, scale_f, low_w, scale_w, BINS, PADDING_BINS).sum(axis=0)
    value, table, spread = tables(joint, scale_w, float(np.count_nonzero(weight)), normalized=normalized)
    _gather(fixed, warped, weight, low_f, scale_f, low_w, scale_w, table, spread, PADDING_BINS, gradient, curvature)
    return value, gradient, curvature


def tables(joint: Float64, scale: float, count: float, *, normalized: bool) -> tuple[float, Float64, Float64]:
    """Value of a joint histogram, and what its derivatives in the voxels are looked up in.

    Parameters
    ----------
    joint : (bins of fixed, bins of warped) float64
        Not normalised.
    scale : float
        Bins of the warped image in a unit of intensity.
    count : float
        Voxels that count.

    Returns
    -------
    value : float
    table : (bins, bins) float64
        The derivative of a voxel is the sum of its spline's slopes times these.
    spread : (bins,) float64
        The curvature of a voxel in each bin of the fixed image.
    """
    total = float(joint.sum())
    joint = joint / total
    value, of_joint = (normalized_information if normalized else information)(joint)
    spread = scale**2 / row_variances(joint)
    if normalized:
        positive = joint[joint > 0]
        spread *= value / -float((positive * np.log(positive)).sum())
        value -= 1
    return value, (of_joint - float((of_joint * joint).sum())) * (scale * count / total), spread


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
