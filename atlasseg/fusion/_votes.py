"""Votes of the candidates at the voxels where they disagree.

Most atlases agree at most voxels, so a fusion needs a few percent of the volume only. `Votes.gather` finds
these *active* voxels; `Votes.cast` converts weights there to a :class:`~atlasseg.volume.ProbabilityMap`. Memory
grows with active voxels times candidates, not with voxels times labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.threads import run_slices
from atlasseg.volume import Atlas, Bool, Float32, Float64, Grid, Image, Int32, Int64, LabelMap, ProbabilityMap

MAX_CANDIDATES = 1 << 16


def check_candidates(target: Image, candidates: Sequence[Atlas]) -> None:
    """Check the number and the grids of the candidates.

    Raises
    ------
    InputError
        There is no candidate.
    GeometryError
        A candidate is not on the target's grid. The message names it.
    """
    if not candidates:
        raise InputError("candidates: expected at least one, got none")
    if len(candidates) > MAX_CANDIDATES:
        raise InputError(f"candidates: expected at most {MAX_CANDIDATES}, got {len(candidates)}")
    for atlas in candidates:
        if not target.grid.matches(atlas.image.grid):
            raise GeometryError(
                f"atlas {atlas.id!r} is not on the grid of the target {target.name!r}: expected shape {target.shape} "
                f"and affine {target.affine.tolist()}, got {atlas.image.shape} and {atlas.image.affine.tolist()}. "
                "Propagate it to the target first."
            )


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes of all candidates at the voxels where they disagree.

    An entry is one candidate's vote (or fraction of a vote) for one label; a slot is one of the labels that have a
    vote at a voxel. Both are lists per active voxel, as in a CSR matrix.

    Parameters
    ----------
    grid : Grid
        The grid of the target.
    certain : (I, J, K) int32
        The label on which all agree; undefined at the active voxels. Background (0) where no candidate's field of
        view reaches.
    voxels : (M,) int64
        Ascending flat (C order) indices of the active voxels.
    entry_offsets : (M + 1,) int64
        Where each active voxel's entries begin and end.
    entry_candidates, entry_slots : (E,) int32
        Candidate of each entry, and its slot (counted from the voxel's first slot).
    entry_fractions : (E,) float32
        Fraction of the candidate's vote, in (0, 1].
    slot_offsets : (M + 1,) int64
        Where each active voxel's slots begin and end.
    slot_labels : (S,) int32
        Index into `label_values` of each slot, ascending within a voxel.
    label_values : (L,) int32
        All labels of the candidates, ascending.
    unknown : (N, L) bool
        Labels that were not annotated in each candidate.
    """

    grid: Grid
    certain: Int32
    voxels: Int64
    entry_offsets: Int64
    entry_candidates: Int32
    entry_slots: Int32
    entry_fractions: Float32
    slot_offsets: Int64
    slot_labels: Int32
    label_values: Int32
    unknown: Bool

    @property
    def entry_labels(self) -> Int32:
        """(E,) int32 index into `label_values` of each entry."""
        first = np.repeat(self.slot_offsets[:-1], np.diff(self.entry_offsets))
        return np.asarray(self.slot_labels[first + self.entry_slots])

    @classmethod
    def gather(cls, target: Image, candidates: Sequence[Atlas], *, hard: bool = False) -> Votes:
        """Collect the votes of `candidates`, which must be on the grid of `target`.

        Parameters
        ----------
        target : Image
            The scan to be segmented.
        candidates : sequence of Atlas
            Outside its `mask` a candidate does not vote.
        hard : bool
            Replace fractions by the most probable label.

        Raises
        ------
        InputError, GeometryError
            See `check_candidates`.
        """
        check_candidates(target, candidates)
        grid = target.grid
        size = int(np.prod(grid.shape))
        volumes = [atlas.segmentation if hard else atlas.labels for atlas in candidates]
        masks = [
            None if atlas.mask is None else np.ascontiguousarray(atlas.mask.array).reshape(-1) for atlas in candidates
        ]
        modes = [_most_probable(volume) for volume in volumes]

        certain, covered, active = _find_disagreement(volumes, modes, masks, size)
        voxels = np.flatnonzero(active)
        every = set().union(
            *(
                volume.values.tolist() if isinstance(volume, LabelMap) else volume.label_values.tolist()
                for volume in volumes
            )
        )
        every |= set(np.unique(certain[~covered]).tolist())
        label_values = np.array(sorted(every), np.int32)
        unknown = np.array(
            [[value != 0 and value in atlas.not_annotated for value in label_values.tolist()] for atlas in candidates]
        )

        counts = np.zeros(voxels.size, np.int64)
        for volume, mask in zip(volumes, masks, strict=True):
            counts += _entry_counts(volume, mask, voxels)[0]
        entry_offsets = np.concatenate(([0], np.cumsum(counts)))
        entry_candidates = np.empty(entry_offsets[-1], np.int32)
        entry_labels = np.empty(entry_offsets[-1], np.int32)
        entry_fractions = np.empty(entry_offsets[-1], np.float32)
        filled = entry_offsets[:-1].copy()
        nothing = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        for index, (volume, mode, mask) in enumerate(zip(volumes, modes, masks, strict=True)):
            count, first = _entry_counts(volume, mask, voxels)
            labels, values = (volume.labels, volume.values) if isinstance(volume, ProbabilityMap) else nothing
            run_slices(
                fill_entries, voxels.size, index, np.searchsorted(label_values, mode[voxels]), count, first,
                np.searchsorted(label_values, labels), values, filled, entry_candidates, entry_labels, entry_fractions,
            )  # fmt: skip
        slot_counts, slots = index_slots(entry_offsets, entry_labels)
        slot_offsets = np.concatenate(([0], np.cumsum(slot_counts)))
        slot_labels = label_slots(entry_offsets, entry_labels, slots, slot_offsets)
        return cls(
            grid, certain.reshape(grid.shape), voxels, entry_offsets, entry_candidates, slots, entry_fractions,
            slot_offsets, slot_labels, label_values, unknown,
        )  # fmt: skip

    def restrict(self, chosen: Bool) -> Votes:
        """Keep the votes of the `chosen` (N, M) candidates at each active voxel; they may agree there."""
        row = np.repeat(np.arange(self.voxels.size), np.diff(self.entry_offsets))
        keep = chosen[self.entry_candidates, row]
        offsets = np.concatenate(([0], np.cumsum(np.bincount(row[keep], minlength=self.voxels.size))))
        labels = self.entry_labels[keep]
        slot_counts, slots = index_slots(offsets, labels)
        slot_offsets = np.concatenate(([0], np.cumsum(slot_counts)))
        return replace(
            self,
            entry_offsets=offsets,
            entry_candidates=self.entry_candidates[keep],
            entry_slots=slots,
            entry_fractions=self.entry_fractions[keep],
            slot_offsets=slot_offsets,
            slot_labels=label_slots(offsets, labels, slots, slot_offsets),
        )

    def cast(self, weights: NDArray[np.floating] | None = None, *, name: str = "") -> ProbabilityMap:
        """Make the probability map of the votes, weighted as in `tally`."""
        return self.to_map(self.tally(weights), name=name)

    def tally(self, weights: NDArray[np.floating] | None = None) -> Float64:
        """Sum the weighted votes of each slot.

        The background votes of a candidate in which some labels were not annotated may be any of these labels. They
        are distributed in proportion to the votes, at this voxel, of the candidates with all of these labels, and stay
        background if there are none.

        Parameters
        ----------
        weights : (N,) or (N, M) floating, optional
            Weight of each candidate, 0 or more, for all active voxels or for each one; equal weights by default. If all
            weights at a voxel are 0, all votes there count equally.

        Returns
        -------
        (S,) float64
            Summed weight of every slot.
        """
        n = self.unknown.shape[0]
        given = np.ones((n, 1), np.float32) if weights is None else np.asarray(weights, np.float32)
        given = np.ascontiguousarray(given.reshape(n, -1))
        if given.shape[1] not in (1, self.voxels.size):
            raise InputError(f"weights: expected shape ({n}, {self.voxels.size}), got {given.shape}")
        overlap = self.unknown.astype(np.float32)
        sums = np.zeros(self.slot_labels.size)
        run_slices(
            _tally, self.voxels.size, given, self.entry_offsets, self.entry_candidates, self.entry_slots,
            self.entry_fractions, self.slot_offsets, self.slot_labels, int(np.searchsorted(self.label_values, 0)),
            self.unknown.any(axis=1), (overlap @ overlap.T) == 0, self.unknown, sums,
        )  # fmt: skip
        return sums

    def to_map(
        self,
        weights: NDArray[np.floating],
        offsets: Int64 | None = None,
        labels: NDArray[np.integer] | None = None,
        *,
        name: str = "",
    ) -> ProbabilityMap:
        """Make the map from label weights (0 or more, any scale) at the active voxels.

        Parameters
        ----------
        weights : (S,) floating
            One for each slot; or for each of `labels`.
        offsets : (M + 1,) int64, optional
            Begin and end of each active voxel's weights, if they are not those of the slots.
        labels : (S,) int, optional
            With `offsets`: index into `label_values` of each weight, ascending within a voxel.
        name : str
            Name of the map.
        """
        offsets = self.slot_offsets if offsets is None else offsets
        labels = self.slot_labels if labels is None else labels
        count = len(offsets) - 1
        mode, kept, probability = (
            np.empty(count, np.int32),
            np.zeros(count, np.int64),
            np.zeros(len(labels), np.float32),
        )
        given = np.asarray(weights, np.float64), offsets, labels, self.label_values
        run_slices(_normalise, count, *given, mode, probability, kept)
        whole = self.certain.reshape(-1).copy()
        whole[self.voxels] = mode
        listed = kept > 1
        chosen = np.repeat(listed, np.diff(offsets)) & (probability > 0)
        return ProbabilityMap(
            whole.reshape(self.grid.shape),
            self.voxels[listed],
            np.concatenate(([0], np.cumsum(kept[listed]))),
            self.label_values[labels[chosen]],
            probability[chosen],
            self.grid.affine,
            self.label_values,
            name,
        )


