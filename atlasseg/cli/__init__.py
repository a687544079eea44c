"""The command ``atlasseg``: one file per command, each a thin layer over a function of the package."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from atlasseg.cli import (
    atlases,
    bids,
    brain,
    cache,
    certificates,
    compare,
    convert,
    doctor,
    evaluate,
    fetch,
    figure,
    fuse,
    init,
    methods,
    recipes,
    recommend,
    regions,
    register,
    run,
    tissue,
    train,
    transform,
    view,
)
from atlasseg.cli._logging import flush_log, set_up_logging
from atlasseg.errors import AtlasSegError
from atlasseg.version import __version__


class _Commands(TyperGroup):
    """Command group that prints an error of the user's input as one line and sets the exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AtlasSegError as error:
            flush_log()
            typer.echo(f"atlasseg: error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            flush_log()
            typer.echo("atlasseg: interrupted; finished results are kept, and no file is incomplete", err=True)
            raise typer.Exit(130) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands in the order in which a new user needs them."""
        return list(self.commands)


app = typer.Typer(
    cls=_Commands,
    name="atlasseg",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Start with `atlasseg run quickstart`. Check a dataset of your own with "
        "`atlasseg doctor DIR`.\n\nExit status: 0 all done; 1 some targets failed, each named with its "
        "reason; 2 the request itself was wrong; 130 interrupted."
    ),
)
run.add_to(app)
bids.add_to(app)
compare.add_to(app)
view.add_to(app)
evaluate.add_to(app)
doctor.add_to(app)
recommend.add_to(app)
convert.add_to(app)
transform.add_to(app)
fetch.add_to(app)
methods.add_to(app)
recipes.add_to(app)
init.add_to(app)
register.add_to(app)
fuse.add_to(app)
regions.add_to(app)
brain.add_to(app)
tissue.add_to(app)
train.add_to(app)
certificates.add_to(app)
app.add_typer(figure.app, name="figure")
app.add_typer(atlases.app, name="atlases")
app.add_typer(cache.app, name="cache")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"atlasseg {__version__}")
        raise typer.Exit


@app.callback()
def atlasseg(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print progress messages, not only warnings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Segment medical images in 3-D with a library of labelled scans (atlases)."""
    ctx.call_on_close(set_up_logging(verbose=verbose, quiet=quiet).flush)


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot encode is no error
    # threads that wait for others leave their core to whatever runs beside; OpenMP reads this when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
