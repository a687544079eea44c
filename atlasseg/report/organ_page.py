"""Report on the organ mask of one scan: the mask on the scan, where it is uncertain, and the atlases it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atlasseg import templating
from atlasseg.labels import LabelTable
from atlasseg.organ_mask import OrganMask
from atlasseg.report import figures
from atlasseg.report.sections import Number, label_colors, table_section, voxel_size
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class OrganReport:
    """Contents of the report on the organ mask of one scan.

    `labels` is the mask as a label map, `table` names its label, `atlases` has the columns atlas, similarity, used and
    reason, `dice` is that with a reference; the others are as in `report.page.TargetReport`.
    """

    target: str
    organ: str
    image: Image
    found: OrganMask
    labels: LabelMap
    table: LabelTable
    atlases: pd.DataFrame
    dice: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def render(report: OrganReport) -> str:
    """Render the page, as HTML that holds its pictures and needs no network; the same report gives the same text."""
    found, entropy = report.found, report.found.probabilities.entropy()
    used = int((report.atlases["used"] == "yes").sum())
    facts = [
        ("volume", f"{found.volume_ml:.4g} ml"),
        ("atlases", f"{used} of {len(report.atlases)}"),
        ("voxels of the scan, mm", voxel_size(report.image.spacing_mm)),
    ]
    if report.dice is not None:
        facts.insert(0, ("Dice with the reference", f"{report.dice:.4f}"))
    if "total" in report.seconds:
        facts.append(("time", templating.duration(report.seconds["total"])))
    rows = [
        (row["atlas"], Number(row["similarity"], 3), row["used"], row["reason"])
        for row in report.atlases.to_dict("records")
    ]
    empty = not found.mask.array.any()
    return templating.render(
        "organ.html.j2",
        target=report.target,
        organ=report.organ,
        versions=report.versions,
        recipe="",
        warnings=report.warnings,
        colors=label_colors((entry.value for entry in report.table), report.table),
        facts=facts,
        volume_mm3=1000 * found.volume_ml,
        panels=[] if empty else figures.mosaic(report.image, report.labels, table=report.table, entropy=entropy),
        look=figures.where_to_look(report.image, report.labels, entropy, table=report.table),
        atlases=table_section(
            "atlases",
            "Atlases",
            ("Atlas", "Similarity", "Used", "Reason"),
            rows,
            text="Similarity is the mean local correlation with the scan around the organ, 0 to 1.",
        ),
    )
