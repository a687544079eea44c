"""Image pyramids: intensities scaled to a common range, empty space cropped, and coarser levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float32, Float64, Image, Mask

UInt8 = NDArray[np.uint8]

CLIP_PERCENTILES = (1.0, 99.0)
"""Intensities are clipped to these percentiles of the foreground and scaled to 0 to 1."""

EMPTY_SHARE = 0.05
"""An image has empty space (for instance after skull stripping) if its lowest value fills more than this fraction."""

MARGIN_VOXELS = 4
"""The foreground is dilated by this many voxels, so that its outline counts."""

COARSEST_VOXELS = 16
"""Minimum number of voxels of a level along the shortest axis of the foreground."""

SUPPORT, VALID = 1, 2
"""In a level's mask: voxels needed only for gradients, and voxels over which the similarity is measured."""


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    channels : tuple of (I, J, K) float32
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    mask : (I, J, K) uint8
        0, `SUPPORT` or `VALID`.
    weights : tuple of float
        Weight of each channel, 1 on average.
    """

    channels: tuple[Float32, ...]
    affine: Float64
    mask: UInt8
    weights: tuple[float, ...]

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
    """Image scaled and cropped to its foreground, from which the levels are made."""

    channels: tuple[Float32, ...]
    affine: Float64
    valid: Bool
    start: tuple[int, int, int]
    """First voxel of the crop in the grid of the image."""
    name: str
    weights: tuple[float, ...]
    """Weight of each channel, 1 on average."""
    levels: dict[tuple[int, int, int], Level] = field(default_factory=dict, repr=False, compare=False)
    """Levels made so far."""

    @property
    def spacing_mm(self) -> Float64:
        """(3,) mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def factors(self, shrink: float) -> tuple[int, int, int]:
        """Choose integer factors along the axes that make voxels of about ``shrink`` times the finest spacing."""
        wanted = self.spacing_mm.min() * shrink
        i, j, k = (max(1, int(np.floor(wanted / s + 0.5))) for s in self.spacing_mm)
        return i, j, k

    def schedule(self, coarsest: int = 8) -> list[int]:
        """List shrink factors, coarse to fine, as powers of two, as far as `COARSEST_VOXELS` allows."""
        shrinks = [1]
        while 2 * shrinks[0] <= coarsest:
            size = [n / f for n, f in zip(self.valid.shape, self.factors(2 * shrinks[0]), strict=True)]
            if min(size) < COARSEST_VOXELS:
                break
            shrinks.insert(0, 2 * shrinks[0])
        return shrinks

    def level(self, factors: tuple[int, int, int]) -> Level:
        """Make a level by block means over `factors` voxels; cached, so that all atlases share the fixed levels."""
        if factors not in self.levels:
            self.levels[factors] = self._level(factors)
        return self.levels[factors]

    def _level(self, factors: tuple[int, int, int]) -> Level:
        affine = self.affine @ np.diag([*factors, 1.0])
        affine[:3, 3] += self.affine[:3, :3] @ ((np.array(factors) - 1) / 2)
        valid = _block_mean(self.valid.astype(np.float32), factors) >= 0.5
        if not valid.any():
            valid = _block_mean(self.valid.astype(np.float32), factors) > 0
        support = valid
        for axis in range(3):
            support = _dilate(support, (axis,))
        mask = support.astype(np.uint8) * np.uint8(SUPPORT)
        mask[valid] = VALID
        return Level(tuple(_block_mean(c, factors) for c in self.channels), affine, mask, self.weights)


def normalise_weights(weights: Sequence[float], channels: int) -> tuple[float, ...]:
    """Scale weights of channels to a mean of 1; without weights all channels weigh the same.

    Raises
    ------
    InputError
        There is not one weight for each channel, a weight is negative, or all are 0.
    """
    if not weights:
        return (1.0,) * channels
    if len(weights) != channels or min(weights) < 0 or sum(weights) <= 0 or not np.isfinite(weights).all():
        raise InputError(
            f"channel_weights: expected {channels} weights from 0, one for each channel and not all 0, got "
            f"{', '.join(f'{weight:g}' for weight in weights)}."
        )
    return tuple(float(weight) * channels / float(sum(weights)) for weight in weights)


