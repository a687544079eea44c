"""Slices of a scan with matplotlib: for notebooks, scripts and papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.labels import LabelTable
from atlasseg.volume import Float64, Grid, Image, LabelMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plane = Literal["axial", "coronal", "sagittal"]

_NORMAL: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))
_WINDOW_PERCENTILES = (0.5, 99.5)
_PANEL_INCHES = 3.2


def plot_slices(
    image: Image,
    labels: LabelMap | None = None,
    *,
    overlay: NDArray[np.floating[Any]] | None = None,
    overlay_name: str = "",
    overlay_range: tuple[float, float] | None = None,
    overlay_colors: str = "inferno",
    table: LabelTable | None = None,
    planes: Sequence[Plane] = ("axial", "coronal", "sagittal"),
    at_mm: ArrayLike | None = None,
    filled: bool = False,
    axes: Sequence[Axes] | None = None,
    title: str = "",
) -> list[Axes]:
    """Plot slices of a scan, with outlines of labels and an overlay.

    Slices are planes of the scan's own grid, each named after the nearest anatomical plane. They are in radiological
    convention: the patient's right is on the left of axial and coronal slices. The sides are marked.

    Parameters
    ----------
    image : Image
        The scan. If it has several channels, the first is shown.
    labels : LabelMap, optional
        On the scan's grid; each label is outlined in its colour.
    overlay : (I, J, K), optional
        Values on the scan's grid, for example entropy or probability, drawn in colour with a colour bar. NaN is
        not drawn.
    overlay_name : str
        Label of the colour bar.
    overlay_range : (float, float), optional
        Values at the two ends of the colour bar; by default the smallest and the largest.
    overlay_colors : str
        Name of a matplotlib colormap.
    table : LabelTable, optional
        Gives the colours of the labels.
    planes : sequence of {"axial", "coronal", "sagittal"}
    at_mm : (R, A, S), optional
        Point in RAS+ mm that the slices go through. By default the middle of the labels or, without labels, of the
        grid. Give two scans the same point to show the same place.
    filled : bool
        Fill the labels instead of outlining them.
    axes : sequence of matplotlib Axes, optional
        Where to draw, one for each plane; by default a new figure.
    title : str
        Title of the first plane's axes.

    Returns
    -------
    list of Axes

    Raises
    ------
    GeometryError
        `labels` or `overlay` is not on the scan's grid, or `at_mm` is outside it.
    InputError
        The number of axes is not that of the planes, or there is no such plane.

    Examples
    --------
    >>> from atlasseg.phantoms import sample
    >>> target = sample("target1")
    >>> len(plot_slices(target.image, target.labels))
    3
    """
    import matplotlib.pyplot as plt

    unknown = [plane for plane in planes if plane not in _NORMAL]
    if unknown:
        raise InputError(f"planes: expected axial, coronal or sagittal, got {unknown[0]!r}")
    if labels is not None and not image.grid.matches(labels.grid):
        raise GeometryError(
            f"labels: expected the scan's grid, shape {image.shape}, got another grid, shape {labels.shape}"
        )
    if overlay is not None and overlay.shape != image.shape:
        raise GeometryError(f"overlay: expected the scan's shape {image.shape}, got {overlay.shape}")
    if axes is None:
        size = (_PANEL_INCHES * len(planes), _PANEL_INCHES + 0.3)
        drawn = list(plt.subplots(1, len(planes), figsize=size, layout="constrained", squeeze=False)[1][0])
    else:
        drawn = list(axes)
    if len(drawn) != len(planes):
        raise InputError(f"axes: expected one for each of the {len(planes)} planes, got {len(drawn)}")
    where = _voxel(image.grid, labels, at_mm)
    window = tuple(np.percentile(image.channels[..., 0], _WINDOW_PERCENTILES))
    bar = None
    for panel, plane in zip(drawn, planes, strict=True):
        flat = _Slice(image.grid, _NORMAL[plane], where)
        panel.imshow(flat.of(image.channels[..., 0]), cmap="gray", vmin=window[0], vmax=window[1], **flat.drawing)
        if overlay is not None:
            low, high = overlay_range or (float(np.nanmin(overlay)), float(np.nanmax(overlay)))
            bar = panel.imshow(flat.of(overlay), cmap=overlay_colors, vmin=low, vmax=high, alpha=0.6, **flat.drawing)
        if labels is not None:
            _draw_labels(panel, flat, labels, table or LabelTable(), filled)
        flat.mark_sides(panel)
    if bar is not None:
        drawn[0].figure.colorbar(bar, ax=drawn, shrink=0.8, label=overlay_name)
    drawn[0].set_title(title)
    return drawn


class _Slice:
    """One plane of a grid, as it is drawn."""

    def __init__(self, grid: Grid, normal: int, where: Float64) -> None:
        nearest = grid.nearest_axes
        self.order = [next(n for n, (axis, _) in enumerate(nearest) if axis == ras) for ras in range(3)]
        self.ahead = [nearest[n][1] for n in self.order]
        self.normal = normal
        self.across, self.up = (axis for axis in range(3) if axis != normal)
        index = int(np.rint(where[self.order[normal]]))
        last = grid.shape[self.order[normal]] - 1
        self.index = index if self.ahead[normal] else last - index
        spacing = grid.spacing_mm[self.order]
        aspect = float(spacing[self.up] / spacing[self.across])
        self.drawing: dict[str, Any] = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The slice of an array: rows upward, the patient's right or front on the left."""
        turned = array.transpose(self.order)[tuple(slice(None, None, 1 if ahead else -1) for ahead in self.ahead)]
        flat: NDArray[Any] = np.moveaxis(turned, self.normal, 0)[self.index].T
        return flat[:, ::-1]

    def mark_sides(self, panel: Axes) -> None:
        """Letters at the four sides."""
        panel.set(xticks=[], yticks=[])
        for x, y, letter in (
            (0.03, 0.5, _SIDES[self.across][1]),
            (0.97, 0.5, _SIDES[self.across][0]),
            (0.5, 0.03, _SIDES[self.up][0]),
            (0.5, 0.97, _SIDES[self.up][1]),
        ):
            panel.text(
                x, y, letter, transform=panel.transAxes, color="white", fontsize=8, ha="center", va="center"
            )  # fmt: skip


