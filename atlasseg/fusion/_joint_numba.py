"""Joint label fusion on the CPU: the weights of every voxel, and the votes of whole patches.

Tiles and chunks run on as many threads as numba may use. Each result depends on its own voxel alone, and the results
are joined in order, so that they do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from atlasseg.fusion._encoded_votes import EncodedVotes
from atlasseg.fusion._patches import Box, PatchSearch, split_into_tiles
from atlasseg.threads import map_in_threads
from atlasseg.volume import Bool, Float32, Float64, Int32, Int64

CHUNK = 4096
"""Number of voxels whose votes are counted together."""


def joint_weights(
    search: PatchSearch,
    candidates: Sequence[Float32],
    inside: Sequence[Bool],
    *,
    alpha: float,
    beta: float,
    nonnegative: bool,
) -> tuple[Int32, Float32]:
    """Compute the best offset and the weight of each of N candidates at each of the V voxels of a search.

    Parameters
    ----------
    search : PatchSearch
        Target, voxels, patch and window.
    candidates : N arrays (C, I, J, K) float32
        Intensities.
    inside : N arrays (I, J, K) bool
        Fields of view.
    alpha, beta, nonnegative
        See `atlasseg.fusion.joint.fuse`.

    Returns
    -------
    chosen : (V, N) int32
        Row of ``search.offsets``; -1 if a candidate covers no voxel of the search window.
    weights : (V, N) float32
        0 or more. Their sum is 1, or 0 if no candidate covers a voxel of the window.
    """
    chosen = np.full((search.voxels.size, len(candidates)), -1, np.int32)
    weights = np.zeros((search.voxels.size, len(candidates)), np.float32)

    def solve(box: Box) -> None:
        wanted, rows = search.rows(box)
        target = search.target_tile(box)
        tiles_of = []
        best = []
        for n, candidate in enumerate(candidates):
            score, code = search.empty(box, 1)
            tiles_of.append(search.run(box, target, candidate, inside[n], 0, score, code))
            best.append(code[0])
        _tile_weights(
            *target,
            np.stack([values for values, _, _ in tiles_of]),
            np.stack([total for _, total, _ in tiles_of]),
            np.stack([scale for _, _, scale in tiles_of]),
            np.stack(best),
            search.offsets + search.window,
            search.patch,
            wanted,
            rows,
            alpha,
            beta,
            nonnegative,
            chosen,
            weights,
        )

    map_in_threads(solve, split_into_tiles(search.where))
    return chosen, weights


@njit(cache=True, nogil=True)
def _tile_weights(
    target: Float64,
    target_mean: Float64,
    target_scale: Float64,
    values: Float64,
    totals: Float64,
    scales: Float64,
    best: Int64,
    shifts: Int64,
    patch: Int64,
    wanted: Bool,
    rows: Int64,
    alpha: float,
    beta: float,
    nonnegative: bool,
    chosen: Int32,
    weights: Float32,
) -> None:
    """Weights at the `wanted` voxels of a tile, written to their `rows` of `chosen` and `weights`."""
    count, channels = values.shape[0], values.shape[1]
    s0, s1, s2 = 2 * patch[0] + 1, 2 * patch[1] + 1, 2 * patch[2] + 1
    size = s0 * s1 * s2
    root = np.sqrt(max(size - 1, 1))
    normalised = np.empty(channels * size)
    errors = np.empty((count, channels * size))
    matrix = np.empty((count, count))
    factor = np.empty((count, count))
    solution = np.empty(count)
    who = np.empty(count, np.int64)
    degrees = max(channels * size - 1, 1)
    at = 0
    for i in range(wanted.shape[0]):
        for j in range(wanted.shape[1]):
            for k in range(wanted.shape[2]):
                if not wanted[i, j, k]:
                    continue
                row = rows[at]
                at += 1
                e = 0
                for c in range(channels):
                    mean, scale = target_mean[c, i, j, k], target_scale[c, i, j, k] * root
                    for x in range(s0):
                        for y in range(s1):
                            t = target[c, i + x, j + y, k : k + s2]
                            for z in range(s2):
                                normalised[e] = (t[z] - mean) * scale
                                e += 1
                used = 0
                for n in range(count):
                    shift = best[n, i, j, k]
                    chosen[row, n] = shift
                    if shift < 0:
                        continue
                    x0, y0, z0 = i + shifts[shift, 0], j + shifts[shift, 1], k + shifts[shift, 2]
                    error = errors[used]
                    e = 0
                    for c in range(channels):
                        mean = totals[n, c, x0, y0, z0] / size
                        scale = scales[n, c, x0, y0, z0] * root
                        for x in range(s0):
                            for y in range(s1):
                                a = values[n, c, x0 + x, y0 + y, z0 : z0 + s2]
                                for z in range(s2):
                                    error[e] = abs((a[z] - mean) * scale - normalised[e])
                                    e += 1
                    who[used] = n
                    used += 1
                for u in range(used):
                    for v in range(u + 1):
                        expected = _dot(errors[u], errors[v]) / degrees
                        expected = expected * expected if beta == 2.0 else expected**beta
                        matrix[u, v] = expected
                        matrix[v, u] = expected
                    matrix[u, u] += alpha
                minimise(matrix, used, nonnegative, factor, solution)
                for u in range(used):
                    weights[row, who[u]] = solution[u]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(a: Float64, b: Float64) -> float:
    total = 0.0
    for e in range(a.size):
        total += a[e] * b[e]
    return total


@njit(cache=True, nogil=True)
def minimise(matrix: Float64, size: int, nonnegative: bool, factor: Float64, weights: Float64) -> None:
    """Weights of sum 1 that minimise w' M w, M the leading `size` x `size` part of a positive definite `matrix`.

    No weight is below 0: with `nonnegative` the minimum is found under that constraint, by an active set that starts at
    the clipped solution; otherwise the solution is clipped. `factor` is a work array.
    """
    if size == 0:
        return
    passive = np.arange(size)
    held = size
    _solve(matrix, passive, held, factor, weights)
    clipped = False
    for a in range(size):
        if weights[a] < 0:
            weights[a] = 0.0
            clipped = True
    if clipped and nonnegative:
        # with w = s v, minimising v' M v / 2 - 1' v over v >= 0 is the same problem (Lawson and Hanson 1974, ch. 23)
        trial = np.empty(size)
        held = 0
        for a in range(size):
            if weights[a] > 0:
                passive[held] = a
                held += 1
        for _ in range(10 * size):
            while True:
                _solve(matrix, passive, held, factor, trial)
                step = 1.0
                for p in range(held):
                    if trial[p] <= 0:
                        now = weights[passive[p]]
                        step = min(step, now / (now - trial[p]))
                if step == 1.0:
                    for p in range(held):
                        weights[passive[p]] = trial[p]
                    break
                kept = 0
                for p in range(held):
                    a = passive[p]
                    moved = weights[a] + step * (trial[p] - weights[a])
                    if moved <= 1e-15 or (trial[p] <= 0 and weights[a] / (weights[a] - trial[p]) == step):
                        weights[a] = 0.0
                    else:
                        weights[a] = moved
                        passive[kept] = a
                        kept += 1
                held = kept
            steepest, most = -1, 1e-9
            for a in range(size):
                if weights[a] == 0.0:
                    gradient = 1.0
                    for p in range(held):
                        gradient -= matrix[a, passive[p]] * weights[passive[p]]
                    if gradient > most:
                        steepest, most = a, gradient
            if steepest < 0:
                break
            passive[held] = steepest
            held += 1
    total = 0.0
    for a in range(size):
        total += weights[a]
    for a in range(size):
        weights[a] /= total


@njit(cache=True, nogil=True)
def _solve(matrix: Float64, rows: Int64, size: int, factor: Float64, out: Float64) -> None:
    """Solve M x = 1 for the chosen rows and columns by Cholesky's factors."""
    for a in range(size):
        for b in range(a + 1):
            total = matrix[rows[a], rows[b]]
            for c in range(b):
                total -= factor[a, c] * factor[b, c]
            if a == b:
                factor[a, a] = np.sqrt(max(total, 1e-12 * matrix[rows[a], rows[a]]))
            else:
                factor[a, b] = total / factor[b, b]
    for a in range(size):
        total = 1.0
        for c in range(a):
            total -= factor[a, c] * out[c]
        out[a] = total / factor[a, a]
    for a in range(size - 1, -1, -1):
        total = out[a]
        for c in range(a + 1, size):
            total -= factor[c, a] * out[c]
        out[a] = total / factor[a, a]


