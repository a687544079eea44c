"""Table of a folder that says which scans are of one person."""

from __future__ import annotations

import csv
from pathlib import Path

from atlasseg.errors import InputError

SUBJECTS = "subjects.tsv"
"""Table of a folder with the columns `id` and `subject`: which scans are of one person."""


def find_subjects(folder: Path) -> Path | None:
    """Find the table of subjects of a library, in its folder or the folder above."""
    return next((path for path in (folder / SUBJECTS, folder.parent / SUBJECTS) if path.is_file()), None)


def read_subjects(path: Path) -> dict[str, str]:
    """Read the person of each scan from a table of subjects.

    Raises
    ------
    InputError
        The file is not text, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            columns, rows = table.fieldnames or [], list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a table of tab-separated text, got a file that cannot be read: {error}") from error
    if not {"id", "subject"} <= set(columns):
        raise InputError(f"expected the columns id and subject, got {', '.join(columns) or 'none'}")
    return {row["id"]: row["subject"] for row in rows if row["id"] and row["subject"]}
