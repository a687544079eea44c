"""How alike two images on one grid are: each measure, and its derivative in the second image.

Registration climbs these, and weighted fusion and atlas selection rank with them. All functions take plain arrays
of one shape, ``(I, J, K)`` or ``(I, J, K, C)`` with C channels over which they average, and compute in float64,
so that intensities of any scale are safe. ``mask`` is a bool ``(I, J, K)``: voxels outside it do not count. With
masks on both sides, give their intersection (the second one warped as its image was).

Every ``*_gradient`` returns the value and an array like `warped`, float32, with the derivative of the value in each
of its voxels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from atlasseg.errors import InputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

FLAT_WINDOW = 1e-6
"""A window whose variance is below this share of its whole image's variance is flat: it correlates with nothing."""

PADDING_BINS = 2
"""Empty bins on either side of a histogram, where the tails of the cubic Parzen window fall (Mattes 2003)."""


def ssd(fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
    """Mean squared difference, 0 where equal, over the mask and all channels.

    Raises
    ------
    InputError
        The shapes differ, or the mask is empty.
    """
    f, w, inside = _checked(fixed, warped, mask)
    return float(np.mean((w[inside] - f[inside]) ** 2))


def ssd_gradient(fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
    """`ssd` and its derivative ``2 (warped - fixed) / n``."""
    f, w, inside = _checked(fixed, warped, mask)
    difference = w[inside] - f[inside]
    return float(np.mean(difference**2)), _spread(2 * difference / difference.size, inside, warped)


def correlation(fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> float:
    """Global (Pearson) correlation in [-1, 1], mean of the channels; 0 where either image is constant.

    Raises
    ------
    InputError
        The shapes differ, or the mask is empty.
    """
    return correlation_gradient(fixed, warped, mask=mask)[0]


def correlation_gradient(fixed: Float32, warped: Float32, *, mask: Bool | None = None) -> tuple[float, Float32]:
    """`correlation` and its derivative, ``a / |a||b| - r b / |b|^2`` with a and b the images less their means."""
    f, w, inside = _checked(fixed, warped, mask)
    a, b = f[inside] - f[inside].mean(axis=0), w[inside] - w[inside].mean(axis=0)
    aa, bb, ab = (a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)
    varied = (aa > 0) & (bb > 0)
    norm = np.sqrt(np.where(varied, aa * bb, 1))
    r = np.where(varied, ab / norm, 0)
    gradient = np.where(varied, a / norm - r * b / np.where(varied, bb, 1), 0) / r.size
    return float(r.mean()), _spread(gradient, inside, warped)


def local_correlation_map(
    fixed: Float32, warped: Float32, *, radius_voxels: int = 2, mask: Bool | None = None
) -> Float32:
    """Signed correlation in the box around every voxel, in [-1, 1].

    The box has ``2 radius_voxels + 1`` voxels a side and is cut at the borders of the volume and of the mask. It is 0
    outside the mask and in flat windows (see `FLAT_WINDOW`). Several channels: their mean.

    Returns
    -------
    (I, J, K) float32

    Raises
    ------
    InputError
        The shapes differ, the mask is empty or the radius is below 1.
    """
    f, w, inside = _checked(fixed, warped, mask)
    window = _Windows(f, w, inside, radius_voxels)
    signed: Float32 = (window.covariance / np.sqrt(window.product)).mean(axis=-1).astype(np.float32)
    return signed


def local_correlation(fixed: Float32, warped: Float32, *, radius_voxels: int = 2, mask: Bool | None = None) -> float:
    """Mean of the squared local correlation over the mask, in [0, 1], as in ANTs and greedy (Avants 2008, eq. 7).

    Squared, so it does not tell a contrast from its inverse; windows, mask and errors as in `local_correlation_map`.
    """
    f, w, inside = _checked(fixed, warped, mask)
    return _Windows(f, w, inside, radius_voxels).mean_square()


def local_correlation_gradient(
    fixed: Float32, warped: Float32, *, radius_voxels: int = 2, mask: Bool | None = None
) -> tuple[float, Float32]:
    """`local_correlation` and its derivative in closed form.

    With window sums c (covariance), u and v (variances) around each voxel, ``a = 2 c / (u v)`` and ``b = a c / v``, the
    derivative at a voxel is ``f S(a) - w S(b) - S(a mean_f - b mean_w)``, where S sums over the windows that hold it.
    """
    f, w, inside = _checked(fixed, warped, mask)
    window = _Windows(f, w, inside, radius_voxels)
    a = 2 * window.covariance / window.product
    b = a * window.covariance / window.variance_warped
    c = a * window.mean_fixed - b * window.mean_warped
    sums = [box_sum(part, radius_voxels) for part in (a, b, c)]
    gradient = (window.f * sums[0] - window.w * sums[1] - sums[2]) / (inside.sum() * f.shape[-1])
    return window.mean_square(), _spread(gradient[inside], inside, warped)


def mutual_information(fixed: Float32, warped: Float32, *, bins: int = 32, mask: Bool | None = None) -> float:
    """Mutual information in nats, 0 and up, of Parzen-windowed histograms (Mattes 2003, eqs. 4-8).

    As in ITK: the fixed image falls in hard bins, the warped one is spread by a cubic B-spline, and the bins span each
    image's range in the mask, with `PADDING_BINS` empty on either side. Several channels: the mean of theirs. 0 where
    either image is constant.

    Raises
    ------
    InputError
        The shapes differ, the mask is empty, or `bins` is below 6.
    """
    return _mean_of_channels(_mutual_information, fixed, warped, bins, mask)[0]


def mutual_information_gradient(
    fixed: Float32, warped: Float32, *, bins: int = 32, mask: Bool | None = None
) -> tuple[float, Float32]:
    """`mutual_information` and its derivative (Mattes 2003, eq. 12), the range of the bins held as it is."""
    return _mean_of_channels(_mutual_information, fixed, warped, bins, mask)


def normalized_mutual_information(
    fixed: Float32, warped: Float32, *, bins: int = 32, mask: Bool | None = None
) -> float:
    """``(H(fixed) + H(warped)) / H(fixed, warped)``, 1 (independent) to 2 (Studholme 1999), histograms as above.

    1 where either image is constant. Errors as in `mutual_information`.
    """
    return _mean_of_channels(_normalized_mutual_information, fixed, warped, bins, mask)[0]


def normalized_mutual_information_gradient(
    fixed: Float32, warped: Float32, *, bins: int = 32, mask: Bool | None = None
) -> tuple[float, Float32]:
    """`normalized_mutual_information` and its derivative, the range of the bins held as it is."""
    return _mean_of_channels(_normalized_mutual_information, fixed, warped, bins, mask)


def box_sum(values: NDArray[Any], radius_voxels: int) -> Float64:
    """Sum in the box of ``2 radius_voxels + 1`` a side around each voxel, nothing counted beyond the borders.

    Running sums along the first three axes, so the cost does not grow with the radius; further axes are kept apart.
    """
    width = 2 * radius_voxels + 1
    out = np.asarray(values, np.float64)
    for axis in range(3):
        out = uniform_filter1d(out, width, axis=axis, mode="constant")
    return out * float(width) ** 3


class _Windows:
    """Window sums of two (I, J, K, C) images that local correlation is made of."""

    def __init__(self, f: Float64, w: Float64, inside: Bool, radius_voxels: int) -> None:
        if radius_voxels < 1:
            raise InputError(f"local correlation needs a radius of at least 1 voxel, got {radius_voxels}")
        self.inside = inside
        m = inside[..., None].astype(np.float64)
        # Centred first, so that no digits are lost in the differences of sums below.
        self.f, self.w = f - f[inside].mean(axis=0), w - w[inside].mean(axis=0)
        flat_fixed, flat_warped = (FLAT_WINDOW * x[inside].var(axis=0) for x in (f, w))
        n = np.maximum(box_sum(m, radius_voxels), 1)
        self.mean_fixed = box_sum(m * self.f, radius_voxels) / n
        self.mean_warped = box_sum(m * self.w, radius_voxels) / n
        self.covariance = box_sum(m * self.f * self.w, radius_voxels) - n * self.mean_fixed * self.mean_warped
        variance_fixed = box_sum(m * self.f**2, radius_voxels) - n * self.mean_fixed**2
        self.variance_warped = box_sum(m * self.w**2, radius_voxels) - n * self.mean_warped**2
        varied = inside[..., None] & (variance_fixed > n * flat_fixed)
        varied &= self.variance_warped > n * flat_warped
        self.covariance[~varied] = 0
        variance_fixed[~varied] = 1
        self.variance_warped[~varied] = 1
        self.product = variance_fixed * self.variance_warped

    def mean_square(self) -> float:
        return float((self.covariance**2 / self.product)[self.inside].mean())


def _checked(fixed: Float32, warped: Float32, mask: Bool | None) -> tuple[Float64, Float64, Bool]:
    """Both images as float64 (I, J, K, C), and where they count."""
    f, w = np.asarray(fixed, np.float64), np.asarray(warped, np.float64)
    if f.shape != w.shape or f.ndim not in (3, 4):
        raise InputError(f"two images of one shape (I, J, K) or (I, J, K, C) are wanted, got {f.shape} and {w.shape}")
    inside = np.ones(f.shape[:3], bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != f.shape[:3]:
        raise InputError(f"the mask must have the images' shape {f.shape[:3]}, got {inside.shape}")
    if not inside.any():
        raise InputError(f"the mask is empty: no voxel of {inside.shape} to compare")
    return f.reshape(*f.shape[:3], -1), w.reshape(*f.shape[:3], -1), inside


def _spread(gradient: Float64, inside: Bool, like: Float32) -> Float32:
    """(n, C) derivatives of the voxels in the mask as an array shaped like the image."""
    out = np.zeros((*inside.shape, gradient.shape[-1]), np.float32)
    out[inside] = gradient
    return out.reshape(like.shape)


def _mean_of_channels(
    measure: Any, fixed: Float32, warped: Float32, bins: int, mask: Bool | None
) -> tuple[float, Float32]:
    f, w, inside = _checked(fixed, warped, mask)
    if bins < 2 * PADDING_BINS + 2:
        raise InputError(f"a Parzen-windowed histogram needs at least {2 * PADDING_BINS + 2} bins, got {bins}")
    parts = [measure(f[inside, c], w[inside, c], bins) for c in range(f.shape[-1])]
    gradient = np.stack([part[1] for part in parts], axis=-1) / len(parts)
    return float(np.mean([part[0] for part in parts])), _spread(gradient, inside, warped)


def _mutual_information(f: Float64, w: Float64, bins: int) -> tuple[float, Float64]:
    if np.ptp(f) == 0 or np.ptp(w) == 0:
        return 0.0, np.zeros_like(w)
    joint, change = _parzen(f, w, bins)
    value, of_joint = information(joint)
    return value, change(of_joint)


def _normalized_mutual_information(f: Float64, w: Float64, bins: int) -> tuple[float, Float64]:
    if np.ptp(f) == 0 or np.ptp(w) == 0:
        return 1.0, np.zeros_like(w)
    joint, change = _parzen(f, w, bins)
    value, of_joint = normalized_information(joint)
    return value, change(of_joint)


def information(joint: Float64) -> tuple[float, Float64]:
    """Mutual information of a joint histogram of sum 1, and its derivative in each bin, up to a constant.

    Parameters
    ----------
    joint : (bins of fixed, bins of warped) float64
        The fixed image's marginal must not depend on what the derivative is for.
    """
    marginals = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    value = float((joint * _log_ratio(joint, marginals)).sum())
    return value, _log_ratio(joint, np.broadcast_to(joint.sum(axis=0), joint.shape))


def normalized_information(joint: Float64) -> tuple[float, Float64]:
    """As `information`, of normalised mutual information."""
    one = np.ones_like(joint)
    log_joint, log_warped = _log_ratio(joint, one), np.broadcast_to(_log_ratio(joint.sum(axis=0), one[0]), joint.shape)
    log_fixed = _log_ratio(joint.sum(axis=1), one[:, 0])
    h_joint = -float((joint * log_joint).sum())
    h_both = -float((joint * log_warped).sum()) - float((joint.sum(axis=1) * log_fixed).sum())
    return h_both / h_joint, (h_both * log_joint - h_joint * log_warped) / h_joint**2


def _parzen(f: Float64, w: Float64, bins: int) -> tuple[Float64, Any]:
    """Joint histogram (bins of f, bins of w) of sum 1, and a function that takes its derivative back to `w`."""
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
        # Near the top of the range the window is cut at its fourth bin, so the weights there do not sum to a constant.
        mean = float((of_joint * joint).sum() / total)
        return np.asarray((_cubic_slope(x) * (of_joint[row[:, None], columns] - mean)).sum(axis=1) * step / total)

    return joint / total, change


def _log_ratio(a: Float64, b: Float64) -> Float64:
    """log(a / b), 0 where a is 0."""
    return np.asarray(np.log(np.divide(a, b, out=np.ones_like(a), where=a > 0)))


def _cubic(x: Float64) -> Float64:
    """Cubic B-spline."""
    t = np.abs(x)
    return np.where(t < 1, (4 - 6 * t**2 + 3 * t**3) / 6, np.where(t < 2, (2 - t) ** 3 / 6, 0))


def _cubic_slope(x: Float64) -> Float64:
    """Derivative of the cubic B-spline."""
    t = np.abs(x)
    return np.asarray(np.sign(x) * np.where(t < 1, 1.5 * t**2 - 2 * t, np.where(t < 2, -((2 - t) ** 2) / 2, 0)))
