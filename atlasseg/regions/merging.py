"""Merge touching regions, the most alike first: a heap over the edges of the region adjacency graph.

At every step the edge of least cost is contracted, and the costs around the new region change. For a region with very
many neighbours, such as the background, doing that for all its edges at every step would be quadratic. So the heap
holds lower bounds: each mean lies in a ball around an anchor, so two means are no closer than their anchors less both
radii, and sizes only grow; a bound made with them stays valid for many merges, until the mean leaves its ball. An edge
that comes to the top is measured exactly before it is contracted. The order of the merges, and thereby the result, is
that of measuring every edge anew after every merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.regions.adjacency_graph import AdjacencyGraph
from atlasseg.volume import Float64, Int32

Criterion = Literal["ward", "mean_difference", "mumford_shah"]

_KINDS = {"mean_difference": 0, "ward": 1, "mumford_shah": 2}
_FEW = 16  # a region with no more neighbours than this is measured anew at every merge


@dataclass(frozen=True, eq=False)
class Merges:
    """The hierarchy that merging makes: cut it anywhere without merging again.

    Parameters
    ----------
    count : int
        Number R of regions at the start.
    kept, absorbed : (M,) int32
        Of each merge, in order, the rows (0..R - 1) under which the two were known; the union is known as `kept`.
    costs : (M,) float64
        What each merge cost by its criterion. Need not ascend: a union can be closer to a third than its parts were.
    """

    count: int
    kept: Int32
    absorbed: Int32
    costs: Float64

    def cut(self, regions: int) -> Int32:
        """(R,) which of `regions` regions each row belongs to: 1, 2, ... by first row.

        Raises
        ------
        InputError
            The hierarchy has no such level.
        """
        fewest = self.count - self.kept.size
        if not fewest <= regions <= self.count:
            raise InputError(f"{fewest} to {self.count} regions can be had from this hierarchy, not {regions}")
        done = self.count - regions
        rows: Int32 = _cut(self.count, self.kept[:done], self.absorbed[:done])
        return rows

    def linkage(self, regions: int) -> Float64:
        """(regions - roots, 4) matrix of SciPy's `linkage` over the last merges, from `regions` regions on.

        Leaf i is region i + 1 of ``cut(regions)``. Heights are the largest cost so far, so that none lies below its
        children; counts are leaves.
        """
        leaf_of = self.cut(regions)
        start = self.count - regions
        node = {int(row): int(leaf_of[row]) - 1 for row in {*self.kept[start:], *self.absorbed[start:]}}
        sizes = [1] * regions
        out = []
        height = 0.0
        for kept, absorbed, cost in zip(
            self.kept[start:].tolist(), self.absorbed[start:].tolist(), self.costs[start:].tolist(), strict=True
        ):
            height = max(height, cost)
            a, b = node[kept], node[absorbed]
            sizes.append(sizes[a] + sizes[b])
            out.append([min(a, b), max(a, b), height, sizes[-1]])
            node[kept] = len(sizes) - 1
        return np.array(out, np.float64).reshape(-1, 4)


def merge(
    graph: AdjacencyGraph,
    *,
    criterion: Criterion = "ward",
    threshold: float | None = None,
    regions: int | None = None,
    noise_sd: tuple[float, ...] | None = None,
) -> Merges:
    """Merge the regions of a graph until the cheapest merge costs more than `threshold`, or `regions` are left.

    With n voxels and mean mu of each region, the cost of merging a and b is

    - "mean_difference": ||mu_a - mu_b||;
    - "ward": n_a n_b / (n_a + n_b) ||mu_a - mu_b||^2, what the sum of squared deviations grows by [1]_;
    - "mumford_shah": the same over the area of the shared boundary in mm^2: merging lowers the functional "squared
      deviations + threshold times boundary area" as long as this is below the threshold [2]_.

    Parameters
    ----------
    graph : AdjacencyGraph
        Regions to start from.
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge.
    threshold : float, optional
        Dearest merge that is still done, 0 or more; at 0 exactly equal neighbours merge.
    regions : int, optional
        Number of regions to stop at, if the threshold has not stopped it before.
    noise_sd : tuple of float, optional
        What each channel is divided by before means are compared; 1 where not given.

    Returns
    -------
    Merges
        Deterministic. On a tie the result depends on the order of the rows.

    Raises
    ------
    InputError
        Neither threshold nor regions is given, one is out of range, or more regions are asked for than there are.

    References
    ----------
    .. [1] Ward, Hierarchical grouping to optimize an objective function, J. Am. Stat. Assoc. 58, 1963; on a graph:
       Beaulieu, Goldberg, Hierarchy in picture segmentation: a stepwise optimization approach, IEEE TPAMI 11, 1989.
    .. [2] Koepfler, Lopez, Morel, A multiscale algorithm for image segmentation by variational method, SIAM J. Numer.
       Anal. 31, 1994, section 3.
    """
    return merge_arrays(
        graph.edges.copy(),
        graph.areas_mm2.copy() if criterion == "mumford_shah" else np.zeros(0),
        graph.sizes.astype(np.float64),
        graph.means.copy(),
        criterion=criterion,
        threshold=threshold,
        regions=regions,
        noise_sd=noise_sd,
    )


def merge_arrays(
    edges: Int32,
    areas_mm2: Float64,
    sizes: Float64,
    means: Float64,
    *,
    criterion: Criterion,
    threshold: float | None,
    regions: int | None,
    noise_sd: tuple[float, ...] | None = None,
) -> Merges:
    """`merge` on the arrays of a graph, which it overwrites, so that no second copy is held."""
    count, channels = means.shape
    if criterion not in _KINDS:
        raise InputError(f"criterion must be one of {', '.join(_KINDS)}, got {criterion!r}")
    if threshold is None and regions is None:
        raise InputError("say when to stop merging: give a threshold, a number of regions, or both")
    if threshold is not None and not threshold >= 0:
        raise InputError(f"a merge threshold of 0 or more is wanted, got {threshold}")
    if regions is not None and regions < 1:
        raise InputError(f"at least 1 region is wanted, got {regions}")
    if regions is not None and regions > count:
        raise InputError(
            f"{regions} regions are asked for, but there are only {count} to start from ({int(sizes.sum())} voxels): "
            "ask for fewer, or split with a lower threshold"
        )
    if noise_sd is not None:
        sd = np.asarray(noise_sd, np.float64)
        if sd.shape != (channels,) or not (np.isfinite(sd) & (sd > 0)).all():
            raise InputError(f"noise_sd: {channels} values above 0 are wanted, one a channel, got {noise_sd!r}")
        means /= sd
    limit = np.inf if threshold is None else float(threshold)
    kept = np.empty(max(count - 1, 0), np.int32)
    absorbed = np.empty(max(count - 1, 0), np.int32)
    costs = np.empty(max(count - 1, 0))
    done = _merge(edges, areas_mm2, sizes, means, _KINDS[criterion], limit, regions or 1, kept, absorbed, costs)
    return Merges(count, kept[:done].copy(), absorbed[:done].copy(), costs[:done].copy())


@njit(cache=True)
def _cut(count, kept, absorbed):  # type: ignore[no-untyped-def]
    parent = np.arange(count).astype(np.int32)
    for m in range(kept.size - 1, -1, -1):  # later merges first, so that one look suffices
        parent[absorbed[m]] = parent[kept[m]]
    number = np.zeros(count, np.int32)
    out = np.empty(count, np.int32)
    last = 0
    for row in range(count):
        root = parent[row]
        if number[root] == 0:
            last += 1
            number[root] = last
        out[row] = number[root]
    return out


# ------------------------------------------------------------------------------------------------ heap of edges, 4-ary


@njit(cache=True)
def _sift_up(heap: Int32, place: Int32, keys: Float64, at: int) -> None:
    edge = heap[at]
    key = keys[edge]
    while at > 0:
        above = (at - 1) >> 2
        other = heap[above]
        if keys[other] <= key:
            break
        heap[at] = other
        place[other] = at
        at = above
    heap[at] = edge
    place[edge] = at


@njit(cache=True)
def _sift_down(heap: Int32, place: Int32, keys: Float64, at: int, size: int) -> None:
    edge = heap[at]
    key = keys[edge]
    while True:
        child = 4 * at + 1
        if child >= size:
            break
        best = child
        for c in range(child + 1, min(child + 4, size)):
            if keys[heap[c]] < keys[heap[best]]:
                best = c
        other = heap[best]
        if keys[other] >= key:
            break
        heap[at] = other
        place[other] = at
        at = best
    heap[at] = edge
    place[edge] = at


@njit(cache=True)
def _move(heap: Int32, place: Int32, keys: Float64, edge: int, key: float, size: int) -> None:
    """Give an edge another key."""
    before = keys[edge]
    keys[edge] = key
    if key < before:
        _sift_up(heap, place, keys, place[edge])
    elif key > before:
        _sift_down(heap, place, keys, place[edge], size)


@njit(cache=True)
def _take_out(heap: Int32, place: Int32, keys: Float64, edge: int, size: int) -> None:
    """Remove an edge from a heap of `size`; its place becomes -1."""
    at = place[edge]
    place[edge] = -1
    last = heap[size - 1]
    if last != edge:
        heap[at] = last
        place[last] = at
        _sift_up(heap, place, keys, at)
        _sift_down(heap, place, keys, place[last], size - 1)


# ---------------------------------------------------------------------------------- hash table from two ends to an edge


@njit(cache=True, inline="always")
def _home(a, b, size):  # type: ignore[no-untyped-def]
    low, high = (a, b) if a < b else (b, a)
    h = np.uint64(low) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(high) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= h >> np.uint64(32)
    return np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(size)) >> np.uint64(32))


@njit(cache=True)
def _slot_of(table, ends, a, b):  # type: ignore[no-untyped-def]
    """Slot of the edge between a and b, or the free one where it belongs."""
    slot = _home(a, b, table.size)
    while True:
        edge = table[slot]
        if edge < 0 or (ends[edge, 0] == a and ends[edge, 1] == b) or (ends[edge, 0] == b and ends[edge, 1] == a):
            return slot
        slot += 1
        if slot == table.size:
            slot = 0


@njit(cache=True)
def _forget(table: Int32, ends: Int32, a: int, b: int) -> None:
    """Remove the edge between a and b; those behind it close the gap."""
    gap = _slot_of(table, ends, a, b)
    slot = gap
    while True:
        slot += 1
        if slot == table.size:
            slot = 0
        edge = table[slot]
        if edge < 0:
            break
        home = _home(ends[edge, 0], ends[edge, 1], table.size)
        # an edge may move back to the gap unless its home lies cyclically behind the gap
        behind = gap < home <= slot if gap <= slot else (home > gap or home <= slot)
        if not behind:
            table[gap] = edge
            gap = slot
    table[gap] = -1


# --------------------------------------------------------------------------------------------------------- the merging


@njit(cache=True)
def _distance(means, a, b):  # type: ignore[no-untyped-def]
    if means.shape[1] == 1:
        return abs(means[a, 0] - means[b, 0])
    squares = 0.0
    for c in range(means.shape[1]):
        off = means[a, c] - means[b, c]
        squares += off * off
    return np.sqrt(squares)


@njit(cache=True)
def _cost(kind, apart, n_a, n_b, area):  # type: ignore[no-untyped-def]
    if kind == 0:
        return apart
    ward = n_a * n_b / (n_a + n_b) * (apart * apart)
    return ward if kind == 1 else ward / area


@njit(cache=True)
def _exact(edge, ends, areas, sizes, means, kind):  # type: ignore[no-untyped-def]
    a, b = ends[edge, 0], ends[edge, 1]
    return _cost(kind, _distance(means, a, b), sizes[a], sizes[b], areas[edge] if kind == 2 else 1.0)


@njit(cache=True)
def _bound(edge, ends, areas, sizes, anchors, radii, kind):  # type: ignore[no-untyped-def]
    """A lower bound of an edge's cost that holds while the means of both ends are in the balls around their anchors."""
    a, b = ends[edge, 0], ends[edge, 1]
    apart = _distance(anchors, a, b)
    if radii[a] + radii[b] > 0:
        apart = max(0.0, (apart - radii[a] - radii[b]) * (1 - 1e-12))
    return _cost(kind, apart, sizes[a], sizes[b], areas[edge] if kind == 2 else 1.0)


