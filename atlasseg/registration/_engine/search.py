"""A search for a linear registration as a generator: it asks for similarities and is sent them.

The compiled kernels and torch answer the same search, each in a file of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from atlasseg.volume import Float64

Factors = tuple[int, int, int]
Asked = tuple[Factors, list[Float64]]
"""Factors of a level of the fixed image, and (4, 4) maps from fixed to moving RAS+ mm."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fit:
    """Where a linear registration stands: the similarity and its derivatives."""

    value: float
    gradient: Float64
    """(3, 4) derivative, times the voxels that count, in ``x -> x + P (x, 1)``, x and P in voxels."""
    hessian: Float64
    """(12, 12) Gauss-Newton, sign changed."""
    overlap: float
    """Share of the fixed mask that lies in the moving field of view."""


Search = Generator[Asked, list[Fit], Result]
"""A search that ends with a result."""
