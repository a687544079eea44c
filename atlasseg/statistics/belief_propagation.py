"""Loopy belief propagation: marginals of a Markov random field by message passing; exact without loops."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.statistics._field import Field, softmax
from atlasseg.statistics.mean_field import Marginals
from atlasseg.threads import run_slices
from atlasseg.volume import Float64

__all__ = ["solve"]


def solve(
    field: Field,
    *,
    product: Literal["sum", "max"] = "sum",
    damping: float = 0.5,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
) -> Marginals:
    r"""Compute marginals (`sum`) or max-marginals (`max`) by message passing [1]_ [2]_.

    The log messages and the marginals are

    .. math::

        M_{nm}(b) &= \log \sum_a \exp\Big( -u_n(a) - w_{nm} V(a, b) + \sum_{k \neq m} M_{kn}(a) \Big) \\
        q_n(a) &\propto \exp\Big( -u_n(a) + \sum_m M_{mn}(a) \Big)

    With `max` the sum over :math:`a` is replaced by the maximum. All messages of an iteration are computed from those
    of the previous one, then averaged with them: the old message has the weight `damping`. On a tree without damping
    they are exact after as many iterations as the tree is long. With loops, neither convergence nor
    exactness is guaranteed.

    Parameters
    ----------
    field : Field
        The Markov random field.
    product : str
        `sum` for probabilities, `max` for the most probable labelling.
    damping : float
        d, from 0 to below 1.
    max_iterations : int
        Maximum number of iterations, at least 1.
    tolerance : float
        Stop when no log message changes by more.

    Returns
    -------
    Marginals
        Probabilities, with the largest change of a log message in each iteration.

    Raises
    ------
    InputError
        A parameter is out of range.

    References
    ----------
    .. [1] Pearl (1988), Probabilistic reasoning in intelligent systems, Morgan Kaufmann, chapter 4.
    .. [2] Yedidia, Freeman, Weiss (2003), Understanding belief propagation and its generalizations, in Exploring
       artificial intelligence in the new millennium, 239-269.
    """
    if product not in ("sum", "max"):
        raise InputError(f"product: expected sum or max, got {product!r}")
    if not (0 <= damping < 1 and max_iterations >= 1 and tolerance >= 0):
        raise InputError(
            "expected damping of 0 to below 1, max_iterations of at least 1 and tolerance of 0 or "
            f"more, got {damping}, {max_iterations} and {tolerance}"
        )
    messages = np.zeros((field.costs.values.size, field.weights.size))
    history = []
    costs = field.costs
    for _ in range(max_iterations):
        new, changes = np.zeros_like(messages), np.zeros(len(messages))
        run_slices(
            _pass_messages, len(field.neighbours), costs.offsets, costs.labels, costs.values, messages,
            field.neighbours, field.weights, field.interaction, product == "sum", damping, new,
        )  # fmt: skip
        run_slices(_find_changes, len(messages), messages, new, changes)
        history.append(float(changes.max(initial=0)))
        messages = new
        if history[-1] <= tolerance:
            break
    return Marginals(_beliefs(field, messages), tuple(history), history[-1] <= tolerance)


def _beliefs(field: Field, messages: Float64) -> Float64:
    return softmax(messages.sum(axis=1) - field.costs.values, field.costs.offsets)


@njit(cache=True, nogil=True)
def _find_changes(start, stop, before, after, out):  # type: ignore[no-untyped-def]
    """Find the largest change (S,) of the messages about each slot."""
    for s in range(start, stop):
        for d in range(before.shape[1]):
            out[s] = max(out[s], abs(before[s, d] - after[s, d]))


@njit(cache=True, nogil=True)
def _pass_messages(  # type: ignore[no-untyped-def]
    start, stop, offsets, labels, unary, messages, neighbours, weights, interaction, summed, damping, out
):
    """Write the new messages (s, d) from the neighbour in direction d about slot s; the largest of a voxel is 0."""
    width = weights.size
    for m in range(start, stop):
        first, last = offsets[m], offsets[m + 1]
        for d in range(width):
            n = neighbours[m, d]
            if n < 0:
                continue
            begin, end = offsets[n], offsets[n + 1]
            back = width - 1 - d
            cavity = np.empty(end - begin)
            for a in range(begin, end):
                cavity[a - begin] = -unary[a]
                for e in range(width):
                    if e != back:
                        cavity[a - begin] += messages[a, e]
            largest_of_all = -np.inf
            for b in range(first, last):
                best = -np.inf
                for a in range(begin, end):
                    best = max(best, cavity[a - begin] - weights[d] * interaction[labels[a], labels[b]])
                value = best
                if summed:
                    total = 0.0
                    for a in range(begin, end):
                        total += np.exp(cavity[a - begin] - weights[d] * interaction[labels[a], labels[b]] - best)
                    value += np.log(total)
                out[b, d] = value
                largest_of_all = max(largest_of_all, value)
            for b in range(first, last):
                out[b, d] = damping * messages[b, d] + (1 - damping) * (out[b, d] - largest_of_all)
