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
        Unique within a library.
    image : Image
        The scan or template.
    labels : LabelMap or ProbabilityMap
        On the image's grid: hard labels, or fractions (a propagated or probabilistic atlas).
    mask : Mask, optional
        Where the image is known: of a propagated atlas, where its field of view covers the target's grid;
        of an atlas as read, the foreground that its user drew. None means everywhere.
    not_annotated : frozenset of int
        Labels that nobody drew in this atlas: where it says background it may be any of them.
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
                    f"atlas {self.id!r}: its {kind} are not on the grid of its image: shape {volume.shape} and "
                    f"{self.image.shape}, affines {volume.affine.tolist()} and {self.image.affine.tolist()}"
                )

    def __repr__(self) -> str:
        kind = "labels" if isinstance(self.labels, LabelMap) else "label probabilities"
        facts = [f"id: {self.id}", self.image.grid.described(), kind + display.listed_labels(self.label_values)[6:]]
        facts += ["with a mask"] if self.mask is not None else []
        facts += [f"not annotated: {sorted(self.not_annotated)}"] if self.not_annotated else []
        return f"Atlas({'; '.join(facts)})"

    def _repr_html_(self) -> str:
        return display.html(self, display.slices(self.image.grid, self.image.channels[..., 0], self.segmentation.array))

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return self.image.grid

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        return self.image.shape

    @property
    def segmentation(self) -> LabelMap:
        """Its labels as one label a voxel, the most probable where they are fractions."""
        return self.labels if isinstance(self.labels, LabelMap) else self.labels.label_map()

    @property
    def label_values(self) -> Int32:
        """Labels it speaks of, ascending."""
        return self.labels.values if isinstance(self.labels, LabelMap) else self.labels.label_values


def check_channels(target: Image, candidates: Sequence[Atlas]) -> None:
    """Refuse candidates whose intensities cannot be compared with the target's.

    Raises
    ------
    InputError
        A candidate has not as many channels as the target: the message names it.
    """
    channels = target.channels.shape[-1]
    for atlas in candidates:
        if atlas.image.channels.shape[-1] != channels:
            raise InputError(
                f"atlas {atlas.id!r} has {atlas.image.channels.shape[-1]} channels, "
                f"the target {target.name!r} has {channels}"
            )
