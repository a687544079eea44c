"""Gaussian mixture by expectation maximisation: tissues by intensity, with prior, bias field and partial volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from atlasseg.errors import InputError
from atlasseg.statistics._mixture_model import Field, check_prior, count_classes, initialise, make_components
from atlasseg.statistics.bias_field import Polynomials
from atlasseg.statistics.gaussians import VARIANCE_FLOOR, Gaussians
from atlasseg.volume import Bool, Float64, Int64

__all__ = ["Field", "Mixture", "check_prior", "fit"]

RELAXATIONS = 5
"""Maximum number of relaxations of the prior. They end if the mean change of the fractions is below `RELAXED`."""
RELAXED = 1e-3

LEAST = 5000
"""Minimum number of voxels for the estimation of the bias field, if the region has as many."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture of K classes on N voxels of C modalities.

    Parameters
    ----------
    fractions : (N, K) float64
        Expected fraction of each class in each voxel; sums to 1. Without mixed classes, the posterior probability.
    gaussians : Gaussians
        Gaussians of the Q components, sorted by class, in corrected intensities.
    of_class : (Q,) int64
        Class of each component.
    shares : (Q,) float64
        Share of each component in its class; sums to 1 in each class.
    weights : (K + P,) float64
        Fraction of all voxels of each class, then of each pair of mixed classes.
    bias : (N, C) float64
        Bias field: intensities are divided by a `gain` (mean logarithm 0), or an `offset` (mean 0) is subtracted.
    corrected : (N, C) float64
        The bias-corrected intensities.
    typicality : (N,) float64
        Near 1 for typical voxels, near 0 for outliers; 1 everywhere with an infinite `outlier_distance`.
    log_likelihoods : tuple of float
        Log-likelihood of all voxels before each iteration and at the end.
    converged : bool
        Whether the fit converged within `max_iterations`.
    """

    fractions: Float64
    gaussians: Gaussians
    of_class: Int64
    shares: Float64
    weights: Float64
    bias: Float64
    corrected: Float64
    typicality: Float64
    log_likelihoods: tuple[float, ...]
    converged: bool

    @property
    def classes(self) -> Int64:
        """(N,) class of the largest fraction, 0 to K - 1; in a tie the first."""
        return np.asarray(self.fractions.argmax(axis=1))


def fit(
    values: NDArray[np.floating[Any]],
    *,
    classes: int | None = None,
    prior: NDArray[np.floating[Any]] | None = None,
    start: NDArray[np.floating[Any]] | None = None,
    inside: Bool | None = None,
    gaussians_per_class: int | Sequence[int] = 1,
    mixed: Sequence[tuple[int, int]] = (),
    mixed_levels: int = 4,
    bias: Literal["none", "gain", "offset"] = "none",
    bias_order: int = 3,
    bias_stiffness: float = 1.0,
    bias_every: int = 2,
    bias_smoothing_voxels: float = 0.7,
    outlier_distance: float = np.inf,
    relaxation: float = 0.0,
    relaxation_sigma_voxels: float = 2.0,
    field: Field | None = None,
    floor: float = VARIANCE_FLOOR,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> Mixture:
    r"""Fit a Gaussian mixture by expectation maximisation.

    A voxel of class :math:`k` has intensities :math:`y_n \sim \sum_{g \in k} s_g \mathcal{N}(\mu_g, \Sigma_g)` over
    the Gaussians :math:`g` of the class. The class has the prior probability :math:`\pi_{nk}`, given for each voxel,
    or one :math:`\pi_k` for all voxels, which is estimated. The iteration alternates [1]_

    .. math::

        \gamma_{ng} = \frac{\pi_{nk} s_g \mathcal{N}(y_n;\, \mu_g, \Sigma_g)}
        {\sum_{k'} \sum_{g' \in k'} \pi_{nk'} s_{g'} \mathcal{N}(y_n;\, \mu_{g'}, \Sigma_{g'})}, \qquad
        \mu_g = \frac{\sum_n \gamma_{ng} y_n}{\sum_n \gamma_{ng}}

    and likewise :math:`\Sigma_g`, with :math:`s_g` and :math:`\pi_k` the shares of the :math:`\gamma_{ng}`.

    *Bias field.* With an ``offset``, :math:`y_n = x_n - b_n` for the scan's values :math:`x` (as in [1]_, where
    :math:`x` is the logarithm of the scan). With a ``gain``, :math:`y_n = x_n \exp(-b_n)`, so that noise and partial
    volume keep their distribution in the intensities. In both, :math:`b` is a sum of polynomials up to `bias_order`,
    of mean 0, found by weighted least squares after every iteration ([1]_; for the gain a Gauss-Newton step [2]_).
    Classes without a spatial prior tend to explain anatomy by the bias field. So :math:`b` has the cost :math:`q /
    2v` times the sum of its square over the voxels, each polynomial multiplied by its order, with :math:`q` the
    `bias_stiffness` and :math:`v` the variance of the values (for a gain, relative to their squared mean). It is
    estimated on every second voxel of the scan, lightly smoothed, in iterations of its own. Then it is kept, and the
    mixture is fitted to the corrected scan.

    *Partial volume.* A voxel may contain the fraction :math:`t` of class :math:`a` and the rest of class :math:`b`,
    at `mixed_levels` equally spaced and equally likely values of :math:`t`, with the distribution
    :math:`\mathcal{N}(t \mu_a + (1 - t) \mu_b,\ t \Sigma_a + (1 - t) \Sigma_b)`. The contributions of :math:`a` and
    :math:`b` are hidden variables of the expectation step [3]_. The share of each pair is estimated. Where a prior is
    given, one share of all mixed voxels is estimated, and a pair has a prior proportional to :math:`\pi_{na}
    \pi_{nb}`.

    *Outliers.* In the maximisation :math:`\gamma_{ng}` is multiplied by :math:`1 / (1 + \exp((d_{ng}^2 - \kappa^2) /
    2))`, with :math:`d` the Mahalanobis distance and :math:`\kappa` the `outlier_distance`, as if each class had
    rejected voxels of constant density [4]_.

    *Relaxation.* After convergence :math:`\pi_{nk}` becomes :math:`(1 - r)` times the given prior plus :math:`r`
    times the fractions smoothed over the region, and the iteration continues [5]_; this is repeated a few times.

    Without outliers, relaxation and field the log-likelihood never falls.

    Parameters
    ----------
    values : (N, C) float
        Intensities of the region's voxels, in the order of ``array[inside]``. A `gain` needs values above 0.
    classes : int, optional
        Number of classes K. Default: the number of columns of `prior` or `start`, or 3 without them.
    prior : (N, K) float, optional
        Probability of each class at each voxel. Each row is scaled to sum 1; a row of sum 0 is set to the mean of the
        others. The classes have its order. Without a prior, they ascend in the first modality.
    start : (N, K) float, optional
        Initial memberships, instead of the prior or of k-means.
    inside : (I, J, K) bool, optional
        The region, needed for bias and relaxation.
    gaussians_per_class : int or K of them
        Number of Gaussians of each class.
    mixed : sequence of pairs of int
        Pairs of classes, counted from 0, that a voxel may contain together; each with one Gaussian.
    mixed_levels : int
        Number of fractions t, at least 1.
    bias : str
        `none`, `gain` or `offset`.
    bias_order : int
        Highest total order of the polynomials, at least 1.
    bias_stiffness : float
        q, 0 or more.
    bias_every : int
        Step between voxels along each axis for the estimation of the bias; smaller for small regions.
    bias_smoothing_voxels : float
        Standard deviation of the smoothing inside the region before subsampling, in voxels; 0 for none.
    outlier_distance : float
        Distance, in standard deviations, at which a voxel has half weight; above 0, usually 3. Infinite: equal weights.
    relaxation : float
        r, from 0 (prior as given) to 1.
    relaxation_sigma_voxels : float
        Standard deviation of the smoothing, in voxels along each axis.
    field : callable, optional
        Function of the (N, K) fractions that returns (N, K) increments of the log prior, for example a random field.
    floor : float
        Minimum variance, see `gaussians.estimate`.
    max_iterations : int
        Maximum number of iterations, at least 1.
    tolerance : float
        Settled when the log-likelihood changes by no more than this share of itself (of values scaled to unit
        variance), or of N where that is larger.

    Returns
    -------
    Mixture

    Raises
    ------
    InputError
        The region is empty, values are not finite or all the same, there are more classes than distinct values, a
        class is empty (its prior or start is 0 everywhere), a prior is negative or above 1 or its sum is, or a
        parameter is out of range.

    References
    ----------
    .. [1] Van Leemput et al. (1999), Automated model-based bias field correction of MR images of the brain, IEEE TMI
       18(10):885-896.
    .. [2] Ashburner, Friston (2005), Unified segmentation, NeuroImage 26:839-851.
    .. [3] Van Leemput et al. (2003), A unifying framework for partial volume segmentation of brain MR images, IEEE TMI
       22(1):105-119.
    .. [4] Van Leemput et al. (2001), Automated segmentation of multiple sclerosis lesions by model outlier detection,
       IEEE TMI 20(8):677-688.
    .. [5] Cardoso et al. (2011), LoAd: a locally adaptive cortical segmentation algorithm, NeuroImage 56:1386-1397.
    """
    y = _checked_values(values)
    if not (max_iterations >= 1 and tolerance >= 0 and outlier_distance > 0 and 0 <= relaxation <= 1):
        raise InputError(
            "expected max_iterations of at least 1, tolerance of 0 or more, outlier_distance above 0 and "
            f"relaxation of 0 to 1, got {max_iterations}, {tolerance}, {outlier_distance} and {relaxation}"
        )
    given = None if prior is None else check_prior(prior, len(y))
    count = count_classes(y, classes, given, start)
    components = make_components(count, gaussians_per_class, mixed, mixed_levels)
    if bias not in ("none", "gain", "offset") or bias_stiffness < 0 or bias_smoothing_voxels < 0:
        raise InputError(
            "expected bias none, gain or offset, and its stiffness and smoothing of 0 or more, got "
            f"{bias!r}, {bias_stiffness} and {bias_smoothing_voxels}"
        )
    if (bias != "none" or relaxation > 0) and (inside is None or int(inside.sum()) != len(y)):
        raise InputError(f"inside: expected a region of {len(y)} voxels, which bias and relaxation need")
    if relaxation > 0 and given is None:
        raise InputError("relaxation: expected a prior to relax, got none")
    logarithm = np.zeros_like(y)
    if bias != "none" and inside is not None:
        part = _lattice(inside, bias_every)
        if any(not np.asarray(a)[part[inside]].any(axis=0).all() for a in (given, start) if a is not None):
            part = inside  # a class lies between the planes
        rows = part[inside]
        seen = y if rows.all() else _smooth(y, inside, bias_smoothing_voxels)[rows]
        some = None if given is None else given[rows]
        begun = initialise(
            seen, components, some, None if start is None else np.asarray(start)[rows], floor, outlier_distance
        )
        polynomials = Polynomials.over(inside, bias_order, sampled=part)
        begun.update_bias(polynomials, gain=bias == "gain", stiffness=bias_stiffness)
        begun.update_parameters(mixed, outlier_distance, max_iterations, tolerance)
        logarithm = Polynomials.over(inside, bias_order).evaluate(begun.coefficients)
    corrected = y * np.exp(-logarithm) if bias == "gain" else y - logarithm
    model = initialise(corrected, components, given, start, floor, outlier_distance)
    found, history, settled = model.update_parameters(mixed, outlier_distance, max_iterations, tolerance, field)
    for _ in range(RELAXATIONS if relaxation > 0 else 0):
        assert given is not None and inside is not None
        before = found.fractions
        smooth = _smooth(before, inside, relaxation_sigma_voxels)
        model.prior = (1 - relaxation) * given + relaxation * smooth / smooth.sum(axis=1, keepdims=True)
        found, history, settled = model.update_parameters(
            mixed, outlier_distance, max_iterations, tolerance, field, before
        )
        if np.abs(found.fractions - before).mean() < RELAXED:
            break
    of_class, inner, pairs = model.count_masses(found, len(mixed))
    return Mixture(
        found.fractions,
        model.pure,
        components.of_class,
        inner,
        np.concatenate((of_class, pairs)) / len(y),
        np.exp(logarithm) if bias == "gain" else logarithm,
        corrected,
        found.typicality,
        tuple(history),
        settled,
    )


def _lattice(inside: Bool, every: int) -> Bool:
    """The voxels of the region on every so many planes; more of them where fewer than `LEAST` would be left."""
    if every < 1:
        raise InputError(f"every: expected 1 (all voxels) or more, got {every}")
    out = np.zeros_like(inside)
    while every > 1 and inside[::every, ::every, ::every].sum() < LEAST:
        every -= 1
    out[::every, ::every, ::every] = inside[::every, ::every, ::every]
    return out


def _smooth(values: Float64, inside: Bool, sigma_voxels: float) -> Float64:
    """(N, C) Gaussian means over the region, of what lies in it."""
    if not sigma_voxels > 0:
        return values
    weight = gaussian_filter(inside.astype(np.float64), sigma_voxels, mode="constant")[inside]
    volume = np.zeros(inside.shape)
    out = np.empty_like(values)
    for c in range(values.shape[1]):
        volume[inside] = values[:, c]
        out[:, c] = gaussian_filter(volume, sigma_voxels, mode="constant")[inside] / weight
    return out


def _checked_values(values: NDArray[np.floating[Any]]) -> Float64:
    y = np.ascontiguousarray(values, dtype=np.float64)
    if y.ndim != 2 or not y.size:
        raise InputError(
            f"values: expected shape (N, C) with at least one voxel, got {y.shape}. Check whether the mask is empty"
        )
    if not np.isfinite(y).all():
        raise InputError(
            f"values: expected finite intensities, got {int((~np.isfinite(y)).sum())} that are NaN or infinite"
        )
    if len(y) > 1 and (y == y[0]).all():
        raise InputError(f"values: expected different intensities, got {y[0].tolist()} at all {len(y)} voxels")
    return y
