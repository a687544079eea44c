"""k nearest neighbours: a voxel gets the most frequent class of the voxels with the most similar features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from atlasseg.errors import InputError
from atlasseg.volume import Bool, Float64, Image, Int64

__all__ = ["classify", "features", "select_confident"]

GRADIENT_SIGMA_MM = 1.0


def features(
    image: Image, inside: Bool, *, smoothing_mm: Sequence[float] = (1.0, 2.0), position_weight: float = 1.0
) -> Float64:
    """Compute the features of each voxel: intensity, gradient magnitude, smoothed intensities, position.

    Parameters
    ----------
    image : Image
        The scan, of C modalities.
    inside : (I, J, K) bool
        The region.
    smoothing_mm : sequence of float
        Standard deviations of the Gaussian filters of the intensities, in mm.
    position_weight : float
        Weight of the three coordinates relative to one intensity; 0 leaves them out.

    Returns
    -------
    (N, F) float64
        For every modality the intensity, the gradient's magnitude (of the image smoothed by 1 mm) and the smoothed
        intensities, each scaled to mean 0 and standard deviation 1 over the region (0 if constant); then
        the position, -1 to 1 along each axis of the region's box, times the weight.

    Raises
    ------
    InputError
        The region is empty or has another shape than the image.
    """
    if inside.shape != image.shape or not inside.any():
        raise InputError(f"expected a region of shape {image.shape} with a voxel in it, got {inside.shape}")
    columns = []
    for channel in np.moveaxis(image.channels.astype(np.float64), -1, 0):
        volumes = [channel, gaussian_gradient_magnitude(channel, GRADIENT_SIGMA_MM / image.spacing_mm)]
        volumes += [gaussian_filter(channel, sigma_mm / image.spacing_mm) for sigma_mm in smoothing_mm]
        columns += [_standardise(volume[inside]) for volume in volumes]
    if position_weight:
        place = np.argwhere(inside).astype(np.float64)
        low, high = place.min(axis=0), place.max(axis=0)
        columns += list((position_weight * (2 * (place - low) / np.maximum(high - low, 1) - 1)).T)
    return np.stack(columns, axis=1)


def select_confident(prior: NDArray[np.floating], *, least: float = 0.9, number: int = 2000, seed: int = 0) -> Int64:
    """Select training voxels: for each class at most `number` random voxels with a prior of at least `least`.

    Parameters
    ----------
    prior : (N, K)
        Probability of each class at each voxel.
    least : float
        Minimum prior of a training voxel for its class.
    number : int
        Maximum number of voxels per class.
    seed : int
        Seed of the random choice.

    Returns
    -------
    (M,) int64
        Rows, ascending; ``prior[rows].argmax(1)`` are their classes.

    Raises
    ------
    InputError
        A class has no voxel with this prior.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(prior.shape[1]):
        sure = np.flatnonzero((prior[:, k] >= least) & (prior.argmax(axis=1) == k))
        if not sure.size:
            raise InputError(
                f"class {k + 1} of {prior.shape[1]} is empty: expected a prior of {least:g} at some voxel, got less"
            )
        rows.append(rng.permutation(sure)[:number])
    return np.sort(np.concatenate(rows))


def classify(known: Float64, classes: ArrayLike, unknown: Float64, *, neighbours: int = 15) -> tuple[Int64, Float64]:
    """Compute the fraction of each class among the nearest voxels in feature space (Cover and Hart 1967).

    Parameters
    ----------
    known : (M, F) float64
        Features of the voxels with known class.
    classes : (M,) int
        Their classes, any integers.
    unknown : (N, F) float64
        Features of the voxels to classify.
    neighbours : int
        Number of neighbours, with equal votes; at most the number of known voxels.

    Returns
    -------
    values : (K,) int64
        The classes that occur, ascending.
    shares : (N, K) float64
        Fraction of each class; sums to 1.

    Raises
    ------
    InputError
        There are no known voxels, shapes do not fit, or `neighbours` is below 1.
    """
    from sklearn.neighbors import KNeighborsClassifier

    given = np.asarray(classes)
    if neighbours < 1:
        raise InputError(f"neighbours: expected at least 1, got {neighbours}")
    if not len(known) or given.shape != (len(known),) or known.shape[1:] != unknown.shape[1:]:
        raise InputError(
            f"expected known (M, F), classes (M,) and unknown (N, F), got {known.shape}, {given.shape} and "
            f"{unknown.shape}"
        )
    model = KNeighborsClassifier(min(neighbours, len(known))).fit(known, given)
    shares = model.predict_proba(unknown) if len(unknown) else np.zeros((0, model.classes_.size))
    return model.classes_.astype(np.int64), shares


def _standardise(values: Float64) -> Float64:
    deviation = values.std()
    return np.asarray((values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values))
