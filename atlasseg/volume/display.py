"""Notebook display of the data types: a picture with three slices, and a table of properties below it.

Slices are planes of the volume's own grid, named after the nearest anatomical plane, in radiological convention: the
patient's right is on the left of axial and coronal slices, and the patient looks to the left in sagittal slices.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.labels import default_color
from atlasseg.templating import render_macro
from atlasseg.volume.grid import Float32, Grid, Int32

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

HEIGHT_PIXELS = 180
"""Height of the picture, which is that of the tallest slice."""
GAP_PIXELS = 6
WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of the intensities that are shown as black and as white."""
TINT = 0.5
"""Opacity of labels over a scan."""
MAX_LABELS = 8
"""Largest number of labels to list in full."""

_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))


def format_labels(values: Int32) -> str:
    """Format label values in one line; a long list is shortened and followed by the number of labels."""
    every = values.tolist()
    if len(every) <= MAX_LABELS:
        return f"labels: {', '.join(map(str, every)) or 'none'}"
    first = ", ".join(map(str, every[: MAX_LABELS // 2]))
    return f"labels: {first}, ... {every[-1]} ({len(every)} labels)"


def html(volume: object, url: str) -> str:
    """HTML of a volume: a picture of its slices, and a table of its properties."""
    kind, _, facts = repr(volume).partition("(")
    rows = [fact.partition(": ")[::2] for fact in facts.removesuffix(")").split("; ")]
    return render_macro("notebook.html.j2", "volume", kind=kind, src=url, facts=rows)


def slices(
    grid: Grid, scan: NDArray[Any] | None, labels: Int32 | None = None, confidence: Float32 | None = None
) -> str:
    """Picture of an axial, a coronal and a sagittal slice side by side, in true proportions, as data URL of a PNG.

    Parameters
    ----------
    grid : Grid
    scan : (I, J, K), optional
        Intensities, shown in grey.
    labels : (I, J, K) int32, optional
        Labels, shown in colour over the scan. The slices go through the middle of the labelled voxels.
    confidence : (I, J, K) float32, optional
        Probability of the labels, 0 to 1; less certain labels are darker.
    """
    from PIL import Image, ImageDraw

    axes = grid.nearest_axes
    order = [next(n for n, (axis, _) in enumerate(axes) if axis == ras) for ras in range(3)]
    up = [axes[n][1] for n in order]
    spacing = grid.spacing_mm[order]

    def reorient(array: NDArray[Any]) -> NDArray[Any]:
        """Reorient an array to the nearest RAS axes."""
        permuted = array.transpose(order)
        return permuted[tuple(slice(None, None, 1 if ahead else -1) for ahead in up)]

    shown = None if scan is None else reorient(scan)
    named = None if labels is None else reorient(labels)
    sure = None if confidence is None else reorient(confidence)
    extent = np.array([grid.shape[n] for n in order]) * spacing
    pixels_per_mm = HEIGHT_PIXELS / max(extent[1], extent[2])
    window = None if shown is None else _window(shown)
    middle = _middle(grid, order, named)
    tiles: list[Picture] = []
    for _, normal in _PLANES:
        across, along = (axis for axis in range(3) if axis != normal)

        def flat(array: NDArray[Any], normal: int = normal) -> NDArray[Any]:
            return np.moveaxis(array, normal, 0)[middle[normal], ::-1, ::-1].T

        size = [max(1, round(extent[axis] * pixels_per_mm)) for axis in (across, along)]
        tile = Image.new("RGB", (size[0], size[1]))
        if shown is not None and window is not None:
            grey = np.clip((flat(shown) - window[0]) / (window[1] - window[0]), 0, 1)
            scaled = Image.fromarray(np.ascontiguousarray(grey * 255).astype(np.uint8))
            tile.paste(scaled.resize(tile.size, Image.Resampling.BILINEAR))
        if named is not None:
            seen = flat(named)
            colours = _colours(seen, None if sure is None else flat(sure))
            tint = Image.fromarray(colours).resize(tile.size, Image.Resampling.NEAREST)
            share = np.where(seen != 0, 255 * (1.0 if shown is None else TINT), 0).astype(np.uint8)
            tile.paste(tint, mask=Image.fromarray(share).resize(tile.size, Image.Resampling.NEAREST))
        draw = ImageDraw.Draw(tile)
        sides, ends = _SIDES[across], _SIDES[along]
        for (x, y), anchor, letter in (
            ((2, size[1] / 2), "lm", sides[1]),
            ((size[0] - 2, size[1] / 2), "rm", sides[0]),
            ((size[0] / 2, 2), "ma", ends[1]),
            ((size[0] / 2, size[1] - 2), "md", ends[0]),
        ):
            draw.text((x, y), letter, fill=(255, 255, 255), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))
        tiles.append(tile)
    whole = Image.new(
        "RGB",
        (sum(tile.width for tile in tiles) + GAP_PIXELS * (len(tiles) - 1), max(tile.height for tile in tiles)),
        (0, 0, 0),
    )
    left = 0
    for tile in tiles:
        whole.paste(tile, (left, (whole.height - tile.height) // 2))
        left += tile.width + GAP_PIXELS
    out = BytesIO()
    whole.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _window(scan: NDArray[Any]) -> tuple[float, float]:
    """Intensities that are shown as black and as white."""
    low, high = (float(v) for v in np.percentile(scan, WINDOW_PERCENTILES))
    if high <= low:
        low, high = float(scan.min()), float(scan.max())
    return low, high if high > low else low + 1.0


def _middle(grid: Grid, order: list[int], named: Int32 | None) -> list[int]:
    """Index of the slice along each RAS axis: the middle of the labelled voxels, or of the grid without labels."""
    middle = [(grid.shape[n] - 1) // 2 for n in order]
    if named is None or not named.any():
        return middle
    inside = named != 0
    for axis in range(3):
        counts = np.cumsum(inside.sum(axis=tuple(a for a in range(3) if a != axis)))
        middle[axis] = int(np.searchsorted(counts, (counts[-1] + 1) // 2))
    return middle


def _colours(labels: Int32, confidence: Float32 | None) -> NDArray[np.uint8]:
    """Labels in their default colours, (rows, columns, 3)."""
    values, where = np.unique(labels, return_inverse=True)
    colours = np.array([default_color(int(value)) for value in values], np.float32)[where.reshape(labels.shape)]
    if confidence is not None:
        colours *= confidence[..., None]
    return np.ascontiguousarray(colours).astype(np.uint8)