def count_votes(
    search: PatchSearch, chosen: Int32, weights: Float32, encoded: EncodedVotes, voxels: Int64
) -> tuple[Int64, Int32, Float32]:
    """Count the votes at each of the M `voxels`, from all patches that contain it.

    Returns
    -------
    counts : (M,) int64
        Number of labels with votes at each voxel; 0 without votes.
    labels : (E,) int32
        Indices into ``encoded.label_values``, ascending within a voxel.
    values : (E,) float32
        Their fraction of the votes, above 0; the sum within a voxel is 1.
    """
    shape = np.array(search.where.shape)
    number = np.pad(search.number, [(p, p) for p in search.patch], constant_values=-1).astype(np.int32)
    window = np.argwhere(np.ones(2 * search.patch + 1, bool)) - search.patch
    strides = np.array([number.shape[1] * number.shape[2], number.shape[2], 1])
    box = encoded.codes.shape[1:]
    box_strides = np.array([box[1] * box[2], box[2], 1])
    index = np.stack(np.unravel_index(voxels, shape), axis=-1)
    at_number = (index + search.patch) @ strides
    at_code = (index - encoded.start) @ box_strides
    codes = encoded.codes.reshape(len(encoded.codes), -1)
    background = int(np.searchsorted(encoded.label_values, 0))

    def count(first: int) -> tuple[Int64, Int32, Float32]:
        part = slice(first, first + CHUNK)
        found: tuple[Int64, Int32, Float32] = _count_votes(
            at_number[part],
            at_code[part],
            number.reshape(-1),
            window @ strides,
            search.offsets @ box_strides,
            chosen,
            weights,
            codes,
            encoded.lists.offsets,
            encoded.lists.labels,
            encoded.lists.values,
            encoded.unknown,
            background,
        )
        return found

    parts = map_in_threads(count, range(0, voxels.size, CHUNK))
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )


