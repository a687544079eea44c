"""Coarse global search for a displacement field: every displacement of a window tried at every node, then made smooth.

The cost of a displacement at a node is the squared distance between descriptors of the two images. The field that
minimises cost plus roughness is approached by coupled convex optimisation: in turn, every node takes the displacement
that is best for its cost plus a quadratic pull toward the smoothed field, and the field is smoothed, while the pull
grows. No gradient is followed, so no local minimum within the window can hold the search.

All arrays here are on one grid of nodes and all displacements in nodes.

References
----------
.. [1] Heinrich, M. P., Papiez, B. W., Schnabel, J. A., Handels, H. (2014). Non-parametric discrete registration with
   convex optimisation. WBIR, LNCS 8545, 51-61 (equations 3 to 5).
.. [2] Siebert, H., Hansen, L., Heinrich, M. P. (2021). Fast 3D registration with accurate optimisation and little
   learning for Learn2Reg 2021. arXiv:2112.03053 (the schedule of the pull, the inverse consistency).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

if TYPE_CHECKING:
    from atlasseg.volume import Bool, Float32

PULLS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weight of the pull toward the smoothed field, round by round: Siebert 2021."""

CONSISTENCY_ROUNDS = 15
"""Of the fixed-point iteration that makes the two directions inverse to each other: Siebert 2021."""


def search(
    fixed: Float32,
    moving: Float32,
    *,
    fixed_known: Bool,
    moving_known: Bool,
    radius_nodes: int,
    smoothness: float = 1.0,
    symmetric: bool = True,
) -> Float32:
    """Displacement field that takes nodes of the fixed image to like places of the moving image.

    Parameters
    ----------
    fixed, moving : (I, J, K, C) float32
        Descriptors on the same nodes, such as MIND-SSC averaged over the cells of the nodes.
    fixed_known, moving_known : (I, J, K) bool
        Where each image is known. A node of the fixed image that is not known has no cost of its own and follows its
        neighbours; a displacement to a place not known in the moving image costs the node's mean.
    radius_nodes : int
        Displacements of up to this many nodes are tried along each axis.
    smoothness : float
        Factor on the pull toward the smoothed field (`PULLS`).
    symmetric : bool
        Search both ways and take the part on which both agree; costs twice the time.

    Returns
    -------
    (I, J, K, 3) float32
        Displacements in nodes: fixed node x looks like moving place x + u(x).
    """
    forward = _searched_one_way(fixed, moving, fixed_known, moving_known, radius_nodes, smoothness)
    if not symmetric:
        return forward
    backward = _searched_one_way(moving, fixed, moving_known, fixed_known, radius_nodes, smoothness)
    return inverse_consistent(forward, backward)[0]


def _searched_one_way(
    fixed: Float32, moving: Float32, fixed_known: Bool, moving_known: Bool, radius: int, smoothness: float
) -> Float32:
    cost = displacement_costs(fixed, moving, fixed_known, moving_known, radius)
    field, reached = np.zeros((*cost.shape[:3], 3), np.float32), fixed_known
    for pull in (0.0, *PULLS):
        best = _best(cost, field, fixed_known, pull * smoothness, radius)
        field, reached = smoothed(best, reached)
    return smoothed(_between_nodes(cost, best, fixed_known, radius), reached)[0]


@njit(cache=True, parallel=True)
def displacement_costs(fixed: Float32, moving: Float32, fixed_known: Bool, moving_known: Bool, radius: int) -> Float32:
    """Cost of every displacement at every node, averaged over the node and its neighbours.

    Returns
    -------
    (I, J, K, D) float32
        D = (2 radius + 1)^3 displacements in C order of (di, dj, dk). Squared distance of the descriptors, averaged
        over the known nodes among the 27 around; 0 where none of them is known.
    """
    planes, rows, columns, channels = fixed.shape
    width = 2 * radius + 1
    raw = np.zeros((planes, rows, columns, width**3), np.float32)
    for i in prange(planes):
        for j in range(rows):
            for k in range(columns):
                if not fixed_known[i, j, k]:
                    continue
                total, count, d = np.float32(0), 0, 0
                for di in range(-radius, radius + 1):
                    for dj in range(-radius, radius + 1):
                        for dk in range(-radius, radius + 1):
                            a, b, c = i + di, j + dj, k + dk
                            raw[i, j, k, d] = -1
                            inside = 0 <= a < planes and 0 <= b < rows and 0 <= c < columns
                            if inside and moving_known[a, b, c]:
                                distance = np.float32(0)
                                for channel in range(channels):
                                    distance += (fixed[i, j, k, channel] - moving[a, b, c, channel]) ** 2
                                raw[i, j, k, d] = distance
                                total += distance
                                count += 1
                            d += 1
                mean = total / np.float32(max(count, 1))
                for d in range(width**3):
                    if raw[i, j, k, d] < 0:
                        raw[i, j, k, d] = mean
    out = np.zeros_like(raw)
    for i in prange(planes):
        for j in range(rows):
            for k in range(columns):
                known = 0
                for a in range(max(i - 1, 0), min(i + 2, planes)):
                    for b in range(max(j - 1, 0), min(j + 2, rows)):
                        for c in range(max(k - 1, 0), min(k + 2, columns)):
                            if fixed_known[a, b, c]:
                                known += 1
                                for d in range(width**3):
                                    out[i, j, k, d] += raw[a, b, c, d]
                if known > 0:
                    for d in range(width**3):
                        out[i, j, k, d] /= np.float32(known)
    return out


