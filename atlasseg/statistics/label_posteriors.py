"""Label posteriors from a prior, intensities and neighbours, for the statistical fusions and refinements.

Where a map of label probabilities is uncertain, it is the prior of a statistical model: each label has a
Gaussian of intensities, estimated with the prior, and voxels depend on their neighbours in a field or along a curve.
Memory grows with the possible labels at the uncertain voxels, not with labels times voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from scipy.ndimage import binary_dilation

from atlasseg.errors import GeometryError, InputError
from atlasseg.statistics import curves, mean_field
from atlasseg.statistics._field import field_of_labels
from atlasseg.statistics._forward_backward import emissions, smooth
from atlasseg.statistics.gaussians import Gaussians, count_moments, from_moments, unpack_moments
from atlasseg.statistics.markov_field import SOLVERS, Solver, solve_field
from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64, Image, Int32, Int64, LabelWeights, ProbabilityMap, take_entries

__all__ = ["chain_posteriors", "field_posteriors"]

RIM_VOXELS = 2
"""Distance up to which certain voxels around uncertain ones are used for the Gaussians and as neighbours."""
FLOOR = 0.01
"""Minimum variance of a label, as a fraction of the variance of all intensities, for labels with few voxels."""
CHUNKS = 16
"""Number of parts of a sum, which are added in order."""
START_ODDS = 9.0
"""Initial odds of the same label at the next voxel of a curve."""
MOST_ODDS = 1e9
"""Maximum of the estimated odds, so that a change of label remains possible."""


@dataclass(frozen=True, eq=False)
class UncertainVoxels:
    """Uncertain voxels and the certain ones around them, with their possible labels.

    Parameters
    ----------
    voxels : (M,) int64
        Ascending flat indices.
    values : (M, C) float32
        Intensities.
    prior : LabelWeights
        Index into `label_values` of each possible label of each voxel, and its probability (float64), above 0; the sum
        at a voxel is 1.
    label_values : (L,) int32
        Labels that occur, ascending.
    """

    voxels: Int64
    values: Float32
    prior: LabelWeights
    label_values: Int32

    @classmethod
    def extract(cls, target: Image, prior: ProbabilityMap) -> UncertainVoxels:
        """Collect the uncertain voxels of a prior and the certain voxels around them.

        Raises
        ------
        GeometryError
            Scan and prior lie on different grids.
        """
        if not target.grid.matches(prior.grid):
            raise GeometryError(
                f"{target.name or 'target'}: scan and prior are on different grids: shapes {target.shape} and "
                f"{prior.shape}, affines {target.affine.tolist()} and {prior.affine.tolist()}"
            )
        uncertain = np.zeros(prior.mode.size, bool)
        uncertain[prior.voxels] = True
        near = binary_dilation(uncertain.reshape(prior.shape), np.ones((3, 3, 3), bool), iterations=RIM_VOXELS)
        voxels = np.flatnonzero(near)
        free = uncertain[voxels]
        counts = np.ones(voxels.size, np.int64)
        counts[free] = np.diff(prior.offsets)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        slots = np.repeat(free, counts)
        values, shares = np.empty(slots.size, np.int32), np.ones(slots.size)
        values[slots], shares[slots] = prior.labels, prior.values
        values[~slots] = prior.mode.reshape(-1)[voxels[~free]]
        every, labels = np.unique(values, return_inverse=True)
        intensities = np.ascontiguousarray(target.channels.reshape(prior.mode.size, -1)[voxels])
        return cls(voxels, intensities, LabelWeights(offsets, labels.astype(np.int32), shares), every)

    def gaussians(self, weights: Float64, before: Gaussians | None = None) -> Gaussians:
        """Estimate the Gaussian of each label from (S,) weights of the slots by maximum likelihood."""
        centre = self.values.mean(axis=0, dtype=np.float64)
        bounds = np.linspace(0, self.voxels.size, CHUNKS + 1).astype(np.int64)
        channels = self.values.shape[1]
        packed = np.zeros((CHUNKS, self.label_values.size, count_moments(channels)))
        given = self.values, self.prior.offsets, self.prior.labels, weights, centre, bounds
        run_slices(_add_moments, CHUNKS, *given, packed)
        mass, first, second = unpack_moments(packed.sum(axis=0), channels)
        return from_moments(mass, first, second, centre, floor=FLOOR, before=before)

    def log_densities(self, gaussians: Gaussians) -> Float64:
        """Compute the log density (S,) of each slot's label."""
        out = np.empty(self.prior.labels.size)
        given = self.values, self.prior.offsets, self.prior.labels
        normal = gaussians.means, gaussians.whitening, gaussians.log_scale
        run_slices(_log_densities, self.voxels.size, *given, *normal, out)
        return out

    def map_of(self, weights: Float64, prior: ProbabilityMap, name: str) -> ProbabilityMap:
        """Replace the weights of `prior` at these voxels."""
        return ProbabilityMap.from_entries(
            prior.mode,
            prior.affine,
            np.repeat(self.voxels, self.prior.sizes),
            self.label_values[self.prior.labels],
            weights,
            label_values=prior.label_values,
            name=name,
        )


