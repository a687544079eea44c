"""Disagreement of the atlases: fraction of the candidates that vote for another label than the segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import GeometryError
from atlasseg.volume import Atlas, Float32, LabelMap

__all__ = ["disagreement"]


def disagreement(candidates: Sequence[Atlas], segmentation: LabelMap) -> Float32:
    """Compute the fraction of the candidates' votes that are not for the label of a segmentation.

    Unlike the entropy it does not depend on the weights of the candidates: it is high where a fusion is certain of a
    label that most candidates do not have.

    Parameters
    ----------
    candidates : sequence of Atlas
        Propagated atlases on the grid of the segmentation, with hard labels or label probabilities. A candidate has no
        vote outside its mask, and none on a label that is not annotated in it.
    segmentation : LabelMap
        Segmentation that was fused from the candidates.

    Returns
    -------
    (I, J, K) float32
        Disagreement from 0 (all candidates agree) to 1; 0 where no candidate has a vote.

    Raises
    ------
    GeometryError
        A candidate is on another grid.
    """
    against = np.zeros(segmentation.shape, np.float32)
    voters = np.zeros(segmentation.shape, np.int32)
    for atlas in candidates:
        if not atlas.labels.grid.matches(segmentation.grid):
            raise GeometryError(
                f"atlas {atlas.id!r}: expected the grid of the segmentation, got shapes {atlas.labels.shape} and "
                f"{segmentation.shape}, affines {atlas.labels.affine.tolist()} and {segmentation.affine.tolist()}"
            )
        knows = ~np.isin(segmentation.array, sorted(atlas.not_annotated))
        if atlas.mask is not None:
            knows &= atlas.mask.array
        voters += knows
        against += np.where(knows, 1 - _share_for(atlas, segmentation), 0)
    against /= np.maximum(voters, 1)
    return against


def _share_for(atlas: Atlas, segmentation: LabelMap) -> Float32:
    """Fraction of a candidate's vote for the label of the segmentation, (I, J, K)."""
    if isinstance(atlas.labels, LabelMap):
        hard: Float32 = (atlas.labels.array == segmentation.array).astype(np.float32)
        return hard
    votes = atlas.labels
    share: Float32 = (votes.mode == segmentation.array).astype(np.float32)
    flat = share.reshape(-1)
    flat[votes.voxels] = 0
    voxels = votes.entry_voxels
    same = votes.labels == segmentation.array.reshape(-1)[voxels]
    flat[voxels[same]] = votes.values[same]
    return share
