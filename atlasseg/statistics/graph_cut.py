"""Graph cut: labellings of low energy by alpha-expansion. A maximum flow finds the optimal move of each label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics._field import SYMMETRIC, Field
from atlasseg.statistics.icm import Labelling
from atlasseg.volume import Float64, Int64

__all__ = ["solve"]


def solve(field: Field, *, start: Int64 | None = None, max_cycles: int = 10) -> Labelling:
    """Minimise the energy by expansion moves until no move lowers it ([1]_, with the graph of [2]_).

    In the move of label a, each voxel keeps its label or takes a; the combination of lowest energy is chosen. With two
    labels the result is the global minimum. With more labels, if every voxel can have every label, its energy is
    at most 2 max V / min V times the lowest (of V between different labels; 2 for Potts), if no cost is negative
    ([1]_).

    Parameters
    ----------
    field : Field
        The Markov random field. Its interaction must be a metric.
    start : (M,) int64, optional
        Initial slots. Default: the slot of lowest unary cost, or the first slot in a field with only two labels, where
        one move of the second label is sufficient.
    max_cycles : int
        Maximum number of cycles through all labels, at least 1.

    Returns
    -------
    Labelling
        The labelling, with the energy after each cycle.

    Raises
    ------
    InputError
        The interaction is no metric: there are labels a, b, c with V(a, b) > V(a, c) + V(c, b).

    References
    ----------
    .. [1] Boykov, Veksler, Zabih (2001), Fast approximate energy minimization via graph cuts, IEEE TPAMI
       23(11):1222-1239.
    .. [2] Kolmogorov, Zabih (2004), What energy functions can be minimized via graph cuts?, IEEE TPAMI 26(2):147-159.
    """
    if max_cycles < 1:
        raise InputError(f"max_cycles: expected at least 1, got {max_cycles}")
    check_metric(field.interaction)
    count = len(field.interaction)
    if start is not None:
        chosen = np.array(start, np.int64)
    else:
        chosen = field.costs.offsets[:-1].copy() if count == 2 else field.best(-field.costs.values)
    energies = [field.energy(chosen)]
    slot_voxels = field.slot_voxels
    by_label = np.argsort(field.costs.labels, kind="stable")
    bounds = np.searchsorted(field.costs.labels[by_label], np.arange(count + 1))
    improved = True
    for _ in range(max_cycles):
        improved = False
        for label in range(count):
            slots = by_label[bounds[label] : bounds[label + 1]]
            moved = expand_label(field, chosen, label, slots, slot_voxels)
            if moved is None:
                continue
            energy = field.energy(moved)
            if energy < energies[-1] - 1e-9 * max(abs(energies[-1]), 1):
                chosen, improved = moved, True
                energies.append(energy)
        if not improved:
            break
    return Labelling(chosen, tuple(energies), not improved)


def check_metric(interaction: Float64) -> None:
    """Check the triangle inequality of an interaction.

    Raises
    ------
    InputError
        The inequality does not hold. The message names the indices of the labels.
    """
    for c in range(len(interaction)):
        excess = interaction - (interaction[:, c, None] + interaction[c])
        if excess.max() > SYMMETRIC:
            a, b = np.unravel_index(int(excess.argmax()), excess.shape)
            raise InputError(
                f"expected a metric interaction for a graph cut, got V({a}, {b}) = {interaction[a, b]:g}, more than "
                f"V({a}, {c}) + V({c}, {b}) = {interaction[a, c] + interaction[c, b]:g}"
            )


def expand_label(
    field: Field, chosen: Int64, label: int, slots: NDArray[np.integer[Any]], slot_voxels: Int64
) -> Int64 | None:
    """Find the optimal expansion move of `label`; None if no voxel can take it.

    `slots` are all slots of `label`, and `slot_voxels` is the voxel of each slot.
    """
    import maxflow

    taken = field.costs.labels[chosen]
    free = slots[taken[slot_voxels[slots]] != label]
    if free.size == 0:
        return None
    voxels = slot_voxels[free]
    node = np.full(chosen.size, -1, np.int64)
    node[voxels] = np.arange(voxels.size)
    keep, take = field.costs.values[chosen[voxels]].copy(), field.costs.values[free].copy()
    V = field.interaction
    graph = maxflow.Graph[float](voxels.size, voxels.size * field.weights.size // 2)
    ids = graph.add_grid_nodes(voxels.size)
    for d, weight in enumerate(field.weights):
        there = field.neighbours[voxels, d]
        n = np.flatnonzero(there >= 0)
        m = there[n]
        fixed = node[m] < 0
        at, other = n[fixed], taken[m[fixed]]
        keep[at] += weight * V[taken[voxels[at]], other]
        take[at] += weight * V[label, other]
        if d < field.weights.size // 2:  # count each pair of free voxels once
            at, beside = n[~fixed], node[m[~fixed]]
            both = weight * V[taken[voxels[at]], taken[m[~fixed]]]
            only_beside = weight * V[taken[voxels[at]], label]
            only_at = weight * V[label, taken[m[~fixed]]]
            # x = 1: take the label; both + (only_at - both) x_at - only_at x_beside + capacity (1 - x_at) x_beside
            take[at] += only_at - both
            take[beside] -= only_at
            capacity = np.maximum(only_beside + only_at - both, 0)
            graph.add_edges(ids[at], ids[beside], capacity, np.zeros(at.size))
    base = np.minimum(keep, take)
    graph.add_grid_tedges(ids, take - base, keep - base)
    graph.maxflow()
    takes = graph.get_grid_segments(ids)
    out = chosen.copy()
    out[voxels[takes]] = free[takes]
    return out
