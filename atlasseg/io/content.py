"""A digest of what a volume holds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.io._source import Volume
from atlasseg.volume import ProbabilityMap


def content_hash(volume: Volume, *, place: bool = True) -> str:
    """SHA-256, in hexadecimal, of what a volume holds: kind, shape, values, and its affine unless `place` is False.

    Neither name nor file enter, so a copy under another name has the same hash; without `place`, so has a copy whose
    header was changed.
    """
    hashed = hashlib.sha256(f"{type(volume).__name__} {volume.shape}".encode())
    if place:
        hashed.update((volume.affine + 0.0).tobytes())  # no negative zeros
    if isinstance(volume, ProbabilityMap):
        arrays: list[NDArray[Any]] = [
            volume.mode,
            volume.voxels,
            volume.offsets,
            volume.labels,
            volume.values,
            volume.label_values,
        ]
    else:
        arrays = [volume.array]
    for array in arrays:
        hashed.update(f" {array.dtype.name} {array.shape} ".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
