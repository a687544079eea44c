"""Hidden Markov chain: the class of a voxel depends on the voxel before it along a space-filling curve."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import softmax

from atlasseg.methods import method
from atlasseg.statistics import gaussian_mixture, markov_chain
from atlasseg.statistics.curves import CurveName, scan_order
from atlasseg.statistics.gaussians import log_density
from atlasseg.tissues._classes import (
    Tissues,
    adjacent_classes,
    assemble_tissues,
    check_prior_map,
    fit_classes,
    nonnegative_intensities,
)
from atlasseg.volume import Float64, Image, Mask

TINY = 1e-300
"""Posteriors below this are 0."""
LEAST_LOG = -230.0
"""Minimum log density of a class relative to the best class of a voxel, so that its posterior is above 0."""


@method("tissue")
def classify(
    image: Image,
    inside: Mask,
    prior: Float64 | None = None,
    *,
    classes: int = 3,
    bias_order: int = 3,
    bias_stiffness: float = 3.0,
    partial_volume: bool = True,
    curve: CurveName = "hilbert",
    estimation: Literal["em", "sem", "ice"] = "em",
    max_iterations: int = 15,
) -> Tissues:
    """Classify the voxels of a region by a hidden Markov chain.

    A Gaussian mixture estimates the bias field and the initial classes. Then the voxels of the corrected scan, in the
    order of a space-filling curve, are a Markov chain of hidden classes with Gaussian intensities: the probability of a
    class depends on the class of the previous voxel and on the prior [1]_. The posteriors are exact, by forward and
    backward recursions.

    With `partial_volume`, the chain's posterior of a voxel without its own intensity is the prior of a mixture in which
    a voxel may contain two adjacent classes [2]_. The result is then the expected fractions.

    Parameters
    ----------
    image : Image
        The scan; several channels are modalities.
    inside : Mask
        The region, on the scan's grid.
    prior : (N, K) float64, optional
        Probability of each class at the region's voxels, in the order of ``array[inside]``.
    classes : int
        Number of classes, at least 2. With a prior, the number of its classes is used.
    bias_order : int
        Highest order of the polynomials of the bias field; 0: no correction.
    bias_stiffness : float
        Penalty on the bending of the bias field, 0 or more. Noisy scans with a small field of view need more.
    partial_volume : bool
        Whether a voxel may contain two classes. Otherwise each voxel has one class, with a probability.
    curve : str
        Space-filling curve: `hilbert` or `serpentine`.
    estimation : str
        Algorithm: `em`, `sem` or `ice`, see `statistics.markov_chain.fit`.
    max_iterations : int
        Maximum number of iterations of each fit.

    Raises
    ------
    InputError
        The region is empty, has fewer distinct intensities than classes or only one, or the prior does not fit.

    References
    ----------
    .. [1] Bricq, S., Collet, C., Armspach, J.-P. (2008). Unifying framework for multimodal brain MRI segmentation based
       on hidden Markov chains. Medical Image Analysis 12(6), 639-652.
    .. [2] Van Leemput, K., Maes, F., Vandermeulen, D., Suetens, P. (2003). A unifying framework for partial volume
       segmentation of brain MR images. IEEE Transactions on Medical Imaging 22(1), 105-119.
    """
    given = check_prior_map(prior, classes, inside.array)
    values, shift = nonnegative_intensities(image, inside)
    start = fit_classes(
        values,
        inside,
        given,
        classes=classes,
        bias_order=bias_order,
        bias_stiffness=bias_stiffness,
        partial_volume=False,
        max_iterations=max_iterations,
    )
    order, starts = scan_order(inside.array, curve)
    at = np.searchsorted(np.flatnonzero(inside.array), order)
    weights = None if given is None else given[at]
    found = markov_chain.fit(
        start.corrected[at],
        prior=weights,
        start=start.fractions[at],
        starts=starts,
        estimation=estimation,
        max_iterations=max_iterations,
    )
    sites = found.posterior
    if partial_volume:
        logs = log_density(start.corrected[at], found.gaussians)
        logs = np.maximum(logs, logs.max(axis=1, keepdims=True) + LEAST_LOG)
        bounded = markov_chain.posterior(
            logs, initial=found.initial, transitions=found.transitions, prior=weights, starts=starts
        )
        around = np.log(np.maximum(bounded.gamma.reshape(logs.shape), TINY)) - logs
        sites = gaussian_mixture.fit(
            start.corrected[at],
            prior=softmax(around, axis=1),
            start=found.posterior,
            mixed=adjacent_classes(start.corrected[at], classes, found.posterior),
            max_iterations=max_iterations,
        ).fractions
    parts = np.empty_like(sites)
    parts[at] = sites
    return assemble_tissues(image, inside, shift, parts, start.bias, start.corrected, found.gaussians)
