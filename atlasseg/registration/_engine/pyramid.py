"""Images made ready for registration: intensities of one scale, empty space cut off, and coarser copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Bool, Float32, Float64, Image, Mask

UInt8 = NDArray[np.uint8]

CLIP_PERCENTILES = (1.0, 99.0)
"""Intensities are clipped to these percentiles of the foreground and scaled to 0..1."""

EMPTY_SHARE = 0.05
"""An image whose lowest value fills more than this share of it has empty space (it was skull-stripped, say)."""

MARGIN_VOXELS = 4
"""The foreground is widened by this many voxels, so that its outline counts."""

COARSEST_VOXELS = 16
"""No level is coarser than this many voxels along the foreground's shortest axis."""

WANTED, COUNTED = 1, 2
"""In a level's mask: voxels whose value is needed for slopes, and voxels that count in the similarity."""


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    channels : tuple of (I, J, K) float32
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    mask : (I, J, K) uint8
        0, `WANTED` or `COUNTED`.
    """

    channels: tuple[Float32, ...]
    affine: Float64
    mask: UInt8

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.mask.shape
        return i, j, k

    @property
    def spacing_mm(self) -> Float64:
        """(3,) mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class Prepared:
    """An image scaled and cut to its foreground: what levels are made from."""

    channels: tuple[Float32, ...]
    affine: Float64
    counted: Bool
    start: tuple[int, int, int]
    """Where the cut begins in the image's own grid, in voxels."""
    name: str
    levels: dict[tuple[int, int, int], Level] = field(default_factory=dict, repr=False, compare=False)
    """Those made so far."""

    @property
    def spacing_mm(self) -> Float64:
        """(3,) mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def factors(self, shrink: float) -> tuple[int, int, int]:
        """Whole factors along the axes that bring voxels near ``shrink`` times the finest spacing."""
        wanted = self.spacing_mm.min() * shrink
        i, j, k = (max(1, int(np.floor(wanted / s + 0.5))) for s in self.spacing_mm)
        return i, j, k

    def schedule(self, coarsest: int = 8) -> list[int]:
        """Shrink factors, coarse to fine, of powers of two, as far as `COARSEST_VOXELS` allows."""
        shrinks = [1]
        while 2 * shrinks[0] <= coarsest:
            size = [n / f for n, f in zip(self.counted.shape, self.factors(2 * shrinks[0]), strict=True)]
            if min(size) < COARSEST_VOXELS:
                break
            shrinks.insert(0, 2 * shrinks[0])
        return shrinks

    def level(self, factors: tuple[int, int, int]) -> Level:
        """Block means over `factors` voxels; kept, so that a fixed image's are made once for all its atlases."""
        if factors not in self.levels:
            self.levels[factors] = self._level(factors)
        return self.levels[factors]

    def _level(self, factors: tuple[int, int, int]) -> Level:
        affine = self.affine @ np.diag([*factors, 1.0])
        affine[:3, 3] += self.affine[:3, :3] @ ((np.array(factors) - 1) / 2)
        counted = _block_mean(self.counted.astype(np.float32), factors) >= 0.5
        if not counted.any():
            counted = _block_mean(self.counted.astype(np.float32), factors) > 0
        mask = np.where(ndimage.binary_dilation(counted, np.ones((3, 3, 3))), WANTED, 0).astype(np.uint8)
        mask[counted] = COUNTED
        return Level(tuple(_block_mean(c, factors) for c in self.channels), affine, mask)


