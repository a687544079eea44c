"""Content digests of volumes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.io._source import Volume
from atlasseg.volume import ProbabilityMap


def content_hash(volume: Volume, *, place: bool = True) -> str:
    """Compute the SHA-256 digest of a volume in hexadecimal: its type, shape, values, and affine.

    Name and file do not count, so a copy with another name has the same digest. With ``place=False`` the affine does
    not count either, so a copy with a changed header has the same digest.
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
