"""Formats read with SimpleITK: NRRD in this process after its header was checked, all others in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.io._guard import run_guarded
from atlasseg.io._promise import check_length, check_stream, promised_bytes
from atlasseg.io._source import Source
from atlasseg.io.metaimage import read_metaimage
from atlasseg.io.nrrd import check_nrrd, read_nrrd_header
from atlasseg.itk import LPS, image_to_sitk, last_line, quiet
from atlasseg.volume import Image, LabelMap, Mask, SourceHeader

_MOST_BY_ANY_CODEC = 20_000  # compression ratio of a blank image in JPEG 2000 or HDF5


def read_with_itk(path: Path) -> Source:
    """Read a file in any format of ITK.

    Raises
    ------
    InputError
        The file is damaged, is shorter than its header says, or has an unknown format.
    """
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        source = read_metaimage(path)
        if source is not None:
            return source
    elif name.endswith((".nrrd", ".nhdr")):
        header, start = read_nrrd_header(path)
        if check_nrrd(path, header, start):
            return read_in_place(path)
    arrays = run_guarded("image", [path])
    return Source(arrays["array"], arrays["affine"], SourceHeader(path, arrays["array"].dtype.name))


def read_in_place(path: Path) -> Source:
    """Read a file with ITK in this process, after comparing its header with its length."""
    import SimpleITK as sitk

    with quiet():
        try:
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            item = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
            expected = promised_bytes([*reader.GetSize(), reader.GetNumberOfComponents()], item)
            size = path.stat().st_size
            if path.name.lower().endswith(".gz"):
                check_stream(path, expected)
            elif not path.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
                check_length(path, expected, _MOST_BY_ANY_CODEC * size)
            return _source_from_itk(path, reader.Execute())
        except RuntimeError as error:
            reason = last_line(error)
            if "Unable to determine ImageIO" in reason:
                reason = "expected a volume in a known format (NIfTI, NRRD, MetaImage, DICOM, MGH), got something else."
            raise InputError(f"{path}: cannot be read as a volume: {reason}") from error


def _source_from_itk(path: Path, image: Any) -> Source:
    """Convert an ITK image to array, affine and source header; components become the last axis."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    array = (np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array).T
    dimension = image.GetDimension()
    if dimension < 3:
        raise InputError(f"{path}: expected one 3-D volume, got {dimension}-D data of shape {array.shape}")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return Source(array, LPS @ affine, SourceHeader(path, array.dtype.name))


def write_with_itk(
    path: Path, volume: Image | LabelMap | Mask, dtype: np.dtype[Any], fields: Mapping[str, str] | None = None
) -> None:
    """Write a compressed file in the format of the suffix; labels as `dtype`, `fields` as keys of a NRRD header."""
    import SimpleITK as sitk

    image = image_to_sitk(volume)
    if isinstance(volume, LabelMap):
        image = sitk.Cast(image, getattr(sitk, f"sitk{dtype.name.capitalize().replace('Ui', 'UI')}"))
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1].strip()) from error
