"""``atlasseg doctor``: check a dataset for problems before a long run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import Channels, channel_names


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


FOLDED = 4
"""Findings of one kind that are listed; the others are counted."""


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with images/ and labels/.")],
    quick: Annotated[bool, typer.Option("--quick", help="Do not register the scans with each other.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List every finding; by default similar ones are folded.")
    ] = False,
    channels: Channels = None,
) -> None:
    """Check a dataset for problems: files, geometry, intensities, labels, anatomy, contrast, copies, persons.

    The scans are compared with each other after affine registrations on coarse voxels, a few seconds a scan. Scans
    that seem to be of one person are listed, unless `subjects.tsv` in the folder names them (columns id, subject).

    Exit status: 0 if there are no errors, 1 if there is an error that would make a run fail.

    **Example**

    - `atlasseg doctor sample_data/atlases`
    """
    import pandas as pd

    from atlasseg.cli._progress import Progress, announce
    from atlasseg.cli._tables import print_table
    from atlasseg.doctor import examine

    announce(f"doctor: read {folder}")
    with Progress() as progress:
        result = examine(folder, register=not quick, progress=progress.text, channels=channel_names(channels))
    rows = [
        {
            "severity": finding.severity,
            "file": str(finding.file.relative_to(folder) if finding.file.is_relative_to(folder) else finding.file),
            "what": finding.message,
            "remedy": finding.remedy,
        }
        for finding in result.findings
    ]
    if rows:
        print_table(pd.DataFrame(rows if every else fold(rows)))
    for line in result.checked:
        typer.echo(f"checked {line}")
    counts = {s: sum(f.severity == s for f in result.findings) for s in ("error", "warning", "note")}
    typer.echo(f"{folder}: " + ", ".join(f"{count} {severity}s" for severity, count in counts.items()))
    typer.echo(_what_to_do(folder, counts, has_labels=(folder / "labels").is_dir()))
    if counts["error"]:
        raise typer.Exit(1)


def fold(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without those that say the same of more files than `FOLDED`; the last one left counts the others.

    Two rows say the same if they differ only in numbers, names and what follows a colon.
    """
    kinds: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        kinds.setdefault((row["severity"], _kind(row["what"])), []).append(row)
    out = []
    for alike in kinds.values():
        out += alike[:FOLDED]
        if len(alike) > FOLDED:
            more = f"and {len(alike) - FOLDED} more files with a finding of this kind: give --all to list them"
            out.append({"severity": alike[0]["severity"], "file": "", "what": more, "remedy": ""})
    return out


def _kind(message: str) -> str:
    return re.sub(r"'[^']*'|\S*\d\S*", "#", message.partition(": ")[0])


def _what_to_do(folder: Path, counts: dict[str, int], *, has_labels: bool) -> str:
    if counts["error"]:
        return "Correct the errors first: a run would stop at them. Then call the doctor again."
    next_step = (
        f"atlasseg run --atlases {folder} --targets SCAN" if has_labels else "atlasseg run --targets " + str(folder)
    )
    if counts["warning"]:
        return f"Look at the files with warnings: they may harm the results. Then: {next_step}"
    return f"Nothing stands in the way of a run: {next_step}"
