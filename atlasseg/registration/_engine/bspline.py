"""Cubic B-splines on a lattice: field, adjoint, and energies of the coefficients.

Coefficients are (A, B, C, 3) float32, with n + 3 coefficients along an axis of n intervals. The field is a product of
three banded matrices, one per axis; the adjoint is the product of their transposes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from atlasseg.threads import run_slices
from atlasseg.volume import Float32, Float64

QUADRATURE = np.polynomial.legendre.leggauss(4)
"""Exact for polynomials of degree 7: products of cubics have degree 6."""

SECOND_DERIVATIVES = (
    ((2, 0, 0), 1),
    ((0, 2, 0), 1),
    ((0, 0, 2), 1),
    ((1, 1, 0), 2),
    ((1, 0, 1), 2),
    ((0, 1, 1), 2),
)
"""Orders along the axes, and multiplicity of each."""

JACOBIAN_FLOOR = 0.2
"""Determinant below which the logarithm of the folding penalty is continued by a parabola."""


def evaluate_basis(position: Float64, intervals: int, derivative: int = 0) -> Float32:
    """Evaluate the splines or their derivatives, (N, intervals + 3), at positions from 0 to `intervals`."""
    cell = np.clip(np.floor(position).astype(int), 0, intervals - 1)
    t = position - cell
    taps = [
        [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
        [-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2],
        [1 - t, 3 * t - 2, 1 - 3 * t, t],
    ][derivative]
    out = np.zeros((position.size, intervals + 3), np.float64)
    for n, tap in enumerate(taps):
        out[np.arange(position.size), cell + n] = tap
    return out.astype(np.float32)


def make_refinement(intervals: int) -> Float32:
    """Make the matrix (2 intervals + 3, intervals + 3) that refines coefficients to intervals of half the size."""
    position = np.linspace(0, intervals, 8 * intervals + 1)
    fine, coarse = (
        evaluate_basis(2 * position, 2 * intervals).astype(float),
        evaluate_basis(position, intervals).astype(float),
    )
    return np.asarray(np.linalg.lstsq(fine, coarse, rcond=None)[0], np.float32)


def apply_matrices(matrices: Sequence[Float32], values: Float32) -> Float32:
    """Apply a matrix (out, in) along each of the first three axes of (.., .., .., 3), the cheapest axis last."""
    order = (2, 1, 0) if matrices[0].shape[0] > matrices[0].shape[1] else (0, 1, 2)
    out = np.ascontiguousarray(values)
    for axis in order:
        matrix = matrices[axis]
        shape = out.shape
        left, right = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        new = np.empty((*shape[:axis], matrix.shape[0], *shape[axis + 1 :]), np.float32)
        rows = matrix.shape[0]
        run_slices(_apply, left * rows, matrix, out.reshape(left, shape[axis], right), new.reshape(left, rows, right))
        out = new
    return out


def transpose_all(matrices: Sequence[Float32]) -> list[Float32]:
    """Transpose the matrices, which gives the adjoint."""
    return [np.ascontiguousarray(m.T) for m in matrices]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _apply(start, stop, matrix, values, out):  # type: ignore[no-untyped-def]
    """out[l, o] = sum over n of matrix[o, n] values[l, n], skipping the zeros on both sides of the band."""
    _, rows, width = out.shape
    first, end = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for o in range(rows):
        n = 0
        while n < matrix.shape[1] and matrix[o, n] == 0:
            n += 1
        first[o] = n
        n = matrix.shape[1]
        while n > first[o] and matrix[o, n - 1] == 0:
            n -= 1
        end[o] = n
    for task in range(start, stop):
        left, o = task // rows, task % rows
        into = out[left, o]
        into[:] = 0
        for n in range(first[o], end[o]):
            w = matrix[o, n]
            row = values[left, n]
            for q in range(width):
                into[q] += w * row[q]


def compute_grams(intervals: int, spacing: float) -> list[Float32]:
    """Compute Gram matrices (n, n) of the splines along an axis, for derivatives of order 0, 1, 2, over its length."""
    nodes, weights = QUADRATURE
    position = (np.arange(intervals)[:, None] + (nodes + 1) / 2).reshape(-1)
    weight = np.tile(weights / 2, intervals)[:, None] / intervals
    out = []
    for order in range(3):
        b = evaluate_basis(position, intervals, order).astype(np.float64) / spacing**order
        out.append((b.T @ (weight * b)).astype(np.float32))
    return out


def bending(coefficients: Float32, gram: Sequence[Sequence[Float32]]) -> tuple[float, Float32]:
    """Compute the bending energy and its derivative: mean squared second derivatives (Rueckert 1999, eq. 4), exact."""
    gradient = np.zeros_like(coefficients)
    for orders, factor in SECOND_DERIVATIVES:
        gradient += factor * apply_matrices([g[order] for g, order in zip(gram, orders, strict=True)], coefficients)
    return float(np.sum(coefficients * gradient, dtype=np.float64)), 2 * gradient


def folding(coefficients: Float32, intervals: Sequence[int]) -> tuple[float, Float32]:
    """Compute the folding penalty and its derivative: mean squared logarithm of the Jacobian determinant at the knots.

    Coefficients are in intervals. Below `JACOBIAN_FLOOR` the logarithm is continued by the parabola of the same value,
    slope and curvature, so that folds can be undone.
    """
    at: list[Float64] = [np.arange(n + 1, dtype=np.float64) for n in intervals]
    value = [evaluate_basis(x, n) for x, n in zip(at, intervals, strict=True)]
    slope = [evaluate_basis(x, n, 1) for x, n in zip(at, intervals, strict=True)]
    matrices = [[slope[a] if a == axis else value[a] for a in range(3)] for axis in range(3)]
    jacobian = np.stack([apply_matrices(m, coefficients) for m in matrices], axis=-1).astype(np.float64) + np.eye(3)
    a, b, c = (jacobian[..., i, :] for i in range(3))
    cofactor = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=-2)
    det = (a * cofactor[..., 0, :]).sum(axis=-1)
    change = folding_change(det) / det.size
    pull = (change[..., None, None] * cofactor).astype(np.float32)
    gradient = np.zeros_like(coefficients)
    for axis in range(3):
        gradient += apply_matrices(transpose_all(matrices[axis]), np.ascontiguousarray(pull[..., axis]))
    return float(folding_energy(det).mean()), gradient


def folding_energy(det: Float64) -> Float64:
    """Compute the squared logarithm of a determinant, continued by a parabola below the floor."""
    log, short = np.log(np.maximum(det, JACOBIAN_FLOOR)), np.minimum(det - JACOBIAN_FLOOR, 0)
    curve = 2 * (1 - np.log(JACOBIAN_FLOOR)) / JACOBIAN_FLOOR**2
    return np.asarray(log**2 + 2 * log / JACOBIAN_FLOOR * short + curve / 2 * short**2)


def folding_change(det: Float64) -> Float64:
    """Compute the derivative of `folding_energy`."""
    high, short = np.maximum(det, JACOBIAN_FLOOR), np.minimum(det - JACOBIAN_FLOOR, 0)
    curve = 2 * (1 - np.log(JACOBIAN_FLOOR)) / JACOBIAN_FLOOR**2
    return np.asarray(2 * np.log(high) / high + curve * short)
