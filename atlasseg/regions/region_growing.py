"""Region growing: seeds absorb adjacent voxels that are similar to their neighbours and to the region.

The voxel that is most similar to an adjacent region joins first [1]_. In the order-independent form, all voxels of
equal similarity join together, before any mean changes [2]_, so that the result does not depend on the order of the
axes or the direction of the scan.

.. [1] Adams, Bischof, Seeded region growing, IEEE TPAMI 16, 1994.
.. [2] Mehnert, Jackway, An improved seeded region growing algorithm, Pattern Recognition Letters 18, 1997.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import GeometryError, InputError
from atlasseg.methods import Data, method
from atlasseg.regions.noise import noise_sd as estimated_noise_sd
from atlasseg.volume import Float32, Float64, Image, Int32, Int64, LabelMap

__all__ = ["find_seeds", "gradient_magnitude"]

Order = Literal["independent", "queue"]

_BITS = 28  # intensities are summed as integers of this size: such sums are exact in any order


@method("regions")
def partition(
    image: Image,
    *,
    seeds: Data[LabelMap | None] = None,
    local_difference: float | None = 3.0,
    global_difference: float | None = 3.0,
    order: Order = "independent",
    seed_share: float = 0.3,
    seed_voxels: int = 8,
    noise_sd: Data[tuple[float, ...] | None] = None,
) -> LabelMap:
    """Partition a volume into regions grown from seeds.

    Parameters
    ----------
    image : Image
        Volume of any size and spacing, with one or several channels.
    seeds : LabelMap, optional
        Seeds on the image's grid (0: no seed). The regions have their labels. Default: found by `find_seeds`.
    local_difference : float, optional
        Largest difference across the face through which a voxel joins, in noise standard deviations (Euclidean over
        channels); None: no limit.
    global_difference : float, optional
        Largest difference from the mean of the region so far, in noise standard deviations (Euclidean over channels);
        None: no limit.
    order : {"independent", "queue"}
        "independent": the most similar voxels join first, and voxels of equal cost join together; a voxel that is
        equally similar to two regions joins the smaller label. "queue": first in, first out, in C order of the
        seeds; faster, but the result depends on that order.
    seed_share : float
        If seeds are found automatically: fraction of all voxels, those of lowest gradient, that are seeds.
    seed_voxels : int
        If seeds are found automatically: minimum number of voxels of a seed.
    noise_sd : tuple of float, optional
        Noise of each channel. Default: estimated. A channel without noise is used in its own units.

    Returns
    -------
    LabelMap
        The regions; 0 where no region can grow.

    Raises
    ------
    GeometryError
        The seeds are on another grid.
    InputError
        There is no seed, a seed has a negative label, or a parameter is out of range.

    References
    ----------
    .. [1] Adams, Bischof, Seeded region growing, IEEE TPAMI 16, 1994.
    .. [2] Mehnert, Jackway, An improved seeded region growing algorithm, Pattern Recognition Letters 18, 1997.

    Examples
    --------
    >>> ramp = Image(np.array([0, 1, 2, 9, 10, 11, 30.0]).reshape(7, 1, 1), np.eye(4))
    >>> seeds = LabelMap(np.array([5, 0, 0, 0, 0, 2, 0]).reshape(7, 1, 1), np.eye(4))
    >>> partition(ramp, seeds=seeds, noise_sd=(1.0,)).array.reshape(-1)
    array([5, 5, 5, 2, 2, 2, 0], dtype=int32)
    """
    for name, limit in (("local_difference", local_difference), ("global_difference", global_difference)):
        if limit is not None and not limit >= 0:
            raise InputError(f"{name}: expected 0 or more, got {limit}")
    if order not in ("independent", "queue"):
        raise InputError(f"order: expected 'independent' or 'queue', got {order!r}")
    channels = image.channels.shape[-1]
    sd = estimated_noise_sd(image) if noise_sd is None else np.asarray(noise_sd, np.float64)
    if sd.shape != (channels,) or not (np.isfinite(sd) & (sd >= 0)).all():
        raise InputError(f"noise_sd: expected {channels} values of 0 or more, one for each channel, got {noise_sd!r}")
    sd = np.where(sd > 0, sd, 1.0)
    start = find_seeds(image, share=seed_share, voxels=seed_voxels) if seeds is None else seeds
    check_seeds(image, start, "seeds")
    x = np.ascontiguousarray(image.channels)
    values = start.values[start.values != 0]
    rows = (np.searchsorted(values, start.array) + 1).astype(np.int32)
    rows[start.array == 0] = 0
    largest = np.maximum(np.abs(x).reshape(-1, channels).max(axis=0).astype(np.float64), np.finfo(np.float32).tiny)
    scale = 2.0 ** (np.ceil(np.log2(largest)) - _BITS)
    limits = (np.inf if local_difference is None else local_difference, global_difference)
    grow = _grow_best_first if order == "independent" else _grow_in_turn
    grow(x, scale, sd, limits[0], np.inf if limits[1] is None else limits[1], rows, values.size)
    return LabelMap(np.concatenate([[0], values]).astype(np.int32)[rows], image.affine, image.name)


def check_seeds(image: Image, seeds: LabelMap, what: str) -> None:
    """Check grid and labels of seeds or markers."""
    if not image.grid.matches(seeds.grid):
        raise GeometryError(
            f"{what}: expected the grid of image {image.name!r}, got shapes {seeds.shape} and {image.shape}, affines "
            f"{seeds.affine.tolist()} and {image.affine.tolist()}"
        )
    if not seeds.array.any():
        raise InputError(f"{what} {seeds.name!r}: expected labels above 0, got 0 at every voxel")
    if seeds.array.min() < 0:
        raise InputError(f"{what} {seeds.name!r}: expected labels above 0, got {seeds.array.min()}")


def gradient_magnitude(image: Image) -> Float32:
    """Compute the gradient magnitude per mm by central differences; Euclidean over channels.

    Parameters
    ----------
    image : Image
        The volume.

    Returns
    -------
    (I, J, K) float32
    """
    inverse = np.linalg.inv(image.affine[:3, :3])
    squares = np.zeros(image.shape, np.float32)
    for c in range(image.channels.shape[-1]):
        channel = image.channels[..., c]
        steps = [np.gradient(channel, axis=a) if n > 1 else None for a, n in enumerate(image.shape)]
        for world in range(3):
            parts = [step * np.float32(inverse[a, world]) for a, step in enumerate(steps) if step is not None]
            if parts:
                squares += np.square(np.sum(parts, axis=0, dtype=np.float32))
    return np.sqrt(squares)


def find_seeds(image: Image, *, share: float = 0.3, voxels: int = 8) -> LabelMap:
    """Find seeds: connected parts of the voxels of lowest gradient.

    Parameters
    ----------
    image : Image
        The volume.
    share : float
        Fraction of all voxels, those of lowest gradient, that are seeds; above 0 and at most 1.
    voxels : int
        Minimum number of voxels of a seed. If all parts are smaller, the largest ones are kept.

    Returns
    -------
    LabelMap
        Seeds 1..S, at least one.
    """
    from scipy.ndimage import label

    if not 0 < share <= 1:
        raise InputError(f"seed_share: expected above 0 and at most 1, got {share}")
    gradient = gradient_magnitude(image)
    parts, _ = label(gradient <= np.quantile(gradient, share))
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    keep = sizes >= min(max(voxels, 1), int(sizes.max()))
    number = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return LabelMap(number[parts], image.affine, image.name)


@njit(cache=True)
def _step(x, v, w, sd):  # type: ignore[no-untyped-def]
    """Difference of two voxels in noise standard deviations."""
    squares = 0.0
    for c in range(x.shape[1]):
        squares += ((np.float64(x[v, c]) - np.float64(x[w, c])) / sd[c]) ** 2
    return np.sqrt(squares)


@njit(cache=True)
def _off_mean(x, v, sums, size, scale, sd):  # type: ignore[no-untyped-def]
    """Difference of a voxel from a region's mean, by integer sums, so that the order of the sum has no effect."""
    squares = 0.0
    for c in range(x.shape[1]):
        mean = sums[c] / size * scale[c]
        squares += ((np.round(x[v, c] / scale[c]) * scale[c] - mean) / sd[c]) ** 2
    return np.sqrt(squares)


