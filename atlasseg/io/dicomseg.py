"""DICOM-SEG: segments as binary, fractional or labelled frames, read onto the grid of the scan that they refer to.

Frames are placed by their own positions. Frames that a file leaves out are empty slices of that segment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._dicom_codes import read_terminology
from atlasseg.io._dicom_geometry import Plane, order_planes
from atlasseg.io._source import log
from atlasseg.io._structure_set import clean_name, number_labels
from atlasseg.io.dicom import plane_of_frame
from atlasseg.io.dicom_series import quiet_pydicom
from atlasseg.itk import LPS
from atlasseg.labels import Color, Label
from atlasseg.volume import Bool, Float64, Grid

LABEL_DESCRIPTION = "label {value}"
"""SegmentDescription that keeps the value of a label; segments are numbered from 1 without gaps."""

_LABEL_DESCRIPTION = re.compile(r"label (-?\d{1,10})")
_UNDEFINED, _SEQUENCE_END = 0xFFFFFFFF, b"\xfe\xff\xdd\xe0"
_TAIL = 1 << 16  # bytes at the end of a file in which its compressed frames end
_SAME_PLACE = 0.05  # voxels
_EVEN = 0.02  # of the distance of slices


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of a DICOM-SEG file, and where its frames lie.

    Parameters
    ----------
    path : Path
    labels : list of Label
        Row of each segment in a label table.
    numbers : list of int
        Number of each segment in the file.
    planes : list of Plane
        Position of each frame.
    shape : (rows, columns)
    owners : list of int
        Segment of each frame; empty for a file whose values are segment numbers.
    scale : float
        Highest value of fractional segments, 1 for others.
    series_uid, frame_of_reference_uid : str
        Referenced series, and frame of reference; may be empty.
    """

    path: Path
    labels: list[Label]
    numbers: list[int]
    planes: list[Plane]
    shape: tuple[int, int]
    owners: list[int]
    scale: float
    series_uid: str
    frame_of_reference_uid: str


