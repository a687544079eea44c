"""Options shared by several commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from atlasseg.compute.workers import Workers
    from atlasseg.recipe import Recipe


class DeviceName(StrEnum):
    """Device for the methods that can use a GPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class SpacingName(StrEnum):
    """Source of the voxel size where a NIfTI header gives two."""

    sform = "sform"
    pixdim = "pixdim"


SpacingFrom = Annotated[
    SpacingName | None,
    typer.Option(
        "--spacing-from",
        help="Voxel size to use where the sform and the pixdim of a NIfTI header differ. [default: sform]",
        show_default=False,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        "--channels",
        metavar="NAME,NAME",
        help="Channels of every scan, in order: with T1,FLAIR the files ID_T1.nii.gz and ID_FLAIR.nii.gz are one scan.",
    ),
]
RECIPE_HELP = "Recipe file (.toml), or a name from `atlasseg recipes`."
RECIPE_OR_ATLASES_HELP = f"{RECIPE_HELP} Without it, methods are chosen for --atlases."
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]
OptionalRecipe = Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help=RECIPE_OR_ATLASES_HELP)]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", metavar="RECIPE", help=RECIPE_HELP)]


class FormatName(StrEnum):
    """Format of a segmentation."""

    nifti = "nifti"
    seg_nrrd = "seg.nrrd"
    rtstruct = "rtstruct"
    dicomseg = "dicomseg"


class OverlapName(StrEnum):
    """What to do where structures of a file overlap."""

    refuse = "refuse"
    first = "first"


class BetweenSlicesName(StrEnum):
    """What to do with contours between the slices."""

    refuse = "refuse"
    nearest = "nearest"
    interpolate = "interpolate"


Formats = Annotated[
    list[FormatName] | None,
    typer.Option(
        "--format",
        help="Format of the results beside NIfTI, with names and colours: seg.nrrd (3D Slicer), and for DICOM targets "
        "rtstruct and dicomseg; repeatable.",
        show_default=False,
    ),
]
StructureNames = Annotated[
    list[str] | None,
    typer.Option(
        "--structures",
        metavar="NAME",
        help="Structure to read of an RTSTRUCT, DICOM-SEG or .seg.nrrd, by its name or number; repeatable, the first "
        "has priority. [default: all]",
        show_default=False,
    ),
]
StructureOverlap = Annotated[
    OverlapName,
    typer.Option("--overlap", help="Where structures overlap: an error, or the voxel goes to the first structure."),
]
BetweenSlicesOption = Annotated[
    BetweenSlicesName,
    typer.Option(
        "--between-slices",
        help="Contours of an RTSTRUCT between the slices of the reference: an error, the nearest slice, or "
        "shape-based interpolation (also across slices without contours).",
    ),
]
Targets = Annotated[
    list[Path] | None, typer.Option("--targets", help="Scan, or folder with images/ (and labels/); repeatable.")
]
Atlases = Annotated[
    list[Path] | None,
    typer.Option("--atlases", help="Folder of an atlas library. Repeatable; several folders form one library."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results.")]
ModelOut = Annotated[Path, typer.Option("--out", metavar="MODEL_DIR", help="Folder for the model.")]
Prepared = Annotated[
    Path | None,
    typer.Option(
        "--prepared", help="Output of `atlasseg atlases prepare` for this library; replaces the registration steps."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Set one value of the recipe; repeatable."),
]
MethodSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter of the method; repeatable.")
]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="ID", help="Leave an atlas out; repeatable.")]
Device = Annotated[
    DeviceName,
    typer.Option("--device", help="auto: a CUDA GPU if there is one, else the CPU; cuda: an error if there is none."),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        min=0,
        help="Number of worker processes, or of jobs on a --cluster. 0: one for each processor; 1: this process only.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="Address of a running Dask scheduler, such as tls://host:8786."
    ),
]
Certificates = Annotated[
    Path | None,
    typer.Option(
        "--certificates", metavar="DIR", help="Certificates of the --scheduler, made by `atlasseg certificates DIR`."
    ),
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="Batch system to start --jobs workers on: slurm, pbs, sge, lsf, ...")
]
ClusterSettings = Annotated[
    Path | None,
    typer.Option(
        "--cluster-settings",
        metavar="TOML",
        help="File with queue, cores, memory, ... of the jobs of a --cluster; see docs/guide/scaling.md.",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for intermediate results. [default: .cache in --out]"),
]
TrainingCache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Folder for intermediate results, to resume from."),
]
CacheLimit = Annotated[
    float,
    typer.Option(
        "--cache-limit",
        metavar="GB",
        min=0,
        help="Maximum size of the cache; the oldest results are removed first. 0: keep no large results.",
    ),
]
DEFAULT_LIMIT_GB = 50.0
Localise = Annotated[
    bool,
    typer.Option(
        "--localise",
        help="Find the organ first, by its surroundings in every atlas, and register in a box around it: for a small "
        "organ in a large, variable view. Sets localisation.method=combined.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan (steps, cached results, estimated time and memory) and stop."),
]


