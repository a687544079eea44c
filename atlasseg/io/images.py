"""Scans, label maps and masks: read from and write to any volume format."""

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
    channels: bool = False,
    spacing_from: SpacingSource = "sform",
    series: str | int | None = None,
) -> tuple[Image, Mask | None]:
    """Read a scan like :func:`read_image`, and the mask of its finite intensities, or None if all are finite.

    With `channels`, a 4-D file is read as a scan with several channels.
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


def read_label_map(path: str | Path, *, spacing_from: SpacingSource = "sform") -> LabelMap:
    """Read a label map. Labels are read exactly from any data type.

    The layers of a 3D Slicer segmentation (``.seg.nrrd``) become one label map; :func:`read_label_table` reads the
    names of its segments. Values within 0.001 of a whole number, a rounding error of ``scl_slope``, are rounded with a
    warning.

    Parameters
    ----------
    path : path
        Volume file.
    spacing_from : {"sform", "pixdim"}
        As for :func:`read_image`.

    Raises
    ------
    InputError
        As for :func:`read_image`; also if a value is not a whole number of 32 bits, or segments overlap. The message
        names the file.
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


def read_mask(path: str | Path, *, spacing_from: SpacingSource = "sform") -> Mask:
    """Read a mask; voxels with values other than 0 are inside.

    Parameters
    ----------
    path : path
        Volume file.
    spacing_from : {"sform", "pixdim"}
        As for :func:`read_image`.

    Raises
    ------
    InputError
        As for :func:`read_image`; also if a value is not finite, or no voxel is inside.
    """
    path = checked_path(path)
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


def write_label_map(labels: LabelMap, path: str | Path, *, like: Like = None) -> None:
    """Write a label map as integers.

    The data type is that of the file of `labels`, or else of `like`, or else the smallest one that fits.

    Parameters
    ----------
    labels : LabelMap
        The labels to write.
    path : path
        As for :func:`write_image`.
    like : volume or SourceHeader, optional
        As for :func:`write_image`.

    Raises
    ------
    OutputError, GeometryError, InputError
        As for :func:`write_image`.
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
