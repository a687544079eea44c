"""Hidden Markov random field with Gaussian classes, without bias field and partial volume."""

from __future__ import annotations

from typing import Literal

import numpy as np

from atlasseg.methods import method
from atlasseg.statistics import markov_field
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
    beta: float = 0.2,
    neighbours: Literal[6, 26] = 26,
    solver: Solver = "mean_field",
    max_iterations: int = 50,
) -> Tissues:
    r"""Classify the voxels of a region by a hidden Markov random field.

    Each class :math:`k` has one Gaussian of intensities, and labels :math:`x` have the energy [1]_

    .. math::

        E(x) = \sum_n \left( -\log \mathcal{N}(y_n;\, \mu_{x_n}, \Sigma_{x_n}) - \log \pi_n(x_n) \right)
        + \beta \sum_{n \sim m} \frac{d_{\min}}{d_{nm}} [x_n \neq x_m]

    with distances :math:`d` in mm and the prior :math:`\pi`. Expectation maximisation with mean field estimates the
    Gaussians; then the solver computes the result. Unlike the model `field`, it has no bias field and no partial
    volume: it is for corrected scans, and for labels of minimum energy.

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
    beta : float
        Strength of the field, 0 or more.
    neighbours : int
        Neighbourhood: 6 (shared face) or 26 (shared face, edge or corner).
    solver : str
        `mean_field` or `belief_propagation` for probabilities; `icm` or `graph_cut` for the best labelling, with the
        probability of each class given its neighbours'.
    max_iterations : int
        Maximum number of iterations of expectation maximisation.

    Raises
    ------
    InputError
        The region is empty, has fewer distinct intensities than classes, the prior does not fit, or a parameter is out
        of its range.

    References
    ----------
    .. [1] Zhang, Brady, Smith (2001), Segmentation of brain MR images through a hidden Markov random field model and
       the expectation-maximization algorithm, IEEE TMI 20(1):45-57.
    """
    given = check_prior_map(prior, classes, inside.array)
    values = image.channels[inside.array].astype(np.float64)
    found = markov_field.fit(
        values, inside.array, image.affine[:3, :3], classes=classes if given is None else None, prior=given, beta=beta,
        neighbours=neighbours, solver=solver, max_iterations=max_iterations,
    )  # fmt: skip
    return assemble_without_bias(image, inside, values, found.posterior)