FEW_TARGETS = 4
"""Up to this many targets run in one process: their registrations already run in parallel threads."""


def spacing_source(chosen: SpacingName | None) -> Literal["sform", "pixdim"]:
    """Convert the option to the argument of :func:`atlasseg.io.read_image`."""
    return "pixdim" if chosen is SpacingName.pixdim else "sform"


def workers_of(
    jobs: int,
    targets: Sequence[Path],
    scheduler: str | None,
    cluster: str | None,
    settings: Path | None,
    certificates: Path | None,
    reading: Mapping[str, Any] | None = None,
) -> Workers:
    """Choose the workers according to the options; `reading` says how the targets are read."""
    from atlasseg.atlases.library import read_targets
    from atlasseg.compute.workers import Workers, count_processors

    if jobs == 0:
        count = len(read_targets(targets, **(reading or {}))) if targets else 0
        alone = cluster is not None or count < FEW_TARGETS
        jobs = 1 if alone else min(count_processors(), count)
    return Workers(jobs, scheduler, cluster, settings, certificates=certificates)


def add_localisation(settings: list[str] | None, localise: bool) -> list[str] | None:
    """Settings of a recipe with the localisation of the option --localise."""
    from atlasseg.methods.stages import STAGES

    if not localise:
        return settings
    return [f"localisation.method={STAGES['localisation'].main_default}", *(settings or ())]


def add_formats(settings: list[str] | None, formats: list[FormatName] | None) -> list[str] | None:
    """Settings of a recipe with the formats of the option --format."""
    if not formats:
        return settings
    names = ", ".join(f'"{format.value}"' for format in formats if format is not FormatName.nifti)
    return [*(settings or ()), f"output.formats=[{names}]"]


def add_channels(settings: list[str] | None, channels: str | None) -> list[str] | None:
    """Settings of a recipe with the channels of the option --channels."""
    if channels is None:
        return settings
    return [*(settings or ()), f"data.channels={json.dumps(channel_names(channels))}"]


def channel_names(channels: str | None) -> list[str]:
    """Names of the option --channels."""
    return [] if channels is None else [name.strip() for name in channels.split(",")]


def load_recipe(
    path: Path | None,
    settings: list[str] | None,
    device: DeviceName,
    *,
    targets: list[Path] | None,
    atlases: list[Path] | None,
    out: Path | None,
    prepared: Path | None,
    spacing_from: SpacingName | None = None,
    channels: str | None = None,
) -> Recipe:
    """Read a recipe; options replace its own paths. Without a path the kind of the library chooses the recipe."""
    from atlasseg.recipe import read_recipe, with_device, with_paths

    if spacing_from is not None:
        settings = [*(settings or ()), f"data.spacing_from={spacing_from.value}"]
    settings = add_channels(settings, channels)
    chosen = _choose_recipe(atlases, settings) if path is None else read_recipe(path, overrides=settings or ())
    recipe = with_device(chosen, device.value)
    return with_paths(recipe, targets=targets or (), atlases=atlases or (), out=out, prepared=prepared)


def _choose_recipe(atlases: list[Path] | None, settings: list[str] | None) -> Recipe:
    """Choose the default recipe for the kind of the library, and print the choice."""
    from atlasseg.atlases.library import read_library
    from atlasseg.cli._progress import is_quiet, print_line
    from atlasseg.errors import InputError
    from atlasseg.recipe.defaults import default_recipe, describe

    if not atlases:
        raise InputError("expected a recipe or --atlases DIR, got neither. Try: atlasseg run quickstart")
    library = read_library(*atlases, **default_recipe("multi", overrides=settings or ()).data.reading)
    recipe = default_recipe(library.kind, overrides=settings or ())
    if not is_quiet():
        kind = f"{len(library)} atlases" if library.kind == "multi" else f"a {library.kind} atlas"
        print_line(f"no recipe given, so for {kind}: {describe(recipe)} ('atlasseg init' writes this as a recipe)")
    return recipe
