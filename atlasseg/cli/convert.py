"""``atlasseg convert``: convert a volume of any supported format to NIfTI, NRRD or MetaImage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import SpacingFrom, spacing_source


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("convert")(convert)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SCAN", help="Volume, or folder with DICOM series; FOLDER#2 is the second series.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .nii.gz, .nii, .nrrd or .mha.")],
    labels: Annotated[bool, typer.Option("--labels", help="Treat the values as labels, not intensities.")] = False,
    orthogonal: Annotated[
        bool,
        typer.Option(
            "--orthogonal",
            help="Resample sheared axes (tilted gantry) to perpendicular ones, as required by ITK, ANTs and Slicer.",
        ),
    ] = False,
    series: Annotated[
        str | None, typer.Option("--series", help="DICOM series in the folder: its number in the list, or its UID.")
    ] = None,
    spacing_from: SpacingFrom = None,
) -> None:
    """Convert a scan or a label map to NIfTI, NRRD or MetaImage.

    Each DICOM slice is rescaled and placed by its own header. If a folder has several series, the error message lists
    them, and FOLDER#2 or --series chooses one.

    **Examples**

    - `atlasseg convert dicom_folder scan.nii.gz`
    - `atlasseg convert dicom_folder#2 scan.nii.gz`
    - `atlasseg convert tilted.nii.gz straight.nii.gz --orthogonal`
    """
    from atlasseg.app.convert import convert as convert_file

    grid = convert_file(
        source,
        out,
        labels=labels,
        orthogonal=orthogonal,
        spacing_from=spacing_source(spacing_from),
        series=series,
    )
    typer.echo(f"wrote {out}: {grid.describe()}")
