"""A folder that is a DICOM series, through SimpleITK."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._source import Source, log
from atlasseg.io.itk_formats import quote_itk_errors, source_from_itk
from atlasseg.itk import LPS
from atlasseg.volume import Float64

_EVEN_SLICES_TOLERANCE = 0.02  # of the distance between slices; scanners write positions with 2 to 6 decimals


def read_series(folder: Path) -> Source:
    """Read the one series of a folder."""
    import SimpleITK as sitk

    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(found) != 1:
        many = f"{len(found)} series: {', '.join(found)}" if found else "none"
        raise InputError(f"{folder}: a folder with one DICOM series is wanted, found {many}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = quote_itk_errors(folder, reader.Execute)
    source = source_from_itk(folder, image)
    positions = [_position(reader, index) for index in range(image.GetSize()[2])]
    known = [position for position in positions if position is not None]
    if len(known) < max(len(positions), 2):
        return source
    step = _even_step(folder, np.array(known))
    affine = source.affine.copy()
    affine[:3, 2] = LPS[:3, :3] @ step  # ITK takes the slices' normal, which a tilted gantry does not follow
    if np.linalg.norm(affine[:3, 2] - source.affine[:3, 2]) > _EVEN_SLICES_TOLERANCE * np.linalg.norm(step):
        log.warning(
            "%s: the slices are not stacked along their normal (a tilted gantry): the volume is sheared", folder
        )
    return replace(source, affine=affine)


def _even_step(folder: Path, positions: Float64) -> Float64:
    """(3,) mm from a slice to the next, of (N, 3) positions that must be evenly spaced."""
    steps = np.diff(positions, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    if lengths.min() == 0:
        raise InputError(f"{folder}: several slices of the series lie at one place: one 3-D volume is wanted")
    step: Float64 = (positions[-1] - positions[0]) / len(steps)
    if np.linalg.norm(steps - step, axis=1).max() > _EVEN_SLICES_TOLERANCE * np.linalg.norm(step):
        raise GeometryError(
            f"{folder}: the slices of the series are unevenly spaced ({lengths.min():.4g} to {lengths.max():.4g} mm): "
            "one may be missing"
        )
    return step


def _position(reader: Any, index: int) -> list[float] | None:
    key = "0020|0032"  # ImagePositionPatient
    if not reader.HasMetaDataKey(index, key):
        return None
    return [float(part) for part in reader.GetMetaData(index, key).split("\\")]
