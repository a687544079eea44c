"""Forward-backward algorithm of hidden Markov chains with the same states at all sites.

The recursions are those of `_forward_backward` without lists of states; they take half the time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from atlasseg.statistics._forward_backward import Smoothed, bounds_of_chunks
from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float64


def smooth(emission: Float64, scale: Float64, starts: Bool, initial: Float64, transitions: Float64) -> Smoothed:
    """Run the forward and backward recursions in parallel, each scaled to sum 1 at every site to avoid underflow.

    Parameters
    ----------
    emission : (N, K) float64
    scale : (N,) float64
        Results of `emissions`.
    starts : (N,) bool
        Sites where a chain starts.
    initial : (K,) float64
        Probability of each state at the start of a chain.
    transitions : (K, K) float64
        Probability of each state (column) after each state (row).
    """
    count, states = emission.shape
    alpha, beta, norm = np.empty(emission.shape), np.empty(emission.shape), np.empty(count)
    run_slices(_passes, 2, emission, starts, initial, transitions, alpha, beta, norm)
    bounds = bounds_of_chunks(count)
    chunks = bounds.size - 1
    pairs, first, logs = np.zeros((chunks, states, states)), np.zeros((chunks, states)), np.zeros(chunks)
    run_slices(_combine_chunks, chunks, alpha, beta, norm, emission, scale, starts, bounds, pairs, first, logs)
    return Smoothed(beta.reshape(-1), pairs.sum(axis=0).T * transitions, first.sum(axis=0), float(logs.sum()))


@njit(cache=True, nogil=True)
def _forward(emission, starts, initial, transitions, alpha, norm):  # type: ignore[no-untyped-def]
    states = initial.size
    for n in range(norm.size):
        total = 0.0
        for k in range(states):
            if starts[n]:
                expected = initial[k]
            else:
                expected = 0.0
                for j in range(states):
                    expected += alpha[n - 1, j] * transitions[j, k]
            expected *= emission[n, k]
            alpha[n, k] = expected
            total += expected
        inverse = 1 / total
        for k in range(states):
            alpha[n, k] *= inverse
        norm[n] = total


@njit(cache=True, nogil=True)
def _backward(emission, starts, transitions, beta):  # type: ignore[no-untyped-def]
    count, states = emission.shape
    for n in range(count - 1, -1, -1):
        if n == count - 1 or starts[n + 1]:
            beta[n] = 1.0
            continue
        total = 0.0
        for j in range(states):
            value = 0.0
            for k in range(states):
                value += transitions[j, k] * (emission[n + 1, k] * beta[n + 1, k])
            beta[n, j] = value
            total += value
        inverse = 1 / total
        for j in range(states):
            beta[n, j] *= inverse


@njit(cache=True, nogil=True)
def _passes(start, stop, emission, starts, initial, transitions, alpha, beta, norm):  # type: ignore[no-untyped-def]
    for side in range(start, stop):
        if side == 0:
            _forward(emission, starts, initial, transitions, alpha, norm)
        else:
            _backward(emission, starts, transitions, beta)


@njit(cache=True, nogil=True)
def _combine(alpha, beta, norm, emission, scale, starts, begin, end, pairs, first):  # type: ignore[no-untyped-def]
    """Combine the recursions of the sites from `begin` to `end`, and return their log-likelihood."""
    states = first.size
    log = 0.0
    product = 1.0  # product of several sums, to compute fewer logarithms
    for n in range(begin, end):
        log += scale[n]
        if not 1e-150 < product * norm[n] < 1e150:
            log += np.log(product)
            product = 1.0
        product *= norm[n]
        total = 0.0
        for k in range(states):
            total += alpha[n, k] * beta[n, k]
        inverse = 1 / total
        if starts[n]:
            for k in range(states):
                first[k] += alpha[n, k] * beta[n, k] * inverse
        else:
            # by the definition of alpha, the sum over all pairs of states is total * norm
            of_pair = inverse / norm[n]
            for k in range(states):
                after = emission[n, k] * beta[n, k] * of_pair
                for j in range(states):
                    pairs[k, j] += alpha[n - 1, j] * after
        for k in range(states):
            beta[n, k] *= alpha[n, k] * inverse
    return log + np.log(product)


@njit(cache=True, nogil=True)
def _combine_chunks(start, stop, alpha, beta, norm, emission, scale, starts, bounds, pairs, first, logs):  # type: ignore[no-untyped-def]
    """Sums of each chunk, those of pairs (to, from) before the transition's factor; `beta` becomes the posterior."""
    for chunk in range(start, stop):
        logs[chunk] = _combine(
            alpha, beta, norm, emission, scale, starts, bounds[chunk], bounds[chunk + 1], pairs[chunk], first[chunk]
        )
