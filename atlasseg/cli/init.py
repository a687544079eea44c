"""``atlasseg init``: write a recipe with all keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import RECIPE_HELP


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("init")(init)


def init(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help=RECIPE_HELP),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")] = Path("recipe.toml"),
    brief: Annotated[
        bool, typer.Option("--brief", help="Write only the most common tables and the methods in use.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a recipe that lists every key with its meaning and its default.

    Without RECIPE, it is the recipe that `atlasseg run` uses when no recipe is given. Keys that the recipe does not set
    are written as comments: remove the `# ` before a key to set it.

    **Examples**

    - `atlasseg init`
    - `atlasseg init hippocampus --out my_recipe.toml`
    - `atlasseg run recipe.toml --atlases my_atlases --targets scan.nii.gz --out results`
    """
    import tomllib

    from atlasseg import io
    from atlasseg.errors import InputError
    from atlasseg.recipe import read_recipe
    from atlasseg.recipe.defaults import default_tables
    from atlasseg.recipe.template import format_template
    from atlasseg.version import __version__

    if out.exists() and not force:
        raise InputError(
            f"{out}: expected a new file, got an existing one. Give another --out, or --force to replace it."
        )
    if recipe is None:
        tables, origin = default_tables("multi"), "the default recipe for several atlases"
    else:
        tables, origin = tomllib.loads(read_recipe(Path(recipe)).text), f"the recipe {recipe}"
        tables["data"] = {key: value for key, value in tables.get("data", {}).items() if value}
    title = f"Recipe of atlasseg {__version__}, made from {origin} by 'atlasseg init'."
    io.write_text(format_template(tables, title=title, brief=brief), out)
    typer.echo(f"wrote {out}")
