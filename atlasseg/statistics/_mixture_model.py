"""Gaussian mixture during the fit: initialisation, and iterations until convergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics import kmeans
from atlasseg.statistics._mixture import Components, Sweep, maximise, sweep
from atlasseg.statistics.bias_field import Polynomials
from atlasseg.statistics.gaussians import Gaussians, estimate, split
from atlasseg.volume import Float64

PRIOR_TOLERANCE = 0.02
"""Maximum excess over 1 of the sum of a voxel's priors, due to interpolation and rounding."""
MIXED_AT_FIRST = 0.1
"""Initial fraction of mixed voxels."""

NORMAL = 1.482602218505602
"""Ratio of standard deviation and median absolute deviation of a normal distribution."""

Field = Callable[[Float64], Float64]
"""Function of (N, K) fractions that returns (N, K) increments of the log prior, for example a Markov random field."""


class Model:
    """State of a mixture during the fit."""

    def __init__(
        self,
        values: Float64,
        components: Components,
        pure: Gaussians,
        *,
        prior: Float64 | None,
        shares: Float64,
        mixed_share: float,
        classes: int,
        floor: float,
    ) -> None:
        self.values = self.corrected = values
        self.components, self.pure = components, pure
        self.prior, self.shares, self.mixed_share = prior, shares, mixed_share
        self.classes, self.floor = classes, floor
        self.centre: Float64 = values.mean(axis=0)
        self.unit = len(values) * float(np.log(np.maximum(values.std(axis=0), np.finfo(float).tiny)).sum())
        self.polynomials: Polynomials | None = None
        self.coefficients: Float64 = np.zeros((0, values.shape[1]))

    def update_bias(self, polynomials: Polynomials, *, gain: bool, stiffness: float) -> None:
        """Estimate a bias field in the following iterations."""
        self.polynomials, self.gain = polynomials, gain
        self.coefficients = np.zeros((len(polynomials.exponents), self.values.shape[1]))
        variance = self.values.var(axis=0)
        scale = np.maximum(self.centre**2, np.finfo(float).tiny) if gain else 1.0
        self.penalty = stiffness * scale / np.maximum(variance, np.finfo(float).tiny)

    def update_parameters(
        self,
        mixed: Sequence[tuple[int, int]],
        outlier_distance: float,
        max_iterations: int,
        tolerance: float,
        field: Field | None = None,
        fractions: Float64 | None = None,
    ) -> tuple[Sweep, list[float], bool]:
        """Fit the parameters by EM iterations until the log-likelihood does not change.

        `fractions` are the first input of the field. Returns the last sweep, the log-likelihoods, and whether it
        converged.
        """
        may_be_mixed = 0 if self.prior is None else _may_be_mixed(self.prior, mixed)
        history: list[float] = []
        for iteration in range(max_iterations + 1):
            extra = None
            if field is not None and fractions is not None:
                extra = np.ascontiguousarray(field(fractions), dtype=np.float64)
            found = sweep(
                self.corrected, self.components, self.pure, self.shares, prior=self.prior,
                mixed_share=self.mixed_share, increments=extra, outlier_distance=outlier_distance, centre=self.centre,
                classes=self.classes, bias=self.polynomials is not None,
            )  # fmt: skip
            fractions = found.fractions
            history.append(found.log_likelihood)
            change = abs(history[-1] - history[-2]) if iteration else np.inf
            if change <= tolerance * max(abs(history[-1] + self.unit), len(self.values)):
                return found, history, True
            if iteration < max_iterations:
                self._maximise(found, may_be_mixed)
                if self.polynomials is not None:
                    self._correct(found, self.polynomials)
        return found, history, False

    def count_masses(self, found: Sweep, pairs: int) -> tuple[Float64, Float64, Float64]:
        """Sum the responsibilities of each class (K,), and compute the shares of components in classes and of pairs."""
        components, mass = self.components, found.mass
        pure = components.of_class.size
        of_class = np.bincount(components.of_class, mass[:pure], minlength=self.classes).astype(np.float64)
        whole = of_class[components.of_class]
        inner = np.where(whole > 0, mass[:pure] / np.where(whole > 0, whole, 1), 0)
        mixed = components.mixed
        of_pair = np.bincount(components.pair[mixed], mass[mixed], minlength=pairs).astype(np.float64)
        return of_class, inner, of_pair

    def _maximise(self, found: Sweep, may_be_mixed: int) -> None:
        components, mass, mixed = self.components, found.mass, self.components.mixed
        pairs = int(components.pair.max()) + 1
        self.pure = maximise(components, found.sums, self.centre, self.pure, floor=self.floor)
        _, inner, of_pair = self.count_masses(found, pairs)
        if self.prior is not None:
            self.shares[: inner.size] = inner
            self.mixed_share = float(of_pair.sum()) / max(may_be_mixed, 1)
            return
        self.shares = mass / len(self.values)
        levels = mixed.size // max(pairs, 1)
        self.shares[mixed] = np.repeat(of_pair, levels) / (max(levels, 1) * len(self.values))

    def _correct(self, found: Sweep, polynomials: Polynomials) -> None:
        weights, pull = found.weights, found.pull
        if self.gain:
            row, column = np.tril_indices(self.values.shape[1])
            weights = weights * self.corrected[:, row] * self.corrected[:, column]
            pull = pull * self.corrected
        self.coefficients = self.coefficients + polynomials.fit_coefficients(
            weights, pull, self.penalty, self.coefficients
        )
        field = polynomials.evaluate(self.coefficients)
        self.corrected = self.values * np.exp(-field) if self.gain else self.values - field


