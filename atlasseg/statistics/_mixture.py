"""Expectation maximisation of a Gaussian mixture: one sweep over all voxels, and the resulting Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from atlasseg.statistics.gaussians import CHUNK, Gaussians, count_moments, regularise, unpack_moments
from atlasseg.threads import run_slices
from atlasseg.volume import Float64, Int64


@dataclass(frozen=True, eq=False)
class Components:
    """Gaussian components of the voxels: first pure components, then mixed ones.

    A voxel of a mixed component contains the fraction `part` of one pure component and the rest of another one. Its
    Gaussian is N(t mu_a + (1 - t) mu_b, t Sigma_a + (1 - t) Sigma_b).

    Parameters
    ----------
    of_class : (Q,) int64
        Class of each pure component.
    first, second : (G,) int64
        Pure components of each component; equal for a pure component.
    part : (G,) float64
        Fraction of the first, in (0, 1]; 1 for a pure component.
    pair : (G,) int64
        Pair of a mixed component; -1 for a pure component.
    """

    of_class: Int64
    first: Int64
    second: Int64
    part: Float64
    pair: Int64

    @classmethod
    def of(cls, counts: list[int], pairs: list[tuple[int, int]], levels: int) -> Components:
        """Make `counts` Gaussians per class, and `levels` fractions for each of `pairs` of one-Gaussian classes."""
        of_class = np.repeat(np.arange(len(counts)), counts)
        start = np.concatenate(([0], np.cumsum(counts)))
        parts = (np.arange(levels) + 0.5) / levels
        first = [start[a] for a, _ in pairs for _ in parts]
        second = [start[b] for _, b in pairs for _ in parts]
        pure = np.arange(of_class.size)
        return cls(
            of_class,
            np.concatenate((pure, np.array(first, np.int64))).astype(np.int64),
            np.concatenate((pure, np.array(second, np.int64))).astype(np.int64),
            np.concatenate((np.ones(pure.size), np.tile(parts, len(pairs)))),
            np.concatenate((np.full(pure.size, -1), np.repeat(np.arange(len(pairs)), levels))).astype(np.int64),
        )

    @property
    def mixed(self) -> Int64:
        """Indices of the mixed components."""
        return np.flatnonzero(self.pair >= 0)

    def gaussians(self, pure: Gaussians) -> Gaussians:
        """(G,) Gaussians of all components."""
        t = self.part[:, None]
        means = t * pure.means[self.first] + (1 - t) * pure.means[self.second]
        t = t[..., None]
        return Gaussians(means, t * pure.covariances[self.first] + (1 - t) * pure.covariances[self.second])


@dataclass(frozen=True, eq=False)
class Sweep:
    """Result of one expectation step.

    Parameters
    ----------
    log_likelihood : float
        Log-likelihood of all voxels.
    fractions : (N, K) float64
        Expected fraction of each class in each voxel; sums to 1.
    typicality : (N,) float64
        Weight of each voxel, in (0, 1].
    mass : (G,) float64
        Summed responsibility of each component.
    sums : (G, 1 + C + C (C + 1) / 2) float64
        Moments of the values weighted by responsibility times typicality, see `gaussians.moments`.
    weights, pull : (N, C (C + 1) / 2), (N, C) float64
        Sums for the bias field; empty if it is not estimated.
    """

    log_likelihood: float
    fractions: Float64
    typicality: Float64
    mass: Float64
    sums: Float64
    weights: Float64
    pull: Float64


def sweep(
    values: Float64,
    components: Components,
    pure: Gaussians,
    shares: Float64,
    *,
    prior: Float64 | None,
    mixed_share: float,
    increments: Float64 | None,
    outlier_distance: float,
    centre: Float64,
    classes: int,
    bias: bool,
) -> Sweep:
    """Run the expectation step and compute the sums for the maximisation, in one pass over the voxels."""
    every = components.gaussians(pure)
    channels = values.shape[1]
    number = len(values) if bias else 0
    weights, pull = np.zeros((number, channels * (channels + 1) // 2)), np.zeros((number, channels))
    fractions, typicality = np.empty((len(values), classes)), np.ones(len(values))
    none = np.zeros((0, classes))
    chunks = -(-len(values) // CHUNK)
    packed = np.zeros((chunks, len(every.means), 2 + count_moments(channels)))
    run_slices(
        _sweep, chunks, values, every.means, every.whitening, every.log_scale, np.linalg.inv(every.covariances),
        components.of_class[components.first], components.of_class[components.second], components.part,
        components.pair, shares, none if prior is None else prior, mixed_share,
        none if increments is None else increments, outlier_distance, centre,
        fractions, typicality, weights, pull, packed,
    )  # fmt: skip
    total = packed.sum(axis=0)
    return Sweep(float(total[:, 0].sum()), fractions, typicality, total[:, 1], total[:, 2:], weights, pull)


def maximise(components: Components, sums: Float64, centre: Float64, before: Gaussians, *, floor: float) -> Gaussians:
    """Compute the pure Gaussians of highest expected log-likelihood from the sums of a sweep (closed form, see `fit`).

    A mixed voxel is x = u + v, u ~ N(t mu_a, t Sigma_a) and v likewise of b. Given x, u is Gaussian and affine in x, so
    its moments follow from those of x. A component without weight does not change.
    """
    channels = centre.size
    mass, first, second = unpack_moments(sums, channels)
    pure = components.of_class.size
    for_mean, for_spread = mass[:pure].copy(), mass[:pure].copy()
    total = first[:pure] + mass[:pure, None] * centre
    parts: list[tuple[int, float, float, Float64, Float64, Float64]] = []
    for g in components.mixed:
        t_a = float(components.part[g])
        a, b = components.first[g], components.second[g]
        mean = t_a * before.means[a] + (1 - t_a) * before.means[b]
        spread = t_a * before.covariances[a] + (1 - t_a) * before.covariances[b]
        offset = mean - centre
        apart = first[g] - mass[g] * offset
        across = np.outer(first[g], offset)
        square = second[g] - across - across.T + mass[g] * np.outer(offset, offset)
        for k, t in ((a, t_a), (b, 1 - t_a)):
            gain = t * before.covariances[k] @ np.linalg.inv(spread)
            for_mean[k] += t * mass[g]
            for_spread[k] += mass[g]
            total[k] += t * mass[g] * before.means[k] + gain @ apart
            left = t * before.covariances[k] - t * gain @ before.covariances[k]
            parts.append((int(k), t, float(mass[g]), gain @ apart, gain @ square @ gain.T, left))
    empty = ~(for_mean > 0)
    means = total / np.where(empty, 1, for_mean)[:, None]
    offset = means - centre
    across = first[:pure, :, None] * offset[:, None, :]
    covariances = second[:pure] - across - across.swapaxes(1, 2)
    covariances += mass[:pure, None, None] * offset[:, :, None] * offset[:, None, :]
    for k, t, weight, apart, square, left in parts:
        moved = before.means[k] - means[k]
        across = np.outer(apart, moved)
        covariances[k] += square / t + across + across.T + weight * (t * np.outer(moved, moved) + left / t)
    covariances /= np.where(empty, 1, for_spread)[:, None, None]
    whole = max(float(mass.sum()), np.finfo(float).tiny)
    variance = np.einsum("kcc->c", second) / whole - (first.sum(axis=0) / whole) ** 2
    means[empty], covariances[empty] = before.means[empty], before.covariances[empty]
    return Gaussians(means, regularise(covariances, variance, centre, floor))


@njit(cache=True, nogil=True, error_model="numpy")
def _sweep(  # type: ignore[no-untyped-def]
    start, stop, values, means, whitening, log_scale, precision, class_a, class_b, part, pair, shares, prior,
    mixed_share, increments, outlier_distance, centre, fractions, typicality, weights, pull, out,
):  # fmt: skip
    """Add to (chunks, G, 2 + 1 + C + ...) `out` log-likelihood (in the first component), mass, and moments of each."""
    number, channels = values.shape
    count, classes = means.shape[0], fractions.shape[1]
    robust = np.isfinite(outlier_distance)
    with_prior, with_field, with_bias = prior.shape[0] > 0, increments.shape[0] > 0, pull.shape[0] > 0
    for chunk in range(start, stop):
        weight, exponent, square = np.empty(count), np.empty(count), np.empty(count)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, number)):
            shared = 0.0
            if with_prior and mixed_share > 0:
                last = -1
                for g in range(count):
                    if pair[g] > last:
                        last = pair[g]
                        shared += prior[n, class_a[g]] * prior[n, class_b[g]]
            highest = -np.inf
            for g in range(count):
                weight[g] = shares[g]
                if with_prior:
                    a, b = class_a[g], class_b[g]
                    if pair[g] < 0:
                        weight[g] *= prior[n, a] * ((1 - mixed_share) if shared > 0 else 1.0)
                    else:
                        weight[g] *= mixed_share * prior[n, a] * prior[n, b] / shared if shared > 0 else 0.0
                if not weight[g] > 0:
                    continue
                total = 0.0
                for c in range(channels):
                    z = 0.0
                    for d in range(c + 1):
                        z += whitening[g, c, d] * (values[n, d] - means[g, d])
                    total += z * z
                square[g] = total
                exponent[g] = log_scale[g] - 0.5 * total
                if with_field:
                    t = part[g]
                    exponent[g] += t * increments[n, class_a[g]] + (1 - t) * increments[n, class_b[g]]
                highest = max(highest, exponent[g])
            total = 0.0
            for g in range(count):
                if weight[g] > 0:
                    weight[g] *= np.exp(exponent[g] - highest)
                    total += weight[g]
            out[chunk, 0, 0] += highest + np.log(total)
            for k in range(classes):
                fractions[n, k] = 0
            typical = 0.0
            for g in range(count):
                if not weight[g] > 0:
                    continue
                r = weight[g] / total
                fractions[n, class_a[g]] += part[g] * r
                fractions[n, class_b[g]] += (1 - part[g]) * r
                out[chunk, g, 1] += r
                if robust:
                    r /= 1 + np.exp(min(0.5 * (square[g] - outlier_distance**2), 700.0))
                    typical += r
                out[chunk, g, 2] += r
                at = 3 + channels
                for c in range(channels):
                    along = r * (values[n, c] - centre[c])
                    out[chunk, g, 3 + c] += along
                    for d in range(c + 1):
                        out[chunk, g, at] += along * (values[n, d] - centre[d])
                        at += 1
                if with_bias:
                    at = 0
                    for c in range(channels):
                        for d in range(channels):
                            p = r * precision[g, c, d]
                            pull[n, c] += p * (values[n, d] - means[g, d])
                            if d <= c:
                                weights[n, at] += p
                                at += 1
            if robust:
                typicality[n] = typical
