"""A scan, a label map or a table of points through transforms, from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg import io
from atlasseg.api.transformation import apply_transform
from atlasseg.errors import InputError
from atlasseg.volume import Image

__all__ = ["transform_file"]

_ALIKE = 0.3
"""Share of neighbouring voxels, neither of them 0, that have the same value in a label map, and not in a scan.

It was 0.77 to 0.99 in label maps of six public sets, and at most 0.15 in their scans.
"""


def transform_file(
    source: Path,
    out: Path,
    transforms: Sequence[str],
    *,
    reference: Path | None = None,
    labels: bool | None = None,
    interpolation: str | None = None,
    inverse: bool = False,
    coordinates: io.Coordinates | None = None,
    convention: io.Convention | None = None,
    flirt_source: Sequence[Path] = (),
    flirt_reference: Sequence[Path] = (),
    spacing_from: io.SpacingSource = "sform",
) -> str:
    """Apply transforms to the volume or the points of a file, and write the result.

    Parameters
    ----------
    source : path
        A scan, a label map, or a table of points (``.csv``, ``.tsv``, ``.fcsv``).
    out : path
        The result: a volume as of :func:`atlasseg.io.write_image`, or a table with the suffix of `source`.
    transforms : sequence of str
        Files in ANTs' order, ``[FILE,1]`` for the inverse of one.
    reference : path, optional
        The fixed image, for volumes. By default the `flirt_reference`.
    labels : bool, optional
        Whether `source` holds labels. Without it, a volume that looks like labels is refused.
    interpolation, inverse, convention
        As for :func:`atlasseg.apply_transform`.
    coordinates : {"ras", "lps"}, optional
        Of points, see ``atlasseg.io.read_points``.
    flirt_source, flirt_reference : sequence of paths
        As of ``atlasseg.io.read_ants_transforms``.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.

    Returns
    -------
    str
        What was written, for the terminal.

    Raises
    ------
    InputError
        A file cannot be read, or something is lacking; the message says what.
    OutputError
        `out` cannot be written.
    """
    entries = list(transforms)
    options: dict[str, Any] = {
        "inverse": inverse,
        "convention": convention,
        "flirt_source": list(flirt_source) or None,
        "flirt_reference": list(flirt_reference) or None,
    }
    if io.is_point_table(source):
        if labels is not None or reference is not None or interpolation is not None:
            raise InputError(f"{source}: expected no reference, labels or interpolation with points.")
        table = io.read_points(source, coordinates=coordinates)
        moved = apply_transform(table.points_mm, entries, kind="points", **options)
        io.write_points(table.moved(moved), out)
        way = "moving to the fixed" if inverse else "fixed to the moving"
        return f"{len(moved)} points, from the space of the {way} scan, {table.coordinates.upper()}+ mm"
    if coordinates is not None:
        raise InputError(f"{source}: expected a table of points with --coordinates, got a volume.")
    if reference is None:
        if len(flirt_reference) != 1:
            raise InputError(
                f"{source}: expected the fixed scan, on whose grid the result is. Add --reference. (A table of points "
                f"needs none; its name ends in {', '.join(io.POINT_SUFFIXES)}.)"
            )
        reference = flirt_reference[0]
    fixed, _ = io.read_scan(reference, channels=True, spacing_from=spacing_from)
    options |= {"reference": fixed.grid, "interpolation": interpolation}
    if labels:
        label_map = apply_transform(io.read_label_map(source, spacing_from=spacing_from), entries, **options)
        io.write_label_map(label_map, out, like=fixed)
        return f"labels; {fixed.grid.describe()}"
    scan, _ = io.read_scan(source, channels=True, spacing_from=spacing_from)
    if labels is None and looks_like_labels(scan):
        raise InputError(
            f"{source}: expected intensities, got whole numbers in patches, as in a label map. Add --labels (each "
            "label is resampled on its own), or --image."
        )
    io.write_image(apply_transform(scan, entries, **options), out, like=fixed)
    return fixed.grid.describe()


def looks_like_labels(image: Image) -> bool:
    """Whether an image holds whole numbers, and neighbouring voxels (neither of them 0) mostly have the same one."""
    array = image.channels[..., 0]
    if image.channels.shape[3] > 1 or array.min() < 0 or not np.array_equal(array, np.round(array)):
        return False
    alike, pairs = 0, 0
    for axis in range(3):
        along = np.moveaxis(array, axis, 0)
        both = (along[1:] != 0) & (along[:-1] != 0)
        pairs += int(both.sum())
        alike += int((both & (along[1:] == along[:-1])).sum())
    return pairs > 0 and alike > _ALIKE * pairs
