"""Segmentations of named structures: RTSTRUCT, DICOM-SEG and 3D Slicer's ``.seg.nrrd``.

:func:`.read_label_map`, :func:`.read_mask` and :func:`.read_label_table` read them too; :func:`read_structures` keeps
structures that overlap apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.files import checked_path
from atlasseg.io._dicom_reference import DicomReference, find_series, is_dicom, read_reference
from atlasseg.io._opening import open_volume, read_3d
from atlasseg.io._source import Like, log
from atlasseg.io._structure_set import Structure, Structures, StructureSet, choose_structures
from atlasseg.io._suffixes import volume_suffix
from atlasseg.io.dicom_series import SEGMENTATION, STRUCTURES, kind_of, list_series, read_header, split_series
from atlasseg.io.dicomseg import own_grid, read_segments, segments_to_voxels
from atlasseg.io.rtstruct import BetweenSlices, contours_to_voxels, read_contours
from atlasseg.io.segmentations import is_segmentation, label_of_segment
from atlasseg.io.segmentations import read_segments as read_slicer_segments
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Bool, Grid, Mask, SourceHeader

__all__ = ["read_structures"]

T = TypeVar("T")
Reference = str | Path | Like | Grid
"""Scan that a segmentation belongs to: a path, a volume or a grid. None: the series that the file names."""


@dataclass(frozen=True)
class StructureFile:
    """File with named structures.

    `kind` is ``RTSTRUCT``, ``DICOM-SEG`` or ``.seg.nrrd``.
    """

    path: Path
    kind: str


def find_structure_file(path: Path) -> StructureFile | None:
    """File with named structures that a path stands for; None for other volumes.

    Parameters
    ----------
    path : Path
        The file itself; or a folder (perhaps ``FOLDER#2``) with one RTSTRUCT or DICOM-SEG, beside its scan or without.

    Raises
    ------
    InputError
        A folder has several such files.
    """
    if is_segmentation(path):
        return StructureFile(path, ".seg.nrrd")
    where, series = split_series(path)
    kinds = {SEGMENTATION: "DICOM-SEG", STRUCTURES: "RTSTRUCT"}
    if where.is_file() and volume_suffix(where.name) in ("", ".dcm", ".ima"):
        header = read_header(where, tags=["SOPClassUID", "Rows", "Columns"])
        kind = _name_errors(where, lambda: kinds.get(kind_of(header))) if header is not None else None
        return None if kind is None else StructureFile(where, kind)
    if not where.is_dir():
        return None
    found = [
        each
        for each in list_series(where)
        if each.kind in kinds and (series is None or series in (str(each.number), each.uid))
    ]
    if len(found) > 1:
        example = f"{where}#{found[0].number}"
        raise InputError(
            f"{where}: expected one RTSTRUCT or DICOM-SEG, found {len(found)}: {'; '.join(map(str, found))}. "
            f"Choose one by its number, as {example}."
        )
    return StructureFile(found[0].files[0], kinds[found[0].kind]) if found else None


def has_structures(path: str | Path) -> bool:
    """Whether a path is an RTSTRUCT, a DICOM-SEG, a ``.seg.nrrd``, or a folder with one RTSTRUCT or DICOM-SEG."""
    return find_structure_file(Path(path)) is not None


def list_drawn(path: str | Path) -> tuple[str, ...]:
    """Names of the structures of a file that have voxels: in an RTSTRUCT, those with a closed contour.

    Parameters
    ----------
    path : path
        RTSTRUCT, DICOM-SEG, ``.seg.nrrd``, or a folder with one RTSTRUCT or DICOM-SEG.

    Returns
    -------
    tuple of str

    Raises
    ------
    InputError
        The file is damaged, or has another format.
    """
    found = find_structure_file(checked_path(path))
    if found is None:
        raise InputError(f"{path}: expected an RTSTRUCT, a DICOM-SEG or a .seg.nrrd file, got another format.")
    if found.kind == "RTSTRUCT":
        rows = _name_errors(found.path, lambda: read_contours(found.path, points=False)[0])
        return tuple(row.label.name for row in rows if row.closed)
    return tuple(label.name for label in table_of_structures(found))


@dataclass(frozen=True)
class DicomCase:
    """Scan in a folder, and the file of its structures.

    Parameters
    ----------
    scan : Path
        The folder, or ``FOLDER#UID`` among several scans.
    labels : Path or None
        RTSTRUCT or DICOM-SEG of the scan.
    study_uid : str
        StudyInstanceUID of the scan; may be empty.
    """

    scan: Path
    labels: Path | None
    study_uid: str


def find_case(folder: Path) -> DicomCase | None:
    """Find the DICOM scan in a folder or below it, and its RTSTRUCT or DICOM-SEG; None without a DICOM scan.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    DicomCase or None

    Raises
    ------
    InputError
        There are several files with structures, or several scans and the structures refer to none of them.
    """
    scans = [each for each in list_series(folder) if each.is_scan]
    if not scans:
        return None
    header = read_header(scans[0].files[0], tags=["SOPClassUID", "StudyInstanceUID"])
    study_uid = "" if header is None else str(header.get("StudyInstanceUID", ""))
    found = find_structure_file(folder)
    if found is None or len(scans) == 1:
        return DicomCase(folder, None if found is None else found.path, study_uid)
    if found.kind == "RTSTRUCT":
        uid = _name_errors(found.path, lambda: read_contours(found.path, points=False)[1])
    else:
        uid = _name_errors(found.path, lambda: read_segments(found.path).series_uid)
    if uid not in [scan.uid for scan in scans]:
        raise InputError(
            f"{folder}: expected the scan that {found.path.name} refers to ({uid or 'none named'}), found "
            f"{'; '.join(map(str, scans))}. Keep one scan and its structures in a folder."
        )
    return DicomCase(folder.with_name(f"{folder.name}#{uid}"), found.path, study_uid)


def read_structures(
    path: str | Path,
    *,
    reference: Reference = None,
    structures: Structures = None,
    between_slices: BetweenSlices = "refuse",
) -> list[tuple[Label, Mask]]:
    """Read the structures of an RTSTRUCT, DICOM-SEG or ``.seg.nrrd`` as separate masks, which may overlap.

    Parameters
    ----------
    path : path
        The file, or a folder with one RTSTRUCT or DICOM-SEG.
    reference : path, volume or Grid, optional
        Scan on whose grid the masks are made. By default the DICOM series that the file refers to, in the same folder,
        below it, or in a folder beside it; a DICOM-SEG without it has its own grid.
    structures : sequence of str or LabelTable, optional
        Names of the structures to read, or their numbers in the file; a table also gives the label values.
    between_slices : {"refuse", "nearest", "interpolate"}
        Handling of RTSTRUCT contours between the slices of `reference`: raise an error, fill each slice by the nearest
        plane of contours, or interpolate between the planes.

    Returns
    -------
    list of (Label, Mask)
        In the order of the file, or of `structures`. Masks may be empty.

    Raises
    ------
    InputError
        The file is damaged, has another format, lacks a structure, or its scan is not found.
    GeometryError
        The file belongs to another scan: other frame of reference, contours between the slices or outside.
    """
    path = checked_path(path)
    found = find_structure_file(path)
    if found is None:
        raise InputError(f"{path}: expected an RTSTRUCT, a DICOM-SEG or a .seg.nrrd file, got another format.")
    read = open_structures(found, reference=reference, structures=structures, between_slices=between_slices)
    source = SourceHeader(found.path)
    return [(each.label, Mask(each.voxels(), read.grid.affine, each.label.name, source)) for each in read.structures]


def open_structures(
    file: StructureFile,
    *,
    reference: Reference = None,
    structures: Structures = None,
    between_slices: BetweenSlices = "refuse",
) -> StructureSet:
    """Open the structures of a file; their voxels are read on demand. Parameters and errors of `read_structures`."""
    path = file.path
    openers: dict[str, Callable[[], StructureSet]] = {
        "RTSTRUCT": lambda: _open_rtstruct(path, reference, structures, between_slices),
        "DICOM-SEG": lambda: _open_dicomseg(path, reference, structures),
        ".seg.nrrd": lambda: _open_slicer(path, structures),
    }
    return _name_errors(path, openers[file.kind])


def table_of_structures(file: StructureFile) -> LabelTable:
    """Label table of the structures of a file.

    Raises
    ------
    InputError
        The file is damaged, or has no structures.
    """
    path = file.path
    readers: dict[str, Callable[[], Sequence[Label]]] = {
        "RTSTRUCT": lambda: [each.label for each in read_contours(path, points=False)[0]],
        "DICOM-SEG": lambda: read_segments(path).labels,
        ".seg.nrrd": lambda: [label_of_segment(each) for each in read_slicer_segments(path)],
    }
    return _name_errors(path, lambda: LabelTable(tuple(readers[file.kind]())))


def scan_of(like: Reference, path: Path) -> DicomReference:
    """DICOM scan that a segmentation is written for.

    Parameters
    ----------
    like : path, volume or SourceHeader
        Folder of the scan, or what was read from it.
    path : Path
        File to write, for messages.

    Raises
    ------
    InputError
        It is not a DICOM scan.
    """
    advice = "Give its folder, or an image read from it (like=..., --reference); or write .seg.nrrd or NIfTI."
    if like is None or isinstance(like, Grid):
        raise InputError(f"{path}: expected the DICOM scan of the labels, got none. {advice}")
    if isinstance(like, str | Path):
        where: Path | None = checked_path(like, "like")
    else:
        where = (like if isinstance(like, SourceHeader) else like.source_header).path
    if where is None or not split_series(where)[0].exists() or not is_dicom(where):
        raise InputError(
            f"{path}: expected the DICOM scan of the labels, got {where or 'a volume without file'}. {advice}"
        )
    return read_reference(where)


def _open_rtstruct(path: Path, reference: Reference, wanted: Structures, between_slices: BetweenSlices) -> StructureSet:
    contours, series_uid = read_contours(path)
    chosen = choose_structures(path, [each.label for each in contours], wanted)
    grid, series = _resolve(path, reference, series_uid)
    if grid is None:
        raise InputError(
            f"{path}: expected the DICOM series that the contours were drawn on ({series_uid or 'not named'}) in the "
            "folder of the RTSTRUCT or beside it, found none. Give the scan (reference=..., --reference SCAN)."
        )
    for position, label in chosen:
        _check_frame(path, label.name, contours[position].frame_of_reference_uid, series)
    _check_series(path, series_uid, series)
    picked = [replace(contours[position], label=label) for position, label in chosen]
    voxels = contours_to_voxels(path, picked, grid, between_slices)
    found = zip(chosen, voxels, strict=True)
    return StructureSet(path, grid, tuple(Structure(label, n, function) for (n, label), function in found))


def _open_dicomseg(path: Path, reference: Reference, wanted: Structures) -> StructureSet:
    segments = read_segments(path)
    chosen = choose_structures(path, segments.labels, wanted)
    grid, series = _resolve(path, reference, segments.series_uid)
    _check_frame(path, "the segments", segments.frame_of_reference_uid, series)
    _check_series(path, segments.series_uid, series)
    if grid is None:
        grid = own_grid(segments)
        log.info("%s: the scan that it refers to is not beside it; its own grid is used", path)
    voxels = segments_to_voxels(segments, grid)
    return StructureSet(path, grid, tuple(Structure(label, n, voxels[n]) for n, label in chosen))


def _open_slicer(path: Path, wanted: Structures) -> StructureSet:
    segments = read_slicer_segments(path)
    raw = read_3d(path, channels=True)
    array = raw.array if raw.array.ndim == 4 else raw.array[..., None]

    def voxels(layer: int, stored: int) -> Callable[[], Bool]:
        return lambda: np.asarray(array[..., layer] == stored)

    chosen = choose_structures(path, [label_of_segment(each) for each in segments], wanted)
    grid = Grid((array.shape[0], array.shape[1], array.shape[2]), raw.affine)
    return StructureSet(
        path,
        grid,
        tuple(Structure(label, n, voxels(segments[n].layer, segments[n].stored)) for n, label in chosen),
    )


def _resolve(path: Path, reference: Reference, series_uid: str) -> tuple[Grid | None, DicomReference | None]:
    """Grid of the reference, and its DICOM series if it is one; None, None if there is none."""
    if reference is None:
        found = find_series(path, series_uid)
        return (None, None) if found is None else (found.grid, found)
    if isinstance(reference, Grid):
        return reference, None
    if isinstance(reference, str | Path):
        given = checked_path(reference, "reference")
        if is_dicom(given):
            series = read_reference(given, _series_in(given, series_uid))
            return series.grid, series
        with open_volume(given) as source:
            shape = source.shape
            if len(shape) < 3:
                raise InputError(f"{given}: expected a 3-D scan as the reference, got shape {shape}.")
            return Grid((shape[0], shape[1], shape[2]), source.affine), None
    header = reference if isinstance(reference, SourceHeader) else reference.source_header
    where = header.path
    known = where is not None and split_series(where)[0].exists() and is_dicom(where)
    scan = read_reference(where) if where is not None and known else None
    if isinstance(reference, SourceHeader):
        if scan is None:
            raise InputError(f"{path}: expected the header of a DICOM series as the reference, got that of {where}.")
        return scan.grid, scan
    return reference.grid, scan if scan is not None and scan.grid.matches(reference.grid) else None


def _series_in(folder: Path, series_uid: str) -> str | None:
    """SeriesInstanceUID of the referenced series, if a folder has it among several scans."""
    where, named = split_series(folder)
    if named is not None or not where.is_dir():
        return None
    return series_uid if any(each.uid == series_uid and each.is_scan for each in list_series(where)) else None


def _check_frame(path: Path, name: str, uid: str, series: DicomReference | None) -> None:
    if series is not None and uid and series.frame_of_reference_uid and uid != series.frame_of_reference_uid:
        raise GeometryError(
            f"{path}: expected {name} in the frame of reference of {series.path} "
            f"({series.frame_of_reference_uid}), got {uid}: it belongs to another scan. Give that scan as the "
            "reference. (If a tool changed the UIDs, convert the scan to NIfTI and give that.)"
        )


def _check_series(path: Path, uid: str, series: DicomReference | None) -> None:
    if series is not None and uid and series.series_uid and uid != series.series_uid:
        log.warning(
            "%s: it was made on another series (%s) than %s; both have the same frame of reference",
            path,
            uid,
            series.path,
        )


def _name_errors(path: Path, make: Callable[[], T]) -> T:
    """Call `make`; any error of a parser becomes an InputError that names the file."""
    try:
        return make()
    except MissingLibraryError:
        raise
    except InputError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: the file is damaged ({reason}). Export it again.") from error
