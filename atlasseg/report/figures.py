"""Pictures of a segmentation: slices of the scan with the outlines of its labels, as SVG.

A slice is a plane of the scan's own grid, named after the nearest anatomical plane: an oblique scan is not resampled,
and the picture shows the voxels that were segmented. Each picture marks the sides. The scan is an embedded PNG,
the outlines are paths in voxels, scaled to mm, so that voxels have their true aspect at any size. The class
of each path (``l17``) gives its colour. The style sheet of the page decides what is shown and highlighted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError
from atlasseg.labels import LabelTable
from atlasseg.templating import render_macro
from atlasseg.volume import Float64, Grid, Image, Int32, LabelMap

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Panel", "mosaic"]

Convention = Literal["radiological", "neurological"]
"""Orientation of axial and coronal pictures. Radiological: the patient's right is on the left of the picture."""

PLANES = ("axial", "coronal", "sagittal")
WINDOW_PERCENTILES = (0.5, 99.5)
"""Intensities shown as black and as white."""
MARGIN = 0.15
"""Margin around the labels, as a fraction of their longest side."""
MOST_ENTROPY_BITS = 1.0
"""Entropy that is shown fully opaque: that of two equally probable labels."""
LARGE_COLUMNS = 3
"""Up to this number of slices per plane, slices are shown large, with smaller marks."""
CONTACT_PIXELS = 112
"""Height of a picture in a contact sheet."""
CONTACT_TINT = 0.25
UNCERTAIN_RGB = (255, 140, 0)
STRAIGHT_DEGREES = 1.0
"""Maximum angle between axes of the scan and anatomical axes for which the scan is not called oblique."""

_NORMAL = {"axial": 2, "coronal": 1, "sagittal": 0}
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Panel:
    """One slice: plane, position and picture.

    Parameters
    ----------
    plane : str
        ``axial``, ``coronal`` or ``sagittal``.
    position_mm : float
        Position of the centre along the normal axis of the plane (R, A or S).
    place : str
        The position as text, for example ``S 12 mm``.
    svg : Markup
        HTML element with a description for screen readers.
    """

    plane: str
    position_mm: float
    place: str
    svg: Markup


@dataclass(frozen=True, eq=False)
class _View:
    """Arrays in nearest RAS axes, cropped around the labels."""

    grid: Grid
    scan: NDArray[np.uint8]
    labels: Int32
    reference: Int32 | None
    entropy: NDArray[np.uint8] | None


