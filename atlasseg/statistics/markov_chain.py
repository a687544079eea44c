"""Hidden Markov chain: voxels along a curve, with a hidden class that depends on the class of the previous voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics import kmeans
from atlasseg.statistics._dense_forward_backward import smooth
from atlasseg.statistics._forward_backward import Smoothed, emissions, sample
from atlasseg.statistics.gaussian_mixture import check_prior
from atlasseg.statistics.gaussians import VARIANCE_FLOOR, Gaussians, estimate, log_density
from atlasseg.volume import Bool, Float64, Int32, Int64

__all__ = ["Chain", "fit", "posterior"]

MIN_TRANSITION = 1e-12
"""Minimum transition probability, so that no observation is impossible."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A fitted hidden Markov chain of K classes on N sites of C modalities.

    Parameters
    ----------
    posterior : (N, K) float64
        Probability of each class at each site given all observations.
    gaussians : Gaussians
        Gaussian of each class.
    initial : (K,) float64
        Probability of each class at the start of a chain.
    transitions : (K, K) float64
        Probability of each class (column) after each class (row).
    log_likelihoods : tuple of float
        Log-likelihood before each iteration and at the end.
    converged : bool
        Whether the fit converged within `max_iterations`.
    """

    posterior: Float64
    gaussians: Gaussians
    initial: Float64
    transitions: Float64
    log_likelihoods: tuple[float, ...]
    converged: bool

    @property
    def classes(self) -> Int64:
        """(N,) class of the largest posterior (MPM), 0 to K - 1; in a tie the first."""
        return np.asarray(self.posterior.argmax(axis=1))


def posterior(
    log_densities: NDArray[np.floating[Any]],
    *,
    initial: Float64,
    transitions: Float64,
    prior: NDArray[np.floating[Any]] | None = None,
    starts: Bool | None = None,
) -> Smoothed:
    r"""Compute the posterior of the classes by normalised forward-backward ([1]_; weights :math:`a_n(k)` of [2]_).

    .. math::

        \alpha_n(k) &\propto a_n(k) \, f_k(y_n) \sum_j \alpha_{n-1}(j) \, t_{jk} \\
        \beta_n(j) &\propto \sum_k t_{jk} \, a_{n+1}(k) \, f_k(y_{n+1}) \, \beta_{n+1}(k) \\
        \gamma_n(k) &\propto \alpha_n(k) \, \beta_n(k)

    The two recursions run in parallel. A missing observation has density 1, log density 0.

    Parameters
    ----------
    log_densities : (N, K) float
        log f_k(y_n).
    initial : (K,) float64
        Probability of each class at the start of a chain.
    transitions : (K, K) float64
        t_jk: rows with sum 1, all values above 0.
    prior : (N, K) float, optional
        a_n(k): 0 or more, at each site at least one above 0. Default: 1.
    starts : (N,) bool, optional
        Where a new chain starts, always at the first site. Default: one chain.

    Returns
    -------
    Smoothed

    Raises
    ------
    InputError
        There are no sites, or shapes do not fit.

    References
    ----------
    .. [1] Bricq et al. (2006), Triplet Markov chain for 3D MRI brain segmentation using a probabilistic atlas, IEEE
       ISBI, 386-389.
    .. [2] Bricq, Collet, Armspach (2008), Unifying framework for multimodal brain MRI segmentation based on hidden
       Markov chains, Medical Image Analysis 12(6):639-652.
    """
    if log_densities.ndim != 2 or not log_densities.size or transitions.shape != (log_densities.shape[1],) * 2:
        raise InputError(
            f"expected log densities (N, K) of at least one site and transitions (K, K), got shapes "
            f"{log_densities.shape} and {transitions.shape}"
        )
    count, classes = log_densities.shape
    weights = np.ones((count, classes)) if prior is None else np.asarray(prior)
    if weights.shape != log_densities.shape:
        raise InputError(f"expected prior weights {log_densities.shape}, got {weights.shape}")
    offsets = np.arange(count + 1, dtype=np.int64) * classes
    e, scale = emissions(np.ascontiguousarray(log_densities).reshape(-1), weights.reshape(-1), offsets)
    if (scale == -np.inf).any():
        raise InputError("expected a prior weight above 0 for some class of every site")
    return smooth(e.reshape(count, classes), scale, _checked_starts(starts, count), initial, transitions)


def fit(
    values: NDArray[np.floating[Any]],
    *,
    classes: int | None = None,
    prior: NDArray[np.floating[Any]] | None = None,
    start: NDArray[np.floating[Any]] | None = None,
    starts: Bool | None = None,
    known: Bool | None = None,
    estimation: Literal["em", "sem", "ice"] = "em",
    draws: int = 1,
    seed: int = 0,
    floor: float = VARIANCE_FLOOR,
    max_iterations: int = 50,
    tolerance: float = 1e-5,
) -> Chain:
    """Fit a hidden Markov chain.

    With `em` [1]_ (Baum-Welch) all parameters maximise the expected log-likelihood; the likelihood never falls.
    With `sem` [2]_ whole chains of classes are drawn from their posterior, and the parameters are estimated from the
    draw. With `ice` [3]_ initial and transition probabilities are their conditional expectations, and the Gaussians the
    mean of the estimates on `draws` draws. With sem and ice the posteriors are computed with the mean of the parameters
    over the second half of the iterations, and all iterations are done.

    Parameters
    ----------
    values : (N, C) float
        Intensities in the order of a curve, see `curves.scan_order`.
    classes : int, optional
        Number of classes K. Default: the number of columns of `prior` or `start`, or 3 without them.
    prior : (N, K) float, optional
        Atlas weights a_n(k) of each site, see `posterior`. The classes have its order. Rows are scaled to sum 1; rows
        of sum 0 are set to the mean of the others.
    start : (N, K) float, optional
        Initial memberships, instead of the prior or of k-means.
    starts : (N,) bool, optional
        Where a new chain starts. Default: one chain.
    known : (N,) bool, optional
        Sites with an observation. The values of the others are ignored.
    estimation : str
        `em`, `sem` or `ice`.
    draws : int
        Number of draws per iteration, for `ice`.
    seed : int
        Seed of the draws.
    floor : float
        Minimum variance, see `gaussians.estimate`.
    max_iterations : int
        Maximum number of iterations, at least 1.
    tolerance : float
        For `em`: stop when the log-likelihood changes by at most `tolerance` times N.

    Returns
    -------
    Chain

    Raises
    ------
    InputError
        No site is observed, values are not finite, there are more classes than distinct values (as in a constant scan,
        or a chain of length 1 with two classes), the prior is invalid, or a parameter is out of range.

    References
    ----------
    .. [1] Baum et al. (1970), A maximization technique occurring in the statistical analysis of probabilistic functions
       of Markov chains, Annals of Mathematical Statistics 41(1):164-171.
    .. [2] Celeux, Diebolt (1985), The SEM algorithm, Computational Statistics Quarterly 2:73-82.
    .. [3] Pieczynski (1992), Statistical image segmentation, Machine Graphics and Vision 1(1/2):261-268.
    """
    y, seen = _checked_values(values, known)
    count = len(y)
    if estimation not in ("em", "sem", "ice"):
        raise InputError(f"estimation: expected em, sem or ice, got {estimation!r}")
    if not (max_iterations >= 1 and draws >= 1 and tolerance >= 0):
        raise InputError(
            "expected max_iterations and draws of at least 1 and tolerance of 0 or more, got "
            f"{max_iterations}, {draws} and {tolerance}"
        )
    given = None if prior is None else check_prior(prior, count)
    memberships = _start(y, seen, classes, given, start)
    number = memberships.shape[1]
    if given is not None and given.shape[1] != number:
        raise InputError(f"prior: expected {number} classes like start, got {given.shape[1]}")
    sites = _Sites(
        y,
        seen,
        (np.ones((count, number)) if given is None else given).reshape(-1),
        _checked_starts(starts, count),
        floor,
    )
    within = ~sites.begins[1:]
    state = _State(
        sites.estimate_gaussians(memberships),
        normalise_counts(memberships[sites.begins].sum(axis=0)),
        normalise_counts(np.einsum("nj,nk->jk", memberships[:-1][within], memberships[1:][within])),
    )
    rng = np.random.default_rng(seed)
    history, visited = [], []
    settled = False
    for iteration in range(max_iterations + 1):
        e, found = sites.smooth(state)
        history.append(found.log_likelihood)
        settled = estimation == "em" and iteration > 0 and abs(history[-1] - history[-2]) <= tolerance * count
        if settled or iteration == max_iterations:
            break
        if estimation == "em":
            state = sites.maximise(found, state)
        elif estimation == "ice":
            state = sites.maximise(found, state, [sites.draw_labels(e, state, rng) for _ in range(draws)])
        else:
            state = sites.maximise_drawn(sites.draw_labels(e, state, rng), state)
        if iteration >= max_iterations // 2:
            visited.append(state)
    if estimation != "em":
        state = _State(
            _mean([s.gaussians for s in visited]),
            np.mean([s.initial for s in visited], axis=0),
            np.mean([s.transitions for s in visited], axis=0),
        )
        found = sites.smooth(state)[1]
        history.append(found.log_likelihood)
    return Chain(
        found.gamma.reshape(count, number), state.gaussians, state.initial, state.transitions, tuple(history), settled
    )


@dataclass(frozen=True, eq=False)
class _State:
    """Parameters of a chain."""

    gaussians: Gaussians
    initial: Float64
    transitions: Float64


@dataclass(frozen=True, eq=False)
class _Sites:
    """N sites of a chain with K classes.

    Parameters
    ----------
    values : (N, C) float64
    seen : (N,) bool
        Sites with an observation.
    weights : (N * K,) float64
        Atlas weights.
    begins : (N,) bool
        Where a new chain starts.
    floor : float
        Minimum variance.
    """

    values: Float64
    seen: Bool
    weights: Float64
    begins: Bool
    floor: float

    @property
    def classes(self) -> int:
        """K."""
        return self.weights.size // len(self.values)

    @cached_property
    def layout(self) -> tuple[Int64, Int32]:
        """Offsets and labels of sites at which every class is possible."""
        count, classes = len(self.values), self.classes
        return np.arange(count + 1, dtype=np.int64) * classes, np.tile(np.arange(classes, dtype=np.int32), count)

    def smooth(self, state: _State) -> tuple[Float64, Smoothed]:
        """(N * K,) emissions, and the posteriors by the forward-backward algorithm."""
        logs = log_density(self.values, state.gaussians)
        logs[~self.seen] = 0
        e, scale = emissions(logs.reshape(-1), self.weights, self.layout[0])
        return e, smooth(e.reshape(len(logs), -1), scale, self.begins, state.initial, state.transitions)

    def draw_labels(self, emission: Float64, state: _State, rng: np.random.Generator) -> Int64:
        """(N,) classes drawn from their posterior as whole chains."""
        uniform = rng.random(len(self.values))
        slots = sample(emission, *self.layout, self.begins, state.initial, state.transitions, uniform)
        return np.asarray(slots % self.classes)

    def estimate_gaussians(self, memberships: Float64, before: Gaussians | None = None) -> Gaussians:
        """Gaussians of the classes from (N, K) memberships."""
        return estimate(self.values, memberships * self.seen[:, None], floor=self.floor, before=before)

    def maximise(self, found: Smoothed, state: _State, drawn: Sequence[Int64] = ()) -> _State:
        """Parameters from the posteriors; with `drawn` labels, the Gaussians are the mean over the draws."""
        if drawn:
            gaussians = _mean([self.estimate_gaussians(self._indicators(labels), state.gaussians) for labels in drawn])
        else:
            gaussians = self.estimate_gaussians(found.gamma.reshape(-1, self.classes), state.gaussians)
        return _State(gaussians, normalise_counts(found.first), self._transitions(found.pairs, state))

    def maximise_drawn(self, labels: Int64, state: _State) -> _State:
        """Parameters from drawn labels alone."""
        within = ~self.begins[1:]
        first = np.bincount(labels[self.begins], minlength=self.classes).astype(float)
        pairs = np.bincount(labels[:-1][within] * self.classes + labels[1:][within], minlength=self.classes**2)
        gaussians = self.estimate_gaussians(self._indicators(labels), state.gaussians)
        return _State(gaussians, normalise_counts(first), self._transitions(pairs.astype(float), state))

    def _transitions(self, pairs: Float64, state: _State) -> Float64:
        return normalise_counts(pairs.reshape(self.classes, self.classes), state.transitions)

    def _indicators(self, labels: Int64) -> Float64:
        return np.asarray(np.eye(self.classes)[labels])


def _mean(parts: list[Gaussians]) -> Gaussians:
    return Gaussians(np.mean([g.means for g in parts], axis=0), np.mean([g.covariances for g in parts], axis=0))


def normalise_counts(counts: Float64, before: Float64 | None = None) -> Float64:
    """Scale rows to sum 1, with values of at least `MIN_TRANSITION`. A row of zeros is that of `before`, or uniform."""
    total = counts.sum(axis=-1, keepdims=True)
    rows = np.where(
        total > 0, counts / np.where(total > 0, total, 1), 1 / counts.shape[-1] if before is None else before
    )
    rows = np.maximum(rows, MIN_TRANSITION)
    return np.asarray(rows / rows.sum(axis=-1, keepdims=True))


def _checked_starts(starts: Bool | None, count: int) -> Bool:
    out = np.zeros(count, bool) if starts is None else np.array(starts, bool)
    if out.shape != (count,):
        raise InputError(f"expected starts of {count} sites, got shape {out.shape}")
    out[0] = True
    return out


def _checked_values(values: NDArray[np.floating[Any]], known: Bool | None) -> tuple[Float64, Bool]:
    y = np.array(values, dtype=np.float64, order="C")
    if y.ndim != 2 or not y.size:
        raise InputError(
            f"values: expected shape (N, C) with at least one site, got {y.shape}. Check whether the mask is empty."
        )
    seen = np.ones(len(y), bool) if known is None else np.asarray(known, bool)
    if seen.shape != (len(y),) or not seen.any():
        raise InputError(f"known: expected at least one of {len(y)} sites, got shape {seen.shape}")
    if not np.isfinite(y[seen]).all():
        raise InputError(
            f"values: expected finite intensities, got {int((~np.isfinite(y[seen])).sum())} that are NaN or infinite"
        )
    y[~seen] = y[seen].mean(axis=0)
    return y, seen


def _start(
    y: Float64, seen: Bool, classes: int | None, prior: Float64 | None, start: NDArray[np.floating[Any]] | None
) -> Float64:
    """(N, K) initial memberships; the mean at sites without observation."""
    given = prior if start is None else np.asarray(start, dtype=np.float64)
    if given is None:
        number = 3 if classes is None else classes
        given = np.full((len(y), number), 1 / max(number, 1))
        given[seen] = np.eye(number)[kmeans.cluster(y[seen], classes=number).assigned]
        return given
    number = given.shape[-1]
    if given.shape != (len(y), number) or (classes is not None and classes != number):
        raise InputError(f"expected memberships of {len(y)} sites in {classes or number} classes, got {given.shape}")
    if number > 1 and number > (distinct := len(np.unique(y[seen], axis=0))):
        raise InputError(f"classes: expected at most {distinct}, the number of distinct values, got {number}")
    return given
