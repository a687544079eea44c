"""``atlasseg run``: segment targets by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from atlasseg.cli._options import (
    DEFAULT_LIMIT_GB,
    Atlases,
    CacheFolder,
    CacheLimit,
    Certificates,
    Channels,
    Cluster,
    ClusterSettings,
    Device,
    DeviceName,
    DryRun,
    Formats,
    Jobs,
    Localise,
    OptionalRecipe,
    Out,
    Prepared,
    Scheduler,
    Settings,
    SpacingFrom,
    Targets,
    add_formats,
    add_localisation,
    load_recipe,
    workers_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlasseg.compute.execution import Outcome
    from atlasseg.compute.workers import Workers
    from atlasseg.recipe import Recipe
    from atlasseg.report.cohort_page import TargetSummary


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("run")(run)


def run(
    recipe: OptionalRecipe = None,
    targets: Targets = None,
    atlases: Atlases = None,
    out: Out = None,
    prepared: Prepared = None,
    localise: Localise = False,
    settings: Settings = None,
    formats: Formats = None,
    spacing_from: SpacingFrom = None,
    channels: Channels = None,
    device: Device = DeviceName.auto,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    cluster_settings: ClusterSettings = None,
    certificates: Certificates = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = DEFAULT_LIMIT_GB,
    dry_run: DryRun = False,
) -> None:
    """Segment every target, evaluate the results, and write reports.

    Registers the atlases to each target, carries their labels over and fuses them. Writes for each target a
    segmentation on the grid of the scan, the volumes of the structures, an entropy map (the uncertainty), and a report
    for the browser. Targets with reference labels are evaluated against them. Results that are already there and still
    valid are not computed again. Without RECIPE, atlasseg chooses methods for the atlases and prints them.

    **Examples**

    - `atlasseg run quickstart`
    - `atlasseg run --atlases my_atlases --targets scan.nii.gz --out results`
    - `atlasseg run hippocampus --atlases my_atlases --targets scan.nii.gz --out results`
    - `atlasseg run ct_organs --atlases patients --targets new_patients --out results --format rtstruct`
    - `atlasseg run recipe.toml --set fusion.method=joint --set registration.ffd.spacing_voxels=4`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"run: read the recipe {recipe}" if recipe else "run: read the atlases")
    from atlasseg.app.run import run as run_recipe

    with Progress("read the atlases and the targets") as progress:
        checked = load_recipe(
            recipe,
            add_formats(add_localisation(settings, localise), formats),
            device,
            targets=targets,
            atlases=atlases,
            out=out,
            prepared=prepared,
            spacing_from=spacing_from,
            channels=channels,
        )
        workers = workers_of(
            jobs, checked.data.targets, scheduler, cluster, cluster_settings, certificates, checked.data.reading
        )
        limit_bytes = int(1e9 * cache_limit)
        if not dry_run:
            done = run_recipe(checked, workers=workers, listener=progress, cache=cache, limit_bytes=limit_bytes)
    if dry_run:
        report_plan(checked, workers, cache, limit_bytes)
        return
    assert checked.data.out is not None
    report_outcomes(done, checked.data.out)


def report_outcomes(done: Sequence[Outcome[TargetSummary]], out: Path) -> None:
    """Print the outcome of a run, and exit with status 1 if a target failed."""
    from atlasseg.app.context import LOGS
    from atlasseg.app.run import summary
    from atlasseg.cli._tables import print_table

    print_table(summary(done))
    typer.echo(f"results in {out}")
    report_failures(done, logs=out / LOGS)


def report_failures(done: Sequence[Outcome[Any]], *, logs: Path | None = None) -> None:
    """Print the failed targets, grouped by reason, and exit with status 1 if there are any."""
    from atlasseg.cli._logging import format_cause

    reasons: dict[str, list[str]] = {}
    for outcome in done:
        if outcome.error:
            reasons.setdefault(outcome.error, []).append(outcome.target)
    for reason, targets in reasons.items():
        typer.echo(f"failed: {format_cause(targets, reason, noun='targets')}", err=True)
    if reasons and logs is not None:
        typer.echo(f"logs of the failed targets: {logs}", err=True)
    if reasons:
        raise typer.Exit(1)


def report_plan(recipe: Recipe, workers: Workers, cache: Path | None, limit_bytes: int) -> None:
    """Print the plan of a run. Raise an error if the disk is too small for its results."""
    import pandas as pd

    from atlasseg.app.plan import estimate
    from atlasseg.cli._display import format_duration
    from atlasseg.cli._progress import Progress
    from atlasseg.cli._tables import print_table

    with Progress("read the cache and estimate the remaining work"):
        plan = estimate(recipe, workers=workers, cache=cache, limit_bytes=limit_bytes)
    rows = [
        {
            "step": each.stage,
            "kept": each.kept,
            "to do": each.to_do,
            "CPU time": format_duration(each.seconds),
            "disk, MB": each.kept_bytes / 1e6,
            "estimate": "measured" if each.measured else "rough",
        }
        for each in plan.stages
    ]
    print_table(pd.DataFrame(rows), title=f"{plan.targets} targets, {plan.finished} finished")
    for target, error in plan.broken.items():
        typer.echo(f"{target}: cannot be read: {error}", err=True)
    typer.echo(f"about {format_duration(plan.seconds)} with {plan.workers} in parallel")
    memory = plan.memory
    typer.echo(
        f"memory per worker: {memory.registering / 1e9:.2g} GB to register, {memory.fusing / 1e9:.2g} GB to fuse"
    )
    typer.echo(
        f"disk: {plan.cache_bytes / 1e9:.3g} GB in the cache, {plan.result_bytes / 1e9:.3g} GB of results; "
        f"{plan.free_bytes / 1e9:.3g} GB are free"
    )
    plan.check()
