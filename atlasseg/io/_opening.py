"""Opening of volume files: choice of the reader, and error messages that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atlasseg.errors import InputError, MissingLibraryError
from atlasseg.io._nifti_header import SpacingSource
from atlasseg.io._source import Raw, Source
from atlasseg.io._suffixes import MGH_SUFFIXES, NIFTI_SUFFIXES, PAIR_SUFFIXES, volume_suffix
from atlasseg.io.dicom import read_dicom
from atlasseg.io.dicom_series import split_series
from atlasseg.io.itk_formats import read_with_itk
from atlasseg.io.mgh import open_mgh
from atlasseg.io.nifti import open_nifti
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
        more = [n for n in shape[3:] if n != 1]
        if len(shape) < 3 or len(more) > channels:
            expected = "a 3-D volume, or a 4-D volume of channels" if channels else "one 3-D volume"
            raise InputError(f"{path}: expected {expected}, got {len(shape)}-D data of shape {shape}")
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
        elif volume_suffix(path.name) in NIFTI_SUFFIXES:
            with open_nifti(path, spacing_from) as source:
                yield source
        elif volume_suffix(path.name) in MGH_SUFFIXES:
            with open_mgh(path) as source:
                yield source
        elif volume_suffix(path.name) in PAIR_SUFFIXES:
            yield open_pair(path, spacing_from)
        else:
            yield read_with_itk(path)
    except MissingLibraryError:
        raise
    except InputError as error:
        raise error if str(split_series(path)[0]) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, EOFError | MemoryError) or "Expected" in reason:
            reason = f"the file is truncated or damaged ({reason})"
        raise InputError(f"{path}: cannot be read as a volume: {reason}") from error


def _is_dicom(path: Path) -> bool:
    if volume_suffix(path.name) not in ("", ".dcm", ".ima"):
        return False
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM" or volume_suffix(path.name) != ""
