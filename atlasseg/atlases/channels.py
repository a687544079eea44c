"""Channels of a scan: several files, or several volumes of a 4-D file, read as one image.

The files of one scan are found by the names of the channels, which the user lists: with the channels ``T1`` and
``FLAIR`` the scan ``ID`` consists of ``ID_T1.nii.gz`` and ``ID_FLAIR.nii.gz``, in this order. Without a list every file
is a scan of its own.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.resampling import resample, stack_channels
from atlasseg.volume import Image, Mask

log = logging.getLogger(__name__)

Files = tuple[Path, ...]
"""Files of the channels of one scan, in the order of the channels."""


def read_channels(paths: Sequence[Path], *, spacing_from: io.SpacingSource = "sform") -> tuple[Image, Mask | None]:
    """Read the files of one scan as the channels of one image.

    Files on another grid than the first are resampled onto its grid, with a warning.

    Parameters
    ----------
    paths : sequence of path
        Files of the scan. ``FILE#1,3`` are the first and the third volume of a 4-D file; without such a choice all
        volumes of a 4-D file are channels.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.

    Returns
    -------
    image : Image
        The scan, with a fourth axis if there are several channels.
    mask : Mask or None
        Voxels with finite intensities in all channels and inside the field of view of all of them; None if all are.

    Raises
    ------
    InputError
        A file cannot be read, or is a time series of which no volumes are chosen.
    GeometryError
        A file does not overlap the first in space.
    """
    read = [io.read_scan(path, channels="few", spacing_from=spacing_from) for path in paths]
    if len(read) == 1:
        return read[0]
    image, reached = stack_channels([scan for scan, _ in read])
    known = reached.array
    for _, finite in read:
        if finite is not None:
            known = known & resample(finite, image.grid).array
    return image, None if known.all() else Mask(known, image.affine, image.name, image.source_header)


def check_names(channels: Sequence[str]) -> tuple[str, ...]:
    """Check the names of channels.

    Raises
    ------
    InputError
        A name is empty or occurs twice.
    """
    named = tuple(channels)
    if any(not name.strip() or "/" in name for name in named) or len(set(named)) < len(named):
        raise InputError(f"channels: expected different names such as T1, FLAIR, got {', '.join(named) or 'none'}.")
    return named


def group_channels(files: Mapping[str, Path], channels: Sequence[str], *, folder: Path) -> dict[str, Files]:
    """Group the files of a folder to scans by the names of their channels.

    Parameters
    ----------
    files : mapping of str to Path
        Files by their names without suffixes.
    channels : sequence of str
        Names of the channels; ``ID_CHANNEL`` is the name of each file.
    folder : path
        Folder of the files, for messages.

    Returns
    -------
    dict of str to tuple of Path
        Files of each scan in the order of `channels`, by the id of the scan.

    Raises
    ------
    InputError
        A channel of a scan is missing, or no file has a channel of the list in its name.
    """
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    other: list[str] = []
    for name, path in files.items():
        id_, channel = _split_name(name, channels)
        if channel:
            found[id_][channel] = path
        else:
            other.append(name)
    if not found:
        raise InputError(
            f"{folder}: expected files ID_{channels[0]}, as the channels are {', '.join(channels)}, got "
            f"{_some(sorted(files)) or 'none'}. Rename the files, or correct the channels."
        )
    faulty = [id_ for id_, each in found.items() if len(each) < len(channels)]
    if faulty:
        id_ = sorted(faulty)[0]
        missing = next(channel for channel in channels if channel not in found[id_])
        near = next(iter(found[id_].values()))
        suffix = near.name.removeprefix(io.volume_id(near))
        raise InputError(
            f"{near.parent / f'{id_}_{missing}{suffix}'}: expected the channel {missing} of the scan {id_}, got no "
            f"such file ({len(faulty)} of {len(found)} scans lack a channel). Add the file, or remove the scan."
        )
    if other:
        log.warning(
            "%s: %d files have none of the channels %s in their names and are not used: %s",
            folder,
            len(other),
            ", ".join(channels),
            _some(sorted(other)),
        )
    return {id_: tuple(found[id_][channel] for channel in channels) for id_ in sorted(found)}


def find_siblings(path: Path, channels: Sequence[str]) -> tuple[str, Files]:
    """Find the files of the scan of which `path` is one channel, beside it.

    Returns
    -------
    id : str
        Id of the scan.
    files : tuple of Path
        Its files, in the order of `channels`.

    Raises
    ------
    InputError
        The name of the file has no channel of the list, or a channel is missing.
    """
    name = io.volume_id(path)
    id_, channel = _split_name(name, channels)
    if not channel:
        raise InputError(
            f"{path}: expected a name such as {name}_{channels[0]}, as the channels are {', '.join(channels)}. Rename "
            "the file, or correct the channels."
        )
    beside = {io.volume_id(each): each for each in sorted(path.parent.iterdir()) if io.is_volume(each)}
    mine = {name: each for name, each in beside.items() if _split_name(name, channels)[0] == id_}
    return id_, group_channels(mine, channels, folder=path.parent)[id_]


def suggest_channels(ids: Iterable[str]) -> tuple[str, ...]:
    """Guess the channels from names: the endings after the last ``_``, where every scan has the same ones.

    Examples
    --------
    >>> suggest_channels(["a_T1", "a_FLAIR", "b_T1", "b_FLAIR"])
    ('FLAIR', 'T1')
    >>> suggest_channels(["heart_1", "heart_2"])
    ()
    """
    endings: dict[str, set[str]] = defaultdict(set)
    for name in ids:
        stem, _, ending = name.rpartition("_")
        if not stem or "-" in ending:
            return ()
        endings[stem].add(ending)
    counts = Counter(frozenset(each) for each in endings.values())
    if len(endings) < 2 or len(counts) != 1:
        return ()
    (common,) = counts
    return tuple(sorted(common)) if 2 <= len(common) <= io.MOST_CHANNELS else ()


def format_hint(channels: Sequence[str]) -> str:
    """Sentence about files that look like channels."""
    listed = ", ".join(f'"{name}"' for name in channels)
    return (
        f"Every name ends in one of {', '.join(channels)}: if these are channels of one scan, write channels = "
        f"[{listed}] in [data] of the recipe (--channels {','.join(channels)}), the main one first"
    )


def choose_volumes(path: Path, volumes: Sequence[int]) -> Path:
    """Path that names volumes of a 4-D file, numbered from 1: ``FILE#1,3``.

    Raises
    ------
    InputError
        The path names volumes or a series already, or a number is below 1 or occurs twice.
    """
    if not volumes:
        return path
    if not np.all(np.asarray(volumes) >= 1) or len(set(volumes)) < len(volumes):
        raise InputError(f"volumes: expected different numbers from 1, got {', '.join(map(str, volumes))}.")
    folder, named = io.split_series(path)
    if named is not None or folder.is_dir():
        raise InputError(f"{path}: expected a 4-D file to choose volumes {', '.join(map(str, volumes))} from.")
    return path.with_name(f"{path.name}#{','.join(map(str, volumes))}")


def _split_name(name: str, channels: Sequence[str]) -> tuple[str, str]:
    """Id and channel of ``ID_CHANNEL``; of several channels that fit, the longest."""
    fitting = [channel for channel in channels if name.endswith(f"_{channel}") and len(name) > len(channel) + 1]
    channel = max(fitting, key=len, default="")
    return (name.removesuffix(f"_{channel}"), channel) if channel else (name, "")


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
