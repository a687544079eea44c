"""Hidden Markov chain along a space-filling curve: votes as prior, and a Gaussian of intensities for each label."""

from __future__ import annotations

from collections.abc import Sequence

from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.statistics.curves import CurveName
from atlasseg.statistics.label_posteriors import chain_posteriors
from atlasseg.volume import Atlas, Image, ProbabilityMap


@method("fusion", compares_intensities=False, renamed={"stays": "stay_odds"})
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    curve: CurveName = "hilbert",
    intensity_weight: float = 0.3,
    stay_odds: float | None = 1.1,
    iterations: int = 10,
) -> ProbabilityMap:
    r"""Fuse by a hidden Markov chain that has the votes as its prior.

    The voxels where candidates disagree, and the voxels near them, are the sites :math:`n` of chains along a
    space-filling curve. With :math:`p_n(l)` the mean vote for label :math:`l`, the posterior follows from the
    normalised forward recursion

    .. math::

        \alpha_n(l) \propto p_n(l) \, \mathcal{N}(T_n;\, \mu_l, \Sigma_l)^{w} \sum_k \alpha_{n-1}(k) \, t_{kl}

    and the backward recursion [1]_. :math:`w` is `intensity_weight`. Mean and covariance of each label are estimated
    by expectation maximisation. Each voxel takes its most probable label (MPM). Voxels on which all candidates agree
    keep their label.

    For :math:`K` labels the transition probabilities are :math:`t_{kk} = o / (o + K - 1)` and
    :math:`t_{kl} = 1 / (o + K - 1)` for :math:`l \neq k`, with :math:`o` = `stay_odds`. The result depends on the odds
    :math:`o` and not on :math:`K`; :math:`o = 1` is no coupling.

    Candidates make the same errors on neighbouring voxels, which a chain takes for independent evidence. So the
    coupling that suits a segmentation without candidates is too strong: on five hippocampus scans that no result is
    reported on, the mean Dice is 0.8578 with odds of 1, 0.8572 with 1.1, 0.8562 with 1.2, 0.8529 with 1.5 and 0.8484
    with 2, against 0.8546 of the majority. Where the odds are estimated too, the probabilities are too close to 0 and 1
    and the labels are worse than the votes.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid; a probabilistic atlas is one whose labels are fractions. Outside its mask a candidate does
        not vote.
    curve : str
        Space-filling curve: `hilbert`, which keeps near voxels together, or `serpentine`, row after row.
    intensity_weight : float
        Weight w of the intensities, from 0 (they are ignored) to 1 (noise of neighbouring voxels is independent).
    stay_odds : float, optional
        Probability that the next voxel of the curve has the same label, over the probability that it has one given
        other label; 1 (no coupling) or more. None estimates it.
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
    .. [1] Bricq, Collet, Armspach (2008), Unifying framework for multimodal brain MRI segmentation based on hidden
       Markov chains, Medical Image Analysis 12(6):639-652.
    """
    prior = Votes.gather(target, candidates).cast(name=target.name)
    return chain_posteriors(
        target, prior, curve=curve, intensity_weight=intensity_weight, stay_odds=stay_odds, iterations=iterations,
        name=target.name,
    )  # fmt: skip