def _find_disagreement(
    volumes: Sequence[LabelMap | ProbabilityMap], modes: Sequence[Int32], masks: Sequence[Bool | None], size: int
) -> tuple[Int32, Bool, Bool]:
    """Flat arrays: label of the first candidate that votes, whether any votes, and whether they may disagree."""
    certain = np.zeros(size, np.int32)
    covered = np.zeros(size, np.bool_)
    active = np.zeros(size, np.bool_)
    for volume, mode, mask in zip(volumes, modes, masks, strict=True):
        if mask is None:
            active |= covered & (mode != certain)
            certain[~covered] = mode[~covered]
            covered[:] = True
        else:
            active |= covered & mask & (mode != certain)
            new = mask & ~covered
            certain[new] = mode[new]
            covered |= mask
        if isinstance(volume, ProbabilityMap):
            spread = volume.voxels
            active[spread if mask is None else spread[mask[spread]]] = True
    return certain, covered, active


def _most_probable(volume: LabelMap | ProbabilityMap) -> Int32:
    array = volume.array if isinstance(volume, LabelMap) else volume.mode
    return np.ascontiguousarray(array).reshape(-1)


def _entry_counts(volume: LabelMap | ProbabilityMap, mask: Bool | None, voxels: Int64) -> tuple[Int64, Int64]:
    """Entries of one candidate at each active voxel, and where they begin in its map (-1: its one certain label)."""
    count = np.ones(voxels.size, np.int64)
    first = np.full(voxels.size, -1, np.int64)
    if isinstance(volume, ProbabilityMap) and volume.voxels.size:
        row = np.minimum(np.searchsorted(volume.voxels, voxels), volume.voxels.size - 1)
        spread = volume.voxels[row] == voxels
        first[spread] = volume.offsets[row[spread]]
        count[spread] = np.diff(volume.offsets)[row[spread]]
    if mask is not None:
        count[~mask[voxels]] = 0
    return count, first