def field_posteriors(
    target: Image,
    prior: ProbabilityMap,
    *,
    beta: float,
    neighbours: Literal[6, 26],
    intensity_weight: float,
    solver: Solver,
    iterations: int,
    name: str = "",
) -> ProbabilityMap:
    r"""Compute the posterior of the labels in a Markov random field.

    The energy is

    .. math::

        E(x) = \sum_n \left( -w \log f_{x_n}(y_n) - \log p_n(x_n) \right)
        + \beta \sum_{n \sim m} \frac{d_{\min}}{d_{nm}} [x_n \neq x_m]

    with the prior :math:`p`, a Gaussian :math:`f_l` for each label, and distances :math:`d` in mm. Expectation
    maximisation finds the posterior :math:`q` by a sweep of mean field, and the Gaussians from :math:`q` [1]_. The
    solver then computes the result. After `icm` and `graph_cut`, which give labels, the result is the conditional
    probability of each label given the labels of the neighbours.

    Parameters
    ----------
    target : Image
        The scan, with one or several channels.
    prior : ProbabilityMap
        Probabilities on the grid of `target`. Certain voxels do not change.
    beta : float
        Strength of the field, 0 or more.
    neighbours : int
        Neighbourhood: 6 (shared face) or 26 (shared face, edge or corner).
    intensity_weight : float
        Weight w of the intensities, from 0 (ignored) to 1.
    solver : str
        `mean_field`, `belief_propagation`, `icm` or `graph_cut`.
    iterations : int
        Number of iterations of expectation maximisation, at least 1.
    name : str
        Name of the result.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        A parameter is out of range.
    GeometryError
        Scan and prior lie on different grids.

    References
    ----------
    .. [1] Zhang, Brady, Smith (2001), Segmentation of brain MR images through a hidden Markov random field model and
       the expectation-maximization algorithm, IEEE TMI 20(1):45-57.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")
    _check(intensity_weight, iterations)
    if not (np.isfinite(beta) and beta >= 0 and neighbours in (6, 26)):
        raise InputError(f"expected beta of 0 or more and 6 or 26 neighbours, got {beta} and {neighbours}")
    rows = UncertainVoxels.extract(target, prior)
    if rows.voxels.size == 0:
        return prior
    log_prior = np.log(rows.prior.values)
    field = field_of_labels(
        rows.prior.with_values(-log_prior), rows.voxels, target.shape, target.affine[:3, :3], beta=beta,
        neighbours=neighbours, number_of_labels=rows.label_values.size,
    )  # fmt: skip
    weights: Float64 = rows.prior.values.copy()
    gaussians: Gaussians | None = None
    for _ in range(iterations):
        gaussians = rows.gaussians(weights, gaussians)
        field = field.with_unary(-intensity_weight * rows.log_densities(gaussians) - log_prior)
        mean_field.iterate(field, weights)
    return rows.map_of(solve_field(field, solver, weights), prior, name)


def chain_posteriors(
    target: Image,
    prior: ProbabilityMap,
    *,
    curve: curves.CurveName,
    intensity_weight: float,
    stay_odds: float | None,
    iterations: int,
    name: str = "",
) -> ProbabilityMap:
    r"""Compute the posterior of the labels in a hidden Markov chain along a curve.

    The prior is the weight of each label at each site of the chain. A chain starts where the curve enters the
    uncertain voxels and those near them. For :math:`K` labels and odds :math:`o`, the transition probabilities are

    .. math::

        t_{kk} = \frac{o}{o + K - 1}, \qquad t_{kl} = \frac{1}{o + K - 1} \quad (l \neq k)

    The posterior depends on :math:`o` and not on :math:`K`, and :math:`o = 1` is no coupling. Expectation maximisation
    estimates the Gaussians.

    Parameters
    ----------
    target, prior, intensity_weight, iterations, name
        See `field_posteriors`.
    curve : str
        Space-filling curve: `hilbert` or `serpentine`.
    stay_odds : float, optional
        o, 1 or more: the probability that the next site has the same label over the probability that it has one given
        other label. None: estimated by expectation maximisation.

    Returns
    -------
    ProbabilityMap

    Raises
    ------
    InputError
        A parameter is out of range.
    GeometryError
        Scan and prior lie on different grids.
    """
    _check(intensity_weight, iterations)
    if stay_odds is not None and not 1 <= stay_odds < np.inf:
        raise InputError(f"stay_odds: expected odds of 1 (no coupling) or more, got {stay_odds}")
    rows = UncertainVoxels.extract(target, prior)
    if rows.voxels.size == 0:
        return prior
    inside = np.zeros(prior.mode.size, bool)
    inside[rows.voxels] = True
    sites, starts = curves.scan_order(inside.reshape(prior.shape), curve)
    at = np.searchsorted(rows.voxels, sites)
    offsets, slots = take_entries(rows.prior.offsets, at)
    labels = rows.prior.labels[slots]
    states = rows.label_values.size
    share = rows.prior.values[slots]
    initial = np.full(states, 1 / states)
    odds = START_ODDS if stay_odds is None else stay_odds
    weights: Float64 = rows.prior.values.copy()
    gaussians: Gaussians | None = None
    for _ in range(iterations):
        gaussians = rows.gaussians(weights, gaussians)
        logs = intensity_weight * rows.log_densities(gaussians)
        e, scale = emissions(logs[slots], share, offsets)
        transitions = (1 + (odds - 1) * np.eye(states)) / (odds + states - 1)
        found = smooth(e, scale, offsets, labels, starts, initial, transitions)
        if stay_odds is None and (steps := found.pairs.sum()) > 0:
            same = np.trace(found.pairs)
            odds = float(np.clip(same * (states - 1) / max(steps - same, steps / MOST_ODDS), 1, MOST_ODDS))
        weights[slots] = found.gamma
    return rows.map_of(weights, prior, name)


def _check(intensity_weight: float, iterations: int) -> None:
    if not (0 <= intensity_weight <= 1 and iterations >= 1):
        raise InputError(
            f"expected intensity_weight of 0 to 1 and iterations of at least 1, got {intensity_weight} and {iterations}"
        )


@njit(cache=True, nogil=True)
def _add_moments(start, stop, values, offsets, labels, weights, centre, bounds, out):  # type: ignore[no-untyped-def]
    """Add the sums of each chunk of voxels, (chunks, L, 1 + C + C (C + 1) / 2), to `out`; see `unpack_moments`."""
    channels = values.shape[1]
    for chunk in range(start, stop):
        apart = np.empty(channels)
        for n in range(bounds[chunk], bounds[chunk + 1]):
            for c in range(channels):
                apart[c] = values[n, c] - centre[c]
            for s in range(offsets[n], offsets[n + 1]):
                k, weight = labels[s], weights[s]
                out[chunk, k, 0] += weight
                at = 1 + channels
                for c in range(channels):
                    out[chunk, k, 1 + c] += weight * apart[c]
                    for d in range(c + 1):
                        out[chunk, k, at] += weight * apart[c] * apart[d]
                        at += 1


@njit(cache=True, nogil=True)
def _log_densities(start, stop, values, offsets, labels, means, whitening, log_scale, out):  # type: ignore[no-untyped-def]
    channels = values.shape[1]
    for n in range(start, stop):
        for s in range(offsets[n], offsets[n + 1]):
            k = labels[s]
            square = 0.0
            for c in range(channels):
                z = 0.0
                for d in range(c + 1):
                    z += whitening[k, c, d] * (values[n, d] - means[k, d])
                square += z * z
            out[s] = log_scale[k] - 0.5 * square