def tilt_degrees(grid: Grid) -> float:
    """Largest angle between an axis of the grid and its nearest anatomical axis, in degrees."""
    directions = _in_ras(grid).affine[:3, :3]
    cosines = np.diag(directions) / np.linalg.norm(directions, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def mosaic(
    image: Image,
    labels: LabelMap,
    *,
    table: LabelTable,
    entropy: NDArray[np.floating[Any]] | None = None,
    reference: LabelMap | None = None,
    columns: int = 5,
    outlined: bool = True,
    convention: Convention = "radiological",
) -> list[Panel]:
    """Draw slices of the three planes, spread evenly over the labelled voxels.

    Parameters
    ----------
    image : Image
        The scan; of several channels, the first is shown.
    labels : LabelMap
        On the scan's grid.
    table : LabelTable
        Names of the structures, for the tool tips.
    entropy : (I, J, K), optional
        Uncertainty in bits, as an overlay on the scan (class ``entropy``).
    reference : LabelMap, optional
        On the scan's grid; outlined as well (class ``reference``).
    columns : int
        Maximum number of slices per plane. If the labels span fewer slices, all are shown.
    outlined : bool
        Draw the labels. Otherwise they are used for the positions of the slices only.
    convention : str
        ``radiological`` or ``neurological``, for axial and coronal slices. Sagittal slices face left.

    Returns
    -------
    list of Panel
        Axial, then coronal, then sagittal; ordered from inferior, posterior and left.

    Raises
    ------
    GeometryError
        `labels`, `entropy` or `reference` is not on the grid of the image.
    """
    view = _view(image, labels, entropy, reference)
    shown = view.labels if view.reference is None else np.where(view.labels != 0, view.labels, view.reference)
    if not outlined:
        view = replace(view, labels=np.zeros_like(view.labels))
    panels = []
    for plane in PLANES:
        axis = _NORMAL[plane]
        for number, index in enumerate(_spread(shown != 0, axis, columns)):
            key, first = f"{plane}-{index}", number == 0
            panels.append(
                _panel(view, plane, index, table, convention, scale_bar=first, key=key, large=columns < LARGE_COLUMNS)
            )
    return panels


def where_to_look(
    image: Image,
    labels: LabelMap,
    entropy: NDArray[np.floating[Any]],
    *,
    table: LabelTable,
    convention: Convention = "radiological",
) -> list[Panel]:
    """Draw the most uncertain slice of each of the three planes. The list is empty if all voxels are certain.

    Parameters and errors as for `mosaic`.
    """
    view = _view(image, labels, entropy, None)
    if view.entropy is None or not view.entropy.any():
        return []
    panels = []
    for plane in PLANES:
        axis = _NORMAL[plane]
        total = view.entropy.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
        panels.append(
            _panel(view, plane, int(total.argmax()), table, convention, scale_bar=True, key=f"look-{plane}", large=True)
        )
    return panels


def contact(image: Image, labels: LabelMap, *, table: LabelTable, convention: Convention = "radiological") -> Markup:
    """Draw the three planes side by side as a small JPEG in an ``<img>`` element, for a contact sheet of many targets.

    Each slice goes through the centre of the labelled voxels. Parameters and errors as for `mosaic`.
    """
    from PIL import Image as Picture

    view = _view(image, labels, None, None)
    tiles = []
    for plane in PLANES:
        axis = _NORMAL[plane]
        across, up = (a for a in range(3) if a != axis)
        index = _spread(view.labels != 0, axis, 1)[0]
        leftward = plane == "sagittal" or convention == "radiological"
        scan, named = (_flat(array, axis, index, leftward=leftward) for array in (view.scan, view.labels))
        mm_across, mm_up = view.grid.spacing_mm[[across, up]]
        width = max(1, round(CONTACT_PIXELS * scan.shape[1] * mm_across / (scan.shape[0] * mm_up)))
        rows = np.arange(CONTACT_PIXELS) * scan.shape[0] // CONTACT_PIXELS
        columns = np.arange(width) * scan.shape[1] // width
        large = Picture.fromarray(np.ascontiguousarray(scan)).resize(
            (width, CONTACT_PIXELS), Picture.Resampling.BILINEAR
        )
        tiles.append(_painted(np.asarray(large), named[np.ix_(rows, columns)], table))
        tiles.append(np.zeros((CONTACT_PIXELS, 2, 3), np.uint8))
    sheet = Picture.fromarray(np.concatenate(tiles[:-1], axis=1))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=80)
    names = labels.values[labels.values != 0]
    return render_macro(
        "figures.html.j2",
        "contact",
        width=sheet.width,
        height=sheet.height,
        structures=len(names),
        src=f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}",
    )


def _painted(scan: NDArray[np.uint8], named: Int32, table: LabelTable) -> NDArray[np.uint8]:
    """Paint the labels of a grey picture: tinted areas, edges in full colour."""
    values = np.unique(named)
    colors = np.array([[int(drawn_color(table.color(int(v)))[i : i + 2], 16) for i in (1, 3, 5)] for v in values])
    color = colors[np.searchsorted(values, named)]
    edge = np.zeros(named.shape, bool)
    for axis in (0, 1):
        differs = np.diff(named, axis=axis) != 0
        edge[tuple(slice(0, n) for n in differs.shape)] |= differs
    part = np.where(named == 0, 0.0, np.where(edge, 1.0, CONTACT_TINT))[..., None]
    painted: NDArray[np.uint8] = np.rint((1 - part) * scan[..., None] + part * color).astype(np.uint8)
    return painted


