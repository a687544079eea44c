"""k nearest neighbours: class of the training voxels with the most similar features, chosen by a prior."""

from __future__ import annotations

import numpy as np

from atlasseg.errors import InputError
from atlasseg.methods import method
from atlasseg.statistics import nearest_neighbours
from atlasseg.tissues._classes import Tissues, assemble_without_bias, check_prior_map
from atlasseg.volume import Float64, Image, Mask


@method("tissue")
def classify(
    image: Image,
    inside: Mask,
    prior: Float64 | None = None,
    *,
    neighbours: int = 15,
    confidence: float = 0.9,
    samples: int = 2000,
    smoothing_mm: tuple[float, ...] = (1.0, 2.0),
    position_weight: float = 1.0,
    seed: int = 0,
) -> Tissues:
    """Classify the voxels of a region by k nearest neighbours, trained on the scan itself.

    The training voxels are drawn at random among those with a confident prior, the same number for each class [1]_. The
    features of a voxel are, in each modality, its intensity, the gradient magnitude and smoothed intensities, each with
    variance 1 over the region, and its position. The probability of a class is its fraction among the `neighbours`
    training voxels with the nearest features [2]_. There is no bias field and no partial volume.

    Parameters
    ----------
    image : Image
        The scan; several channels are modalities.
    inside : Mask
        The region, on the scan's grid.
    prior : (N, K) float64
        Probability of each class at the region's voxels, in the order of ``array[inside]``.
    neighbours : int
        Number of training voxels that vote, at least 1.
    confidence : float
        Minimum prior probability of a training voxel, above 0 up to 1.
    samples : int
        Maximum number of training voxels of each class, at least 1.
    smoothing_mm : sequence of float
        Standard deviations of the Gaussian filters of the intensities, in mm, each above 0.
    position_weight : float
        Weight of the position (-1 to 1 along each axis of the region) relative to one intensity; 0 leaves it out.
    seed : int
        Seed of the draw of training voxels.

    Raises
    ------
    InputError
        There is no prior, it does not fit or has no confident voxel of a class, the region is empty, or a parameter is
        out of its range.

    References
    ----------
    .. [1] Vrooman et al. (2007), Multi-spectral brain tissue segmentation using automatically trained
       k-nearest-neighbor classification, NeuroImage 37(1):71-81.
    .. [2] Cover, Hart (1967), Nearest neighbor pattern classification, IEEE Transactions on Information Theory
       13(1):21-27.
    """
    if prior is None:
        raise InputError("nearest_neighbours: expected a prior to draw training voxels from, got none. Give --prior.")
    if not (0 < confidence <= 1 and samples >= 1 and position_weight >= 0 and all(mm > 0 for mm in smoothing_mm)):
        raise InputError(
            "nearest_neighbours: expected confidence above 0 up to 1, samples of at least 1, smoothing_mm above 0 and "
            f"position_weight of 0 or more, got {confidence}, {samples}, {smoothing_mm} and {position_weight}"
        )
    given = check_prior_map(prior, prior.shape[1], inside.array)
    assert given is not None
    features = nearest_neighbours.features(
        image, inside.array, smoothing_mm=smoothing_mm, position_weight=position_weight
    )
    rows = nearest_neighbours.select_confident(given, least=confidence, number=samples, seed=seed)
    _, shares = nearest_neighbours.classify(features[rows], given[rows].argmax(axis=1), features, neighbours=neighbours)
    return assemble_without_bias(image, inside, image.channels[inside.array].astype(np.float64), shares)
