"""Folds of a displacement field: find them, and smooth the field locally until there are none.

The map ``x + u(x)`` of a linearly interpolated field is one to one where its Jacobian determinant is positive at every
corner of every cell between voxels. At a voxel these are the determinants of the eight combinations of forward and
backward differences along the axes [1]_. Where one of them is too small, the field is smoothed by a Gaussian, blended
into the unchanged field around. Region and Gaussian grow from round to round, so that the repair always ends: a field
that is smoothed everywhere becomes constant.

References
----------
.. [1] Karacali, B., Davatzikos, C. (2004). Estimating topology preserving and smooth displacement fields. IEEE Trans
   Med Imaging 23(7), 868-880.
"""

from __future__ import annotations

import numba
import numpy as np
from scipy import ndimage

from atlasseg.registration._engine import fields
from atlasseg.threads import run_slices
from atlasseg.volume import Float32

LEAST_DETERMINANT = 0.01
"""Voxels with a smaller determinant count as folded; above 0, since results are stored in float32."""


def compute_least_determinants(field: Float32) -> Float32:
    """Compute the smallest Jacobian determinant of ``x + u(x)`` at every voxel.

    Parameters
    ----------
    field : (I, J, K, 3) float32
        Displacement u in voxels. Beyond the grid it continues unchanged from the border.

    Returns
    -------
    (I, J, K) float32
        Minimum of the eight determinants by one-sided differences and the one by central differences.
    """
    out = np.empty(field.shape[:3], np.float32)
    run_slices(_least, len(out), np.ascontiguousarray(field), out)
    return out


def repair(field: Float32, *, least: float = LEAST_DETERMINANT) -> tuple[Float32, int]:
    """Smooth a field around its folds until it has none.

    Parameters
    ----------
    field : (I, J, K, 3) float32
        Displacement in voxels.
    least : float
        Determinants up to this count as folded; 0 or above, below 1.

    Returns
    -------
    field : (I, J, K, 3) float32
        The given field if nothing is folded; else a new field, changed only around the folds.
    folded : int
        Number of folded voxels of the given field.
    """
    folded = compute_least_determinants(field) <= least
    count = int(folded.sum())
    sigma, region, reach = 1.0, np.zeros(folded.shape, bool), 1
    while folded.any():
        region = ndimage.binary_dilation(region | folded, ndimage.generate_binary_structure(3, 3), iterations=reach)
        blend = ndimage.gaussian_filter(region.astype(np.float32), 1.0, mode="nearest")
        blend = np.maximum(blend, region).astype(np.float32)[..., None]
        smoothed, scratch = np.empty_like(field), np.empty_like(field)
        everywhere = fields.find_row_spans(np.ones(folded.shape, bool), (0, 0, 0))
        fields.smooth(np.ascontiguousarray(field), (sigma, sigma, sigma), smoothed, scratch, everywhere)
        field = field + blend * (smoothed - field)
        folded = compute_least_determinants(field) <= least
        sigma, reach = sigma * 1.3, reach + 1
    return field, count


@numba.njit(cache=True, nogil=True)
def _least(start, stop, u, out):  # type: ignore[no-untyped-def]
    ni, nj, nk = out.shape
    for i in range(start, stop):
        a, b, c = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))  # backward, forward, central; component
        for j in range(nj):
            for k in range(nk):
                for n in range(3):
                    here = np.float64(u[i, j, k, n])
                    a[0, n] = here - u[max(i - 1, 0), j, k, n]
                    a[1, n] = u[min(i + 1, ni - 1), j, k, n] - here
                    b[0, n] = here - u[i, max(j - 1, 0), k, n]
                    b[1, n] = u[i, min(j + 1, nj - 1), k, n] - here
                    c[0, n] = here - u[i, j, max(k - 1, 0), n]
                    c[1, n] = u[i, j, min(k + 1, nk - 1), n] - here
                for s in range(2):
                    a[s, 0] += 1
                    b[s, 1] += 1
                    c[s, 2] += 1
                for n in range(3):
                    a[2, n] = (a[0, n] + a[1, n]) / 2
                    b[2, n] = (b[0, n] + b[1, n]) / 2
                    c[2, n] = (c[0, n] + c[1, n]) / 2
                least = _determinant(a[2], b[2], c[2])
                for x in range(2):
                    for y in range(2):
                        for z in range(2):
                            least = min(least, _determinant(a[x], b[y], c[z]))
                out[i, j, k] = least


@numba.njit(cache=True, nogil=True)
def _determinant(a, b, c):  # type: ignore[no-untyped-def]
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
