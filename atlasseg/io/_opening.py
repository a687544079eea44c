"""Opening of volume files: choice of the reader, and error messages that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

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

MOST_CHANNELS = 8
"""Number of volumes above which a 4-D file is taken for a series, of which volumes must be chosen."""

Channels = bool | Literal["few"]
"""Whether a file may have several volumes; ``"few"``: those of one scan, not a series in time or of directions."""


def read_3d(
    path: Path, *, channels: Channels = False, spacing_from: SpacingSource = "sform", series: str | int | None = None
) -> Raw:
    """Read all values of a 3-D volume, or with `channels` also of a 4-D volume.

    Raises
    ------
    InputError
        The file cannot be read, or has another number of axes; with ``channels="few"`` also if its header states a time
        step, or it has more than `MOST_CHANNELS` volumes that were not chosen. The message names the file.
    """
    with open_volume(path, spacing_from=spacing_from, series=series) as source:
        shape = source.shape
        chosen = names_volumes(path)
        more = [n for n in shape[3:] if n != 1]
        if channels == "few" and more and not chosen:
            _check_no_series(path, int(np.prod(more)), source.step_s)
        channels = bool(channels) or chosen
        if len(shape) < 3 or len(more) > channels:
            expected = "a 3-D volume, or a 4-D volume of channels" if channels else "one 3-D volume"
            advice = f". Choose volumes: '{path}#1' is the first" if len(shape) == 4 else ""
            raise InputError(f"{path}: expected {expected}, got {len(shape)}-D data of shape {shape}{advice}")
        if 0 in shape:
            raise InputError(f"{path}: expected at least one voxel, got shape {shape}")
        return Raw(source.array().reshape(*shape[:3], *more), source.affine, source.source_header)


def _check_no_series(path: Path, count: int, step_s: float | None) -> None:
    """Raise an error for volumes that seem to be a series (in time, or of directions)."""
    if step_s is None and count <= MOST_CHANNELS:
        return
    reason = f"a time step of {step_s:g} s" if step_s is not None else f"more than {MOST_CHANNELS}"
    raise InputError(
        f"{path}: expected a scan, or its channels, got {count} volumes with {reason}, as of a time series or of "
        f"diffusion. Choose volumes: '{path}#1' is the first, '{path}#1,3' the first and the third as channels; for "
        "all scans of a run write volumes = [1, 3] in [data] of the recipe (--set 'data.volumes=[1, 3]')."
    )


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


def _is_dicom(path: Path) -> bool:
    if volume_suffix(path.name) not in ("", ".dcm", ".ima"):
        return False
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM" or volume_suffix(path.name) != ""