@njit(cache=True)
def _add(x: Float32, v: int, sums: Int64, scale: Float64) -> None:
    for c in range(x.shape[1]):
        sums[c] += np.int64(np.round(x[v, c] / scale[c]))


@njit(cache=True)
def _neighbours(v: int, shape: tuple[int, int, int], out: Int64) -> int:
    """Flat indices of the face neighbours of a voxel."""
    k = v % shape[2]
    j = v // shape[2] % shape[1]
    i = v // (shape[1] * shape[2])
    n = 0
    if i > 0:
        out[n] = v - shape[1] * shape[2]
        n += 1
    if i < shape[0] - 1:
        out[n] = v + shape[1] * shape[2]
        n += 1
    if j > 0:
        out[n] = v - shape[2]
        n += 1
    if j < shape[1] - 1:
        out[n] = v + shape[2]
        n += 1
    if k > 0:
        out[n] = v - 1
        n += 1
    if k < shape[2] - 1:
        out[n] = v + 1
        n += 1
    return n


@njit(cache=True)
def _seed_sums(x: Float32, rows: Int32, scale: Float64, count: int) -> tuple[Int64, Int64]:
    sums = np.zeros((count + 1, x.shape[1]), np.int64)
    sizes = np.zeros(count + 1, np.int64)
    for v in range(rows.size):
        if rows[v] > 0:
            sizes[rows[v]] += 1
            _add(x, v, sums[rows[v]], scale)
    return sums, sizes


