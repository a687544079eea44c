"""Figures of regions: their borders over the scan, and the dendrogram of their merges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlasseg.volume import Bool, Image, LabelMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlasseg.regions.merging import Merges

__all__ = ["borders", "dendrogram"]

BORDER = "#e69f00"
MOST_LEAVES = 40
"""Default number of leaves of a dendrogram."""


def borders(image: Image, regions: LabelMap, *, title: str = "Regions") -> Figure:
    """Plot borders of regions over slices of a scan.

    Parameters
    ----------
    image : Image
        The scan. Its first channel is shown.
    regions : LabelMap
        Regions or blocks of an octree, on the grid of the image.
    title : str
        Title of the figure; the number of regions is added.

    Returns
    -------
    Figure
        One panel for each axis across which a slice has at least two voxels in both directions.
    """
    from matplotlib.figure import Figure

    shape, spacing_mm = image.shape, image.spacing_mm
    thick = [a for a in range(3) if shape[a] > 1]
    axes = [a for a in range(3) if len([b for b in thick if b != a]) == 2] if len(thick) == 3 else []
    if not axes:  # a line of voxels
        axes = [next((a for a in (2, 1, 0) if shape[a] == 1), 2)]
    figure = Figure(figsize=(4.2 * len(axes), 4.6), layout="constrained")
    low, high = np.percentile(image.channels[..., 0], (0.5, 99.5))
    for column, axis in enumerate(axes):
        panel = figure.add_subplot(1, len(axes), column + 1)
        at = _busiest(regions, axis)
        across, up = [a for a in range(3) if a != axis]
        scan = np.take(image.channels[..., 0], at, axis).T
        inside = np.take(regions.array, at, axis).T
        size = (-0.5, shape[across] - 0.5, -0.5, shape[up] - 0.5)
        panel.imshow(
            scan,
            origin="lower",
            extent=size,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            interpolation="nearest",
            aspect=float(spacing_mm[up] / spacing_mm[across]),
        )
        for start, end in _segments(inside):
            panel.plot(*zip(start, end, strict=True), color=BORDER, linewidth=0.8, solid_capstyle="butt")
        panel.set(xlim=size[:2], ylim=size[2:], title=f"{'ijk'[axis]} = {at}", xticks=[], yticks=[])
        panel.set_xlabel("ijk"[across])
        panel.set_ylabel("ijk"[up])
    count = int((regions.values != 0).sum())
    figure.suptitle(f"{title}: {count}")
    return figure


def _busiest(regions: LabelMap, axis: int) -> int:
    """The slice across `axis` with most voxels in regions; in a tie the one nearest to the centre."""
    counts = (regions.array != 0).sum(axis=tuple(a for a in range(3) if a != axis))
    middle = np.abs(np.arange(counts.size) - (counts.size - 1) / 2)
    return int(np.lexsort((middle, -counts))[0])


def _segments(labels: np.ndarray) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Maximal straight lines between pixels of different regions; x across, y up."""
    lines = []
    for flipped, edges in ((False, labels[:, 1:] != labels[:, :-1]), (True, (labels[1:] != labels[:-1]).T)):
        for n in range(edges.shape[1]):
            for first, last in _runs(edges[:, n]):
                p, q = (n + 0.5, first - 0.5), (n + 0.5, last - 0.5)
                lines.append((p[::-1], q[::-1]) if flipped else (p, q))
    return lines


def _runs(on: Bool) -> list[tuple[int, int]]:
    """Half-open ranges in which `on` is True."""
    steps = np.diff(np.concatenate([[0], on.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def dendrogram(merges: Merges, *, most_leaves: int = MOST_LEAVES) -> Figure:
    """Plot the last merges as a tree; the height of a merge is its cost.

    If merging ended with several regions, the figure shows the last merges, and regions without a common merge have no
    common stem. Leaves are numbered by their first voxels.

    Parameters
    ----------
    merges : Merges
        From `merging.merge`, with at least one merge.
    most_leaves : int
        Maximum number of leaves.

    Returns
    -------
    Figure
    """
    from matplotlib.figure import Figure

    roots = merges.count - merges.kept.size
    leaves = min(merges.count, roots + most_leaves - 1)
    linkage = merges.linkage(leaves)
    figure = Figure(figsize=(9, 4), layout="constrained")
    panel = figure.add_subplot()
    where: dict[int, tuple[float, float]] = {}
    order = _leaf_order(linkage, leaves)
    shown = set(linkage[:, :2].astype(int).reshape(-1).tolist())
    order = [leaf for leaf in order if leaf in shown]  # a leaf without a merge has no branch
    for x, leaf in enumerate(order):
        where[leaf] = (float(x), 0.0)
    for n, (a, b, height, _) in enumerate(linkage):
        (x_a, y_a), (x_b, y_b) = where[int(a)], where[int(b)]
        panel.plot([x_a, x_a, x_b, x_b], [y_a, height, height, y_b], color="#0072b2", linewidth=1.2)
        where[leaves + n] = ((x_a + x_b) / 2, float(height))
    panel.set_xticks(range(len(order)), [str(leaf + 1) for leaf in order], rotation=90, fontsize=7)
    panel.set(xlabel="region, by first voxel", ylabel="cost of the merge")
    positive = linkage[linkage[:, 2] > 0, 2]
    if positive.size and positive.max() > 10 * positive.min():
        panel.set_yscale("symlog", linthresh=float(positive.min()), linscale=0.3)
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
    remain = "one region remains" if roots == 1 else f"{roots} regions remain"
    panel.set_title(f"The last {len(linkage)} of {merges.kept.size} merges; {remain}")
    return figure


def _leaf_order(linkage: np.ndarray, leaves: int) -> list[int]:
    """Order of the leaves from left to right without crossing branches."""
    children = {leaves + n: (int(row[0]), int(row[1])) for n, row in enumerate(linkage)}
    below = {child for pair in children.values() for child in pair}
    stack = [node for node in range(leaves + len(linkage) - 1, -1, -1) if node not in below]
    order = []
    while stack:
        node = stack.pop()
        if node in children:
            stack += reversed(children[node])
        else:
            order.append(node)
    return order
