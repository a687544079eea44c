"""Sparse label weights: a list of labels and their weights at each of many places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.volume.grid import Bool, Int64


@dataclass(frozen=True, eq=False)
class LabelWeights:
    """Sparse weights of labels at M places (voxels, or groups of voxels), stored as in a CSR matrix.

    Memory grows with the number of entries, not with places times labels.

    Parameters
    ----------
    offsets : (M + 1,) int64
        The entries of place ``m`` are ``offsets[m]:offsets[m + 1]``.
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
        """Number of entries of each place, (M,)."""
        return np.diff(self.offsets)

    @property
    def places(self) -> Int64:
        """Place of each entry, (E,)."""
        return np.repeat(np.arange(self.offsets.size - 1), self.sizes)

    def with_values(self, values: NDArray[Any]) -> LabelWeights:
        """Replace the weights, for the same labels.

        Parameters
        ----------
        values : (E,) array
            New weights.

        Returns
        -------
        LabelWeights
        """
        return replace(self, values=values)

    def take(self, places: NDArray[np.integer[Any]]) -> LabelWeights:
        """Select the entries of some places in the given order; places may repeat.

        Parameters
        ----------
        places : (N,) int
            Places to select.

        Returns
        -------
        LabelWeights

        Examples
        --------
        >>> weights = LabelWeights(np.array([0, 2, 3]), np.array([4, 7, 9]), np.array([0.5, 0.5, 1.0]))
        >>> weights.take(np.array([1, 0])).labels.tolist()
        [9, 4, 7]
        """
        offsets, entries = take_entries(self.offsets, places)
        return LabelWeights(offsets, self.labels[entries], self.values[entries])

    def keep(self, chosen: Bool) -> LabelWeights:
        """Keep the entries where `chosen`, (E,), is True; a place may end up without entries.

        Parameters
        ----------
        chosen : (E,) bool
            Entries to keep.

        Returns
        -------
        LabelWeights
        """
        kept = np.concatenate(([0], np.cumsum(chosen)))
        return LabelWeights(kept[self.offsets], self.labels[chosen], self.values[chosen])


def take_entries(offsets: Int64, places: NDArray[np.integer[Any]]) -> tuple[Int64, Int64]:
    """Select rows (places) of a CSR matrix.

    Parameters
    ----------
    offsets : (M + 1,) int64
        Begin and end of the entries of each row.
    places : (N,) int
        Rows to select; they may repeat.

    Returns
    -------
    offsets : (N + 1,) int64
        Offsets of the selected rows.
    entries : (E,) int64
        Indices of their entries.
    """
    sizes = np.diff(offsets)[places]
    own = np.concatenate(([0], np.cumsum(sizes)))
    return own, np.arange(own[-1]) + np.repeat(offsets[places] - own[:-1], sizes)
