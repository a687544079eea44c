"""Local correlation of two images and its derivative, fused for the inner loop of registration on the CPU.

The same numbers as :func:`atlasseg.similarity.local_correlation_gradient` in float32, but cut into tiles that stay in
the cache, over the bounding boxes of the mask only, and in one pass for all six window sums. A tile's result depends
on nothing but its voxels, and the tiles' sums are added in order: any number of threads gives the same bits.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from atlasseg.similarity import FLAT_WINDOW

Float32 = NDArray[np.float32]

TILE_I, TILE_J = 16, 24
"""Voxels of a tile along the first two axes; along the third it spans the mask."""


def lncc_gradient(
    fixed: Float32, warped: Float32, weight: Float32, *, radius_voxels: int = 2
) -> tuple[float, Float32, Float32]:
    """Mean squared local correlation, and the derivatives of its *sum* over the mask in `warped`.

    Parameters
    ----------
    fixed, warped : (I, J, K) float32
        Of a scale near 1, as `pyramid` makes them.
    weight : (I, J, K) float32
        1 where voxels count, 0 elsewhere.
    radius_voxels : int
        The window has ``2 radius_voxels + 1`` voxels a side.

    Returns
    -------
    value : float
        In [0, 1]; 0 where no voxel counts.
    gradient : (I, J, K) float32
        First derivative; 0 outside the mask.
    curvature : (I, J, K) float32
        Gauss-Newton's second derivative, sign changed, so 0 or above.
    """
    a, b, c = (np.empty(fixed.shape, np.float32) for _ in range(3))
    inside = weight > 0
    count = int(np.count_nonzero(inside))
    if count == 0:
        return 0.0, np.zeros_like(warped), np.zeros_like(warped)
    flat_fixed, flat_warped = (np.float32(FLAT_WINDOW * max(float(x[inside].var()), 1e-12)) for x in (fixed, warped))
    spans = _spans(weight)
    total = float(_terms(fixed, warped, weight, spans, radius_voxels, flat_fixed, flat_warped, a, b, c).sum())
    gradient, curvature = (np.empty(warped.shape, np.float32) for _ in range(2))
    _gather(fixed, warped, weight, spans, radius_voxels, a, b, c, gradient, curvature)
    return total / count, gradient, curvature


@numba.njit(cache=True, nogil=True, parallel=True)
def _spans(weight):  # type: ignore[no-untyped-def]
    """(tiles, 2) int64: first and last + 1 index along the third axis where a tile has weight, or 0, 0."""
    ni, nj, nk = weight.shape
    ti, tj = -(-ni // TILE_I), -(-nj // TILE_J)
    spans = np.zeros((ti * tj, 2), np.int64)
    for tile in numba.prange(ti * tj):
        low, high = nk, 0
        for i in range((tile // tj) * TILE_I, min(ni, (tile // tj + 1) * TILE_I)):
            for j in range((tile % tj) * TILE_J, min(nj, (tile % tj + 1) * TILE_J)):
                row = weight[i, j]
                k = 0
                while k < low and row[k] == 0:
                    k += 1
                low = min(low, k)
                k = nk
                while k > high and row[k - 1] == 0:
                    k -= 1
                high = max(high, k)
        if high > low:
            spans[tile, 0], spans[tile, 1] = low, high
    return spans


@numba.njit(cache=True, nogil=True, parallel=True, error_model="numpy", fastmath={"contract", "nsz"})
def _terms(f, w, m, spans, r, flat_f, flat_w, a, b, c):  # type: ignore[no-untyped-def]
    """Per window a = 2 cov / (var_f var_w), b = a cov / var_w, c = a mean_f - b mean_w; (tiles,) sums of a cov / 2."""
    ni, nj, nk = f.shape
    tj = -(-nj // TILE_J)
    width = 2 * r + 1
    tiles = spans.shape[0]
    total = np.zeros(tiles)
    for tile in numba.prange(tiles):
        i0, j0 = (tile // tj) * TILE_I, (tile % tj) * TILE_J
        i1, j1 = min(ni, i0 + TILE_I), min(nj, j0 + TILE_J)
        k0, k1 = spans[tile, 0], spans[tile, 1]
        for i in range(i0, i1):
            for j in range(j0, j1):
                a[i, j, :] = 0
                b[i, j, :] = 0
                c[i, j, :] = 0
        n = k1 - k0
        if n == 0:
            continue
        rows = j1 - j0
        ring = np.zeros((6, rows, width, n), np.float32)
        boxes = np.zeros((6, rows + 2 * r, n), np.float32)
        products = np.zeros((6, n + 2 * r), np.float32)
        sums = np.zeros((6, n), np.float32)
        left, right = max(0, k0 - r), min(nk, k1 + r)
        offset = left - (k0 - r)
        acc = 0.0
        for p in range(i0 - r, i1 + r):
            if 0 <= p < ni:
                for jj in range(rows + 2 * r):
                    j = j0 - r + jj
                    if j < 0 or j >= nj:
                        boxes[:, jj] = 0
                        continue
                    fr, wr, mr = f[p, j, left:right], w[p, j, left:right], m[p, j, left:right]
                    p0, p1, p2 = products[0, offset:], products[1, offset:], products[2, offset:]
                    p3, p4, p5 = products[3, offset:], products[4, offset:], products[5, offset:]
                    for k in range(right - left):
                        mf = mr[k] * fr[k]
                        mw = mr[k] * wr[k]
                        p0[k] = mr[k]
                        p1[k] = mf
                        p2[k] = mw
                        p3[k] = mf * fr[k]
                        p4[k] = mw * wr[k]
                        p5[k] = mf * wr[k]
                    for q in range(6):
                        _windows_along(products[q], boxes[q, jj], width)
            else:
                boxes[:] = 0
            _windows_across(boxes, ring[:, :, (p - i0 + r) % width], width)
            if p < i0 + r:
                continue
            i = p - r
            for row in range(rows):
                for q in range(6):
                    _sum_rows(ring[q, row], sums[q])
                j = j0 + row
                acc += _window_terms(
                    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], m[i, j, k0:k1], flat_f, flat_w,
                    a[i, j, k0:k1], b[i, j, k0:k1], c[i, j, k0:k1],
                )  # fmt: skip
        total[tile] = acc
    return total


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _windows_along(values, out, width):  # type: ignore[no-untyped-def]
    """out[k] = sum of values[k : k + width]."""
    if width == 5:
        for k in range(out.size):
            out[k] = (values[k] + values[k + 1]) + (values[k + 2] + values[k + 3]) + values[k + 4]
        return
    for k in range(out.size):
        out[k] = values[k] + values[k + 1] + values[k + 2]
    for t in range(3, width, 2):
        one, two = values[t:], values[t + 1 :]
        for k in range(out.size):
            out[k] += one[k] + two[k]


@numba.njit(cache=True, nogil=True)
def _windows_across(boxes, out, width):  # type: ignore[no-untyped-def]
    """out[q, row] = sum of boxes[q, row : row + width]."""
    for q in range(out.shape[0]):
        for row in range(out.shape[1]):
            _sum_rows(boxes[q, row : row + width], out[q, row])


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _sum_rows(rows, out):  # type: ignore[no-untyped-def]
    """Out = sum of an odd number of rows, 3 or more."""
    one, two, three = rows[0], rows[1], rows[2]
    if rows.shape[0] == 5:
        four, five = rows[3], rows[4]
        for k in range(out.size):
            out[k] = (one[k] + two[k]) + (three[k] + four[k]) + five[k]
        return
    for k in range(out.size):
        out[k] = one[k] + two[k] + three[k]
    for t in range(3, rows.shape[0], 2):
        one, two = rows[t], rows[t + 1]
        for k in range(out.size):
            out[k] += one[k] + two[k]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _window_terms(s0, s1, s2, s3, s4, s5, m, flat_f, flat_w, a, b, c):  # type: ignore[no-untyped-def]
    one, zero = np.float32(1), np.float32(0)
    for k in range(m.size):
        n = max(s0[k], one)
        mean_f, mean_w = s1[k] / n, s2[k] / n
        var_f, var_w = s3[k] - s1[k] * mean_f, s4[k] - s2[k] * mean_w
        cov = s5[k] - s1[k] * mean_w
        use = (m[k] > zero) & (var_f > flat_f * n) & (var_w > flat_w * n)
        inverse = one / (var_f * var_w) if use else zero
        cov = cov if use else zero
        ak = (cov + cov) * inverse
        bk = ak * cov / (var_w if use else one)
        a[k] = ak
        b[k] = bk
        c[k] = ak * mean_f - bk * mean_w
    acc = 0.0
    for k in range(m.size):  # the sum of cov^2 / (var_f var_w), from what was just stored
        n = max(s0[k], one)
        acc += a[k] * (s5[k] - s1[k] * s2[k] / n)
    return acc / 2


@numba.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz"})
def _gather(f, w, m, spans, r, a, b, c, out, curvature):  # type: ignore[no-untyped-def]
    """Out = f S(a) - w S(b) - S(c) inside the mask, S the window sums."""
    ni, nj, nk = f.shape
    tj = -(-nj // TILE_J)
    width = 2 * r + 1
    for tile in numba.prange(spans.shape[0]):
        i0, j0 = (tile // tj) * TILE_I, (tile % tj) * TILE_J
        i1, j1 = min(ni, i0 + TILE_I), min(nj, j0 + TILE_J)
        k0, k1 = spans[tile, 0], spans[tile, 1]
        for i in range(i0, i1):
            for j in range(j0, j1):
                out[i, j, :] = 0
                curvature[i, j, :] = 0
        n = k1 - k0
        if n == 0:
            continue
        rows = j1 - j0
        ring = np.zeros((3, rows, width, n), np.float32)
        boxes = np.zeros((3, rows + 2 * r, n), np.float32)
        padded = np.zeros(n + 2 * r, np.float32)
        sums = np.zeros((3, n), np.float32)
        left, right = max(0, k0 - r), min(nk, k1 + r)
        offset = left - (k0 - r)
        inner = padded[offset : offset + right - left]
        for p in range(i0 - r, i1 + r):
            if 0 <= p < ni:
                for jj in range(rows + 2 * r):
                    j = j0 - r + jj
                    if j < 0 or j >= nj:
                        boxes[:, jj] = 0
                        continue
                    inner[:] = a[p, j, left:right]
                    _windows_along(padded, boxes[0, jj], width)
                    inner[:] = b[p, j, left:right]
                    _windows_along(padded, boxes[1, jj], width)
                    inner[:] = c[p, j, left:right]
                    _windows_along(padded, boxes[2, jj], width)
            else:
                boxes[:] = 0
            _windows_across(boxes, ring[:, :, (p - i0 + r) % width], width)
            if p < i0 + r:
                continue
            i = p - r
            for row in range(rows):
                j = j0 + row
                for q in range(3):
                    _sum_rows(ring[q, row], sums[q])
                fr, wr, mr, o = f[i, j, k0:k1], w[i, j, k0:k1], m[i, j, k0:k1], out[i, j, k0:k1]
                sa, sb, sc, h = sums[0], sums[1], sums[2], curvature[i, j, k0:k1]
                for k in range(n):
                    o[k] = mr[k] * (fr[k] * sa[k] - wr[k] * sb[k] - sc[k])
                    h[k] = mr[k] * sb[k]
