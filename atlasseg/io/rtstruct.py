"""RTSTRUCT: contours of structures in the planes of a DICOM series, read as voxels.

A voxel belongs to a structure where its centre is inside an odd number of the contours of its plane (even-odd rule, the
exclusive or of CLOSEDPLANAR_XOR; DICOM PS3.3 C.8.8.6). A contour inside another one is therefore a hole, and keyhole
contours are right too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._contours import fill_polygons, signed_distance
from atlasseg.io._dicom_codes import read_terminology
from atlasseg.io._source import log
from atlasseg.io._structure_set import clean_name, number_labels
from atlasseg.io.dicom_series import quiet_pydicom
from atlasseg.itk import LPS
from atlasseg.labels import Color, Label
from atlasseg.volume import Bool, Float64, Grid

BetweenSlices = Literal["refuse", "nearest", "interpolate"]
"""What to do with contours between the slices of a grid, see :func:`contours_to_voxels`."""

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_ON_SLICE = 0.1  # slices; positions in files are rounded to 0.01 or 0.1 mm
_ROUNDING = 1e-6  # slices; a slice at the very end of the slab of the last plane is outside
_CONTINUED = 2.5  # times the usual distance of planes; a longer distance is a gap between two parts
_CONTOUR_DATA = 0x30060050


@dataclass(frozen=True, eq=False)
class Contours:
    """Structure of an RTSTRUCT: its closed contours, each (N, 3) in RAS+ mm.

    `label` has the ROI number as value. `open_contours` is the number of points and open lines that were left out.
    """

    label: Label
    frame_of_reference_uid: str
    closed: tuple[Float64, ...]
    open_contours: int


def read_contours(path: Path, *, points: bool = True) -> tuple[list[Contours], str]:
    """Read the contours of all structures, and the SeriesInstanceUID that they were drawn on (may be empty).

    Without `points`, the positions of the contours are not read, only how many there are.

    Raises
    ------
    InputError
        The file is damaged.
    """
    import pydicom

    with quiet_pydicom():
        dataset = pydicom.dcmread(path, force=True)
        drawn = {_integer(item, "ReferencedROINumber"): item for item in dataset.get("ROIContourSequence") or ()}
        observed = {
            _integer(item, "ReferencedROINumber"): item for item in dataset.get("RTROIObservationsSequence") or ()
        }
        frames: Any = dataset.get("ReferencedFrameOfReferenceSequence") or ()
        shared_frame = str(frames[0].get("FrameOfReferenceUID", "")) if len(frames) == 1 else ""
        rows = []
        for item in dataset.get("StructureSetROISequence") or ():
            number = _integer(item, "ROINumber")
            name = clean_name(item.get("ROIName"), f"ROI {number}")
            contour = drawn.get(number)
            terms = read_terminology(observed.get(number), "RTROIIdentificationCodeSequence")
            label = Label(number, name, _color(contour), terminology=terms)
            closed, left_out = _closed(path, name, contour, points)
            frame = str(item.get("ReferencedFrameOfReferenceUID") or shared_frame)
            rows.append(Contours(label, frame, closed, left_out))
        if not rows:
            raise InputError(f"{path}: expected structures in the RTSTRUCT, got none.")
        labels = number_labels(path, [(row.label, row.label.value) for row in rows])
        numbered = [
            Contours(label, row.frame_of_reference_uid, row.closed, row.open_contours)
            for label, row in zip(labels, rows, strict=True)
        ]
        return numbered, _referenced_series(frames)


def contours_to_voxels(
    path: Path, structures: Sequence[Contours], grid: Grid, between_slices: BetweenSlices = "refuse"
) -> list[Callable[[], Bool]]:
    """Functions that return the voxels (I, J, K) of each structure.

    Parameters
    ----------
    path : Path
        For messages.
    structures : sequence of Contours
    grid : Grid
        Grid with an axis across the planes of the contours.
    between_slices : {"refuse", "nearest", "interpolate"}
        Handling of contours between the slices of `grid`: raise an error; fill each slice by the nearest plane of
        contours, up to half a distance of planes or slices away; or interpolate the signed distances to the contours
        between consecutive planes (shape-based interpolation, Raya & Udupa 1990), which also fills slices without
        contours inside a structure.

    Raises
    ------
    GeometryError
        The contours are in other planes than the slices of the grid, or between slices, or all outside the grid.
    """
    if between_slices not in ("refuse", "nearest", "interpolate"):
        raise InputError(f"between_slices: expected 'refuse', 'nearest' or 'interpolate', got {between_slices!r}.")
    inverse = np.linalg.inv(grid.affine)
    voxels = [[points @ inverse[:3, :3].T + inverse[:3, 3] for points in each.closed] for each in structures]
    axis = _axis_across(path, [points for each in voxels for points in each])
    functions: list[Callable[[], Bool]] = []
    for structure, polygons in zip(structures, voxels, strict=True):
        name = structure.label.name
        _report_left_out(path, structure)
        planes = _planes(path, name, polygons, axis)
        if planes and between_slices == "refuse":
            _check_on_slices(path, name, np.array(sorted(planes)), grid.shape[axis])
        functions.append(partial(_fill, path, name, planes, grid, axis, between_slices))
    return functions


# ------------------------------------------------------------------------------------------------------------ the file


def _integer(item: Any, keyword: str) -> int:
    try:
        return int(item.get(keyword))
    except (TypeError, ValueError):
        raise InputError(f"expected a whole number as {keyword}, got {item.get(keyword)!r}.") from None


def _color(contour: Any | None) -> Color | None:
    found = contour.get("ROIDisplayColor") if contour is not None else None
    if found is None or len(found) != 3 or not all(0 <= int(part) <= 255 for part in found):
        return None
    red, green, blue = (int(part) for part in found)
    return red, green, blue


def _referenced_series(frames: Sequence[Any]) -> str:
    uids = {
        str(series.get("SeriesInstanceUID", ""))
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    } - {""}
    return uids.pop() if len(uids) == 1 else ""


def _closed(path: Path, name: str, contour: Any | None, with_points: bool) -> tuple[tuple[Float64, ...], int]:
    """Closed contours of a structure in RAS+ mm, and the number of other ones."""
    closed, left_out = [], 0
    for item in (contour.get("ContourSequence") or ()) if contour is not None else ():
        points = _points(path, name, item) if with_points else np.zeros((3, 3))
        if str(item.get("ContourGeometricType", "")).strip() not in _CLOSED:
            left_out += 1
        elif len(points) >= 3:
            closed.append(points @ LPS[:3, :3].T)
        else:
            log.warning("%s: a contour of %r has fewer than 3 points; it is left out", path, name)
    return tuple(closed), left_out


def _points(path: Path, name: str, item: Any) -> Float64:
    from pydicom.dataelem import RawDataElement

    raw = item.get_item(_CONTOUR_DATA)
    # thousands of numbers: parsed here at once, not one by one
    if isinstance(raw, RawDataElement) and raw.value is not None:
        texts = raw.value.decode("ascii", errors="replace").strip(" \0").split("\\")
    else:
        texts = item.get("ContourData") or []
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = np.array([np.nan])
    count = item.get("NumberOfContourPoints")
    if len(numbers) % 3 or not np.isfinite(numbers).all() or (count is not None and int(count) != len(numbers) // 3):
        raise InputError(
            f"{path}: the contours of {name!r} are damaged: expected {count} points of three numbers, got "
            f"{len(texts)} numbers. Export the structures again."
        )
    return numbers.reshape(-1, 3)


def _report_left_out(path: Path, structure: Contours) -> None:
    name, count = structure.label.name, structure.open_contours
    if count:
        rest = "its closed contours alone are read" if structure.closed else "it has no voxels"
        log.warning("%s: %r has %d open contours or points, which have no inside; %s", path, name, count, rest)
    elif not structure.closed:
        log.warning("%s: %r has no contours; it has no voxels", path, name)


# ---------------------------------------------------------------------------------------------------------- the planes


def _axis_across(path: Path, contours: Sequence[Float64]) -> int:
    """Axis of the grid along which the contours are flat."""
    if not contours:
        return 2
    spread = np.array([np.ptp(points, axis=0) for points in contours])
    axis = int(np.argmax((spread <= _ON_SLICE).sum(axis=0)))
    if spread[:, axis].max() > _ON_SLICE:
        bent = int((spread[:, axis] > _ON_SLICE).sum())
        raise GeometryError(
            f"{path}: expected contours in the planes of the slices, got {bent} of {len(contours)} contours in other "
            "planes. Give the series that they were drawn on as the reference, then resample the label map."
        )
    return axis


def _planes(path: Path, name: str, polygons: Sequence[Float64], axis: int) -> dict[float, list[Float64]]:
    """Contours by the position of their plane along the axis, in voxels; those of one plane are within 0.1 slices."""
    planes: dict[float, list[Float64]] = {}
    last = None
    for points in sorted(polygons, key=lambda points: float(np.mean(points[:, axis]))):
        place = float(np.mean(points[:, axis]))
        if last is None or place - last > _ON_SLICE:
            last = place
            planes[last] = []
        flat = np.delete(points, axis, axis=1)
        if any(flat.shape == other.shape and np.array_equal(flat, other) for other in planes[last]):
            log.warning("%s: %r has the same contour twice in one plane; it is used once", path, name)
        else:
            planes[last].append(flat)
    return planes


def _check_on_slices(path: Path, name: str, places: Float64, count: int) -> None:
    off = np.abs(places - np.round(places))
    between = off > _ON_SLICE
    if between.any():
        raise GeometryError(
            f"{path}: expected contours on the slices of the reference, got {int(between.sum())} of {len(places)} "
            f"planes of {name!r} between slices, by up to {off.max():.2g} of a slice. Give the series that they were "
            "drawn on as the reference, or choose the nearest slice (between_slices='nearest', --between-slices "
            "nearest) or interpolation (between_slices='interpolate')."
        )
    inside = places[(places > -0.5) & (places < count - 0.5)]
    gaps = np.diff(np.round(inside)) - 1
    if (gaps > 0).any():
        log.warning(
            "%s: %r has no contours on %d slices between its first and last one, where it has no voxels. "
            "between_slices='interpolate' (--between-slices interpolate) fills them",
            path,
            name,
            int(gaps.sum()),
        )


def _fill(
    path: Path,
    name: str,
    planes: dict[float, list[Float64]],
    grid: Grid,
    axis: int,
    between_slices: BetweenSlices,
) -> Bool:
    """Voxels of a structure."""
    across = grid.shape[axis]
    voxels = np.zeros(grid.shape, bool)
    inside = np.moveaxis(voxels, axis, 0)  # a view
    size = (inside.shape[1], inside.shape[2])
    places = sorted(planes)
    if not places:
        return voxels
    _check_inside(path, name, planes, grid, axis)
    for place in places:
        _report_crossing(path, name, planes[place], size)
    usual = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
    reach = _ON_SLICE if between_slices == "refuse" else max(0.5, usual / 2)
    mask = cache(lambda place: fill_polygons(planes[place], size))
    distance = cache(lambda place: signed_distance(mask(place), np.delete(grid.spacing_mm, axis)))
    for k in range(across):
        nearest = min(places, key=lambda place: abs(place - k))
        below = max((place for place in places if place <= k), default=None)
        above = min((place for place in places if place > k), default=None)
        if (
            between_slices == "interpolate"
            and abs(nearest - k) > _ON_SLICE
            and below is not None
            and above is not None
            and above - below <= _CONTINUED * usual
        ):
            share = (k - below) / (above - below)
            inside[k] = (1 - share) * distance(below) + share * distance(above) < 0
        elif abs(nearest - k) <= (reach if places[0] <= k <= places[-1] else reach - _ROUNDING):
            inside[k] = mask(nearest)
    return voxels


def _check_inside(path: Path, name: str, planes: dict[float, list[Float64]], grid: Grid, axis: int) -> None:
    """Raise an error for a structure that lies outside the grid, and warn of one that lies there in part."""
    last = np.array(grid.shape) - 1
    across, within = last[axis], np.delete(last, axis)
    outside = [
        not -0.5 <= place <= across + 0.5
        or bool((np.concatenate(polygons) < -0.5).any() or (np.concatenate(polygons) > within + 0.5).any())
        for place, polygons in planes.items()
    ]
    beyond = [
        not -0.5 <= place <= across + 0.5
        or bool((np.concatenate(polygons).max(axis=0) < -0.5).any())
        or bool((np.concatenate(polygons).min(axis=0) > within + 0.5).any())
        for place, polygons in planes.items()
    ]
    if all(beyond):
        raise GeometryError(
            f"{path}: expected contours of {name!r} inside the reference scan, got all of them outside. They were "
            "drawn on another scan. Give that one as the reference."
        )
    if any(outside):
        log.warning(
            "%s: %r reaches beyond the reference scan in %d of %d planes; that part is left out",
            path,
            name,
            sum(outside),
            len(outside),
        )


def _report_crossing(path: Path, name: str, polygons: Sequence[Float64], size: tuple[int, int]) -> None:
    """Warn of contours in one plane that overlap in part: neither two parts, nor a part and its hole."""
    boxes = [(points.min(axis=0), points.max(axis=0)) for points in polygons]
    for n, first in enumerate(polygons):
        for m in range(n):
            if (boxes[n][0] > boxes[m][1]).any() or (boxes[m][0] > boxes[n][1]).any():
                continue
            one, two = fill_polygons([first], size), fill_polygons([polygons[m]], size)
            both = int((one & two).sum())
            if both and both < min(one.sum(), two.sum()):
                log.warning(
                    "%s: two contours of %r overlap in part, in one plane: their %d common voxels are outside by the "
                    "even-odd rule. Unite the contours in the program that drew them",
                    path,
                    name,
                    both,
                )
                return
