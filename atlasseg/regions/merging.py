"""Region merging: merge adjacent regions, the most similar first, by a heap over the edges of the adjacency graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.regions._contraction import MEAN_DIFFERENCE, MUMFORD_SHAH, WARD, contract
from atlasseg.regions.adjacency_graph import AdjacencyGraph
from atlasseg.volume import Float64, Int32, Int64

Criterion = Literal["ward", "mean_difference", "mumford_shah"]

_KINDS = {"mean_difference": MEAN_DIFFERENCE, "ward": WARD, "mumford_shah": MUMFORD_SHAH}


@dataclass(frozen=True, eq=False)
class Merges:
    """The hierarchy that merging makes: cut it anywhere without merging again.

    Parameters
    ----------
    count : int
        Number R of regions at the start.
    kept, absorbed : (M,) int32
        Of each merge, in order, the rows (0..R - 1) under which the two were known; the union is known as `kept`.
    costs : (M,) float64
        What each merge cost by its criterion. Need not ascend: a union can be closer to a third than its parts were.
    """

    count: int
    kept: Int32
    absorbed: Int32
    costs: Float64

    def cut(self, regions: int) -> Int32:
        """(R,) which of `regions` regions each row belongs to: 1, 2, ... by first row.

        Raises
        ------
        InputError
            The hierarchy has no such level.
        """
        fewest = self.count - self.kept.size
        if not fewest <= regions <= self.count:
            raise InputError(f"{fewest} to {self.count} regions can be had from this hierarchy, not {regions}")
        done = self.count - regions
        rows: Int32 = _truncate(self.count, self.kept[:done], self.absorbed[:done])
        return rows

    def linkage(self, regions: int) -> Float64:
        """(regions - roots, 4) matrix of SciPy's `linkage` over the last merges, from `regions` regions on.

        Leaf i is region i + 1 of ``cut(regions)``. Heights are the largest cost so far, so that none lies below its
        children; counts are leaves.
        """
        leaf_of = self.cut(regions)
        start = self.count - regions
        node = {int(row): int(leaf_of[row]) - 1 for row in {*self.kept[start:], *self.absorbed[start:]}}
        sizes = [1] * regions
        out = []
        height = 0.0
        for kept, absorbed, cost in zip(
            self.kept[start:].tolist(), self.absorbed[start:].tolist(), self.costs[start:].tolist(), strict=True
        ):
            height = max(height, cost)
            a, b = node[kept], node[absorbed]
            sizes.append(sizes[a] + sizes[b])
            out.append([min(a, b), max(a, b), height, sizes[-1]])
            node[kept] = len(sizes) - 1
        return np.array(out, np.float64).reshape(-1, 4)


def merge(
    graph: AdjacencyGraph,
    *,
    criterion: Criterion = "ward",
    threshold: float | None = None,
    regions: int | None = None,
    noise_sd: tuple[float, ...] | None = None,
) -> Merges:
    r"""Merge the regions of a graph until the cheapest merge costs more than `threshold`, or `regions` are left.

    With :math:`n` voxels and mean :math:`\mu` of each region, and the area :math:`A` of the boundary that two regions
    share in mm², the cost of merging :math:`a` and :math:`b` is

    .. math::

        \text{mean_difference:} \quad & \lVert \mu_a - \mu_b \rVert \\
        \text{ward:} \quad & \frac{n_a n_b}{n_a + n_b} \lVert \mu_a - \mu_b \rVert^2 \\
        \text{mumford_shah:} \quad & \frac{n_a n_b}{n_a + n_b} \frac{\lVert \mu_a - \mu_b \rVert^2}{A}

    ``ward`` is the increase of the sum of squared deviations [1]_. With ``mumford_shah``, merging lowers the
    functional "squared deviations + threshold times boundary area" as long as the cost is below the threshold [2]_.

    Parameters
    ----------
    graph : AdjacencyGraph
        Regions to start from.
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge.
    threshold : float, optional
        Dearest merge that is still done, 0 or more; at 0 exactly equal neighbours merge.
    regions : int, optional
        Number of regions to stop at, if the threshold has not stopped it before.
    noise_sd : tuple of float, optional
        What each channel is divided by before means are compared; 1 where not given.

    Returns
    -------
    Merges
        Deterministic. On a tie the result depends on the order of the rows.

    Raises
    ------
    InputError
        Neither threshold nor regions is given, one is out of range, or more regions are asked for than there are.

    References
    ----------
    .. [1] Ward, Hierarchical grouping to optimize an objective function, J. Am. Stat. Assoc. 58, 1963; on a graph:
       Beaulieu, Goldberg, Hierarchy in picture segmentation: a stepwise optimization approach, IEEE TPAMI 11, 1989.
    .. [2] Koepfler, Lopez, Morel, A multiscale algorithm for image segmentation by variational method, SIAM J. Numer.
       Anal. 31, 1994, section 3.
    """
    areas_mm2 = graph.areas_mm2.copy() if criterion == "mumford_shah" else np.zeros(0)
    packed = pack(graph.edges, areas_mm2, graph.sizes, graph.means, criterion=criterion, noise_sd=noise_sd)
    return merge_packed(packed, threshold=threshold, regions=regions)


@dataclass(frozen=True, eq=False)
class Packed:
    """A graph as it is merged, for callers to whom a second copy of it is too much; `merge_packed` overwrites it.

    Parameters
    ----------
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Merge criterion.
    records : (E, 8) int32
        The ends of each edge, and six columns for the kernel.
    areas_mm2 : (E,) float64
        Shared area of each edge, for "mumford_shah"; else empty.
    nodes : (R, 1 + C) float64
        Size of each region, and the sums of its channels.
    weights : (C,) float64
        One over the noise of each channel.
    """

    criterion: Criterion
    records: Int32
    areas_mm2: Float64
    nodes: Float64
    weights: Float64


def pack(
    edges: Int32,
    areas_mm2: Float64,
    sizes: Int64,
    means: Float64,
    *,
    criterion: Criterion,
    noise_sd: tuple[float, ...] | None = None,
) -> Packed:
    """The arrays of a graph as `merge_packed` takes them; `areas_mm2` becomes part of it, the others are copied."""
    count, channels = means.shape
    if criterion not in _KINDS:
        raise InputError(f"criterion: expected one of {', '.join(_KINDS)}, got {criterion!r}")
    sd = np.ones(channels) if noise_sd is None else np.asarray(noise_sd, np.float64)
    if sd.shape != (channels,) or not (np.isfinite(sd) & (sd > 0)).all():
        raise InputError(f"noise_sd: expected {channels} values above 0, one for each channel, got {noise_sd!r}")
    records = np.empty((len(edges), 8), np.int32)
    records[:, :2] = edges
    nodes = np.empty((count, 1 + channels))
    nodes[:, 0] = sizes
    np.multiply(means, sizes[:, None], out=nodes[:, 1:])
    return Packed(criterion, records, areas_mm2, nodes, 1 / sd)


def merge_packed(packed: Packed, *, threshold: float | None, regions: int | None) -> Merges:
    """`merge` of a graph that was packed, which is used up by it."""
    count = len(packed.nodes)
    if threshold is None and regions is None:
        raise InputError("expected a threshold, a number of regions, or both, to stop merging, got neither")
    if threshold is not None and not threshold >= 0:
        raise InputError(f"expected a merge threshold of 0 or more, got {threshold}")
    if regions is not None and regions < 1:
        raise InputError(f"expected at least 1 region, got {regions}")
    if regions is not None and regions > count:
        raise InputError(
            f"regions: expected at most {count}, the number of blocks ({int(packed.nodes[:, 0].sum())} voxels), got "
            f"{regions}. Give fewer, or split with a lower threshold"
        )
    limit = np.inf if threshold is None else float(threshold)
    absorbed = contract(
        packed.records,
        packed.areas_mm2,
        packed.nodes,
        packed.weights,
        _KINDS[packed.criterion],
        limit,
        1 if regions is None else regions,
    )
    costs, kept = packed.nodes[absorbed, 0], packed.nodes[absorbed, 1].astype(np.int32)
    return Merges(count, kept, absorbed, costs)


@njit(cache=True)
def _truncate(count, kept, absorbed):  # type: ignore[no-untyped-def]
    parent = np.arange(count).astype(np.int32)
    for m in range(kept.size - 1, -1, -1):  # later merges first, so that one look suffices
        parent[absorbed[m]] = parent[kept[m]]
    number = np.zeros(count, np.int32)
    out = np.empty(count, np.int32)
    last = 0
    for row in range(count):
        root = parent[row]
        if number[root] == 0:
            last += 1
            number[root] = last
        out[row] = number[root]
    return out
