"""Discrete search for a displacement field: all displacements of a window at every node, with coupled convex smoothing.

The cost of a displacement at a node is the squared distance between descriptors of the two images. Coupled convex
optimisation approximates the field that minimises the sum of cost and roughness. It alternates two steps: every node
takes the displacement with the smallest cost plus a quadratic coupling to the smoothed field; then the field is
smoothed. The weight of the coupling grows from round to round. The search does not follow a gradient, so it does not
stop at local minima within the window.

All arrays are on one grid of nodes, and all displacements are in nodes.

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
from numba import njit

from atlasseg.threads import run_slices

if TYPE_CHECKING:
    from atlasseg.volume import Bool, Float32

PULLS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weight of the coupling to the smoothed field in each round: Siebert 2021."""

CONSISTENCY_ROUNDS = 15
"""Fixed-point iterations that make the two directions inverse to each other: Siebert 2021."""


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
    """Search the displacement field that maps nodes of the fixed image to similar positions of the moving image.

    Parameters
    ----------
    fixed, moving : (I, J, K, C) float32
        Descriptors on the same nodes, such as MIND-SSC averaged over the cells of the nodes.
    fixed_known, moving_known : (I, J, K) bool
        Where each image is known. An unknown node of the fixed image has no cost and follows its neighbours. A
        displacement to an unknown position of the moving image has the mean cost of the node.
    radius_nodes : int
        Largest displacement along each axis, in nodes.
    smoothness : float
        Factor on the weights of the coupling to the smoothed field (`PULLS`).
    symmetric : bool
        Search in both directions and keep the consistent part; takes twice the time.

    Returns
    -------
    (I, J, K, 3) float32
        Displacements in nodes: node x of the fixed image matches position x + u(x) of the moving image.
    """
    forward = _search_one_way(fixed, moving, fixed_known, moving_known, radius_nodes, smoothness)
    if not symmetric:
        return forward
    backward = _search_one_way(moving, fixed, moving_known, fixed_known, radius_nodes, smoothness)
    return make_inverse_consistent(forward, backward)[0]


def _search_one_way(
    fixed: Float32, moving: Float32, fixed_known: Bool, moving_known: Bool, radius: int, smoothness: float
) -> Float32:
    cost = compute_costs(fixed, moving, fixed_known, moving_known, radius)
    field, reached = np.zeros((*cost.shape[:3], 3), np.float32), fixed_known
    for pull in (0.0, *PULLS):
        best = field.copy()
        run_slices(_find_best, len(cost), cost, field, fixed_known, pull * smoothness, radius, best)
        field, reached = smooth_known(best, reached)
    refined = best.copy()
    run_slices(_refine_between_nodes, len(cost), cost, best, fixed_known, radius, refined)
    return smooth_known(refined, reached)[0]


def compute_costs(fixed: Float32, moving: Float32, fixed_known: Bool, moving_known: Bool, radius: int) -> Float32:
    """Compute the cost of every displacement at every node, averaged over the node and its neighbours.

    Returns
    -------
    (I, J, K, D) float32
        D = (2 radius + 1)^3 displacements in C order of (di, dj, dk). Squared distance of the descriptors, averaged
        over the known nodes in the 3 x 3 x 3 neighbourhood; 0 if none of them is known.
    """
    raw = np.zeros((*fixed_known.shape, (2 * radius + 1) ** 3), np.float32)
    run_slices(_compare_nodes, len(fixed), fixed, moving, fixed_known, moving_known, radius, raw)
    out = np.zeros_like(raw)
    run_slices(_average_costs, len(fixed), raw, fixed_known, out)
    return out


@njit(cache=True, nogil=True)
def _compare_nodes(
    start: int,
    stop: int,
    fixed: Float32,
    moving: Float32,
    fixed_known: Bool,
    moving_known: Bool,
    radius: int,
    raw: Float32,
) -> None:
    """Write the squared distances (I, J, K, D) of descriptors; the mean over the others where `moving` is not known."""
    planes, rows, columns, channels = fixed.shape
    width = 2 * radius + 1
    for i in range(start, stop):
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


