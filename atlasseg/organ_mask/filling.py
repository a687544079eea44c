"""Labels that fill a mask: none outside it, and inside it the most probable one that is not background."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from atlasseg.errors import GeometryError
from atlasseg.volume import Mask, ProbabilityMap


def fill_mask(probabilities: ProbabilityMap, mask: Mask) -> ProbabilityMap:
    """Confine a segmentation to a mask, and fill the mask with its labels.

    Parameters
    ----------
    probabilities : ProbabilityMap
        Of all labels and background.
    mask : Mask
        On the same grid.

    Returns
    -------
    ProbabilityMap
        Outside the mask certain background. Inside, the probabilities of the labels without background, scaled to sum
        1; where only background was possible, the label of the nearest voxel in the mask that has one.

    Raises
    ------
    GeometryError
        The mask is on another grid.
    """
    if not mask.grid.matches(probabilities.grid):
        raise GeometryError(
            f"the mask is not on the grid of the segmentation: expected {probabilities.grid.describe()}, got "
            f"{mask.grid.describe()}"
        )
    inside = mask.array.reshape(-1)
    entries = inside[probabilities.entry_voxels] & (probabilities.labels != 0)
    voxels = probabilities.entry_voxels[entries]
    certain = np.where(mask.array, probabilities.mode, 0)
    flat = certain.reshape(-1)
    uncertain = probabilities.voxels[inside[probabilities.voxels]]
    flat[uncertain] = 0
    best = probabilities.labels[entries][np.lexsort((-probabilities.values[entries], voxels))]
    first = np.unique(voxels, return_index=True)
    flat[first[0]] = best[first[1]]
    bare = mask.array & (certain == 0)
    if bare.any() and (certain != 0).any():
        nearest = ndimage.distance_transform_edt(
            certain == 0, sampling=mask.grid.spacing_mm, return_distances=False, return_indices=True
        )
        certain[bare] = certain[tuple(axis[bare] for axis in nearest)]
    return ProbabilityMap.from_entries(
        certain,
        probabilities.affine,
        voxels,
        probabilities.labels[entries],
        probabilities.values[entries],
        label_values=probabilities.label_values,
        name=probabilities.name,
    )
