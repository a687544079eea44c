"""Search for a linear registration as a generator: it yields matrices and receives their similarities.

The same search runs on the compiled kernels (`linear`) and on torch (`linear_torch`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from atlasseg.volume import Float64

Factors = tuple[int, int, int]
Query = tuple[Factors, list[Float64]]
"""Factors of a level of the fixed image, and (4, 4) maps from fixed to moving RAS+ mm."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fit:
    """Similarity of a linear registration, with its derivatives."""

    value: float
    gradient: Float64
    """(3, 4) derivative in P of ``x -> x + P (x, 1)``, times the number of voxels that count; x and P in voxels."""
    hessian: Float64
    """(12, 12) negative Gauss-Newton Hessian."""
    overlap: float
    """Fraction of the fixed mask inside the moving field of view."""


Search = Generator[Query, list[Fit], Result]
"""Search that returns a result."""
