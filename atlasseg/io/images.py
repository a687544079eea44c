"""Scans, label maps and masks: read from and write to any volume format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.files import atomic_write, checked_content, checked_path
from atlasseg.io._dicom_writing import Algorithm, make_dicomseg, make_rtstruct
from atlasseg.io._nifti_header import SpacingSource
from atlasseg.io._opening import Channels, read_3d
from atlasseg.io._source import Like, log, name_file
from atlasseg.io._structure_set import Overlap, Structures, merge_structures
from atlasseg.io._suffixes import volume_id
from atlasseg.io._writing import write_volume
from atlasseg.io.dicom_series import quiet_pydicom
from atlasseg.io.rtstruct import BetweenSlices
from atlasseg.io.segmentations import is_segmentation, merge_layers, segment_fields
from atlasseg.io.structures import Reference, find_structure_file, open_structures, scan_of
from atlasseg.labels import LabelTable
from atlasseg.volume import Image, LabelMap, Mask, SourceHeader

__all__ = ["read_image", "read_label_map", "read_mask", "read_scan", "write_image", "write_label_map", "write_mask"]

_LABEL_TYPES = ("uint8", "int16", "uint16", "int32")
LabelFormat = Literal["nifti", "seg.nrrd", "rtstruct", "dicomseg"]
"""Formats of label maps to write."""
FORMAT_SUFFIXES: dict[str, tuple[str, ...]] = {
    "nifti": (".nii.gz", ".nii"),
    "seg.nrrd": (".seg.nrrd",),
    "rtstruct": (".dcm",),
    "dicomseg": (".dcm",),
}
"""File name suffixes of each format of label maps."""

_WHOLE_IN_FLOAT32 = 2**24
_ROUNDED_LABELS = 1e-3  # rounding error of 16-bit labels that are scaled by scl_slope


def read_image(
    path: str | Path,
    *,
    nonfinite: Literal["mask", "refuse"] = "mask",
    spacing_from: SpacingSource = "sform",
    series: str | int | None = None,
) -> Image:
    """Read a scan.

    Parameters
    ----------
    path : path
        Volume file, or a folder with a DICOM series in it or below it. ``FOLDER#2`` is the second of several series.
    nonfinite : {"mask", "refuse"}
        Handling of NaN and infinite intensities: replace them by the lowest finite one with a warning
        (:func:`read_scan` also returns their positions), or raise an error.
    spacing_from : {"sform", "pixdim"}
        Source of the voxel size in a NIfTI header whose sform and pixdim differ by more than 1 %. A warning states
        both.
    series : int or str, optional
        DICOM series of a folder: its number in :func:`list_series`, or its SeriesInstanceUID.

    Returns
    -------
    Image

    Raises
    ------
    InputError
        The file does not exist, is damaged, has an unknown format, holds colours, is not 3-D (or 4-D with one volume),
        or has no finite intensity; or ``nonfinite="refuse"`` and some are not finite. The message names the file.
    GeometryError
        The affine is not finite or not invertible.
    """
    return read_scan(path, nonfinite=nonfinite, spacing_from=spacing_from, series=series)[0]


def read_scan(
    path: str | Path,
    *,
    nonfinite: Literal["mask", "refuse"] = "mask",
    channels: Channels = False,
    spacing_from: SpacingSource = "sform",
    series: str | int | None = None,
) -> tuple[Image, Mask | None]:
    """Read a scan, and the mask of its finite intensities.

    Parameters
    ----------
    path, nonfinite, spacing_from, series
        As for :func:`read_image`, and so are the errors.
    channels : bool or "few"
        Read a 4-D file as a scan with several channels. ``"few"``: a file that seems to be a series in time, or of
        directions, of which no volumes are chosen, is an error.

    Returns
    -------
    image : Image
        The scan.
    mask : Mask or None
        Voxels with finite intensities; None if all are finite.
    """
    path = checked_path(path)
    raw = read_3d(path, channels=channels, spacing_from=spacing_from, series=series)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are handled like infinite ones
        array = np.asarray(raw.array, dtype=np.float32)
    finite = np.isfinite(array)
    count = int(finite.size - finite.sum())
    mask = None
    if count:
        where = np.argwhere(~finite)[0].tolist()
        found = (
            f"{count / finite.size:.2%} of the intensities are NaN or infinite ({count} of {finite.size}, the first at "
            f"voxel {where})"
        )
        if nonfinite == "refuse" or count == finite.size:
            raise InputError(f"{path}: {found}")
        lowest = array[finite].min()
        log.warning("%s: %s; they are masked and replaced by the lowest finite intensity, %g", path, found, lowest)
        array = np.where(finite, array, lowest)
        known = np.asarray(finite if finite.ndim == 3 else finite.all(axis=3))
        mask = name_file(path, lambda: Mask(known, raw.affine, volume_id(path), raw.source_header))
    return name_file(path, lambda: Image(array, raw.affine, volume_id(path), raw.source_header)), mask


def read_label_map(
    path: str | Path,
    *,
    spacing_from: SpacingSource = "sform",
    reference: Reference = None,
    structures: Structures = None,
    overlap: Overlap = "refuse",
    between_slices: BetweenSlices = "refuse",
) -> LabelMap:
    """Read a label map. Labels are read exactly from any data type.

    The structures of an RTSTRUCT, a DICOM-SEG or a 3D Slicer segmentation (``.seg.nrrd``) become one label map with the
    numbers of the file as labels; :func:`read_label_table` reads their names and colours, and :func:`read_structures`
    keeps structures that overlap apart. A voxel is inside a contour where its centre is inside an odd number of the
    contours of its plane. Values within 0.001 of a whole number, a rounding error of ``scl_slope``, are rounded with a
    warning.

    Parameters
    ----------
    path : path
        Volume file, RTSTRUCT or DICOM-SEG; or a folder with one RTSTRUCT or DICOM-SEG, perhaps beside its scan.
    spacing_from : {"sform", "pixdim"}
        As for :func:`read_image`.
    reference : path, volume or Grid, optional
        Scan on whose grid an RTSTRUCT or DICOM-SEG is read. By default the series that it refers to, in the same
        folder, below it, or in a folder beside it. Other formats have their own grid.
    structures : sequence of str or LabelTable, optional
        Names (or numbers) of the structures to read, in order of priority; a table also gives their values. Only for
        files with named structures.
    overlap : {"refuse", "first"}
        Handling of structures that overlap: raise an error, or give a voxel to the structure that comes first.
    between_slices : {"refuse", "nearest", "interpolate"}
        Handling of contours between the slices of `reference`, as for :func:`read_structures`.

    Returns
    -------
    LabelMap

    Raises
    ------
    InputError
        As for :func:`read_image`; also if a value is not a whole number of 32 bits, or structures overlap. The message
        names the file.
    GeometryError
        An RTSTRUCT or DICOM-SEG belongs to another scan than `reference`.
    """
    path = checked_path(path)
    layered = is_segmentation(path)
    named = find_structure_file(path)
    if named is not None and (not layered or structures is not None or overlap != "refuse"):
        opened = open_structures(named, reference=reference, structures=structures, between_slices=between_slices)
        merged = merge_structures(path, opened.grid, opened.structures, overlap)
        return LabelMap(merged, opened.grid.affine, volume_id(path), SourceHeader(path))
    if structures is not None:
        raise InputError(
            f"{path}: expected a file with named structures (RTSTRUCT, DICOM-SEG or .seg.nrrd) to choose from, got "
            "another format."
        )
    raw = read_3d(path, spacing_from=spacing_from, channels=layered)
    array = merge_layers(path, raw.array) if layered else raw.array
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = np.round(array)
            off = np.abs(array - whole)
        not_whole = ~(off <= _ROUNDED_LABELS)
        if not_whole.any():
            where = np.argwhere(not_whole)[0].tolist()
            raise InputError(
                f"{path}: expected whole numbers as labels, got {array[tuple(where)]} at voxel {where} "
                f"({int(not_whole.sum())} voxels in all)"
            )
        if off.any():
            log.warning(
                "%s: %d labels differ from whole numbers by up to %.2g, a rounding error of scaling; they are rounded",
                path,
                int(np.count_nonzero(off)),
                float(off.max()),
            )
            array = whole
        if array.dtype.itemsize <= 4 and np.abs(array).max() > _WHOLE_IN_FLOAT32:
            log.warning(
                "%s: labels beyond %d are stored as float32, which rounds them: largest found %d; they may have been "
                "other numbers once",
                path,
                _WHOLE_IN_FLOAT32,
                int(np.abs(array).max()),
            )
    return name_file(path, lambda: LabelMap(array, raw.affine, volume_id(path), raw.source_header))


def read_mask(path: str | Path, *, spacing_from: SpacingSource = "sform", reference: Reference = None) -> Mask:
    """Read a mask; voxels with values other than 0 are inside, or those inside any structure of an RTSTRUCT or SEG.

    Parameters
    ----------
    path : path
        Volume file, RTSTRUCT or DICOM-SEG.
    spacing_from : {"sform", "pixdim"}
        As for :func:`read_image`.
    reference : path, volume or Grid, optional
        As for :func:`read_label_map`.

    Returns
    -------
    Mask

    Raises
    ------
    InputError
        As for :func:`read_image`; also if a value is not finite, or no voxel is inside.
    """
    path = checked_path(path)
    named = find_structure_file(path)
    if named is not None and not is_segmentation(path):
        opened = open_structures(named, reference=reference)
        union = np.zeros(opened.grid.shape, bool)
        for structure in opened.structures:
            union |= structure.voxels()
        if not union.any():
            raise InputError(f"{path}: the mask is empty: its structures have no voxels")
        return Mask(union, opened.grid.affine, volume_id(path), SourceHeader(path))
    raw = read_3d(path, spacing_from=spacing_from)
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: expected a mask of finite values, got NaN or infinity")
    inside = raw.array != 0
    if not inside.any():
        raise InputError(f"{path}: the mask is empty: all values are 0")
    return name_file(path, lambda: Mask(inside, raw.affine, volume_id(path), raw.source_header))


def write_image(image: Image, path: str | Path, *, like: Like = None) -> None:
    """Write an image as float32; channels become the fourth axis.

    Parameters
    ----------
    image : Image
        The intensities to write.
    path : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``; missing folders are created. The file is written atomically, and
        the same volume always gives the same bytes.
    like : volume or SourceHeader, optional
        Template for affine, sform and qform with their codes, unit and NIfTI version; a volume must be on the same
        grid. By default the source header of `image`.

    Raises
    ------
    OutputError
        The file cannot be written (no space, no permission); no partial file remains.
    GeometryError
        `like` is on another grid.
    InputError
        The suffix of the path is unknown.
    """
    checked_content(image, Image, path)
    write_volume(checked_path(path), list(np.moveaxis(image.channels, -1, 0)), np.dtype(np.float32), image, like)


def write_label_map(
    labels: LabelMap,
    path: str | Path,
    *,
    like: Like | str | Path = None,
    format: LabelFormat | None = None,
    table: LabelTable | None = None,
    algorithm: Algorithm = "automatic",
) -> None:
    """Write a label map as a volume of integers, a 3D Slicer segmentation, an RTSTRUCT or a DICOM-SEG.

    The data type of a volume is that of the file of `labels`, or else of `like`, or else the smallest one that fits.

    Parameters
    ----------
    labels : LabelMap
        The labels to write.
    path : path
        As for :func:`write_image`; ``.seg.nrrd`` for 3D Slicer, ``.dcm`` for an RTSTRUCT or a DICOM-SEG.
    like : volume, SourceHeader or path, optional
        As for :func:`write_image`. For an RTSTRUCT or DICOM-SEG: the DICOM scan that it refers to, as its folder or as
        an image that was read from it; by default the source header of `labels`.
    format : {"nifti", "seg.nrrd", "rtstruct", "dicomseg"}, optional
        By default that of the suffix; needed for ``.dcm``.
    table : LabelTable, optional
        Names, colours and codes of the labels, for the formats that hold them.
    algorithm : {"automatic", "semiautomatic", "manual"}
        How the labels were made, for an RTSTRUCT or DICOM-SEG.

    Raises
    ------
    OutputError, GeometryError, InputError
        As for :func:`write_image`; also if an RTSTRUCT or DICOM-SEG has no DICOM scan as `like`, or its scan lacks the
        study or frame of reference.
    """
    checked_content(labels, LabelMap, path)
    path = checked_path(path)
    chosen = label_format(path, format)
    table = LabelTable() if table is None else table
    if chosen in ("rtstruct", "dicomseg"):
        reference = scan_of(like if like is not None else labels.source_header, path)
        make = make_rtstruct if chosen == "rtstruct" else make_dicomseg
        dataset = make(labels, path, reference, table, algorithm)
        with atomic_write(path) as temporary, quiet_pydicom():
            dataset.save_as(temporary, enforce_file_format=True)
        return
    template = read_image(like) if isinstance(like, str | Path) else like
    place = template if isinstance(template, SourceHeader) else template.source_header if template else SourceHeader()
    dtype = _label_type(labels, (labels.source_header.dtype, place.dtype))
    fields = name_file(path, lambda: segment_fields(labels, table)) if chosen == "seg.nrrd" else None
    write_volume(path, [labels.array], dtype, labels, template, fields=fields)


def label_format(path: Path, format: LabelFormat | None) -> str:
    """Format of a label map to write: the given one, or that of the suffix ("" for other volumes).

    Raises
    ------
    InputError
        The format is unknown, does not fit the suffix, or is missing for ``.dcm``.
    """
    name = path.name.lower()
    if format is None:
        if name.endswith(".dcm"):
            raise InputError(f"{path}: expected a format for a .dcm file. Choose 'rtstruct' or 'dicomseg' (--format).")
        return "seg.nrrd" if name.endswith(".seg.nrrd") else ""
    if format not in FORMAT_SUFFIXES:
        raise InputError(f"format: expected one of {', '.join(FORMAT_SUFFIXES)}, got {format!r}.")
    if not name.endswith(FORMAT_SUFFIXES[format]):
        raise InputError(
            f"{path}: expected a name that ends in {' or '.join(FORMAT_SUFFIXES[format])} for the format {format}."
        )
    return format


def write_mask(mask: Mask, path: str | Path, *, like: Like = None) -> None:
    """Write a mask as uint8, 1 inside.

    Parameters
    ----------
    mask : Mask
        The mask to write.
    path : path
        As for :func:`write_image`.
    like : volume or SourceHeader, optional
        As for :func:`write_image`.

    Raises
    ------
    OutputError, GeometryError, InputError
        As for :func:`write_image`.
    """
    checked_content(mask, Mask, path)
    write_volume(checked_path(path), [mask.array], np.dtype(np.uint8), mask, like)


def _label_type(labels: LabelMap, preferred: Iterable[str | None]) -> np.dtype[Any]:
    lowest, highest = int(labels.array.min()), int(labels.array.max())
    for name in (*preferred, *_LABEL_TYPES):
        if name is not None and np.dtype(name).kind in "iu":
            limits = np.iinfo(name)
            if limits.min <= lowest and highest <= limits.max:
                return np.dtype(name)
    raise AssertionError("int32 holds every label")
