"""``atlasseg fetch``: download public datasets as atlas libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("fetch")(fetch)


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="Name of the dataset. Without it, the datasets are listed.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. [default: NAME]")] = None,
) -> None:
    """Download a public dataset as a library, with its licence.

    The download is verified by the published checksum. If it was interrupted, the same command continues it.

    **Examples**

    - `atlasseg fetch`
    - `atlasseg fetch hippocampus --out data/hippocampus`
    """
    from rich.console import Console

    from atlasseg.atlases import fetching

    if name is None:
        import pandas as pd

        from atlasseg.cli._tables import print_table

        rows = [
            {"name": each.name, "what": each.about, "MB": each.megabytes, "licence": each.licence}
            for each in fetching.DATASETS.values()
        ]
        print_table(pd.DataFrame(rows))
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    dataset = fetching.known(name)
    folder = out or Path(name)
    typer.echo(f"{dataset.about}\nlicence: {dataset.licence}, {dataset.licence_url}\nplease cite: {dataset.cite}")
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(name, total=None)
        fetching.fetch(dataset, folder, told=lambda here, whole: bars.update(bar, completed=here, total=whole or None))
    typer.echo(f"library: {folder / 'atlases'}; licence: {folder / 'LICENSE.txt'}")
