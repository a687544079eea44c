"""``atlasseg brain``: find the brain, or another organ, in scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import (
    Certificates,
    Channels,
    Cluster,
    ClusterSettings,
    Jobs,
    Scheduler,
    SpacingFrom,
    channel_names,
    spacing_source,
    workers_of,
)
from atlasseg.cli.run import report_failures


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("brain")(brain)


def brain(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="Scans, or dataset folders.")],
    atlases: Annotated[
        list[Path],
        typer.Option(
            "--atlases",
            help="Folder of the library: images/ with masks/, or with labels/, whose labels above 0 are the organ. "
            "Repeatable; several folders form one library.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("out/brain"),
    organ: Annotated[
        str, typer.Option("--organ", metavar="NAME", help="Name of the organ, for files and pages.")
    ] = "brain",
    report: Annotated[bool, typer.Option(help="Write a report for the browser for each scan.")] = True,
    spacing_from: SpacingFrom = None,
    channels: Channels = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    cluster_settings: ClusterSettings = None,
    certificates: Certificates = None,
) -> None:
    """Find the brain in scans of whole heads, or any other organ, from a library in which it is known.

    The library has 1 atlas or more, of any species. Every atlas is registered to the scan, the organs are fused, and
    the border is refined by the intensities of the scan. Writes for each scan a mask and the probability of the organ,
    on the grid of the scan, a table of the atlases, and a report for the browser. A data set with labels/ is also
    evaluated: all labels above 0 are then the organ.

    **Examples**

    - `atlasseg brain scan.nii.gz --atlases my_atlases --out masks`
    - `atlasseg brain scans/ --atlases my_atlases --out masks --jobs 2`
    - `atlasseg brain ct.nii.gz --atlases livers --organ liver --out livers_found`
    """
    from atlasseg.cli._progress import Progress, announce

    announce("brain: read the library")
    import pandas as pd

    from atlasseg.app.brain import extract_brains
    from atlasseg.cli._tables import print_table

    workers = workers_of(
        jobs, scans, scheduler, cluster, cluster_settings, certificates, {"channels": channel_names(channels)}
    )
    with Progress("read the library and the scans") as progress:
        done = extract_brains(
            scans,
            atlases,
            out,
            organ=organ,
            report=report,
            spacing_from=spacing_source(spacing_from),
            channels=channel_names(channels),
            workers=workers,
            listener=progress,
        )
    rows = [outcome.result.assign(seconds=round(outcome.seconds, 1)) for outcome in done if outcome.result is not None]
    if rows:
        print_table(pd.concat(rows), title=f"masks of the {organ}")
    typer.echo(f"results in {out}")
    report_failures(done)
