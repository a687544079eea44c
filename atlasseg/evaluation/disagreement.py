"""How many of the candidates say something else than the segmentation that was made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import GeometryError
from atlasseg.volume import Atlas, Float32, LabelMap


def disagreement(candidates: Sequence[Atlas], segmentation: LabelMap) -> Float32:
    """Share of the candidates' votes that are not for the label of a segmentation.

    Unlike entropy it does not depend on how the candidates were weighted: where a fusion is certain against most of
    them it is high.

    Parameters
    ----------
    candidates : sequence of Atlas
        On the grid of the segmentation, labels hard or fractions. Outside its mask a candidate has no vote, nor has it
        one for or against a label that was not annotated in it.
    segmentation : LabelMap
        What was made of them.

    Returns
    -------
    (I, J, K) float32
        From 0, where all say the same, to 1; 0 where nobody has a vote.

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
                f"atlas {atlas.id!r} is not on the grid of the segmentation: shapes {atlas.labels.shape} and "
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
    """(I, J, K) how much of a candidate's vote is for the label of the segmentation."""
    if isinstance(atlas.labels, LabelMap):
        hard: Float32 = (atlas.labels.array == segmentation.array).astype(np.float32)
        return hard
    said = atlas.labels
    share: Float32 = (said.mode == segmentation.array).astype(np.float32)
    flat = share.reshape(-1)
    flat[said.voxels] = 0
    voxels = said.entry_voxels
    meant = said.labels == segmentation.array.reshape(-1)[voxels]
    flat[voxels[meant]] = said.values[meant]
    return share