def initialise(
    values: Float64,
    components: Components,
    prior: Float64 | None,
    start: NDArray[np.floating[Any]] | None,
    floor: float,
    outlier_distance: float,
) -> Model:
    """Make the initial model from `start`, the prior, or k-means.

    With a finite `outlier_distance`, values farther than that from the median (in standard deviations by the median
    absolute deviation) do not count initially, unless they are half of a class or more.
    """
    classes = int(components.of_class.max()) + 1
    if start is not None:
        memberships = np.ascontiguousarray(start, dtype=np.float64)
    elif prior is not None:
        memberships = prior
    else:
        memberships = np.eye(classes)[kmeans.cluster(values, classes=classes).assigned]
    counted = memberships
    if np.isfinite(outlier_distance):
        apart = np.abs(values - np.median(values, axis=0))
        near = (apart <= outlier_distance * NORMAL * np.median(apart, axis=0)).all(axis=1)
        trimmed = memberships * near[:, None]
        counted = np.where(trimmed.sum(axis=0) > 0.5 * memberships.sum(axis=0), trimmed, memberships)
    pure = split(estimate(values, counted, floor=floor), components.of_class)
    shares, mixed_share = _first_shares(components, memberships, prior)
    return Model(
        values, components, pure, prior=prior, shares=shares, mixed_share=mixed_share, classes=classes, floor=floor
    )


def check_prior(prior: NDArray[np.floating[Any]], number: int) -> Float64:
    """Check a prior (N, K) and scale its rows to sum 1; rows of sum 0 are set to the mean of the others.

    Parameters
    ----------
    prior : (N, K) float
        Probability of each class at each voxel.
    number : int
        Number of voxels N.

    Returns
    -------
    (N, K) float64

    Raises
    ------
    InputError
        The prior does not fit N voxels, is not finite, is negative or above 1, sums to more than 1, or is 0 everywhere
        or for a class. Sums up to `PRIOR_TOLERANCE` above 1 are accepted.
    """
    given = np.array(prior, dtype=np.float64, order="C")
    if given.ndim != 2 or len(given) != number:
        raise InputError(f"expected a prior of shape ({number}, classes), got {given.shape}")
    if not np.isfinite(given).all() or (given < 0).any():
        raise InputError("prior: expected finite values of 0 or more, got negative, NaN or infinite ones")
    total = given.sum(axis=1)
    if (over := int((total > 1 + PRIOR_TOLERANCE).sum())) > 0:
        raise InputError(f"prior: expected sums of at most 1, got up to {total.max():.3g} at {over} of {number} voxels")
    if not total.any():
        raise InputError("prior: expected values above 0, got 0 at every voxel. Check whether prior and scan overlap.")
    if (empty := np.flatnonzero(~given.any(axis=0))).size:
        raise InputError(f"class {int(empty[0]) + 1} of {given.shape[1]} is empty: its prior is 0 at every voxel")
    given /= np.where(total > 0, total, 1)[:, None]
    given[total == 0] = given[total > 0].mean(axis=0)
    return given


