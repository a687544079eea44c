"""LOCUS: a Markov random field whose class intensities belong to cubes, with a Markov prior between adjacent cubes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from atlasseg.errors import InputError
from atlasseg.statistics import markov_field, mean_field
from atlasseg.statistics._field import dense_field
from atlasseg.statistics.gaussians import VARIANCE_FLOOR, Gaussians
from atlasseg.statistics.markov_field import Solver, initialise, solve_field
from atlasseg.volume import Bool, Float64, Int64

__all__ = ["LocalFit", "fit"]

Interpolation = Literal["cubic", "constant"]


@dataclass(frozen=True, eq=False)
class LocalFit:
    """Fitted field of K classes on N voxels of C modalities, with Gaussians in A x B x D cubes.

    Parameters
    ----------
    posterior : (N, K) float64
        Probability of each class.
    means : (A, B, D, K, C) float64
        Mean of each class in each cube.
    covariances : (A, B, D, K, C, C) float64
        Covariance of each class in each cube.
    centres_voxels : (A, B, D, 3) float64
        Centres of the cubes.
    objective : tuple of float
        Free energy minus the log prior of the parameters after each iteration; with `constant` interpolation it
        never rises.
    converged : bool
        Whether the fit converged within `max_iterations`.
    """

    posterior: Float64
    means: Float64
    covariances: Float64
    centres_voxels: Float64
    objective: tuple[float, ...]
    converged: bool

    @property
    def classes(self) -> Int64:
        """(N,) class of the largest posterior, 0 to K - 1; in a tie the first."""
        return np.asarray(self.posterior.argmax(axis=1))


def fit(
    values: NDArray[np.floating[Any]],
    inside: Bool,
    edges_mm: Float64,
    *,
    classes: int | None = None,
    prior: NDArray[np.floating[Any]] | None = None,
    side_mm: float = 20.0,
    tie: float = 1.0,
    interpolation: Interpolation = "cubic",
    beta: float = 0.2,
    neighbours: Literal[6, 26] = 26,
    solver: Solver = "mean_field",
    floor: float = VARIANCE_FLOOR,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> LocalFit:
    r"""Fit the tissue model of LOCUS: local intensities, a field of labels, and a Markov prior on the parameters.

    The box of the region is partitioned into cubes :math:`V_c` of `side_mm` ([1]_, [2]_). Class :math:`k` has a mean
    :math:`\mu_c^k` and a precision matrix :math:`\Lambda_c^k` in each cube. Labels :math:`t` and parameters have the
    joint posterior

    .. math::

        p(t, \mu, \Lambda \mid y) \propto \prod_i \pi_i(t_i) \, \mathcal{N}(y_i;\, \mu_i^{t_i}, \Lambda_i^{t_i})
        \; \exp\Big( -\sum_{i \sim j} w_{ij} [t_i \neq t_j] \Big) \; p(\mu) \, p(\Lambda)

    where :math:`\mu_i, \Lambda_i` are the parameters at voxel :math:`i` and :math:`w` are the weights of the field
    (`markov_field.fit`), which also joins voxels of different cubes. The prior of the means is an intrinsic Gaussian
    Markov random field over cubes that share a face, that of the precisions a Wishart distribution (a gamma
    distribution for one modality) around the precision of the whole region ([2]_):

    .. math::

        p(\mu^k) &\propto \exp\Big( -\frac{\tau n}{12} \sum_{c \sim d}
        (\mu_c^k - \mu_d^k)^{\top} \Lambda_g^k (\mu_c^k - \mu_d^k) \Big) \\
        p(\Lambda_c^k) &\propto |\Lambda_c^k|^{\tau n / 2}
        \exp\Big( -\frac{\tau n}{2} \operatorname{tr}(\Sigma_g^k \Lambda_c^k) \Big)

    with :math:`\tau` = `tie`, :math:`n` the number of voxels of a whole cube, and
    :math:`\Sigma_g^k = (\Lambda_g^k)^{-1}` the covariance that `markov_field.fit` finds for the whole region. Given
    the others, a mean has the precision :math:`\tau n \Lambda_g^k` where a cube has six neighbours.

    The posterior is maximised in alternation. Mean field gives :math:`q_i(k)`. Then, with
    :math:`N_c^k = \sum_{i \in V_c} q_i(k)` and :math:`\partial c` the cubes adjacent to :math:`c`, each cube is
    updated:

    .. math::

        \mu_c^k &= \Big( N_c^k \Lambda_c^k + \frac{\tau n |\partial c|}{6} \Lambda_g^k \Big)^{-1}
        \Big( \Lambda_c^k \sum_{i \in V_c} q_i(k) \, y_i + \frac{\tau n}{6} \Lambda_g^k
        \sum_{d \in \partial c} \mu_d^k \Big) \\
        \Sigma_c^k &= \frac{\sum_{i \in V_c} q_i(k) (y_i - \mu_c^k)(y_i - \mu_c^k)^{\top} + \tau n \Sigma_g^k}
        {N_c^k + \tau n}

    The mean of a class that a cube does not contain follows from the adjacent cubes. With ``cubic`` interpolation the
    field uses at each voxel the means, and the logarithms of the covariances, interpolated between the centres of the
    cubes by cubic splines [2]_: intensities change smoothly within a cube too, and no bias field is needed.

    This is the tissue model only. The published method also segments subcortical structures by rules on
    their positions, and couples both segmentations; that part is not implemented.

    Parameters
    ----------
    values, inside, edges_mm, classes, prior, beta, neighbours, solver, floor, max_iterations, tolerance
        See `markov_field.fit`.
    side_mm : float
        Side of a cube, at least two voxels.
    tie : float
        Strength of the prior on the parameters, above 0; 1 is the weight of all voxels of a cube.
    interpolation : str
        Interpolation of the parameters: `cubic`, or `constant` in each cube.

    Returns
    -------
    LocalFit

    Raises
    ------
    InputError
        See `markov_field.fit`; or `side_mm`, `tie` or `interpolation` is out of range.

    References
    ----------
    .. [1] Scherrer, Forbes, Garbay, Dojat (2009), Distributed local MRF models for tissue and structure brain
       segmentation, IEEE TMI 28(8):1278-1295.
    .. [2] Scherrer, Forbes, Garbay, Dojat (2008), Fully Bayesian joint model for MR brain scan tissue and structure
       segmentation, MICCAI, LNCS 5242:1066-1074.
    """
    spacing = np.linalg.norm(edges_mm, axis=0)
    if not (np.isfinite(side_mm) and side_mm >= 2 * spacing.max()):
        raise InputError(f"side_mm: expected at least two voxels, {2 * spacing.max():g} mm, got {side_mm}")
    if not (np.isfinite(tie) and tie > 0):
        raise InputError(f"tie: expected a number above 0, got {tie}")
    if interpolation not in ("cubic", "constant"):
        raise InputError(f"interpolation: expected cubic or constant, got {interpolation!r}")
    y, log_prior, _ = initialise(values, inside, classes, prior)
    whole = markov_field.fit(
        values, inside, edges_mm, classes=classes, prior=prior, beta=beta, neighbours=neighbours, solver=solver,
        floor=floor, max_iterations=max_iterations, tolerance=tolerance,
    )  # fmt: skip
    cubes = partition(inside, side_mm / spacing)
    field = dense_field(-log_prior, inside, edges_mm, beta=beta, neighbours=neighbours)
    local = _LocalGaussians(y, cubes, whole.gaussians, tie * float(np.prod(side_mm / spacing)))
    flat = np.ascontiguousarray(whole.posterior).reshape(-1)
    history: list[float] = []
    settled = False
    for _ in range(max_iterations):
        local.update(flat.reshape(log_prior.shape))
        field = field.with_unary(-local.log_density(interpolation) - log_prior)
        settled = mean_field.iterate(field, flat) <= tolerance
        history.append(field.free_energy(flat) + local.penalty())
        if settled:
            break
    posterior = solve_field(field, solver, flat).reshape(log_prior.shape)
    return LocalFit(
        posterior, local.offsets + local.centre, local.covariances, cubes.centres_voxels, tuple(history), settled
    )


@dataclass(frozen=True, eq=False)
class Cubes:
    """A partition of a region's box into equal cubes.

    Parameters
    ----------
    shape : (A, B, D)
        Number of cubes along each axis, at least 1.
    of_voxel : (N,) int64
        Flat index of the cube of each voxel, in the order of ``argwhere(inside)``.
    place : (N, 3) float64
        Position of each voxel, in cubes from the centre of the first.
    centres_voxels : (A, B, D, 3) float64
        Centres of the cubes, in voxels.
    """

    shape: tuple[int, int, int]
    of_voxel: Int64
    place: Float64
    centres_voxels: Float64


def partition(inside: Bool, side_voxels: Float64) -> Cubes:
    """Cover the bounding box of a region by as few cubes as possible, centred on it."""
    at = np.argwhere(inside)
    low, high = at.min(axis=0), at.max(axis=0)
    count = np.maximum(np.ceil((high - low + 1) / side_voxels - 1e-9).astype(int), 1)
    edge = (low + high) / 2 - count * side_voxels / 2
    place = (at - edge) / side_voxels
    index = np.clip(np.floor(place).astype(int), 0, count - 1)
    shape = (int(count[0]), int(count[1]), int(count[2]))
    centres = edge + (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * side_voxels
    return Cubes(shape, np.ravel_multi_index(tuple(index.T), shape).astype(np.int64), place - 0.5, centres)


class _LocalGaussians:
    """Means and covariances of each class in each cube, under their prior; means are relative to `centre`."""

    def __init__(self, values: Float64, cubes: Cubes, whole: Gaussians, strength: float) -> None:
        self._cubes = cubes
        self._strength = strength  # weight of the prior in voxels
        self._coupling = strength / 6
        self.centre: Float64 = values.mean(axis=0)
        self._values = values - self.centre
        self._covariance = whole.covariances
        self._precision: Float64 = np.asarray(np.linalg.inv(whole.covariances), np.float64)
        self.offsets: Float64 = np.broadcast_to(whole.means - self.centre, (*cubes.shape, *whole.means.shape)).copy()
        self.covariances: Float64 = np.broadcast_to(whole.covariances, (*cubes.shape, *whole.covariances.shape)).copy()
        self._adjacent = _sum_neighbours(np.ones(cubes.shape))
        self._colour = np.indices(cubes.shape).sum(axis=0) % 2

    def update(self, weights: Float64) -> None:
        """Maximise over the means, one colour of the checkerboard of cubes after the other; then over covariances."""
        mass, first, second = self._moments(weights)
        precision = np.linalg.inv(self.covariances)
        own = mass[..., None, None] * precision
        tied = self._coupling * self._adjacent[..., None, None, None] * self._precision
        alone = (mass <= 0)[..., None, None] & (self._adjacent == 0)[..., None, None, None]
        system = own + tied + np.where(alone, self._precision, 0)
        drawn = np.einsum("...cd,...d->...c", precision, first)
        for colour in (0, 1):
            around = self._coupling * _sum_neighbours(self.offsets) + np.where(alone[..., 0], self.offsets, 0)
            right = drawn + np.einsum("kcd,...kd->...kc", self._precision, around)
            found = np.linalg.solve(system, right[..., None])[..., 0]
            on = self._colour == colour
            self.offsets[on] = found[on]
        outer = self.offsets[..., :, None] * first[..., None, :]
        scatter = second - outer - np.swapaxes(outer, -1, -2)
        scatter = scatter + mass[..., None, None] * self.offsets[..., :, None] * self.offsets[..., None, :]
        self.covariances = (scatter + self._strength * self._covariance) / (mass + self._strength)[..., None, None]

    def log_density(self, interpolation: Interpolation) -> Float64:
        """(N, K) log density of each voxel's values, with the parameters of its cube or interpolated between cubes."""
        values, vectors = np.linalg.eigh(self.covariances)
        logarithms = np.einsum("...cj,...j,...dj->...cd", vectors, np.log(values), vectors)
        channels = self._values.shape[1]
        out = np.empty((len(self._values), self.offsets.shape[-2]))
        for k in range(out.shape[1]):
            apart = np.empty_like(self._values)
            logs = np.empty((*self._values.shape, channels))
            for c in range(channels):
                apart[:, c] = self._values[:, c] - self._at_voxels(self.offsets[..., k, c], interpolation)
                for d in range(c + 1):
                    logs[:, c, d] = logs[:, d, c] = self._at_voxels(logarithms[..., k, c, d], interpolation)
            if channels == 1:
                square = apart[:, 0] ** 2 * np.exp(-logs[:, 0, 0])
            else:
                widths, axes = np.linalg.eigh(logs)
                square = (np.einsum("nc,ncj->nj", apart, axes) ** 2 * np.exp(-widths)).sum(axis=1)
            out[:, k] = -0.5 * (channels * np.log(2 * np.pi) + np.einsum("ncc->n", logs) + square)
        return out

    def penalty(self) -> float:
        """Negative log prior of the parameters, up to a constant."""
        total = 0.0
        for axis in range(3):
            step = np.diff(self.offsets, axis=axis)
            total += self._coupling * float(np.einsum("...kc,kcd,...kd->...", step, self._precision, step).sum())
        log_det = np.linalg.slogdet(self.covariances)[1]
        trace = np.einsum("kcd,...kdc->...k", self._covariance, np.linalg.inv(self.covariances))
        return 0.5 * (total + self._strength * float((log_det + trace).sum()))

    def _at_voxels(self, values: Float64, interpolation: Interpolation) -> Float64:
        if interpolation == "constant":
            return np.asarray(values.reshape(-1)[self._cubes.of_voxel])
        return np.asarray(map_coordinates(values, self._cubes.place.T, order=3, mode="nearest"))

    def _moments(self, weights: Float64) -> tuple[Float64, Float64, Float64]:
        """Sums of q, q y and q y y' in each cube: (A, B, D, K), (A, B, D, K, C) and (A, B, D, K, C, C)."""
        number, channels = int(np.prod(self._cubes.shape)), self._values.shape[1]
        classes = weights.shape[1]
        mass = np.empty((number, classes))
        first, second = np.empty((number, classes, channels)), np.empty((number, classes, channels, channels))

        def sums(each: Float64) -> Float64:
            return np.bincount(self._cubes.of_voxel, each, minlength=number).astype(np.float64)

        for k in range(classes):
            mass[:, k] = sums(weights[:, k])
            for c in range(channels):
                along = weights[:, k] * self._values[:, c]
                first[:, k, c] = sums(along)
                for d in range(c + 1):
                    second[:, k, c, d] = second[:, k, d, c] = sums(along * self._values[:, d])
        shape = self._cubes.shape
        return (
            mass.reshape(*shape, *mass.shape[1:]),
            first.reshape(*shape, *first.shape[1:]),
            second.reshape(*shape, *second.shape[1:]),
        )


def _sum_neighbours(values: Float64) -> Float64:
    """Sum over the adjacent cubes along the first three axes."""
    out = np.zeros_like(values)
    for axis in range(3):
        given, into = np.moveaxis(values, axis, 0), np.moveaxis(out, axis, 0)
        into[1:] += given[:-1]
        into[:-1] += given[1:]
    return out
