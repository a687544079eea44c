"""Region merging: merge adjacent regions, most similar first, by a heap over the edges of the adjacency graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.regions._contraction import MEAN_DIFFERENCE, MUMFORD_SHAH, WARD, contract
from atlasseg.regions.adjacency_graph import AdjacencyGraph
from atlasseg.volume import Float64, Int32, Int64

__all__ = ["Merges", "merge"]

Criterion = Literal["ward", "mean_difference", "mumford_shah"]

_KINDS = {"mean_difference": MEAN_DIFFERENCE, "ward": WARD, "mumford_shah": MUMFORD_SHAH}


@dataclass(frozen=True, eq=False)
class Merges:
    """Hierarchy of merges. It can be cut at any number of regions.

    Parameters
    ----------
    count : int
        Initial number R of regions.
    kept, absorbed : (M,) int32
        Rows (0..R - 1) of the two regions of each merge, in order. The union has the row `kept`.
    costs : (M,) float64
        Cost of each merge. Costs need not ascend: a union can be closer to a third region than its parts were.
    """

    count: int
    kept: Int32
    absorbed: Int32
    costs: Float64

    def cut(self, regions: int) -> Int32:
        """Cut the hierarchy into `regions` regions.

        Parameters
        ----------
        regions : int
            Number of regions.

        Returns
        -------
        (R,) int32
            Region of each row: 1, 2, ... by first row.

        Raises
        ------
        InputError
            The hierarchy has no level with this number of regions.
        """
        fewest = self.count - self.kept.size
        if not fewest <= regions <= self.count:
            raise InputError(f"regions: expected {fewest} to {self.count} for this hierarchy, got {regions}")
        done = self.count - regions
        rows: Int32 = _truncate(self.count, self.kept[:done], self.absorbed[:done])
        return rows

    def linkage(self, regions: int) -> Float64:
        """Convert the last merges, from `regions` regions on, to SciPy's `linkage` matrix.

        Leaf i is region i + 1 of ``cut(regions)``. The height of a merge is the largest cost so far, so that none is
        below its children; counts are numbers of leaves.

        Parameters
        ----------
        regions : int
            Number of leaves.

        Returns
        -------
        (regions - roots, 4) float64
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
        Adjacency graph of the initial regions.
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge.
    threshold : float, optional
        Maximum cost of a merge, 0 or more; with 0, neighbours of equal mean merge.
    regions : int, optional
        Number of regions at which merging ends, if it did not end at the threshold.
    noise_sd : tuple of float, optional
        Noise of each channel, by which means are divided. Default: 1.

    Returns
    -------
    Merges
        Deterministic. In a tie the result depends on the order of the rows.

    Raises
    ------
    InputError
        Neither threshold nor regions is given, one is out of range, or `regions` exceeds the number of regions.

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
    """Arrays of a graph for `merge_packed`, which overwrites them, so that no second copy is in memory.

    Parameters
    ----------
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Merge criterion.
    records : (E, 8) int32
        The ends of each edge, and six columns of work space.
    areas_mm2 : (E,) float64
        Shared area of each edge, for "mumford_shah"; otherwise empty.
    nodes : (R, 1 + C) float64
        Size of each region, and the sums of its channels.
    weights : (C,) float64
        Reciprocal of the noise of each channel.
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
    """Make the arrays of `merge_packed` from those of a graph. `areas_mm2` is not copied, the others are."""
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
    """Merge a packed graph, and overwrite it; see `merge`."""
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
            f"{regions}. Give fewer, or split with a lower threshold."
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
    for m in range(kept.size - 1, -1, -1):  # later merges first, so that one pass is enough
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
