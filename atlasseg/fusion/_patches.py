"""Exhaustive patch search by box sums.

For one offset of the search window, the product of target and shifted candidate is summed over all patches at
once, axis after axis, so that a patch costs a few operations per axis and not one per voxel. With the
sums of the candidate and of its square, computed once, this gives the correlation or squared difference of each patch
exactly (in double precision and without differences of long sums, so that an outlier affects only the patches that
contain it). The volume is processed in tiles that fit into the cache, only around the requested voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numba import njit
from scipy.ndimage import maximum_filter

from atlasseg.errors import InputError
from atlasseg.threads import map_in_threads
from atlasseg.volume import Bool, Float32, Float64, Int32, Int64

Radius = int | tuple[int, int, int]
Measure = Literal["correlation", "ssd"]
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_TILE = np.array([24, 12, 48])
"""Maximum size of a tile in voxels: its planes fit into the first-level cache, the tile into the second-level cache."""

TILE_MARGIN = np.array([4, 4, 8])
"""Overhead of a tile along each axis, in voxels: the margin of the default patch and window."""

TILE_STEP = 4
"""Distance in voxels of the positions at which a tile may be cut."""

TIE = 1e-6
"""Minimum advantage of a patch over an earlier one, in units of correlation, so that rounding does not decide."""

CONSTANT = 1e-5
"""A patch is constant if its standard deviation is below this fraction of its root mean square."""


@dataclass(frozen=True, eq=False)
class NearestPatches:
    """The `k` best patches of all candidates together, for each voxel, best first.

    Parameters
    ----------
    voxels : (V,) int64
        Ascending flat (C order) indices of the voxels.
    offsets : (O, 3) int64
        The search window, by increasing distance.
    candidate : (V, k) int32
        Candidate of each patch; -1 if there are fewer than `k`.
    chosen : (V, k) int32
        Row of `offsets` of each patch; -1 if there are fewer.
    scores : (V, k) float64
        Correlation summed over channels, or ``-SSD``; -inf if there are fewer.
    """

    voxels: Int64
    offsets: Int64
    candidate: Int32
    chosen: Int32
    scores: Float64


def find_nearest_patches(
    target: Float32,
    candidates: Sequence[Float32],
    where: Bool,
    *,
    count: int,
    patch_radius_voxels: Radius = 2,
    search_radius_voxels: Radius = 3,
    measure: Measure = "ssd",
    inside: Sequence[Bool | None] | None = None,
) -> NearestPatches:
    """Find, for each voxel, the `count` patches of all candidates and offsets that are most similar to the target's.

    Parameters
    ----------
    target : (C, I, J, K) float32
        Intensities, channels first.
    candidates : N arrays (C, I, J, K) float32
        On the target's grid.
    where : (I, J, K) bool
        Voxels to search for.
    count : int
        Number of patches, at least 1.
    patch_radius_voxels, search_radius_voxels : int or three ints
        In voxels: a patch has ``2 r + 1`` voxels along an axis. Beyond the grid, the nearest voxel's intensity is used;
        the centre of a patch stays on the grid.
    measure : {'correlation', 'ssd'}
        Pearson correlation (equivalent to the squared difference of patches of mean 0 and standard deviation 1; 0 if
        a patch is constant), or the sum of squared differences. The values of the channels are added.
    inside : N arrays (I, J, K) bool or None
        Allowed centres of patches of each candidate; None: all voxels.

    Returns
    -------
    NearestPatches
        Equally similar patches are in the order of the candidates, then of the length of the offsets.
    """
    if count < 1:
        raise InputError(f"count: expected at least 1 patch, got {count}")
    search = PatchSearch(target, where, patch_radius_voxels, search_radius_voxels, measure)
    codes = np.full((search.voxels.size, count), -1, np.int32)
    scores = np.full((search.voxels.size, count), -np.inf)
    known = expand_masks(inside, len(candidates), where.shape)

    def find(box: Box) -> None:
        rows, width = search.rows(box), box[1][2] - box[0][2]
        tile = search.target_tile(box)
        score, code = search.empty(box, count)
        for n, candidate in enumerate(candidates):
            search.run(box, tile, candidate, known[n], n * len(search.offsets), score, code)
        for m in range(count):
            codes[rows[1], m] = code[m, ..., :width][rows[0]]
            scores[rows[1], m] = search.unscale(tile, score[m])[..., :width][rows[0]]

    map_in_threads(find, split_into_tiles(where))
    number = len(search.offsets)
    found = codes >= 0
    which, offset = np.where(found, codes // number, -1), np.where(found, codes % number, -1)
    return NearestPatches(search.voxels, search.offsets, which.astype(np.int32), offset.astype(np.int32), scores)


def dilate(where: Bool, patch: Int64) -> Bool:
    """Dilate `where` (I, J, K) by a box of radius `patch` (3,)."""
    out: Bool = maximum_filter(where.view(np.uint8), tuple(2 * patch + 1), mode="constant").astype(bool)
    return out


Box = tuple[Int64, Int64]
"""Start and stop of a tile, each (3,)."""

Tile = tuple[Float64, Float64, Float64]
"""Intensities of a scan around a tile, and the two arrays of `compute_statistics`."""


class PatchSearch:
    """Patch search: the target, voxels, patch and window that all tiles share; see `find_nearest_patches`.

    Attributes
    ----------
    voxels : (V,) int64
        Ascending flat indices of the voxels searched for.
    number : (I, J, K) int64
        Row of each of these voxels in the result, -1 elsewhere.
    patch, window : (3,) int64
        Radii in voxels.
    offsets : (O, 3) int64
        The window, by increasing distance.
    """

    def __init__(
        self,
        target: Float32,
        where: Bool,
        patch_radius_voxels: Radius,
        search_radius_voxels: Radius,
        measure: Measure = "correlation",
    ) -> None:
        if measure not in ("correlation", "ssd"):
            raise InputError(f"measure: expected 'correlation' or 'ssd', got {measure!r}")
        self.target = np.ascontiguousarray(target, np.float32)
        self.where = where
        self.patch = as_radius(patch_radius_voxels, "patch_radius_voxels")
        self.window = as_radius(search_radius_voxels, "search_radius_voxels")
        self.offsets = list_offsets(search_radius_voxels)
        self.correlation = measure == "correlation"
        self.voxels = np.flatnonzero(where)
        self.number = np.full(where.shape, -1, np.int64)
        self.number.reshape(-1)[self.voxels] = np.arange(self.voxels.size)

    def rows(self, box: Box) -> tuple[Bool, Int64]:
        """Return the voxels of a tile to search for, and their rows in the result."""
        inside = tuple(slice(a, b) for a, b in zip(*box, strict=True))
        return self.where[inside], self.number[inside][self.where[inside]]

    def target_tile(self, box: Box) -> Tile:
        """Intensities and statistics of the target around a tile."""
        values = load_tile(self.target, box[0] - self.patch, box[1] + self.patch + [0, 0, 2 * self.window[2]])
        return values, *compute_statistics(values, self.patch, self.correlation, True)

    def empty(self, box: Box, count: int) -> tuple[Float64, Int64]:
        """Initial scores and codes of a tile, (count, i, j, w)."""
        shape = (count, *(box[1] - box[0] + [0, 0, 2 * (self.patch[2] + self.window[2])]))
        return np.full(shape, -np.inf), np.full(shape, -1, np.int64)

    def run(
        self, box: Box, tile: Tile, candidate: Float32, covered: Bool, code: int, score: Float64, codes: Int64
    ) -> Tile:
        """Search one candidate around a tile, and keep the best patches in `score` and `codes`, see `search_tile`."""
        margin = self.patch + self.window
        values = load_tile(np.ascontiguousarray(candidate, np.float32), box[0] - margin, box[1] + margin)
        centre, scale = compute_statistics(values, self.patch, self.correlation, False)
        forbid_outside(scale, covered, box[0] - self.window)
        search_tile(*tile, values, centre, scale, self.offsets + self.window, self.patch, code, score, codes)
        return values, centre, scale

    def unscale(self, tile: Tile, score: Float64) -> Float64:
        """Convert from the scale of the kernel, in which ties are tested, to correlation or ``-SSD``."""
        if self.correlation:
            return score
        energy = np.sum([sum_boxes(channel**2, self.patch) for channel in tile[0]], axis=0)
        return np.where(energy > 0, (score - 1) * np.where(energy > 0, energy, 1), score)


def as_radius(radius: Radius, name: str) -> Int64:
    """Convert a radius in voxels, given as one number or three, to (3,).

    Raises
    ------
    InputError
        The radius is not one or three integers of at least 0.
    """
    given = np.asarray(radius)
    if given.dtype.kind not in "iu" or given.shape not in ((), (3,)) or given.min() < 0:
        raise InputError(f"{name}: expected one or three integers of at least 0, got {radius!r}")
    return np.broadcast_to(given.astype(np.int64), (3,)).copy()


def list_offsets(radius: Radius) -> Int64:
    """List all offsets (O, 3) within a radius along each axis, by increasing length, then in lexicographic order."""
    reach = as_radius(radius, "search_radius_voxels")
    window = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    return window[np.argsort((window**2).sum(axis=1), kind="stable")]


def split_into_tiles(where: Bool) -> list[Box]:
    """Cover each voxel of `where` once by boxes that fit into the cache and contain few other voxels.

    A box is cut in two if that saves work, including the work for the margin of each part.
    """
    boxes: list[Box] = []
    waiting = [(np.zeros(3, np.int64), np.array(where.shape))] if where.any() else []
    while waiting:
        start, stop = waiting.pop()
        start, stop = shrink_box(where, start, stop)
        size = stop - start
        parts, least = None, np.inf if (size > MAX_TILE).any() else _estimate_work(size)
        for axis in range(3):
            for cut in _list_cuts(int(size[axis]), int(MAX_TILE[axis])):
                below, above = stop.copy(), start.copy()
                below[axis] = above[axis] = start[axis] + cut
                halves = shrink_box(where, start, below), shrink_box(where, above, stop)
                work = sum(_estimate_work(b - a) for a, b in halves)
                if work < least:
                    parts, least = halves, work
        if parts is None:
            boxes.append((start, stop))
        else:
            waiting += parts[::-1]
    return boxes


def _list_cuts(size: int, largest: int) -> range | list[int]:
    """List the positions where a box may be cut: the middle of a much too large box, otherwise every few voxels."""
    return [size // 2] if size > 2 * largest else range(TILE_STEP, size - TILE_STEP + 1, TILE_STEP)


def _estimate_work(size: Int64) -> float:
    """Estimate the number of elements to process for a box of voxels with the default margins."""
    return float(np.prod(size + TILE_MARGIN)) if (size > 0).all() else 0.0


@njit(cache=True, nogil=True)
def shrink_box(where: Bool, start: Int64, stop: Int64) -> tuple[Int64, Int64]:
    """Shrink a box to the bounding box of the True voxels of `where` in it; empty if there are none."""
    first, last = stop.copy(), start.copy()
    for i in range(start[0], stop[0]):
        for j in range(start[1], stop[1]):
            for k in range(start[2], stop[2]):
                if where[i, j, k]:
                    first[0], last[0] = min(first[0], i), max(last[0], i + 1)
                    first[1], last[1] = min(first[1], j), max(last[1], j + 1)
                    first[2], last[2] = min(first[2], k), max(last[2], k + 1)
    return first, last


def expand_masks(inside: Sequence[Bool | None] | None, count: int, shape: tuple[int, ...]) -> list[Bool]:
    """Make N arrays (I, J, K) bool: the allowed centres of patches of each candidate."""
    everywhere = np.ones(shape, bool)
    given = [None] * count if inside is None else inside
    return [everywhere if each is None else np.ascontiguousarray(each) for each in given]


@njit(cache=True, nogil=True)
def load_tile(volume: Float32, start: Int64, stop: Int64) -> Float64:
    """Crop a (C, I, J, K) volume to the box from `start` to `stop`; beyond the edge the nearest voxel is repeated."""
    channels, n0, n1, n2 = volume.shape
    out = np.empty((channels, stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]))
    for c in range(channels):
        for i in range(out.shape[1]):
            x = min(max(i + start[0], 0), n0 - 1)
            for j in range(out.shape[2]):
                y = min(max(j + start[1], 0), n1 - 1)
                for k in range(out.shape[3]):
                    z = min(max(k + start[2], 0), n2 - 1)
                    out[c, i, j, k] = volume[c, x, y, z]
    return out


@njit(cache=True, nogil=True)
def forbid_outside(scale: Float64, inside: Bool, start: Int64) -> None:
    """Set the score of patches centred outside the grid or outside `inside` to NaN, so that they are never chosen."""
    n0, n1, n2 = inside.shape
    for i in range(scale.shape[1]):
        x = i + start[0]
        for j in range(scale.shape[2]):
            y = j + start[1]
            for k in range(scale.shape[3]):
                z = k + start[2]
                if x < 0 or y < 0 or z < 0 or x >= n0 or y >= n1 or z >= n2 or not inside[x, y, z]:
                    scale[:, i, j, k] = np.nan


@njit(cache=True, nogil=True)
def sum_boxes(values: Float64, patch: Int64) -> Float64:
    """Sum a (i + 2 p0, j + 2 p1, k) array over boxes of radius p, (i, j, k); along k, each box begins at k."""
    n0, n1, width = values.shape[0] - 2 * patch[0], values.shape[1] - 2 * patch[1], values.shape[2]
    n2 = width - 2 * patch[2]
    first = np.zeros((n0, values.shape[1], width))
    for i in range(n0):
        for m in range(2 * patch[0] + 1):
            for j in range(values.shape[1]):
                for k in range(width):
                    first[i, j, k] += values[i + m, j, k]
    out = np.zeros((n0, n1, width))
    row = np.empty(width)
    for i in range(n0):
        for j in range(n1):
            row[:] = 0.0
            for m in range(2 * patch[1] + 1):
                for k in range(width):
                    row[k] += first[i, j + m, k]
            for m in range(2 * patch[2] + 1):
                for k in range(n2):
                    out[i, j, k] += row[m + k]
    return out


@njit(cache=True, nogil=True)
def compute_statistics(values: Float64, patch: Int64, correlation: bool, of_target: bool) -> tuple[Float64, Float64]:
    """Compute the two arrays (C, i, j, k) by which `search_tile` converts a sum of products to a score.

    With products summed to s, the score is ``(s - centre_T centre_A) scale_T scale_A``. For a correlation, centre_T is
    the target's mean, centre_A the candidate's sum, and the scales are 1 over the root of the summed squared
    deviations, 0 for a constant patch. For a squared difference, it is ``1 - SSD / (sum of T^2)``.
    """
    channels, width = values.shape[0], values.shape[3]
    count = (2 * patch[0] + 1) * (2 * patch[1] + 1) * (2 * patch[2] + 1)
    n0, n1 = values.shape[1] - 2 * patch[0], values.shape[2] - 2 * patch[1]
    centre = np.empty((channels, n0, n1, width))
    scale = np.empty((channels, n0, n1, width))
    for c in range(channels):
        total = sum_boxes(values[c], patch)
        squares = sum_boxes(values[c] * values[c], patch)
        if correlation:
            for i in range(n0):
                for j in range(n1):
                    for k in range(width):
                        deviation = squares[i, j, k] - total[i, j, k] * total[i, j, k] / count
                        centre[c, i, j, k] = total[i, j, k] / count if of_target else total[i, j, k]
                        constant = deviation <= CONSTANT * CONSTANT * squares[i, j, k]
                        scale[c, i, j, k] = 0.0 if constant else 1.0 / np.sqrt(deviation)
        else:
            for i in range(n0):
                for j in range(n1):
                    for k in range(width):
                        centre[c, i, j, k] = 0.5 if of_target else squares[i, j, k]
                        scale[c, i, j, k] = squares[i, j, k] if of_target else 1.0
    if of_target and not correlation:
        for i in range(n0):
            for j in range(n1):
                for k in range(width):
                    energy = scale[:, i, j, k].sum()
                    scale[:, i, j, k] = 2.0 / energy if energy > 0 else 2.0
    return centre, scale


@njit(cache=True, nogil=True, fastmath={"contract"})
def search_tile(
    target: Float64,
    target_centre: Float64,
    target_scale: Float64,
    values: Float64,
    centre: Float64,
    scale: Float64,
    shifts: Int64,
    patch: Int64,
    code: int,
    score: Float64,
    codes: Int64,
) -> None:
    """Search all offsets and keep the best M patches of each voxel of a tile, best first.

    All arrays have the candidate's width w along the last axis, so that a plane can be shifted by an
    offset as one contiguous block. Values beyond the tile in a row are computed but not used.

    Parameters
    ----------
    target, target_centre, target_scale : (C, n0 + 2 p0, n1 + 2 p1, w) and twice (C, n0, n1, w)
        The target's tile, of n0 x n1 x n2 voxels, and its statistics.
    values, centre, scale : (C, n0 + 2 p0 + 2 s0, n1 + 2 p1 + 2 s1, w) and twice (C, n0 + 2 s0, n1 + 2 s1, w)
        The candidate's tile and statistics, ``w = n2 + 2 p2 + 2 s2``.
    shifts : (O, 3) int64
        Offsets plus the radius s of the window.
    patch : (3,) int64
        Radius p of the patch.
    code : int
        Code of the first offset.
    score, codes : (M, n0, n1, w)
        Updated in place: scores, and `code` + row of `shifts`.
    """
    channels = target.shape[0]
    levels, n0, n1, width = score.shape
    rows, window2 = 2 * patch[1] + 1, shifts[:, 2].max()
    depth = 2 * patch[0] + 1
    used = n1 * width - window2  # of a plane of sums along j
    length = used - 2 * patch[2]  # of a plane of scores
    taller = used + 2 * patch[1] * width
    target_planes = target.reshape(channels, target.shape[1], -1)
    planes = values.reshape(channels, values.shape[1], -1)
    target_centres = target_centre.reshape(channels, n0, -1)
    target_scales = target_scale.reshape(channels, n0, -1)
    centres = centre.reshape(channels, centre.shape[1], -1)
    scales = scale.reshape(channels, scale.shape[1], -1)
    scores = score.reshape(levels, n0, -1)
    best_codes = codes.reshape(levels, n0, -1)
    product = np.empty(taller)
    sums = np.zeros((channels, depth * used))  # along j, of the last planes that a patch reaches
    column = np.empty(used)  # over these planes
    total = np.empty(length)
    value = np.empty(length)
    for shift in range(shifts.shape[0]):
        d0 = shifts[shift, 0]
        along = shifts[shift, 1] * width + shifts[shift, 2]
        here = code + shift
        for i in range(n0 + 2 * patch[0]):
            first = i % depth * used
            for c in range(channels):
                t = target_planes[c, i]
                a = planes[c, i + d0, along : along + taller]
                for e in range(taller):
                    product[e] = t[e] * a[e]
                sum_windows(product, width, rows, sums[c, first : first + used])
            x = i - 2 * patch[0]
            if x < 0:
                continue
            value[:] = 0.0
            for c in range(channels):
                sum_windows(sums[c], used, depth, column)
                sum_windows(column, 1, 2 * patch[2] + 1, total)
                tc = target_centres[c, x]
                ts = target_scales[c, x]
                ac = centres[c, x + d0, along : along + length]
                az = scales[c, x + d0, along : along + length]
                for e in range(length):
                    value[e] += (total[e] - tc[e] * ac[e]) * (ts[e] * az[e])
            if levels == 1:
                best = scores[0, x]
                index = best_codes[0, x]
                for e in range(length):
                    better = value[e] > best[e] + TIE
                    best[e] = value[e] if better else best[e]
                    index[e] = here if better else index[e]
            else:
                for e in range(length):
                    if value[e] > scores[levels - 1, x, e] + TIE:
                        m = levels - 1
                        while m > 0 and value[e] > scores[m - 1, x, e] + TIE:
                            scores[m, x, e] = scores[m - 1, x, e]
                            best_codes[m, x, e] = best_codes[m - 1, x, e]
                            m -= 1
                        scores[m, x, e] = value[e]
                        best_codes[m, x, e] = here


@njit(cache=True, nogil=True)
def sum_windows(values: Float64, step: int, count: int, out: Float64) -> None:
    """Sum `count` elements at distances `step`, beginning at every position."""
    n = out.size
    if count == 5:  # the usual patch, in one pass
        a, b, c = values[:n], values[step : step + n], values[2 * step : 2 * step + n]
        d, e = values[3 * step : 3 * step + n], values[4 * step : 4 * step + n]
        for x in range(n):
            out[x] = a[x] + b[x] + c[x] + d[x] + e[x]
        return
    for x in range(n):
        out[x] = values[x]
    for m in range(1, count):
        shifted = values[m * step : m * step + n]
        for x in range(n):
            out[x] += shifted[x]
