"""Region adjacency graph: adjacent regions, area of their common boundary, and contrast across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Float32, Float64, Image, Int32, Int64, LabelMap

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]
    import pandas as pd

__all__ = ["AdjacencyGraph", "adjacency_graph"]


@dataclass(frozen=True, eq=False)
class AdjacencyGraph:
    """Regions of a volume (nodes) and the faces they share (edges).

    Parameters
    ----------
    labels : (R,) int32
        Value of each region in its label map, ascending.
    sizes : (R,) int64
        Number of voxels of each region.
    means, sds : (R, C) float64
        Mean and standard deviation (over the population) of each channel.
    edges : (E, 2) int32
        Pairs of rows of `labels`, the smaller first, in lexicographic order: the regions that share a voxel face.
    areas_mm2 : (E,) float64
        Area of the faces that they share.
    contrasts : (E,) float64
        Mean over that area of the intensity difference across a face (Euclidean over channels).
    """

    labels: Int32
    sizes: Int64
    means: Float64
    sds: Float64
    edges: Int32
    areas_mm2: Float64
    contrasts: Float64

    def degrees(self) -> Int64:
        """Count the neighbours of each region.

        Returns
        -------
        (R,) int64
        """
        return np.bincount(self.edges.reshape(-1), minlength=self.labels.size).astype(np.int64)

    def neighbours(self, label: int) -> Int32:
        """List the labels of the regions adjacent to region `label`, ascending.

        Parameters
        ----------
        label : int
            Label of the region.

        Returns
        -------
        (N,) int32

        Raises
        ------
        InputError
            The label is no region.
        """
        row = int(np.searchsorted(self.labels, label))
        if row == self.labels.size or self.labels[row] != label:
            raise InputError(f"region: expected one of {self.labels.size}, up to {self.labels.max()}, got {label}")
        left, right = self.edges[:, 0], self.edges[:, 1]
        return np.sort(self.labels[np.concatenate([right[left == row], left[right == row]])])

    def to_networkx(self) -> networkx.Graph[int]:
        """Convert to a networkx graph: nodes are labels with `size`, `mean`, `sd`; edges with `area_mm2`, `contrast`.

        Returns
        -------
        networkx.Graph

        Raises
        ------
        MissingLibraryError
            networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            from atlasseg.errors import MissingLibraryError

            raise MissingLibraryError("networkx: expected the library, got none. pip install networkx") from error
        graph: networkx.Graph[int] = networkx.Graph()
        for label, size, mean, sd in zip(self.labels.tolist(), self.sizes.tolist(), self.means, self.sds, strict=True):
            graph.add_node(label, size=size, mean=mean.copy(), sd=sd.copy())
        ends = self.labels[self.edges].tolist()
        for (a, b), area, contrast in zip(ends, self.areas_mm2.tolist(), self.contrasts.tolist(), strict=True):
            graph.add_edge(a, b, area_mm2=area, contrast=contrast)
        return graph

    def table(self) -> pd.DataFrame:
        """Make a table with one row per region: label, voxels, mean and sd of each channel, and neighbours.

        Returns
        -------
        DataFrame
        """
        import pandas as pd

        columns: dict[str, Any] = {"region": self.labels, "voxels": self.sizes}
        several = self.means.shape[1] > 1
        for c in range(self.means.shape[1]):
            columns[f"mean_{c}" if several else "mean"] = self.means[:, c]
            columns[f"sd_{c}" if several else "sd"] = self.sds[:, c]
        both = np.concatenate([self.edges, self.edges[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        lists = np.split(self.labels[both[:, 1]], np.cumsum(self.degrees())[:-1])
        columns["neighbours"] = self.degrees()
        columns["neighbour_regions"] = [" ".join(map(str, part.tolist())) for part in lists]
        return pd.DataFrame(columns)


def adjacency_graph(image: Image, labels: LabelMap, *, background: bool = False) -> AdjacencyGraph:
    """Build the graph in one pass over the volume.

    Parameters
    ----------
    image : Image
        Image of which means, standard deviations and contrasts are computed.
    labels : LabelMap
        Regions, on the image's grid; their values need not be contiguous, nor the regions connected.
    background : bool
        Label 0 is a region too. Otherwise its voxels belong to no region.

    Raises
    ------
    GeometryError
        The two are on different grids.
    InputError
        No voxel belongs to a region.
    """
    if not image.grid.matches(labels.grid):
        raise GeometryError(
            f"image {image.name!r} and regions {labels.name!r}: expected one grid, got shapes {image.shape} and "
            f"{labels.shape}, affines {image.affine.tolist()} and {labels.affine.tolist()}"
        )
    rows = np.ascontiguousarray(labels.array)
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or background or not _are_contiguous(rows, high):
        values = np.unique(rows)
        values = values if background else values[values != 0]
        lookup = np.searchsorted(values, rows).astype(np.int32) + 1
        if not background:
            lookup[rows == 0] = 0
        rows = lookup
    else:
        values = np.arange(1, high + 1, dtype=np.int32)
    if values.size == 0:
        raise InputError(f"regions {labels.name!r}: expected labels above 0, got 0 at every voxel")
    x = np.ascontiguousarray(image.channels)
    sizes, means, sds = _statistics(x, rows, values.size)
    edges, sums, count = _edges(x, rows, face_areas_mm2(image.affine), 4 * values.size)  # an octree's blocks have fewer
    pairs = edges[:count, 0].astype(np.int64)
    pairs *= values.size
    pairs += edges[:count, 1]
    order = np.argsort(pairs)
    del pairs
    edges = edges[order]  # one array after the other, to save memory
    sums = sums[order]
    del order
    areas = sums[:, 0].copy()
    contrasts = sums[:, 1] / areas
    return AdjacencyGraph(values, sizes, means, sds, edges, areas, contrasts)


def face_areas_mm2(affine: Float64) -> Float64:
    """Compute the area (3,) of a voxel's face across each axis, for any affine."""
    steps = affine[:3, :3].T
    return np.array([float(np.linalg.norm(np.cross(steps[(a + 1) % 3], steps[(a + 2) % 3]))) for a in range(3)])


def _are_contiguous(rows: Int32, high: int) -> bool:
    """Whether the values other than 0 are 1..high."""
    if high > rows.size:
        return False
    return bool(_seen(rows.reshape(-1), high)[1:].all())


@njit(cache=True)
def _seen(flat: Int32, high: int):  # type: ignore[no-untyped-def]
    seen = np.zeros(high + 1, np.bool_)
    for v in range(flat.size):
        seen[flat[v]] = True
    return seen


@njit(cache=True)
def _statistics(x: Float32, rows: Int32, count: int) -> tuple[Int64, Float64, Float64]:
    """Sizes, means and standard deviations, in two passes to avoid cancellation; runs of one region are summed."""
    shape0, shape1, shape2, channels = x.shape
    sizes = np.zeros(count, np.int64)
    means = np.zeros((count, channels))
    sds = np.zeros((count, channels))
    for squared in range(2):
        for i in range(shape0):
            for j in range(shape1):
                k = 0
                while k < shape2:
                    row = rows[i, j, k]
                    end = k + 1
                    while end < shape2 and rows[i, j, end] == row:
                        end += 1
                    if row > 0:
                        for c in range(channels):
                            total = 0.0
                            if squared:
                                mean = means[row - 1, c]
                                for v in range(k, end):
                                    off = x[i, j, v, c] - mean
                                    total += off * off
                                sds[row - 1, c] += total
                            else:
                                for v in range(k, end):
                                    total += x[i, j, v, c]
                                means[row - 1, c] += total
                        if not squared:
                            sizes[row - 1] += end - k
                    k = end
        for row in range(count):
            for c in range(channels):
                if squared:
                    sds[row, c] = np.sqrt(sds[row, c] / sizes[row])
                else:
                    means[row, c] /= sizes[row]
    return sizes, means, sds


@njit(cache=True, inline="always")
def _slot(a, b, mask):  # type: ignore[no-untyped-def]
    """First slot of a pair: multiplicative hashing of both ends."""
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(mask))


@njit(cache=True)
def _find(ends, table, a, b):  # type: ignore[no-untyped-def]
    """The slot of `table` that contains the edge a-b, or the free slot for it."""
    mask = table.size - 1
    slot = _slot(a, b, mask)
    while table[slot] >= 0 and (ends[table[slot], 0] != a or ends[table[slot], 1] != b):
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
def _longer(values, capacity):  # type: ignore[no-untyped-def]
    out = np.empty((capacity, *values.shape[1:]), values.dtype)
    flat, into = values.reshape(-1), out.reshape(-1)
    for n in range(flat.size):
        into[n] = flat[n]
    return out


@njit(cache=True)
def _edges(x, rows, face_mm2, capacity):  # type: ignore[no-untyped-def]
    """All pairs that share a face, with area and area times contrast, and their count; a hash table that grows."""
    shape0, shape1, _, channels = x.shape
    ends = np.empty((capacity, 2), np.int32)  # unused pages take no memory
    sums = np.empty((capacity, 2))  # area, area times contrast
    length = 4
    while 2 * length < 3 * capacity:
        length *= 2
    table = np.full(length, -1, np.int32)
    count = 0
    # along a row the same two regions are often adjacent again: try the last edge across each axis first
    last = np.zeros(3, np.int64)
    for i in range(shape0):
        for j in range(shape1):
            for axis in range(3):
                i2, j2, k2 = i + (axis == 0), j + (axis == 1), int(axis == 2)
                if i2 == shape0 or j2 == shape1:
                    continue
                here, there = rows[i, j], rows[i2, j2, k2:]
                for k in range(there.size):
                    row, other = here[k], there[k]
                    if row == other or row <= 0 or other <= 0:
                        continue
                    a, b = (row - 1, other - 1) if row < other else (other - 1, row - 1)
                    edge = last[axis]
                    if edge >= count or ends[edge, 0] != a or ends[edge, 1] != b:
                        slot = _find(ends, table, a, b)
                        edge = table[slot]
                        if edge < 0:
                            if count == capacity:
                                capacity *= 2
                                ends, sums = _longer(ends, capacity), _longer(sums, capacity)
                                length *= 2
                                table = np.empty(0, np.int32)  # free the memory before the longer one is made
                                table = np.full(length, -1, np.int32)
                                for e in range(count):
                                    table[_find(ends, table, np.int64(ends[e, 0]), np.int64(ends[e, 1]))] = e
                                slot = _find(ends, table, a, b)
                            edge = count
                            table[slot] = edge
                            ends[edge, 0], ends[edge, 1] = a, b
                            sums[edge] = 0
                            count += 1
                        last[axis] = edge
                    if channels == 1:
                        contrast = abs(np.float64(x[i, j, k, 0]) - np.float64(x[i2, j2, k2 + k, 0]))
                    else:
                        squares = 0.0
                        for c in range(channels):
                            off = np.float64(x[i, j, k, c]) - np.float64(x[i2, j2, k2 + k, c])
                            squares += off * off
                        contrast = np.sqrt(squares)
                    sums[edge, 0] += face_mm2[axis]
                    sums[edge, 1] += face_mm2[axis] * contrast
    return ends, sums, count
