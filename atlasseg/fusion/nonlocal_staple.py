"""Non-local STAPLE: STAPLE with votes from similar patches in the vicinity; tolerates imperfect registration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.fusion._intensities import Standardised
from atlasseg.fusion._patches import list_offsets, load_tile, split_into_tiles
from atlasseg.fusion._staple import (
    RaterVotes,
    estimate_confusion,
    expand_to_voxels,
    run_em,
    select_winners,
)
from atlasseg.fusion._votes import Votes, fill_entries, index_slots, label_slots
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.threads import map_in_threads, run_slices
from atlasseg.volume import Atlas, Bool, Float32, Image, Int32, Int64, LabelWeights, ProbabilityMap

SMALLEST_FRACTION = 1e-3
"""Minimum fraction of a candidate's vote for a label; smaller fractions are dropped."""

Found = tuple[Int64, Int32, Float32]
"""Votes of one candidate in one tile: number of labels at each requested voxel, their indices and fractions."""


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    patch_radius_voxels: int = 1,
    search_radius_voxels: int = 3,
    sigma_intensity: float = 0.25,
    sigma_voxels: float = 1.5,
    prior: Literal["local", "global"] = "local",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by STAPLE with a non-local model of correspondence.

    The vote of candidate :math:`i` at voxel :math:`x` is spread over the labels of a search window :math:`S(x)`,
    because registration may be wrong by some voxels [1]_:

    .. math::

        a_i(x, l') &= \sum_{x' \in S(x):\, L_i(x') = l'} \alpha_i(x', x), \qquad \sum_{x'} \alpha_i(x', x) = 1 \\
        \alpha_i(x', x) &\propto \exp\left( -\frac{|P_i(x') - P(x)|^2}{2 \sigma_i^2} \right)
        \exp\left( -\frac{|x' - x|^2}{2 \sigma_d^2} \right)

    :math:`|P_i(x') - P(x)|^2` is the mean squared difference of the intensities of a patch of the candidate and of
    the target. The expectation maximisation of STAPLE runs on these votes:

    .. math::

        W_l(x) &\propto f_l(x) \prod_i \sum_{l'} \theta_i(l', l) \, a_i(x, l') \\
        \theta_i(l', l) &= \frac{\sum_x a_i(x, l') \, W_l(x)}{\sum_x W_l(x)}

    :math:`x` runs over the voxels where the candidates disagree. Intensities are standardised first (clipped to
    percentiles, mean 0, standard deviation 1), so :math:`\sigma_i` has no unit.

    The method assumes that candidates err independently of each other. They do not, so :math:`W` is too close to 0
    and 1: its expected calibration error is several times that of `majority`.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid, with as many channels; fractions count as their most probable label. Patches are
        centred inside a candidate's mask.
    patch_radius_voxels : int
        A patch has 2 r + 1 voxels along each axis.
    search_radius_voxels : int
        Radius of the search window, which has 2 r + 1 voxels along each axis; 0 gives STAPLE.
    sigma_intensity : float
        sigma_i, relative to the standard deviation of the target, above 0.
    sigma_voxels : float
        sigma_d, in voxels along each axis, above 0.
    prior : str
        `local`: mean of a_i(x, l) over the candidates; `global`: mean over the candidates and all x.
    max_iterations : int
        Maximum number of iterations.
    tolerance : float
        Stop when no confusion probability changes by more than this.
    contrast : {"auto", "same", "different"}
        Whether the candidates have the contrast of the target. "auto": test it; "same": assume it; "different": assume
        another contrast. Candidates of another contrast are first mapped to that of the target, see
        `atlasseg.fusion.contrast.match_contrast`.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, channels differ, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Asman and Landman (2013), Non-local statistical label fusion for multi-atlas segmentation, MedIA
       17(2):194-208.
    """
    if prior not in ("global", "local"):
        raise InputError(f"nonlocal_staple: prior: expected global or local, got {prior!r}")
    if patch_radius_voxels < 0 or search_radius_voxels < 0 or not (sigma_intensity > 0 and sigma_voxels > 0):
        raise InputError(
            "nonlocal_staple: expected radii of 0 or more and sigmas above 0, got "
            f"{patch_radius_voxels}, {search_radius_voxels}, {sigma_intensity} and {sigma_voxels}"
        )
    if max_iterations < 1 or tolerance <= 0:
        raise InputError(
            "nonlocal_staple: expected max_iterations of at least 1 and tolerance above 0, got "
            f"{max_iterations} and {tolerance}"
        )
    candidates = in_contrast(target, candidates, contrast)
    votes = Votes.gather(target, candidates, hard=True)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    images = Standardised.around(
        target, candidates, votes.voxels, margin_voxels=patch_radius_voxels + search_radius_voxels
    )
    votes = gather_nonlocal_votes(
        votes, images, candidates, patch_radius_voxels, search_radius_voxels, sigma_intensity, sigma_voxels
    )
    tally = votes.tally()
    share = tally / np.repeat(np.add.reduceat(tally, votes.slot_offsets[:-1]), np.diff(votes.slot_offsets))
    each = np.arange(votes.voxels.size)
    rows = RaterVotes(
        np.ones(each.size), votes.entry_offsets, votes.entry_candidates, votes.entry_labels, votes.entry_fractions,
        LabelWeights(votes.slot_offsets, votes.slot_labels, share),
    )  # fmt: skip
    raters, labels = votes.unknown.shape
    confusion = estimate_confusion(rows, select_winners(rows), raters, labels)
    if prior == "global":
        possible = rows.possible
        whole = np.bincount(possible.labels, share, labels)
        rows = replace(rows, possible=possible.with_values((whole / whole.sum())[possible.labels]))
    posterior, _ = run_em(rows, confusion, max_iterations=max_iterations, tolerance=tolerance)
    return votes.to_map(*expand_to_voxels(rows, posterior, each), name=target.name)


def gather_nonlocal_votes(
    votes: Votes,
    images: Standardised,
    candidates: Sequence[Atlas],
    patch_radius_voxels: int,
    search_radius_voxels: int,
    sigma_intensity: float,
    sigma_voxels: float,
) -> Votes:
    """Replace the votes at the active voxels by the non-local votes a_i(x, l)."""
    where = np.zeros(images.target.shape[:3], bool)
    where.reshape(-1)[images.inside] = True
    row_of = np.full(where.shape, -1, np.int64)
    row_of.reshape(-1)[images.inside] = np.arange(images.inside.size)
    offsets = list_offsets(search_radius_voxels)
    near = -((offsets**2).sum(axis=1)) / (2 * sigma_voxels**2)
    scale = 1 / (2 * sigma_intensity**2 * (2 * patch_radius_voxels + 1) ** 3 * images.target.shape[-1])
    target = np.ascontiguousarray(np.moveaxis(images.target, -1, 0))
    boxes = split_into_tiles(where)
    parts = []
    for i, (candidate, mask) in enumerate(images):
        array = np.ascontiguousarray(np.moveaxis(candidate, -1, 0))
        known = np.ones(where.shape, bool) if mask is None else np.ascontiguousarray(mask)
        said = np.searchsorted(votes.label_values, candidates[i].segmentation.array[images.box]).astype(np.int32)

        def gather_in(
            box: tuple[Int64, Int64], array: Float32 = array, known: Bool = known, said: Int32 = said
        ) -> Found:
            start, stop = box
            inner, outer = patch_radius_voxels, patch_radius_voxels + search_radius_voxels
            found: Found = _spread(
                load_tile(target, start - inner, stop + inner), load_tile(array, start - outer, stop + outer), said,
                known, row_of, start, stop, offsets, near, patch_radius_voxels, search_radius_voxels, scale,
                votes.label_values.size,
            )  # fmt: skip
            return found

        parts.append(_join_tiles(row_of, boxes, map_in_threads(gather_in, boxes)))
    return _with_entries(votes, parts)


class _Entries(NamedTuple):
    """Votes of one candidate: at each active voxel `counts` entries from index `firsts` on."""

    counts: Int64
    firsts: Int64
    labels: Int32
    fractions: Float32


def _join_tiles(row_of: Int64, boxes: Sequence[tuple[Int64, Int64]], found: Iterable[Found]) -> _Entries:
    """Join the votes of one candidate over the tiles; `row_of` is the row of each active voxel, -1 elsewhere."""
    rows_in_all = int(row_of.max()) + 1
    counts, firsts = np.zeros(rows_in_all, np.int64), np.full(rows_in_all, -1, np.int64)
    labels: list[Int32] = []
    fractions: list[Float32] = []
    begin = 0
    for box, (count, label, fraction) in zip(boxes, found, strict=True):
        inside = row_of[tuple(slice(a, b) for a, b in zip(*box, strict=True))]
        rows = inside[inside >= 0]
        counts[rows] = count
        firsts[rows] = begin + np.cumsum(count) - count
        begin += label.size
        labels.append(label)
        fractions.append(fraction)
    return _Entries(counts, firsts, np.concatenate(labels), np.concatenate(fractions))


def _with_entries(votes: Votes, parts: Sequence[_Entries]) -> Votes:
    """The votes with the entries of each candidate replaced."""
    entry_offsets = np.concatenate(([0], np.cumsum(np.sum([part.counts for part in parts], axis=0))))
    raters = np.empty(entry_offsets[-1], np.int32)
    said_labels = np.empty(entry_offsets[-1], np.int32)
    said_fractions = np.empty(entry_offsets[-1], np.float32)
    filled = entry_offsets[:-1].copy()
    for i, part in enumerate(parts):
        run_slices(
            fill_entries, part.counts.size, i, np.zeros(part.counts.size, np.int64), part.counts, part.firsts,
            part.labels.astype(np.int64), part.fractions, filled, raters, said_labels, said_fractions,
        )  # fmt: skip
    slot_counts, slots = index_slots(entry_offsets, said_labels)
    slot_offsets = np.concatenate(([0], np.cumsum(slot_counts)))
    return replace(
        votes,
        entry_offsets=entry_offsets,
        entry_candidates=raters,
        entry_slots=slots,
        entry_fractions=said_fractions,
        slot_offsets=slot_offsets,
        slot_labels=label_slots(entry_offsets, said_labels, slots, slot_offsets),
    )


@njit(cache=True, nogil=True)
def _spread(  # type: ignore[no-untyped-def]
    target, values, said, known, row_of, start, stop, offsets, near, patch, window, scale, label_count
):
    """Spread one candidate's votes in a tile; voxels in C order, labels ascending."""
    n0, n1, n2 = stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]
    width = 2 * patch + 1
    # labels of the tile's window get a column each
    column = np.full(label_count, -1, np.int64)
    for i in range(max(start[0] - window, 0), min(stop[0] + window, said.shape[0])):
        for j in range(max(start[1] - window, 0), min(stop[1] + window, said.shape[1])):
            for k in range(max(start[2] - window, 0), min(stop[2] + window, said.shape[2])):
                column[said[i, j, k]] = 0
    columns = 0
    meant = np.empty(label_count, np.int32)
    for label in range(label_count):
        if column[label] == 0:
            column[label] = columns
            meant[columns] = label
            columns += 1
    distance = np.full((offsets.shape[0], n0, n1, n2), np.inf)
    squared = np.empty((n0 + width - 1, n1 + width - 1, n2 + width - 1))
    along0 = np.empty((n0, n1 + width - 1, n2 + width - 1))
    along1 = np.empty((n0, n1, n2 + width - 1))
    for o in range(offsets.shape[0]):
        d0, d1, d2 = offsets[o, 0] + window, offsets[o, 1] + window, offsets[o, 2] + window
        for i in range(squared.shape[0]):
            for j in range(squared.shape[1]):
                for k in range(squared.shape[2]):
                    total = 0.0
                    for c in range(target.shape[0]):
                        apart = target[c, i, j, k] - values[c, i + d0, j + d1, k + d2]
                        total += apart * apart
                    squared[i, j, k] = total
        for i in range(n0):
            along0[i] = squared[i]
            for p in range(1, width):
                along0[i] += squared[i + p]
            for j in range(n1):
                along1[i, j] = along0[i, j]
                for p in range(1, width):
                    along1[i, j] += along0[i, j + p]
                for k in range(n2):
                    if row_of[start[0] + i, start[1] + j, start[2] + k] < 0:
                        continue
                    x, y, z = start[0] + i + offsets[o, 0], start[1] + j + offsets[o, 1], start[2] + k + offsets[o, 2]
                    if x < 0 or y < 0 or z < 0 or x >= said.shape[0] or y >= said.shape[1] or z >= said.shape[2]:
                        continue
                    if not known[x, y, z]:
                        continue
                    total = 0.0
                    for p in range(width):
                        total += along1[i, j, k + p]
                    distance[o, i, j, k] = total * scale - near[o]
    counts = np.empty(n0 * n1 * n2, np.int64)
    labels = np.empty(n0 * n1 * n2 * columns, np.int32)
    fractions = np.empty(n0 * n1 * n2 * columns, np.float32)
    weight = np.zeros(columns)
    voxel = 0
    filled = 0
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                if row_of[start[0] + i, start[1] + j, start[2] + k] < 0:
                    continue
                least = np.inf
                for o in range(offsets.shape[0]):
                    least = min(least, distance[o, i, j, k])
                weight[:] = 0.0
                if least < np.inf:
                    for o in range(offsets.shape[0]):
                        away = distance[o, i, j, k] - least
                        if away < 30.0:
                            x = start[0] + i + offsets[o, 0]
                            y = start[1] + j + offsets[o, 1]
                            z = start[2] + k + offsets[o, 2]
                            weight[column[said[x, y, z]]] += np.exp(-away)
                total = weight.sum()
                held = 0.0
                for c in range(columns):
                    if weight[c] > SMALLEST_FRACTION * total:
                        held += weight[c]
                counts[voxel] = 0
                for c in range(columns):
                    if weight[c] > SMALLEST_FRACTION * total:
                        labels[filled] = meant[c]
                        fractions[filled] = weight[c] / held
                        counts[voxel] += 1
                        filled += 1
                voxel += 1
    return counts[:voxel].copy(), labels[:filled].copy(), fractions[:filled].copy()