def read_segments(path: Path) -> Segments:
    """Read the segments of a DICOM-SEG file, without its pixels.

    Raises
    ------
    InputError
        The file is damaged, or has no segments.
    """
    import pydicom

    with quiet_pydicom(), path.open("rb") as file:
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        _check_pixels(path, header, file)
        rows = [
            (_label(item, _number(item, n)), _number(item, n))
            for n, item in enumerate(header.get("SegmentSequence") or (), start=1)
        ]
        rows = [(label, number) for label, number in rows if number != 0]  # a label map may describe its background
        if not rows:
            raise InputError(f"{path}: expected segments in the DICOM-SEG, got none.")
        count = int(header.get("NumberOfFrames") or 1)
        groups = header.get("PerFrameFunctionalGroupsSequence") or ()
        if len(groups) != count:
            raise GeometryError(
                f"{path}: expected the position of each of its {count} frames, found {len(groups)}. Export it again."
            )
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        kind = str(header.get("SegmentationType") or "BINARY").upper()
        references: Any = header.get("ReferencedSeriesSequence") or ()
        return Segments(
            path,
            number_labels(path, rows),
            [number for _, number in rows],
            [plane_of_frame(f"frame {n}", group, shared) for n, group in enumerate(groups, start=1)],
            (int(header.Rows), int(header.Columns)),
            [] if kind == "LABELMAP" else [_owner(path, group, shared) for group in groups],
            float(header.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1.0,
            str(references[0].get("SeriesInstanceUID", "")) if len(references) == 1 else "",
            str(header.get("FrameOfReferenceUID", "")),
        )


def _check_pixels(path: Path, header: Any, file: IO[bytes]) -> None:
    """Raise an error if the file ends before its pixels do; `file` is at the element of the pixels."""
    start = file.read(12)
    explicit = not header.original_encoding[0]
    length, begin = (start[8:12], 12) if explicit else (start[4:8], 8)
    stated = int.from_bytes(length, "little" if header.original_encoding[1] else "big")
    size = path.stat().st_size - (file.tell() - 12 + begin)
    bits = int(header.get("BitsAllocated") or 1) * int(header.Rows) * int(header.Columns)
    compressed = stated == _UNDEFINED
    expected = 1 if compressed else max(stated, (bits * int(header.get("NumberOfFrames") or 1) + 7) // 8)
    if len(start) < 12 or size < expected:
        raise InputError(
            f"{path}: the file is truncated: expected {expected} bytes of frames, got {max(size, 0)}. Copy it again."
        )
    if compressed:
        file.seek(-min(size, _TAIL), 2)
        if _SEQUENCE_END not in file.read():
            raise InputError(
                f"{path}: the file is truncated: expected the end of its frames, found none. Copy it again."
            )


def own_grid(segments: Segments) -> Grid:
    """Grid of the frames; slices that the file leaves out are part of it.

    Raises
    ------
    GeometryError
        The frames are not on evenly spaced planes.
    """
    unique: dict[tuple[float, ...], Plane] = {}
    for plane in segments.planes:
        if plane.position_mm is None or plane.orientation is None:
            raise GeometryError(f"{segments.path}: expected the position of every frame, got none for {plane.name}.")
        unique.setdefault(tuple(np.round(plane.position_mm, 3)), plane)
    planes = list(unique.values())
    first = planes[0]
    assert first.orientation is not None
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = np.sort([float(plane.position_mm @ normal) for plane in planes if plane.position_mm is not None])
    steps = np.diff(heights)
    if len(steps) and steps.max() > (1 + _EVEN) * steps.min():
        counts = np.round(steps / steps.min())
        if np.abs(steps / steps.min() - counts).max() > _EVEN * counts.max():
            raise GeometryError(
                f"{segments.path}: expected frames on evenly spaced planes, got distances from {steps.min():.4g} to "
                f"{steps.max():.4g} mm. Give the scan as the reference."
            )
        lowest = min(planes, key=lambda plane: float(np.dot(plane.position_mm, normal)))  # type: ignore[arg-type]
        highest = max(planes, key=lambda plane: float(np.dot(plane.position_mm, normal)))  # type: ignore[arg-type]
        assert lowest.position_mm is not None and highest.position_mm is not None
        number = int(counts.sum())
        way = (highest.position_mm - lowest.position_mm) / number
        planes = [
            Plane(f"slice {n}", lowest.position_mm + n * way, first.orientation, first.spacing_mm, first.thickness_mm)
            for n in range(number + 1)
        ]
    order, affine = order_planes(segments.path, planes)
    return Grid((segments.shape[1], segments.shape[0], len(order)), affine)


def segments_to_voxels(segments: Segments, grid: Grid) -> list[Callable[[], Bool]]:
    """Functions that return the voxels (I, J, K) of each segment on a grid.

    Raises
    ------
    GeometryError
        A frame does not lie on the voxels of the grid.
    """
    places = [_place(segments, plane, grid) for plane in segments.planes]
    labelled = cache(lambda: _read_frames(segments.path, range(len(segments.planes))))
    return [partial(_fill, segments, number, places, grid, labelled) for number in segments.numbers]


def _number(item: Any, default: int) -> int:
    found = item.get("SegmentNumber")
    return default if found is None else int(found)


def _label(item: Any, number: int) -> Label:
    kept = _LABEL_DESCRIPTION.fullmatch(str(item.get("SegmentDescription") or "").strip())
    name = clean_name(item.get("SegmentLabel"), f"segment {number}")
    terms = read_terminology(item, "SegmentedPropertyTypeCodeSequence")
    return Label(int(kept[1]) if kept else number, name, _color(item), terminology=terms)


def _color(item: Any) -> Color | None:
    """Convert the CIELab colour of a segment, in 16 bits each, to RGB."""
    from skimage.color import lab2rgb

    found = item.get("RecommendedDisplayCIELabValue")
    if found is None or len(found) != 3:
        return None
    light, a, b = (float(part) / 65535 for part in found)
    red, green, blue = np.round(255 * np.clip(lab2rgb([light * 100, a * 255 - 128, b * 255 - 128]), 0, 1)).astype(int)
    return int(red), int(green), int(blue)


def _owner(path: Path, group: Any, shared: Any) -> int:
    for place in (group, shared):
        found = place.get("SegmentIdentificationSequence") if place is not None else None
        if found:
            return int(found[0].ReferencedSegmentNumber)
    raise InputError(f"{path}: expected the segment of every frame (SegmentIdentificationSequence), got none.")


@dataclass(frozen=True, eq=False)
class _Place:
    """Place of a frame in a grid: index into the array, and whether the frame's axes are swapped and reversed there."""

    index: tuple[Any, ...]
    crop: tuple[slice, slice]
    transpose: bool


def _place(segments: Segments, plane: Plane, grid: Grid) -> _Place | None:
    """Place of a frame (columns, rows) in the array of a grid; None if it lies outside."""
    if plane.position_mm is None or plane.orientation is None or plane.spacing_mm is None:
        raise GeometryError(f"{segments.path}: expected the position of every frame, got none for {plane.name}.")
    inverse = np.linalg.inv(LPS @ grid.affine)
    along = np.stack([plane.orientation[:3] * plane.spacing_mm[1], plane.orientation[3:] * plane.spacing_mm[0]], 1)
    steps: Float64 = inverse[:3, :3] @ along  # (3, 2): voxels of the grid for one column and for one row
    start: Float64 = inverse[:3, :3] @ plane.position_mm + inverse[:3, 3]
    size = (segments.shape[1], segments.shape[0])
    whole, first = np.round(steps), np.round(start)
    drift = np.abs(steps - whole) @ (np.array(size) - 1) + np.abs(start - first)
    if drift.max() > _SAME_PLACE or (np.abs(whole).sum(axis=0) != 1).any():
        raise GeometryError(
            f"{segments.path}: expected frames on the voxels of the reference scan, got {plane.name} up to "
            f"{drift.max():.2g} voxels away. Give the series that was segmented as the reference, then resample the "
            "label map."
        )
    axes = [int(np.argmax(np.abs(whole[:, n]))) for n in (0, 1)]
    index: list[Any] = [int(n) for n in first]
    crop = []
    for n, axis in enumerate(axes):
        sign = int(whole[axis, n])
        at = int(first[axis]) + sign * np.arange(size[n])
        inside = np.flatnonzero((at >= 0) & (at < grid.shape[axis]))
        if not len(inside):
            return None
        crop.append(slice(int(inside[0]), int(inside[-1]) + 1))
        first_at, beyond = int(at[inside[0]]), int(at[inside[-1]]) + sign
        index[axis] = slice(first_at, beyond if beyond >= 0 else None, sign)
    across = ({0, 1, 2} - set(axes)).pop()
    if not 0 <= index[across] < grid.shape[across]:
        return None
    return _Place(tuple(index), (crop[0], crop[1]), axes[0] > axes[1])


def _fill(
    segments: Segments,
    number: int,
    places: Sequence[_Place | None],
    grid: Grid,
    labelled: Callable[[], list[NDArray[Any]]],
) -> Bool:
    """Voxels of a segment. `labelled` returns all frames, for a file whose values are segment numbers."""
    inside = np.zeros(grid.shape, bool)
    lost = fractional = 0
    if segments.owners:
        wanted: Sequence[int] = [n for n, owner in enumerate(segments.owners) if owner == number]
        frames = _read_frames(segments.path, wanted)
    else:
        wanted, frames = range(len(segments.planes)), labelled()
    for n, values in zip(wanted, frames, strict=True):
        if segments.owners:
            chosen = values.astype(np.float64) * 2 >= segments.scale if segments.scale > 1 else values != 0
            fractional += int(((values > 0) & (values < segments.scale)).sum())
        else:
            chosen = values == number
        if not chosen.any():
            continue
        place = places[n]
        kept = chosen.T[place.crop] if place is not None else np.zeros((0, 0), bool)
        if place is not None:
            inside[place.index] |= kept.T if place.transpose else kept
        lost += int(chosen.sum() - kept.sum())
    name = segments.labels[segments.numbers.index(number)].name
    if fractional:
        log.warning(
            "%s: %r is fractional: %d voxels lie between 0 and 1; those of at least 0.5 get the label",
            segments.path,
            name,
            fractional,
        )
    if lost:
        log.warning("%s: %d voxels of %r lie outside the reference scan; they are left out", segments.path, lost, name)
    if not inside.any():
        log.warning("%s: %r has no voxels", segments.path, name)
    return inside


def _read_frames(path: Path, indices: Sequence[int]) -> list[NDArray[Any]]:
    """Pixels of some frames, (rows, columns) each."""
    import pydicom
    from pydicom.pixels.utils import iter_pixels

    if not indices:
        return []
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, force=True)
            if int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_compressed:
                return _unpack_bits(dataset, indices)
            return list(iter_pixels(dataset, indices=list(indices)))
    except Exception as error:  # a decoder may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: its frames are truncated or damaged ({reason}). Copy it again.") from error


def _unpack_bits(dataset: Any, indices: Sequence[int]) -> list[NDArray[Any]]:
    """Frames of one bit for each pixel; they follow each other without padding, so a frame may begin within a byte."""
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    if not dataset.original_encoding[1]:  # big endian: words of 16 bits
        packed = packed[: len(packed) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    size = int(dataset.Rows) * int(dataset.Columns)
    frames = []
    for n in indices:
        first, offset = divmod(n * size, 8)
        bits = np.unpackbits(packed[first : first + (offset + size + 7) // 8], bitorder="little")
        frames.append(bits[offset : offset + size].reshape(int(dataset.Rows), int(dataset.Columns)))
    return frames
