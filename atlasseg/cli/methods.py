"""``atlasseg methods``: list the methods of each stage."""

from __future__ import annotations

from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("methods")(methods)


def methods(
    stage: Annotated[
        str | None,
        typer.Argument(
            help="preprocessing, localisation, registration, fusion, refinement, regions or tissue. "
            "Without it, all stages."
        ),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="One method of the stage, with its full description.")] = None,
) -> None:
    """List the methods of all stages, or those of one stage with parameters, defaults and references.

    **Examples**

    - `atlasseg methods`
    - `atlasseg methods fusion`
    - `atlasseg methods fusion joint`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from atlasseg import methods as catalogue

    console = Console()
    for each in [stage] if stage else list(catalogue.STAGES):
        console.print(f"[bold]{escape(each)}[/bold]")
        for method_name in [name] if name else catalogue.names(each):
            method = catalogue.get(each, method_name)
            console.print(f"  [bold cyan]{method.name}[/]  {escape(method.summary)}", highlight=False)
            if method.missing_libraries:
                console.print(
                    f"      not installed here: pip install '{escape(method.needs.install)}'", highlight=False
                )
            if stage is None:
                continue
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
            for column in ("name", "default", "description"):
                table.add_column(column, overflow="fold", no_wrap=column == "name")
            for parameter in method.parameters:
                table.add_row(
                    f"      {parameter.name}",
                    "required" if parameter.required else repr(parameter.default),
                    escape(parameter.description),
                )
            console.print(table, highlight=False)
            for reference in method.references:
                console.print(f"      [dim]{escape(reference)}[/]", highlight=False)
