"""Label tables, TSV, JSON and text files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from atlasseg.errors import InputError
from atlasseg.files import atomic_write, checked_content, checked_path
from atlasseg.io.segmentations import is_segmentation, table_of_segments
from atlasseg.io.structures import find_structure_file, table_of_structures
from atlasseg.labels import LabelTable, TableFormat, format_label_table, parse_label_table

_MAX_TABLE = 1 << 24


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        The file does not exist, or is not a JSON object. The message names the file and the line.
    """
    path = checked_path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{path}: cannot be read: {error}") from error
        raise InputError(f"{path}: expected JSON: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_label_table(path: str | Path) -> LabelTable:
    """Read a label table.

    Parameters
    ----------
    path : path
        BIDS TSV, CSV (also that of 3D Slicer), ITK-SNAP or FreeSurfer, recognised by its content; or a 3D Slicer
        segmentation (``.seg.nrrd``), an RTSTRUCT or a DICOM-SEG (or a folder with one), which name their structures.

    Returns
    -------
    LabelTable

    Raises
    ------
    InputError
        The file does not exist, is not text, has an unknown format, or has an invalid line. The message names file and
        line.
    """
    path = checked_path(path)
    if is_segmentation(path):
        return table_of_segments(path)
    named = find_structure_file(path) if path.suffix.lower() in ("", ".dcm", ".ima") else None
    if named is not None:
        return table_of_structures(named)
    try:
        size = path.stat().st_size
        if size > _MAX_TABLE:
            raise InputError(f"{path}: expected a label table of at most {_MAX_TABLE} bytes, got a file of {size}.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected a label table in UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: the label table cannot be read: {error.strerror or error}") from error
    return parse_label_table(text, source=str(path))


def write_json(data: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON object atomically; NaN raises a ValueError, since JSON has none."""
    write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_label_table(table: LabelTable, path: str | Path, *, format: TableFormat | None = None) -> None:
    """Write a label table.

    Parameters
    ----------
    table : LabelTable
        The table to write.
    path : path
        The file to write.
    format : str, optional
        As for :func:`.labels.format_label_table`; by default CSV if the path ends in ``.csv``, else BIDS TSV.
    """
    checked_content(table, LabelTable, path)
    chosen: TableFormat = format or ("csv" if checked_path(path).suffix.lower() == ".csv" else "bids")
    write_text(format_label_table(table, chosen), path)


def write_tsv(rows: Iterable[Mapping[str, object]], path: str | Path, *, columns: Sequence[str] | None = None) -> None:
    """Write a BIDS table atomically: tab-separated, with a header, ``n/a`` for None and NaN.

    `columns` are by default those of the first row; rows may lack some of them.
    """
    rows = list(rows)
    header = list(columns) if columns is not None else list(rows[0]) if rows else []
    out = StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [row.get(column) for column in header]
        writer.writerow(["n/a" if cell is None or cell != cell else cell for cell in cells])
    write_text(out.getvalue(), path)


def write_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text atomically; raises OutputError if it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
