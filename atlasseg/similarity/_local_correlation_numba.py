"""Local correlation of two images and its derivative, fused for the inner loop of registration on the CPU.

The results are those of `LocalCorrelation.value_and_gradient` in float32, computed in tiles that fit into
the cache, in the bounding boxes of the mask only, and in one pass for all six window sums. The result of a tile depends
on its voxels only, and the sums of the tiles are added in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from atlasseg.similarity._moments import sums
from atlasseg.threads import run_slices

Float32 = NDArray[np.float32]

FLAT_WINDOW = 1e-6
"""A window whose variance is below this fraction of the image's variance is flat: its correlation is 0."""

TILE_I, TILE_J = 16, 24
"""Size of a tile along the first two axes; along the third it spans the mask."""


def lncc_gradient(
    fixed: Float32, warped: Float32, weight: Float32, *, radius_voxels: int = 2
) -> tuple[float, Float32, Float32]:
    """Compute the mean squared local correlation, and the derivatives of its *sum* over the mask in `warped`.

    Parameters
    ----------
    fixed, warped : (I, J, K) float32
        Intensities of a scale near 1, from the pyramid of the registration.
    weight : (I, J, K) float32
        1 inside the mask, 0 outside.
    radius_voxels : int
        The window has ``2 radius_voxels + 1`` voxels along each axis.

    Returns
    -------
    value : float
        In [0, 1]; 0 for an empty mask.
    gradient : (I, J, K) float32
        First derivative; 0 outside the mask.
    curvature : (I, J, K) float32
        Second derivative by Gauss-Newton with its sign changed; 0 or above.
    """
    a, b, c = (np.empty(fixed.shape, np.float32) for _ in range(3))
    count, total_f, total_w, squares_f, squares_w, _ = sums(fixed, warped, weight).sum(axis=0)
    if count == 0:
        return 0.0, np.zeros_like(warped), np.zeros_like(warped)
    flat_fixed, flat_warped = (
        np.float32(FLAT_WINDOW * max(squares / count - (total / count) ** 2, 1e-12))
        for total, squares in ((total_f, squares_f), (total_w, squares_w))
    )
    tiles = -(-weight.shape[0] // TILE_I) * -(-weight.shape[1] // TILE_J)
    spans, total = np.zeros((tiles, 2), np.int64), np.zeros(tiles)
    run_slices(_spans, tiles, weight, spans)
    run_slices(_terms, tiles, fixed, warped, weight, spans, radius_voxels, flat_fixed, flat_warped, a, b, c, total)
    gradient, curvature = (np.empty(warped.shape, np.float32) for _ in range(2))
    run_slices(_gather, tiles, fixed, warped, weight, spans, radius_voxels, a, b, c, gradient, curvature)
    return float(total.sum()) / count, gradient, curvature


@numba.njit(cache=True, nogil=True)
def _spans(start, stop, weight, spans):  # type: ignore[no-untyped-def]
    """Write (tiles, 2): first and last + 1 index along the third axis with a weight above 0; 0, 0 stay if none is."""
    ni, nj, nk = weight.shape
    tj = -(-nj // TILE_J)
    for tile in range(start, stop):
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


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _terms(start, stop, f, w, m, spans, r, flat_f, flat_w, a, b, c, total):  # type: ignore[no-untyped-def]
    """Per window a = 2 cov / (var_f var_w), b = a cov / var_w, c = a mean_f - b mean_w; (tiles,) total of a cov / 2."""
    ni, nj, nk = f.shape
    tj = -(-nj // TILE_J)
    width = 2 * r + 1
    for tile in range(start, stop):
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
        rows, pitch = j1 - j0, n + 2 * r  # rows of the tile's planes are contiguous, each with its margins
        left, right = max(0, k0 - r), min(nk, k1 + r)
        products = np.zeros((6, rows + 2 * r, pitch), np.float32)
        along, ring, sums = _planes(6, rows, pitch, width)
        acc = 0.0
        for p in range(i0 - r, i1 + r):
            for jj in range(rows + 2 * r):
                j = j0 - r + jj
                if p < 0 or p >= ni or j < 0 or j >= nj:
                    products[:, jj] = 0
                    continue
                fr, wr, mr = f[p, j, left:right], w[p, j, left:right], m[p, j, left:right]
                into = products[:, jj, left - (k0 - r) :]
                for k in range(right - left):
                    mf = mr[k] * fr[k]
                    mw = mr[k] * wr[k]
                    into[0, k] = mr[k]
                    into[1, k] = mf
                    into[2, k] = mw
                    into[3, k] = mf * fr[k]
                    into[4, k] = mw * wr[k]
                    into[5, k] = mf * wr[k]
            _windows(products, along, ring, (p - i0 + r) % width, sums, width, p >= i0 + r)
            if p < i0 + r:
                continue
            i = p - r
            for row in range(rows):
                j = j0 + row
                acc += _window_terms(
                    sums[:, row * pitch : row * pitch + n], m[i, j, k0:k1], flat_f, flat_w,
                    a[i, j, k0:k1], b[i, j, k0:k1], c[i, j, k0:k1],
                )  # fmt: skip
        total[tile] = acc


@numba.njit(cache=True, nogil=True)
def _planes(count, rows, pitch, width):  # type: ignore[no-untyped-def]
    """Work arrays of `_windows`: sums along the third axis of a plane, along two of `width` planes, along all three."""
    along = np.zeros((count, (rows + width - 1) * pitch), np.float32)
    ring = np.zeros((count, width, rows * pitch), np.float32)
    return along, ring, np.zeros((count, rows * pitch), np.float32)


@numba.njit(cache=True, nogil=True)
def _windows(products, along, ring, slot, sums, width, whole):  # type: ignore[no-untyped-def]
    """Add the next plane of products (Q, rows + width - 1, pitch); with `whole`, sum the last `width` planes.

    The sum of a window is at its first voxel along the third axis; the last ``width - 1`` values of a row are not used.
    """
    pitch = products.shape[2]
    for q in range(products.shape[0]):
        _add_shifted(products[q].ravel(), 1, width, along[q, : along.shape[1] - width + 1])
        _add_shifted(along[q], pitch, width, ring[q, slot])
        if whole:
            _add_shifted(ring[q].ravel(), ring.shape[2], width, sums[q])


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _add_shifted(line, step, width, out):  # type: ignore[no-untyped-def]
    """out[x] = sum of line[x + t step] for t from 0 to `width` - 1, an odd number, 3 or more."""
    one, two, three = line, line[step:], line[2 * step :]
    if width == 5:
        four, five = line[3 * step :], line[4 * step :]
        for x in range(out.size):
            out[x] = (one[x] + two[x]) + (three[x] + four[x]) + five[x]
        return
    for x in range(out.size):
        out[x] = one[x] + two[x] + three[x]
    for t in range(3, width, 2):
        four, five = line[t * step :], line[(t + 1) * step :]
        for x in range(out.size):
            out[x] += four[x] + five[x]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _window_terms(sums, m, flat_f, flat_w, a, b, c):  # type: ignore[no-untyped-def]
    s0, s1, s2, s3, s4, s5 = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
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
    for k in range(m.size):  # the sum of cov^2 / (var_f var_w), from the stored terms
        n = max(s0[k], one)
        acc += a[k] * (s5[k] - s1[k] * s2[k] / n)
    return acc / 2


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _gather(start, stop, f, w, m, spans, r, a, b, c, out, curvature):  # type: ignore[no-untyped-def]
    """Compute out = f S(a) - w S(b) - S(c) inside the mask, with the window sums S."""
    ni, nj, nk = f.shape
    tj = -(-nj // TILE_J)
    width = 2 * r + 1
    for tile in range(start, stop):
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
        rows, pitch = j1 - j0, n + 2 * r
        left, right = max(0, k0 - r), min(nk, k1 + r)
        products = np.zeros((3, rows + 2 * r, pitch), np.float32)
        along, ring, sums = _planes(3, rows, pitch, width)
        for p in range(i0 - r, i1 + r):
            for jj in range(rows + 2 * r):
                j = j0 - r + jj
                if p < 0 or p >= ni or j < 0 or j >= nj:
                    products[:, jj] = 0
                    continue
                into = products[:, jj, left - (k0 - r) :]
                ar, br, cr = a[p, j, left:right], b[p, j, left:right], c[p, j, left:right]
                for k in range(right - left):
                    into[0, k] = ar[k]
                    into[1, k] = br[k]
                    into[2, k] = cr[k]
            _windows(products, along, ring, (p - i0 + r) % width, sums, width, p >= i0 + r)
            if p < i0 + r:
                continue
            i = p - r
            for row in range(rows):
                j = j0 + row
                fr, wr, mr, o = f[i, j, k0:k1], w[i, j, k0:k1], m[i, j, k0:k1], out[i, j, k0:k1]
                at = row * pitch
                sa, sb, sc, h = sums[0, at : at + n], sums[1, at : at + n], sums[2, at : at + n], curvature[i, j, k0:k1]
                for k in range(n):
                    o[k] = mr[k] * (fr[k] * sa[k] - wr[k] * sb[k] - sc[k])
                    h[k] = mr[k] * sb[k]
