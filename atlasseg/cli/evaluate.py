"""``atlasseg evaluate``: evaluate a segmentation against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import OverlapName, SpacingFrom, StructureNames, StructureOverlap, spacing_source


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("evaluate")(evaluate)


def evaluate(
    segmentation: Annotated[Path, typer.Argument(help="Label map to measure.")],
    reference: Annotated[Path, typer.Argument(help="Reference: label map on the same grid, RTSTRUCT or DICOM-SEG.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Label table with names, and with groups of labels to measure as one structure."),
    ] = None,
    tolerance_mm: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="Tolerance of the surface Dice in mm. Default: as in recipes."),
    ] = None,
    structures: StructureNames = None,
    overlap: StructureOverlap = OverlapName.refuse,
    spacing_from: SpacingFrom = None,
    out: Annotated[Path | None, typer.Option("--out", help="File for the long table (label, metric, value).")] = None,
) -> None:
    """Measure a segmentation against a reference: overlap, surface distances, volumes.

    A label that one of the two lacks gets the worst value of each measure (overlaps 0, distances the largest in the
    grid) and counts in the mean. A label that both lack has no row. Where neither has any label (empty against empty),
    no measure is defined: every value is NaN, and a note says so.

    `surface_dice_1mm` is the surface Dice (NSD) of the field, by area of the surface; `surface_dice_voxels_1mm` counts
    surface voxels.

    The structures of an RTSTRUCT or DICOM-SEG get the values of the structures with the same name in --labels, or else
    in the label table beside the other file (SEG.tsv), or else their numbers in the file.

    **Examples**

    - `atlasseg evaluate out/t1/t1_desc-joint_dseg.nii.gz targets/labels/t1.nii.gz --out t1.tsv`
    - `atlasseg evaluate out/p1/p1_desc-joint_dseg.nii.gz p1/rtstruct.dcm --labels labels.tsv`
    """
    from atlasseg.api.pairs import read_pair
    from atlasseg.app.outputs import metrics_table, write_table
    from atlasseg.cli._tables import print_table
    from atlasseg.evaluation import evaluate as measure
    from atlasseg.io import read_label_table
    from atlasseg.recipe import Evaluation

    if tolerance_mm is None:
        tolerance_mm = Evaluation.surface_tolerance_mm
    sizes = spacing_source(spacing_from)
    table = None if labels is None else read_label_table(labels)
    pair = read_pair(
        segmentation, reference, table=table, structures=structures, overlap=overlap.value, spacing_from=sizes
    )
    scores = measure(
        pair.segmentation,
        pair.reference,
        table=pair.table,
        not_annotated=pair.not_annotated,
        surface_tolerance_mm=tolerance_mm,
    )
    if out is not None:
        write_table(metrics_table(scores), out)
    wide = scores.to_frame(wide=True)
    wide["label"] = wide["label"].astype("object").where(wide["label"].notna(), "")
    print_table(wide)
    for note in scores.notes:
        typer.echo(f"note: {note}")
