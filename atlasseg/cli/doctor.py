"""``atlasseg doctor``: what is wrong with a dataset, before hours are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with images/ and labels/.")],
) -> None:
    """Look a dataset over: geometry, intensities, labels, files, duplicates.

    Exit status 0 where nothing is wrong, 1 where something would fail a run.

    **Example**

    - `atlasseg doctor sample_data/atlases`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from atlasseg.atlases.doctor import examine

    colors = {"error": "red", "warning": "yellow", "note": "cyan"}
    findings = examine(folder)
    table = Table(header_style="bold", show_lines=False)
    for column in ("severity", "file", "what", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        color = colors[finding.severity]
        file = finding.file.relative_to(folder) if finding.file.is_relative_to(folder) else finding.file
        table.add_row(f"[{color}]{finding.severity}[/]", *map(escape, (str(file), finding.message, finding.remedy)))
    console = Console()
    if findings:
        console.print(table)
    counts = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in colors)
    console.print(f"{folder}: {counts}")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
