"""DICOM geometry: stack slices into a volume by their positions, and check that they form one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._source import format_sizes, log
from atlasseg.itk import LPS, shear_degrees
from atlasseg.volume import Float64, Grid

_EVEN = 0.02  # fraction of the slice distance; scanners write positions with 2 to 6 decimals
_SAME_SPACING = 1e-3  # relative
_SAME_DIRECTION = 1e-3  # of cosines
_STRAIGHT = 1e-3  # fraction of the slice distance; a stack that deviates less from the normal is not sheared
_MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class Plane:
    """Position of a slice by its header, in LPS+ mm; None for missing values.

    `orientation` holds the directions along a row and along a column, `spacing_mm` the distance between rows and
    between columns, in the order of DICOM.
    """

    name: str
    position_mm: Float64 | None
    orientation: Float64 | None
    spacing_mm: Float64 | None
    thickness_mm: float | None


def stack_planes(path: Path, frames: Sequence[NDArray[Any]], planes: Sequence[Plane]) -> tuple[NDArray[Any], Float64]:
    """Stack slices in the order of their positions.

    Parameters
    ----------
    path : Path
        For messages.
    frames : N arrays (rows, columns)
    planes : N planes

    Returns
    -------
    array : (columns, rows, N)
    affine : (4, 4) float64
        Voxel to RAS+ mm.

    Raises
    ------
    InputError
        Several slices have the same position.
    GeometryError
        The position of a slice is missing, sizes or orientations differ, or the slices are not evenly spaced.
    """
    order, affine = order_planes(path, planes)
    return np.stack([np.asarray(frames[n]).T for n in order], axis=-1), affine


def order_planes(path: Path, planes: Sequence[Plane]) -> tuple[list[int], Float64]:
    """Order of the slices along their normal, and the affine of their stack; parameters and errors of `stack_planes`.

    Returns
    -------
    order : list of int
        Indices of the planes, in the order of the third axis.
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    """
    along_row, along_column, spacing = _one_orientation(path, planes)
    positions = np.stack([plane.position_mm for plane in planes if plane.position_mm is not None])
    normal = np.cross(along_row, along_column)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step = _step(path, positions, normal, planes)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = along_row * spacing[1], along_column * spacing[0], step
    lps[:3, 3] = positions[0]
    affine: Float64 = LPS @ lps
    aside = np.linalg.norm(step - (step @ normal) * normal)
    if aside > _STRAIGHT * np.linalg.norm(step):
        degrees = shear_degrees(Grid((1, 1, 1), affine))
        log.warning("%s: the slices are not stacked along their normal: sheared by %.3g degrees", path, degrees)
    return [int(n) for n in order], affine


def _one_orientation(path: Path, planes: Sequence[Plane]) -> tuple[Float64, Float64, Float64]:
    """Directions along rows and columns and the pixel spacing, after checking that all slices have the same."""
    first = planes[0]
    for plane in planes:
        for value, what, keyword in (
            (plane.position_mm, "position", "ImagePositionPatient"),
            (plane.orientation, "orientation", "ImageOrientationPatient"),
            (plane.spacing_mm, "pixel spacing", "PixelSpacing"),
        ):
            if value is None:
                raise GeometryError(
                    f"{path}: expected the {what} of every slice ({keyword}), got none for {plane.name}. "
                    "Export the series again from the archive, with its geometry."
                )
    assert first.orientation is not None and first.spacing_mm is not None
    for plane in planes:
        assert plane.orientation is not None and plane.spacing_mm is not None
        if np.abs(plane.spacing_mm / first.spacing_mm - 1).max() > _SAME_SPACING:
            raise GeometryError(
                f"{path}: expected one pixel spacing in the series, got {format_sizes(first.spacing_mm)} mm in "
                f"{first.name} and {format_sizes(plane.spacing_mm)} mm in {plane.name}. Put its parts into separate "
                "folders."
            )
        if np.abs(plane.orientation - first.orientation).max() > _SAME_DIRECTION:
            raise GeometryError(
                f"{path}: expected one orientation in the series, got that of {first.name} and another one of "
                f"{plane.name}: slices in several planes, as in a localizer. Put its parts into separate folders."
            )
    if (first.spacing_mm <= 0).any():
        raise GeometryError(f"{path}: expected a pixel spacing above 0, got {format_sizes(first.spacing_mm)} mm.")
    along_row, along_column = first.orientation[:3], first.orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(along_row @ along_column) > 0.01:
        raise GeometryError(
            f"{path}: expected two perpendicular directions of length 1 in ImageOrientationPatient, "
            f"got {first.orientation.tolist()}."
        )
    return along_row / lengths[0], along_column / lengths[1], first.spacing_mm


def _step(path: Path, positions: NDArray[Any], normal: NDArray[Any], planes: Sequence[Plane]) -> Float64:
    """Step between consecutive slices, (3,) LPS mm, from their sorted positions (N, 3), which must be evenly spaced."""
    if len(positions) == 1:
        thickness = planes[0].thickness_mm
        if thickness is None:
            raise GeometryError(f"{path}: expected the thickness of its only slice (SliceThickness), got none.")
        log.warning("%s: a single slice: its thickness of %g mm is taken as the voxel size across it", path, thickness)
        return thickness * normal
    steps = np.diff(positions, axis=0)
    heights = steps @ normal
    usual = float(np.median(heights))
    distinct = 1 + int((heights > _EVEN * max(usual, heights.max())).sum())
    if distinct < len(positions):
        raise InputError(
            f"{path}: expected one volume, got {len(positions)} slices at {distinct} positions: several volumes in one "
            "series, such as echoes or time points. Put each into a separate folder."
        )
    step: Float64 = (positions[-1] - positions[0]) / len(steps)
    if np.linalg.norm(steps - step, axis=1).max() > _EVEN * np.linalg.norm(step):
        raise GeometryError(f"{path}: expected evenly spaced slices, got {_describe_gaps(positions, steps, heights)}")
    return step


def _describe_gaps(positions: NDArray[Any], steps: NDArray[Any], heights: NDArray[Any]) -> str:
    usual = float(np.median(heights))
    distances = f"distances from {heights.min():.4g} to {heights.max():.4g} mm"
    missing = []
    for index in np.flatnonzero(heights > (1 + _EVEN) * usual):
        count = heights[index] / usual
        if abs(count - round(count)) > _EVEN * count:
            return f"{distances}. Slices of another series may be among them."
        missing += [positions[index] + steps[index] * n / round(count) for n in range(1, round(count))]
    if not missing or heights.min() < (1 - _EVEN) * usual:
        return f"{distances}, or slices that are not in one line."
    places = ", ".join(f"({', '.join(f'{x:.5g}' for x in place)})" for place in missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return (
        f"a gap: slices are {usual:.4g} mm apart, and none lies at {places}{more} mm (LPS, as DICOM gives positions). "
        "Find the missing files."
    )