@njit(cache=True)
def _merge(
    ends: Int32,
    areas: Float64,
    sizes: Float64,
    means: Float64,
    kind: int,
    limit: float,
    fewest: int,
    out_kept: Int32,
    out_absorbed: Int32,
    out_costs: Float64,
) -> int:
    """Contract edges, cheapest first; returns the number of merges."""
    count, channels = means.shape
    total = len(ends)
    sums = np.empty((count, channels))
    for row in range(count):
        for c in range(channels):
            sums[row, c] = means[row, c] * sizes[row]
    # half-edge 2 e + s is edge e as seen from its end s; each region holds a linked list of its half-edges
    head = np.full(count, -1, np.int32)
    following = np.empty(2 * total, np.int32)
    degree = np.zeros(count, np.int32)
    for half in range(2 * total - 1, -1, -1):
        row = ends[half >> 1, half & 1]
        following[half] = head[row]
        head[row] = half
        degree[row] += 1
    table = np.full(max(8, total * 8 // 5), -1, np.int32)
    for edge in range(total):
        table[_slot_of(table, ends, ends[edge, 0], ends[edge, 1])] = edge
    anchors = means.copy()
    radii = np.zeros(count)
    work = np.zeros(count, np.int32)  # exact edges measured anew since all were
    # edges whose key is their exact cost although an end has slack: measured anew as soon as that end moves
    exact_head = np.full(count, -1, np.int32)
    marks = np.zeros(total, np.uint8)  # 1, 2: in the list of end 0, 1
    pool_edge = np.empty(1024, np.int32)
    pool_next = np.empty(1024, np.int32)
    pool_free = -1
    pool_used = 0

    keys = np.empty(total)
    heap = np.arange(total).astype(np.int32)
    place = np.arange(total).astype(np.int32)
    for edge in range(total):
        keys[edge] = _bound(edge, ends, areas, sizes, anchors, radii, kind)
    for at in range((total - 2) >> 2, -1, -1):
        _sift_down(heap, place, keys, at, total)
    left = total
    done = 0
    while left > 0 and count - done > fewest:
        edge = heap[0]
        if keys[edge] > limit:
            break
        a, b = ends[edge, 0], ends[edge, 1]
        cost = _exact(edge, ends, areas, sizes, means, kind)
        second = np.inf
        for c in range(1, min(5, left)):
            second = min(second, keys[heap[c]])
        if cost > keys[edge] and (cost > second or cost > limit):
            _move(heap, place, keys, edge, cost, left)
            for side in range(2):
                if marks[edge] & (1 << side) == 0:
                    marks[edge] |= 1 << side
                    if pool_free >= 0:
                        entry = pool_free
                        pool_free = pool_next[entry]
                    else:
                        if pool_used == pool_edge.size:
                            longer = np.empty(2 * pool_used, np.int32)
                            longer[:pool_used] = pool_edge
                            pool_edge = longer
                            longer = np.empty(2 * pool_used, np.int32)
                            longer[:pool_used] = pool_next
                            pool_next = longer
                        entry = pool_used
                        pool_used += 1
                    row = ends[edge, side]
                    pool_edge[entry] = edge
                    pool_next[entry] = exact_head[row]
                    exact_head[row] = entry
            continue

        kept, gone = (a, b) if degree[a] > degree[b] or (degree[a] == degree[b] and a < b) else (b, a)
        out_kept[done], out_absorbed[done], out_costs[done] = kept, gone, cost
        done += 1
        _forget(table, ends, a, b)
        _take_out(heap, place, keys, edge, left)
        left -= 1
        degree[kept] -= 1
        degree[gone] -= 1

        sizes[kept] += sizes[gone]
        step = 0.0
        for c in range(channels):
            sums[kept, c] += sums[gone, c]
            mean = sums[kept, c] / sizes[kept]
            step += (mean - means[kept, c]) ** 2
            means[kept, c] = mean
        off = 0.0
        for c in range(channels):
            off += (means[kept, c] - anchors[kept, c]) ** 2
        due = np.sqrt(off) > radii[kept] or work[kept] > degree[kept]

        # exact edges: those of `gone` are measured below with its others; those of `kept` stay exact unless all are due
        for row in (gone, kept):
            entry = exact_head[row]
            before = -1
            while entry >= 0:
                other = pool_edge[entry]
                next_entry = pool_next[entry]
                if row == kept and not due and place[other] >= 0:
                    key = _exact(other, ends, areas, sizes, means, kind)
                    _move(heap, place, keys, other, key, left)
                    work[kept] += 1
                    before = entry
                else:
                    if place[other] >= 0:
                        marks[other] &= ~np.uint8(1 if ends[other, 0] == row else 2)
                    if before >= 0:
                        pool_next[before] = next_entry
                    else:
                        exact_head[row] = next_entry
                    pool_next[entry] = pool_free
                    pool_free = entry
                entry = next_entry

        half = head[gone]
        while half >= 0:
            next_half = following[half]
            other, side = half >> 1, half & 1
            if place[other] >= 0:
                neighbour = ends[other, 1 - side]
                _forget(table, ends, gone, neighbour)
                slot = _slot_of(table, ends, kept, neighbour)
                twin = table[slot]
                if twin >= 0:  # both touched the same neighbour: one edge stays
                    _take_out(heap, place, keys, other, left)
                    left -= 1
                    degree[neighbour] -= 1
                    if kind == 2:
                        areas[twin] += areas[other]
                    other = twin
                else:
                    ends[other, side] = kept
                    table[slot] = other
                    following[half] = head[kept]
                    head[kept] = half
                    degree[kept] += 1
                if not due:
                    key = _bound(other, ends, areas, sizes, anchors, radii, kind)
                    _move(heap, place, keys, other, key, left)
            half = next_half

        if due:
            if degree[kept] <= _FEW:
                radii[kept] = 0.0
            elif work[kept] > degree[kept] // 2:  # a wide ball costs exact measurements, a narrow one sweeps like this
                radii[kept] /= 4
            else:
                radii[kept] = 2 * max(radii[kept], np.sqrt(step))
            work[kept] = 0
            for c in range(channels):
                anchors[kept, c] = means[kept, c]
            before = -1
            half = head[kept]
            while half >= 0:
                other = half >> 1
                if place[other] >= 0:
                    key = _bound(other, ends, areas, sizes, anchors, radii, kind)
                    _move(heap, place, keys, other, key, left)
                    before = half
                elif before >= 0:
                    following[before] = following[half]
                else:
                    head[kept] = following[half]
                half = following[half]
    return done
