"""Segmentation and reference on one grid with one numbering, where files name their structures instead."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasseg import io
from atlasseg.api.coercion import as_label_map, is_path
from atlasseg.labels import LabelTable
from atlasseg.volume import LabelMap

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelMapPair:
    """Segmentation and reference to compare.

    Parameters
    ----------
    segmentation, reference : LabelMap
    table : LabelTable or None
        Names of the labels.
    not_annotated : frozenset of int
        Labels of the segmentation that the reference file has no structure for.
    """

    segmentation: LabelMap
    reference: LabelMap
    table: LabelTable | None
    not_annotated: frozenset[int] = frozenset()


def read_pair(
    segmentation: Any,
    reference: Any,
    *,
    table: LabelTable | None = None,
    structures: Sequence[str] | None = None,
    overlap: io.Overlap = "refuse",
    spacing_from: io.SpacingSource = "sform",
) -> LabelMapPair:
    """Read a segmentation and its reference.

    The structures of an RTSTRUCT or DICOM-SEG are read on the grid of the other file and get the values
    of the structures with the same name in `table`, or else in the label table beside the other file (``SEG.tsv``), or
    else their numbers in the file.

    Parameters
    ----------
    segmentation, reference : label map
        A path, or any type with labels.
    table : LabelTable, optional
        Names of the labels.
    structures : sequence of str, optional
        Structures to read, in order of priority.
    overlap : {"refuse", "first"}
        As for :func:`atlasseg.io.read_label_map`.
    spacing_from : {"sform", "pixdim"}
        As for :func:`atlasseg.io.read_image`.

    Raises
    ------
    InputError
        A file cannot be read, or structures overlap.
    GeometryError
        An RTSTRUCT or DICOM-SEG belongs to another scan.
    """
    named = [_goes_by_names(each, structures) for each in (segmentation, reference)]
    if not any(named):
        found = _read_plain(segmentation, "segmentation", spacing_from)
        return LabelMapPair(found, _read_plain(reference, "reference", spacing_from), table)
    if table is None:
        table = _table_beside(reference if named[0] and not named[1] else segmentation)
    if table is None:
        table = io.read_label_table(reference if named[1] else segmentation)
    if all(named):
        found = _read_named(segmentation, None, table, structures, overlap)
        known = _read_named(reference, found, table, structures, overlap)
    elif named[1]:
        found = _read_plain(segmentation, "segmentation", spacing_from)
        known = _read_named(reference, found, table, structures, overlap)
    else:
        known = _read_plain(reference, "reference", spacing_from)
        found = _read_named(segmentation, known, table, structures, overlap)
    missing: frozenset[int] = frozenset()
    if named[1]:
        missing = frozenset(found.values.tolist()) - {0} - _values_in(reference, table, structures)
        if missing:
            names = ", ".join(repr(table.name(value)) for value in sorted(missing))
            log.warning("%s: has no structures for %s, which are not evaluated", reference, names)
    return LabelMapPair(found, known, table, missing)


def _goes_by_names(value: Any, structures: Sequence[str] | None) -> bool:
    """Whether the labels of a value are known by their names. The values of a ``.seg.nrrd`` are kept by Slicer."""
    return is_path(value) and io.has_structures(value) and (bool(structures) or not io.is_segmentation(value))


def _read_plain(value: Any, what: str, spacing_from: io.SpacingSource) -> LabelMap:
    if is_path(value):
        return io.read_label_map(value, spacing_from=spacing_from)
    return as_label_map(value, what=what)


def _read_named(
    path: Any, reference: LabelMap | None, table: LabelTable, structures: Sequence[str] | None, overlap: io.Overlap
) -> LabelMap:
    rows = _rows(table, structures)
    return io.read_label_map(path, reference=reference, structures=rows, overlap=overlap)


def _rows(table: LabelTable, structures: Sequence[str] | None) -> LabelTable:
    """Rows of the table for some structures, by name or number, in their order; all rows without structures."""
    if not structures:
        return table
    values = [table.value(name) if not name.isdigit() else int(name) for name in structures]
    return LabelTable(tuple(table[value] for value in values))


def _values_in(path: Any, table: LabelTable, structures: Sequence[str] | None) -> frozenset[int]:
    """Values of the rows whose structure is in a file."""
    names = {label.name.casefold() for label in io.read_label_table(path)}
    return frozenset(label.value for label in _rows(table, structures) if label.name.casefold() in names)


def _table_beside(value: Any) -> LabelTable | None:
    """Label table of the same name beside a label map."""
    if not is_path(value):
        return None
    path = Path(value)
    beside = path.with_name(f"{io.volume_id(path)}.tsv")
    return io.read_label_table(beside) if beside.is_file() else None
