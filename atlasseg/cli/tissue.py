"""``atlasseg tissue``: classify tissues of scans by their intensities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import (
    Certificates,
    Channels,
    Cluster,
    ClusterSettings,
    Formats,
    Jobs,
    MethodSettings,
    Out,
    RecipeOption,
    Scheduler,
    SpacingFrom,
    add_channels,
    add_formats,
    workers_of,
)
from atlasseg.cli.run import report_failures
from atlasseg.methods.stages import STAGES

DEFAULT_MODEL = STAGES["tissue"].main_default


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("tissue")(tissue)


def tissue(
    scans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SCAN...", help="Scans (4-D: several modalities), or dataset folders."),
    ] = None,
    out: Out = None,
    recipe: RecipeOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help=f"Tissue model; see `atlasseg methods tissue`. [default: {DEFAULT_MODEL}]"
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", min=2, help="Number of classes. [default: 3]")] = None,
    names: Annotated[str | None, typer.Option("--names", help="Names of the classes, separated by commas.")] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            metavar="CONTRAST",
            help="Contrast of the first modality, by which CSF, GM and WM are named: T1, T2, PD, FLAIR, or ascending "
            "for names in ascending order of intensity. [default: found from the scan]",
        ),
    ] = None,
    prior: Annotated[
        list[Path] | None,
        typer.Option(
            "--prior", help="Prior: a 4-D file, one file per class (repeat), or the folder of a probabilistic library."
        ),
    ] = None,
    modalities: Annotated[
        list[Path] | None, typer.Option("--with", metavar="FILE", help="Another modality of the same scan; repeatable.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Mask of the voxels to classify. Default: the foreground of the scan.")
    ] = None,
    atlases: Annotated[
        list[Path] | None,
        typer.Option(
            "--atlases",
            help="Library (images/ with masks/ or labels/) from which the brain is found in scans without a mask.",
        ),
    ] = None,
    settings: MethodSettings = None,
    formats: Formats = None,
    spacing_from: SpacingFrom = None,
    channels: Channels = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    cluster_settings: ClusterSettings = None,
    certificates: Certificates = None,
) -> None:
    """Classify the tissues of a scan by intensity, with or without a prior.

    Writes for each scan a label map, the probability or (with partial volume) the fraction of each class in each voxel,
    the scan corrected for its bias field, the bias field, volumes, and a report for the browser. Settings are read from
    the table [tissue] of the recipe.

    **Examples**

    - `atlasseg tissue brain.nii.gz --names CSF,GM,WM --out tissues`
    - `atlasseg tissue t2.nii.gz --names CSF,GM,WM --contrast T2 --out tissues`
    - `atlasseg tissue t1.nii.gz --with t2.nii.gz --mask brain_mask.nii.gz --model chain --out tissues`
    - `atlasseg tissue head.nii.gz --names CSF,GM,WM --atlases my_atlases --out tissues`
    - `atlasseg tissue scan.nii.gz --prior csf.nii.gz --prior gm.nii.gz --prior wm.nii.gz --out tissues`
    """
    from atlasseg.cli._progress import Progress, announce

    announce("tissue: read the scans")
    from atlasseg.app.tissue import tissue as classify
    from atlasseg.cli._tables import print_table
    from atlasseg.errors import InputError
    from atlasseg.recipe import parse_recipe, read_recipe, with_paths

    overrides = []
    if model is not None:
        overrides.append(f"tissue.method={model}")
    if classes is not None:
        overrides.append(f"tissue.classes={classes}")
    if names is not None:
        overrides.append(f"tissue.names={json.dumps([name.strip() for name in names.split(',')])}")
    if contrast is not None:
        overrides.append(f"tissue.contrast={json.dumps(contrast)}")
    if prior:
        overrides.append(f"tissue.prior={json.dumps([str(path.resolve()) for path in prior])}")
    overrides += [f"tissue.{setting}" for setting in settings or ()]
    overrides += add_formats(None, formats) or []
    if atlases:
        overrides.append("preprocessing.mask=brain")
    if spacing_from is not None:
        overrides.append(f"data.spacing_from={spacing_from.value}")
    overrides += add_channels(None, channels) or []
    if recipe is not None:
        checked = read_recipe(recipe, overrides=overrides)
    else:
        checked = parse_recipe(
            {"tissue": {"method": model or DEFAULT_MODEL}}, overrides=overrides, where="--set", name="tissue"
        )
    if checked.tissue is None:
        raise InputError(f"{recipe}: expected a recipe with a table [tissue], got one without")
    checked = with_paths(checked, targets=scans or (), atlases=atlases or (), out=out)
    workers = workers_of(
        jobs, checked.data.targets, scheduler, cluster, cluster_settings, certificates, checked.data.reading
    )
    with Progress("read the scans") as progress:
        done = classify(checked, modalities=modalities or (), mask=mask, workers=workers, listener=progress)
    for outcome in done:
        if outcome.result is not None:
            shown = outcome.result[["name", "volume_mm3", "fraction_volume_mm3"]]
            print_table(shown, title=f"{outcome.target}, {outcome.seconds:.1f} s")
            if outcome.result.attrs.get("names"):
                typer.echo(outcome.result.attrs["names"])
    typer.echo(f"results in {checked.data.out}")
    report_failures(done)
