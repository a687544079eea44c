"""Votes weighted by the global similarity of candidate and target; fast; for libraries with unsuitable atlases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._intensities import Standardised
from atlasseg.fusion._votes import Votes
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.similarity import MetricName, SimilarityMetric, metric_class
from atlasseg.volume import Atlas, Bool, Float32, Image, ProbabilityMap

MARGIN_VOXELS = 2


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    similarity: MetricName = "correlation",
    power: float = 8.0,
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by a vote in which each candidate has one weight for the whole volume.

    The probability of label :math:`l` at voxel :math:`x` is a weighted mean of the candidates' votes [1]_:

    .. math::

        p(l \mid x) \propto \sum_i w_i \, p(l \mid L_i, x), \qquad w_i = m(T, A_i)^{p}

    :math:`m` is the similarity of the target :math:`T` and candidate :math:`A_i`. It is measured in the bounding box
    of the voxels where the candidates disagree, inside the mask of :math:`A_i`. The measures are ``correlation``
    (negative values count as 0), ``mean_squares`` (1 / mean squared difference), ``mutual_information`` and
    ``normalized_mutual_information`` (minus 1, its value for independent images).

    Intensities are standardised first, so scans may have any intensity scale. Where all weights are 0, every
    candidate has the same weight.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid, with as many channels. Outside its mask a candidate does not vote.
    similarity : str
        Similarity measure m.
    power : float
        The exponent p, above 0: 0 would be the majority vote, a large one picks the single most similar candidate.
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
    .. [1] Artaechevarria et al. (2008), Efficient classifier generation and weighted voting for atlas-based
       segmentation: two small steps faster and closer to the combination oracle, Proc. SPIE 6914, 69141W.
    """
    metric = metric_class(similarity)()
    if not power > 0:
        raise InputError(f"global_weighted: expected power above 0, got {power}")
    candidates = in_contrast(target, candidates, contrast)
    votes = Votes.gather(target, candidates)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    images = Standardised.around(target, candidates, votes.voxels, margin_voxels=MARGIN_VOXELS)
    level = np.array([_weight(metric, images.target, candidate, mask) for candidate, mask in images])
    relative = level / level.max() if level.max() > 0 else level
    return votes.cast(relative**power, name=target.name)


def _weight(metric: SimilarityMetric, target: Float32, candidate: Float32, mask: Bool | None) -> float:
    """Weight of a candidate's vote; 0 for a candidate that covers nothing."""
    if mask is not None and not mask.any():
        return 0.0
    return metric.vote_weight(target, candidate, mask=mask)
