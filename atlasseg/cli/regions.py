"""``atlasseg regions``: segment a volume into regions, post-process a segmentation, number its instances."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import MethodSettings
from atlasseg.methods.stages import STAGES


class Instances(StrEnum):
    """Definition of an instance."""

    components = "components"
    watershed = "watershed"


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("regions")(regions)


def regions(
    volume: Annotated[Path, typer.Argument(metavar="VOLUME", help="The scan.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Label map to write: the regions or, with --segmentation, the corrected segmentation."
        ),
    ],
    method: Annotated[
        str,
        typer.Option("--method", metavar="METHOD", help="Region method; see `atlasseg methods regions`."),
    ] = STAGES["regions"].main_default,
    settings: MethodSettings = None,
    seeds: Annotated[Path | None, typer.Option(help="Label map with seeds (growing) or markers (watershed).")] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Also write a TSV: size, mean, sd and neighbours of regions, or the changes of labels."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for pictures: borders, octree blocks, merge dendrogram.")
    ] = None,
    segmentation: Annotated[
        Path | None,
        typer.Option(help="Label map or probabilities to make consistent with the regions."),
    ] = None,
    votes: Annotated[bool, typer.Option(help="Let the regions vote on the labels of the segmentation.")] = True,
    field_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of neighbouring regions in the vote; 0: none."),
    ] = None,
    min_component_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Reassign components below this fraction of their label's largest one."),
    ] = None,
    largest_part: Annotated[
        str, typer.Option(help="Labels that keep only their largest component: 1,2 or all.", metavar="LABELS")
    ] = "",
    fill_holes: Annotated[str, typer.Option(help="Labels whose holes are filled: 1,2 or all.", metavar="LABELS")] = "",
    removable_labels: Annotated[
        str, typer.Option(help="Labels that the votes may remove: 1,2 or all.", metavar="LABELS")
    ] = "",
    instances: Annotated[
        Path | None, typer.Option(help="Also write a map that numbers the instances of each label (panoptic).")
    ] = None,
    instances_by: Annotated[
        Instances, typer.Option(help="How instances of a label are separated.")
    ] = Instances.components,
    masks: Annotated[Path | None, typer.Option(help="Folder for binary masks, one for each label.")] = None,
) -> None:
    """Partition a volume into homogeneous regions, or make a segmentation consistent with them.

    **Examples**

    - `atlasseg regions scan.nii.gz --out regions.nii.gz --table regions.tsv --pictures pictures/`
    - `atlasseg regions scan.nii.gz --method growing --seeds seeds.nii.gz --set global_difference=2 --out grown.nii.gz`
    - `atlasseg regions scan.nii.gz --segmentation joint.nii.gz --fill-holes all --table changes.tsv --out fit.nii.gz`
    """
    from atlasseg.app import regions as files
    from atlasseg.cli._tables import print_table
    from atlasseg.errors import InputError
    from atlasseg.recipe import Regions

    if segmentation is None:
        if instances is not None or masks is not None:
            raise InputError("--instances and --masks: expected a --segmentation, got none")
        found = files.partition_files(
            volume, out, method=method, settings=settings or (), seeds=seeds, table=table, pictures=pictures
        )
        sizes = files.region_sizes(found.graph)
        typer.echo(
            f"{sizes['regions']:.0f} regions of {sizes['smallest']:.0f} to {sizes['largest']:.0f} voxels "
            f"(median {sizes['median']:.0f})"
        )
        for path in found.written:
            typer.echo(f"wrote {path}")
        return
    if seeds is not None or pictures is not None:
        raise InputError(
            "--seeds and --pictures: expected no --segmentation, since they describe regions. Leave them out"
        )
    result = files.consistent_files(
        volume,
        segmentation,
        out,
        method=method if votes else None,
        settings=settings or (),
        field_weight=Regions.field_weight if field_weight is None else field_weight,
        min_component_fraction=(
            Regions.min_component_fraction if min_component_fraction is None else min_component_fraction
        ),
        largest_part=files.parse_labels(largest_part, "--largest-part"),
        fill_holes=files.parse_labels(fill_holes, "--fill-holes"),
        removable_labels=files.parse_labels(removable_labels, "--removable-labels"),
        changes=table,
    )
    import pandas as pd

    print_table(pd.DataFrame(result.rows()), title=f"{result.voxels_changed} voxels with a new label")
    typer.echo(f"wrote {out}")
    if instances is not None:
        count = files.instance_files(out, instances, by=instances_by.value, masks=masks)
        typer.echo(f"wrote {instances}: {count} instances")
    elif masks is not None:
        raise InputError("--masks: expected --instances as well")
