"""How strong the noise of a volume is, from the volume alone."""

from __future__ import annotations

import itertools

import numpy as np

from atlasseg.volume import Float64, Image

NORMAL_MEDIAN = 0.6744897501960817
"""Median of |z| for a standard normal z."""


def noise_sd(image: Image) -> Float64:
    """Estimate the standard deviation of white noise in each channel.

    Every block of 2 voxels a side has one Haar coefficient that is a difference along all axes at once, (1/sqrt(8)) sum
    of +-x. What is flat or a ramp drops out of it, and white noise keeps its standard deviation, so the median of the
    coefficients' absolute values over 0.6745 is the noise, edges being few [1]_. Blocks that are quite constant, such
    as the zeros around a stripped brain, hold no noise and are left out.

    Parameters
    ----------
    image : Image
        Axes of one voxel are left out of the differences, so a slice is measured as one.

    Returns
    -------
    (C,) float64
        In the units of each channel; 0 where a channel is constant.

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
