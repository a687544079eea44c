"""The compiled part of :mod:`atlasseg.registration.quality`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

if TYPE_CHECKING:
    from atlasseg.volume import Float64


@njit(cache=True, parallel=True)
def determinants(mapped_mm: Float64) -> Float64:
    """Determinant of the derivative of a map with respect to the voxel index.

    Parameters
    ----------
    mapped_mm : (I, J, K, 3) float64
        Where each voxel centre goes; at least 2 voxels along each axis.

    Returns
    -------
    (I, J, K) float64
        In mm^3 a voxel, by central differences, one-sided on the faces.
    """
    planes, rows, columns = mapped_mm.shape[:3]
    out = np.empty((planes, rows, columns))
    for i in prange(planes):
        i0, i1 = max(i - 1, 0), min(i + 1, planes - 1)
        for j in range(rows):
            j0, j1 = max(j - 1, 0), min(j + 1, rows - 1)
            for k in range(columns):
                k0, k1 = max(k - 1, 0), min(k + 1, columns - 1)
                a0 = mapped_mm[i1, j, k, 0] - mapped_mm[i0, j, k, 0]
                a1 = mapped_mm[i1, j, k, 1] - mapped_mm[i0, j, k, 1]
                a2 = mapped_mm[i1, j, k, 2] - mapped_mm[i0, j, k, 2]
                b0 = mapped_mm[i, j1, k, 0] - mapped_mm[i, j0, k, 0]
                b1 = mapped_mm[i, j1, k, 1] - mapped_mm[i, j0, k, 1]
                b2 = mapped_mm[i, j1, k, 2] - mapped_mm[i, j0, k, 2]
                c0 = mapped_mm[i, j, k1, 0] - mapped_mm[i, j, k0, 0]
                c1 = mapped_mm[i, j, k1, 1] - mapped_mm[i, j, k0, 1]
                c2 = mapped_mm[i, j, k1, 2] - mapped_mm[i, j, k0, 2]
                volume = a0 * (b1 * c2 - b2 * c1) - a1 * (b0 * c2 - b2 * c0) + a2 * (b0 * c1 - b1 * c0)
                out[i, j, k] = volume / ((i1 - i0) * (j1 - j0) * (k1 - k0))
    return out
