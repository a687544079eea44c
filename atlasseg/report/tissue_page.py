"""HTML page of the tissues of one scan: classes, bias field and histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg import templating
from atlasseg.labels import LabelTable
from atlasseg.report import figures
from atlasseg.report.sections import Number, label_colors, voxel_size
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TissueReport", "render"]

BINS = 120
"""Number of bins of the histograms."""
SHOWN_PERCENTILES = (0.2, 99.8)
"""Percentiles of the intensities at which the histograms begin and end."""


@dataclass(frozen=True, eq=False)
class TissueReport:
    """Contents of the page of the tissues of one scan.

    Parameters
    ----------
    target : str
        Id of the scan.
    model : str
        Name of the tissue model.
    image : Image
        The scan.
    tissues : Tissues
        Classes of the scan.
    table : LabelTable
        Names and colours of the classes.
    volumes : DataFrame
        One row per class, from `app.tissue.volume_rows`.
    naming : str
        How the classes were named, from `tissues.naming`.
    seconds, recipe, warnings, versions
        As for `report.page.TargetReport`.
    """

    target: str
    model: str
    image: Image
    tissues: Any
    table: LabelTable
    volumes: pd.DataFrame
    seconds: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    naming: str = ""


def render(report: TissueReport) -> str:
    """Render the page as HTML that contains its pictures and needs no network. Equal reports give equal text.

    Parameters
    ----------
    report : TissueReport
        Contents of the page.

    Returns
    -------
    str
        HTML.
    """
    tissues, channels = report.tissues, range(report.tissues.means.shape[1])
    bias = tissues.bias.channels[tissues.labels.array > 0]
    facts = [
        ("classes", str(len(report.table))),
        ("range of the bias field", f"{100 * float(bias.max() - bias.min()):.0f} %"),
        ("voxels of the scan, mm", voxel_size(report.image.spacing_mm)),
    ]
    if "total" in report.seconds:
        facts.append(("time", templating.duration(report.seconds["total"])))

    def slices(image: Image) -> list[figures.Panel]:
        return figures.mosaic(image, tissues.labels, table=report.table, columns=1, outlined=False)

    return templating.render(
        "tissue.html.j2",
        target=report.target,
        model=report.model,
        naming=report.naming,
        recipe=report.recipe,
        versions=report.versions,
        warnings=report.warnings,
        colors=label_colors((entry.value for entry in report.table), report.table),
        facts=facts,
        volume_mm3=float(report.volumes["volume_mm3"].sum()),
        panels=figures.mosaic(
            report.image, tissues.labels, table=report.table, entropy=tissues.probabilities.entropy()
        ),
        before=slices(report.image),
        bias=slices(_within(tissues.bias, tissues.labels)),
        after=slices(tissues.corrected),
        channels=[f" {c + 1}" for c in channels] if len(channels) > 1 else [""],
        classes=_classes(report),
        histograms=[_histogram(report, c) for c in channels],
    )


def _within(bias: Image, labels: LabelMap) -> Image:
    """The bias field inside the labels, and its smallest value elsewhere."""
    inside = labels.array > 0
    first = bias.channels[..., 0]
    return replace(bias, array=np.where(inside, first, first[inside].min()))


def _classes(report: TissueReport) -> list[dict[str, Any]]:
    """Make the rows of the table of classes."""
    tissues, volumes = report.tissues, report.volumes
    columns = ("volume_mm3", "fraction_volume_mm3")
    largest = float(max(volumes[list(columns)].to_numpy().max(), 1e-9))
    rows = []
    for n, row in enumerate(volumes.to_dict("records")):
        shown = [Number(row[column] / 1000, part=row[column] / largest) for column in columns]
        for mean, sd in zip(tissues.means[n], tissues.sds[n], strict=True):
            shown += [Number(float(mean)), Number(float(sd))]
        rows.append({"label": int(row["label"]), "name": row["name"], "empty": row["voxels"] == 0, "figures": shown})
    return rows


def _histogram(report: TissueReport, channel: int) -> dict[str, Any]:
    """Histogram of the bias-corrected intensities, and the share of each class, as points of an SVG."""
    labels = report.tissues.labels.array
    inside = labels > 0
    values = report.tissues.corrected.channels[..., channel][inside]
    low, high = np.percentile(values, SHOWN_PERCENTILES)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    total = np.histogram(values, edges)[0]
    top = max(int(total.max()), 1)

    def line(counts: NDArray[Any]) -> str:
        heights = 100 - 96 * counts / top
        return " ".join(f"{400 * (n + 0.5) / BINS:.1f},{h:.1f}" for n, h in enumerate(heights))

    curves = []
    for n, entry in enumerate(report.table):
        share = np.histogram(values, edges, weights=report.tissues.probabilities.probability(entry.value)[inside])[0]
        curves.append(
            {
                "name": entry.name,
                "color": figures.drawn_color(report.table.color(entry.value)),
                "mean": report.tissues.means[n, channel],
                "points": line(share),
            }
        )
    return {"total": line(total), "curves": curves, "low": float(low), "high": float(high)}
