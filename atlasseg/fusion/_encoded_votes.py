"""Encoded votes of the candidates for whole-patch voting: one small integer per candidate and voxel.

A *slot* is a label together with the group of candidates it comes from, a group being the candidates in which the
same labels were not annotated. A *code* below the number of slots is that slot with certainty; a larger one points to a
list of slots with fractions. Outside a candidate's field of view its code is -1: no vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.volume import Atlas, Bool, Int32, Int64, LabelMap, LabelWeights, ProbabilityMap


@dataclass(frozen=True, eq=False)
class EncodedVotes:
    """Votes of all candidates in a box, as codes.

    Parameters
    ----------
    codes : (N, i, j, k) int32
        Code of each candidate at each voxel of the box.
    start : (3,) int64
        First voxel of the box in the target's grid; may be negative.
    lists : LabelWeights
        Row u is the list of code ``slots + u``: slots (int32), and the fraction of the vote for each (float32).
    label_values : (L,) int32
        Every label, ascending; 0 among them.
    unknown : (G, L) bool
        Labels that were not annotated in each group of candidates. Slot g L + l is label l of group g.
    """

    codes: Int32
    start: Int64
    lists: LabelWeights
    label_values: Int32
    unknown: Bool

    @classmethod
    def gather(cls, candidates: Sequence[Atlas], start: Int64, stop: Int64) -> EncodedVotes:
        """Encode the votes in the box from `start` to `stop`, which may extend beyond the grid (no votes there)."""
        shape = candidates[0].image.shape
        every: set[int] = {0}
        for atlas in candidates:
            every |= set(atlas.label_values.tolist())
        label_values = np.array(sorted(every), np.int32)
        groups = sorted({_missing_labels(atlas, every) for atlas in candidates})
        unknown = np.array([[label in group for label in label_values.tolist()] for group in groups], bool)
        slots = len(groups) * label_values.size

        first, last = np.maximum(start, 0), np.minimum(stop, shape)
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        within = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
        codes = np.full((len(candidates), *(stop - start)), -1, np.int32)
        offsets, list_slots, list_fractions = [np.zeros(1, np.int64)], [], []
        lists = entries = 0
        for n, atlas in enumerate(candidates):
            shift = groups.index(_missing_labels(atlas, every)) * label_values.size
            if isinstance(atlas.labels, LabelMap):
                code = shift + np.searchsorted(label_values, atlas.labels.array[box])
            else:
                part = atlas.labels.cropped(first, last)
                code = shift + np.searchsorted(label_values, part.mode)
                code.reshape(-1)[part.voxels] = slots + lists + np.arange(part.voxels.size)
                offsets.append(entries + part.offsets[1:])
                list_slots.append(shift + np.searchsorted(label_values, part.labels))
                list_fractions.append(part.values)
                lists += part.voxels.size
                entries += part.values.size
            if atlas.mask is not None:
                code[~atlas.mask.array[box]] = -1
            codes[n][within] = code
        return cls(
            codes,
            np.asarray(start, np.int64),
            LabelWeights(
                np.concatenate(offsets),
                np.concatenate([np.zeros(0, np.int32), *list_slots]).astype(np.int32),
                np.concatenate([np.zeros(0, np.float32), *list_fractions]).astype(np.float32),
            ),
            label_values,
            unknown,
        )


def _missing_labels(atlas: Atlas, every: set[int]) -> tuple[int, ...]:
    return tuple(sorted((atlas.not_annotated & every) - {0}))


def find_disagreement(candidates: Sequence[Atlas]) -> tuple[Int32, Bool]:
    """Find the label (I, J, K) on which all candidates agree, and the voxels (I, J, K) where they disagree.

    A candidate does not vote outside its field of view. Where no candidate votes, the label is background (0). A voxel
    where a candidate is not certain counts as disagreement.
    """
    shape = candidates[0].image.shape
    certain = np.zeros(shape, np.int32)
    covered = np.zeros(shape, bool)
    disagreement = np.zeros(shape, bool)
    for atlas in candidates:
        mode = atlas.segmentation.array
        here = np.ones(shape, bool) if atlas.mask is None else atlas.mask.array
        disagreement |= here & covered & (mode != certain)
        new = here & ~covered
        certain[new] = mode[new]
        covered |= here
        if isinstance(atlas.labels, ProbabilityMap):
            uncertain = atlas.labels.voxels
            disagreement.reshape(-1)[uncertain[here.reshape(-1)[uncertain]]] = True
    return certain, disagreement
