"""Prediction of the Dice of a segmentation without a reference, from its atlases or its probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Atlas, LabelMap, ProbabilityMap

__all__ = ["atlas_agreement", "expected_dice"]


def atlas_agreement(candidates: Sequence[Atlas], segmentation: LabelMap) -> dict[int, float]:
    """Compute the mean Dice between each label of the candidates and of the segmentation.

    For label l of segmentation S and candidates A_1..A_N, each on the voxels K_i inside its mask::

        a_l = mean over i of 2 |A_i = l and S = l| / (|A_i = l| + |S = l|)      (counts within K_i)

    The agreement is low if registrations failed, or if the target is unlike all atlases. It ranks segmentations like
    their Dice, but is lower, since a fusion is more accurate than its atlases.

    Parameters
    ----------
    candidates : sequence of Atlas
        Propagated atlases on the grid of the segmentation. Of label probabilities, the most probable label counts.
    segmentation : LabelMap
        Segmentation that was fused from the candidates.

    Returns
    -------
    dict
        Mean Dice, 0 to 1, of every label of the segmentation or the candidates except background. Candidates in which
        the label is not annotated, or whose mask has no voxel of it, are left out of the mean; NaN if all are.

    Raises
    ------
    InputError
        There are no candidates.
    GeometryError
        A candidate is on another grid.
    """
    if not candidates:
        raise InputError("expected at least one atlas for the agreement, got none")
    chosen = [atlas.segmentation for atlas in candidates]
    for atlas, labels in zip(candidates, chosen, strict=True):
        if not labels.grid.matches(segmentation.grid):
            raise GeometryError(
                f"atlas {atlas.id!r}: expected the grid of the segmentation, got shapes {labels.shape} and "
                f"{segmentation.shape}, affines {labels.affine.tolist()} and {segmentation.affine.tolist()}"
            )
    values = np.unique(np.concatenate([segmentation.values, *(labels.values for labels in chosen)]))
    made = np.searchsorted(values, segmentation.array)
    scores = np.full((len(candidates), values.size), np.nan)
    for n, (atlas, labels) in enumerate(zip(candidates, chosen, strict=True)):
        known = slice(None) if atlas.mask is None else atlas.mask.array
        votes, ours = np.searchsorted(values, labels.array[known]).ravel(), made[known].ravel()
        counts = [np.bincount(part, minlength=values.size) for part in (votes, ours, ours[votes == ours])]
        total = counts[0] + counts[1]
        total[np.isin(values, sorted(atlas.not_annotated))] = 0
        np.divide(2 * counts[2], total, out=scores[n], where=total > 0)
    valid = np.isfinite(scores)
    means = np.where(valid, scores, 0).sum(0) / np.where(valid.any(0), valid.sum(0), np.nan)
    return {int(v): float(m) for v, m in zip(values, means, strict=True) if v != 0}


def expected_dice(probabilities: ProbabilityMap) -> dict[int, float]:
    r"""Predict the Dice coefficient of each label from the probabilities alone, without a reference.

    The most probable labels are compared with a true segmentation :math:`T` that is drawn voxel by voxel from the
    probabilities. With :math:`S_l` the voxels whose most probable label is :math:`l`, and :math:`p_l` the probability
    of :math:`l`, the expectation of :math:`2 |T \cap S| / (|T| + |S|)` is approximated by the ratio of the
    expectations:

    .. math::

        e_l = \frac{2 \sum_{x \in S_l} p_l(x)}{|S_l| + \sum_x p_l(x)}

    This is the Dice coefficient to expect if the probabilities are calibrated and the label has many voxels.

    Parameters
    ----------
    probabilities : ProbabilityMap
        Probabilities of a segmentation.

    Returns
    -------
    dict
        Expected Dice, 0 to 1, of every label with a probability above 0 except background.
    """
    values = probabilities.label_values
    mode = np.searchsorted(values, probabilities.mode)
    size = np.bincount(mode.ravel(), minlength=values.size)
    certain = np.ones(mode.size, bool)
    certain[probabilities.voxels] = False
    hit = np.bincount(mode.ravel()[certain], minlength=values.size).astype(float)
    mass = hit.copy()
    number = np.searchsorted(values, probabilities.labels)
    weights = probabilities.values.astype(float)
    mass += np.bincount(number, weights=weights, minlength=values.size)
    won = mode.ravel()[probabilities.entry_voxels] == number
    hit += np.bincount(number[won], weights=weights[won], minlength=values.size)
    return {
        int(v): float(2 * h / (n + m)) for v, n, m, h in zip(values, size, mass, hit, strict=True) if v != 0 and m > 0
    }