@njit(cache=True, nogil=True)
def _count_votes(
    at_number: Int64,
    at_code: Int64,
    number: Int32,
    near: Int64,
    moves: Int64,
    chosen: Int32,
    weights: Float32,
    codes: Int32,
    list_offsets: Int64,
    list_slots: Int32,
    list_fractions: Float32,
    unknown: Bool,
    background: int,
) -> tuple[Int64, Int32, Float32]:
    groups, labels = unknown.shape
    slots = groups * labels
    candidates = codes.shape[0]
    partial = unknown.any()
    votes = np.zeros(slots)
    touched = np.empty(slots, np.int64)
    counts = np.zeros(at_number.size, np.int64)
    out_labels = np.empty(4 * at_number.size + slots, np.int32)
    out_values = np.empty(4 * at_number.size + slots, np.float32)
    filled = 0
    for m in range(at_number.size):
        seen = 0
        here = at_code[m]
        for p in range(near.size):
            row = number[at_number[m] + near[p]]
            if row < 0:
                continue
            for n in range(candidates):
                weight = weights[row, n]
                if weight == 0.0:
                    continue
                code = codes[n, here + moves[chosen[row, n]]]
                if code < 0:
                    continue
                if code < slots:
                    if votes[code] == 0.0:
                        touched[seen] = code
                        seen += 1
                    votes[code] += weight
                else:
                    for e in range(list_offsets[code - slots], list_offsets[code - slots + 1]):
                        slot = list_slots[e]
                        if votes[slot] == 0.0:
                            touched[seen] = slot
                            seen += 1
                        votes[slot] += np.float64(weight) * list_fractions[e]  # a product of float32 may become 0
        if partial:
            seen = _share_out(votes, touched, seen, unknown, background)
        for n in range(1, seen):  # few, so that inserting each in its place sorts them fastest
            slot, at = touched[n], n
            while at > 0 and touched[at - 1] > slot:
                touched[at] = touched[at - 1]
                at -= 1
            touched[at] = slot
        total = 0.0
        for n in range(seen):
            total += votes[touched[n]]
        if filled + seen > out_labels.size:
            more = np.empty(2 * out_labels.size, np.int32)
            more_values = np.empty(2 * out_values.size, np.float32)
            for n in range(filled):
                more[n], more_values[n] = out_labels[n], out_values[n]
            out_labels, out_values = more, more_values
        for n in range(seen):
            slot = touched[n]
            share = np.float32(votes[slot] / total)
            if share > 0:
                out_labels[filled] = slot
                out_values[filled] = share
                filled += 1
                counts[m] += 1
            votes[slot] = 0.0
    return counts, out_labels[:filled].copy(), out_values[:filled].copy()


@njit(cache=True, nogil=True)
def _share_out(votes: Float64, touched: Int64, seen: int, unknown: Bool, background: int) -> int:
    """Add the votes of all groups in the slots of the first group, and distribute uncertain background votes.

    If some labels were not annotated in a group, its background votes are distributed in proportion to the votes for
    background and for these labels of the groups with all labels. They stay background if there are none.
    """
    labels = unknown.shape[1]
    shared = np.zeros(labels)
    for t in range(seen):
        group, label = touched[t] // labels, touched[t] % labels
        vote = votes[touched[t]]
        known = 0.0
        if label == background and unknown[group].any():
            for u in range(seen):
                other, meant = touched[u] // labels, touched[u] % labels
                if (meant == background or unknown[group, meant]) and not (unknown[group] & unknown[other]).any():
                    known += votes[touched[u]]
        if known == 0.0:
            shared[label] += vote
            continue
        for u in range(seen):
            other, meant = touched[u] // labels, touched[u] % labels
            if (meant == background or unknown[group, meant]) and not (unknown[group] & unknown[other]).any():
                shared[meant] += vote * votes[touched[u]] / known
    for t in range(seen):
        votes[touched[t]] = 0.0
    seen = 0
    for label in range(labels):
        if shared[label] > 0:
            votes[label] = shared[label]
            touched[seen] = label
            seen += 1
    return seen
