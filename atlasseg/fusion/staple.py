"""STAPLE: estimate the truth and the confusion matrix of each atlas together; for raters of unequal skill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._staple import (
    append_unanimous,
    estimate_confusion,
    expand_to_voxels,
    find_neighbours,
    group_by_votes,
    list_possible_labels,
    run_em,
    select_winners,
    smooth_prior,
    tabulate_votes,
)
from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.volume import Atlas, Image, ProbabilityMap


@method("fusion", compares_intensities=False)
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    region: Literal["disagreement", "whole"] = "disagreement",
    prior: Literal["global", "local"] = "global",
    prior_sigma_voxels: float = 1.5,
    mrf_beta: float = 0.0,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> ProbabilityMap:
    r"""Fuse by simultaneous truth and performance level estimation (STAPLE).

    The performance of candidate :math:`i` is its confusion matrix :math:`\theta_i(l', l)`, the probability that it
    votes for :math:`l'` where the true label is :math:`l`. Expectation maximisation estimates it together with the
    probability :math:`W_l(x)` of each true label ([1]_ for two labels, [2]_ for many):

    .. math::

        W_l(x) &\propto f_l(x) \prod_i \theta_i(L_i(x), l) && \text{(E step)} \\
        \theta_i(l', l) &= \frac{\sum_{x:\, L_i(x) = l'} W_l(x)}{\sum_x W_l(x)} && \text{(M step)}

    It starts from the majority vote (the smallest label in a tie) and ends when no :math:`\theta` changes by more
    than `tolerance`. The prior :math:`f_l` is the share of label :math:`l` in all votes or, with a local prior, the
    Gaussian-smoothed share around :math:`x`. A Markov random field multiplies the prior by

    .. math::

        \exp\Big( \beta \sum_{y} \frac{W_l(y)}{|x - y|} \Big)

    over the six neighbours :math:`y`, with distances relative to the shortest one (mean field, checkerboard sweeps).
    The result is :math:`W`. Voxels on which all candidates agree keep their label.

    STAPLE assumes that candidates err independently of each other. They do not, so :math:`W` is too close to 0 and 1:
    its expected calibration error is several times that of `majority`.

    Parameters
    ----------
    target : Image
        The scan; only its grid is used.
    candidates : sequence of Atlas
        On the target's grid; fractions count as their most probable label. Outside its mask a candidate does not vote.
        Labels that were not annotated in a candidate are handled by its confusion matrix.
    region : str
        Voxels from which the performances are estimated: `disagreement`, where candidates differ ([3]), or the `whole`
        volume as in [1], where a large background makes the sensitivities similar and dominates the prior.
    prior : str
        `global`, or `local`, which allows only labels with a vote at the voxel.
    prior_sigma_voxels : float
        Standard deviation of the local prior's Gaussian, in voxels along each axis; 0 is the vote share itself.
    mrf_beta : float
        Strength of the Markov random field, 0 or more; 0 is none.
    max_iterations : int
        Maximum number of iterations.
    tolerance : float
        Stop when no confusion probability changes by more than this.

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
    .. [1] Warfield et al. (2004), Simultaneous truth and performance level estimation (STAPLE): an algorithm for the
       validation of image segmentation, IEEE TMI 23(7):903-921.
    .. [2] Rohlfing et al. (2004), Performance-based classifier combination in atlas-based image segmentation using
       expectation-maximization parameter estimation, IEEE TMI 23(8):983-994.
    .. [3] Rohlfing et al. (2004), Evaluation of atlas selection strategies for atlas-based image segmentation with
       application to confocal microscopy images of bee brains, NeuroImage 21(4):1428-1442.
    """
    if region not in ("disagreement", "whole") or prior not in ("global", "local"):
        raise InputError(
            f"staple: expected region disagreement or whole, prior global or local, got {region!r} and {prior!r}"
        )
    if prior_sigma_voxels < 0 or mrf_beta < 0 or max_iterations < 1 or tolerance <= 0:
        raise InputError(
            "staple: expected prior_sigma_voxels and mrf_beta of 0 or more, max_iterations of at least 1 and tolerance "
            f"above 0, got {prior_sigma_voxels}, {mrf_beta}, {max_iterations} and {tolerance}"
        )
    votes = Votes.gather(target, candidates, hard=True)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    if prior == "local" or mrf_beta > 0:
        group = np.arange(votes.voxels.size)
        rows = tabulate_votes(votes, group, np.ones(group.size))
    else:
        first, group, size = group_by_votes(votes)
        rows = tabulate_votes(votes, first, size.astype(np.float64))
    if region == "whole":
        rows = append_unanimous(rows, votes, candidates)
    raters, labels = votes.unknown.shape
    confusion = estimate_confusion(rows, select_winners(rows), raters, labels)
    if prior == "local":
        around = np.ones(rows.possible.values.size)
        around[: votes.slot_labels.size] = smooth_prior(votes, prior_sigma_voxels)
        rows = replace(rows, possible=rows.possible.with_values(around))
    else:
        possible = rows.possible
        share = np.bincount(possible.labels, possible.values * np.repeat(rows.counts, possible.sizes), labels)
        rows = list_possible_labels(rows, confusion, share / share.sum())
    posterior, _ = run_em(
        rows,
        confusion,
        max_iterations=max_iterations,
        tolerance=tolerance,
        neighbours=find_neighbours(votes, mrf_beta) if mrf_beta > 0 else None,
    )
    return votes.to_map(*expand_to_voxels(rows, posterior, group), name=target.name)
