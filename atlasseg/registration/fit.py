"""How well an atlas that was carried over fits the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlasseg.registration.quality import RegistrationQuality, quality
from atlasseg.similarity.local_correlation import LocalCorrelation
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Image, Mask


@dataclass(frozen=True)
class Fit:
    """Mean local correlation of target and carried atlas, from 0 to 1, and how regular the transform is."""

    similarity: float
    quality: RegistrationQuality


def fit(target: Image, mask: Mask | None, carried: Atlas, transform: Transform) -> Fit:
    """Measure a carried atlas against the target.

    Parameters
    ----------
    target : Image
    mask : Mask, optional
        Where to measure, on the target's grid.
    carried : Atlas
        On the target's grid; measured where it is known. Where it is known nowhere, its similarity is 0.
    transform : Transform
        What it was carried by.
    """
    region = np.ones(target.shape, bool) if mask is None else mask.array
    known = region if carried.mask is None else region & carried.mask.array
    pairs = zip(np.moveaxis(target.channels, 3, 0), np.moveaxis(carried.image.channels, 3, 0), strict=True)
    alike = [LocalCorrelation().value(f, w, mask=known) for f, w in pairs] if known.any() else [0.0]
    return Fit(float(np.mean(alike)), quality(transform, target.grid, mask=mask))
