"""STEPS: STAPLE on the locally most similar atlases; for large, varied libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._intensities import Standardised, correlate_locally
from atlasseg.fusion._staple import (
    estimate_confusion,
    expand_to_voxels,
    find_neighbours,
    list_possible_labels,
    run_em,
    select_winners,
    smooth_prior,
    tabulate_votes,
)
from atlasseg.fusion._votes import Votes
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.volume import Atlas, Image, ProbabilityMap


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    top: int = 8,
    sigma_voxels: float = 1.5,
    prior: Literal["local", "global"] = "local",
    prior_sigma_voxels: float = 1.5,
    mrf_beta: float = 0.5,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by similarity and truth estimation for propagated segmentations (STEPS).

    STEPS [1]_ is STAPLE ([2]_, see the method `staple`) in which only some candidates take part at each voxel: the
    `top` candidates by local correlation with the target, :math:`\mathcal{T}(x)`. It works on the voxels where
    candidates disagree, with a local prior :math:`f_l` and a Markov random field ([1]_, section 2):

    .. math::

        W_l(x) &\propto f_l(x) \exp\Big( \beta \sum_y \frac{W_l(y)}{|x - y|} \Big)
        \prod_{i \in \mathcal{T}(x)} \theta_i(L_i(x), l) \\
        \theta_i(l', l) &= \frac{\sum_{x:\, i \in \mathcal{T}(x),\, L_i(x) = l'} W_l(x)}
        {\sum_{x:\, i \in \mathcal{T}(x)} W_l(x)}

    The prior counts the votes of the top candidates. Candidates that tie for the last place all take part.

    STEPS assumes that candidates err independently of each other. They do not, so :math:`W` is too close to 0 and 1:
    its expected calibration error is several times that of `majority`.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid, with as many channels; fractions count as their most probable label. Outside its mask a
        candidate does not vote.
    top : int
        Number of candidates that take part at a voxel.
    sigma_voxels : float
        Standard deviation of the correlation's Gaussian window, in voxels along each axis.
    prior : str
        `local`, the Gaussian-smoothed share of the votes, which allows only labels with a vote at the voxel,
        or `global`, the share of each label in all votes.
    prior_sigma_voxels : float
        Standard deviation of the local prior's Gaussian, in voxels along each axis; 0 is the vote share itself.
    mrf_beta : float
        Strength of the Markov random field over the six neighbours, 0 or more.
    max_iterations : int
        Maximum number of iterations.
    tolerance : float
        Stop when no confusion probability changes by more than this.
    contrast : {"auto", "same", "different"}
        Whether the candidates have the contrast of the target. "auto": test it; "same": assume it; "different": assume
        another contrast. Candidates of another contrast are first mapped to that of the target, see
        `atlasseg.fusion.contrast.match_contrast`.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, channels differ, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Cardoso et al. (2013), STEPS: similarity and truth estimation for propagated segmentations and its
       application to hippocampal segmentation and brain parcelation, MedIA 17(6):671-684.
    .. [2] Warfield et al. (2004), Simultaneous truth and performance level estimation (STAPLE): an algorithm for the
       validation of image segmentation, IEEE TMI 23(7):903-921.
    """
    if prior not in ("global", "local"):
        raise InputError(f"steps: prior: expected global or local, got {prior!r}")
    if not (top >= 1 and sigma_voxels > 0 and prior_sigma_voxels >= 0 and mrf_beta >= 0):
        raise InputError(
            "steps: expected top of 1 or more, sigma_voxels above 0, prior_sigma_voxels and mrf_beta of 0 or more, got "
            f"{top}, {sigma_voxels}, {prior_sigma_voxels} and {mrf_beta}"
        )
    if max_iterations < 1 or tolerance <= 0:
        raise InputError(
            f"steps: expected max_iterations of at least 1 and tolerance above 0, got {max_iterations} and {tolerance}"
        )
    candidates = in_contrast(target, candidates, contrast)
    votes = Votes.gather(target, candidates, hard=True)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    images = Standardised.around(target, candidates, votes.voxels, margin_voxels=3 * sigma_voxels)
    scores = np.where(images.covered, correlate_locally(images, sigma_voxels=sigma_voxels), -np.inf)
    last = max(len(candidates) - top, 0)
    votes = votes.restrict(scores >= np.partition(scores, last, axis=0)[last])

    each = np.arange(votes.voxels.size)
    rows = tabulate_votes(votes, each, np.ones(each.size))
    raters, labels = votes.unknown.shape
    confusion = estimate_confusion(rows, select_winners(rows), raters, labels)
    if prior == "local":
        rows = replace(rows, possible=rows.possible.with_values(smooth_prior(votes, prior_sigma_voxels)))
    else:
        share = np.bincount(rows.possible.labels, rows.possible.values, labels)
        rows = list_possible_labels(rows, confusion, share / share.sum())
    posterior, _ = run_em(
        rows,
        confusion,
        max_iterations=max_iterations,
        tolerance=tolerance,
        neighbours=find_neighbours(votes, mrf_beta) if mrf_beta > 0 else None,
    )
    return votes.to_map(*expand_to_voxels(rows, posterior, each), name=target.name)
