"""Octree: split a volume into homogeneous blocks that are nearly cubes in millimetres.

A block that is not homogeneous is halved along its long axes. An axis is long if the block
is more than 1/sqrt(2) as long along it as along its longest axis. A cube is split as by the classical
octree, a slice as by a quadtree, and thick slices are first split within the slice. Odd lengths need no padding: of 7
voxels the first part gets 4. Blocks of one voxel are always homogeneous.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.regions.noise import noise_sd as estimated_noise_sd
from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float32, Float64, Image, Int32, Int64, LabelMap

__all__ = ["split"]

Homogeneity = Literal["range", "variance", "noise"]

_KINDS = {"range": 0, "variance": 1, "noise": 2}
_STACK = 8 * 32  # a box halves at most 31 times, and leaves at most 7 siblings on the stack each time


def split(
    image: Image,
    *,
    homogeneity: Homogeneity = "noise",
    threshold: float | None = None,
    significance: float = 0.001,
    noise_sd: tuple[float, ...] | None = None,
) -> LabelMap:
    """Split a volume into homogeneous blocks.

    Parameters
    ----------
    image : Image
        Volume of any size and spacing. A block must be homogeneous in each channel.
    homogeneity : {"noise", "range", "variance"}
        "range": largest minus smallest value is at most `threshold`. "variance": the mean squared deviation from the
        block's mean is at most `threshold`. "noise": the block's variance and its largest deviation are plausible for
        normal noise of `noise_sd` around one mean, by a chi-square test and an extreme value test.
    threshold : float, optional
        For "range" in units of the image, for "variance" in their square; 0 or more.
    significance : float
        Probability that a block of pure noise is split, for "noise", over both tests and all channels (Bonferroni).
    noise_sd : tuple of float, optional
        Noise of each channel, for "noise". Default: estimated by `noise.noise_sd`.

    Returns
    -------
    LabelMap
        Blocks 1..R, numbered by their first voxels in C order.

    Raises
    ------
    InputError
        A parameter is missing, superfluous or out of range, or the volume has more than 2**31 - 2 voxels.

    References
    ----------
    .. [1] Horowitz, Pavlidis, Picture segmentation by a tree traversal algorithm, J. ACM 23, 1976.

    Examples
    --------
    >>> steps = Image(np.repeat([0.0, 0, 0, 5], 4).reshape(4, 4, 1).T, np.eye(4))
    >>> split(steps, homogeneity="range", threshold=0.0).array[0]
    array([[ 1,  1,  2,  3],
           [ 1,  1,  4,  5],
           [ 6,  6,  7,  8],
           [ 6,  6,  9, 10]], dtype=int32)
    """
    if image.array.size == 0 or np.prod(image.shape) >= 2**31 - 1:
        raise InputError(f"image {image.name!r}: expected 1 to 2**31 - 2 voxels, got shape {image.shape}")
    x = np.ascontiguousarray(image.channels)
    channels = x.shape[-1]
    spacing_mm = np.asarray(image.spacing_mm, np.float64)
    sizes = _block_sizes(image.shape, spacing_mm)
    limits = np.zeros((sizes.size, channels, 2))
    if homogeneity == "noise":
        if threshold is not None:
            raise InputError(
                "threshold: expected homogeneity 'range' or 'variance', got 'noise', which takes a significance"
            )
        if not 0 < significance < 1:
            raise InputError(f"expected a significance between 0 and 1, got {significance}")
        sd = estimated_noise_sd(image) if noise_sd is None else np.asarray(noise_sd, np.float64)
        if sd.shape != (channels,) or not (np.isfinite(sd) & (sd >= 0)).all():
            raise InputError(
                f"noise_sd: expected {channels} values of 0 or more, one for each channel, got {noise_sd!r}"
            )
        limits = _noise_limits(sizes, sd, significance / channels)
    elif homogeneity in _KINDS:
        if threshold is None or not threshold >= 0:
            raise InputError(f"threshold: expected 0 or more for homogeneity {homogeneity!r}, got {threshold}")
        limits[:] = threshold
    else:
        raise InputError(f"homogeneity: expected one of {', '.join(_KINDS)}, got {homogeneity!r}")

    out = np.zeros(image.shape, np.int32)
    kind = _KINDS[homogeneity]
    boxes = np.array([[0, image.shape[0], 0, image.shape[1], 0, image.shape[2]]], np.int64)
    for _ in range(2):  # to have enough boxes for all threads
        whole = np.zeros(len(boxes), np.bool_)
        run_slices(_find_whole, len(boxes), x, boxes, kind, sizes, limits, whole)
        boxes = np.concatenate([boxes[whole], _halve(boxes[~whole], spacing_mm)])
    run_slices(_split_boxes, len(boxes), x, boxes, spacing_mm, kind, sizes, limits, out)
    _number_blocks(out.reshape(-1))
    return LabelMap(out, image.affine, image.name)


def _noise_limits(sizes: Int64, sd: Float64, significance: float) -> Float64:
    """(S, C, 2) largest unbiased variance and largest deviation from the mean of a block of each size."""
    from scipy.stats import chi2, norm

    n = np.maximum(sizes, 2).astype(np.float64)
    variance = chi2.isf(significance / 2, n - 1) / (n - 1)
    deviation = norm.isf(significance / 4 / n)
    return np.stack([np.outer(variance, sd**2), np.outer(deviation, sd)], axis=-1)


def _block_sizes(shape: tuple[int, int, int], spacing_mm: Float64) -> Int64:
    """Ascending voxel counts of all possible blocks."""
    seen: set[tuple[int, ...]] = set()
    level: set[tuple[int, ...]] = {shape}
    while level:
        seen |= level
        following: set[tuple[int, ...]] = set()
        for box in level:
            for child in _halve(np.array([[0, box[0], 0, box[1], 0, box[2]]], np.int64), spacing_mm):
                following.add(tuple(int(n) for n in child[1::2] - child[::2]))
        level = following - seen
    return np.unique([int(np.prod(s)) for s in seen]).astype(np.int64)


@njit(cache=True)
def _is_long(n0: int, n1: int, n2: int, spacing_mm: Float64) -> tuple[bool, bool, bool]:
    """Along which axes a block is halved."""
    e0 = n0 * spacing_mm[0] if n0 > 1 else 0.0
    e1 = n1 * spacing_mm[1] if n1 > 1 else 0.0
    e2 = n2 * spacing_mm[2] if n2 > 1 else 0.0
    shortest = max(e0, max(e1, e2)) * 0.7071067811865476
    return n0 > 1 and e0 > shortest, n1 > 1 and e1 > shortest, n2 > 1 and e2 > shortest


@njit(cache=True)
def _push_halves(box: Int64, spacing_mm: Float64, stack: Int64, top: int) -> int:
    """Put the parts of a box on `stack` from `top` on (none for a box of one voxel), and return the new top."""
    a0, b0, a1, b1, a2, b2 = box[0], box[1], box[2], box[3], box[4], box[5]
    long0, long1, long2 = _is_long(b0 - a0, b1 - a1, b2 - a2, spacing_mm)
    if not (long0 or long1 or long2):
        return top
    m0 = a0 + (b0 - a0 + 1) // 2 if long0 else b0
    m1 = a1 + (b1 - a1 + 1) // 2 if long1 else b1
    m2 = a2 + (b2 - a2 + 1) // 2 if long2 else b2
    for p0 in range(2 if long0 else 1):
        for p1 in range(2 if long1 else 1):
            for p2 in range(2 if long2 else 1):
                part = stack[top]
                part[0], part[1] = (a0, m0) if p0 == 0 else (m0, b0)
                part[2], part[3] = (a1, m1) if p1 == 0 else (m1, b1)
                part[4], part[5] = (a2, m2) if p2 == 0 else (m2, b2)
                top += 1
    return top


@njit(cache=True)
def _halve(boxes: Int64, spacing_mm: Float64) -> Int64:
    """(M, 6) parts of all boxes."""
    out = np.empty((8 * len(boxes) + 1, 6), np.int64)
    top = 0
    for n in range(len(boxes)):
        top = _push_halves(boxes[n], spacing_mm, out, top)
    return out[:top].copy()


@njit(cache=True)
def _homogeneous(x: Float32, box: Int64, kind: int, sizes: Int64, limits: Float64) -> bool:
    a0, b0, a1, b1, a2, b2 = box[0], box[1], box[2], box[3], box[4], box[5]
    n = (b0 - a0) * (b1 - a1) * (b2 - a2)
    if n == 1:
        return True
    row = np.searchsorted(sizes, n)
    for c in range(x.shape[3]):
        first = x[a0, a1, a2, c]
        low = high = first
        if kind == 0:
            widest = limits[row, c, 0]
            for i in range(a0, b0):
                for j in range(a1, b1):
                    for k in range(a2, b2):
                        value = x[i, j, k, c]
                        if value < low:
                            low = value
                        if value > high:
                            high = value
                    if np.float64(high) - np.float64(low) > widest:
                        return False
            continue
        total = squares = 0.0
        for i in range(a0, b0):
            for j in range(a1, b1):
                for k in range(a2, b2):
                    value = x[i, j, k, c]
                    if value < low:
                        low = value
                    if value > high:
                        high = value
                    off = np.float64(value) - np.float64(first)  # avoids cancellation
                    total += off
                    squares += off * off
        if low == high:
            continue
        spread = max(squares - total * total / n, 0.0)
        if kind == 1:
            if spread / n > limits[row, c, 0]:
                return False
        else:
            mean = first + total / n
            if spread / (n - 1) > limits[row, c, 0] or max(high - mean, mean - low) > limits[row, c, 1]:
                return False
    return True


@njit(cache=True, nogil=True)
def _find_whole(
    start: int, stop: int, x: Float32, boxes: Int64, kind: int, sizes: Int64, limits: Float64, out: Bool
) -> None:
    """Write (M,) whether each box is homogeneous."""
    for n in range(start, stop):
        out[n] = _homogeneous(x, boxes[n], kind, sizes, limits)


@njit(cache=True, nogil=True)
def _split_boxes(
    start: int,
    stop: int,
    x: Float32,
    boxes: Int64,
    spacing_mm: Float64,
    kind: int,
    sizes: Int64,
    limits: Float64,
    out: Int32,
) -> None:
    """Split each box into homogeneous blocks; each voxel gets the flat index of its block's first voxel."""
    width, depth = out.shape[1], out.shape[2]
    for n in range(start, stop):
        stack = np.empty((_STACK, 6), np.int64)
        stack[0] = boxes[n]
        top = 1
        box = np.empty(6, np.int64)
        while top > 0:
            top -= 1
            box[:] = stack[top]
            if _homogeneous(x, box, kind, sizes, limits):
                corner = (box[0] * width + box[2]) * depth + box[4]
                for i in range(box[0], box[1]):
                    for j in range(box[2], box[3]):
                        for k in range(box[4], box[5]):
                            out[i, j, k] = corner
            else:
                top = _push_halves(box, spacing_mm, stack, top)


@njit(cache=True)
def _number_blocks(flat: Int32) -> None:
    """Replace first-voxel indices by 1, 2, ... in place; the first voxel of a block is visited first."""
    last = 0
    for v in range(flat.size):
        first = flat[v]
        if first == v:
            last += 1
            flat[v] = last
        else:
            flat[v] = flat[first]
