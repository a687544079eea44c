"""``atlasseg recipes``: list the recipes that come with atlasseg."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("recipes")(recipes)


def recipes() -> None:
    """List the recipes that come with atlasseg, one line each.

    Use a recipe by its name. To change one, write it to a file with `atlasseg init NAME`.

    **Examples**

    - `atlasseg recipes`
    - `atlasseg run quickstart`
    - `atlasseg init hippocampus`
    """
    from atlasseg.resources import describe_recipe, shipped_recipes

    found = shipped_recipes()
    width = max(map(len, found))
    for name, path in found.items():
        typer.echo(f"{name:{width}}  {describe_recipe(path)}")
