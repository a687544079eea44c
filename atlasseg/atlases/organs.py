"""Organs of atlases: the masks that come with the scans, or else everything that is labelled.

::

    LIBRARY/images/ID.nii.gz     scans
    LIBRARY/masks/ID.nii.gz      the organ in them; where not every atlas has a mask,
    LIBRARY/labels/ID.nii.gz     structures, which are the organ together: every label above 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from atlasseg.errors import InputError
from atlasseg.volume import Atlas, Float32, Float64, LabelMap, Mask, ProbabilityMap

ORGAN = 1
"""Label of the organ in an organ atlas."""


def organs_of(atlases: Sequence[Atlas]) -> list[Atlas]:
    """Make atlases of one label, the organ, from atlases of any labels.

    Parameters
    ----------
    atlases : sequence of Atlas
        Where every one has a mask that was read from a file of its own, the masks are the organ. Otherwise it is all
        that is not label 0.

    Returns
    -------
    list of Atlas
        With the label 1 where the organ is, and without masks. Where labels of an atlas were not annotated, its
        background may be organ too.

    Raises
    ------
    InputError
        An atlas has neither a label above 0 nor a mask. The message names its file.
    """
    masks = [_own_mask(atlas) for atlas in atlases]
    if None in masks:
        masks = [None] * len(masks)
    return [_organ_of(atlas, mask) for atlas, mask in zip(atlases, masks, strict=True)]


def _own_mask(atlas: Atlas) -> Mask | None:
    """Mask of an atlas that was read from a file of its own: not where its intensities are finite."""
    if atlas.mask is None or atlas.mask.source_header.path in (None, atlas.image.source_header.path):
        return None
    return atlas.mask


def _organ_of(atlas: Atlas, mask: Mask | None) -> Atlas:
    found: LabelMap | ProbabilityMap
    if mask is not None or isinstance(atlas.labels, LabelMap):
        volume: Mask | LabelMap = mask if mask is not None else atlas.labels  # type: ignore[assignment]
        found = LabelMap((volume.array != 0).astype(np.int32), atlas.image.affine, atlas.id)
        empty = not found.array.any()
    else:
        volume = atlas.labels.label_map()
        share = 1 - atlas.labels.probability(0)
        found, empty = organ_probabilities(share, atlas.image.affine, atlas.id), not (share > 0).any()
    if empty:
        raise InputError(
            f"{volume.source_header.path or volume.name or atlas.id}: expected an organ in atlas {atlas.id!r} (a label "
            "above 0, or a mask), got background alone. Add its labels or its mask, or remove the atlas."
        )
    incomplete = mask is None and bool(atlas.not_annotated)
    return replace(atlas, labels=found, mask=None, not_annotated=frozenset({ORGAN}) if incomplete else frozenset())


def organ_probabilities(probability: Float32, affine: Float64, name: str = "") -> ProbabilityMap:
    """Make the map of the labels 0 and 1 (the organ) from the probability of the organ, (I, J, K)."""
    certain = (probability > 0.5).astype(np.int32)
    uncertain = np.flatnonzero((probability > 0) & (probability < 1))
    values = probability.reshape(-1)[uncertain].astype(np.float64)
    return ProbabilityMap.from_entries(
        certain,
        affine,
        np.concatenate([uncertain, uncertain]),
        np.repeat([0, ORGAN], uncertain.size),
        np.concatenate([1 - values, values]),
        label_values=(0, ORGAN),
        name=name,
    )


def organ_volume_mm3(atlas: Atlas) -> float:
    """Volume of the organ of an atlas from `organ_of`."""
    labels = atlas.labels
    voxels = (labels.array != 0).sum() if isinstance(labels, LabelMap) else labels.probability(ORGAN).sum()
    return float(voxels) * abs(float(np.linalg.det(atlas.image.affine[:3, :3])))
