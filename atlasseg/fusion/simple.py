"""SIMPLE: weighted vote that repeatedly drops the atlases that disagree most; for libraries with unsuitable atlases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.volume import Atlas, Bool, Float64, Image, Int32, ProbabilityMap

log = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Performances closer than this are equal, so that identical atlases are kept or dropped together."""
NORMAL = 1.482602218505602
"""Ratio of standard deviation and median absolute deviation of a normal distribution."""
DEVIATIONS = {"median": 3.0, "mean": 2.0}
"""Default of `alpha` for each rule."""


@method("fusion", compares_intensities=False)
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    rule: Literal["median", "mean"] = "median",
    alpha: float | None = None,
    margin: float = 0.1,
    power: float = 1.0,
    max_iterations: int = 20,
) -> ProbabilityMap:
    r"""Fuse by the selective and iterative method for performance level estimation (SIMPLE).

    Start from all candidates with equal weights, and repeat ([1]_, section II):

    1. Compute :math:`L`, the vote of the remaining candidates, each weighted by :math:`f_i^{\,p}`.
    2. Compute the performance :math:`f_i` of each candidate: the overlap of :math:`L_i` and :math:`L`.
    3. Drop the candidates whose performance is low, by one of two rules over the remaining candidates:

    .. math::

        \text{median [2]:} \quad & f_i < \operatorname{med}(f)
        - \max\left( 1.4826 \, \alpha \operatorname{med}_j |f_j - \operatorname{med}(f)|, \; m \right) \\
        \text{mean [1]:} \quad & f_i < \operatorname{mean}(f) - \alpha \operatorname{sd}(f)

    ``mean`` is the rule of [1]_. Misfits enlarge the standard deviation: of n candidates, k equal misfits lie
    :math:`\sqrt{(n - k) / k}` standard deviations below the mean, so that with :math:`\alpha = 2` two misfits of ten
    are never dropped. ``median`` uses the median absolute deviation [2]_, which fewer than half of the candidates
    cannot enlarge. :math:`m` is `margin`: in a small library whose atlases are alike the deviation can be near 0. On
    phantoms with 1 to 4 misfits among 5 to 20 atlases the default dropped all misfits and at most 7 % of the others.

    The iteration ends when no candidate is dropped and :math:`L` does not change. The overlap is the Dice
    coefficient, averaged over the labels, inside the field of view of the candidate. Background and labels that are
    not annotated in the candidate are left out.

    Parameters
    ----------
    target : Image
        The scan; only its grid is used.
    candidates : sequence of Atlas
        On the target's grid; fractions count as their most probable label. Outside its mask a candidate does not vote.
    rule : str
        `median` or `mean`, see above.
    alpha : float, optional
        Maximum number of deviations below the median or mean, 0 or more; by default 3 for `median` and 2 for
        `mean`.
    margin : float
        For `median`: candidates whose performance (Dice) is within this distance of the median are kept, 0 or more.
    power : float
        The exponent p, 0 or more; with 0 the candidates that are kept have equal weights.
    max_iterations : int
        Maximum number of iterations.

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
    .. [1] Langerak et al. (2010), Label fusion in atlas-based segmentation using a selective and iterative method for
       performance level estimation (SIMPLE), IEEE TMI 29(12):2000-2008.
    .. [2] Leys et al. (2013), Detecting outliers: do not use standard deviation around the mean, use absolute deviation
       around the median, Journal of Experimental Social Psychology 49(4):764-766.
    """
    if rule not in DEVIATIONS:
        raise InputError(f"simple: rule: expected one of {', '.join(DEVIATIONS)}, got {rule!r}")
    alpha = DEVIATIONS[rule] if alpha is None else alpha
    if not (alpha >= 0 and margin >= 0 and power >= 0 and max_iterations >= 1):
        raise InputError(
            f"simple: expected alpha, margin and power of 0 or more and max_iterations of at least 1, got {alpha}, "
            f"{margin}, {power} and {max_iterations}"
        )
    votes = Votes.gather(target, candidates, hard=True)
    weights = np.ones(len(candidates))
    fused = votes.cast(weights, name=target.name)
    if votes.voxels.size == 0:
        return fused
    overlap = _Overlap(votes, candidates)
    kept = np.bincount(votes.entry_candidates, minlength=len(candidates)) > 0  # the others cover no active voxel
    for _ in range(max_iterations):
        performance = overlap(fused.mode.reshape(-1)[votes.voxels])
        dropped = kept & (performance < _threshold(performance[kept], rule, alpha, margin) - ROUNDING)
        kept &= ~dropped
        weights = np.where(kept, performance**power, 0.0)
        before, fused = fused, votes.cast(weights, name=target.name)
        for index in np.flatnonzero(dropped):
            log.debug("simple: dropped atlas %s, overlap %.3f", candidates[index].id, performance[index])
        if not dropped.any() and np.array_equal(before.mode, fused.mode):
            break
    log.info("simple: kept %d of %d atlases for %s", kept.sum(), kept.size, target.name)
    return fused


def _threshold(performance: Float64, rule: str, alpha: float, margin: float) -> float:
    """The performance below which candidates are dropped."""
    if rule == "mean":
        return float(performance.mean() - alpha * performance.std())
    middle = np.median(performance)
    return float(middle - max(alpha * NORMAL * np.median(np.abs(performance - middle)), margin))


class _Overlap:
    """Mean Dice of each candidate and an estimate that changes at the active voxels only."""

    def __init__(self, votes: Votes, candidates: Sequence[Atlas]) -> None:
        n, labels = votes.unknown.shape
        self._votes = votes
        self._row = np.repeat(np.arange(votes.voxels.size), np.diff(votes.entry_offsets))
        self._key = votes.entry_candidates.astype(np.int64) * labels
        self._said = votes.entry_labels
        self._agreed = np.zeros((n, labels), np.int64)
        inactive = np.ones(votes.certain.size, bool)
        inactive[votes.voxels] = False
        certain = np.searchsorted(votes.label_values, votes.certain.reshape(-1)[inactive])
        everywhere = np.bincount(certain, minlength=labels)
        for i, atlas in enumerate(candidates):
            seen = everywhere
            if atlas.mask is not None:
                seen = np.bincount(certain[atlas.mask.array.reshape(-1)[inactive]], minlength=labels)
            self._agreed[i] = seen
        self._counted: Bool = ~votes.unknown & (votes.label_values != 0)

    def __call__(self, estimate: Int32) -> Float64:
        """(N,) mean Dice with `estimate`, (M,) label values at the active voxels; 1 where no label counts."""
        shape = self._agreed.shape
        true = np.searchsorted(self._votes.label_values, estimate)[self._row]
        size = shape[0] * shape[1]
        both = np.bincount((self._key + self._said)[true == self._said], minlength=size).reshape(shape)
        said = np.bincount(self._key + self._said, minlength=size).reshape(shape)
        meant = np.bincount(self._key + true, minlength=size).reshape(shape)
        total = said + meant + 2 * self._agreed
        dice = np.divide(2 * (both + self._agreed), total, out=np.ones(shape), where=total > 0)
        counted = self._counted & (total > 0)
        number = counted.sum(axis=1)
        summed = np.where(counted, dice, 0).sum(axis=1)
        return np.asarray(np.divide(summed, number, out=np.ones(shape[0]), where=number > 0))
