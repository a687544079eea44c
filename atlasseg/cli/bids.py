"""``atlasseg bids``: run a recipe on a BIDS dataset, as a BIDS-App."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from atlasseg.cli._options import (
    DEFAULT_LIMIT_GB,
    RECIPE_OR_ATLASES_HELP,
    Atlases,
    CacheLimit,
    Certificates,
    Channels,
    Cluster,
    ClusterSettings,
    Device,
    DeviceName,
    DryRun,
    Prepared,
    Scheduler,
    Settings,
    load_recipe,
    workers_of,
)
from atlasseg.cli.run import report_outcomes, report_plan
from atlasseg.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atlasseg.bids.scans import Scan


class Level(StrEnum):
    """Analysis level of a BIDS-App."""

    participant = "participant"
    group = "group"


LISTS = ("--participant-label", "--participant_label", "--session-id", "--session_id", "--session-label")
POSITIONALS = 3


class _BidsCommand(TyperCommand):
    """Command with options that take several values, as in BIDS-Apps: ``--participant-label 01 02``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value; only after the positional arguments."""
        if any(word.startswith("-") for word in args[:POSITIONALS]):
            return super().parse_args(ctx, args)
        spelt: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in LISTS else ""
            elif option and spelt[-1] != option:
                spelt.append(option)
            spelt.append(word)
        return super().parse_args(ctx, spelt)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("bids", cls=_BidsCommand)(bids)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"atlasseg {__version__}")
        raise typer.Exit


def bids(
    bids_dir: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="BIDS dataset with T1-weighted scans.")],
    out_dir: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Folder for the derivative, e.g. BIDS_DIR/derivatives/atlasseg.")
    ],
    level: Annotated[
        Level,
        typer.Argument(
            metavar="participant|group", help="participant: segment the scans; group: summarise all results."
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            envvar="ATLASSEG_RECIPE",
            help=RECIPE_OR_ATLASES_HELP,
        ),
    ] = None,
    atlases: Atlases = None,
    channels: Channels = None,
    participant_label: Annotated[
        list[str] | None,
        typer.Option("--participant-label", "--participant_label", help="Only these participants, e.g. 01 02."),
    ] = None,
    session_id: Annotated[
        list[str] | None, typer.Option("--session-id", "--session_id", "--session-label", help="Only these sessions.")
    ] = None,
    bids_filter_file: Annotated[
        Path | None,
        typer.Option("--bids-filter-file", help='JSON file that selects scans: {"t1w": {"acquisition": "highres"}}.'),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", "-w", help="Folder for intermediate results. [default: .work in OUT_DIR]"),
    ] = None,
    nprocs: Annotated[
        int,
        typer.Option(
            "--nprocs",
            "--n-cpus",
            "--n_cpus",
            "--jobs",
            "-j",
            min=0,
            help="Number of worker processes. 0: one for each processor.",
        ),
    ] = 0,
    mem_gb: Annotated[
        float | None,
        typer.Option("--mem-gb", "--mem_gb", help="Memory limit of all workers together. [default: all free memory]"),
    ] = None,
    skip_bids_validation: Annotated[
        bool,
        typer.Option("--skip-bids-validation", "--skip_bids_validation", help="Do not run the BIDS validator."),
    ] = False,
    reports_only: Annotated[
        bool, typer.Option("--reports-only", help="Only make the report pages again from existing results.")
    ] = False,
    stop_on_first_crash: Annotated[
        bool, typer.Option("--stop-on-first-crash", help="Start no further scan after a failure.")
    ] = False,
    probseg: Annotated[
        bool | None,
        typer.Option("--probseg/--no-probseg", help="Write label probabilities. [default: as in the recipe]"),
    ] = None,
    xfm: Annotated[
        bool | None, typer.Option("--xfm/--no-xfm", help="Write the transforms. [default: as in the recipe]")
    ] = None,
    prepared: Prepared = None,
    settings: Settings = None,
    device: Device = DeviceName.auto,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    cluster_settings: ClusterSettings = None,
    certificates: Certificates = None,
    cache_limit: CacheLimit = DEFAULT_LIMIT_GB,
    dry_run: DryRun = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Segment the scans of a BIDS dataset, as a BIDS-App.

    `participant` writes a BIDS derivative: for each scan its segmentation with label table and sidecar, volumes,
    entropy, and a report. Every session is segmented separately. `group` makes one table of all volumes and one page
    of all scans from these results.

    **Examples**

    - `atlasseg bids study study/derivatives/atlasseg participant --atlases my_atlases`
    - `atlasseg bids study study/derivatives/atlasseg participant --recipe recipe.toml --atlases my_atlases`
    - `atlasseg bids study study/derivatives/atlasseg participant --recipe recipe.toml --participant-label 01 02`
    - `atlasseg bids study study/derivatives/atlasseg group`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"bids: read the dataset {bids_dir}")
    from atlasseg.bids.scans import find_scans, validate

    with Progress("find the scans"):
        scans = find_scans(
            bids_dir,
            participants=participant_label or (),
            sessions=session_id or (),
            filter_file=bids_filter_file,
        )
    if level is Level.group:
        _group(bids_dir, out_dir, scans)
        return
    if reports_only:
        _reports(bids_dir, out_dir, scans)
        return
    if not skip_bids_validation:
        with Progress("validate the dataset"):
            validate(bids_dir)
    switches = {"output.probabilities": probseg, "output.transforms": xfm}
    changed = [
        *(settings or ()),
        *(f"{key}={str(value).lower()}" for key, value in switches.items() if value is not None),
    ]
    checked = load_recipe(
        recipe, changed, device, targets=None, atlases=atlases, out=None, prepared=prepared, channels=channels
    )
    workers = workers_of(
        nprocs, [scan.path for scan in scans], scheduler, cluster, cluster_settings, certificates, checked.data.reading
    )
    workers = replace(workers, memory_bytes=None if mem_gb is None else 1e9 * mem_gb)
    limit_bytes = int(1e9 * cache_limit)
    if dry_run:
        from atlasseg.bids.derivative import prepare_recipe

        report_plan(prepare_recipe(bids_dir, out_dir, scans, checked, work=work_dir), workers, None, limit_bytes)
        return

    from atlasseg.bids.derivative import participant_level

    with Progress("read the atlases") as progress:
        done = participant_level(
            bids_dir,
            out_dir,
            scans,
            checked,
            work=work_dir,
            workers=workers,
            listener=progress,
            limit_bytes=limit_bytes,
            stop_on_failure=stop_on_first_crash,
        )
    report_outcomes(done, out_dir)


def _group(bids_dir: Path, out_dir: Path, scans: Sequence[Scan]) -> None:
    from atlasseg.bids.derivative import group_level

    without = group_level(bids_dir, out_dir, scans)
    for scan in without:
        typer.echo(f"{scan.path.name}: no results", err=True)
    typer.echo(f"wrote {out_dir / 'group_volumes.tsv'}: volumes of {len(scans) - len(without)} scans")
    typer.echo(f"wrote {out_dir / 'index.html'}")
    if without:
        raise typer.Exit(1)


def _reports(bids_dir: Path, out_dir: Path, scans: Sequence[Scan]) -> None:
    from atlasseg.bids.derivative import write_report
    from atlasseg.errors import AtlasSegError

    failed = False
    for scan in scans:
        try:
            write_report(scan, out_dir, bids_dir)
        except AtlasSegError as error:
            failed = True
            typer.echo(f"failed: {scan.path.name}: {error}", err=True)
    typer.echo(f"reports in {out_dir}")
    if failed:
        raise typer.Exit(1)