@njit(cache=True, nogil=True)
def fill_entries(  # type: ignore[no-untyped-def]
    start, stop, index, mode, count, first, labels, values, filled, entry_candidates, entry_labels, entry_fractions
):
    for m in range(start, stop):
        for e in range(count[m]):
            at = filled[m] + e
            entry_candidates[at] = index
            entry_labels[at] = mode[m] if first[m] < 0 else labels[first[m] + e]
            entry_fractions[at] = 1.0 if first[m] < 0 else values[first[m] + e]
        filled[m] += count[m]


def index_slots(entry_offsets: Int64, entry_labels: NDArray[np.integer]) -> tuple[Int64, Int32]:
    """Number of different labels at each voxel, and the rank of each entry's label among them."""
    counts, slots = np.zeros(len(entry_offsets) - 1, np.int64), np.zeros(len(entry_labels), np.int32)
    run_slices(_index_slots, len(counts), entry_offsets, entry_labels, counts, slots)
    return counts, slots


@njit(cache=True, nogil=True)
def _index_slots(start, stop, entry_offsets, entry_labels, counts, slots):  # type: ignore[no-untyped-def]
    for m in range(start, stop):
        begin, end = entry_offsets[m], entry_offsets[m + 1]
        different = np.empty(end - begin, np.int32)
        n = 0
        for e in range(begin, end):
            label = entry_labels[e]
            at = n
            while at > 0 and different[at - 1] > label:
                at -= 1
            if at > 0 and different[at - 1] == label:
                continue
            for later in range(n, at, -1):
                different[later] = different[later - 1]
            different[at] = label
            n += 1
        counts[m] = n
        for e in range(begin, end):
            slots[e] = np.searchsorted(different[:n], entry_labels[e])


