"""Labelling of regions by a random walk with priors: neighbours without an intensity edge count as evidence too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.regions.adjacency_graph import AdjacencyGraph
from atlasseg.volume import Float64, Int64

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

__all__ = ["random_walk_labels"]

_REACH = 4  # maximum number of edges from a region with a label to the regions that may get it
_TOLERANCE = 1e-3  # relative residual of the solution
_MOST_ITERATIONS = 200


def random_walk_labels(
    graph: AdjacencyGraph, posterior: csc_array, *, weight: float, edge_contrast: float, face_mm2: float
) -> Int64:
    r"""Label each region by a random walk with priors [1]_.

    The field :math:`p` of label probabilities minimises, for one label at a time,

    .. math::

        \sum_r n_r (p_r - q_r)^2 + \textit{weight} \sum_{r \sim s} A_{rs}
        \exp\left( -\left( \frac{d_{rs}}{\textit{edge_contrast}} \right)^2 \right) (p_r - p_s)^2

    :math:`n_r` is the size of region :math:`r` in voxels, :math:`q_r` its mean posterior, :math:`A_{rs}` the number
    of faces that two regions share, and :math:`d_{rs}` the contrast between them. The posterior spreads where the
    intensity is uniform, and stops at edges. Each region takes the label of largest :math:`p`. With a weight of 0 that
    is the label of its summed posterior. A label is considered up to four regions away from regions where its
    probability is above 0; the probability of the label of largest mass is 1 minus the others.

    Parameters
    ----------
    graph : AdjacencyGraph
        Adjacency graph of R regions.
    posterior : (R, L) csc_array
        Probability of each label, summed over the voxels of each region.
    weight : float
        Weight of the neighbours, 0 or more.
    edge_contrast : float
        Contrast at which the weight of a neighbour is 1/e, in units of the contrasts of the graph; above 0.
    face_mm2 : float
        Area of one face of a voxel.

    Returns
    -------
    (R,) int64
        Column of each region's label; in a tie the smaller.

    Raises
    ------
    InputError
        A parameter is out of range.

    References
    ----------
    .. [1] Grady, Multilabel random walker image segmentation using prior models, CVPR 2005.
    """
    check(weight=weight, edge_contrast=edge_contrast)
    from scipy.sparse import coo_array, diags_array

    count, labels = posterior.shape
    mass = np.asarray(posterior.sum(axis=0))
    rest = int(np.argmax(mass))
    strength = weight / face_mm2 * graph.areas_mm2 * np.exp(-((graph.contrasts / edge_contrast) ** 2))
    a, b = graph.edges.T
    ends = np.concatenate([a, b]), np.concatenate([b, a])
    links = coo_array((np.tile(strength, 2), ends), shape=(count, count)).tocsr()
    sizes = graph.sizes.astype(np.float64)
    system = (diags_array(sizes + links.sum(axis=1)) - links).tocsr()
    best = np.full(count, -np.inf)
    winner = np.zeros(count, np.int64)
    left = np.ones(count)
    for column in [c for c in range(labels) if c != rest] + [rest]:
        if column == rest:
            rows, values = np.arange(count), left
        else:
            one = slice(posterior.indptr[column], posterior.indptr[column + 1])
            sums = np.zeros(count)
            sums[posterior.indices[one]] = posterior.data[one]
            rows = _around(links, sums > 0) if weight > 0 else np.flatnonzero(sums)
            values = _solved(system[rows][:, rows], sums[rows], sums[rows] / sizes[rows])
            left[rows] -= values
        better = (values > best[rows]) | ((values == best[rows]) & (column < winner[rows]))
        best[rows[better]] = values[better]
        winner[rows[better]] = column
    return winner


def check(*, weight: float, edge_contrast: float) -> None:
    """Check the ranges of the parameters."""
    if not 0 <= weight < np.inf:
        raise InputError(f"field_weight: expected 0 or more, got {weight}")
    if not edge_contrast > 0:
        raise InputError(f"edge_contrast: expected more than 0, got {edge_contrast}")


def _around(links: csr_array, seen: NDArray[np.bool_]) -> Int64:
    """Rows within `_REACH` edges of the given ones."""
    for _ in range(_REACH):
        seen = seen | (links[:, np.flatnonzero(seen)].sum(axis=1) > 0)
    return np.flatnonzero(seen)


def _solved(system: csr_array, right: Float64, start: Float64) -> Float64:
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import cg

    if right.size == 0:
        return right
    scale = diags_array(1 / system.diagonal())
    out: Float64 = cg(system, right, x0=start, rtol=_TOLERANCE, maxiter=_MOST_ITERATIONS, M=scale)[0]
    return out
