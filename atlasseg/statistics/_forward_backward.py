"""Forward-backward algorithm of hidden Markov chains with a list of possible states per site.

NumPy allocates the large arrays, since it uses huge pages. Arrays allocated by numba take as much time as a recursion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float64, Int32, Int64

CHUNK = 1 << 16
"""Minimum number of sites of a partial sum."""
MOST_CHUNKS = 64
"""Maximum number of partial sums. It does not depend on the number of threads, so neither do the sums."""


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Posterior probabilities of the states of chains, given all observations.

    Parameters
    ----------
    gamma : (S,) float64
        Posterior probability of each slot; sums to 1 at each site.
    pairs : (K, K) float64
        Expected number of steps from each state to each.
    first : (K,) float64
        Expected number of chains that start in each state.
    log_likelihood : float
    """

    gamma: Float64
    pairs: Float64
    first: Float64
    log_likelihood: float


def emissions(
    log_density: NDArray[np.floating[Any]], prior: NDArray[np.floating[Any]], offsets: Int64
) -> tuple[Float64, Float64]:
    """Prior times density (S,), relative to the largest density with a prior at each site, and its log (N,)."""
    emission, scale = np.empty(log_density.size), np.empty(offsets.size - 1)
    run_slices(_emissions, len(scale), log_density, prior, offsets, emission, scale)
    return emission, scale


def smooth(
    emission: Float64,
    scale: Float64,
    offsets: Int64,
    labels: Int32,
    starts: Bool,
    initial: Float64,
    transitions: Float64,
) -> Smoothed:
    """Run the forward and backward recursions in parallel, each scaled to sum 1 at every site to avoid underflow."""
    alpha, beta, norm = np.empty(emission.size), np.empty(emission.size), np.empty(offsets.size - 1)
    run_slices(_passes, 2, emission, offsets, labels, starts, initial, transitions, alpha, beta, norm)
    bounds = bounds_of_chunks(offsets.size - 1)
    chunks, states = bounds.size - 1, initial.size
    pairs, first, logs = np.zeros((chunks, states, states)), np.zeros((chunks, states)), np.zeros(chunks)
    given = alpha, beta, norm, emission, scale, offsets, labels, starts, bounds
    run_slices(_combine_chunks, chunks, *given, pairs, first, logs)
    return Smoothed(beta, pairs.sum(axis=0).T * transitions, first.sum(axis=0), float(logs.sum()))


def sample(
    emission: Float64,
    offsets: Int64,
    labels: Int32,
    starts: Bool,
    initial: Float64,
    transitions: Float64,
    uniform: Float64,
) -> Int64:
    """Draw slots (N,) from the posterior of whole chains: forward recursion, then backward sampling by `uniform`."""
    alpha, norm = np.empty(emission.size), np.empty(offsets.size - 1)
    _forward(emission, offsets, labels, starts, initial, transitions, alpha, norm)
    return np.asarray(_draw(alpha, offsets, labels, starts, transitions, uniform))


def bounds_of_chunks(sites: int) -> Int64:
    """Split the sites into chunks: the start of each chunk, and the end."""
    count = int(np.clip(sites // CHUNK, 1, MOST_CHUNKS))
    return np.linspace(0, sites, count + 1).astype(np.int64)


@njit(cache=True, nogil=True)
def _emissions(start, stop, log_density, prior, offsets, out, scale):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        largest = -np.inf
        for s in range(offsets[n], offsets[n + 1]):
            if prior[s] > 0:
                largest = max(largest, log_density[s])
        for s in range(offsets[n], offsets[n + 1]):
            out[s] = prior[s] * np.exp(log_density[s] - largest) if prior[s] > 0 else 0.0
        scale[n] = largest


@njit(cache=True, nogil=True)
def _forward(emission, offsets, labels, starts, initial, transitions, alpha, norm):  # type: ignore[no-untyped-def]
    before = last = 0
    for n in range(offsets.size - 1):
        first, end = offsets[n], offsets[n + 1]
        total = 0.0
        for s in range(first, end):
            if starts[n]:
                expected = initial[labels[s]]
            else:
                expected = 0.0
                for r in range(before, last):
                    expected += alpha[r] * transitions[labels[r], labels[s]]
            alpha[s] = expected * emission[s]
            total += alpha[s]
        inverse = 1 / total
        for s in range(first, end):
            alpha[s] *= inverse
        norm[n] = total
        before, last = first, end


@njit(cache=True, nogil=True)
def _backward(emission, offsets, labels, starts, transitions, beta):  # type: ignore[no-untyped-def]
    count = offsets.size - 1
    for n in range(count - 1, -1, -1):
        first, end = offsets[n], offsets[n + 1]
        if n == count - 1 or starts[n + 1]:
            beta[first:end] = 1.0
            continue
        total = 0.0
        for s in range(first, end):
            value = 0.0
            for t in range(end, offsets[n + 2]):
                value += transitions[labels[s], labels[t]] * emission[t] * beta[t]
            beta[s] = value
            total += value
        inverse = 1 / total
        for s in range(first, end):
            beta[s] *= inverse


@njit(cache=True, nogil=True)
def _passes(start, stop, emission, offsets, labels, starts, initial, transitions, alpha, beta, norm):  # type: ignore[no-untyped-def]
    for side in range(start, stop):
        if side == 0:
            _forward(emission, offsets, labels, starts, initial, transitions, alpha, norm)
        else:
            _backward(emission, offsets, labels, starts, transitions, beta)


@njit(cache=True, nogil=True)
def _combine_chunks(  # type: ignore[no-untyped-def]
    start, stop, alpha, beta, norm, emission, scale, offsets, labels, starts, bounds, pairs, first, logs
):
    """Sums of each chunk, those of pairs (to, from) before the transition's factor; `beta` becomes the posterior."""
    for chunk in range(start, stop):
        for n in range(bounds[chunk], bounds[chunk + 1]):
            logs[chunk] += np.log(norm[n]) + scale[n]
            total = 0.0
            for s in range(offsets[n], offsets[n + 1]):
                total += alpha[s] * beta[s]
            # by the definition of alpha, the sum over all pairs of states is total * norm
            inverse = 1 / (total * norm[n])
            for s in range(offsets[n], offsets[n + 1]):
                if starts[n]:
                    first[chunk, labels[s]] += alpha[s] * beta[s] / total
                else:
                    after = emission[s] * beta[s] * inverse
                    for r in range(offsets[n - 1], offsets[n]):
                        pairs[chunk, labels[s], labels[r]] += alpha[r] * after
            for s in range(offsets[n], offsets[n + 1]):
                beta[s] *= alpha[s] / total


@njit(cache=True, nogil=True)
def _draw(alpha, offsets, labels, starts, transitions, uniform):  # type: ignore[no-untyped-def]
    count = offsets.size - 1
    out = np.empty(count, np.int64)
    for n in range(count - 1, -1, -1):
        first, end = offsets[n], offsets[n + 1]
        free = n == count - 1 or starts[n + 1]
        total = 0.0
        for s in range(first, end):
            total += alpha[s] if free else alpha[s] * transitions[labels[s], labels[out[n + 1]]]
        mark = uniform[n] * total
        chosen = -1
        for s in range(first, end):
            weight = alpha[s] if free else alpha[s] * transitions[labels[s], labels[out[n + 1]]]
            if weight > 0:
                chosen = s
                mark -= weight
                if mark < 0:
                    break
        out[n] = chosen
    return out
