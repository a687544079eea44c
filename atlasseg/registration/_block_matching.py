"""Block matching: automatic landmarks by finding blocks of one image in another.

References
----------
.. [1] Ourselin, S., Roche, A., Prima, S., Ayache, N. (2000). Block matching: a general framework to improve robustness
   of rigid registration of medical images. MICCAI, LNCS 1935, 557-566.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from scipy import ndimage

from atlasseg.threads import run_slices

if TYPE_CHECKING:
    from atlasseg.volume import Bool, Float32, Float64, Int64

FLAT_BLOCK = 1e-6
"""Blocks with a variance below this fraction of the image's have too little texture to be matched."""


def select_textured_blocks(image: Float32, allowed: Bool, *, count: int, radius_voxels: int) -> Int64:
    """Select block centres spread evenly over the image, in each neighbourhood the one with the largest variance.

    Parameters
    ----------
    image : (I, J, K) float32
    allowed : (I, J, K) bool
        Allowed centres. Those with a block that leaves the image are excluded.
    count : int
        Approximate number of blocks: the allowed voxels are divided into this many cubes with at most one block each.
    radius_voxels : int
        Blocks have ``2 radius_voxels + 1`` voxels along each axis.

    Returns
    -------
    (B, 3) int64
        Voxel indices, in C order of the cubes.
    """
    size = 2 * radius_voxels + 1
    values = image.astype(np.float64) - float(image.mean())
    mean = ndimage.uniform_filter(values, size)
    variance = ndimage.uniform_filter(values**2, size) - mean**2
    usable = allowed & mask_interior(image.shape, radius_voxels) & (variance > FLAT_BLOCK * values.var())
    voxels = np.argwhere(usable)
    if not len(voxels):
        return np.zeros((0, 3), np.int64)
    edge = max(1, round((len(voxels) / count) ** (1 / 3)))
    cube = np.ravel_multi_index(tuple((voxels // edge).T), tuple(n // edge + 1 for n in image.shape))
    order = np.lexsort((-variance[usable], cube))  # stable, so that ties go to the first voxel
    first = np.unique(cube[order], return_index=True)[1]
    centres: Int64 = voxels[order[first]].astype(np.int64)
    return centres


def mask_interior(shape: tuple[int, ...], margin_voxels: int) -> Bool:
    """Make a mask (I, J, K) of the voxels with at least `margin_voxels` voxels on every side."""
    keep = np.zeros(shape, bool)
    keep[tuple(slice(margin_voxels, max(n - margin_voxels, margin_voxels)) for n in shape)] = True
    return keep


def match_blocks(
    fixed: Float32, moving: Float32, centres: Int64, known: Bool, *, radius_voxels: int, search_voxels: int
) -> tuple[Float64, Float64]:
    """Match blocks of the fixed image to blocks of the moving image.

    Each block is compared by correlation with every block of the moving image whose centre is at most `search_voxels`
    away along each axis. The best offset is refined by a parabola along each axis.

    Parameters
    ----------
    fixed, moving : (I, J, K) float32
        On the same grid.
    centres : (B, 3) int64
        Block centres in the fixed image; the blocks lie inside it.
    known : (I, J, K) bool
        Where the moving image is known. Blocks that are not completely known are not compared.
    radius_voxels, search_voxels : int
        Radius of the blocks and of the search window.

    Returns
    -------
    offsets : (B, 3) float64
        Offset from each block to its match, in voxels.
    correlations : (B,) float64
        Correlation of each match, -1 to 1; NaN for a block without a match.
    """
    size = 2 * radius_voxels + 1
    whole = ndimage.minimum_filter(known, size, mode="constant", cval=False)
    offsets, correlations = np.zeros((len(centres), 3)), np.full(len(centres), np.nan)
    run_slices(_match, len(centres), fixed, moving, centres, whole, radius_voxels, search_voxels, offsets, correlations)
    return offsets, correlations


@njit(cache=True)
def _correlation(fixed, moving, i, j, k, a, b, c, radius):  # type: ignore[no-untyped-def]
    """Correlate the block of `fixed` around (i, j, k) with that of `moving` around (a, b, c); 0 for constant blocks."""
    n = (2 * radius + 1) ** 3
    sf = sm = sff = smm = sfm = 0.0
    origin_f, origin_m = fixed[i, j, k], moving[a, b, c]
    for di in range(-radius, radius + 1):
        for dj in range(-radius, radius + 1):
            for dk in range(-radius, radius + 1):
                f = np.float64(fixed[i + di, j + dj, k + dk] - origin_f)
                m = np.float64(moving[a + di, b + dj, c + dk] - origin_m)
                sf += f
                sm += m
                sff += f * f
                smm += m * m
                sfm += f * m
    product = (sff - sf * sf / n) * (smm - sm * sm / n)
    return (sfm - sf * sm / n) / np.sqrt(product) if product > 0 else 0.0


@njit(cache=True, nogil=True)
def _match(start, stop, fixed, moving, centres, whole, radius, search, offsets, correlations):  # type: ignore[no-untyped-def]
    width = 2 * search + 1
    shape = fixed.shape
    for block in range(start, stop):
        i, j, k = centres[block]
        scores = np.full((width, width, width), -np.inf)
        best = np.array([-1, -1, -1])
        highest, nearest = -np.inf, 0
        for p in range(width):
            for q in range(width):
                for r in range(width):
                    a, b, c = i + p - search, j + q - search, k + r - search
                    outside = a < 0 or b < 0 or c < 0 or a >= shape[0] or b >= shape[1] or c >= shape[2]
                    if outside or not whole[a, b, c]:
                        continue
                    score = _correlation(fixed, moving, i, j, k, a, b, c, radius)
                    scores[p, q, r] = score
                    length = (p - search) ** 2 + (q - search) ** 2 + (r - search) ** 2
                    if score > highest or (score == highest and length < nearest):
                        highest, nearest = score, length
                        best[0], best[1], best[2] = p, q, r
        if highest == -np.inf:
            continue
        correlations[block] = highest
        for axis in range(3):
            offsets[block, axis] = best[axis] - search
            if 0 < best[axis] < width - 1:
                lower, upper = best.copy(), best.copy()
                lower[axis] -= 1
                upper[axis] += 1
                before = scores[lower[0], lower[1], lower[2]]
                after = scores[upper[0], upper[1], upper[2]]
                bend = before - 2 * highest + after
                if np.isfinite(bend) and bend < 0:
                    offsets[block, axis] += 0.5 * (before - after) / bend
