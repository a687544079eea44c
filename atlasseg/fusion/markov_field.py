"""Markov random field: votes as prior, a Gaussian of intensities for each label, and coupled neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.statistics.label_posteriors import field_posteriors
from atlasseg.statistics.markov_field import Solver
from atlasseg.volume import Atlas, Image, ProbabilityMap


@method("fusion", compares_intensities=False)
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    beta: float = 0.02,
    neighbours: Literal[6, 26] = 26,
    intensity_weight: float = 0.2,
    solver: Solver = "mean_field",
    iterations: int = 10,
) -> ProbabilityMap:
    r"""Fuse by a Markov random field that has the votes as its prior.

    With :math:`p_x(l)` the mean vote for label :math:`l` at voxel :math:`x`, a labelling :math:`L` has the
    probability :math:`\exp(-E(L))` up to a factor, with the energy [1]_

    .. math::

        E(L) = \sum_x \left( -w \log \mathcal{N}(T(x);\, \mu_{L(x)}, \Sigma_{L(x)}) - \log p_x(L(x)) \right)
        + \beta \sum_{x \sim y} \frac{d_{\min}}{|x - y|} [L(x) \neq L(y)]

    :math:`x \sim y` are neighbours, distances are in mm, :math:`d_{\min}` is the shortest one, and :math:`w` is
    `intensity_weight`. Mean and covariance of each label are estimated by expectation maximisation with one sweep of
    mean field in each E step [2]_, on the voxels where candidates disagree and the voxels near them. Voxels on which
    all candidates agree keep their label.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid; a probabilistic atlas is one whose labels are fractions. Outside its mask a candidate does
        not vote.
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
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Scherrer et al. (2009), Distributed local MRF models for tissue and structure brain segmentation, IEEE TMI
       28(8):1278-1295.
    .. [2] Zhang, Brady, Smith (2001), Segmentation of brain MR images through a hidden Markov random field model and
       the expectation-maximization algorithm, IEEE TMI 20(1):45-57.
    """
    prior = Votes.gather(target, candidates).cast(name=target.name)
    return field_posteriors(
        target, prior, beta=beta, neighbours=neighbours, intensity_weight=intensity_weight, solver=solver,
        iterations=iterations, name=target.name,
    )  # fmt: skip
