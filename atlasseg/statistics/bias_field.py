"""Bias field: a smooth gain or offset, as polynomials of low order over the box of a region."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import legendre

from atlasseg.errors import InputError
from atlasseg.volume import Bool, Float64, Int64

BLOCKS = 32
"""Maximum number of blocks per axis in which sums over voxels are taken; a polynomial hardly varies in a block."""
RANK_TOLERANCE = 1e-9
"""Relative singular value below which a combination of polynomials is not determined by the region, and not used."""


@dataclass(frozen=True, eq=False)
class Polynomials:
    """Products of Legendre polynomials of total order 1 to `order` on a region of N voxels, minus their means over it.

    Parameters
    ----------
    inside : (I, J, K) bool
        The region.
    exponents : (B, 3) int64
        Order of each product along each axis.
    tables : three arrays (I', order + 1), (J', order + 1), (K', order + 1)
        The polynomials at the voxels of the region's box.
    box : three slices
        Position of the box in the grid.
    block : (N,) int64
        Block of each voxel.
    counts : (M,) float64
        Number of voxels of each block.
    at_blocks : (M, B) float64
        The products at the centres of mass of the blocks.
    stiffness : (B, B) float64
        Quadratic form of the coefficients: sum over voxels of the squared field, each product multiplied by its order.
    """

    inside: Bool
    exponents: Int64
    tables: tuple[Float64, Float64, Float64]
    box: tuple[slice, slice, slice]
    block: Int64
    counts: Float64
    at_blocks: Float64
    stiffness: Float64

    @classmethod
    def over(cls, inside: Bool, order: int, *, sampled: Bool | None = None) -> Polynomials:
        """Make all products up to `order`, at least 1, that can be distinguished on the region.

        With `sampled` (I, J, K), only these voxels of the region are used: the same polynomials, minus their means
        over them.

        Raises
        ------
        InputError
            The region is empty or the order below 1.
        """
        if order < 1 or not inside.any():
            raise InputError(
                f"bias field: expected an order of at least 1 and a region, got order {order} and {inside.sum()} voxels"
            )
        place = np.argwhere(inside)
        low, high = place.min(axis=0), place.max(axis=0)
        extent = high - low + 1
        exponents = np.array(
            [e for e in itertools.product(range(order + 1), repeat=3) if 0 < sum(e) <= order and (e < extent).all()]
        ).reshape(-1, 3)
        if sampled is not None:
            inside, place = sampled, np.argwhere(sampled)
        edge = -(-extent // BLOCKS)
        number = -(-extent // edge)
        flat = np.ravel_multi_index(tuple(((place - low) // edge).T), tuple(number))
        _, block = np.unique(flat, return_inverse=True)
        counts = np.bincount(block).astype(np.float64)
        scaled = 2 * (place - low) / np.maximum(extent - 1, 1) - 1
        centres = np.stack([np.bincount(block, scaled[:, axis]) / counts for axis in range(3)], axis=1)
        at = [legendre.legvander(centres[:, axis], order)[:, exponents[:, axis]] for axis in range(3)]
        tables = [legendre.legvander(np.linspace(-1, 1, n) if n > 1 else np.array([-1.0]), order) for n in extent]
        box = (slice(low[0], high[0] + 1), slice(low[1], high[1] + 1), slice(low[2], high[2] + 1))
        basis = at[0] * at[1] * at[2]
        basis -= np.average(basis, axis=0, weights=counts)
        weighted = basis * exponents.sum(axis=1)
        return cls(
            inside, exponents, (tables[0], tables[1], tables[2]), box, block, counts, basis,
            (weighted * counts[:, None]).T @ weighted,
        )  # fmt: skip

    def fit_coefficients(self, weights: Float64, pull: Float64, penalty: Float64, before: Float64) -> Float64:
        r"""Weighted least squares: compute the step (B, C) from coefficients `before` to those of minimum cost.

        The field :math:`b` minimises

        .. math::

            \sum_n \left( \tfrac{1}{2} d_n^{\top} W_n d_n - p_n^{\top} d_n \right)
            + \tfrac{1}{2} \textit{penalty}^{\top} s(b)

        where :math:`d` is the change of :math:`b` and :math:`s` its `stiffness`. Without penalty and with one
        modality, with :math:`W_n = \sum_k w_{nk} / \sigma_k^2` and :math:`p_n` = :math:`W_n` times the residual, this
        is the fit of Van Leemput et al. (1999), IEEE TMI 18(10):885-896.

        Parameters
        ----------
        weights : (N, C (C + 1) / 2) float64
            Lower triangle of W_n, row by row.
        pull : (N, C) float64
            p_n.
        penalty : (C,) float64
            Weight of the stiffness, 0 or more.
        before : (B, C) float64
            Coefficients of the field so far.
        """
        channels, terms = pull.shape[1], len(self.exponents)
        if terms == 0:
            return np.zeros((0, channels))
        normal = np.empty((channels, terms, channels, terms))
        for at, (c, d) in enumerate(zip(*np.tril_indices(channels), strict=True)):
            inner = (self.at_blocks * np.bincount(self.block, weights[:, at])[:, None]).T @ self.at_blocks
            normal[c, :, d], normal[d, :, c] = inner, inner.T
        right = np.stack([self.at_blocks.T @ np.bincount(self.block, pull[:, c]) for c in range(channels)])
        for c in range(channels):
            normal[c, :, c] += penalty[c] * self.stiffness
            right[c] -= penalty[c] * self.stiffness @ before[:, c]
        size = channels * terms
        solution = np.linalg.lstsq(normal.reshape(size, size), right.ravel(), rcond=RANK_TOLERANCE)[0]
        return np.ascontiguousarray(solution.reshape(channels, terms).T)

    def evaluate(self, coefficients: Float64) -> Float64:
        """Evaluate the field (N, C) of `coefficients` (B, C). Its mean over the region is 0 in each modality."""
        degrees = self.tables[0].shape[1]
        out = np.empty((self.block.size, coefficients.shape[1]))
        for c, of_channel in enumerate(coefficients.T):
            cube: Float64 = np.zeros((degrees, degrees, degrees))
            cube[tuple(self.exponents.T)] = of_channel
            for table in self.tables:
                cube = np.asarray(np.tensordot(cube, table, axes=(0, 1)), np.float64)
            values = cube[self.inside[self.box]]
            out[:, c] = values - values.mean()
        return out
