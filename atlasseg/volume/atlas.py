"""Atlases: labelled scans, or templates with label probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import display
from atlasseg.volume.dense import Image, LabelMap, Mask
from atlasseg.volume.grid import Grid, Int32
from atlasseg.volume.probabilities import ProbabilityMap


@dataclass(frozen=True, eq=False, repr=False)
class Atlas:
    """A labelled scan, or a template with label probabilities.

    Parameters
    ----------
    id : str
        Identifier, unique within a library.
    image : Image
        The scan or template.
    labels : LabelMap or ProbabilityMap
        Hard labels, or label probabilities (of a propagated or probabilistic atlas), on the grid of the image.
    mask : Mask, optional
        Voxels where the image is valid: the field of view of a propagated atlas, or the user's foreground mask of an
        atlas of a library. None means everywhere.
    not_annotated : frozenset of int
        Labels that are not annotated in this atlas. Its background voxels may belong to any of them.
    """

    id: str
    image: Image
    labels: LabelMap | ProbabilityMap
    mask: Mask | None = None
    not_annotated: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for volume, kind in ((self.labels, "labels"), (self.mask, "mask")):
            if volume is not None and not self.image.grid.matches(volume.grid):
                raise GeometryError(
                    f"atlas {self.id!r}: expected its {kind} on the grid of its image, got shape {volume.shape} and "
                    f"{self.image.shape}, affines {volume.affine.tolist()} and {self.image.affine.tolist()}"
                )

    def __repr__(self) -> str:
        kind = "labels" if isinstance(self.labels, LabelMap) else "label probabilities"
        facts = [f"id: {self.id}", self.image.grid.describe(), kind + display.format_labels(self.label_values)[6:]]
        facts += ["with a mask"] if self.mask is not None else []
        facts += [f"not annotated: {sorted(self.not_annotated)}"] if self.not_annotated else []
        return f"Atlas({'; '.join(facts)})"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.image.grid, self.image.channels[..., 0], self.segmentation.array))

    @property
    def grid(self) -> Grid:
        """Grid of the image and the labels."""
        return self.image.grid

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the grid, (I, J, K)."""
        return self.image.shape

    @property
    def segmentation(self) -> LabelMap:
        """Label map with the most probable label of each voxel."""
        return self.labels if isinstance(self.labels, LabelMap) else self.labels.label_map()

    @property
    def label_values(self) -> Int32:
        """Label values of the atlas, ascending."""
        return self.labels.values if isinstance(self.labels, LabelMap) else self.labels.label_values


def check_channels(target: Image, candidates: Sequence[Atlas]) -> None:
    """Check that all candidates have the same number of channels as the target.

    Parameters
    ----------
    target : Image
        The target.
    candidates : sequence of Atlas
        The candidates.

    Raises
    ------
    InputError
        A candidate has another number of channels. The message names it.
    """
    channels = target.channels.shape[-1]
    for atlas in candidates:
        if atlas.image.channels.shape[-1] != channels:
            raise InputError(
                f"atlas {atlas.id!r}: expected {channels} channels, as in the target {target.name!r}, "
                f"got {atlas.image.channels.shape[-1]}"
            )
