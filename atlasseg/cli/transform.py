"""``atlasseg transform``: a scan, a label map or points through transforms of any program."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import SpacingFrom, spacing_source


class CoordinatesName(StrEnum):
    """Which way the axes of points run."""

    ras = "ras"
    lps = "lps"


class ConventionName(StrEnum):
    """What a field of vectors or a 4x4 matrix holds."""

    itk = "itk"
    ras_displacement = "ras-displacement"
    spm = "spm"
    fnirt_relative = "fnirt-relative"
    fnirt_absolute = "fnirt-absolute"
    flirt = "flirt"
    ras = "ras"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("transform")(transform)


def transform(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A scan, a label map, or points (.csv, .tsv, Slicer's .fcsv).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: a volume, or points like INPUT.")],
    transforms: Annotated[
        list[str],
        typer.Option(
            "--transform",
            "-t",
            metavar="FILE",
            help="A transform; repeat it in the order of antsApplyTransforms. [FILE,1] is the inverse of a file.",
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="The fixed scan, on whose grid a volume comes out.")
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--image", help="Content of a volume. Each label is resampled on its own.", show_default=False
        ),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(
            "--interpolation",
            help="Of a scan: linear, cubic or nearest. Of labels: linear (each label on its own), gaussian or nearest. "
            "Default: linear.",
        ),
    ] = None,
    inverse: Annotated[bool, typer.Option("--inverse", help="Apply the inverse of the whole.")] = False,
    coordinates: Annotated[
        CoordinatesName | None,
        typer.Option(
            "--coordinates", help="Of columns x, y, z of points. Default: ras. ANTs writes lps.", show_default=False
        ),
    ] = None,
    flirt_source: Annotated[
        list[Path] | None,
        typer.Option(
            "--flirt-source", help="The image given to FLIRT or FNIRT as -in; one for all their files, or one each."
        ),
    ] = None,
    flirt_reference: Annotated[
        list[Path] | None,
        typer.Option("--flirt-reference", help="The image given to FLIRT or FNIRT as -ref; one for all, or one each."),
    ] = None,
    convention: Annotated[
        ConventionName | None,
        typer.Option(
            "--convention",
            help="What fields or 4x4 matrices hold whose files do not say it: itk (displacements, LPS mm), "
            "ras-displacement, spm (positions, RAS mm), fnirt-relative, fnirt-absolute; flirt, ras (fixed to moving).",
            show_default=False,
        ),
    ] = None,
    spacing_from: SpacingFrom = None,
) -> None:
    """Apply transforms to a scan, a label map or points.

    Reads ITK, ANTs and Slicer (.tfm, .txt, .mat, .h5, displacement fields), FLIRT matrices and FNIRT fields and
    coefficients, FreeSurfer .lta, SPM deformations (y_*.nii) and NiftyReg fields. Each file is recognised by its
    content; where that is not possible, the error says what to add.

    A transform takes points of the fixed scan (the reference) to points of the moving scan. A volume of the moving scan
    comes onto the grid of the reference. Points go with the transform, from the fixed to the moving scan, as with
    antsApplyTransformsToPoints; `--inverse` takes points of the moving scan to where its volume goes.

    **Examples**

    - `atlasseg transform t1.nii.gz t1_mni.nii.gz -t 1Warp.nii.gz -t 0GenericAffine.mat --reference mni.nii.gz`
    - `atlasseg transform mni_seg.nii.gz seg.nii.gz --labels -t '[0Affine.mat,1]' -t 1InverseWarp.nii.gz -r t1.nii.gz`
    - `atlasseg transform t1.nii.gz out.nii.gz -t t1_to_mni.mat --flirt-source t1.nii.gz --flirt-reference mni.nii.gz`
    - `atlasseg transform points.csv moved.csv -t y_t1.nii --coordinates lps`
    """
    from atlasseg.app.transform import transform_file

    told = transform_file(
        source,
        out,
        transforms,
        reference=reference,
        labels=labels,
        interpolation=interpolation,
        inverse=inverse,
        coordinates=None if coordinates is None else coordinates.value,
        convention=None if convention is None else convention.value,
        flirt_source=flirt_source or (),
        flirt_reference=flirt_reference or (),
        spacing_from=spacing_source(spacing_from),
    )
    typer.echo(f"wrote {out}: {told}")
