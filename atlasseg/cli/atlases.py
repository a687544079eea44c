"""``atlasseg atlases``: the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at an atlas library, or prepare it once for many targets.")


@app.command("list")
def list_atlases(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the library.")]) -> None:
    """List the atlases of a library with their grids and labels."""
    import pandas as pd
    from rich.console import Console

    from atlasseg.atlases.library import read_library
    from atlasseg.cli._tables import as_table

    library = read_library(folder)
    rows = []
    for id_ in library.ids:
        atlas = library.read(id_)
        rows.append(
            {
                "atlas": id_,
                "shape": " x ".join(map(str, atlas.image.shape)),
                "spacing_mm": " x ".join(f"{s:.3g}" for s in atlas.image.spacing_mm),
                "labels": sum(int(v) != 0 for v in atlas.label_values),
                "not annotated": ", ".join(map(str, sorted(atlas.not_annotated))),
            }
        )
    Console().print(as_table(pd.DataFrame(rows), title=f"{folder}: {library.kind} library"))
