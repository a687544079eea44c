"""``atlasseg doctor``: check a dataset for problems before a long run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with images/ and labels/.")],
) -> None:
    """Check a dataset for problems: geometry, intensities, labels, files, duplicates.

    Exit status: 0 if there are no errors, 1 if there is an error that would make a run fail.

    **Example**

    - `atlasseg doctor sample_data/atlases`
    """
    import pandas as pd

    from atlasseg.atlases.doctor import examine
    from atlasseg.cli._progress import Progress, announce
    from atlasseg.cli._tables import print_table

    announce(f"doctor: read {folder}")
    with Progress() as progress:
        findings = examine(folder, progress=progress.text)
    rows = [
        {
            "severity": finding.severity,
            "file": str(finding.file.relative_to(folder) if finding.file.is_relative_to(folder) else finding.file),
            "what": finding.message,
            "remedy": finding.remedy,
        }
        for finding in findings
    ]
    if rows:
        print_table(pd.DataFrame(rows))
    counts = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in ("error", "warning", "note"))
    typer.echo(f"{folder}: {counts}")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
