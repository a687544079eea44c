"""``atlasseg run``: a recipe over its targets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasseg.cli._options import Device, DeviceName, Jobs, Prepared, RecipeFile, Settings

if TYPE_CHECKING:
    from atlasseg.recipe import Recipe

Targets = Annotated[
    list[Path] | None, typer.Option("--targets", help="A scan, or a folder with images/ (and labels/); repeatable.")
]
Atlases = Annotated[
    list[Path] | None, typer.Option("--atlases", help="Folder of the atlas library; repeatable: together one library.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder that the results go into.")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("run")(run)


def run(
    recipe: RecipeFile,
    targets: Targets = None,
    atlases: Atlases = None,
    out: Out = None,
    prepared: Prepared = None,
    settings: Settings = None,
    device: Device = DeviceName.auto,
    jobs: Jobs = 0,
) -> None:
    """Segment every target of a recipe, evaluate, and report.

    Registers the atlases to each target, carries their labels over and fuses them. Writes for each target a
    segmentation on the scan's own grid, its volumes, an entropy map (where to look), and a report for a browser.
    Targets that come with labels are evaluated against them.

    **Examples**

    - `atlasseg run pipelines/quickstart.toml`
    - `atlasseg run pipelines/hippocampus.toml --targets scan.nii.gz --out results`
    - `atlasseg run pipelines/hippocampus.toml --set fusion.method=joint --set registration.ffd.spacing_voxels=4`
    """
    from rich.console import Console

    from atlasseg.cli._progress import TargetProgress
    from atlasseg.cli._tables import as_table
    from atlasseg.cohort.run import run as run_recipe
    from atlasseg.cohort.run import summary

    checked = located(recipe, settings, device, targets=targets, atlases=atlases, out=out, prepared=prepared)
    with TargetProgress(Console(stderr=True)) as progress:
        done = run_recipe(checked, jobs=jobs or os.cpu_count() or 1, listener=progress)
    Console().print(as_table(summary(done)))
    typer.echo(f"results in {checked.data.out}")
    failed = [outcome for outcome in done if outcome.error]
    for outcome in failed:
        typer.echo(f"failed: {outcome.target}: {outcome.error}", err=True)
    if failed:
        raise typer.Exit(1)


def located(
    path: Path,
    settings: list[str] | None,
    device: DeviceName,
    *,
    targets: list[Path] | None,
    atlases: list[Path] | None,
    out: Path | None,
    prepared: Path | None,
) -> Recipe:
    """Read a recipe; paths given as options take the place of its own."""
    from atlasseg.recipe import read_recipe, with_device

    recipe = with_device(read_recipe(path, overrides=settings or ()), device.value)
    data = recipe.data
    return replace(
        recipe,
        data=replace(
            data, atlases=tuple(atlases or data.atlases), targets=tuple(targets or data.targets), out=out or data.out
        ),
        registration=replace(recipe.registration, prepared=prepared or recipe.registration.prepared),
    )
