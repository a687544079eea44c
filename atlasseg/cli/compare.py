"""``atlasseg compare``: compare fusion methods on the same registrations."""

from __future__ import annotations

from typing import Annotated

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
    Jobs,
    Localise,
    OptionalRecipe,
    Out,
    Prepared,
    Scheduler,
    Settings,
    SpacingFrom,
    Targets,
    add_localisation,
    load_recipe,
    workers_of,
)
from atlasseg.cli.run import report_failures


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("compare")(compare)


def compare(
    recipe: OptionalRecipe = None,
    names: Annotated[
        str,
        typer.Option(
            "--methods", help="Comma-separated fusion methods or FUSION+REFINEMENT. all: every fusion method."
        ),
    ] = "all",
    targets: Targets = None,
    atlases: Atlases = None,
    out: Out = None,
    leave_one_out: Annotated[
        bool,
        typer.Option("--leave-one-out", help="Segment every atlas of the library from the others (leave-one-out)."),
    ] = False,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = DEFAULT_LIMIT_GB,
    prepared: Prepared = None,
    localise: Localise = False,
    settings: Settings = None,
    spacing_from: SpacingFrom = None,
    channels: Channels = None,
    device: Device = DeviceName.auto,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    cluster_settings: ClusterSettings = None,
    certificates: Certificates = None,
) -> None:
    """Compare fusion methods on the same registrations, with statistical tests.

    Every target is registered once. Writes comparison.tsv (all measures, time and memory), paired tests (Wilcoxon,
    corrected by Holm), ranks with their critical difference, and a page with plots. The targets need reference labels;
    with --leave-one-out each atlas is a target for the others. A recipe with a table [refinement] is compared with and
    without the refinement.

    **Examples**

    - `atlasseg compare quickstart --methods majority,local_weighted,joint`
    - `atlasseg compare --atlases my_atlases --leave-one-out --out comparison`
    - `atlasseg compare refined.toml --methods majority,joint,joint+corrective_learning`
    - `atlasseg compare mouse_brain --atlases my_atlases --leave-one-out --set fusion.joint.beta=4`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"compare: read the recipe {recipe}" if recipe else "compare: read the atlases")
    from atlasseg import methods
    from atlasseg.app.compare import compare as compare_methods
    from atlasseg.cli._tables import print_table
    from atlasseg.recipe import with_paths

    with Progress("read the atlases and the targets") as progress:
        checked = load_recipe(
            recipe,
            add_localisation(settings, localise),
            device,
            targets=targets,
            atlases=atlases,
            out=out,
            prepared=prepared,
            spacing_from=spacing_from,
            channels=channels,
        )
        if leave_one_out:
            checked = with_paths(checked, targets=checked.data.atlases)
        chosen = methods.names("fusion") if names == "all" else [name.strip() for name in names.split(",")]
        workers = workers_of(
            jobs, checked.data.targets, scheduler, cluster, cluster_settings, certificates, checked.data.reading
        )
        found = compare_methods(
            checked, chosen, workers=workers, listener=progress, cache=cache, limit_bytes=int(1e9 * cache_limit)
        )
    print_table(found.overview(), title=f"mean over {len(found.scores)} targets")
    print_table(found.tests.drop(columns="median_difference"), title="mean Dice, all pairs of methods")
    typer.echo(f"critical difference of mean ranks: {found.ranking.critical_difference:.2f} (Nemenyi, 0.05)")
    typer.echo(f"results in {checked.data.out}")
    report_failures(found.outcomes)
