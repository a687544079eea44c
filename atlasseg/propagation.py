"""An atlas carried onto the target's grid, in one resampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from atlasseg.resampling import coverage, resample, resample_fractions
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Grid, LabelMap, ProbabilityMap

__all__ = ["propagate"]


def propagate(
    atlas: Atlas,
    transform: Transform,
    grid: Grid,
    *,
    interpolation: Literal["linear", "gaussian", "nearest"] = "linear",
    fractions: bool = True,
) -> Atlas:
    """The atlas as a candidate for the segmentation of a target.

    Parameters
    ----------
    atlas : Atlas
        With hard labels, or with label probabilities.
    transform : Transform
        Takes points of the target to points of the atlas (`moving_from_fixed`, RAS+ mm).
    grid : Grid
        The target's.
    interpolation : {"linear", "gaussian", "nearest"}
        How each label is carried over on its own, see `atlasseg.resampling.resample`.
    fractions : bool
        Keep each label's share of a voxel; otherwise the largest share takes the voxel, the smallest label on a tie.

    Returns
    -------
    Atlas
        On `grid`, with the same id and the same labels not annotated. Its mask says where the atlas's field of view
        covers the grid: elsewhere the image has its smallest intensity and the label is 0, which mean nothing.
        A mask that the atlas had of its own, its foreground, has done its work in registration and is not kept.
    """
    image = resample(atlas.image, grid, transform)
    labels: LabelMap | ProbabilityMap
    if fractions:
        labels = resample_fractions(atlas.labels, grid, transform, interpolation=interpolation)
    elif isinstance(atlas.labels, LabelMap):
        labels = resample(atlas.labels, grid, transform, interpolation=interpolation)
    else:
        labels = resample(atlas.labels, grid, transform, interpolation=interpolation).label_map()
    return replace(atlas, image=image, labels=labels, mask=coverage(atlas.image.grid, grid, transform))
