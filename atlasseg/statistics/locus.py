"""LOCUS: a Markov random field whose Gaussians change from place to place, in overlapping cubes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.statistics import mean_field
from atlasseg.statistics._field import dense_field
from atlasseg.statistics.gaussians import VARIANCE_FLOOR, Gaussians, estimate, from_moments, log_density, moments
from atlasseg.statistics.markov_field import Solver, begin, solve_field
from atlasseg.volume import Bool, Float64, Int64


@dataclass(frozen=True, eq=False)
class LocalFit:
    """A field of K classes on N voxels whose Gaussians belong to cubes.

    Parameters
    ----------
    posterior : (N, K) float64
        Probability of each class.
    cubes : tuple of Gaussians
        Of each cube that holds voxels of the region.
    centres_voxels : (Q, 3) float64
        Where the cubes' centres lie.
    converged : bool
        Whether it settled before the last iteration allowed.
    """

    posterior: Float64
    cubes: tuple[Gaussians, ...]
    centres_voxels: Float64
    converged: bool

    @property
    def classes(self) -> Int64:
        """(N,) class of the largest posterior, 0 to K - 1; on a tie the first."""
        return np.asarray(self.posterior.argmax(axis=1))


def fit(
    values: NDArray[np.floating[Any]],
    inside: Bool,
    edges_mm: Float64,
    *,
    classes: int | None = None,
    prior: NDArray[np.floating[Any]] | None = None,
    side_mm: float = 40.0,
    tie: float = 0.05,
    beta: float = 0.2,
    neighbours: Literal[6, 26] = 26,
    solver: Solver = "mean_field",
    floor: float = VARIANCE_FLOOR,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
) -> LocalFit:
    """Fit a field with local Gaussians (sections III and IV of [1]_).

    Cubes of `side_mm` overlap by half along each axis. Each has Gaussians of its own; a voxel's log likelihood is the
    mean of those of the (up to eight) cubes that hold it, with weights h that fall linearly from a cube's centre to 0
    at its faces and sum to 1 at every voxel. The labels are one field over the whole region. A cube's Gaussians are the
    most likely ones of its voxels, weighted by h and the labels' probabilities, and of imagined voxels distributed like
    each adjacent cube's Gaussians, `tie` times as many as an average cube has: what a cube has too little of, it takes
    from its neighbours.

    Parameters
    ----------
    values, inside, edges_mm, classes, prior, beta, neighbours, solver, floor, max_iterations, tolerance
        See `markov_field.fit`.
    side_mm : float
        Side of a cube, at least two voxels.
    tie : float
        How strongly adjacent cubes are tied, above 0.

    Raises
    ------
    InputError
        See `markov_field.fit`; or `side_mm` or `tie` is out of its range.

    References
    ----------
    .. [1] Scherrer et al. (2009), Distributed local MRF models for tissue and structure brain segmentation, IEEE TMI
       28(8):1278-1295.
    """
    spacing = np.linalg.norm(edges_mm, axis=0)
    if not (np.isfinite(side_mm) and side_mm >= 2 * spacing.max() and tie > 0 and max_iterations >= 1):
        raise InputError(
            f"cubes need a side of at least two voxels, {2 * spacing.max():g} mm, tie above 0 and max_iterations of at "
            f"least 1, got {side_mm}, {tie} and {max_iterations}"
        )
    y, log_prior, beliefs = begin(values, inside, classes, prior)
    members, shares, centres, adjacent = tile_cubes(inside, side_mm / spacing)
    whole = estimate(y, beliefs, floor=floor)
    cubes = [whole] * len(members)
    field = dense_field(-log_prior, inside, edges_mm, beta=beta, neighbours=neighbours)
    flat = np.ascontiguousarray(beliefs).reshape(-1)
    centre = y.mean(axis=0)
    settled = False

    def unary() -> Float64:
        logs = np.zeros_like(log_prior)
        for rows, share, cube in zip(members, shares, cubes, strict=True):
            logs[rows] += share[:, None] * log_density(y[rows], cube)
        return -logs - log_prior

    for iteration in range(max_iterations):
        if iteration:
            field = field.with_unary(unary())
            settled = mean_field.iterate(field, flat) <= tolerance
        if settled:
            break
        weights = flat.reshape(beliefs.shape)
        imagined = tie * len(y) / len(members) * weights.mean(axis=0)
        fitted = []
        for q, (rows, share) in enumerate(zip(members, shares, strict=True)):
            mass, first, second = moments(y[rows], weights[rows] * share[:, None], centre)
            for other in [cubes[n] for n in adjacent[q]] or [whole]:
                apart = other.means - centre
                mass = mass + imagined
                first = first + imagined[:, None] * apart
                outer = apart[:, :, None] * apart[:, None, :]
                second = second + imagined[:, None, None] * (other.covariances + outer)
            fitted.append(from_moments(mass, first, second, centre, floor=floor, before=cubes[q]))
        cubes = fitted
    posterior = solve_field(field.with_unary(unary()), solver, flat).reshape(beliefs.shape)
    return LocalFit(posterior, tuple(cubes), centres, settled)


def tile_cubes(inside: Bool, side_voxels: Float64) -> tuple[list[Int64], list[Float64], Float64, list[list[int]]]:
    """Overlapping cubes over a region.

    Returns
    -------
    members : list of (n,) int64
        Rows, in the order of ``argwhere(inside)``, that each cube holds.
    shares : list of (n,) float64
        Their weights h; over all cubes they sum to 1 for every row.
    centres : (Q, 3) float64
        In voxels.
    adjacent : list of list of int
        Cubes whose centres are next to each other along one axis.
    """
    at = np.argwhere(inside)
    low, high = at.min(axis=0), at.max(axis=0)
    step = side_voxels / 2
    count = np.maximum(np.ceil((high - low) / step).astype(int), 1) + 1
    origin = (low + high) / 2 - (count - 1) * step / 2
    place = (at - origin) / step
    first = np.clip(np.floor(place).astype(int), 0, count - 2)
    part = place - first
    members: list[Int64] = []
    shares: list[Float64] = []
    numbers: list[tuple[int, ...]] = []
    corners = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    cube = np.concatenate([np.ravel_multi_index(tuple((first + c).T), tuple(count)) for c in corners])
    share = np.concatenate([np.where(c, part, 1 - part).prod(axis=1) for c in corners])
    row = np.tile(np.arange(len(at)), len(corners))
    keep = share > 0
    order = np.argsort(cube[keep], kind="stable")
    cube, share, row = cube[keep][order], share[keep][order], row[keep][order]
    found, begin_ = np.unique(cube, return_index=True)
    for number, rows, weights in zip(found, np.split(row, begin_[1:]), np.split(share, begin_[1:]), strict=True):
        members.append(rows)
        shares.append(weights)
        numbers.append(tuple(int(n) for n in np.unravel_index(number, tuple(count))))
    index = {number: n for n, number in enumerate(numbers)}
    adjacent = [
        [
            index[beside]
            for axis in range(3)
            for s in (-1, 1)
            if (beside := (*number[:axis], number[axis] + s, *number[axis + 1 :])) in index
        ]
        for number in numbers
    ]
    return members, shares, origin + np.array(numbers) * step, adjacent