@njit(cache=True, parallel=True)
def _best(cost: Float32, field: Float32, known: Bool, pull: float, radius: int) -> Float32:
    """(I, J, K, 3) displacement with the least ``cost + pull |d - field|^2``; on a tie the one nearest to none.

    A node that is not known keeps its field.
    """
    planes, rows, columns = cost.shape[:3]
    out = field.copy()
    weight = np.float32(pull)
    for i in prange(planes):
        for j in range(rows):
            for k in range(columns):
                if not known[i, j, k]:
                    continue
                least, least_length, d = np.float32(np.inf), 0, 0
                for di in range(-radius, radius + 1):
                    across = weight * (np.float32(di) - field[i, j, k, 0]) ** 2
                    for dj in range(-radius, radius + 1):
                        square = across + weight * (np.float32(dj) - field[i, j, k, 1]) ** 2
                        for dk in range(-radius, radius + 1):
                            value = cost[i, j, k, d] + square + weight * (np.float32(dk) - field[i, j, k, 2]) ** 2
                            length = di * di + dj * dj + dk * dk
                            if value < least or (value == least and length < least_length):
                                least, least_length = value, length
                                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = di, dj, dk
                            d += 1
    return out


@njit(cache=True, parallel=True)
def _between_nodes(cost: Float32, best: Float32, known: Bool, radius: int) -> Float32:
    """(I, J, K, 3) `best` moved, by half a node at most, to the least of a parabola through the cost along each axis.

    Without this a shift of less than a node is rounded to whole ones wherever the whole image shifts alike.
    """
    planes, rows, columns = cost.shape[:3]
    out = best.copy()
    width = 2 * radius + 1
    strides = (width * width, width, 1)
    for i in prange(planes):
        for j in range(rows):
            for k in range(columns):
                if not known[i, j, k]:
                    continue
                here = 0
                for axis in range(3):
                    here += (int(best[i, j, k, axis]) + radius) * strides[axis]
                for axis in range(3):
                    if abs(int(best[i, j, k, axis])) == radius:
                        continue
                    before = cost[i, j, k, here - strides[axis]]
                    after = cost[i, j, k, here + strides[axis]]
                    bend = before - 2 * cost[i, j, k, here] + after
                    if bend > 0:
                        step = np.float32(0.5) * (before - after) / bend
                        out[i, j, k, axis] += min(max(step, np.float32(-0.5)), np.float32(0.5))
    return out


def smoothed(field: Float32, reached: Bool) -> tuple[Float32, Bool]:
    """The mean over the nodes reached among the 27 around each, and which nodes that has reached in turn.

    Nodes that no known node has reached yet do not count, so that the field runs on beyond what is known, a node
    further each time, and is not drawn to 0 there.
    """
    from scipy.ndimage import uniform_filter

    weight = uniform_filter(reached.astype(np.float32), 3, mode="constant")
    total = uniform_filter(np.where(reached[..., None], field, 0), size=(3, 3, 3, 1), mode="constant")
    now = weight > 0.5 / 27  # at least one of the 27
    return np.where(now[..., None], total / np.maximum(weight, 1 / 27)[..., None], field).astype(np.float32), now


def inverse_consistent(forward: Float32, backward: Float32) -> tuple[Float32, Float32]:
    """Two displacement fields brought to be each other's inverse.

    Fixed-point iteration ``f(x) <- (f(x) - b(x + f(x))) / 2`` and the same for b, both from the fields of the round
    before: what the two directions agree on stays, what they do not is halved away.

    Parameters
    ----------
    forward, backward : (I, J, K, 3) float32
        Displacements in nodes on the same nodes.

    Returns
    -------
    forward, backward : (I, J, K, 3) float32
    """
    for _ in range(CONSISTENCY_ROUNDS):
        forward, backward = _halved_difference(forward, backward), _halved_difference(backward, forward)
    return forward, backward


@njit(cache=True, parallel=True)
def _halved_difference(ahead: Float32, back: Float32) -> Float32:
    """``(a(x) - b(x + a(x))) / 2`` at every node; b between nodes is trilinear, beyond the faces it is constant."""
    planes, rows, columns = ahead.shape[:3]
    out = np.empty_like(ahead)
    for i in prange(planes):
        for j in range(rows):
            for k in range(columns):
                a = min(max(np.float32(i) + ahead[i, j, k, 0], np.float32(0)), np.float32(planes - 1))
                b = min(max(np.float32(j) + ahead[i, j, k, 1], np.float32(0)), np.float32(rows - 1))
                c = min(max(np.float32(k) + ahead[i, j, k, 2], np.float32(0)), np.float32(columns - 1))
                i0, j0, k0 = int(a), int(b), int(c)
                i1, j1, k1 = min(i0 + 1, planes - 1), min(j0 + 1, rows - 1), min(k0 + 1, columns - 1)
                a, b, c = a - np.float32(i0), b - np.float32(j0), c - np.float32(k0)
                for axis in range(3):
                    near = (back[i0, j0, k0, axis] * (1 - c) + back[i0, j0, k1, axis] * c) * (1 - b) + (
                        back[i0, j1, k0, axis] * (1 - c) + back[i0, j1, k1, axis] * c
                    ) * b
                    far = (back[i1, j0, k0, axis] * (1 - c) + back[i1, j0, k1, axis] * c) * (1 - b) + (
                        back[i1, j1, k0, axis] * (1 - c) + back[i1, j1, k1, axis] * c
                    ) * b
                    out[i, j, k, axis] = np.float32(0.5) * (ahead[i, j, k, axis] - (near * (1 - a) + far * a))
    return out
