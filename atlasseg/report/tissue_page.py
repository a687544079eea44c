"""The report on the tissues of one scan: what was made of it, the field that was divided out, and the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.labels import LabelTable
from atlasseg.report import _html, figures
from atlasseg.report._html import Cell
from atlasseg.report.page import label_colours
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd

BINS = 120
"""Of the histograms."""
SHOWN_PERCENTILES = (0.2, 99.8)
"""Intensities that the histograms span."""


@dataclass(frozen=True, eq=False)
class TissueReport:
    """What is to be said of the tissues of one scan.

    `tissues` is a `tissues.Tissues`; `volumes` has a row a class, see `app.tissue.volume_rows`; the others are as in
    `report.page.TargetReport`.
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


def render(report: TissueReport) -> str:
    """The page, as HTML that holds its pictures and needs no network; the same report gives the same text."""
    values = [entry.value for entry in report.table]
    parts = [
        _header(report),
        _tissues(report),
        _bias(report),
        _classes(report),
        _html.making(report.recipe, report.versions),
    ]
    return _html.document(
        f"{report.target} · tissues · atlasseg", "".join(parts), style=label_colours(values, report.table)
    )


def _header(report: TissueReport) -> str:
    count = len(report.table)
    bias = report.tissues.bias.channels[report.tissues.labels.array > 0]
    total_mm3 = float(report.volumes["volume_mm3"].sum())
    said = (
        f"{_html.count(count, 'class', 'classes')}, {_html.volume(total_mm3)} in all, by the model "
        f"<em>{escape(report.model.replace('_', ' '))}</em>."
    )
    facts = [
        ("classes", str(count)),
        ("range of the bias field", f"{100 * float(bias.max() - bias.min()):.0f} %"),
        ("voxels of the scan, mm", " × ".join(f"{mm:.3g}" for mm in report.image.spacing_mm)),
    ]
    if "total" in report.seconds:
        facts.append(("time", _html.duration(report.seconds["total"])))
    warned = "".join(f"<li>{escape(w)}</li>" for w in report.warnings)
    check = (
        f'<section class="check" aria-labelledby="check"><h2 id="check">To check</h2><ul>{warned}</ul></section>\n'
        if warned
        else ""
    )
    return (
        f'<header>\n<p class="kind">Tissue report</p>\n<h1>{escape(report.target)}</h1>\n'
        f'<p class="cover">{said}</p>\n{_html.facts(facts)}{check}</header>\n<main>\n'
    )


def _tissues(report: TissueReport) -> str:
    panels = figures.mosaic(
        report.image, report.tissues.labels, table=report.table, entropy=report.tissues.probabilities.entropy()
    )
    choices = (("outlines", "outlines", True), ("fill", "filled", True), ("entropy", "uncertainty", False))
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{key}"{" checked" if on else ""}>{said}</label>'
        for key, said, on in choices
    )
    rows = "".join(_plane(plane.capitalize(), [p for p in panels if p.plane == plane], 5) for plane in figures.PLANES)
    return (
        '<section aria-labelledby="pictures"><h2 id="pictures">Tissues</h2>\n'
        "<p>Radiological convention: the body's right is on the left of axial and coronal slices.</p>\n"
        f'<fieldset class="show"><legend>Show</legend>{boxes}</fieldset>\n<div class="choose">\n'
        f"{rows}</div></section>\n"
    )


def _bias(report: TissueReport) -> str:
    """The scan, its bias field and the scan without it, one slice of each plane."""
    tissues = report.tissues
    rows = []
    for said, image in (
        ("The scan", report.image),
        ("Its bias field", _within(tissues.bias, tissues.labels)),
        ("Without the bias field", tissues.corrected),
    ):
        panels = figures.mosaic(image, tissues.labels, table=report.table, columns=1, outlined=False)
        rows.append(_plane(said, panels, 3))
    return (
        '<section aria-labelledby="bias"><h2 id="bias">Bias field</h2>\n'
        "<p>The scan is divided by the field. Each picture has its own window of grey.</p>\n"
        f"{''.join(rows)}</section>\n"
    )


def _within(bias: Image, labels: LabelMap) -> Image:
    """The field where it is known, and its least value elsewhere."""
    inside = labels.array > 0
    first = bias.channels[..., 0]
    return replace(bias, array=np.where(inside, first, first[inside].min()))


def _plane(title: str, panels: Sequence[figures.Panel], columns: int) -> str:
    shown = "".join(f"<figure>{p.svg}<figcaption>{p.place}</figcaption></figure>\n" for p in panels)
    return f'<div class="plane" style="--columns:{columns}"><h3>{escape(title)}</h3>\n{shown}</div>\n'


def _classes(report: TissueReport) -> str:
    tissues, volumes = report.tissues, report.volumes
    channels = tissues.means.shape[1]
    largest = float(max(volumes["volume_mm3"].max(), volumes["fraction_volume_mm3"].max(), 1e-9))
    heads = [("Class", False), ("Label", True), ("Volume, ml", True), ("By parts of voxels, ml", True)]
    for c in range(channels):
        of = f" {c + 1}" if channels > 1 else ""
        heads += [(f"Mean{of}", True), (f"SD{of}", True)]
    rows = []
    for n, row in enumerate(volumes.to_dict("records")):
        v, name = int(row["label"]), str(row["name"])
        title = (
            f'<button type="button" data-label="l{v}" aria-pressed="false">'
            f'<span class="swatch l{v}" aria-hidden="true"></span>{escape(name)}</button>'
        )
        cells = [
            Cell(title, name),
            Cell(str(v), v, numeric=True),
            _html.number(row["volume_mm3"] / 1000, part=row["volume_mm3"] / largest),
            _html.number(row["fraction_volume_mm3"] / 1000, part=row["fraction_volume_mm3"] / largest),
        ]
        for c in range(channels):
            cells += [_html.number(float(tissues.means[n, c])), _html.number(float(tissues.sds[n, c]))]
        rows.append((cells, row["voxels"] == 0))
    pictures = "".join(_histogram(report, c) for c in range(channels))
    return (
        '<section aria-labelledby="classes"><h2 id="classes">Classes</h2>\n'
        f"{_html.table(heads, rows)}\n"
        "<p>Histogram of the region without bias (grey), and what each class has of it.</p>\n"
        f"{pictures}</section>\n"
    )


def _histogram(report: TissueReport, channel: int) -> str:
    """Counts of the intensities without bias, and of each class's share in them, as SVG."""
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

    curves = [f'<polygon points="0,100 {line(total)} 400,100" fill="currentColor" fill-opacity=".18"/>']
    for n, entry in enumerate(report.table):
        share = np.histogram(values, edges, weights=report.tissues.probabilities.probability(entry.value)[inside])[0]
        curves.append(
            f'<polyline points="{line(share)}" fill="none" stroke-width="1.6" '
            f'stroke="{figures.drawn_color(report.table.color(entry.value))}">'
            f"<title>{escape(entry.name)}, mean {report.tissues.means[n, channel]:.4g}</title></polyline>"
        )
    return (
        f'<figure><svg viewBox="0 0 400 104" role="img" aria-label="Histogram of intensities" style="max-width:44rem">'
        f"{''.join(curves)}<path d='M0 100.5H400' stroke='currentColor'/></svg>"
        f"<figcaption>{_html.significant(float(low))} to {_html.significant(float(high))}</figcaption></figure>\n"
    )