def prepare(image: Image, mask: Mask | None = None, *, cut: bool = True) -> Prepared:
    """Scale the intensities, find what counts, and cut off what is empty.

    Parameters
    ----------
    image : Image
    mask : Mask, optional
        On the image's grid: only there do voxels count. Without one, all do that are not empty space.
    cut : bool
        Cut to the box around what counts.

    Raises
    ------
    InputError
        The image is constant where it counts, or the mask is empty.
    GeometryError
        The mask is not on the image's grid.
    """
    who = f"image {image.name!r}" if image.name else "an image"
    if mask is not None:
        if not image.grid.matches(mask.grid):
            raise GeometryError(
                f"the mask of {who} is not on its grid: shape {mask.shape} and {image.shape}, "
                f"affines {mask.affine.tolist()} and {image.affine.tolist()}"
            )
        if not mask.array.any():
            raise InputError(f"the mask of {who} is empty: none of its {mask.array.size} voxels is set")
    filled = np.ones(image.shape, bool)
    for channel in np.moveaxis(image.channels, -1, 0):
        lowest = channel == channel.min()
        if lowest.mean() > EMPTY_SHARE:
            filled &= ~lowest
    inside = filled if mask is None else filled & mask.array
    values = image.channels[inside]
    if values.size == 0 or (np.ptp(values, axis=0) == 0).any():
        level = float(image.array.flat[0]) if values.size == 0 else float(values.flat[0])
        where = "" if mask is None else " in its mask"
        raise InputError(f"{who} is constant{where} (every voxel is {level:g}): there is nothing to register")
    counted = ndimage.binary_dilation(filled, iterations=MARGIN_VOXELS) if not filled.all() else filled
    if mask is not None:
        counted = counted & mask.array
    start, stop = np.zeros(3, int), np.array(image.shape)
    if cut:
        where_set = np.argwhere(counted)
        start = np.maximum(where_set.min(axis=0) - 1, 0)
        stop = np.minimum(where_set.max(axis=0) + 2, image.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    low, high = np.percentile(values, CLIP_PERCENTILES, axis=0)
    channels = []
    for c in range(values.shape[1]):
        if high[c] <= low[c]:  # nearly everything has one value: keep the rare ones
            low[c], high[c] = values[:, c].min(), values[:, c].max()
        scaled = (np.clip(image.channels[box][..., c], low[c], high[c]) - low[c]) / (high[c] - low[c])
        channels.append(np.ascontiguousarray(scaled, dtype=np.float32))
    affine = image.grid.cropped(start, stop).affine
    i, j, k = (int(x) for x in start)
    return Prepared(tuple(channels), affine, counted[box], (i, j, k), image.name)


def _block_mean(array: Float32, factors: tuple[int, int, int]) -> Float32:
    """Means of blocks; the last block is filled up with the border's values."""
    if factors == (1, 1, 1):
        return array
    short = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    full = np.pad(array, short, mode="edge")
    i, j, k = (n // f for n, f in zip(full.shape, factors, strict=True))
    blocks = full.reshape(i, factors[0], j, factors[1], k, factors[2])
    return np.ascontiguousarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def matching_factors(fixed: Level, moving: Prepared) -> tuple[int, int, int]:
    """Factors that bring the moving image's voxels near the finest spacing of the fixed level."""
    wanted = fixed.spacing_mm.min()
    i, j, k = (max(1, int(np.floor(wanted / s + 0.5))) for s in moving.spacing_mm)
    return i, j, k


def refined(field: Float32, old: Level, new: Level) -> Float32:
    """A field of one level, (I, J, K, 3) in its voxels, on another level of the same image: linear, edges repeated."""
    if old.shape == new.shape:
        return field
    to_old = np.linalg.inv(old.affine) @ new.affine
    out = field
    if np.diag(to_old)[:3].max() > 1.5:  # coarser: mean over the new voxels
        factors = np.rint(np.diag(to_old)[:3]).astype(int)
        parts = [
            _block_mean(np.ascontiguousarray(field[..., c]), (factors[0], factors[1], factors[2])) for c in range(3)
        ]
        return np.ascontiguousarray(np.stack(parts, axis=-1) / factors.astype(np.float32))
    for axis, n in enumerate(new.shape):
        last = old.shape[axis] - 1
        x = np.clip(np.arange(n) * to_old[axis, axis] + to_old[axis, 3], 0, last)
        low = np.minimum(x.astype(int), max(last - 1, 0))
        part = (x - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        out = np.take(out, low, axis) * (1 - part) + np.take(out, np.minimum(low + 1, last), axis) * part
    return np.ascontiguousarray(out / np.diag(to_old)[:3].astype(np.float32))
