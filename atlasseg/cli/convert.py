"""``atlasseg convert``: convert a volume of any supported format to NIfTI, NRRD or MetaImage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import (
    BetweenSlicesName,
    BetweenSlicesOption,
    FormatName,
    OverlapName,
    SpacingFrom,
    StructureNames,
    StructureOverlap,
    spacing_source,
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("convert")(convert)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SCAN", help="Volume, or folder with DICOM series; FOLDER#2 is the second series.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .nii.gz, .nii, .nrrd, .mha, .seg.nrrd or .dcm.")
    ],
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
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="SCAN",
            help="Scan of the labels: gives the grid of an RTSTRUCT to read, and the DICOM series of a .dcm to write.",
        ),
    ] = None,
    structures: StructureNames = None,
    overlap: StructureOverlap = OverlapName.refuse,
    between_slices: BetweenSlicesOption = BetweenSlicesName.refuse,
    format: Annotated[
        FormatName | None,
        typer.Option("--format", help="Format of the labels. [default: by the suffix]", show_default=False),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Label table: names, colours and codes; values of the structures to read."),
    ] = None,
    spacing_from: SpacingFrom = None,
) -> None:
    """Convert a scan or a label map to another format, also RTSTRUCT, DICOM-SEG and 3D Slicer segmentations.

    Each DICOM slice is rescaled and placed by its own header. If a folder has several series, the error message lists
    them, and FOLDER#2 or --series chooses one.

    **Examples**

    - `atlasseg convert dicom_folder scan.nii.gz`
    - `atlasseg convert dicom_folder#2 scan.nii.gz`
    - `atlasseg convert tilted.nii.gz straight.nii.gz --orthogonal`
    - `atlasseg convert rtstruct.dcm labels.nii.gz --labels --reference ct_folder --structures Heart --structures Lung`
    - `atlasseg convert labels.nii.gz rtstruct.dcm --labels --reference ct_folder --format rtstruct --table labels.tsv`
    """
    from atlasseg import io
    from atlasseg.app.convert import convert as convert_file

    labels = labels or (source.is_file() and io.has_structures(source))

    grid = convert_file(
        source,
        out,
        labels=labels,
        orthogonal=orthogonal,
        spacing_from=spacing_source(spacing_from),
        series=series,
        reference=reference,
        structures=structures or (),
        overlap=overlap.value,
        between_slices=between_slices.value,
        format=None if format is None else format.value,
        table=table,
    )
    typer.echo(f"wrote {out}: {grid.describe()}")