@njit(cache=True)
def _grow_in_turn(
    volume: Float32, scale: Float64, sd: Float64, local: float, overall: float, labels: Int32, count: int
) -> None:
    """Grow first in, first out: a queue of voxels whose neighbours must be visited."""
    shape = labels.shape
    x, rows = volume.reshape(-1, volume.shape[3]), labels.reshape(-1)
    sums, sizes = _seed_sums(x, rows, scale, count)
    near = np.empty(6, np.int64)
    queue = np.empty(rows.size, np.int32)
    end = 0
    for v in range(rows.size):
        if rows[v] > 0:
            queue[end] = v
            end += 1
    begin = 0
    while begin < end:
        v = queue[begin]
        begin += 1
        row = rows[v]
        for n in range(_neighbours(v, shape, near)):
            w = near[n]
            if rows[w] != 0 or _step(x, v, w, sd) > local:
                continue
            if _off_mean(x, w, sums[row], sizes[row], scale, sd) <= overall:
                rows[w] = row
                sizes[row] += 1
                _add(x, w, sums[row], scale)
                queue[end] = w
                end += 1


@njit(cache=True)
def _less(keys, voxels, regions, p, q):  # type: ignore[no-untyped-def]
    if keys[p] != keys[q]:
        return keys[p] < keys[q]
    if regions[p] != regions[q]:
        return regions[p] < regions[q]
    return voxels[p] < voxels[q]


@njit(cache=True)
def _swap(keys: Float64, voxels: Int32, regions: Int32, p: int, q: int) -> None:
    keys[p], keys[q] = keys[q], keys[p]
    voxels[p], voxels[q] = voxels[q], voxels[p]
    regions[p], regions[q] = regions[q], regions[p]


@njit(cache=True)
def _twice(values):  # type: ignore[no-untyped-def]
    out = np.empty(2 * values.size, values.dtype)
    out[: values.size] = values
    return out


@njit(cache=True)
def _grow_best_first(
    volume: Float32, scale: Float64, sd: Float64, local: float, overall: float, labels: Int32, count: int
) -> None:
    """Grow by similarity: all voxels of equal similarity are chosen before any of them joins."""
    shape = labels.shape
    x, rows = volume.reshape(-1, volume.shape[3]), labels.reshape(-1)
    sums, sizes = _seed_sums(x, rows, scale, count)
    near = np.empty(6, np.int64)
    keys = np.empty(1024)
    voxels = np.empty(1024, np.int32)
    regions = np.empty(1024, np.int32)
    size = 0
    fresh = np.empty(1024, np.int32)  # voxels that joined last, whose neighbours are candidates
    joined = 0
    for v in range(rows.size):
        if rows[v] > 0:
            if joined == fresh.size:
                fresh = _twice(fresh)
            fresh[joined] = v
            joined += 1
    while True:
        for f in range(joined):
            v = fresh[f]
            row = rows[v]
            for n in range(_neighbours(v, shape, near)):
                w = near[n]
                if rows[w] != 0 or _step(x, v, w, sd) > local:
                    continue
                off = _off_mean(x, w, sums[row], sizes[row], scale, sd)
                if off > overall:
                    continue
                if size == keys.size:
                    keys, voxels, regions = _twice(keys), _twice(voxels), _twice(regions)
                keys[size], voxels[size], regions[size] = off, w, row
                at = size
                size += 1
                while at > 0 and _less(keys, voxels, regions, at, (at - 1) // 2):
                    _swap(keys, voxels, regions, at, (at - 1) // 2)
                    at = (at - 1) // 2
        if size == 0:
            break
        joined = 0
        best = keys[0]
        while size > 0 and keys[0] == best:
            v, row = voxels[0], regions[0]
            size -= 1
            keys[0], voxels[0], regions[0] = keys[size], voxels[size], regions[size]
            at = 0
            while True:
                child = 2 * at + 1
                if child >= size:
                    break
                if child + 1 < size and _less(keys, voxels, regions, child + 1, child):
                    child += 1
                if not _less(keys, voxels, regions, child, at):
                    break
                _swap(keys, voxels, regions, at, child)
                at = child
            if rows[v] == 0:  # of equally similar regions the smallest label came first
                rows[v] = row
                sizes[row] += 1
                _add(x, v, sums[row], scale)
                if joined == fresh.size:
                    fresh = _twice(fresh)
                fresh[joined] = v
                joined += 1
