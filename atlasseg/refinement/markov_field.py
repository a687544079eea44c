"""Markov random field after any fusion: its probabilities as prior, intensities, and coupled neighbours."""

from __future__ import annotations

from typing import Literal

from atlasseg.methods import method
from atlasseg.statistics.label_posteriors import field_posteriors
from atlasseg.statistics.markov_field import Solver
from atlasseg.volume import Image, ProbabilityMap


@method("refinement")
def refine(
    target: Image,
    fused: ProbabilityMap,
    *,
    beta: float = 0.03,
    neighbours: Literal[6, 26] = 26,
    intensity_weight: float = 0.1,
    solver: Solver = "mean_field",
    iterations: int = 10,
) -> ProbabilityMap:
    r"""Smooth a fused segmentation by a Markov random field.

    With :math:`p_x(l)` the fused probability of label :math:`l` at voxel :math:`x`, a labelling :math:`L` has the
    probability :math:`\exp(-E(L))` up to a factor, with the energy [1]_

    .. math::

        E(L) = \sum_x \left( -w \log \mathcal{N}(T(x);\, \mu_{L(x)}, \Sigma_{L(x)}) - \log p_x(L(x)) \right)
        + \beta \sum_{x \sim y} \frac{d_{\min}}{|x - y|} [L(x) \neq L(y)]

    :math:`x \sim y` are neighbours, distances are in mm, :math:`d_{\min}` is the shortest one, and :math:`w` is
    `intensity_weight`. Mean and covariance of each label are estimated by expectation maximisation [2]_ on the
    uncertain voxels and the voxels near them. Where the fusion is certain, nothing changes.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels, on the grid of `fused`.
    fused : ProbabilityMap
        Fused label probabilities.
    beta : float
        Strength of the field, 0 or more.
    neighbours : int
        Neighbourhood: 6 (shared face) or 26 (shared face, edge or corner).
    intensity_weight : float
        Weight w of the intensities, from 0 (they are ignored) to 1 (noise of neighbouring voxels is independent).
    solver : str
        `mean_field` or `belief_propagation` for probabilities; `icm` or `graph_cut` for the best labelling, with the
        probability of each label given its neighbours'.
    iterations : int
        Number of iterations of expectation maximisation, at least 1.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        A parameter is out of range.
    GeometryError
        Scan and segmentation lie on different grids.

    References
    ----------
    .. [1] Scherrer et al. (2009), Distributed local MRF models for tissue and structure brain segmentation, IEEE TMI
       28(8):1278-1295.
    .. [2] Zhang, Brady, Smith (2001), Segmentation of brain MR images through a hidden Markov random field model and
       the expectation-maximization algorithm, IEEE TMI 20(1):45-57.
    """
    return field_posteriors(
        target, fused, beta=beta, neighbours=neighbours, intensity_weight=intensity_weight, solver=solver,
        iterations=iterations, name=fused.name,
    )  # fmt: skip
