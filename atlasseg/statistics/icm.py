"""Iterated conditional modes (ICM): each voxel takes the label of lowest conditional cost until none changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.statistics._field import Field
from atlasseg.threads import run_slices
from atlasseg.volume import Int64

__all__ = ["Labelling", "solve"]


@dataclass(frozen=True, eq=False)
class Labelling:
    """A labelling of a field: one label per voxel.

    Parameters
    ----------
    chosen : (M,) int64
        The slot of each voxel.
    energies : tuple of float
        Energy before the first and after each iteration.
    converged : bool
        Whether nothing changed in the last iteration.
    """

    chosen: Int64
    energies: tuple[float, ...]
    converged: bool


def solve(field: Field, *, start: Int64 | None = None, max_iterations: int = 50) -> Labelling:
    """Lower the energy voxel by voxel [1]_, one colour of the checkerboard after the other.

    A voxel keeps its label if no other has a lower cost. The energy never rises.

    Parameters
    ----------
    field : Field
        The Markov random field.
    start : (M,) int64, optional
        Initial slots. Default: the slot of lowest unary cost of each voxel.
    max_iterations : int
        Maximum number of iterations, at least 1.

    Returns
    -------
    Labelling

    Raises
    ------
    InputError
        `max_iterations` is below 1.

    References
    ----------
    .. [1] Besag (1986), On the statistical analysis of dirty pictures, JRSS B 48(3):259-302.
    """
    if max_iterations < 1:
        raise InputError(f"max_iterations: expected at least 1, got {max_iterations}")
    chosen = field.best(-field.costs.values) if start is None else np.array(start, np.int64)
    energies, costs = [field.energy(chosen)], field.costs
    changed = 1
    for _ in range(max_iterations):
        changed = 0
        for first, last in zip(field.colours[:-1], field.colours[1:], strict=True):
            moved = np.zeros(last - first, bool)
            run_slices(
                _sweep, len(moved), field.order[first:last], costs.offsets, costs.labels, costs.values,
                field.neighbours, field.weights, field.interaction, chosen, moved,
            )  # fmt: skip
            changed += int(moved.sum())
        energies.append(field.energy(chosen))
        if not changed:
            break
    return Labelling(chosen, tuple(energies), not changed)


@njit(cache=True, nogil=True)
def _sweep(start, stop, order, offsets, labels, unary, neighbours, weights, interaction, chosen, changed):  # type: ignore[no-untyped-def]
    for at in range(start, stop):
        n = order[at]
        first = offsets[n]
        cost = unary[first : offsets[n + 1]].copy()
        for d in range(weights.size):
            m = neighbours[n, d]
            if m >= 0:
                column = interaction[labels[chosen[m]]]
                for s in range(cost.size):
                    cost[s] += weights[d] * column[labels[first + s]]
        best = chosen[n]
        for s in range(cost.size):
            if cost[s] < cost[best - first]:
                best = first + s
        changed[at] = best != chosen[n]
        chosen[n] = best