def label_slots(entry_offsets: Int64, entry_labels: NDArray[np.integer], slots: Int32, slot_offsets: Int64) -> Int32:
    """Label of each slot, from the ranks of the entries' labels."""
    labels = np.empty(slot_offsets[-1], np.int32)
    run_slices(_label_slots, len(slot_offsets) - 1, entry_offsets, entry_labels, slots, slot_offsets, labels)
    return labels


@njit(cache=True, nogil=True)
def _label_slots(start, stop, entry_offsets, entry_labels, slots, slot_offsets, labels):  # type: ignore[no-untyped-def]
    for m in range(start, stop):
        for e in range(entry_offsets[m], entry_offsets[m + 1]):
            labels[slot_offsets[m] + slots[e]] = entry_labels[e]


@njit(cache=True, nogil=True)
def _tally(  # type: ignore[no-untyped-def]
    start,
    stop,
    weights,
    entry_offsets,
    entry_candidates,
    entry_slots,
    entry_fractions,
    slot_offsets,
    slot_labels,
    background,
    has_missing_labels,
    knows,
    unknown,
    sums,
):
    per_voxel = weights.shape[1] > 1
    for m in range(start, stop):
        column = np.int64(m) if per_voxel else np.int64(0)
        begin, end, slot = entry_offsets[m], entry_offsets[m + 1], slot_offsets[m]
        total = 0.0
        for e in range(begin, end):
            total += weights[entry_candidates[e], column]
        equal = not total > 0
        for e in range(begin, end):
            i = entry_candidates[e]
            weight = entry_fractions[e] * (1.0 if equal else weights[i, column])
            label = slot_labels[slot + entry_slots[e]]
            if not has_missing_labels[i] or label != background:
                sums[slot + entry_slots[e]] += weight
                continue
            known = 0.0
            for f in range(begin, end):
                j = entry_candidates[f]
                other = slot_labels[slot + entry_slots[f]]
                if knows[i, j] and (other == background or unknown[i, other]):
                    known += entry_fractions[f] * (1.0 if equal else weights[j, column])
            if not known > 0:
                sums[slot + entry_slots[e]] += weight
                continue
            for f in range(begin, end):
                j = entry_candidates[f]
                other = slot_labels[slot + entry_slots[f]]
                if knows[i, j] and (other == background or unknown[i, other]):
                    share = entry_fractions[f] * (1.0 if equal else weights[j, column]) / known
                    sums[slot + entry_slots[f]] += weight * share


@njit(cache=True, nogil=True)
def _normalise(start, stop, sums, slot_offsets, slot_labels, label_values, mode, probability, kept):  # type: ignore[no-untyped-def]
    """Most probable label (ties to the smallest), probabilities, and how many are above 0, at each voxel."""
    for m in range(start, stop):
        begin, end = slot_offsets[m], slot_offsets[m + 1]
        total = 0.0
        for s in range(begin, end):
            total += sums[s]
        best = begin
        for s in range(begin, end):
            probability[s] = sums[s] / total
            if probability[s] > probability[best]:
                best = s
            if probability[s] > 0:
                kept[m] += 1
        mode[m] = label_values[slot_labels[best]]
