"""Gaussians of the classes: mean and covariance of the intensities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

from atlasseg.errors import InputError
from atlasseg.threads import run_slices
from atlasseg.volume import Float64, Int64

__all__ = ["Gaussians", "estimate", "log_density", "split"]

VARIANCE_FLOOR = 1e-6
"""Minimum variance of a class, as a fraction of the variance of all values."""
CHUNK = 8192
"""Number of rows of a partial sum. The sums do not depend on the number of threads."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """One Gaussian for each of K classes in C modalities.

    Parameters
    ----------
    means : (K, C) float64
        Means, in the units of the values.
    covariances : (K, C, C) float64
        Covariances, symmetric and positive definite, in the square of these units.
    """

    means: Float64
    covariances: Float64

    @property
    def whitening(self) -> Float64:
        """(K, C, C) lower triangular W with ``W covariance W' = I``."""
        return np.asarray(np.linalg.inv(np.linalg.cholesky(self.covariances)))

    @property
    def log_scale(self) -> Float64:
        """(K,) log density at the mean, ``-(C log 2 pi + log det covariance) / 2``."""
        channels = self.means.shape[1]
        return np.asarray(-0.5 * (channels * np.log(2 * np.pi) + np.linalg.slogdet(self.covariances)[1]))


def estimate(
    values: NDArray[np.floating[Any]],
    weights: NDArray[np.floating[Any]],
    *,
    floor: float = VARIANCE_FLOOR,
    before: Gaussians | None = None,
) -> Gaussians:
    r"""Estimate Gaussians from weighted values by maximum likelihood.

    .. math::

        \mu_k = \frac{\sum_n w_{nk} x_n}{\sum_n w_{nk}}, \qquad
        \Sigma_k = \frac{\sum_n w_{nk} (x_n - \mu_k)(x_n - \mu_k)^{\top}}{\sum_n w_{nk}}

    No variance is below `floor` times the (weighted) variance of all values: with each modality scaled to unit
    variance, smaller eigenvalues of a covariance are raised to `floor`. This is the maximum likelihood covariance
    under that bound. A constant modality is treated as if its standard deviation were 1e-6 of its mean
    (1 if the mean is 0).

    Parameters
    ----------
    values : (N, C) float
        Intensities, finite.
    weights : (N, K) float
        Weight of each voxel in each class, 0 or more.
    floor : float
        Minimum variance, as a fraction of the variance of all values, above 0.
    before : Gaussians, optional
        Gaussians of the classes without weight.

    Returns
    -------
    Gaussians

    Raises
    ------
    InputError
        Shapes do not fit, or a class has no weight and there is no `before`. The message counts classes from 1.

    Examples
    --------
    >>> import numpy as np
    >>> estimate(np.array([[1.0], [3.0], [9.0]]), np.array([[1, 0], [1, 0], [0, 1.0]])).means
    array([[2.], [9.]])
    """
    if values.ndim != 2 or weights.ndim != 2 or len(values) != len(weights) or not len(values):
        raise InputError(f"expected values (N, C) and weights (N, K), got {values.shape} and {weights.shape}")
    centre = values.mean(axis=0, dtype=np.float64)
    mass, first, second = moments(values, weights, centre)
    return from_moments(mass, first, second, centre, floor=floor, before=before)


