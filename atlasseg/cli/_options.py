"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atlasseg.compute.workers import Workers


class DeviceName(StrEnum):
    """Where methods that can use a GPU run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file (.toml), or a name that `atlasseg recipes` lists.")
]
OptionalRecipe = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="A recipe file (.toml), or a name that `atlasseg recipes` lists; without it --atlases says what to do.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change one value of the recipe; may be given again."),
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="auto takes a CUDA GPU where there is one; cuda insists on it.")
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=0, help="Worker processes, or jobs of a --cluster; 0 takes one a processor, 1 this process."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler, such as tls://host:8786."),
]
Certificates = Annotated[
    Path | None,
    typer.Option(
        "--certificates", metavar="DIR", help="Of the --scheduler, as `atlasseg certificates DIR` makes them."
    ),
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="A batch system to start --jobs workers on: slurm, pbs, sge, lsf, ...")
]
ClusterSettings = Annotated[
    Path | None,
    typer.Option("--cluster-settings", metavar="TOML", help="Its queue, cores, memory ...; see docs/guide/scaling.md."),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for what is computed on the way; .cache in the output folder."),
]
CacheLimit = Annotated[
    float,
    typer.Option("--cache-limit", metavar="GB", min=0, help="Beyond it goes what is oldest; 0 keeps nothing large."),
]
DEFAULT_LIMIT_GB = 50.0
Prepared = Annotated[
    Path | None,
    typer.Option("--prepared", help="Library prepared by atlasseg atlases prepare; takes the place of the steps."),
]


FEW_TARGETS = 4
"""So few are as fast without other processes, since the registrations of one target go side by side."""


def workers_of(
    jobs: int,
    targets: Sequence[Path],
    scheduler: str | None,
    cluster: str | None,
    settings: Path | None,
    certificates: Path | None,
) -> Workers:
    """Where to compute, as the options say."""
    from atlasseg.atlases.library import read_targets
    from atlasseg.compute.workers import Workers

    if jobs == 0:
        count = len(read_targets(targets)) if targets else 0
        alone = cluster is not None or count < FEW_TARGETS
        jobs = 1 if alone else min(os.cpu_count() or 1, count)
    return Workers(jobs, scheduler, cluster, settings, certificates=certificates)
