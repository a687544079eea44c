"""Scans, label maps and masks: from any format to our types, and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.files import checked_content, checked_path
from atlasseg.io._nifti_header import SpacingSource
from atlasseg.io._opening import read_3d
from atlasseg.io._source import Like, log, name_file
from atlasseg.io._suffixes import volume_id
from atlasseg.io._writing import write_volume
from atlasseg.io.segmentations import is_segmentation, merge_layers
from atlasseg.volume import Image, LabelMap, Mask, SourceHeader

_LABEL_TYPES = ("uint8", "int16", "uint16", "int32")
_WHOLE_IN_FLOAT32 = 2**24
_ROUNDED_LABELS = 1e-3  # what scaling by scl_slope leaves of a whole number, in labels of 16 bits


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
        A volume's file, or a folder with a DICOM series in it or below it. ``FOLDER#2`` is the second of several.
    nonfinite : {"mask", "refuse"}
        What becomes of NaN and infinite intensities: replaced by the lowest finite one with a warning
        (:func:`read_scan` says where), or refused.
    spacing_from : {"sform", "pixdim"}
        Which voxel size of a NIfTI header to believe where its sform and its pixdim differ by more than 1 %. A warning
        gives both.
    series : int or str, optional
        Which DICOM series of a folder: its number in :func:`list_series`, or its SeriesInstanceUID.

    Raises
    ------
    InputError
        The file is absent, damaged, in no known format, of colours, not 3-D (4-D with one volume is), without any
        finite intensity, or has non-finite ones that are refused. The message names the file.
    GeometryError
        Its affine is not finite or not invertible.
    """
    return read_scan(path, nonfinite=nonfinite, spacing_from=spacing_from, series=series)[0]


def read_scan(
    path: str | Path,
    *,
    nonfinite: Literal["mask", "refuse"] = "mask",
    channels: bool = False,
    spacing_from: SpacingSource = "sform",
    series: str | int | None = None,
) -> tuple[Image, Mask | None]:
    """As :func:`read_image`, with a mask of the voxels whose intensities were finite, or None where all were.

    With `channels`, a 4-D file is a scan of several channels.
    """
    path = checked_path(path)
    raw = read_3d(path, channels=channels, spacing_from=spacing_from, series=series)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is dealt with as such
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
        log.warning("%s: %s; they are masked and set to the lowest finite intensity, %g", path, found, lowest)
        array = np.where(finite, array, lowest)
        known = np.asarray(finite if finite.ndim == 3 else finite.all(axis=3))
        mask = name_file(path, lambda: Mask(known, raw.affine, volume_id(path), raw.source_header))
    return name_file(path, lambda: Image(array, raw.affine, volume_id(path), raw.source_header)), mask


def read_label_map(path: str | Path, *, spacing_from: SpacingSource = "sform") -> LabelMap:
    """Read a label map; labels are kept exactly, whatever the type on disk.

    The layers of a segmentation of Slicer (``.seg.nrrd``) become one label map; :func:`read_label_table` names its
    segments. Values within 0.001 of a whole number, as scaling by ``scl_slope`` leaves them, are rounded with a
    warning.

    Parameters
    ----------
    path : path
        A volume's file.
    spacing_from : {"sform", "pixdim"}
        As of :func:`read_image`.

    Raises
    ------
    InputError
        As :func:`read_image`; and a value is not whole or beyond 32 bits, or segments overlap. The message names the
        file.
    """
    path = checked_path(path)
    layered = is_segmentation(path)
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
                f"{path}: labels must be whole numbers, found {array[tuple(where)]} at voxel {where} "
                f"({int(not_whole.sum())} voxels in all)"
            )
        if off.any():
            log.warning(
                "%s: %d labels are off whole numbers by up to %.2g, as scaling leaves them; they are rounded",
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


def read_mask(path: str | Path, *, spacing_from: SpacingSource = "sform") -> Mask:
    """Read a mask: inside is where the value is not 0.

    Parameters
    ----------
    path : path
        A volume's file.
    spacing_from : {"sform", "pixdim"}
        As of :func:`read_image`.

    Raises
    ------
    InputError
        As :func:`read_image`; and a value is not finite, or none lies inside.
    """
    path = checked_path(path)
    raw = read_3d(path, spacing_from=spacing_from)
    if not np.isfinite(raw.array).all():
        raise InputError(f"{path}: a mask must be finite, found NaN or infinite values")
    inside = raw.array != 0
    if not inside.any():
        raise InputError(f"{path}: the mask is empty: every value is 0")
    return name_file(path, lambda: Mask(inside, raw.affine, volume_id(path), raw.source_header))


def write_image(image: Image, path: str | Path, *, like: Like = None) -> None:
    """Write intensities as float32; channels become the fourth axis.

    Parameters
    ----------
    image : Image
        The intensities to write.
    path : path
        ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``; missing folders are made. The file appears whole or not at all,
        and the same volume always gives the same bytes.
    like : volume or SourceHeader, optional
        Whose affine, sform and qform with their codes, unit and NIfTI version the file gets, exactly; a volume must be
        on the same grid. Without it they are those of the file that `image` came from.

    Raises
    ------
    OutputError
        The file cannot be written (no space, no permission); nothing is left of it.
    GeometryError
        `like` is on another grid.
    InputError
        The path has another suffix.
    """
    checked_content(image, Image, path)
    write_volume(checked_path(path), list(np.moveaxis(image.channels, -1, 0)), np.dtype(np.float32), image, like)


def write_label_map(labels: LabelMap, path: str | Path, *, like: Like = None) -> None:
    """Write labels as integers: of the type that `labels`, else `like`, had on disk, else of the smallest that fits.

    Parameters
    ----------
    labels : LabelMap
        The labels to write.
    path : path
        As of :func:`write_image`.
    like : volume or SourceHeader, optional
        As of :func:`write_image`.

    Raises
    ------
    OutputError, GeometryError, InputError
        As :func:`write_image`.
    """
    checked_content(labels, LabelMap, path)
    place = like if isinstance(like, SourceHeader) else like.source_header if like is not None else SourceHeader()
    dtype = _label_type(labels, (labels.source_header.dtype, place.dtype))
    write_volume(checked_path(path), [labels.array], dtype, labels, like)


def write_mask(mask: Mask, path: str | Path, *, like: Like = None) -> None:
    """Write a mask as uint8, 1 inside.

    Parameters
    ----------
    mask : Mask
        The mask to write.
    path : path
        As of :func:`write_image`.
    like : volume or SourceHeader, optional
        As of :func:`write_image`.

    Raises
    ------
    OutputError, GeometryError, InputError
        As :func:`write_image`.
    """
    checked_content(mask, Mask, path)
    write_volume(checked_path(path), [mask.array], np.dtype(np.uint8), mask, like)


def _label_type(labels: LabelMap, wanted: Iterable[str | None]) -> np.dtype[Any]:
    lowest, highest = int(labels.array.min()), int(labels.array.max())
    for name in (*wanted, *_LABEL_TYPES):
        if name is not None and np.dtype(name).kind in "iu":
            limits = np.iinfo(name)
            if limits.min <= lowest and highest <= limits.max:
                return np.dtype(name)
    raise AssertionError("int32 holds every label")