def count_classes(
    values: Float64, classes: int | None, prior: Float64 | None, start: NDArray[np.floating[Any]] | None
) -> int:
    """Determine the number of classes K from `classes`, prior or start; the default is 3.

    Raises
    ------
    InputError
        They contradict each other, or there are more classes than distinct values.
    """
    said = {int(count) for count in (classes, *(a.shape[-1] for a in (prior, start) if a is not None)) if count}
    if len(said) > 1 or (classes is not None and classes < 1):
        raise InputError(f"expected one number of classes in classes, prior and start, got {sorted(said)}")
    count = said.pop() if said else 3
    distinct = len(np.unique(values[: 10 * count], axis=0))
    if distinct < count and (distinct := len(np.unique(values, axis=0))) < count:
        raise InputError(f"classes: expected at most {distinct}, the number of distinct values, got {count}")
    return count


def make_components(
    classes: int, gaussians_per_class: int | Sequence[int], mixed: Sequence[tuple[int, int]], levels: int
) -> Components:
    """Make the components of `classes` classes and of mixed voxels.

    Raises
    ------
    InputError
        Counts, pairs or levels are out of range.
    """
    counts = [gaussians_per_class] * classes if isinstance(gaussians_per_class, int) else list(gaussians_per_class)
    if len(counts) != classes or min(counts) < 1:
        raise InputError(f"expected at least one Gaussian for each of {classes} classes, got {gaussians_per_class}")
    pairs = [(int(a), int(b)) for a, b in mixed]
    for a, b in pairs:
        if a == b or not (0 <= a < classes and 0 <= b < classes) or counts[a] > 1 or counts[b] > 1:
            raise InputError(f"mixed: expected two classes of 0 to {classes - 1} with one Gaussian each, got {(a, b)}")
    if len({frozenset(pair) for pair in pairs}) != len(pairs) or levels < 1:
        raise InputError(f"expected different pairs and at least 1 level, got {pairs} and {levels}")
    return Components.of(counts, pairs, levels)


def _first_shares(components: Components, memberships: Float64, prior: Float64 | None) -> tuple[Float64, float]:
    """(G,) initial shares of the components, and of all mixed voxels."""
    inner = 1 / np.bincount(components.of_class)[components.of_class]
    mixed = components.mixed
    share = MIXED_AT_FIRST if mixed.size else 0.0
    if prior is not None:
        levels = np.bincount(components.pair[mixed])[components.pair[mixed]] if mixed.size else np.zeros(0)
        return np.concatenate((inner, 1 / levels)), share
    whole = memberships.sum(axis=0) / memberships.sum()
    pure = (1 - share) * whole[components.of_class] * inner
    return np.concatenate((pure, np.full(mixed.size, share / max(mixed.size, 1)))), 0.0


def _may_be_mixed(prior: Float64, mixed: Sequence[tuple[int, int]]) -> int:
    """Number of voxels where both classes of a pair have a prior above 0."""
    possible = np.zeros(len(prior), bool)
    for a, b in mixed:
        possible |= (prior[:, a] * prior[:, b]) > 0
    return int(possible.sum())
