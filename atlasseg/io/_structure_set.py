"""Named structures of a segmentation file: choose some, number them, and merge them into a label map."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.io._source import log
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Bool, Grid, Int32

Overlap = Literal["refuse", "first"]
"""What to do where structures overlap: raise an error, or keep the structure that comes first."""
Structures = Sequence[str] | LabelTable | None
"""Structures to read: all (None), those with these names, or those of a table, which also gives their values."""

_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Structure:
    """Structure of a file: its row in a label table, its number in the file, and its voxels (I, J, K), on demand."""

    label: Label
    number: int
    voxels: Callable[[], Bool]


@dataclass(frozen=True, eq=False)
class StructureSet:
    """Structures of a file, in its order, on one grid."""

    path: Path
    grid: Grid
    structures: tuple[Structure, ...]


def clean_name(text: object, default: str) -> str:
    """One line of a name that a file may give in several lines or parts, or not at all."""
    parts = text if isinstance(text, Sequence) and not isinstance(text, str) else [text]
    name = " ".join("\\".join(str(part) for part in parts if part is not None).split())
    return default if not name or name.lower() == "n/a" else name


def number_labels(path: Path, rows: Sequence[tuple[Label, int]]) -> list[Label]:
    """Labels of the rows (label, number in the file), with unique values other than 0.

    Each keeps its value where all are unique and not 0. Otherwise they are numbered from 1 in the order of the file,
    with a warning.
    """
    labels = [label for label, _ in rows]
    values = [label.value for label in labels]
    if len(set(values)) == len(values) and 0 not in values:
        return labels
    numbered = [replace(label, value=n) for n, label in enumerate(labels, start=1)]
    log.warning(
        "%s: expected a number of its own for each structure, above 0; they are numbered %s",
        path,
        _some(f"{label.value} {label.name!r}" for label in numbered),
    )
    return numbered


def choose_structures(path: Path, found: Sequence[Label], wanted: Structures) -> list[tuple[int, Label]]:
    """Choose structures.

    Parameters
    ----------
    path : Path
        For messages.
    found : sequence of Label
        All structures of the file.
    wanted : sequence of str, LabelTable or None
        Names (or values), in order of priority; a name matches with its exact letters, else in any case. Rows of a
        table that the file lacks are left out.

    Returns
    -------
    list of (int, Label)
        Indices into `found`, and the labels that they become.

    Raises
    ------
    InputError
        The file lacks a name, or has none of the table, or has a name several times.
    """
    if wanted is None:
        return list(enumerate(found))
    if isinstance(wanted, LabelTable):
        pairs = [(position, label) for label in wanted for position in _matches(label.name, found)]
        indices = [position for position, _ in pairs]
        for label in wanted:
            _unique(path, label.name, _matches(label.name, found), found)
        if not pairs:
            raise InputError(
                f"{path}: expected a structure with a name of the label table ({_some(x.name for x in wanted)}), got "
                f"{_some(x.name for x in found)}. Give the structures their names in this file."
            )
        left = [label.name for position, label in enumerate(found) if position not in indices]
        if left:
            log.info("%s: the structures %s are not in the label table; they are left out", path, _some(left))
        return sorted(pairs)
    chosen = []
    for name in wanted:
        matching = _matches(name, found) or [n for n, label in enumerate(found) if str(label.value) == name]
        if not matching:
            close = difflib.get_close_matches(name.lower(), [x.name.lower() for x in found], n=1)
            meant = next((x.name for x in found if close and x.name.lower() == close[0]), None)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise InputError(
                f"{path}: expected a structure of this file, got {name!r}. It has {_some(x.name for x in found)}.{hint}"
            )
        _unique(path, name, matching, found)
        chosen.append((matching[0], found[matching[0]]))
    return chosen


def merge_structures(path: Path, grid: Grid, structures: Iterable[Structure], overlap: Overlap) -> Int32:
    """Merge structures into the array of a label map.

    Parameters
    ----------
    path : Path
        For messages.
    grid : Grid
    structures : iterable of Structure
    overlap : {"refuse", "first"}

    Returns
    -------
    (I, J, K) int32

    Raises
    ------
    InputError
        Structures overlap, and `overlap` is "refuse". The message names them and the number of common voxels.
    """
    if overlap not in ("refuse", "first"):
        raise InputError(f"overlap: expected 'refuse' or 'first', got {overlap!r}.")
    merged = np.zeros(grid.shape, np.int32)
    done: list[Label] = []
    for structure in structures:
        inside = structure.voxels()
        if not inside.any():
            continue
        taken = merged[inside]
        shared = taken[taken != 0]
        if shared.size and overlap == "refuse":
            other = next(label for label in done if label.value == shared[0])
            count = int((shared == shared[0]).sum())
            raise InputError(
                f"{path}: expected one label per voxel, but the structures {other.name!r} and "
                f"{structure.label.name!r} overlap in {count} voxels. Choose the structures to read (structures=[...], "
                "--structures NAME), let the one that is named first win (overlap='first', --overlap first), or read "
                "them as separate masks (atlasseg.io.read_structures)."
            )
        if shared.size:
            log.info(
                "%s: %d voxels of %r belong to a structure before it", path, int(shared.size), structure.label.name
            )
            inside = inside & (merged == 0)
        merged[inside] = structure.label.value
        done.append(structure.label)
    return merged


def _matches(name: str, found: Sequence[Label]) -> list[int]:
    exact = [n for n, label in enumerate(found) if label.name == name]
    return exact or [n for n, label in enumerate(found) if label.name.casefold() == name.strip().casefold()]


def _unique(path: Path, name: str, matching: Sequence[int], found: Sequence[Label]) -> None:
    if len(matching) > 1:
        numbers = " and ".join(str(found[n].value) for n in matching)
        raise InputError(
            f"{path}: expected one structure with the name {name!r}, got {len(matching)}, with the numbers {numbers}. "
            "Choose one by its number (structures=[...], --structures NUMBER)."
        )


def _some(items: Iterable[object]) -> str:
    every = [str(item) for item in items]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return (", ".join(every[:_SHOWN]) or "none") + more
