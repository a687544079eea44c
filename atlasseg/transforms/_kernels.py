"""Compiled loops of the transforms. Results are bitwise the same for any number of threads."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from atlasseg.volume import Float64

EDGE_VOXELS = 0.5 + 1e-6
"""Extent of a volume beyond the centres of its outermost voxels, in voxels: one half, with a tolerance for rounding."""


def cubic_taps(x: Float64, size: int) -> tuple[NDArray[np.int64], Float64]:
    """Index of the first of the 4 control points around each (N,) index x, and their (N, 4) weights; 0 if undefined."""
    base, weights = np.zeros(len(x), np.int64), np.zeros((len(x), 4))
    for n, value in enumerate(x):
        base[n] = cubic_weights(value, size, weights[n])
    return base, weights


@numba.njit(cache=True)
def cubic_weights(x, size, weights):  # type: ignore[no-untyped-def]
    """Fill the (4,) weights of the control points around index x; return the index of the first one, or -1 outside."""
    if x < 1 - 1e-9 or x > size - 2 + 1e-9:
        weights[:] = 0
        return -1
    base = min(max(int(np.floor(x)), 1), size - 3)
    t = x - base
    s = 1 - t
    weights[0] = s * s * s / 6
    weights[1] = 2 / 3 - t * t * (2 - t) / 2
    weights[2] = 2 / 3 - s * s * (2 - s) / 2
    weights[3] = t * t * t / 6
    return base - 1


@numba.njit(cache=True, nogil=True)
def map_points(start, stop, points, m, out):  # type: ignore[no-untyped-def]
    """Map (N, 3) points by an affine matrix, into `out`."""
    for n in range(start, stop):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        for a in range(3):
            out[n, a] = m[a, 0] * x + m[a, 1] * y + m[a, 2] * z + m[a, 3]


@numba.njit(cache=True, nogil=True)
def add_grid_points(start, stop, m, out):  # type: ignore[no-untyped-def]
    """Add the voxel centres of a grid with an affine matrix to `out`, (I, J, K, 3)."""
    for i in range(start, stop):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                for a in range(3):
                    out[i, j, k, a] += m[a, 0] * i + m[a, 1] * j + m[a, 2] * k + m[a, 3]


@numba.njit(cache=True, nogil=True)
def displace_linear(start, stop, points, field, inverse, out):  # type: ignore[no-untyped-def]
    """Add to `out`, (N, 3), the field at the points: interpolated linearly, 0 outside its grid."""
    last = np.array(field.shape[:3]) - 1
    for n in range(start, stop):
        low = np.empty(3, np.int64)
        high = np.empty(3, np.int64)
        t = np.empty(3)
        inside = True
        for a in range(3):
            x = inverse[a, 3]
            for b in range(3):
                x += inverse[a, b] * points[n, b]
            if not (x >= -EDGE_VOXELS and x <= last[a] + EDGE_VOXELS):
                inside = False
                break
            x = min(max(x, 0.0), float(last[a]))
            low[a] = int(x)
            high[a] = min(low[a] + 1, last[a])
            t[a] = x - low[a]
        if not inside:
            continue
        for corner in range(8):
            i, w = (high[0], t[0]) if corner & 4 else (low[0], 1 - t[0])
            j, v = (high[1], t[1]) if corner & 2 else (low[1], 1 - t[1])
            k, u = (high[2], t[2]) if corner & 1 else (low[2], 1 - t[2])
            w = w * v * u
            for a in range(3):
                out[n, a] += w * field[i, j, k, a]


@numba.njit(cache=True, nogil=True)
def displace_cubic(start, stop, points, field, inverse, out):  # type: ignore[no-untyped-def]
    """Add to `out`, (N, 3), the cubic B-spline with the coefficients `field` at the points."""
    for n in range(start, stop):
        first = np.empty(3, np.int64)
        weights = np.empty((3, 4))
        inside = True
        for a in range(3):
            x = inverse[a, 3]
            for b in range(3):
                x += inverse[a, b] * points[n, b]
            first[a] = cubic_weights(x, field.shape[a], weights[a])
            inside = inside and first[a] >= 0
        if not inside:
            continue
        for i in range(4):
            for j in range(4):
                w = weights[0, i] * weights[1, j]
                for k in range(4):
                    for a in range(3):
                        out[n, a] += w * weights[2, k] * field[first[0] + i, first[1] + j, first[2] + k, a]


@numba.njit(cache=True, nogil=True)
def add_separable(start, stop, field, first0, first1, first2, weights0, weights1, weights2, out):  # type: ignore[no-untyped-def]
    """Evaluate a spline on a grid parallel to its control grid, axis by axis: 4 + 4 + 4 products per voxel."""
    _, b, c, _ = field.shape
    for i in range(start, stop):
        plane = np.zeros((b, c, 3))
        if first0[i] >= 0:
            for tap in range(4):
                plane += weights0[i, tap] * field[first0[i] + tap]
        for j in range(out.shape[1]):
            line = np.zeros((c, 3))
            if first1[j] >= 0:
                for tap in range(4):
                    line += weights1[j, tap] * plane[first1[j] + tap]
            for k in range(out.shape[2]):
                for a in range(3):
                    value = 0.0
                    if first2[k] >= 0:
                        for tap in range(4):
                            value += weights2[k, tap] * line[first2[k] + tap, a]
                    out[i, j, k, a] = value
