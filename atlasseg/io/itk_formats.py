"""NRRD, MetaImage, GIPL and single DICOM files, through SimpleITK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.io._source import Source
from atlasseg.itk import LPS, image_to_sitk
from atlasseg.volume import Image, LabelMap, Mask, SourceHeader


def read_with_itk(path: Path) -> Source:
    """Read a file of any format that ITK knows."""
    import SimpleITK as sitk

    return source_from_itk(path, quote_itk_errors(path, lambda: sitk.ReadImage(str(path))))


def quote_itk_errors(path: Path, read: Callable[[], Any]) -> Any:
    """What ITK reads; of its errors only the last line, which holds the reason."""
    try:
        return read()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{path}: cannot be read as a volume: {lines[-1] if lines else error}") from error


def source_from_itk(path: Path, image: Any) -> Source:
    """Turn an ITK image into array, affine and source header; components become the last axis."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    array = (np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array).T
    dimension = image.GetDimension()
    if dimension < 3:
        raise InputError(f"{path}: one 3-D volume is wanted, got {dimension}-D data of shape {array.shape}")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return Source(array, LPS @ affine, SourceHeader(path, array.dtype.name))


def write_with_itk(path: Path, volume: Image | LabelMap | Mask, dtype: np.dtype[Any]) -> None:
    """Write a compressed file of the format that the suffix names; labels as `dtype`."""
    import SimpleITK as sitk

    image = image_to_sitk(volume)
    if isinstance(volume, LabelMap):
        image = sitk.Cast(image, getattr(sitk, f"sitk{dtype.name.capitalize().replace('Ui', 'UI')}"))
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1].strip()) from error