def _voxel(grid: Grid, labels: LabelMap | None, at_mm: ArrayLike | None) -> Float64:
    """The voxel that the slices go through."""
    if at_mm is not None:
        point: Float64 = np.linalg.solve(grid.affine, np.append(np.asarray(at_mm, np.float64), 1.0))[:3]
        if (point < -0.5).any() or (point > np.array(grid.shape) - 0.5).any():
            raise GeometryError(f"at_mm: expected a point in the scan, got {at_mm}, voxel {point.round(1).tolist()}")
        return np.clip(point, 0, np.array(grid.shape) - 1)
    if labels is not None and labels.array.any():
        inside = labels.array != 0
        middle = [np.cumsum(inside.sum(tuple(b for b in range(3) if b != a))) for a in range(3)]
        return np.array([float(np.searchsorted(count, (count[-1] + 1) // 2)) for count in middle])
    return (np.array(grid.shape) - 1) / 2


def _draw_labels(panel: Axes, flat: _Slice, labels: LabelMap, table: LabelTable, filled: bool) -> None:
    """Outlines or areas of the labels of a slice."""
    named = flat.of(labels.array)
    for value in np.unique(named[named != 0]).tolist():
        color = np.array(table.color(value)) / 255
        if filled:
            picture = np.zeros((*named.shape, 4))
            picture[named == value] = (*color, 0.6)
            panel.imshow(picture, **flat.drawing)
        else:
            inside = np.pad(named == value, 1).astype(float)
            rows, columns = (np.arange(size) - 1 for size in inside.shape)
            panel.contour(columns, rows, inside, [0.5], colors=[color], linewidths=1.0)
    panel.set(xlim=(-0.5, named.shape[1] - 0.5), ylim=(-0.5, named.shape[0] - 0.5))
