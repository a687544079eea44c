"""Opened volume file of any format: shape and affine are known, values are read on demand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.volume import Float64, Image, LabelMap, Mask, ProbabilityMap, SourceHeader

log = logging.getLogger("atlasseg.io")
"""Logger of all formats. The attribute `severity` of a record (``error`` or ``note``) is used by ``doctor``."""

T = TypeVar("T")
Volume = Image | LabelMap | Mask | ProbabilityMap
Like = Image | LabelMap | Mask | SourceHeader | None
"""Template of a file to write: a volume on the same grid, or a source header."""


@dataclass(frozen=True, eq=False)
class Source:
    """Opened file with known shape and affine; its values `data` are an array or a nibabel proxy, read on demand.

    `step_s` is the time between two volumes that the header states, if any.
    """

    data: Any
    affine: Float64
    source_header: SourceHeader
    labels: list[int] | None = None
    step_s: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.data.shape)

    def array(self) -> NDArray[Any]:
        """Read all values."""
        return self._plain(np.asanyarray(self.data))

    def volume(self, index: int) -> NDArray[Any]:
        """Read one volume (I, J, K) of a 4-D file; call with ascending indices."""
        return self._plain(np.asanyarray(self.data[..., index] if len(self.shape) > 3 else self.data))

    @staticmethod
    def _plain(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind not in "biuf":
            raise InputError(f"expected real numbers, got {array.dtype} (colours or complex numbers)")
        return np.ascontiguousarray(array)


@dataclass(frozen=True, eq=False)
class Raw:
    """Array of a file, 3-D or more, scaled as the header says, with its affine."""

    array: NDArray[Any]
    affine: Float64
    source_header: SourceHeader


def name_file(path: Path, make: Callable[[], T]) -> T:
    """Call `make`; an error message of it gets the file name in front."""
    try:
        return make()
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def format_sizes(sizes: NDArray[Any] | Sequence[float]) -> str:
    """Format lengths along the axes as ``1.2 x 1.5 x 2.5``."""
    return " x ".join(f"{float(size):.4g}" for size in sizes)
