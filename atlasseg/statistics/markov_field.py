"""Hidden Markov random field: the class of a voxel depends on the classes of its neighbours in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics import belief_propagation, graph_cut, icm, kmeans, mean_field
from atlasseg.statistics._field import Field
from atlasseg.statistics._field import dense_field as dense_field
from atlasseg.statistics.gaussian_mixture import check_prior
from atlasseg.statistics.gaussians import VARIANCE_FLOOR, Gaussians, estimate, log_density
from atlasseg.volume import Bool, Float64, Int64

__all__ = ["FieldFit", "fit", "solve_field"]

Solver = Literal["mean_field", "belief_propagation", "icm", "graph_cut"]
SOLVERS = ("mean_field", "belief_propagation", "icm", "graph_cut")

LEAST_PRIOR = 1e-9
"""Minimum prior, so that costs are finite."""


@dataclass(frozen=True, eq=False)
class FieldFit:
    """A fitted field of K classes on N voxels of C modalities.

    Parameters
    ----------
    posterior : (N, K) float64
        Probability of each class by the solver; for `icm` and `graph_cut`, given the labels of the neighbours.
    gaussians : Gaussians
        Gaussian of each class.
    free_energies : tuple of float
        Free energy after the expectation step of each iteration; with mean field it never rises.
    converged : bool
        Whether the fit converged within `max_iterations`.
    """

    posterior: Float64
    gaussians: Gaussians
    free_energies: tuple[float, ...]
    converged: bool

    @property
    def classes(self) -> Int64:
        """(N,) class of the largest posterior, 0 to K - 1; in a tie the first."""
        return np.asarray(self.posterior.argmax(axis=1))


def solve_field(field: Field, solver: Solver, start: Float64) -> Float64:
    """Compute the probabilities of a field's slots by a solver.

    `icm` and `graph_cut` give labels; the result is then the conditional probability of each label given the labels
    of the neighbours.

    Parameters
    ----------
    field : Field
        The Markov random field.
    solver : str
        `mean_field`, `belief_propagation`, `icm` or `graph_cut`.
    start : (S,) float64
        Initial probabilities, used by `mean_field` and `icm`.

    Returns
    -------
    (S,) float64
        Probabilities; the sum at a voxel is 1.

    Raises
    ------
    InputError
        The solver is unknown.
    """
    if solver == "mean_field":
        return mean_field.solve(field, start=start).values
    if solver == "belief_propagation":
        return belief_propagation.solve(field).values
    if solver == "icm":
        return field.conditional(icm.solve(field, start=field.best(start)).chosen)
    if solver == "graph_cut":
        return field.conditional(graph_cut.solve(field).chosen)
    raise InputError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}")


def fit(
    values: NDArray[np.floating[Any]],
    inside: Bool,
    edges_mm: Float64,
    *,
    classes: int | None = None,
    prior: NDArray[np.floating[Any]] | None = None,
    beta: float = 0.2,
    neighbours: Literal[6, 26] = 26,
    interaction: Float64 | None = None,
    solver: Solver = "mean_field",
    floor: float = VARIANCE_FLOOR,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> FieldFit:
    r"""Fit the Gaussians and labels of a Markov random field by expectation maximisation ([1]_; energy of [2]_).

    .. math::

        E(x) = \sum_n \left( -\log f_{x_n}(y_n) - \log p_n(x_n) \right)
        + \beta \sum_{n \sim m} \frac{d_{\min}}{d_{nm}} V(x_n, x_m)

    Each iteration makes one sweep of mean field and then computes the maximum likelihood Gaussians. The free energy
    of independent voxels and parameters never rises. Then the solver computes the labels with the last Gaussians.

    Parameters
    ----------
    values : (N, C) float
        Intensities of the region's voxels, in the order of ``array[inside]``.
    inside : (I, J, K) bool
        The region.
    edges_mm : (3, 3) float64
        Edges of a voxel as columns: ``affine[:3, :3]``.
    classes : int, optional
        Number of classes K. Default: the number of columns of `prior`, or 3 without it.
    prior : (N, K) float, optional
        Probability of each class at each voxel. The classes have its order.
    beta : float
        Strength of the field, 0 or more.
    neighbours : int
        Neighbourhood: 6 (shared face) or 26 (shared face, edge or corner).
    interaction : (K, K) float64, optional
        V. Default: Potts.
    solver : str
        `mean_field`, `belief_propagation`, `icm` or `graph_cut`.
    floor : float
        Minimum variance, see `gaussians.estimate`.
    max_iterations : int
        Maximum number of iterations, at least 1.
    tolerance : float
        Stop when no probability changes by more.

    Returns
    -------
    FieldFit

    Raises
    ------
    InputError
        The region is empty or does not fit the values, values are not finite, there are more classes than distinct
        values, the prior is invalid, or a parameter is out of range.

    References
    ----------
    .. [1] Zhang, Brady, Smith (2001), Segmentation of brain MR images through a hidden Markov random field model and
       the expectation-maximization algorithm, IEEE TMI 20(1):45-57.
    .. [2] Scherrer et al. (2009), Distributed local MRF models for tissue and structure brain segmentation, IEEE TMI
       28(8):1278-1295.
    """
    y, log_prior, beliefs = initialise(values, inside, classes, prior)
    if solver not in SOLVERS or max_iterations < 1:
        raise InputError(
            f"expected a solver of {', '.join(SOLVERS)} and max_iterations of at least 1, got {solver!r} and "
            f"{max_iterations}"
        )
    field = dense_field(-log_prior, inside, edges_mm, beta=beta, neighbours=neighbours, interaction=interaction)
    gaussians = estimate(y, beliefs, floor=floor)
    flat = np.ascontiguousarray(beliefs).reshape(-1)
    history: list[float] = []
    settled = False
    for _ in range(max_iterations):
        field = field.with_unary(-log_density(y, gaussians) - log_prior)
        settled = mean_field.iterate(field, flat) <= tolerance
        history.append(field.free_energy(flat))
        if settled:
            break
        gaussians = estimate(y, flat.reshape(beliefs.shape), floor=floor, before=gaussians)
    field = field.with_unary(-log_density(y, gaussians) - log_prior)
    posterior = solve_field(field, solver, flat).reshape(beliefs.shape)
    return FieldFit(posterior, gaussians, tuple(history), settled)


def initialise(
    values: NDArray[np.floating[Any]], inside: Bool, classes: int | None, prior: NDArray[np.floating[Any]] | None
) -> tuple[Float64, Float64, Float64]:
    """Check the values (N, C), and compute log prior and initial memberships (N, K).

    Raises
    ------
    InputError
        See `fit`.
    """
    y = np.ascontiguousarray(values, dtype=np.float64)
    if not inside.any():
        raise InputError("region: expected at least one voxel, got none. Check whether the mask is empty.")
    if y.ndim != 2 or len(y) != int(inside.sum()):
        raise InputError(f"expected values (N, C) of the region's {int(inside.sum())} voxels, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError(
            f"values: expected finite intensities, got {int((~np.isfinite(y)).sum())} that are NaN or infinite"
        )
    if prior is None:
        number = 3 if classes is None else classes
        beliefs = np.eye(number)[kmeans.cluster(y, classes=number).assigned]
        return y, np.zeros_like(beliefs), beliefs
    given = check_prior(prior, len(y))
    number = given.shape[1]
    if classes is not None and classes != number:
        raise InputError(f"expected a prior of {classes} classes, got {number}")
    if number > 1 and number > (distinct := len(np.unique(y, axis=0))):
        raise InputError(f"classes: expected at most {distinct}, the number of distinct values, got {number}")
    return y, np.log(np.maximum(given, LEAST_PRIOR)), given