def grey(scan: NDArray[Any]) -> NDArray[np.uint8]:
    """Map the intensities to 256 grey values, black and white at `WINDOW_PERCENTILES`."""
    low, high = np.percentile(scan, WINDOW_PERCENTILES)
    shades = np.clip((scan - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1) * 255
    rounded: NDArray[np.uint8] = np.rint(shades).astype(np.uint8)
    return rounded


def drawn_color(color: tuple[int, int, int]) -> str:
    """Colour of a label as ``#rrggbb``, lightened if it would be too dark to see on a scan."""
    rgb = np.array(color, float)
    light = float(rgb @ (0.2126, 0.7152, 0.0722)) / 255
    least = 0.38
    if light < least:
        rgb += (255 - rgb) * (least - light) / (1 - light)
    return "#" + "".join(f"{round(float(c)):02x}" for c in rgb)


def _in_ras(grid: Grid) -> Grid:
    """The grid with its axes permuted and flipped to the nearest of R, A and S."""
    order, flip = _to_ras(grid)
    shape = np.array(grid.shape)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(order):
        turn[old, new] = -1 if flip[new] else 1
        turn[old, 3] = shape[old] - 1 if flip[new] else 0
    i, j, k = (int(shape[old]) for old in order)
    return Grid((i, j, k), grid.affine @ turn)


def _to_ras(grid: Grid) -> tuple[list[int], list[bool]]:
    """Array axis nearest to each of R, A and S, and whether its direction is opposite."""
    from nibabel.orientations import io_orientation

    found = io_orientation(grid.affine)  # (3, 2): for each array axis its world axis and its direction
    order = [int(np.flatnonzero(found[:, 0] == world)[0]) for world in range(3)]
    return order, [found[old, 1] < 0 for old in order]


def _view(
    image: Image, labels: LabelMap, entropy: NDArray[np.floating[Any]] | None, reference: LabelMap | None
) -> _View:
    for what, volume in (("labels", labels), ("reference", reference)):
        if volume is not None and not image.grid.matches(volume.grid):
            raise GeometryError(
                f"{what}: expected the scan's grid, shape {image.shape}, got another grid, shape {volume.shape}"
            )
    if entropy is not None and entropy.shape != image.shape:
        raise GeometryError(f"entropy: expected the scan's shape {image.shape}, got {entropy.shape}")
    order, flip = _to_ras(image.grid)

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        return np.flip(array.transpose(order), [axis for axis in range(3) if flip[axis]])

    named = turned(labels.array)
    known = None if reference is None else turned(reference.array)
    grid = _in_ras(image.grid)
    box = box_around(named if known is None else (named != 0) | (known != 0), grid.spacing_mm)
    scan = turned(image.channels[..., 0])[box]
    veil = None
    if entropy is not None:
        veil = np.rint(np.clip(turned(entropy)[box] / MOST_ENTROPY_BITS, 0, 1) * 255).astype(np.uint8)
    return _View(
        grid.cropped([b.start for b in box], [b.stop for b in box]),
        grey(scan),
        named[box],
        None if known is None else known[box],
        veil,
    )


def box_around(labelled: NDArray[Any], spacing_mm: Float64) -> tuple[slice, slice, slice]:
    """Bounding box of the labelled voxels, with a margin equal in mm on every side; the whole grid without labels."""
    found = []
    for axis in range(3):
        present = np.flatnonzero(labelled.any(axis=tuple(a for a in range(3) if a != axis)))
        if present.size == 0:
            return slice(0, labelled.shape[0]), slice(0, labelled.shape[1]), slice(0, labelled.shape[2])
        found.append((int(present[0]), int(present[-1]) + 1))
    margin_mm = MARGIN * max((stop - start) * mm for (start, stop), mm in zip(found, spacing_mm, strict=True))
    box = []
    for (start, stop), mm, size in zip(found, spacing_mm, labelled.shape, strict=True):
        more = int(np.ceil(margin_mm / mm))
        box.append(slice(max(start - more, 0), min(stop + more, size)))
    return box[0], box[1], box[2]


def _spread(labelled: NDArray[np.bool_], axis: int, columns: int) -> list[int]:
    """Up to `columns` slice indices along `axis`, at the centres of equal shares of the labelled voxels, ascending."""
    counts = labelled.sum(axis=tuple(a for a in range(3) if a != axis))
    if not counts.any():
        return [labelled.shape[axis] // 2]
    share = (np.cumsum(counts) - counts / 2) / counts.sum()
    wanted = (np.arange(columns) + 0.5) / columns
    return sorted({int(np.abs(share - w).argmin()) for w in wanted})


def _flat(array: NDArray[Any], axis: int, index: int, *, leftward: bool) -> NDArray[Any]:
    """Orient a slice for drawing: rows downward, columns leftward if `leftward`."""
    picture: NDArray[Any] = np.moveaxis(array, axis, 0)[index, :, ::-1].T
    return np.flip(picture, 1) if leftward else picture


def _panel(
    view: _View,
    plane: str,
    index: int,
    table: LabelTable,
    convention: Convention,
    *,
    scale_bar: bool,
    key: str,
    large: bool = False,
) -> Panel:
    """Draw one slice. `key` is unique in the page; a `large` slice has small marks."""
    axis = _NORMAL[plane]
    across, up = (a for a in range(3) if a != axis)
    leftward = plane == "sagittal" or convention == "radiological"

    def flat(array: NDArray[Any]) -> NDArray[Any]:
        return _flat(array, axis, index, leftward=leftward)

    mm_across, mm_up = view.grid.spacing_mm[[across, up]]
    scan = flat(view.scan)
    rows, cols = scan.shape
    width, height = cols * mm_across, rows * mm_up
    middle = (np.array(view.grid.shape) - 1) / 2
    middle[axis] = index
    position_mm = float((view.grid.affine[:3, :3] @ middle + view.grid.affine[:3, 3])[axis])
    named = flat(view.labels)
    present = [int(v) for v in np.unique(named) if v]
    decimals = 0 if view.grid.spacing_mm[axis] >= 0.5 else 1
    where = f"{_SIDES[axis][position_mm >= 0]} {abs(position_mm):.{decimals}f} mm"
    title = f"{plane.capitalize()} slice at {where}"
    shown = ", ".join(table.name(v) for v in present[:8]) + (
        f" and {len(present) - 8} more" if len(present) > 8 else ""
    )
    described = f"{title}, outlined: {shown}" if present else f"{title}, no label in it"

    veil = None if view.entropy is None else flat(view.entropy)
    reference = () if view.reference is None else [path for _, path in _outlines(flat(view.reference))]
    svg = render_macro(
        "figures.html.j2",
        "slice",
        key=key,
        width=width,
        height=height,
        scale=(mm_across / 2, mm_up / 2),
        described=described,
        scan=_png(scan),
        veil=_png(veil, rgb=UNCERTAIN_RGB) if veil is not None and veil.any() else "",
        reference=reference,
        outlines=[(value, table.name(value), path) for value, path in _outlines(named)],
        marks=_marks(
            width,
            height,
            _SIDES[across],
            _SIDES[up],
            leftward=leftward,
            scale_bar=scale_bar,
            size=0.045 if large else 0.075,
        ),
    )
    return Panel(plane, position_mm, where, svg)


def _marks(
    width: float,
    height: float,
    across: Sequence[str],
    up: Sequence[str],
    *,
    leftward: bool,
    scale_bar: bool,
    size: float,
) -> dict[str, Any]:
    """Letters at the four sides, and a scale bar; `size` of the letters is a fraction of the longer side."""
    size *= max(width, height)
    low, high = (across[1], across[0]) if leftward else (across[0], across[1])
    letters = (
        (size * 0.55, height / 2, low),
        (width - size * 0.55, height / 2, high),
        (width / 2, size * 0.65, up[1]),
        (width / 2, height - size * 0.6, up[0]),
    )
    mm = max((b for b in (0.5, 1, 2, 5, 10, 20, 50, 100) if b <= 0.3 * width), default=width / 4)
    return {"size": size, "letters": letters, "bar": (size * 0.4, height - size * 0.4, mm) if scale_bar else None}


def _outlines(picture: Int32) -> Iterator[tuple[int, str]]:
    """Yield each label of a (rows, columns) picture with its outline as SVG path data in half voxels."""
    from contourpy import contour_generator
    from scipy.ndimage import find_objects

    values = np.unique(picture)
    values = values[values != 0]
    numbered = np.where(picture != 0, np.searchsorted(values, picture) + 1, 0)
    for number, (value, box) in enumerate(zip(values.tolist(), find_objects(numbered), strict=True), start=1):
        mask = np.pad((numbered[box] == number).astype(float), 1)
        row, column = box[0].start, box[1].start
        pieces = []
        for line in contour_generator(z=mask).lines(0.5):
            # the centre of voxel 0 is at 0.5 in the picture, and at 1 in the padded mask
            offset = np.array([column, row]) - 0.5
            points = np.rint(2 * (np.asarray(line) + offset)).astype(int)
            pieces.append(_path(points))
        yield value, "".join(pieces)


def _path(points: NDArray[np.int_]) -> str:
    """Write a closed polygon as relative path data; steps in one direction are joined."""
    steps = np.diff(points, axis=0)
    steps = steps[(steps != 0).any(axis=1)]
    joined: list[tuple[int, int]] = []
    for dx, dy in steps.tolist():
        if joined:
            px, py = joined[-1]
            if px * dy == py * dx and px * dx + py * dy > 0:
                joined[-1] = (px + dx, py + dy)
                continue
        joined.append((dx, dy))
    text = " ".join(f"{dx} {dy}" for dx, dy in joined[:-1])  # the last step is the closing one
    return f"M{points[0, 0]} {points[0, 1]}l{text}z".replace(" -", "-")


def _png(picture: NDArray[np.uint8], *, rgb: tuple[int, int, int] | None = None) -> str:
    """Encode a picture as a data URI: grey or, with `rgb`, one colour with the picture as its opacity."""
    from PIL import Image as Picture

    if rgb is None:
        made = Picture.fromarray(np.ascontiguousarray(picture))
    else:
        grey = np.ascontiguousarray(picture)
        made = Picture.fromarray(np.dstack([np.full_like(grey, c) for c in rgb] + [grey]))
    out = io.BytesIO()
    made.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
