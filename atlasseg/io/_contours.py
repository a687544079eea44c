"""Planar contours: voxels inside polygons, and polygons around voxels.

Positions are (N, 2) voxel coordinates in a plane; whole numbers are the centres of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atlasseg.volume import Bool, Float64


def fill_polygons(polygons: Sequence[Float64], shape: tuple[int, int]) -> Bool:
    """Voxels whose centre is inside an odd number of polygons (even-odd rule).

    A polygon inside another one is a hole, and the two passes of a keyhole channel cancel. A centre that lies on an
    edge belongs to one side alone, so structures with a common edge share no voxel.

    Parameters
    ----------
    polygons : sequence of (N, 2) float64
        Vertices; the last one is joined to the first.
    shape : (I, J)

    Returns
    -------
    (I, J) bool
    """
    filled = np.zeros(shape, bool)
    if not polygons:
        return filled
    starts = np.concatenate(list(polygons))
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    first = np.clip(np.ceil(starts.min(axis=0)), 0, shape).astype(int)
    beyond = np.clip(np.ceil(starts.max(axis=0)), first, shape).astype(int)  # a centre on the far edge is outside
    low = np.clip(np.ceil(np.minimum(starts[:, 1], ends[:, 1])), first[1], beyond[1]).astype(int)
    high = np.clip(np.ceil(np.maximum(starts[:, 1], ends[:, 1])), first[1], beyond[1]).astype(int)
    lengths = high - low  # columns of voxels j in low <= j < high that an edge crosses
    edge = np.repeat(np.arange(len(starts)), lengths)
    j = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + low[edge]
    (i0, j0), (i1, j1) = starts[edge].T, ends[edge].T
    crossing = i0 + (j - j0) * (i1 - i0) / (j1 - j0)
    first_inside = np.clip(np.ceil(crossing), first[0], beyond[0]).astype(int)
    crossings = np.zeros((beyond[0] - first[0] + 1, beyond[1] - first[1]), np.int32)
    np.add.at(crossings, (first_inside - first[0], j - first[1]), 1)
    inside = np.bitwise_xor.accumulate(crossings & 1, axis=0)[:-1] == 1
    filled[first[0] : beyond[0], first[1] : beyond[1]] = inside
    return filled


def trace_polygons(mask: Bool) -> list[Float64]:
    """Polygons around the voxels of a mask, one per connected part, with holes joined to them by keyhole channels.

    Marching squares at the level midway between the centres of a voxel inside and one outside; diagonal neighbours are
    separate parts. `fill_polygons` of the result is the mask again.

    Parameters
    ----------
    mask : (I, J) bool

    Returns
    -------
    list of (N, 2) float64
    """
    from skimage.measure import find_contours

    padded = np.pad(mask, 1).astype(np.float32)
    closed = [_drop_collinear(line[:-1] - 1) for line in find_contours(padded, 0.5, fully_connected="low")]
    outer = [line for line in closed if _is_outer(line, mask)]
    holes = [line for line in closed if not _is_outer(line, mask)]
    # a ray along +i from the furthest point of a hole meets its surrounding contour, or a hole that was joined before
    boxes = np.array([[*line.min(axis=0), *line.max(axis=0)] for line in outer]).reshape(-1, 4)
    for hole in sorted(holes, key=lambda line: -float(line[:, 0].max())):
        _join_hole(outer, boxes, hole)
    return outer


def signed_distance(mask: Bool, spacing_mm: NDArray[np.floating]) -> Float64:
    """Distance in mm to the border of a mask, midway between voxels: negative inside, positive outside."""
    from scipy.ndimage import distance_transform_edt

    half = float(np.min(spacing_mm)) / 2
    inside = distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1]
    if not mask.any():
        return np.full(mask.shape, np.inf)
    outside = distance_transform_edt(~mask, sampling=spacing_mm)
    distance: Float64 = np.where(mask, half - inside, outside - half)
    return distance


def _is_outer(line: Float64, mask: Bool) -> bool:
    """Whether a contour of marching squares has the mask inside: a voxel beside its first edge is on the same side."""
    top = line[np.argmax(line[:, 0])]  # the furthest vertex along i lies half a voxel beyond a voxel of its inside
    below = np.array([int(np.ceil(top[0])) - 1, round(top[1])])
    return bool(mask[below[0], below[1]])


def _drop_collinear(line: Float64) -> Float64:
    """Polygon without the vertices that lie on the straight line between their neighbours."""
    before, after = line - np.roll(line, 1, axis=0), np.roll(line, -1, axis=0) - line
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return line[turns]


def _join_hole(outer: list[Float64], boxes: Float64, hole: Float64) -> None:
    """Join a hole to the contour around it by a channel of no width, along +i from its furthest vertex.

    `boxes` are the lowest and highest coordinates of the outer contours, (number, 4); a joined hole leaves them as they
    are.
    """
    start = int(np.argmax(hole[:, 0]))
    i, j = hole[start]
    best = (np.inf, 0, 0)  # position along i, contour, edge
    for number in np.flatnonzero((boxes[:, 1] <= j) & (j <= boxes[:, 3]) & (boxes[:, 2] >= i)):
        polygon = outer[number]
        ends = np.roll(polygon, -1, axis=0)
        crossed = np.flatnonzero((np.minimum(polygon[:, 1], ends[:, 1]) <= j) & (j < np.maximum(polygon, ends)[:, 1]))
        (i0, j0), (i1, j1) = polygon[crossed].T, ends[crossed].T
        at = i0 + (j - j0) * (i1 - i0) / (j1 - j0)
        at[at < i] = np.inf
        if len(at) and at.min() < best[0]:
            best = float(at.min()), int(number), int(crossed[np.argmin(at)])
    place, number, edge = best
    assert np.isfinite(place), "a hole lies inside a contour"
    gate = np.array([[place, j]])
    loop = np.concatenate([np.roll(hole, -start, axis=0), hole[start : start + 1]])
    polygon = outer[number]
    outer[number] = np.concatenate([polygon[: edge + 1], gate, loop, gate, polygon[edge + 1 :]])
