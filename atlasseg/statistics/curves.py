"""Space-filling curves: orders of the voxels of a box in which successive voxels are neighbours.

A curve is an array of flat (C order) voxel indices in the order of the visit. Both curves visit every voxel
once, and successive voxels share a face, for boxes of any size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.volume import Bool, Int64

__all__ = ["curve", "hilbert", "jumps", "scan_order", "serpentine"]

CurveName = Literal["hilbert", "serpentine"]

MOST_PENDING = 1024
"""Maximum number of pending parts: at most four per level, and every third level at least halves a side."""


def curve(shape: tuple[int, int, int], name: CurveName = "hilbert") -> Int64:
    """Compute a curve through a box. Results are cached.

    Parameters
    ----------
    shape : (I, J, K)
        Voxels along each axis, each at least 1.
    name : str
        `hilbert` or `serpentine`.

    Returns
    -------
    (I * J * K,) int64
        Flat indices in the order of the curve; read-only.

    Raises
    ------
    InputError
        The name is unknown, or the box is empty.
    """
    if name not in ("hilbert", "serpentine"):
        raise InputError(f"curve: expected hilbert or serpentine, got {name!r}")
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"curve: expected at least one voxel along each of three axes, got shape {shape}")
    return _cached((int(shape[0]), int(shape[1]), int(shape[2])), name)


def scan_order(inside: Bool, name: CurveName = "hilbert") -> tuple[Int64, Bool]:
    """List the voxels of a region in the order of the curve through its bounding box.

    Parameters
    ----------
    inside : (I, J, K) bool
        The region.
    name : str
        Name of the curve, `hilbert` or `serpentine`.

    Returns
    -------
    voxels : (N,) int64
        Flat indices into `inside`.
    starts : (N,) bool
        Where a chain starts: at the first voxel, and where the curve enters the region again. A voxel and
        the one before it share a face where this is False.

    Raises
    ------
    InputError
        The region is empty.
    """
    if not inside.any():
        raise InputError("curve: expected a region with voxels, got an empty one. Check whether the mask is empty.")
    along = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(a[0]), int(a[-1]) + 1) for a in along)
    part = inside[box]
    order = curve(part.shape, name)
    kept = part.reshape(-1)[order]
    starts = np.concatenate(([True], ~kept[:-1]))[kept]
    index = np.unravel_index(order[kept], part.shape)
    moved = tuple(i + b.start for i, b in zip(index, box, strict=True))
    return np.asarray(np.ravel_multi_index(moved, inside.shape), np.int64), starts


def jumps(order: NDArray[np.integer[Any]], shape: tuple[int, int, int]) -> int:
    """Count the steps of a curve between voxels that share no face.

    Parameters
    ----------
    order : (N,) int
        Flat voxel indices in the order of the curve.
    shape : (I, J, K)
        Voxels along each axis.

    Returns
    -------
    int
    """
    apart = sum(np.abs(np.diff(index)) for index in np.unravel_index(order, shape))
    return int((np.asarray(apart) != 1).sum())


def hilbert(shape: tuple[int, int, int]) -> Int64:
    """Compute a Hilbert curve through a box of any size.

    As in the generalised Hilbert curve of [1]_, a box is divided into two, three or five parts. The curve enters each
    part at a corner and leaves it at the next corner along its main axis. For a cube of side 2^n the result is a
    Hilbert curve [2]_. The cuts are chosen so that each part has such a path. It exists if the side along the main axis
    is even, or if all sides are odd (by a chessboard colouring of the voxels). Two or three parts are always possible,
    with an even side of the parts with another main axis; five parts are possible if the main side is even. Therefore
    every step goes to a face neighbour, without exception.

    Parameters
    ----------
    shape : (I, J, K)
        Voxels along each axis, each at least 1.

    Returns
    -------
    (I * J * K,) int64
        Flat indices in the order of the curve, which starts at voxel (0, 0, 0).

    References
    ----------
    .. [1] Červený (2018), gilbert: space-filling curve for rectangular domains of arbitrary size.
    .. [2] Hilbert (1891), Ueber die stetige Abbildung einer Linie auf ein Flächenstück, Math. Ann. 38:459-460.

    Examples
    --------
    >>> hilbert((2, 2, 2))
    array([0, 1, 3, 2, 6, 7, 5, 4])
    """
    sizes = np.asarray(shape, np.int64)
    axes = sorted(range(3), key=lambda axis: (sizes[axis] % 2, -sizes[axis]))  # an even side, then the longest
    if sizes.max() > 1 and sizes[axes[0]] == 1:
        axes.sort(key=lambda axis: -sizes[axis])
    others = sorted(axes[1:], key=lambda axis: (-sizes[axis], -axis))
    strides = np.array([sizes[1] * sizes[2], sizes[2], 1])
    main, second, third = axes[0], others[0], others[1]
    return np.asarray(
        _hilbert(sizes[main], sizes[second], sizes[third], strides[main], strides[second], strides[third], MOST_PENDING)
    )


def serpentine(shape: tuple[int, int, int]) -> Int64:
    """Compute the serpentine (boustrophedon) scan: rows along the last axis in alternating directions, slices likewise.

    Parameters
    ----------
    shape : (I, J, K)
        Voxels along each axis, each at least 1.

    Returns
    -------
    (I * J * K,) int64
        Flat indices in the order of the scan.

    Examples
    --------
    >>> serpentine((2, 2, 2))
    array([0, 1, 3, 2, 6, 7, 5, 4])
    """
    order = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    order[1::2] = order[1::2, ::-1].copy()
    rows = order.reshape(-1, shape[2])
    rows[1::2] = rows[1::2, ::-1].copy()
    return order.reshape(-1)


@lru_cache(maxsize=2)
def _cached(shape: tuple[int, int, int], name: str) -> Int64:
    made = hilbert(shape) if name == "hilbert" else serpentine(shape)
    made.flags.writeable = False
    return made


@njit(cache=True, nogil=True)
def _even_half(size):  # type: ignore[no-untyped-def]
    """The even number nearest to half of `size`, at least 2."""
    return max((size + 2) // 4 * 2, 2)


@njit(cache=True, nogil=True)
def _hilbert(A, B, C, a, b, c, most):  # type: ignore[no-untyped-def]
    """Flat indices along the curve of a box of A x B x C voxels, whose steps along these sides are a, b, c.

    A part is (origin, A, B, C, a, b, c): the curve enters at its origin and leaves at origin + (A - 1) a.
    """
    out = np.empty(A * B * C, np.int64)
    parts = np.empty((most, 7), np.int64)
    parts[0] = np.array([0, A, B, C, a, b, c])
    pending, at = 1, 0
    while pending > 0:
        pending -= 1
        p, A, B, C, a, b, c = parts[pending]
        if B == 1 and C == 1:
            for n in range(A):
                out[at + n] = p + n * a
            at += A
            continue
        if A == 2 and B <= 2 and C <= 2:  # out over the first layer and back over the second
            n = B * C
            first = (0, c if B == 1 else b, b + c, c)
            for m in range(n):
                out[at + m] = p + first[m]
                out[at + 2 * n - 1 - m] = p + first[m] + a
            at += 2 * n
            continue
        if B < C:
            B, C, b, c = C, B, c, b
        if B <= 2 or 2 * A > 3 * B:  # two, one after the other
            half = _even_half(A)
            parts[pending] = (p + half * a, A - half, B, C, a, b, c)
            parts[pending + 1] = (p, half, B, C, a, b, c)
            pending += 2
        elif A % 2 == 1 or C == 1 or 3 * B > 4 * C:  # three: up along b, across, and down
            half, h = _even_half(B), A // 2
            end = p + (A - 1) * a + (half - 1) * b
            parts[pending] = (end, half, C, A - h, -b, c, -a)
            parts[pending + 1] = (p + half * b, A, B - half, C, a, b, c)
            parts[pending + 2] = (p, half, C, h, b, c, a)
            pending += 3
        else:  # five: up along b, along c, across, back along c, and down
            if C % 2 == 1 and B % 2 == 0:
                B, C, b, c = C, B, c, b
            half, g, h = _even_half(B), C // 2, A // 2
            if C % 2 == 1 and h % 2 == 0:
                h += 1 if h + 1 < A else -1
            near, far = p + (half - 1) * b, p + (A - 1) * a + (half - 1) * b
            back = (C - 1) * c
            parts[pending] = (far, half, g, A - h, -b, c, -a)
            parts[pending + 1] = (far + b + back, C, A - h, B - half, -c, -a, b)
            parts[pending + 2] = (near + back, A, half, C - g, a, -b, -c)
            parts[pending + 3] = (near + b, C, h, B - half, c, a, b)
            parts[pending + 4] = (p, half, g, h, b, c, a)
            pending += 5
    return out
