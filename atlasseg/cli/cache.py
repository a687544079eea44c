"""``atlasseg cache``: list, remove or verify cached results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List, remove or verify the kept results of runs.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Cache folder (--cache), or the output folder of a run.")]


def _find_cache(folder: Path) -> Path:
    """Find the cache folder."""
    from atlasseg.app.context import CACHE
    from atlasseg.errors import InputError

    inner = folder / CACHE
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    return inner if inner.is_dir() else folder


@app.command("ls")
def ls(folder: Folder) -> None:
    """List the kept results of each stage: number, size, and time of last use."""
    import time

    import pandas as pd

    from atlasseg.cli._display import format_duration
    from atlasseg.cli._tables import print_table
    from atlasseg.store.cache import list_entries

    table = pd.DataFrame([vars(entry) for entry in list_entries(_find_cache(folder))])
    if table.empty:
        typer.echo(f"{folder}: the cache is empty")
        return
    stages = table.groupby("stage").agg(results=("size", "size"), MB=("size", "sum"), used=("used", "max"))
    stages = stages.reset_index()
    stages["MB"] /= 1e6
    stages["used"] = [f"{format_duration(max(0.0, time.time() - used))} ago" for used in stages["used"]]
    print_table(stages, title=f"{len(table)} results, {table['size'].sum() / 1e9:.3g} GB")


@app.command("clear")
def clear(
    folder: Folder,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Remove only results of this stage (fusion, registration.ffd); repeatable."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", metavar="GB", min=0, help="Remove the least recently used results until this size is left."
        ),
    ] = None,
) -> None:
    """Remove kept results; later runs compute them again."""
    from atlasseg.store import cache

    found = _find_cache(folder)
    removed = cache.clear(found, stage or ()) if limit is None else cache.evict(found, int(1e9 * limit))
    typer.echo(f"removed {removed} results")


@app.command("verify")
def verify(
    folder: Folder,
    remove: Annotated[bool, typer.Option("--remove", help="Remove damaged results.")] = False,
) -> None:
    """Verify the checksums of all kept results; the exit status is 1 if any is damaged."""
    from atlasseg.store.cache import find_damaged

    count = 0
    for entry, reason in find_damaged(_find_cache(folder)):
        count += 1
        typer.echo(f"{entry.path}: damaged: {reason.removeprefix('damaged: ')}")
        if remove:
            entry.path.unlink(missing_ok=True)
    typer.echo(f"{count} damaged results" if count else "no damaged results")
    if count and not remove:
        raise typer.Exit(1)