@njit(cache=True, nogil=True)
def _average_costs(start: int, stop: int, raw: Float32, fixed_known: Bool, out: Float32) -> None:
    """Write the mean (I, J, K, D) over the known nodes of each 3 x 3 x 3 neighbourhood; 0 stays where none is known."""
    planes, rows, columns, count = raw.shape
    for i in range(start, stop):
        for j in range(rows):
            for k in range(columns):
                known = 0
                for a in range(max(i - 1, 0), min(i + 2, planes)):
                    for b in range(max(j - 1, 0), min(j + 2, rows)):
                        for c in range(max(k - 1, 0), min(k + 2, columns)):
                            if fixed_known[a, b, c]:
                                known += 1
                                for d in range(count):
                                    out[i, j, k, d] += raw[a, b, c, d]
                if known > 0:
                    for d in range(count):
                        out[i, j, k, d] /= np.float32(known)


@njit(cache=True, nogil=True)
def _find_best(
    start: int, stop: int, cost: Float32, field: Float32, known: Bool, pull: float, radius: int, out: Float32
) -> None:
    """Find the displacement (I, J, K, 3) with the least ``cost + pull |d - field|^2``; of equal ones the smallest.

    Unknown nodes keep what is in `out`.
    """
    _, rows, columns = cost.shape[:3]
    weight = np.float32(pull)
    for i in range(start, stop):
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


@njit(cache=True, nogil=True)
def _refine_between_nodes(
    start: int, stop: int, cost: Float32, best: Float32, known: Bool, radius: int, out: Float32
) -> None:
    """Move `out`, a copy of `best` (I, J, K, 3), to the minimum of a parabola through the cost along each axis.

    It moves by at most half a node. Without this step, a uniform shift of the image is rounded to whole nodes.
    """
    _, rows, columns = cost.shape[:3]
    width = 2 * radius + 1
    strides = (width * width, width, 1)
    for i in range(start, stop):
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


def smooth_known(field: Float32, reached: Bool) -> tuple[Float32, Bool]:
    """Smooth a field by the mean over the defined nodes of each 3 x 3 x 3 neighbourhood; return it and the new nodes.

    Undefined nodes do not count, so that the field extends beyond the known nodes, by one node each time, and is not
    drawn to 0 there.
    """
    from scipy.ndimage import uniform_filter

    weight = uniform_filter(reached.astype(np.float32), 3, mode="constant")
    total = uniform_filter(np.where(reached[..., None], field, 0), size=(3, 3, 3, 1), mode="constant")
    now = weight > 0.5 / 27  # at least one of the 27
    return np.where(now[..., None], total / np.maximum(weight, 1 / 27)[..., None], field).astype(np.float32), now


def make_inverse_consistent(forward: Float32, backward: Float32) -> tuple[Float32, Float32]:
    """Make two displacement fields inverse to each other.

    Fixed-point iteration ``f(x) <- (f(x) - b(x + f(x))) / 2``, and the same for b, both from the fields of the previous
    round. The consistent part of the two fields stays; the difference is halved in each round.

    Parameters
    ----------
    forward, backward : (I, J, K, 3) float32
        Displacements in nodes on the same nodes.

    Returns
    -------
    forward, backward : (I, J, K, 3) float32
    """
    for _ in range(CONSISTENCY_ROUNDS):
        ahead, back = np.empty_like(forward), np.empty_like(backward)
        run_slices(_halve_difference, len(forward), forward, backward, ahead)
        run_slices(_halve_difference, len(backward), backward, forward, back)
        forward, backward = ahead, back
    return forward, backward


@njit(cache=True, nogil=True)
def _halve_difference(start: int, stop: int, ahead: Float32, back: Float32, out: Float32) -> None:
    """Write ``(a(x) - b(x + a(x))) / 2`` at every node; b is trilinear between nodes, constant beyond the faces."""
    planes, rows, columns = ahead.shape[:3]
    for i in range(start, stop):
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
