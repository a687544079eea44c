"""Labels with weights at many places, each place with a list of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.volume.grid import Bool, Int64


@dataclass(frozen=True, eq=False)
class LabelWeights:
    """Some labels, each with a weight, at each of M places (voxels, or groups of voxels), as in a CSR matrix.

    Memory grows with the labels that are possible at a place, not with places times labels.

    Parameters
    ----------
    offsets : (M + 1,) int64
        Where the entries of each place begin and end.
    labels : (E,) int
        Label of each entry, or its index among the labels; ascending within a place.
    values : (E,) floating
        Weight of each entry: a probability, or a prior.
    """

    offsets: Int64
    labels: NDArray[Any]
    values: NDArray[Any]

    @property
    def sizes(self) -> Int64:
        """(M,) number of entries of each place."""
        return np.diff(self.offsets)

    @property
    def places(self) -> Int64:
        """(E,) place of each entry."""
        return np.repeat(np.arange(self.offsets.size - 1), self.sizes)

    def with_values(self, values: NDArray[Any]) -> LabelWeights:
        """The same labels with other weights."""
        return replace(self, values=values)

    def take(self, places: NDArray[np.integer[Any]]) -> LabelWeights:
        """The entries of some places, in the order given; a place may be given more than once.

        Examples
        --------
        >>> weights = LabelWeights(np.array([0, 2, 3]), np.array([4, 7, 9]), np.array([0.5, 0.5, 1.0]))
        >>> weights.take(np.array([1, 0])).labels.tolist()
        [9, 4, 7]
        """
        offsets, entries = take_entries(self.offsets, places)
        return LabelWeights(offsets, self.labels[entries], self.values[entries])

    def keep(self, chosen: Bool) -> LabelWeights:
        """The chosen (E,) entries alone; a place may be left without any."""
        kept = np.concatenate(([0], np.cumsum(chosen)))
        return LabelWeights(kept[self.offsets], self.labels[chosen], self.values[chosen])


def take_entries(offsets: Int64, places: NDArray[np.integer[Any]]) -> tuple[Int64, Int64]:
    """Of some places of a CSR matrix: their own offsets, and the index of each of their entries among all entries."""
    sizes = np.diff(offsets)[places]
    own = np.concatenate(([0], np.cumsum(sizes)))
    return own, np.arange(own[-1]) + np.repeat(offsets[places] - own[:-1], sizes)
