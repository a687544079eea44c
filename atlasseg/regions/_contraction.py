"""Contract the edges of a graph, cheapest first: the kernel of `merging`.

Each step contracts the edge of lowest cost, which changes the costs around the new region. Computing all its edges
at each step would be quadratic for a region with very many neighbours, such as the background. Therefore the heap
contains lower bounds: a key allows for a bounded change of the means of both ends, and sizes only grow. The cost of an
edge at the top is computed before it is contracted, so the order of the merges is the same as if all costs were
computed after each merge.

The allowed change of a mean depends on the edge: large if its cost is far above that of the current merges, small if
it is near. A region with many neighbours sorts its edges into levels. Level k has a ball of radius r_k, four times that
of level k - 1, around an anchor. While the mean is in the ball, the edges of the level are not visited. When it leaves,
their costs are computed, they are sorted again, and the ball is centred on the mean. Level 0 has no ball: its costs are
computed whenever the region changes. A region with few neighbours has level 0 only.

The record of an edge is one cache line: both ends, both lists, position in the heap, and hash chain.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from atlasseg.volume import Float64, Int32

# Indices that are read from arrays are made int64 where they go into other functions: each of these is compiled once.

MEAN_DIFFERENCE, WARD, MUMFORD_SHAH = range(3)

# Columns of an edge's record. Column s is end s; half-edge 2 e + s is edge e in a list of the region at its end s, with
# the half-edges after it (-1: none) and before it (-1 - level if it is the first of its list).
_AFTER, _BEFORE, _PLACE, _CHAIN = 2, 4, 6, 7

_MANY = 64  # neighbours from which on a region has levels
_LEVELS = 16


# ------------------------------------------------------------------------------------------------ heap of edges, 4-ary


@njit(cache=True)
def _sift_up(keys, heap, records, at, key, edge):  # type: ignore[no-untyped-def]
    while at > 0:
        above = (at - 1) >> 2
        if keys[above] <= key:
            break
        keys[at] = keys[above]
        heap[at] = heap[above]
        records[heap[at], _PLACE] = at
        at = above
    keys[at] = key
    heap[at] = edge
    records[edge, _PLACE] = at


@njit(cache=True)
def _sift_down(keys, heap, records, at, key, edge, size):  # type: ignore[no-untyped-def]
    while True:
        child = 4 * at + 1
        if child >= size:
            break
        best = child
        for c in range(child + 1, min(child + 4, size)):
            if keys[c] < keys[best]:
                best = c
        if keys[best] >= key:
            break
        keys[at] = keys[best]
        heap[at] = heap[best]
        records[heap[at], _PLACE] = at
        at = best
    keys[at] = key
    heap[at] = edge
    records[edge, _PLACE] = at


@njit(cache=True)
def _rekey(keys, heap, records, edge, key, size):  # type: ignore[no-untyped-def]
    at = np.int64(records[edge, _PLACE])
    if key < keys[at]:
        _sift_up(keys, heap, records, at, key, edge)
    elif key > keys[at]:
        _sift_down(keys, heap, records, at, key, edge, size)


@njit(cache=True)
def _take_out(keys, heap, records, edge, size):  # type: ignore[no-untyped-def]
    """Remove an edge from a heap of `size`."""
    at = np.int64(records[edge, _PLACE])
    last, key = np.int64(heap[size - 1]), keys[size - 1]
    if last != edge:
        if key < keys[at]:
            _sift_up(keys, heap, records, at, key, last)
        else:
            _sift_down(keys, heap, records, at, key, last, size - 1)


# ---------------------------------------------------------------------------------- hash table from two ends to an edge


@njit(cache=True, inline="always")
def _bucket(a, b, size):  # type: ignore[no-untyped-def]
    low, high = (a, b) if a < b else (b, a)
    h = np.uint64(low) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(high) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= h >> np.uint64(32)
    return np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(size)) >> np.uint64(32))


@njit(cache=True)
def _enter(buckets, records, edge):  # type: ignore[no-untyped-def]
    bucket = _bucket(records[edge, 0], records[edge, 1], buckets.size)
    records[edge, _CHAIN] = buckets[bucket]
    buckets[bucket] = edge


@njit(cache=True)
def _strike(buckets, records, edge):  # type: ignore[no-untyped-def]
    bucket = _bucket(records[edge, 0], records[edge, 1], buckets.size)
    other = buckets[bucket]
    if other == edge:
        buckets[bucket] = records[edge, _CHAIN]
        return
    while records[other, _CHAIN] != edge:
        other = records[other, _CHAIN]
    records[other, _CHAIN] = records[edge, _CHAIN]


@njit(cache=True)
def _edge_between(buckets, records, a, b):  # type: ignore[no-untyped-def]
    """The edge between a and b, -1 if there is none."""
    edge = buckets[_bucket(a, b, buckets.size)]
    while edge >= 0:
        if (records[edge, 0] == a and records[edge, 1] == b) or (records[edge, 0] == b and records[edge, 1] == a):
            break
        edge = records[edge, _CHAIN]
    return edge


# ------------------------------------------------------------------------------------------------- lists of half-edges


@njit(cache=True, inline="always")
def _first(head, hubs, heads, row, level):  # type: ignore[no-untyped-def]
    return head[row] if level == 0 else heads[hubs[row], level]


@njit(cache=True, inline="always")
def _set_first(head, hubs, heads, row, level, half):  # type: ignore[no-untyped-def]
    if level == 0:
        head[row] = half
    else:
        heads[hubs[row], level] = half


@njit(cache=True)
def _link(records, head, hubs, heads, edge, side, level):  # type: ignore[no-untyped-def]
    row = records[edge, side]
    after = _first(head, hubs, heads, row, level)
    records[edge, _AFTER + side] = after
    records[edge, _BEFORE + side] = -1 - level
    if after >= 0:
        records[after >> 1, _BEFORE + (after & 1)] = 2 * edge + side
    _set_first(head, hubs, heads, row, level, 2 * edge + side)


@njit(cache=True)
def _unlink(records, head, hubs, heads, edge, side):  # type: ignore[no-untyped-def]
    after, before = records[edge, _AFTER + side], records[edge, _BEFORE + side]
    if after >= 0:
        records[after >> 1, _BEFORE + (after & 1)] = before
    if before >= 0:
        records[before >> 1, _AFTER + (before & 1)] = after
    else:
        _set_first(head, hubs, heads, records[edge, side], -1 - before, after)


# ------------------------------------------------------------------------------------------------------------ the costs


@njit(cache=True)
def _distance(nodes, weights, a, b):  # type: ignore[no-untyped-def]
    squares = 0.0
    for c in range(weights.size):
        off = (nodes[a, 1 + c] / nodes[a, 0] - nodes[b, 1 + c] / nodes[b, 0]) * weights[c]
        squares += off * off
    return np.sqrt(squares)


@njit(cache=True, inline="always")
def _factor(kind, n_a, n_b, areas, edge):  # type: ignore[no-untyped-def]
    """Factor of the squared distance; not for the mean difference."""
    ward = n_a * n_b / (n_a + n_b)
    return ward / areas[edge] if kind == MUMFORD_SHAH else ward


@njit(cache=True)
def _cost(edge, records, areas, nodes, weights, kind):  # type: ignore[no-untyped-def]
    a, b = records[edge, 0], records[edge, 1]
    apart = _distance(nodes, weights, a, b)
    if kind == MEAN_DIFFERENCE:
        return apart
    return _factor(kind, nodes[a, 0], nodes[b, 0], areas, edge) * (apart * apart)


@njit(cache=True)
def _level(records, head, hubs, heads, anchors, nodes, weights, radii, edge, side, slack):  # type: ignore[no-untyped-def]
    """Put a half-edge on the highest level whose ball allows a change of at most `slack`; return the allowed change."""
    level = _LEVELS - 1
    while 2 * radii[level] > slack:
        level -= 1
    row = records[edge, side]
    if level > 0 and heads[hubs[row], level] < 0:
        for c in range(weights.size):
            anchors[hubs[row], level, c] = nodes[row, 1 + c] / nodes[row, 0]
    _unlink(records, head, hubs, heads, edge, side)
    _link(records, head, hubs, heads, edge, side, level)
    return 2 * radii[level]


@njit(cache=True)
def _settle(edge, front, records, areas, nodes, weights, kind, head, hubs, heads, anchors, radii, keys, heap, size):  # type: ignore[no-untyped-def]
    """Compute the cost of an edge, and a key that allows the means to change by half of the difference to `front`."""
    a, b = records[edge, 0], records[edge, 1]
    n_a, n_b = nodes[a, 0], nodes[b, 0]
    apart = _distance(nodes, weights, a, b)
    factor = 1.0 if kind == MEAN_DIFFERENCE else _factor(kind, n_a, n_b, areas, edge)
    key = apart if kind == MEAN_DIFFERENCE else factor * (apart * apart)
    many = (hubs[a] >= 0) + (hubs[b] >= 0)
    if many:
        near = front if kind == MEAN_DIFFERENCE else np.sqrt(front / factor)
        share = max(apart - near, 0.0) / (2 * many)
        slack = 0.0
        for side in range(2):
            if hubs[records[edge, side]] >= 0:
                slack += _level(records, head, hubs, heads, anchors, nodes, weights, radii, edge, side, share)
        if slack > 0:
            least = (apart - slack) * (1 - 1e-12)
            key = least if kind == MEAN_DIFFERENCE else factor * (least * least)
    _rekey(keys, heap, records, edge, key, size)


@njit(cache=True)
def _has_left(row, level, hub, anchors, nodes, weights, radii):  # type: ignore[no-untyped-def]
    squares = 0.0
    for c in range(weights.size):
        off = (nodes[row, 1 + c] / nodes[row, 0] - anchors[hub, level, c]) * weights[c]
        squares += off * off
    return squares > (radii[level] * (1 - 1e-12)) ** 2


@njit(cache=True)
def _longer(values):  # type: ignore[no-untyped-def]
    out = np.empty((2 * len(values), *values.shape[1:]), values.dtype)  # unused pages take no memory
    flat, into = values.reshape(-1), out.reshape(-1)
    for n in range(flat.size):
        into[n] = flat[n]
    return out


@njit(cache=True)
def contract(
    records: Int32, areas: Float64, nodes: Float64, weights: Float64, kind: int, limit: float, fewest: int
) -> Int32:
    """Contract edges until the cheapest costs more than `limit` or `fewest` regions are left.

    Parameters
    ----------
    records : (E, 8) int32
        The ends of each edge in the first two columns; the others are work space.
    areas : (E,) float64
        Shared area, for Mumford-Shah; otherwise empty.
    nodes : (R, 1 + C) float64
        Size and sums of the channels of each region. Overwritten: for an absorbed region, the first two become the cost
        and the row that absorbed it.
    weights : (C,) float64
        Factors of the differences of means.

    Returns
    -------
    (M,) int32
        The absorbed rows, in order.
    """
    count, channels = len(nodes), weights.size
    total = len(records)
    absorbed = np.empty(max(count - 1, 0), np.int32)
    degree = np.zeros(count, np.int32)
    head = np.full(count, -1, np.int32)
    hubs = np.full(count, -1, np.int32)  # row of a region's levels
    heads = np.empty((64, _LEVELS), np.int32)
    anchors = np.empty((64, _LEVELS, channels))
    lowest = np.int64(0)
    made = 0
    free = np.empty(0, np.int32)  # rows of `heads` to be used again; the first `spare` of them
    spare = 0

    widest = 1e-150  # above 0, so that radii are above 0
    for c in range(channels):
        low, high = np.inf, -np.inf
        for row in range(count):
            mean = nodes[row, 1 + c] / nodes[row, 0]
            low, high = min(low, mean), max(high, mean)
        widest = max(widest, (high - low) * weights[c])
    radii = np.zeros(_LEVELS)
    for level in range(1, _LEVELS):
        radii[level] = widest / 4.0 ** (_LEVELS - level)

    buckets = np.full(max(total, 1), -1, np.int32)
    keys = np.empty(total)
    heap = np.empty(total, np.int32)
    for edge in range(total - 1, -1, -1):
        _enter(buckets, records, edge)
        for side in range(2):
            degree[records[edge, side]] += 1
            _link(records, head, hubs, heads, edge, side, lowest)
        keys[edge] = _cost(edge, records, areas, nodes, weights, kind)
        heap[edge] = edge
        records[edge, _PLACE] = edge
    for at in range((total - 2) >> 2, -1, -1):
        _sift_down(keys, heap, records, at, keys[at], np.int64(heap[at]), total)

    left = total
    done = 0
    born = 0  # before the first merge, regions with many neighbours get their levels
    while left > 0 and count - done > fewest:
        kept = gone = -1
        cost = 0.0
        if born < count:
            kept = born
            born += 1
            if degree[kept] <= _MANY:
                continue
        else:
            edge = np.int64(heap[0])  # type: ignore[assignment]
            if keys[0] > limit:
                break
            cost = _cost(edge, records, areas, nodes, weights, kind)
            front = limit
            for c in range(1, min(5, left)):
                front = min(front, keys[c])
            if cost > keys[0] and cost > front:
                _settle(
                    edge,
                    front,
                    records,
                    areas,
                    nodes,
                    weights,
                    kind,
                    head,
                    hubs,
                    heads,
                    anchors,
                    radii,
                    keys,
                    heap,
                    left,
                )
                continue
            a, b = records[edge, 0], records[edge, 1]
            kept, gone = (a, b) if degree[a] > degree[b] or (degree[a] == degree[b] and a < b) else (b, a)
            _strike(buckets, records, edge)
            _take_out(keys, heap, records, edge, left)
            left -= 1
            for side in range(2):
                _unlink(records, head, hubs, heads, edge, side)
                degree[records[edge, side]] -= 1
            for c in range(channels + 1):
                nodes[kept, c] += nodes[gone, c]
            absorbed[done] = gone
            done += 1

        if hubs[kept] < 0 and degree[kept] + (degree[gone] if gone >= 0 else 0) > _MANY:
            if spare > 0:
                spare -= 1
                hubs[kept] = free[spare]
            else:
                if made == len(heads):
                    heads, anchors = _longer(heads), _longer(anchors)
                hubs[kept] = made
                made += 1
            heads[hubs[kept]] = -1

        # compute the edges of `kept`, except the levels whose balls still contain its mean
        hub = hubs[kept]
        for level in range(_LEVELS - 1 if hub >= 0 else 0, -1, -1):
            half = _first(head, hubs, heads, kept, level)
            if half < 0 or (level > 0 and not _has_left(kept, level, hub, anchors, nodes, weights, radii)):
                continue
            if level > 0:
                for c in range(channels):
                    anchors[hub, level, c] = nodes[kept, 1 + c] / nodes[kept, 0]
            while half >= 0:
                after = records[half >> 1, _AFTER + (half & 1)]
                _settle(
                    half >> 1,
                    cost,
                    records,
                    areas,
                    nodes,
                    weights,
                    kind,
                    head,
                    hubs,
                    heads,
                    anchors,
                    radii,
                    keys,
                    heap,
                    left,
                )
                half = after
        if gone < 0:
            continue

        for level in range(_LEVELS if hubs[gone] >= 0 else 1):
            half = _first(head, hubs, heads, gone, level)
            while half >= 0:
                edge, side = half >> 1, half & 1
                half = records[edge, _AFTER + side]
                neighbour = records[edge, 1 - side]
                _strike(buckets, records, edge)
                _unlink(records, head, hubs, heads, edge, side)
                twin = _edge_between(buckets, records, kept, neighbour)
                if twin >= 0:  # both had the same neighbour: keep one edge
                    _take_out(keys, heap, records, edge, left)
                    left -= 1
                    _unlink(records, head, hubs, heads, edge, 1 - side)
                    degree[neighbour] -= 1
                    if kind == MUMFORD_SHAH:
                        areas[twin] += areas[edge]
                    edge = twin
                else:
                    records[edge, side] = kept
                    _enter(buckets, records, edge)
                    _link(records, head, hubs, heads, edge, side, lowest)
                    degree[kept] += 1
                _settle(
                    edge,
                    cost,
                    records,
                    areas,
                    nodes,
                    weights,
                    kind,
                    head,
                    hubs,
                    heads,
                    anchors,
                    radii,
                    keys,
                    heap,
                    left,
                )
        if hubs[gone] >= 0:
            if spare == free.size:
                more = np.empty(2 * spare + 16, np.int32)
                for n in range(spare):
                    more[n] = free[n]
                free = more
            free[spare] = hubs[gone]
            spare += 1
            hubs[gone] = -1
        nodes[gone, 0], nodes[gone, 1] = cost, kept
    return absorbed[:done].copy()
