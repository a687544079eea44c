"""LOCUS: a Markov random field with spatially varying class intensities instead of a bias field."""

from __future__ import annotations

import numpy as np

from atlasseg.methods import method
from atlasseg.statistics import locus
from atlasseg.statistics.markov_field import Solver
from atlasseg.tissues._classes import Tissues, assemble_without_bias, check_prior_map
from atlasseg.volume import Float64, Image, Mask


@method("tissue")
def classify(
    image: Image,
    inside: Mask,
    prior: Float64 | None = None,
    *,
    classes: int = 3,
    side_mm: float = 20.0,
    tie: float = 1.0,
    beta: float = 0.2,
    solver: Solver = "mean_field",
    max_iterations: int = 30,
) -> Tissues:
    r"""Classify the voxels of a region by a Markov random field with local intensities (LOCUS).

    The region is partitioned into cubes, each with its own mean and covariance of each class [1]_. A Markov prior
    couples them to those of adjacent cubes [2]_, and cubic splines interpolate them to voxels. Intensities may
    therefore vary over the scan without a bias field. The equations are in `atlasseg.statistics.locus.fit`. This is the
    tissue model only; the coupling with subcortical structures of [1]_ is not included.

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
    side_mm : float
        Side of a cube, at least two voxels.
    tie : float
        Strength of the prior on the parameters, above 0; 1 is the weight of all voxels of a cube.
    beta : float
        Strength of the field, 0 or more.
    solver : str
        `mean_field` or `belief_propagation` for probabilities; `icm` or `graph_cut` for the best labelling, with the
        probability of each class given its neighbours'.
    max_iterations : int
        Maximum number of iterations of each fit.

    Raises
    ------
    InputError
        The region is empty, has fewer distinct intensities than classes, the prior does not fit, or a parameter is out
        of its range.

    References
    ----------
    .. [1] Scherrer, Forbes, Garbay, Dojat (2009), Distributed local MRF models for tissue and structure brain
       segmentation, IEEE TMI 28(8):1278-1295.
    .. [2] Scherrer, Forbes, Garbay, Dojat (2008), Fully Bayesian joint model for MR brain scan tissue and structure
       segmentation, MICCAI, LNCS 5242:1066-1074.
    """
    given = check_prior_map(prior, classes, inside.array)
    values = image.channels[inside.array].astype(np.float64)
    found = locus.fit(
        values, inside.array, image.affine[:3, :3], classes=classes if given is None else None, prior=given,
        side_mm=side_mm, tie=tie, beta=beta, solver=solver, max_iterations=max_iterations,
    )  # fmt: skip
    return assemble_without_bias(image, inside, values, found.posterior)
