"""Estimation of the noise of a volume."""

from __future__ import annotations

import itertools

import numpy as np

from atlasseg.volume import Float64, Image

__all__ = ["noise_sd"]

NORMAL_MEDIAN = 0.6744897501960817
"""Median of |z| for a standard normal z."""


def noise_sd(image: Image) -> Float64:
    """Estimate the standard deviation of white noise in each channel.

    Each block of 2 x 2 x 2 voxels has one Haar coefficient that is a difference along all axes, (1/sqrt(8)) sum
    of +-x. It is 0 for constant and linear intensities, and its standard deviation for white noise is that of the
    noise. Therefore the median of the absolute coefficients divided by 0.6745 is the noise, if edges are few [1]_.
    Constant blocks, such as the zeros around a skull-stripped brain, are left out.

    Parameters
    ----------
    image : Image
        The volume. Differences are not taken along axes of one voxel, so a single slice can be measured.

    Returns
    -------
    (C,) float64
        Noise in the units of each channel; 0 for a constant channel.

    References
    ----------
    .. [1] Donoho, Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81, 1994, section 6.1.
    """
    channels = image.channels
    axes = [axis for axis in range(3) if image.shape[axis] > 1]
    found = np.zeros(channels.shape[-1])
    if not axes:
        return found
    even = tuple(slice(0, n // 2 * 2) if n > 1 else slice(None) for n in image.shape)
    for c in range(channels.shape[-1]):
        whole = channels[..., c][even]
        coefficient = np.zeros([n // 2 if n > 1 else 1 for n in image.shape], np.float32)
        constant = np.ones(coefficient.shape, bool)
        corner = whole[tuple(slice(0, None, 2) if axis in axes else slice(None) for axis in range(3))]
        for shift in itertools.product(*((0, 1) if axis in axes else (0,) for axis in range(3))):
            part = whole[tuple(slice(s, None, 2) if axis in axes else slice(None) for axis, s in enumerate(shift))]
            coefficient += part if sum(shift) % 2 == 0 else -part
            constant &= part == corner
        magnitudes = np.abs(coefficient[~constant])
        if magnitudes.size:
            found[c] = float(np.median(magnitudes)) / NORMAL_MEDIAN / np.sqrt(2.0 ** len(axes))
    return found
