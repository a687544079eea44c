"""Tables of points: CSV, TSV, and Slicer's lists of markups (``.fcsv``)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.files import checked_path
from atlasseg.io.tables import write_text
from atlasseg.volume import Float64

__all__ = ["PointTable", "read_points", "write_points"]

Coordinates = Literal["ras", "lps"]
"""Which way the first two axes of points run: to the right and anterior, or to the left and posterior; both in mm."""

POINT_SUFFIXES = (".csv", ".tsv", ".fcsv")
"""How the names of tables of points end."""

_COLUMNS: dict[tuple[str, str, str], Coordinates | None] = {
    ("x", "y", "z"): None,
    ("r", "a", "s"): "ras",
    ("l", "p", "s"): "lps",
}
_MAX_BYTES = 1 << 28
_SLICER: dict[str, Coordinates] = {"ras": "ras", "lps": "lps", "0": "ras", "1": "lps"}
_SIGNS = {"ras": np.array([1.0, 1, 1]), "lps": np.array([-1.0, -1, 1])}


@dataclass(frozen=True, eq=False)
class PointTable:
    """Points, with all else that stood in their file.

    Parameters
    ----------
    points_mm : (N, 3) float64
        RAS+ mm, whatever the file holds.
    coordinates : {"ras", "lps"}
        What the file holds.
    head : tuple of str
        Lines before the rows, as they are.
    rows : tuple of tuple of str
        The cells of each point.
    columns : (3,) int
        Which cells hold the coordinates.
    delimiter : str
        Between cells.
    """

    points_mm: Float64
    coordinates: Coordinates
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[int, int, int]
    delimiter: str

    def moved(self, points_mm: Float64) -> PointTable:
        """Replace the points of the table.

        Parameters
        ----------
        points_mm : (N, 3) float64
            New points in RAS+ mm.

        Returns
        -------
        PointTable
        """
        return replace(self, points_mm=points_mm)


def is_point_table(path: str | Path) -> bool:
    """Whether the name of a file is that of a table of points."""
    return Path(path).name.lower().endswith(POINT_SUFFIXES)


def read_points(path: str | Path, *, coordinates: Coordinates | None = None) -> PointTable:
    """Read a table of points.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.tsv`` with a first line of names, of which three are x, y, z (as ANTs writes), or R, A, S, or
        L, P, S; or Slicer's ``.fcsv``. Other columns are kept.
    coordinates : {"ras", "lps"}, optional
        What columns x, y, z hold, by default RAS+ mm. ANTs writes LPS. R, A, S, and ``.fcsv`` say it themselves.

    Returns
    -------
    PointTable

    Raises
    ------
    InputError
        The file is absent, no such table, or contradicts `coordinates`; or a cell is no number. The message names file
        and line.
    """
    path = checked_path(path)
    if not is_point_table(path):
        raise InputError(f"{path}: expected a table of points ({' '.join(POINT_SUFFIXES)}), got another name.")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(f"{path}: expected a table of at most {_MAX_BYTES} bytes, got a file of {size}.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got other bytes at {error.start}.") from error
    except OSError as error:
        raise InputError(f"{path}: the table of points cannot be read: {error.strerror or error}") from error
    delimiter = "\t" if path.name.lower().endswith(".tsv") else ","
    start = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    if path.name.lower().endswith(".fcsv"):
        names, said = _slicer_head(path, lines[:start])
    else:
        names = _names(path, lines[start], delimiter) if start < len(lines) else []
        start, said = start + 1, None
    columns, by_name = _find_columns(path, names)
    said = said or by_name
    if said is not None and coordinates is not None and said != coordinates:
        raise InputError(
            f"{path}: expected points in {coordinates.upper()}, as was said, got a file that says {said.upper()}."
        )
    rows, points = [], []
    for number, line in enumerate(lines[start:], start=start + 1):
        if not line.strip():
            continue
        try:
            cells = _split(line, delimiter)
            point = [float(cells[n]) for n in columns]
        except (IndexError, ValueError, csv.Error):
            point = [math.nan]
        if not all(map(math.isfinite, point)):
            raise InputError(f"{path}, line {number}: expected three finite numbers of mm, got {line!r}.")
        rows.append(tuple(cells))
        points.append(point)
    found: Coordinates = said or coordinates or "ras"
    placed = np.array(points, np.float64).reshape(-1, 3) * _SIGNS[found]
    return PointTable(placed, found, tuple(lines[:start]), tuple(rows), columns, delimiter)


def write_points(table: PointTable, path: str | Path) -> None:
    """Write a table of points, in the layout and coordinates of the file that it was read from, to 1e-6 mm.

    Parameters
    ----------
    table : PointTable
        Points, with the other columns of the table.
    path : path
        Output file.

    Raises
    ------
    InputError
        The file's name is of another layout.
    OutputError
        It cannot be written.
    """
    path = checked_path(path)
    layout = ".fcsv" if any(line.startswith("#") for line in table.head) else ".tsv"
    expected = layout if table.delimiter == "\t" or layout == ".fcsv" else ".csv"
    if not path.name.lower().endswith(expected):
        raise InputError(f"{path}: expected a name that ends in {expected}, as that of the points that are moved.")
    out = StringIO()
    writer = csv.writer(out, delimiter=table.delimiter, lineterminator="\n")
    for cells, point in zip(table.rows, table.points_mm * _SIGNS[table.coordinates], strict=True):
        row = list(cells)
        for column, value in zip(table.columns, point.tolist(), strict=True):
            row[column] = f"{round(value, 6) + 0.0:.6f}"
        writer.writerow(row)
    write_text("".join(f"{line}\n" for line in table.head) + out.getvalue(), path)


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _names(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        return _split(line, delimiter)
    except csv.Error as error:
        raise InputError(f"{path}: expected names of columns in the first line: {error}.") from error


def _slicer_head(path: Path, head: Sequence[str]) -> tuple[list[str], Coordinates]:
    """Names of the columns, and the coordinates, from the comments of Slicer's file."""
    fields = {}
    for line in head:
        key, equals, value = line.lstrip("# ").partition("=")
        if equals:
            fields[key.strip().lower()] = value.strip()
    said = _SLICER.get(fields.get("coordinatesystem", "").lower())
    if said is None or "columns" not in fields:
        raise InputError(
            f"{path}: expected lines '# CoordinateSystem = LPS' (or RAS) and '# columns = ...', as Slicer writes."
        )
    return _names(path, fields["columns"], ","), said


def _find_columns(path: Path, names: Sequence[str]) -> tuple[tuple[int, int, int], Coordinates | None]:
    """Which columns hold coordinates, and what their names say of these."""
    plain = [name.strip().lower() for name in names]
    for wanted, said in _COLUMNS.items():
        if all(plain.count(name) == 1 for name in wanted):
            return (plain.index(wanted[0]), plain.index(wanted[1]), plain.index(wanted[2])), said
    raise InputError(f"{path}: expected columns x, y, z (or R, A, S, or L, P, S) in its first line, got {list(names)}.")
