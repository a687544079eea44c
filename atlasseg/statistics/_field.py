"""Markov random field: unary costs of the labels at each voxel, and pairwise costs between neighbours.

    E(x) = sum_n u_n(x_n) + sum over neighbours n, m of w_nm V(x_n, x_m)

A voxel has its own list of possible labels (slots), as in a CSR matrix, so memory does not grow with the number of
labels times voxels. The solvers are in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float64, Int32, Int64, LabelWeights

SYMMETRIC = 1e-9
"""Tolerance of the tests for symmetry and for the triangle inequality of an interaction matrix."""


@dataclass(frozen=True, eq=False)
class Field:
    """Markov random field over M voxels.

    Parameters
    ----------
    costs : LabelWeights
        u_n, the cost of each possible label at each of the M voxels. Its S entries are the slots; every voxel
        has at least one. Labels are indices, 0 to L - 1.
    neighbours : (M, D) int32
        The neighbour in each direction, -1 if there is none; direction D - 1 - d is opposite to d.
    weights : (D,) float64
        Weight w of each direction.
    interaction : (L, L) float64
        V: symmetric, 0 on the diagonal, 0 or more elsewhere.
    order : (M,) int64
        The voxels sorted by colour. Voxels of one colour are not neighbours.
    colours : (Q + 1,) int64
        Begin and end of each colour in `order`.
    """

    costs: LabelWeights
    neighbours: Int32
    weights: Float64
    interaction: Float64
    order: Int64
    colours: Int64

    @property
    def slot_voxels(self) -> Int64:
        """(S,) voxel of each slot."""
        return self.costs.places

    def with_unary(self, unary: NDArray[np.floating[Any]]) -> Field:
        """Return the field with other costs, without the contribution of certain neighbours."""
        return replace(self, costs=self.costs.with_values(np.ascontiguousarray(unary, np.float64).reshape(-1)))

    def energy(self, chosen: Int64) -> float:
        """Compute the energy E of a labelling, given as the slot (M,) of each voxel."""
        pairs = np.zeros(len(chosen))
        taken = self.costs.labels[chosen]
        run_slices(_add_pair_energy, len(pairs), taken, self.neighbours, self.weights, self.interaction, pairs)
        return float(self.costs.values[chosen].sum() + pairs.sum() / 2)

    def free_energy(self, beliefs: Float64) -> float:
        """Sum of q u + w q V q + q log q for (S,) q: minimised by mean field; an upper bound of -log sum exp(-E)."""
        pairs = np.zeros(len(self.neighbours))
        given = self.costs.offsets, self.costs.labels, beliefs, self.neighbours, self.weights, self.interaction
        run_slices(_add_expected_pairs, len(pairs), *given, pairs)
        held = beliefs[beliefs > 0]
        return float((beliefs * self.costs.values).sum() + pairs.sum() / 2 + (held * np.log(held)).sum())

    def independent(self) -> Float64:
        """Compute probabilities (S,) exp(-u), scaled to sum 1 at each voxel, without the neighbours."""
        return softmax(-self.costs.values, self.costs.offsets)

    def conditional(self, chosen: Int64) -> Float64:
        """(S,) p(x_n | all other labels), the others as in the (M,) slots `chosen`."""
        cost, taken = self.costs.values.copy(), self.costs.labels[chosen]
        given = self.costs.offsets, self.costs.labels, taken, self.neighbours, self.weights, self.interaction
        run_slices(_add_conditional_cost, len(taken), *given, cost)
        return softmax(-cost, self.costs.offsets)

    def best(self, values: NDArray[np.floating[Any]]) -> Int64:
        """(M,) first slot of the largest of (S,) `values` at each voxel."""
        best = np.empty(len(self.neighbours), np.int64)
        run_slices(_find_best, len(best), np.ascontiguousarray(values), self.costs.offsets, best)
        return best


def field_of_labels(
    costs: LabelWeights,
    voxels: Int64,
    shape: tuple[int, int, int],
    edges_mm: Float64,
    *,
    beta: float,
    neighbours: Literal[6, 26] = 6,
    interaction: Float64 | None = None,
    number_of_labels: int,
    certain: Int32 | None = None,
) -> Field:
    """Make the field over some voxels of a grid.

    Parameters
    ----------
    costs : LabelWeights
        See `Field`.
    voxels : (M,) int64
        Ascending flat (C order) indices.
    shape : (I, J, K)
        Shape of the grid.
    edges_mm : (3, 3) float64
        Edges of a voxel as columns: ``affine[:3, :3]``.
    beta : float
        Strength, 0 or more. The weight of a direction is beta times the length of the shortest edge over the distance
        of the two centres, both in mm.
    neighbours : int
        6 (shared face) or 26 (shared face, edge or corner).
    interaction : (L, L) float64, optional
        V. Default: Potts: 1 between different labels.
    number_of_labels : int
        L.
    certain : (I * J * K,) int32, optional
        Label index of voxels with a known label, -1 elsewhere. Their interaction is added to the costs.

    Raises
    ------
    InputError
        Parameters are out of their range.
    """
    if not np.isfinite(beta) or beta < 0:
        raise InputError(f"beta: expected 0 or more, got {beta}")
    if neighbours not in (6, 26):
        raise InputError(f"neighbours: expected 6 or 26, got {neighbours}")
    if voxels.size == 0:
        raise InputError("voxels: expected at least one, got none. Check whether the mask is empty.")
    apart = check_interaction(interaction, number_of_labels)
    steps = directions(neighbours)
    distance = np.linalg.norm(steps @ np.asarray(edges_mm, np.float64).T, axis=1)
    weights = beta * np.linalg.norm(edges_mm, axis=0).min() / distance
    row = np.full(int(np.prod(shape)), -1, np.int32)
    row[voxels] = np.arange(voxels.size, dtype=np.int32)
    index = np.stack(np.unravel_index(voxels, shape), axis=1).astype(np.int32)
    known = np.zeros(0, np.int32) if certain is None else certain
    table, cost = np.full((len(index), len(steps)), -1, np.int32), np.array(costs.values, np.float64)
    args = costs.offsets, costs.labels, weights, apart
    run_slices(_fill_table, len(index), index, np.array(shape), steps, row, known, *args, table, cost)
    parity = index % 2
    colour = parity.sum(axis=1) % 2 if neighbours == 6 else parity @ np.array([4, 2, 1])
    order = np.argsort(colour, kind="stable")
    bounds = np.searchsorted(colour[order], np.arange(colour.max() + 2))
    return Field(costs.with_values(cost), table, weights, apart, order, np.unique(bounds))


def dense_field(
    unary: NDArray[np.floating[Any]],
    inside: Bool,
    edges_mm: Float64,
    *,
    beta: float,
    neighbours: Literal[6, 26] = 6,
    interaction: Float64 | None = None,
) -> Field:
    """Make the field over a region in which each voxel can have each class.

    Parameters
    ----------
    unary : (M, K) float
        Cost of each class at each voxel, in the order of ``array[inside]``.
    inside : (I, J, K) bool
        The region.
    edges_mm, beta, neighbours, interaction
        See `field_of_labels`.

    Raises
    ------
    InputError
        `unary` does not fit the region, or a parameter is out of range.
    """
    voxels = np.flatnonzero(inside)
    if unary.ndim != 2 or len(unary) != voxels.size:
        raise InputError(f"expected costs (M, K) of the region's {voxels.size} voxels, got shape {unary.shape}")
    count = unary.shape[1]
    costs = LabelWeights(
        np.arange(voxels.size + 1, dtype=np.int64) * count,
        np.tile(np.arange(count, dtype=np.int32), voxels.size),
        np.ascontiguousarray(unary, np.float64).reshape(-1),
    )
    return field_of_labels(
        costs,
        voxels,
        (inside.shape[0], inside.shape[1], inside.shape[2]),
        edges_mm,
        beta=beta,
        neighbours=neighbours,
        interaction=interaction,
        number_of_labels=count,
    )


def check_interaction(interaction: Float64 | None, number_of_labels: int) -> Float64:
    """Check the interaction V (L, L). Default: Potts.

    Raises
    ------
    InputError
        It is not (L, L), finite, symmetric, 0 on its diagonal and not negative.
    """
    if interaction is None:
        return 1.0 - np.eye(number_of_labels)
    given = np.ascontiguousarray(interaction, dtype=np.float64)
    if given.shape != (number_of_labels, number_of_labels):
        raise InputError(f"expected an interaction of shape {(number_of_labels, number_of_labels)}, got {given.shape}")
    off = np.abs(given - given.T).max(initial=0) > SYMMETRIC
    if not np.isfinite(given).all() or off or given.min(initial=0) < 0 or np.diag(given).any():
        raise InputError("interaction: expected finite, symmetric values, 0 on the diagonal and not negative elsewhere")
    return given


def directions(neighbours: int) -> Int64:
    """List the steps (D, 3) to the neighbours; step D - 1 - d is opposite to step d."""
    steps = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    length = np.abs(steps).sum(axis=1)
    return np.asarray(steps[length == 1] if neighbours == 6 else steps[length > 0], np.int64)


def softmax(values: Float64, offsets: Int64) -> Float64:
    """Exponentiate (S,) values and scale them to sum 1 at each voxel."""
    out = np.empty(values.size)
    run_slices(_softmax, len(offsets) - 1, np.ascontiguousarray(values, np.float64), offsets, out)
    return out


@njit(cache=True, nogil=True)
def _fill_table(start, stop, index, shape, steps, row, certain, offsets, labels, weights, interaction, table, cost):  # type: ignore[no-untyped-def]
    """Fill the table of the neighbours of each voxel, and add the interaction of certain neighbours to the costs."""
    width = steps.shape[0]
    for n in range(start, stop):
        for d in range(width):
            i, j, k = index[n, 0] + steps[d, 0], index[n, 1] + steps[d, 1], index[n, 2] + steps[d, 2]
            if i < 0 or j < 0 or k < 0 or i >= shape[0] or j >= shape[1] or k >= shape[2]:
                continue
            flat = (i * shape[1] + j) * shape[2] + k
            table[n, d] = row[flat]
            if row[flat] < 0 and certain.size > 0 and certain[flat] >= 0:
                for s in range(offsets[n], offsets[n + 1]):
                    cost[s] += weights[d] * interaction[labels[s], certain[flat]]


@njit(cache=True, nogil=True)
def _softmax(start, stop, values, offsets, out):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        largest = -np.inf
        for s in range(offsets[n], offsets[n + 1]):
            largest = max(largest, values[s])
        total = 0.0
        for s in range(offsets[n], offsets[n + 1]):
            out[s] = np.exp(values[s] - largest)
            total += out[s]
        for s in range(offsets[n], offsets[n + 1]):
            out[s] /= total


@njit(cache=True, nogil=True)
def _find_best(start, stop, values, offsets, out):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        best = offsets[n]
        for s in range(offsets[n] + 1, offsets[n + 1]):
            if values[s] > values[best]:
                best = s
        out[n] = best


@njit(cache=True, nogil=True)
def _add_pair_energy(start, stop, taken, neighbours, weights, interaction, out):  # type: ignore[no-untyped-def]
    """Add to (M,) `out` the interaction cost of each voxel with its neighbours; a pair counts at both voxels."""
    for n in range(start, stop):
        for d in range(weights.size):
            m = neighbours[n, d]
            if m >= 0:
                out[n] += weights[d] * interaction[taken[n], taken[m]]


@njit(cache=True, nogil=True)
def _add_conditional_cost(start, stop, offsets, labels, taken, neighbours, weights, interaction, out):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        for d in range(weights.size):
            m = neighbours[n, d]
            if m >= 0:
                for s in range(offsets[n], offsets[n + 1]):
                    out[s] += weights[d] * interaction[labels[s], taken[m]]


@njit(cache=True, nogil=True)
def _add_expected_pairs(start, stop, offsets, labels, beliefs, neighbours, weights, interaction, out):  # type: ignore[no-untyped-def]
    """Add to (M,) `out` the expected interaction cost of each voxel; a pair counts at both voxels."""
    for n in range(start, stop):
        for d in range(weights.size):
            m = neighbours[n, d]
            if m >= 0:
                for s in range(offsets[n], offsets[n + 1]):
                    cost = 0.0
                    for t in range(offsets[m], offsets[m + 1]):
                        cost += beliefs[t] * interaction[labels[s], labels[t]]
                    out[n] += weights[d] * beliefs[s] * cost
