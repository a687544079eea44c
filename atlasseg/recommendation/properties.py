"""Properties of a library that candidate settings are derived from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.volume import Atlas

__all__ = ["LibraryProperties", "describe_properties"]


@dataclass(frozen=True)
class LibraryProperties:
    """Sizes of a library: medians over its atlases.

    Parameters
    ----------
    atlases, persons : int
        Number of atlases, and of persons that they show.
    channels : int
        Channels of a scan.
    shape : tuple of int
        Voxels along each axis.
    spacing_mm : tuple of float
        Voxel size along each axis.
    labels : int
        Number of labels, without background.
    smallest_label_voxels : float
        Size of the smallest label.
    box_share : float
        Share of the field of view, from 0 to 1, in the box around all labels.
    masks : bool
        Whether every atlas has a mask.
    """

    atlases: int
    persons: int
    channels: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    labels: int
    smallest_label_voxels: float
    box_share: float
    masks: bool

    @property
    def anisotropy(self) -> float:
        """Ratio of the longest to the shortest side of a voxel."""
        return max(self.spacing_mm) / min(self.spacing_mm)

    @property
    def coarse_axis(self) -> int:
        """Axis along which voxels are longest."""
        return int(np.argmax(self.spacing_mm))

    def describe(self) -> str:
        """Describe the library in one sentence.

        Returns
        -------
        str
            Its sizes.
        """
        shape = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{value:.3g}" for value in self.spacing_mm)
        return (
            f"{self.atlases} atlases of {self.persons} persons; {shape} voxels of {spacing} mm, {self.channels} "
            f"channel{'s' if self.channels > 1 else ''}, {'masks' if self.masks else 'no masks'}; {self.labels} "
            f"labels, the smallest of {self.smallest_label_voxels:.0f} voxels; the box around the labels is "
            f"{self.box_share:.0%} of the field of view (medians over the atlases)."
        )


def describe_properties(atlases: Sequence[Atlas], *, persons: int) -> LibraryProperties:
    """Measure the properties of a library.

    Parameters
    ----------
    atlases : sequence of Atlas
        The library.
    persons : int
        Number of persons that it shows.

    Returns
    -------
    LibraryProperties
    """
    shares, smallest = [], []
    for atlas in atlases:
        labels = atlas.segmentation.array
        where = np.argwhere(labels != 0)
        if len(where):
            shares.append(float(np.prod(np.ptp(where, axis=0) + 1) / labels.size))
            smallest.append(int(np.unique(labels[labels != 0], return_counts=True)[1].min()))
    values = {int(value) for atlas in atlases for value in atlas.label_values} - {0}
    i, j, k = (int(n) for n in np.median([atlas.image.shape for atlas in atlases], axis=0))
    x, y, z = (float(n) for n in np.median([atlas.image.spacing_mm for atlas in atlases], axis=0))
    return LibraryProperties(
        len(atlases),
        persons,
        atlases[0].image.channels.shape[-1],
        (i, j, k),
        (x, y, z),
        len(values),
        float(np.median(smallest)) if smallest else 0.0,
        float(np.median(shares)) if shares else 0.0,
        all(atlas.mask is not None for atlas in atlases),
    )
