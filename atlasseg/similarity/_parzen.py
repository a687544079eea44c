"""Mutual information from Parzen-windowed histograms, in float64, and its derivatives.

As in ITK, the fixed image has hard bins, the warped one a cubic B-spline window, and the bins span each
image's range in the mask, with `PADDING_BINS` empty bins on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.similarity.metric import checked_images, spread
from atlasseg.volume import Bool, Float32, Float64

PADDING_BINS = 2
"""Empty bins on both sides of a histogram for the tails of the cubic Parzen window (Mattes 2003)."""

Information = Callable[[Float64], tuple[float, Float64]]
"""Function of a joint histogram with sum 1 (bins of fixed, bins of warped): value, and derivative in each bin."""


def check_bins(bins: int) -> None:
    """Check that there are enough bins."""
    if bins < 2 * PADDING_BINS + 2:
        raise InputError(f"bins: expected at least {2 * PADDING_BINS + 2} for a Parzen-windowed histogram, got {bins}")


def value_and_gradient(
    information: Information, fixed: Float32, warped: Float32, bins: int, mask: Bool | None, *, constant: float
) -> tuple[float, Float32]:
    """Mean over the channels, `constant` for constant images. The range of the bins is treated as constant."""
    f, w, inside = checked_images(fixed, warped, mask)
    parts = [_of_channel(information, f[inside, c], w[inside, c], bins, constant) for c in range(f.shape[-1])]
    gradient = np.stack([part[1] for part in parts], axis=-1) / len(parts)
    return float(np.mean([part[0] for part in parts])), spread(gradient, inside, warped)


def _of_channel(information: Information, f: Float64, w: Float64, bins: int, constant: float) -> tuple[float, Float64]:
    if np.ptp(f) == 0 or np.ptp(w) == 0:
        return constant, np.zeros_like(w)
    joint, change = _parzen(f, w, bins)
    value, of_joint = information(joint)
    return value, change(of_joint)


def _parzen(f: Float64, w: Float64, bins: int) -> tuple[Float64, Any]:
    """Joint histogram (bins of f, bins of w) with sum 1, and a function that propagates its derivative to `w`."""
    inner = bins - 2 * PADDING_BINS
    row = np.minimum(np.floor((f - f.min()) * (inner / np.ptp(f))).astype(int), inner - 1) + PADDING_BINS
    step = inner / np.ptp(w)
    term = (w - w.min()) * step + PADDING_BINS
    first = np.minimum(np.floor(term).astype(int), bins - PADDING_BINS - 1) - 1
    columns = first[:, None] + np.arange(4)
    x = term[:, None] - columns
    joint = np.bincount((row[:, None] * bins + columns).ravel(), _cubic(x).ravel(), bins * bins).reshape(bins, bins)
    total = joint.sum()

    def change(of_joint: Float64) -> Float64:
        # At the upper end of the range the window is cut at its fourth bin, so the weights do not sum to a constant.
        mean = float((of_joint * joint).sum() / total)
        return np.asarray((_cubic_slope(x) * (of_joint[row[:, None], columns] - mean)).sum(axis=1) * step / total)

    return joint / total, change


def log_ratio(a: Float64, b: Float64) -> Float64:
    """Compute log(a / b), 0 where a is 0."""
    return np.asarray(np.log(np.divide(a, b, out=np.ones_like(a), where=a > 0)))


def _cubic(x: Float64) -> Float64:
    """Cubic B-spline."""
    t = np.abs(x)
    return np.where(t < 1, (4 - 6 * t**2 + 3 * t**3) / 6, np.where(t < 2, (2 - t) ** 3 / 6, 0))


def _cubic_slope(x: Float64) -> Float64:
    """Derivative of the cubic B-spline."""
    t = np.abs(x)
    return np.asarray(np.sign(x) * np.where(t < 1, 1.5 * t**2 - 2 * t, np.where(t < 2, -((2 - t) ** 2) / 2, 0)))
