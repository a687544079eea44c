"""Quality of a registration: similarity of the target and the propagated atlas, and regularity of the transform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlasseg.registration.quality import RegistrationQuality, measure_quality
from atlasseg.similarity.local_correlation import LocalCorrelation
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Image, Mask

__all__ = ["RegistrationFit", "measure_fit"]


@dataclass(frozen=True)
class RegistrationFit:
    """Similarity after a registration, and regularity of its transform.

    Parameters
    ----------
    similarity : float
        Mean local correlation of the target and the propagated atlas, 0 to 1.
    quality : RegistrationQuality
        Regularity of the transform.
    """

    similarity: float
    quality: RegistrationQuality


def measure_fit(target: Image, mask: Mask | None, carried: Atlas, transform: Transform) -> RegistrationFit:
    """Measure the quality of a registration by the propagated atlas.

    Parameters
    ----------
    target : Image
        The scan.
    mask : Mask, optional
        Region to measure, on the grid of the target.
    carried : Atlas
        Propagated atlas on the grid of the target; measured where it is known. The similarity is 0 if that is nowhere.
    transform : Transform
        Transform of the registration.

    Returns
    -------
    RegistrationFit
    """
    region = np.ones(target.shape, bool) if mask is None else mask.array
    known = region if carried.mask is None else region & carried.mask.array
    pairs = zip(np.moveaxis(target.channels, 3, 0), np.moveaxis(carried.image.channels, 3, 0), strict=True)
    alike = [LocalCorrelation().value(f, w, mask=known) for f, w in pairs] if known.any() else [0.0]
    return RegistrationFit(float(np.mean(alike)), measure_quality(transform, target.grid, mask=mask))
