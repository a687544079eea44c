"""Mean field: the independent distribution closest to a Markov random field (Kullback-Leibler divergence)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.statistics._field import Field
from atlasseg.threads import run_slices
from atlasseg.volume import Float64

__all__ = ["Marginals", "solve"]


@dataclass(frozen=True, eq=False)
class Marginals:
    """Marginal probabilities of the slots of a field.

    Parameters
    ----------
    values : (S,) float64
        Probabilities; the sum at each voxel is 1.
    history : tuple of float
        Free energy before the first and after each iteration, or largest change of each iteration.
    converged : bool
        Whether the iteration converged within `max_iterations`.
    """

    values: Float64
    history: tuple[float, ...]
    converged: bool


def solve(
    field: Field,
    *,
    start: Float64 | None = None,
    damping: float = 0.0,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
) -> Marginals:
    r"""Minimise the free energy over independent voxels [1]_.

    .. math::

        q_n(a) \leftarrow \frac{1 - d}{Z} \exp\Big( -u_n(a) - \sum_m w_{nm} \sum_b V(a, b) \, q_m(b) \Big) + d \, q_n(a)

    :math:`d` is `damping`. One colour of the checkerboard is updated after the other, two colours for 6 neighbours
    and eight for 26. Given the other colours, the free energy is convex in the :math:`q` of one colour, and this
    update is its minimum for :math:`d = 0`: it never rises.

    Parameters
    ----------
    field : Field
        The Markov random field.
    start : (S,) float64, optional
        Initial probabilities. Default: those of the unary costs alone.
    damping : float
        d, from 0 to below 1.
    max_iterations : int
        Maximum number of iterations, at least 1.
    tolerance : float
        Stop when no probability changes by more.

    Returns
    -------
    Marginals
        Probabilities, with the free energy of each iteration.

    Raises
    ------
    InputError
        A parameter is out of range.

    References
    ----------
    .. [1] Zhang (1992), The mean field theory in EM procedures for Markov random fields, IEEE TSP 40(10):2570-2583.
    """
    if not (0 <= damping < 1 and max_iterations >= 1 and tolerance >= 0):
        raise InputError(
            "mean field: expected damping of 0 to below 1, max_iterations of 1 or more and tolerance of 0 or more, got "
            f"{damping}, {max_iterations} and {tolerance}"
        )
    beliefs = field.independent() if start is None else np.array(start, np.float64).reshape(-1)
    history = [field.free_energy(beliefs)]
    changed = np.inf
    for _ in range(max_iterations):
        changed = iterate(field, beliefs, damping=damping)
        history.append(field.free_energy(beliefs))
        if changed <= tolerance:
            break
    return Marginals(beliefs, tuple(history), changed <= tolerance)


def iterate(field: Field, beliefs: Float64, *, damping: float = 0.0) -> float:
    """Run one sweep over all colours in place, and return the largest change of a probability."""
    largest = 0.0
    costs = field.costs
    for first, last in zip(field.colours[:-1], field.colours[1:], strict=True):
        changes = np.zeros(last - first)
        run_slices(
            _sweep, len(changes), field.order[first:last], costs.offsets, costs.labels, costs.values,
            field.neighbours, field.weights, field.interaction, damping, beliefs, changes,
        )  # fmt: skip
        largest = max(largest, float(changes.max(initial=0)))
    return largest


@njit(cache=True, nogil=True)
def _sweep(start, stop, order, offsets, labels, unary, neighbours, weights, interaction, damping, beliefs, changes):  # type: ignore[no-untyped-def]
    for at in range(start, stop):
        n = order[at]
        first, last = offsets[n], offsets[n + 1]
        cost = unary[first:last].copy()
        for d in range(weights.size):
            m = neighbours[n, d]
            if m < 0:
                continue
            for t in range(offsets[m], offsets[m + 1]):
                weight = weights[d] * beliefs[t]
                column = interaction[labels[t]]
                for s in range(last - first):
                    cost[s] += weight * column[labels[first + s]]
        least = cost.min()
        total = 0.0
        for s in range(last - first):
            cost[s] = np.exp(least - cost[s])
            total += cost[s]
        for s in range(last - first):
            new = (1 - damping) * cost[s] / total + damping * beliefs[first + s]
            changes[at] = max(changes[at], abs(new - beliefs[first + s]))
            beliefs[first + s] = new
