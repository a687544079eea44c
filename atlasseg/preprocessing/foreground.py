"""Where the subject is in a scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.volume import Image, Mask

__all__ = ["foreground"]

ERASED_SHARE_OF_FACES = 0.9
"""A scan whose outer faces have one and the same smallest value in this share of voxels had its background erased."""

HISTOGRAM_BINS = 256

OUTLIERS_PERCENT = 0.1
"""Share of voxels at either end that are clipped before the histogram, lest one bright voxel fill it."""


def foreground(image: Image) -> Mask:
    """Find the foreground: the largest connected part above Otsu's threshold, with its holes filled.

    Where the background has been erased (a skull-stripped brain), all that is above the erased value counts instead,
    since Otsu's threshold would then part dark tissue from bright.

    Parameters
    ----------
    image : Image
        Of several channels, a voxel counts that is above the threshold in any of them.

    Returns
    -------
    Mask

    Raises
    ------
    InputError
        The image is constant.

    References
    ----------
    Otsu 1979, A threshold selection method from gray-level histograms, IEEE Trans SMC 9(1).
    """
    import SimpleITK as sitk

    inside = np.zeros(image.shape, bool)
    for channel in np.moveaxis(image.channels, 3, 0):
        refuse_constant(channel, image.name)
        erased = find_erased_background(channel)
        if erased is not None:
            inside |= ~erased
            continue
        low, high = np.percentile(channel, (OUTLIERS_PERCENT, 100 - OUTLIERS_PERCENT))
        clipped = np.clip(channel, low, high) if high > low else channel
        within = sitk.OtsuThreshold(sitk.GetImageFromArray(clipped), 0, 1, HISTOGRAM_BINS)
        inside |= sitk.GetArrayViewFromImage(within).astype(bool)
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return Mask(ndimage.binary_fill_holes(parts == sizes.argmax()), image.affine, image.name)


def find_erased_background(channel: NDArray[np.floating[Any]]) -> NDArray[np.bool_] | None:
    """(I, J, K) where a background was set to one value, the channel's smallest; None where none was."""
    lowest = np.asarray(channel == channel.min())
    inner = tuple(slice(1, -1) if n > 2 else slice(0, 0) for n in channel.shape)
    faces = np.ones(channel.shape, bool)
    faces[inner] = False
    if lowest[faces].mean() < ERASED_SHARE_OF_FACES:
        return None
    return lowest


def refuse_constant(channel: NDArray[np.floating[Any]], name: str) -> None:
    """Raise `InputError` where all intensities are the same."""
    if channel.min() == channel.max():
        raise InputError(
            f"image {name!r}: all its intensities are {float(channel.flat[0]):g}, so nothing can be told apart"
        )
