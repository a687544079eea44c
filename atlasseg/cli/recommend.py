"""``atlasseg recommend``: recommend a recipe for a library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("recommend")(recommend)


def recommend(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the library, with images/ and labels/.")],
    minutes: Annotated[float, typer.Option("--minutes", help="Time budget of the search, above 0.")] = 10.0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Recipe to write.")] = Path("recipe.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Folder for intermediate results, to continue with more time."),
    ] = None,
) -> None:
    """Recommend a recipe for a library: try settings leave-one-out within a time budget.

    Candidate settings follow from the voxels, the field of view and the labels of the library. All are tried on a few
    left-out atlases, the best on more. Writes a recipe with the reasons, the expected Dice and a table of what was
    tried. No scan of a person helps to segment another scan of that person: list them in `subjects.tsv`.

    **Examples**

    - `atlasseg recommend my_atlases`
    - `atlasseg recommend my_atlases --minutes 60 -o my_recipe.toml`
    """
    from atlasseg.errors import InputError

    if out.exists() and not force:
        raise InputError(
            f"{out}: expected a new file, got an existing one. Give another --out, or --force to replace it."
        )
    if not out.parent.is_dir():
        raise InputError(f"{out}: expected a file in an existing folder, got none ({out.parent}). Make the folder.")
    from atlasseg.cli._progress import Progress, announce

    announce(f"recommend: read {folder}")
    from atlasseg import io
    from atlasseg.app.recommend import recommend as find_recipe
    from atlasseg.atlases.library import read_library
    from atlasseg.cli._tables import print_table

    with Progress() as progress:
        found = find_recipe(read_library(folder), minutes=minutes, cache=cache, progress=progress.text)
    if not found.tried.empty:
        print_table(found.tried.head(12).round({"dice": 3, "seconds": 1}), title="settings that were tried, best first")
    for remark in found.remarks:
        typer.echo(remark)
    io.write_text(found.text, out)
    typer.echo(f"wrote {out}")
    typer.echo(f"Next: atlasseg run {out} --targets SCAN --out results")
