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
"""The prior is relaxed at most so often, and no more once the fractions move by less than `RELAXED` in the mean."""
RELAXED = 1e-3

LEAST = 5000
"""Voxels that the bias is estimated on, if there are as many."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture of K classes on N voxels of C modalities.

    Parameters
    ----------
    fractions : (N, K) float64
        Expected part of each class in each voxel; sums to 1. Without mixed classes, the posterior probability.
    gaussians : Gaussians
        Of the Q components, class by class, in corrected intensities.
    of_class : (Q,) int64
        Class of each component.
    shares : (Q,) float64
        Share of each component in its class; sums to 1 in each class.
    weights : (K + P,) float64
        Share of all voxels that each class has, then each pair of classes that voxels are mixed of.
    bias : (N, C) float64
        What intensities are divided by (`gain`, whose logarithm has mean 0), or less by (`offset`, of mean 0).
    corrected : (N, C) float64
        The intensities without bias.
    typicality : (N,) float64
        1 for a voxel like its classes, toward 0 for an outlier; 1 everywhere unless outliers are looked for.
    log_likelihoods : tuple of float
        Before each iteration and at the end, of all voxels.
    converged : bool
        Whether it settled before the last iteration allowed.
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
        """(N,) class of the largest fraction, 0 to K - 1; on a tie the first."""
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
        Intensities of the region's voxels, in the order of ``array[inside]``; above 0 for a `gain` to mean anything.
    classes : int, optional
        K, if neither `prior` nor `start` says it; 3 if nothing does.
    prior : (N, K) float, optional
        Probability of each class at each voxel. Each row is scaled to sum 1; a row of sum 0 takes the mean of the
        others. The classes keep its order; without, they ascend in the first modality.
    start : (N, K) float, optional
        Where to start, instead of the prior, or of k-means.
    inside : (I, J, K) bool, optional
        The region, for bias and relaxation.
    gaussians_per_class : int or K of them
        How many Gaussians make up each class.
    mixed : sequence of pairs of int
        Classes, from 0, of which voxels may be mixed; of one Gaussian each.
    mixed_levels : int
        Parts that are told apart, at least 1.
    bias : str
        `none`, `gain` or `offset`.
    bias_order : int
        Highest total order of the polynomials, at least 1.
    bias_stiffness : float
        q, 0 or more.
    bias_every : int
        The bias is estimated on every so many voxels along each axis (fewer where hardly any would be left).
    bias_smoothing_voxels : float
        Standard deviation of the smoothing inside the region before voxels are left out, in voxels; 0 for none.
    outlier_distance : float
        Standard deviations from which a voxel counts less than half, above 0 (3 is usual); infinite: all count.
    relaxation : float
        r, from 0 (prior as given) to 1.
    relaxation_sigma_voxels : float
        Standard deviation of the smoothing, in voxels along each axis.
    field : callable, optional
        From the (N, K) fractions to (N, K) increments of the log prior, called before each iteration but the first.
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
