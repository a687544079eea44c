"""Histogram matching: map the intensities of an image to those of a reference, quantile by quantile."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.preprocessing.foreground import find_erased_background, refuse_constant
from atlasseg.volume import Image

Floats = NDArray[np.floating[Any]]


@method("preprocessing")
def preprocess(image: Image, *, reference: Data[Image | None] = None, landmarks: int = 11) -> Image:
    """Map each channel so that its quantiles fall on the reference's, piecewise linearly between them.

    Parameters
    ----------
    image : Image
        What is mapped; a background that was erased to one value is not counted, and becomes the reference's smallest.
    reference : Image
        Whose histogram is wanted, on any grid, with as many channels. The pipeline gives the target.
    landmarks : int
        Number of quantiles to match, at even steps from the 1st to the 99th percentile, at least 2. Beyond them the
        mapping continues with the outermost slope.

    Raises
    ------
    InputError
        Either image is constant, the numbers of channels differ, or there is no reference.

    References
    ----------
    Nyul, Udupa and Zhang 2000, New variants of a method of MRI scale standardization, IEEE TMI 19(2).
    """
    if reference is None:
        raise InputError(f"image {image.name!r}: expected a reference image for histogram matching, got none")
    if landmarks < 2:
        raise InputError(f"landmarks: expected at least 2, got {landmarks}")
    if image.channels.shape[3] != reference.channels.shape[3]:
        raise InputError(
            f"image {image.name!r} has {image.channels.shape[3]} channels, its reference {reference.name!r} has "
            f"{reference.channels.shape[3]}"
        )
    matched = np.empty_like(image.channels)
    percents = np.linspace(1, 99, landmarks)
    for c in range(matched.shape[3]):
        channel, wanted = image.channels[..., c].astype(np.float64), reference.channels[..., c].astype(np.float64)
        refuse_constant(image.channels[..., c], image.name)
        refuse_constant(reference.channels[..., c], reference.name)
        erased = find_erased_background(image.channels[..., c])
        given = np.percentile(channel if erased is None else channel[~erased], percents)
        away = find_erased_background(reference.channels[..., c])
        goal = np.percentile(wanted if away is None else wanted[~away], percents)
        values = _piecewise_linear(channel, given, goal)
        matched[..., c] = values if erased is None else np.where(erased, wanted.min(), values)
    return image.with_array(matched.reshape(image.array.shape))


def _piecewise_linear(x: Floats, given: Floats, goal: Floats) -> Floats:
    """The polyline through (given, goal) at x; the first and last slopes go on beyond. Equal `given` are merged."""
    given, first = np.unique(given, return_index=True)
    goal = goal[first]
    if given.size == 1:
        return np.asarray(x - given[0] + goal[0])
    y = np.interp(x, given, goal)
    for end, inner, beyond in ((0, 1, x < given[0]), (-1, -2, x > given[-1])):
        slope = (goal[inner] - goal[end]) / (given[inner] - given[end])
        y[beyond] = goal[end] + slope * (x[beyond] - given[end])
    return np.asarray(y)
