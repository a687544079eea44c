"""Displacement fields on the CPU: compiled loops to sample, differentiate, smooth and compose.

Fields are (I, J, K, 3) float32 in voxels of their own grid. Every output voxel depends on the inputs only, so the
results are identical for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.threads import run_slices

Float32 = NDArray[np.float32]

EDGE_VOXELS = 0.5
"""An image is known up to this distance beyond the centres of its outermost voxels."""

TRUNCATE_SIGMAS = 3.0
"""Radius of Gaussian kernels, in standard deviations."""


def make_gaussian_taps(sigma_voxels: float) -> Float32:
    """Compute Gaussian weights (2 r + 1,) with sum 1, truncated at `TRUNCATE_SIGMAS`."""
    radius = int(np.ceil(TRUNCATE_SIGMAS * sigma_voxels - 0.5))
    x = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (x / max(sigma_voxels, 1e-6)) ** 2)
    return np.asarray(taps / taps.sum(), np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def warp(start, stop, moving, known, mask, matrix, field, warped, weight):  # type: ignore[no-untyped-def]
    """Warp an image: warped(x) = moving(matrix (x + field(x))), linear, edges repeated; weight is 1 where it is known.

    known : (I, J, K) uint8 of the moving image, or of size 0 if all of it is known; taken at the nearest voxel.
    mask : (I, J, K) uint8 of the fixed grid: 0 compute nothing, 1 value, 2 value and weight.
    """
    _, nj, nk = warped.shape
    ma, mb, mc = moving.shape
    m = matrix.astype(np.float32)
    edge = np.float32(EDGE_VOXELS)
    zero, half = np.float32(0), np.float32(0.5)
    la, lb, lc = np.float32(ma - 1), np.float32(mb - 1), np.float32(mc - 1)
    has_known = known.size > 0
    for i in range(start, stop):
        for j in range(nj):
            row = mask[i, j]
            out, wt, u = warped[i, j], weight[i, j], field[i, j]
            for k in range(nk):
                wt[k] = zero
                if row[k] == 0:
                    out[k] = zero
                    continue
                x, y, z = np.float32(i) + u[k, 0], np.float32(j) + u[k, 1], np.float32(k) + u[k, 2]
                a = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
                b = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
                c = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                inside = (a >= -edge) & (b >= -edge) & (c >= -edge)
                inside &= (a <= la + edge) & (b <= lb + edge) & (c <= lc + edge)
                a, b, c = min(max(a, zero), la), min(max(b, zero), lb), min(max(c, zero), lc)
                i0, j0, k0 = int(a), int(b), int(c)
                i1, j1, k1 = min(i0 + 1, ma - 1), min(j0 + 1, mb - 1), min(k0 + 1, mc - 1)
                fa, fb, fc = a - np.float32(i0), b - np.float32(j0), c - np.float32(k0)
                r00, r01, r10, r11 = moving[i0, j0], moving[i0, j1], moving[i1, j0], moving[i1, j1]
                v00 = r00[k0] + fc * (r00[k1] - r00[k0])
                v01 = r01[k0] + fc * (r01[k1] - r01[k0])
                v10 = r10[k0] + fc * (r10[k1] - r10[k0])
                v11 = r11[k0] + fc * (r11[k1] - r11[k0])
                v0 = v00 + fb * (v01 - v00)
                v1 = v10 + fb * (v11 - v10)
                out[k] = v0 + fa * (v1 - v0)
                if row[k] == 2 and inside:
                    if has_known and known[int(a + half), int(b + half), int(c + half)] == 0:
                        continue
                    wt[k] = np.float32(1)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def metric_gradient(start, stop, gradient, warped, scale, add, spans, out):  # type: ignore[no-untyped-def]
    """Compute out = gradient times slope of `warped` times `scale` (3,): derivative for a small step before the warp.

    With `add` the result is added to `out`, as for several channels. Outside the spans `out` is not changed.
    """
    ni, nj, nk = warped.shape
    s0, s1, s2 = np.float32(scale[0] / 2), np.float32(scale[1] / 2), np.float32(scale[2] / 2)
    for i in range(start, stop):
        before, after = max(i - 1, 0), min(i + 1, ni - 1)
        for j in range(nj):
            g, o = gradient[i, j], out[i, j]
            a0, a1, b0, b1 = (
                warped[before, j],
                warped[after, j],
                warped[i, max(j - 1, 0)],
                warped[i, min(j + 1, nj - 1)],
            )
            row = warped[i, j]
            k0, k1 = spans[i, j, 0], spans[i, j, 1]
            if not add:
                o[k0:k1] = 0
            for k in range(k0, k1):
                o[k, 0] += s0 * g[k] * (a1[k] - a0[k])
                o[k, 1] += s1 * g[k] * (b1[k] - b0[k])
            for k in range(max(k0, 1), min(k1, nk - 1)):
                o[k, 2] += s2 * g[k] * (row[k + 1] - row[k - 1])
            if k1 > k0 and nk > 1:
                if k0 == 0:
                    o[0, 2] += s2 * g[0] * (row[1] - row[0])
                if k1 == nk:
                    o[nk - 1, 2] += s2 * g[nk - 1] * (row[nk - 1] - row[nk - 2])


def find_row_spans(inside: NDArray[np.bool_], reach: Sequence[int]) -> NDArray[np.int64]:
    """Compute the span (I, J, 2) along the third axis, first and last + 1, that is within `reach` of the inside.

    `reach` is in voxels along each axis: the radius of a smoothing of values inside. Rows without a span get 0 and 0.
    """
    nk = inside.shape[2]
    some = inside.any(axis=2)
    first = np.where(some, inside.argmax(axis=2) - reach[2], nk)
    stop = np.where(some, nk - inside[:, :, ::-1].argmax(axis=2) + reach[2], 0)
    for axis in range(2):
        first = ndimage.minimum_filter1d(first, 2 * reach[axis] + 1, axis=axis, mode="constant", cval=nk)
        stop = ndimage.maximum_filter1d(stop, 2 * reach[axis] + 1, axis=axis, mode="constant", cval=0)
    spans = np.stack([np.clip(first, 0, nk), np.clip(stop, 0, nk)], axis=-1)
    spans[spans[..., 0] >= spans[..., 1]] = 0
    return np.ascontiguousarray(spans, dtype=np.int64)


def smooth(
    field: Float32, sigma_voxels: Sequence[float], out: Float32, scratch: Float32, spans: NDArray[np.int64]
) -> None:
    """Smooth a field of 3 components by a Gaussian, edges repeated; `out` may be `field`.

    Computes only within `spans`; `field` and `scratch` must be 0 beyond them, unless the spans are whole rows.
    """
    taps = [make_gaussian_taps(s) for s in sigma_voxels]
    if all(t.size == 1 for t in taps):
        if out is not field:
            out[...] = field
        return
    flat = (*field.shape[:2], -1)
    run_slices(_smooth_planes, len(field), field.reshape(flat), taps[1], taps[2], spans, scratch.reshape(flat))
    run_slices(_smooth_first, field.shape[1], scratch.reshape(flat), taps[0], spans, out.reshape(flat))


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _smooth_planes(start, stop, values, taps_j, taps_k, spans, out):  # type: ignore[no-untyped-def]
    """Smooth along the second and third axes, with 3 interleaved components on the third; symmetric taps."""
    _, nj, n = values.shape
    rj, rk = taps_j.size // 2, taps_k.size // 2
    for i in range(start, stop):
        line = np.empty(n + 6 * rk, np.float32)
        for j in range(nj):
            k0, k1 = spans[i, j, 0], spans[i, j, 1]
            if k0 == k1:
                continue
            low, high = max(3 * (k0 - rk), 0), min(3 * (k1 + rk), n)
            inner = line[3 * rk + low : 3 * rk + high]
            _scale(values[i, j, low:high], taps_j[rj], inner)
            for t in range(1, rj + 1):
                before, after = values[i, max(j - t, 0), low:high], values[i, min(j + t, nj - 1), low:high]
                _add_both(before, after, taps_j[rj + t], inner)
            for t in range(3 * rk):
                if low == 0:
                    line[t] = inner[t % 3]
                if high == n:
                    line[3 * rk + n + t] = inner[inner.size - 3 + t % 3]
            row = out[i, j, 3 * k0 : 3 * k1]
            _scale(line[3 * (k0 + rk) :], taps_k[rk], row)
            for t in range(1, rk + 1):
                _add_both(line[3 * (k0 + rk - t) :], line[3 * (k0 + rk + t) :], taps_k[rk + t], row)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _smooth_first(start, stop, values, taps, spans, out):  # type: ignore[no-untyped-def]
    ni = values.shape[0]
    r = taps.size // 2
    for j in range(start, stop):
        for i in range(ni):
            low, high = 3 * spans[i, j, 0], 3 * spans[i, j, 1]
            row = out[i, j, low:high]
            _scale(values[i, j, low:high], taps[r], row)
            for t in range(1, r + 1):
                before, after = values[max(i - t, 0), j, low:high], values[min(i + t, ni - 1), j, low:high]
                _add_both(before, after, taps[r + t], row)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _scale(row, factor, out):  # type: ignore[no-untyped-def]
    for q in range(out.size):
        out[q] = factor * row[q]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _add_both(one, two, factor, out):  # type: ignore[no-untyped-def]
    for q in range(out.size):
        out[q] += factor * (one[q] + two[q])


def largest_square(field: Float32) -> np.float32:
    """Find the largest squared length of the vectors of a field."""
    best = np.zeros(len(field), np.float32)
    run_slices(_largest_squares, len(field), field, best)
    largest: np.float32 = best.max()
    return largest


@numba.njit(cache=True, nogil=True)
def _largest_squares(start, stop, field, best):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        top = np.float32(0)
        for j in range(field.shape[1]):
            row = field[i, j]
            for k in range(row.shape[0]):
                top = max(top, row[k, 0] * row[k, 0] + row[k, 1] * row[k, 1] + row[k, 2] * row[k, 2])
        best[i] = top


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def compose(start, stop, field, step, scale, out):  # type: ignore[no-untyped-def]
    """Compose fields: out(x) = s(x) + field(x + s(x)) with s = scale * step; field is constant beyond its borders."""
    ni, nj, nk = field.shape[:3]
    zero = np.float32(0)
    la, lb, lc = np.float32(ni - 1), np.float32(nj - 1), np.float32(nk - 1)
    f = np.float32(scale)
    for i in range(start, stop):
        for j in range(nj):
            s, o, here = step[i, j], out[i, j], field[i, j]
            for k in range(nk):
                s0, s1, s2 = f * s[k, 0], f * s[k, 1], f * s[k, 2]
                if s0 == zero and s1 == zero and s2 == zero:
                    o[k, 0], o[k, 1], o[k, 2] = here[k, 0], here[k, 1], here[k, 2]
                    continue
                a = min(max(np.float32(i) + s0, zero), la)
                b = min(max(np.float32(j) + s1, zero), lb)
                c = min(max(np.float32(k) + s2, zero), lc)
                i0, j0, k0 = int(a), int(b), int(c)
                i1, j1, k1 = min(i0 + 1, ni - 1), min(j0 + 1, nj - 1), min(k0 + 1, nk - 1)
                fa, fb, fc = a - np.float32(i0), b - np.float32(j0), c - np.float32(k0)
                r00, r01, r10, r11 = field[i0, j0], field[i0, j1], field[i1, j0], field[i1, j1]
                for d in range(3):
                    v00 = r00[k0, d] + fc * (r00[k1, d] - r00[k0, d])
                    v01 = r01[k0, d] + fc * (r01[k1, d] - r01[k0, d])
                    v10 = r10[k0, d] + fc * (r10[k1, d] - r10[k0, d])
                    v11 = r11[k0, d] + fc * (r11[k1, d] - r11[k0, d])
                    v0 = v00 + fb * (v01 - v00)
                    v1 = v10 + fb * (v11 - v10)
                    o[k, d] = v0 + fa * (v1 - v0)
                o[k, 0] += s0
                o[k, 1] += s1
                o[k, 2] += s2


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def add_moving_slope(start, stop, moving, matrix, field, gradient, scale, out):  # type: ignore[no-untyped-def]
    """Add scale * gradient(x) times the derivative of the linearly sampled value in field(x) to `out`."""
    _, nj, nk = gradient.shape
    ma, mb, mc = moving.shape
    m = matrix.astype(np.float32)
    zero = np.float32(0)
    la, lb, lc = np.float32(ma - 1), np.float32(mb - 1), np.float32(mc - 1)
    for i in range(start, stop):
        for j in range(nj):
            g, o, u = gradient[i, j], out[i, j], field[i, j]
            for k in range(nk):
                if g[k] == zero:
                    continue
                x, y, z = np.float32(i) + u[k, 0], np.float32(j) + u[k, 1], np.float32(k) + u[k, 2]
                a = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
                b = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
                c = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                in_a = (a >= zero) & (a <= la)
                in_b = (b >= zero) & (b <= lb)
                in_c = (c >= zero) & (c <= lc)
                a, b, c = min(max(a, zero), la), min(max(b, zero), lb), min(max(c, zero), lc)
                i0, j0, k0 = int(a), int(b), int(c)
                i1, j1, k1 = min(i0 + 1, ma - 1), min(j0 + 1, mb - 1), min(k0 + 1, mc - 1)
                fa, fb, fc = a - np.float32(i0), b - np.float32(j0), c - np.float32(k0)
                r00, r01, r10, r11 = moving[i0, j0], moving[i0, j1], moving[i1, j0], moving[i1, j1]
                d00, d01, d10, d11 = r00[k1] - r00[k0], r01[k1] - r01[k0], r10[k1] - r10[k0], r11[k1] - r11[k0]
                v00, v01 = r00[k0] + fc * d00, r01[k0] + fc * d01
                v10, v11 = r10[k0] + fc * d10, r11[k0] + fc * d11
                v0, v1 = v00 + fb * (v01 - v00), v10 + fb * (v11 - v10)
                s = scale * g[k]
                sa = s * (v1 - v0) if in_a else zero
                sb = s * ((v01 - v00) + fa * ((v11 - v10) - (v01 - v00))) if in_b else zero
                d0, d1 = d00 + fb * (d01 - d00), d10 + fb * (d11 - d10)
                sc = s * (d0 + fa * (d1 - d0)) if in_c else zero
                o[k, 0] += m[0, 0] * sa + m[1, 0] * sb + m[2, 0] * sc
                o[k, 1] += m[0, 1] * sa + m[1, 1] * sb + m[2, 1] * sc
                o[k, 2] += m[0, 2] * sa + m[1, 2] * sb + m[2, 2] * sc
