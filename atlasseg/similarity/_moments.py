"""Moments for mean squares and correlation: sums over the voxels of the mask, on the CPU and by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numba
import numpy as np

from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor

FLAT = 1e-12
"""Variances below this are 0, for intensities of 0 to 1."""

Quadratic = Callable[[Float64], tuple[Float64, Float64]]
"""Function of the sums (..., 6) of `sums` that returns the value (...) and the factors (..., 4) a, b, c and d.

The derivative of the value is ``a fixed + b warped + c``, the curvature d.
"""


def derivatives(
    quadratic: Quadratic, fixed: Float32, warped: Float32, weight: Float32
) -> tuple[float, Float32, Float32]:
    """Compute `SimilarityMetric.derivatives` of a metric that is a function of the sums."""
    value, factors = quadratic(sums(fixed, warped, weight).sum(axis=0))
    gradient, curvature = np.empty_like(warped), np.empty_like(warped)
    run_slices(_combine, len(fixed), fixed, warped, weight, *factors.astype(np.float32), gradient, curvature)
    return float(value), gradient, curvature


def derivatives_torch(
    quadratic: Quadratic, fixed: Tensor, warped: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `derivatives` by torch, of many warped images."""
    import torch

    from atlasseg.similarity._torch import like

    f, w = fixed * weight, warped * weight
    terms = weight, f, w, f * fixed, w * warped, f * warped
    summed = torch.stack([t.sum(dim=(1, 2, 3, 4), dtype=torch.float64) for t in terms], dim=-1)
    value, factors = quadratic(summed.cpu().numpy())
    a, b, c, d = like(factors.T, warped)[..., None, None, None, None]
    return like(value, warped), (a * fixed + b * warped + c) * weight, d * weight


def central(summed: Float64) -> tuple[Float64, Float64, Float64, Float64, Float64, Float64, Float64]:
    """Compute means of f, w, f f, w w and f w, and variances of f and w, from the sums (..., 6)."""
    n = np.maximum(summed[..., 0], 1)
    mean_f, mean_w, ff, ww, fw = np.moveaxis(summed[..., 1:] / n[..., None], -1, 0)
    var_f, var_w = np.maximum(ff - mean_f**2, FLAT), np.maximum(ww - mean_w**2, FLAT)
    return mean_f, mean_w, ff, ww, fw, var_f, var_w


def sums(f: Float32, w: Float32, m: Float32) -> Float64:
    """Sum 1, f, w, f f, w w and f w over the mask, for each plane: (planes, 6)."""
    out = np.zeros((len(f), 6))
    run_slices(_sums, len(f), f, w, m, out)
    return out


@numba.njit(cache=True, nogil=True)
def _sums(start, stop, f, w, m, out):  # type: ignore[no-untyped-def]
    _, nj, nk = f.shape
    for i in range(start, stop):
        here = out[i]
        for j in range(nj):
            for k in range(nk):
                if m[i, j, k] > 0:
                    a, b = np.float64(f[i, j, k]), np.float64(w[i, j, k])
                    here[0] += 1
                    here[1] += a
                    here[2] += b
                    here[3] += a * a
                    here[4] += b * b
                    here[5] += a * b


@numba.njit(cache=True, nogil=True)
def _combine(start, stop, f, w, m, a, b, c, d, gradient, curvature):  # type: ignore[no-untyped-def]
    _, nj, nk = f.shape
    for i in range(start, stop):
        for j in range(nj):
            for k in range(nk):
                gradient[i, j, k] = m[i, j, k] * (a * f[i, j, k] + b * w[i, j, k] + c)
                curvature[i, j, k] = m[i, j, k] * d