def moments(
    values: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]], centre: Float64
) -> tuple[Float64, Float64, Float64]:
    """Sum w_nk (K,), w_nk (x_n - c) (K, C) and w_nk (x_n - c)(x_n - c)' (K, C, C) with c = `centre` (C,)."""
    chunks = -(-len(values) // CHUNK)
    packed = np.zeros((chunks, weights.shape[1], count_moments(values.shape[1])))
    run_slices(_add_moments, chunks, np.ascontiguousarray(values), np.ascontiguousarray(weights), centre, packed)
    return unpack_moments(packed.sum(axis=0), values.shape[1])


def count_moments(channels: int) -> int:
    """Count the sums that `unpack_moments` takes of each class: mass, first and second moments."""
    return 1 + channels + channels * (channels + 1) // 2


def unpack_moments(packed: Float64, channels: int) -> tuple[Float64, Float64, Float64]:
    """Unpack (K, 1 + C + C (C + 1) / 2) sums into the three arrays of `moments`."""
    row, column = np.tril_indices(channels)
    second = np.empty((len(packed), channels, channels))
    second[:, row, column] = second[:, column, row] = packed[:, 1 + channels :]
    return packed[:, 0], packed[:, 1 : 1 + channels], second


def from_moments(
    mass: Float64,
    first: Float64,
    second: Float64,
    centre: Float64,
    *,
    floor: float = VARIANCE_FLOOR,
    before: Gaussians | None = None,
) -> Gaussians:
    """Compute Gaussians from the sums of `moments`, see `estimate`."""
    empty = ~(mass > 0)
    if empty.any() and before is None:
        raise InputError(f"class {int(np.flatnonzero(empty)[0]) + 1} of {mass.size} is empty: no voxel belongs to it")
    total = max(float(mass.sum()), np.finfo(float).tiny)
    variance = np.einsum("kcc->c", second) / total - (first.sum(axis=0) / total) ** 2
    some = np.where(empty, 1, mass)[:, None]
    offset = first / some
    means = centre + offset
    covariances = second / some[..., None] - offset[:, :, None] * offset[:, None, :]
    if before is not None:
        means[empty], covariances[empty] = before.means[empty], before.covariances[empty]
    return Gaussians(means, regularise(covariances, variance, centre, floor))


def regularise(covariances: Float64, variance: Float64, centre: Float64, floor: float) -> Float64:
    """Raise variances of (K, C, C) covariances to `floor` times the (C,) `variance` of all values, see `estimate`."""
    least = (1e-6 * np.where(centre == 0, 1, np.abs(centre))) ** 2
    scale = np.sqrt(np.where(variance > least, variance, least))
    eigenvalues, vectors = np.linalg.eigh(covariances / np.outer(scale, scale))
    raised = np.einsum("kij,kj,klj->kil", vectors, np.maximum(eigenvalues, floor), vectors) * np.outer(scale, scale)
    low = eigenvalues.min(axis=1) < floor
    return np.where(low[:, None, None], raised, covariances)


def split(of_classes: Gaussians, of_class: Int64) -> Gaussians:
    """Split the Gaussian of each class into several, at the centres of equal shares along its first principal axis.

    Parameters
    ----------
    of_classes : Gaussians
        One Gaussian per class.
    of_class : (Q,) int64
        Class of each Gaussian of the result, ascending.

    Returns
    -------
    Gaussians
        One Gaussian per element of `of_class`.
    """
    means, covariances = of_classes.means[of_class], of_classes.covariances[of_class]
    for k, count in enumerate(np.bincount(of_class)):
        if count > 1:
            values, vectors = np.linalg.eigh(of_classes.covariances[k])
            own = of_class == k
            steps = ndtri((np.arange(count) + 0.5) / count)
            means[own] += steps[:, None] * np.sqrt(values[-1]) * vectors[:, -1]
            covariances[own] /= count
    return Gaussians(means, covariances)


def log_density(values: NDArray[np.floating[Any]], gaussians: Gaussians) -> NDArray[np.floating[Any]]:
    """Compute the log density of each class at each voxel.

    Parameters
    ----------
    values : (N, C) float32 or float64
        Intensities.
    gaussians : Gaussians
        Of K classes in C modalities.

    Returns
    -------
    (N, K)
        Log densities in the type of `values`; computed in float64.

    Raises
    ------
    InputError
        Values and Gaussians differ in the number of modalities.
    """
    if values.ndim != 2 or values.shape[1] != gaussians.means.shape[1]:
        raise InputError(f"expected {gaussians.means.shape[1]} modalities, got values of shape {values.shape}")
    values = np.ascontiguousarray(values)
    out = np.empty((len(values), len(gaussians.means)), values.dtype)
    given = values, gaussians.means, gaussians.whitening, gaussians.log_scale
    run_slices(_log_density, len(values), *given, out)
    return out


@njit(cache=True, nogil=True)
def _add_moments(start, stop, values, weights, centre, out):  # type: ignore[no-untyped-def]
    """Add the sums of each chunk of rows to (chunks, K, 1 + C + C (C + 1) / 2) `out`."""
    number, channels = values.shape
    classes = weights.shape[1]
    for chunk in range(start, stop):
        apart = np.empty(channels)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, number)):
            for c in range(channels):
                apart[c] = values[n, c] - centre[c]
            for k in range(classes):
                weight = weights[n, k]
                if weight == 0:
                    continue
                out[chunk, k, 0] += weight
                at = 1 + channels
                for c in range(channels):
                    along = weight * apart[c]
                    out[chunk, k, 1 + c] += along
                    for d in range(c + 1):
                        out[chunk, k, at] += along * apart[d]
                        at += 1


@njit(cache=True, nogil=True)
def _log_density(start, stop, values, means, whitening, log_scale, out):  # type: ignore[no-untyped-def]
    channels = values.shape[1]
    classes = means.shape[0]
    for n in range(start, stop):
        for k in range(classes):
            square = 0.0
            for c in range(channels):
                z = 0.0
                for d in range(c + 1):
                    z += whitening[k, c, d] * (values[n, d] - means[k, d])
                square += z * z
            out[n, k] = log_scale[k] - 0.5 * square
