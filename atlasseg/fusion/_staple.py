"""Expectation maximisation of rater performances for STAPLE, STEPS and non-local STAPLE.

Raters (candidates) are described by confusion matrices theta[i, l', l] = p(rater i says l' | the truth is l). Voxels
with the same votes have the same posterior, so they are counted together as one *row*. Only the possible labels of a
row (those with a prior and with every rater's theta above 0) are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from atlasseg.fusion._votes import Votes
from atlasseg.threads import run_slices
from atlasseg.volume import Atlas, Bool, Float64, Int32, Int64, LabelWeights, take_entries

BUFFER_BYTES = 1 << 26
MAX_BUFFERS = 16
"""Maximum number of parts in which confusion counts are summed, in order, for any number of threads."""
NEGLIGIBLE = 1e-7
"""Probabilities below this are left out of the result."""


@dataclass(frozen=True, eq=False)
class RaterVotes:
    """Votes of raters: R rows with their entries, as in a CSR matrix, and their possible labels.

    Parameters
    ----------
    counts : (R,) float64
        Number of voxels of each row.
    entry_offsets : (R + 1,) int64
    entry_raters, entry_labels : (E,) int32
        Entries of one rater are adjacent; labels are indices.
    entry_fractions : (E,) float32
        Fraction of the rater's vote; the sum for a rater at a row is 1.
    possible : LabelWeights
        Index of each possible label of each row (int32), and its prior weight (float64).
    """

    counts: Float64
    entry_offsets: Int64
    entry_raters: Int32
    entry_labels: Int32
    entry_fractions: NDArray[np.float32]
    possible: LabelWeights


@dataclass(frozen=True, eq=False)
class NeighbourRows:
    """Neighbouring rows, for the Markov random field.

    Parameters
    ----------
    rows : (R, 6) int64
        Row of each neighbour; -1 - l for a neighbour with certain label index l; `OUTSIDE` beyond the grid.
    weights : (6,) float64
        Weight of each neighbour.
    odd : (R,) bool
        Checkerboard colour; it differs between neighbours.
    beta : float
        Strength of the field.
    """

    rows: Int64
    weights: Float64
    odd: Bool
    beta: float


OUTSIDE = np.iinfo(np.int64).min


def estimate_confusion(rows: RaterVotes, weights: Float64, raters: int, labels: int) -> Float64:
    """Estimate the confusion matrices theta[i, vote, truth] (N, L, L) from the posterior `weights` (P,): the M step.

    The column of a true label that a rater never meets is 0.
    """
    parts = int(np.clip(BUFFER_BYTES // max(raters * labels**2 * 8, 1), 1, MAX_BUFFERS))
    sums = np.zeros((parts, raters, labels, labels))
    run_slices(
        _count, parts, np.linspace(0, rows.counts.size, parts + 1).astype(np.int64), rows.counts, rows.entry_offsets,
        rows.entry_raters, rows.entry_labels, rows.entry_fractions,
        rows.possible.offsets, rows.possible.labels, weights, sums,
    )  # fmt: skip
    counts = sums.sum(axis=0)
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros_like(counts), where=total > 0))


def run_em(
    rows: RaterVotes,
    confusion: Float64,
    *,
    max_iterations: int,
    tolerance: float,
    neighbours: NeighbourRows | None = None,
) -> tuple[Float64, Float64]:
    """Iterate E and M steps until no confusion probability changes by more than `tolerance`.

    Parameters
    ----------
    rows : RaterVotes
        The votes.
    confusion : (N, L, L) float64
        Initial confusion matrices.
    max_iterations : int
        Maximum number of iterations.
    tolerance : float
        Largest change of a confusion probability at which the iteration stops.
    neighbours : NeighbourRows, optional
        Multiplies the prior by exp(beta sum of the neighbours' posteriors): one mean field sweep per iteration.

    Returns
    -------
    weights : (P,) float64
        Posterior of each possible label of each row.
    confusion : (N, L, L) float64
        Confusion matrices with which the posterior was computed.
    """
    raters, labels = confusion.shape[:2]
    weights = _run_e_step(rows, confusion, rows.possible.values.copy(), neighbours)
    for _ in range(max_iterations):
        new = estimate_confusion(rows, weights, raters, labels)
        moved = float(np.abs(new - confusion).max(initial=0))
        confusion = new
        weights = _run_e_step(rows, confusion, weights, neighbours)
        if moved < tolerance:
            break
    return weights, confusion


def list_possible_labels(rows: RaterVotes, confusion: Float64, prior: Float64) -> RaterVotes:
    """Give each row all labels with `confusion` above 0 for every rater, and their global `prior` (L,)."""
    allowed = (confusion > 0) & (prior > 0)
    some = allowed.reshape(-1, allowed.shape[-1])
    list_offsets = np.concatenate(([0], np.cumsum(some.sum(axis=1))))
    lists = np.nonzero(some)[1].astype(np.int32)
    args = (rows.entry_offsets, rows.entry_raters, rows.entry_labels, allowed, list_offsets, lists)
    counts = np.zeros(len(rows.entry_offsets) - 1, np.int64)
    run_slices(_find_possible, counts.size, *args, np.zeros(0, np.int64), counts, np.zeros(0, np.int32))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    labels = np.empty(offsets[-1], np.int32)
    run_slices(_find_possible, counts.size, *args, offsets, counts, labels)
    return RaterVotes(
        rows.counts, rows.entry_offsets, rows.entry_raters, rows.entry_labels, rows.entry_fractions,
        LabelWeights(offsets, labels, prior[labels]),
    )  # fmt: skip


def group_by_votes(votes: Votes) -> tuple[Int64, Int64, Int64]:
    """Group active voxels by their votes: first voxel of each group, group of each voxel, size of each group."""
    keys = np.empty(votes.voxels.size, np.uint64)
    run_slices(_hash, keys.size, votes.entry_offsets, votes.entry_candidates, votes.entry_labels, keys)
    _, first, group, size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return first, group, size


def group_unanimous(votes: Votes, candidates: Sequence[Atlas]) -> tuple[Float64, Int64, Int32, Int32]:
    """Group the voxels on which all covering candidates agree, by label and by the candidates that cover them.

    Returns
    -------
    counts : (R,) float64
    entry_offsets : (R + 1,) int64
    entry_raters, entry_labels : (E,) int32
    """
    agreed = np.ones(votes.certain.size, bool)
    agreed[votes.voxels] = False
    where = np.flatnonzero(agreed)
    label = np.searchsorted(votes.label_values, votes.certain.reshape(-1)[where])
    masks = [None if a.mask is None or a.mask.array.all() else a.mask.array.reshape(-1) for a in candidates]
    keys: NDArray[Any] = label.astype(np.uint64) + np.uint64(1)
    for mask in masks:
        if mask is not None:
            keys = (keys * np.uint64(0x9E3779B97F4A7C15)) ^ (keys >> np.uint64(29)) ^ mask[where].astype(np.uint64)
    _, first, size = np.unique(keys, return_index=True, return_counts=True)
    sees = np.stack([np.ones(first.size, bool) if mask is None else mask[where[first]] for mask in masks], axis=1)
    seen = sees.any(axis=1)
    row, rater = np.nonzero(sees[seen])
    offsets = np.concatenate(([0], np.cumsum(sees[seen].sum(axis=1))))
    return size[seen].astype(np.float64), offsets, rater.astype(np.int32), label[first][seen][row].astype(np.int32)


def expand_to_voxels(rows: RaterVotes, weights: Float64, group: Int64) -> tuple[Float64, Int64, Int32]:
    """Expand weights of rows to voxels with rows `group` (M,): weights, offsets and labels without negligible ones."""
    found = rows.possible.with_values(weights).keep(weights >= NEGLIGIBLE).take(group)
    return found.values, found.offsets, found.labels


def tabulate_votes(votes: Votes, first: Int64, counts: Float64) -> RaterVotes:
    """Tabulate the votes at the active voxels `first`. Labels with votes are possible; their fraction is the prior."""
    entry_offsets, entries = take_entries(votes.entry_offsets, first)
    offsets, slots = take_entries(votes.slot_offsets, first)
    tally = votes.tally()[slots]
    total = np.add.reduceat(tally, offsets[:-1])
    return RaterVotes(
        counts, entry_offsets, votes.entry_candidates[entries], votes.entry_labels[entries],
        votes.entry_fractions[entries],
        LabelWeights(offsets, votes.slot_labels[slots], tally / np.repeat(total, np.diff(offsets))),
    )  # fmt: skip


def select_winners(rows: RaterVotes) -> Float64:
    """Choose the label of highest prior in each row, in a tie the smallest: (P,) 1 for it, 0 for the others."""
    possible = rows.possible
    highest = np.repeat(np.maximum.reduceat(possible.values, possible.offsets[:-1]), possible.sizes)
    best = np.flatnonzero(possible.values == highest)
    row = possible.places[best]
    out = np.zeros(possible.values.size)
    out[best[np.unique(row, return_index=True)[1]]] = 1
    return out


def append_unanimous(rows: RaterVotes, votes: Votes, candidates: Sequence[Atlas]) -> RaterVotes:
    """Append rows for the voxels on which all candidates agree, with prior 1 for the common label."""
    counts, entry_offsets, raters, labels = group_unanimous(votes, candidates)
    return RaterVotes(
        np.concatenate((rows.counts, counts)),
        np.concatenate((rows.entry_offsets, rows.entry_offsets[-1] + entry_offsets[1:])),
        np.concatenate((rows.entry_raters, raters)),
        np.concatenate((rows.entry_labels, labels)),
        np.concatenate((rows.entry_fractions, np.ones(labels.size, np.float32))),
        LabelWeights(
            np.concatenate((rows.possible.offsets, rows.possible.offsets[-1] + np.arange(1, counts.size + 1))),
            np.concatenate((rows.possible.labels, labels[entry_offsets[:-1]])),
            np.concatenate((rows.possible.values, np.ones(counts.size))),
        ),
    )


def smooth_prior(votes: Votes, sigma_voxels: float) -> Float64:
    """(S,) fraction of votes of each slot's label around its voxel, by a Gaussian window cut at the grid's border."""
    map_ = votes.cast()
    slot_voxels = np.repeat(votes.voxels, np.diff(votes.slot_offsets))
    out = np.zeros(slot_voxels.size)
    reach = int(np.ceil(4 * sigma_voxels))
    order = np.argsort(votes.slot_labels, kind="stable")
    bounds = np.searchsorted(votes.slot_labels[order], np.arange(votes.label_values.size + 1))
    for label, begin, end in zip(votes.label_values.tolist(), bounds[:-1], bounds[1:], strict=True):
        slots = order[begin:end]
        if slots.size == 0:
            continue
        index = np.stack(np.unravel_index(slot_voxels[slots], votes.grid.shape))
        start = np.maximum(index.min(axis=1) - reach, 0)
        stop = np.minimum(index.max(axis=1) + 1 + reach, votes.grid.shape)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        share = map_.probability(label)[box].astype(np.float64)
        smooth = gaussian_filter(share, sigma_voxels, mode="nearest", truncate=4) if sigma_voxels > 0 else share
        out[slots] = smooth[tuple(index - start[:, None])]
    return out


def find_neighbours(votes: Votes, beta: float) -> NeighbourRows:
    """Find the six neighbours of each active voxel, with weights 1 / distance relative to the shortest distance."""
    shape = votes.grid.shape
    row = np.full(votes.certain.size, OUTSIDE, np.int64)
    row[:] = -1 - np.searchsorted(votes.label_values, votes.certain.reshape(-1))
    row[votes.voxels] = np.arange(votes.voxels.size)
    index = np.stack(np.unravel_index(votes.voxels, shape))
    neighbours = np.full((votes.voxels.size, 6), OUTSIDE, np.int64)
    for n in range(6):
        axis, step = divmod(n, 2)
        there = index[axis] + 2 * step - 1
        inside = (there >= 0) & (there < shape[axis])
        stride = int(np.prod(shape[axis + 1 :]))
        neighbours[inside, n] = row[votes.voxels[inside] + (2 * step - 1) * stride]
    spacing = votes.grid.spacing_mm
    return NeighbourRows(neighbours, np.repeat(spacing.min() / spacing, 2), index.sum(axis=0) % 2 == 1, beta)


def _run_e_step(rows: RaterVotes, confusion: Float64, weights: Float64, neighbours: NeighbourRows | None) -> Float64:
    """Posterior of each possible label: the E step."""
    shared = (
        rows.entry_offsets, rows.entry_raters, rows.entry_labels, rows.entry_fractions,
        rows.possible.offsets, rows.possible.labels, rows.possible.values, confusion,
    )  # fmt: skip
    if neighbours is None:
        nothing = np.zeros((0, 6), np.int64)
        found = weights.copy()
        given = nothing, np.zeros(6), np.zeros(0, np.bool_), False, 0.0
        run_slices(_posterior, len(rows.counts), *shared, weights, *given, found)
        return found
    for colour in (False, True):
        found = weights.copy()
        given = neighbours.rows, neighbours.weights, neighbours.odd, colour, neighbours.beta
        run_slices(_posterior, len(rows.counts), *shared, weights, *given, found)
        weights = found
    return weights


@njit(cache=True, nogil=True)
def _posterior(  # type: ignore[no-untyped-def]
    start, stop, entry_offsets, entry_raters, entry_labels, entry_fractions, offsets, labels, prior, confusion,
    before, neighbours, neighbour_weights, odd, colour, beta, out,
):  # fmt: skip
    for r in range(start, stop):
        if beta > 0 and r < odd.size and odd[r] != colour:
            continue
        first, last = offsets[r], offsets[r + 1]
        for p in range(first, last):
            support = 0.0
            if beta > 0 and r < odd.size:
                for n in range(6):
                    other = neighbours[r, n]
                    if other >= 0:
                        for q in range(offsets[other], offsets[other + 1]):
                            if labels[q] == labels[p]:
                                support += neighbour_weights[n] * before[q]
                    elif -1 - other == labels[p]:
                        support += neighbour_weights[n]
            out[p] = prior[p] * np.exp(beta * support)
        e = entry_offsets[r]
        while e < entry_offsets[r + 1]:
            rater = entry_raters[e]
            end = e + 1
            while end < entry_offsets[r + 1] and entry_raters[end] == rater:
                end += 1
            largest = 0.0
            for p in range(first, last):
                likelihood = 0.0
                for f in range(e, end):
                    likelihood += entry_fractions[f] * confusion[rater, entry_labels[f], labels[p]]
                out[p] *= likelihood
                largest = max(largest, out[p])
            if 0 < largest < 1e-100:
                for p in range(first, last):
                    out[p] /= largest
            e = end
        total = 0.0
        for p in range(first, last):
            total += out[p]
        if total > 0:
            for p in range(first, last):
                out[p] /= total
        else:  # no label explains these votes: the posterior is the prior
            for p in range(first, last):
                total += prior[p]
            for p in range(first, last):
                out[p] = prior[p] / total if total > 0 else 1.0 / (last - first)


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    start,
    stop,
    parts,
    counts,
    entry_offsets,
    entry_raters,
    entry_labels,
    entry_fractions,
    offsets,
    labels,
    weights,
    out,
):
    for part in range(start, stop):
        for r in range(parts[part], parts[part + 1]):
            for e in range(entry_offsets[r], entry_offsets[r + 1]):
                amount = counts[r] * entry_fractions[e]
                for p in range(offsets[r], offsets[r + 1]):
                    out[part, entry_raters[e], entry_labels[e], labels[p]] += amount * weights[p]


@njit(cache=True, nogil=True)
def _find_possible(  # type: ignore[no-untyped-def]
    start, stop, entry_offsets, entry_raters, entry_labels, allowed, list_offsets, lists, offsets, counts, out
):
    """Count the possible labels of each row, and with offsets list them."""
    number = allowed.shape[1]
    listing = offsets.size > 0
    for r in range(start, stop):
        begin, end = entry_offsets[r], entry_offsets[r + 1]
        shortest = np.int64(entry_raters[begin]) * number + entry_labels[begin]
        for e in range(begin, end):
            this = np.int64(entry_raters[e]) * number + entry_labels[e]
            if list_offsets[this + 1] - list_offsets[this] < list_offsets[shortest + 1] - list_offsets[shortest]:
                shortest = this
        n = np.int64(0)
        for at in range(list_offsets[shortest], list_offsets[shortest + 1]):
            fits = True
            for e in range(begin, end):
                if not allowed[entry_raters[e], entry_labels[e], lists[at]]:
                    fits = False
                    break
            if fits:
                if listing:
                    out[offsets[r] + n] = lists[at]
                n += 1
        counts[r] = n


@njit(cache=True, nogil=True)
def _hash(start, stop, entry_offsets, entry_candidates, entry_labels, keys):  # type: ignore[no-untyped-def]
    """64-bit key of each row's (candidate, label) pairs, order mattering (FNV over splitmix64)."""
    for r in range(start, stop):
        key = np.uint64(0xCBF29CE484222325)
        for e in range(entry_offsets[r], entry_offsets[r + 1]):
            x = (np.uint64(entry_candidates[e]) << np.uint64(32)) | np.uint64(entry_labels[e])
            x += np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key = (key ^ x ^ (x >> np.uint64(31))) * np.uint64(0x100000001B3)
        keys[r] = key
