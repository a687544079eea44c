"""SIMPLE: weighted vote that drops, again and again, the atlases that disagree most; for libraries with misfits."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._votes import Votes
from atlasseg.methods import method
from atlasseg.volume import Atlas, Bool, Float64, Image, Int32, ProbabilityMap

log = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Performances closer than this are equal: identical atlases stay or go together."""


@method("fusion", compares_intensities=False)
def fuse(
    target: Image, candidates: Sequence[Atlas], *, alpha: float = 2.0, power: float = 1.0, max_iterations: int = 20
) -> ProbabilityMap:
    r"""Fuse by the selective and iterative method for performance level estimation (SIMPLE).

    Start from all candidates with equal weights, and repeat ([1]_, section II):

    1. Compute :math:`L`, the vote of the candidates that are left, each weighted by :math:`f_i^{\,p}`.
    2. Compute the performance :math:`f_i` of each candidate: the overlap of :math:`L_i` and :math:`L`.
    3. Drop the candidates whose performance is low:

    .. math::

        f_i < \operatorname{mean}(f) - \alpha \operatorname{sd}(f)

    The iteration ends when no candidate is dropped and :math:`L` does not change. The overlap is the Dice
    coefficient, averaged over the labels, inside the field of view of the candidate. Background and labels that are
    not annotated in the candidate are left out.

    Parameters
    ----------
    target : Image
        The scan; only its grid is used.
    candidates : sequence of Atlas
        On the target's grid; fractions count as their most probable label. Outside its mask a candidate does not vote.
    alpha : float
        How many standard deviations below the mean a candidate may be, 0 or more.
    power : float
        The exponent p, 0 or more; 0 only selects.
    max_iterations : int
        At most so many.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, or a parameter is out of its range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Langerak et al. (2010), Label fusion in atlas-based segmentation using a selective and iterative method for
       performance level estimation (SIMPLE), IEEE TMI 29(12):2000-2008.
    """
    if alpha < 0 or power < 0 or max_iterations < 1:
        raise InputError(
            f"simple needs alpha and power of 0 or more and max_iterations of at least 1, got {alpha}, {power}, "
            f"{max_iterations}"
        )
    votes = Votes.gather(target, candidates, hard=True)
    kept = np.ones(len(candidates), bool)
    weights = np.ones(len(candidates))
    fused = votes.cast(weights, name=target.name)
    if votes.voxels.size == 0:
        return fused
    overlap = _Overlap(votes, candidates)
    for _ in range(max_iterations):
        performance = overlap(fused.mode.reshape(-1)[votes.voxels])
        bar = performance[kept].mean() - alpha * performance[kept].std()
        dropped = kept & (performance < bar - ROUNDING)
        kept &= ~dropped
        weights = np.where(kept, performance**power, 0.0)
        before, fused = fused, votes.cast(weights, name=target.name)
        for index in np.flatnonzero(dropped):
            log.debug("simple: dropped atlas %s, overlap %.3f", candidates[index].id, performance[index])
        if not dropped.any() and np.array_equal(before.mode, fused.mode):
            break
    log.info("simple: kept %d of %d atlases for %s", kept.sum(), kept.size, target.name)
    return fused


class _Overlap:
    """Mean Dice of every candidate with an estimate that differs from vote to vote only at the active voxels."""

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
