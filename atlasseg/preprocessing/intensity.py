"""Intensity scaling to a common range, robust to outliers and to the amount of background."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.preprocessing.foreground import find_erased_background, foreground, refuse_constant
from atlasseg.volume import Image, Mask


@method("preprocessing")
def preprocess(
    image: Image,
    *,
    scale: Literal["percentile", "zscore"] = "percentile",
    low_percent: float = 1.0,
    high_percent: float = 99.0,
    clip: bool = True,
    mask: Data[Mask | None] = None,
) -> Image:
    """Scale each channel of the image on its own.

    Parameters
    ----------
    image : Image
        Intensities of any scale, negative ones too.
    scale : {"percentile", "zscore"}
        "percentile": the two percentiles go to 0 and 1. "zscore": mean 0 and standard deviation 1 in the foreground.
    low_percent, high_percent : float
        Percentiles, 0 to 100. "percentile" maps them to 0 and 1. "zscore" leaves intensities outside them out of the
        mean and the standard deviation.
    clip : bool
        With "percentile": clip the result to 0 to 1.
    mask : Mask, optional
        The voxels that are counted, on the image's grid. By default, for "percentile", all but a background that was
        erased to one value; for "zscore", the foreground (`atlasseg.preprocessing.foreground`).

    Raises
    ------
    InputError
        The image is constant, the mask is empty or of another shape, or the percentiles are not in ascending order.
    """
    if not 0 <= low_percent < high_percent <= 100:
        raise InputError(f"expected 0 <= low_percent < high_percent <= 100, got {low_percent:g} and {high_percent:g}")
    if mask is not None and (mask.shape != image.shape or not mask.array.any()):
        raise InputError(
            f"image {image.name!r} of shape {image.shape}: its mask of shape {mask.shape} is empty or does not fit"
        )
    inside = mask.array if mask is not None else foreground(image).array if scale == "zscore" else None
    scaled = np.empty_like(image.channels)
    for c, channel in enumerate(np.moveaxis(image.channels.astype(np.float64), 3, 0)):
        refuse_constant(channel, image.name)
        counted = channel[inside if inside is not None else _not_erased(channel)]
        low, high = np.percentile(counted, (low_percent, high_percent))
        if low == high:  # nearly all voxels have one value: the few others span the scale
            low, high = channel.min(), channel.max()
        if scale == "percentile":
            values = (channel - low) / (high - low)
            scaled[..., c] = np.clip(values, 0, 1) if clip else values
        else:
            core = counted[(counted >= low) & (counted <= high)]
            scaled[..., c] = (channel - core.mean()) / (core.std() or channel.std())
    return image.with_array(scaled.reshape(image.array.shape))


def _not_erased(channel: NDArray[np.float64]) -> NDArray[np.bool_]:
    erased = find_erased_background(channel)
    return np.ones(channel.shape, bool) if erased is None else ~erased