def prepare(
    image: Image, mask: Mask | None = None, *, cut: bool = True, channel_weights: Sequence[float] = ()
) -> Prepared:
    """Prepare an image for registration: scale the intensities, find the foreground, and crop to it.

    Parameters
    ----------
    image : Image
    mask : Mask, optional
        On the grid of the image: only voxels inside count. Default: all voxels except empty space.
    cut : bool
        Crop to the bounding box of the voxels that count.
    channel_weights : sequence of float
        Weight of each channel; by default all weigh the same.

    Raises
    ------
    InputError
        The image is constant in its mask, or the mask is empty.
    GeometryError
        The mask is not on the image's grid.
    """
    who = f"image {image.name!r}" if image.name else "an image"
    weights = normalise_weights(channel_weights, image.channels.shape[3])
    if mask is not None:
        if not image.grid.matches(mask.grid):
            raise GeometryError(
                f"the mask of {who} is not on its grid: expected shape {image.shape} and affine "
                f"{image.affine.tolist()}, got shape {mask.shape}, affine {mask.affine.tolist()}"
            )
        if not mask.array.any():
            raise InputError(f"the mask of {who} is empty: expected voxels inside, got none of {mask.array.size}")
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
        raise InputError(f"{who} is constant{where}: expected several intensities, got {level:g} at every voxel")
    valid = filled
    for _ in range(MARGIN_VOXELS if not filled.all() else 0):
        valid = _dilate(valid, (0, 1, 2))
    if mask is not None:
        valid = valid & mask.array
    start, stop = np.zeros(3, int), np.array(image.shape)
    if cut:
        where_set = np.argwhere(valid)
        start = np.maximum(where_set.min(axis=0) - 1, 0)
        stop = np.minimum(where_set.max(axis=0) + 2, image.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    low, high = np.percentile(values, CLIP_PERCENTILES, axis=0)
    channels = []
    for c in range(values.shape[1]):
        if high[c] <= low[c]:  # nearly all voxels have one value: keep the range of the others
            low[c], high[c] = values[:, c].min(), values[:, c].max()
        scaled = (np.clip(image.channels[box][..., c], low[c], high[c]) - low[c]) / (high[c] - low[c])
        channels.append(np.ascontiguousarray(scaled, dtype=np.float32))
    affine = image.grid.cropped(start, stop).affine
    i, j, k = (int(x) for x in start)
    return Prepared(tuple(channels), affine, valid[box], (i, j, k), image.name, weights)


def _dilate(mask: Bool, axes: tuple[int, ...]) -> Bool:
    """Dilate a mask by its neighbours along the axes."""
    out = mask.copy()
    for axis in axes:
        into, seen = np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0)
        into[1:] |= seen[:-1]
        into[:-1] |= seen[1:]
    return out


def _block_mean(array: Float32, factors: tuple[int, int, int]) -> Float32:
    """Average blocks; the last block is padded with the values of the border."""
    if factors == (1, 1, 1):
        return array
    i, j, k = (-(-n // f) for n, f in zip(array.shape, factors, strict=True))
    out = np.empty((i, j, k), np.float32)
    run_slices(_sum_blocks, i, np.ascontiguousarray(array), *factors, out)
    return out


@numba.njit(cache=True, nogil=True)
def _sum_blocks(start, stop, array, fi, fj, fk, out):  # type: ignore[no-untyped-def]
    ni, nj, nk = array.shape
    share = np.float32(1 / (fi * fj * fk))
    for i in range(start, stop):
        line = np.empty(out.shape[2] * fk, np.float32)
        for j in range(out.shape[1]):
            line[:] = 0
            for p in range(i * fi, (i + 1) * fi):
                for q in range(j * fj, (j + 1) * fj):
                    row = array[min(p, ni - 1), min(q, nj - 1)]
                    for k in range(nk):
                        line[k] += row[k]
            for k in range(nk, line.size):
                line[k] = line[nk - 1]
            for k in range(out.shape[2]):
                total = np.float32(0)
                for t in range(k * fk, (k + 1) * fk):
                    total += line[t]
                out[i, j, k] = total * share


def choose_factors(fixed: Level, moving: Prepared) -> tuple[int, int, int]:
    """Choose the factors that make voxels of the moving image about as large as the finest fixed spacing."""
    wanted = fixed.spacing_mm.min()
    i, j, k = (max(1, int(np.floor(wanted / s + 0.5))) for s in moving.spacing_mm)
    return i, j, k


def resample_field(field: Float32, old: Level, new: Level) -> Float32:
    """Resample a field (I, J, K, 3), in voxels, from one level to another of the same image: linear, edges repeated."""
    if old.shape == new.shape:
        return field
    to_old = np.linalg.inv(old.affine) @ new.affine
    lows, parts = [], []
    for axis, n in enumerate(new.shape):
        last = old.shape[axis] - 1
        x = np.clip(np.arange(n) * to_old[axis, axis] + to_old[axis, 3], 0, last)
        lows.append(np.minimum(x.astype(np.int64), max(last - 1, 0)))
        parts.append((x - lows[-1]).astype(np.float32))
    out = np.empty((*new.shape, 3), np.float32)
    scale = (1 / np.diag(to_old)[:3]).astype(np.float32)
    run_slices(_sample_lines, len(out), field, *lows, *parts, scale, out)
    return out


@numba.njit(cache=True, nogil=True)
def _sample_lines(start, stop, field, low_i, low_j, low_k, part_i, part_j, part_k, scale, out):  # type: ignore[no-untyped-def]
    """Sample the field at positions ``low + part`` along each axis, times `scale`, into `out`."""
    ni, nj, nk = field.shape[:3]
    for i in range(start, stop):
        line = np.empty((nk, 3), np.float32)
        one, two, x = low_i[i], min(low_i[i] + 1, ni - 1), part_i[i]
        for j in range(out.shape[1]):
            three, four, y = low_j[j], min(low_j[j] + 1, nj - 1), part_j[j]
            a, b, c, d = field[one, three], field[one, four], field[two, three], field[two, four]
            for k in range(nk):
                for n in range(3):
                    near = a[k, n] + y * (b[k, n] - a[k, n])
                    far = c[k, n] + y * (d[k, n] - c[k, n])
                    line[k, n] = (near + x * (far - near)) * scale[n]
            into = out[i, j]
            for k in range(out.shape[2]):
                low, z = low_k[k], part_k[k]
                high = min(low + 1, nk - 1)
                for n in range(3):
                    into[k, n] = line[low, n] + z * (line[high, n] - line[low, n])
