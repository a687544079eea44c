"""An opened file of any format: its shape and place are known, its values are read on demand."""

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
"""One log for every format. A record's `severity` (``error`` or ``note``) is how serious `doctor` finds it."""

T = TypeVar("T")
Volume = Image | LabelMap | Mask | ProbabilityMap
Like = Image | LabelMap | Mask | SourceHeader | None
"""What a file can be written like: a volume on its grid, or the header of the file of one."""


@dataclass(frozen=True, eq=False)
class Source:
    """An opened file: its shape and place are known, its values (`data`, array or nibabel's proxy) read on demand."""

    data: Any
    affine: Float64
    source_header: SourceHeader
    labels: list[int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.data.shape)

    def array(self) -> NDArray[Any]:
        """Every value."""
        return self._plain(np.asanyarray(self.data))

    def volume(self, index: int) -> NDArray[Any]:
        """(I, J, K) values of one volume of a 4-D file; to be asked for in ascending order."""
        return self._plain(np.asanyarray(self.data[..., index] if len(self.shape) > 3 else self.data))

    @staticmethod
    def _plain(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind not in "biuf":
            raise InputError(f"the values must be plain numbers, got {array.dtype} (colours or complex numbers)")
        return np.ascontiguousarray(array)


@dataclass(frozen=True, eq=False)
class Raw:
    """An array as it lies in a file, 3-D or more, values scaled as the header says, with its place in space."""

    array: NDArray[Any]
    affine: Float64
    source_header: SourceHeader


def name_file(path: Path, make: Callable[[], T]) -> T:
    """What `make` makes; where it refuses, the message begins with the file."""
    try:
        return make()
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def format_sizes(sizes: NDArray[Any] | Sequence[float]) -> str:
    """Write lengths along the axes as ``1.2 x 1.5 x 2.5``."""
    return " x ".join(f"{float(size):.4g}" for size in sizes)
