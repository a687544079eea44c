"""Opening of volume files: choice of the reader, and error messages that name the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.io._nifti_header import SpacingSource
from atlasseg.io._source import Raw, Source
from atlasseg.io._suffixes import MGH_SUFFIXES, NIFTI_SUFFIXES, PAIR_SUFFIXES, volume_suffix
from atlasseg.io.dicom import read_dicom
from atlasseg.io.dicom_series import split_series
from atlasseg.io.itk_formats import read_with_itk
from atlasseg.io.mgh import open_mgh
from atlasseg.io.nifti import open_nifti, read_nifti_header
from atlasseg.io.pairs import open_pair


def read_3d(
    path: Path, *, channels: bool = False, spacing_from: SpacingSource = "sform", series: str | int | None = None
) -> Raw:
    """Read all values of a 3-D volume, or with `channels` also of a 4-D volume.

    Raises
    ------
    InputError
        The file cannot be read, or has another number of axes. The message names the file.
    """
    with open_volume(path, spacing_from=spacing_from, series=series) as source:
        shape = source.shape
        channels = channels or names_volumes(path)
        more = [n for n in shape[3:] if n != 1]
        if len(shape) < 3 or len(more) > channels:
            expected = "a 3-D volume, or a 4-D volume of channels" if channels else "one 3-D volume"
            advice = f". Choose volumes: '{path}#1' is the first" if len(shape) == 4 else ""
            raise InputError(f"{path}: expected {expected}, got {len(shape)}-D data of shape {shape}{advice}")
        if 0 in shape:
            raise InputError(f"{path}: expected at least one voxel, got shape {shape}")
        return Raw(source.array().reshape(*shape[:3], *more), source.affine, source.source_header)


@contextmanager
def open_volume(
    path: Path, *, spacing_from: SpacingSource = "sform", series: str | int | None = None
) -> Iterator[Source]:
    """Open a volume file; any error of its parser becomes an InputError that names the file."""
    try:
        where, named = split_series(path)
        if not where.exists():
            raise InputError(f"{path}: no such file or folder")
        if where.is_dir() or _is_dicom(where):
            yield read_dicom(where, series if named is None else named)
        else:
            with _open_file(where, spacing_from) as source:
                yield source if named is None else choose_volumes(source, named)
    except MissingLibraryError:
        raise
    except InputError as error:
        raise error if str(split_series(path)[0]) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, EOFError | MemoryError) or "Expected" in reason:
            reason = f"the file is truncated or damaged ({reason})"
        raise InputError(f"{path}: cannot be read as a volume: {reason}") from error


@contextmanager
def _open_file(path: Path, spacing_from: SpacingSource) -> Iterator[Source]:
    if volume_suffix(path.name) in NIFTI_SUFFIXES:
        with open_nifti(path, spacing_from) as source:
            yield source
    elif volume_suffix(path.name) in MGH_SUFFIXES:
        with open_mgh(path) as source:
            yield source
    elif volume_suffix(path.name) in PAIR_SUFFIXES:
        yield open_pair(path, spacing_from)
    else:
        yield read_with_itk(path)


def names_volumes(path: Path) -> bool:
    """Whether a path names volumes of a 4-D file, as ``FILE#1,3``."""
    where, named = split_series(path)
    return named is not None and not where.is_dir() and not _is_dicom(where)


def choose_volumes(source: Source, named: str) -> Source:
    """Volumes of an opened 4-D file, by their numbers from 1: ``1,3``.

    Raises
    ------
    InputError
        A number is not a whole number, occurs twice, or is not that of a volume.
    """
    shape = source.shape
    count = shape[3] if len(shape) == 4 else 1
    try:
        numbers = [int(part) for part in named.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or not all(1 <= n <= count for n in numbers) or len(shape) > 4:
        raise InputError(f"expected different numbers of volumes from 1 to {count} after #, got {named}.")
    read = {n: source.volume(n - 1) for n in sorted(numbers)}
    array = np.stack([read[n] for n in numbers], axis=-1)
    return Source(array, source.affine, source.source_header)


def read_series_step(path: Path) -> tuple[float | None, int]:
    """Time step in s between the volumes of a file, if its header states one, and the number of volumes.

    A file of which volumes are chosen, ``FILE#1,3``, and a DICOM folder have no step and one volume.

    Raises
    ------
    InputError
        The file cannot be read. The message names it.
    """
    where, named = split_series(path)
    if named is not None or not where.is_file() or volume_suffix(where.name) == "" or _is_dicom(where):
        return None, 1
    if volume_suffix(where.name) not in NIFTI_SUFFIXES:
        with open_volume(path) as source:
            return None, math.prod(source.shape[3:])
    header = read_nifti_header(where)  # without the warnings, which come when the scan is read
    count = math.prod(max(1, int(n)) for n in header["dim"][4 : int(header["dim"][0]) + 1])
    if count == 1:
        return None, count
    unit = {8: 1.0, 16: 1e-3, 24: 1e-6}.get(int(header["xyzt_units"]) & 0x38)
    step = float(header["pixdim"][4])
    return (unit * step if unit is not None and step > 0 else None), count


def _is_dicom(path: Path) -> bool:
    if volume_suffix(path.name) not in ("", ".dcm", ".ima"):
        return False
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM" or volume_suffix(path.name) != ""
