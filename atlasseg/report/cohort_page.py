"""The page on a whole run: every target at a glance, and every structure across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.labels import LabelTable
from atlasseg.report import _html
from atlasseg.report._html import Cell
from atlasseg.report.page import label_colours

if TYPE_CHECKING:
    import pandas as pd

MOST_STRIPS = 60
"""Structures drawn one by one; of more, those that differ most between targets."""


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """How one target went.

    Parameters
    ----------
    target : str
        Its id.
    href : str
        Address of its report, seen from the cohort's page; empty where there is none.
    seconds : float
        How long it took.
    error : str
        Why it failed; empty where it did not.
    warnings : int
        How often was warned.
    thumbnail : str
        SVG of a slice, as `figures.thumbnail` makes it.
    volumes, metrics : DataFrame, optional
        As in `TargetReport`.
    """

    target: str
    href: str = ""
    seconds: float = float("nan")
    error: str = ""
    warnings: int = 0
    thumbnail: str = ""
    volumes: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None


@dataclass(frozen=True, eq=False)
class CohortReport:
    """What is to be said of a run.

    Parameters
    ----------
    name : str
        Of the recipe.
    fusion : str
        Name of the fusion method.
    targets : sequence of TargetSummary
        In the order of the run.
    table : LabelTable
        Names and colours.
    atlases : int
        Number of atlases in the library.
    recipe : str
        Its text.
    versions : mapping
        Version of each piece of software.
    """

    name: str
    fusion: str
    targets: Sequence[TargetSummary]
    table: LabelTable = field(default_factory=LabelTable)
    atlases: int = 0
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def render_cohort(report: CohortReport) -> str:
    """The page, as HTML that needs no network; the same report gives the same text."""
    values = sorted({int(v) for t in report.targets if t.volumes is not None for v in t.volumes["label"]} - {0})
    body = "".join((_header(report), _targets(report), _strips(report), _html.making(report.recipe, report.versions)))
    return _html.document(f"{report.name} \u00b7 atlasseg", body, style=label_colours(values, report.table))


def _of_labels(target: TargetSummary, metric: str) -> dict[int, float]:
    if target.metrics is None:
        return {}
    rows = target.metrics[target.metrics["label"].notna() & (target.metrics["metric"] == metric)]
    return {int(label): float(value) for label, value in zip(rows["label"], rows["value"], strict=True)}


def _volumes(target: TargetSummary) -> dict[int, float]:
    if target.volumes is None:
        return {}
    return {int(v): float(mm3) for v, mm3 in zip(target.volumes["label"], target.volumes["volume_mm3"], strict=True)}


def _header(report: CohortReport) -> str:
    failed = [t for t in report.targets if t.error]
    done = len(report.targets) - len(failed)
    said = f"{_html.count(done, 'target')} segmented"
    if report.atlases:
        said += f" from {_html.count(report.atlases, 'atlas', 'atlases')}"
    said += f" by <em>{escape(report.fusion.replace('_', ' '))}</em> fusion."
    means = [float(np.mean(list(d.values()))) for d in (_of_labels(t, "dice") for t in report.targets) if d]
    if means:
        said += f" Mean Dice {np.mean(means):.3f}; of single targets, {min(means):.3f} to {max(means):.3f}."
    if failed:
        said += f" <strong>{_html.count(len(failed), 'target')} failed.</strong>"
    shown = [("targets done", f"{done} of {len(report.targets)}")]
    if means:
        shown.append(("mean Dice", f"{np.mean(means):.3f}"))
    far = [float(np.mean(list(d.values()))) for d in (_of_labels(t, "hausdorff_95_mm") for t in report.targets) if d]
    if far:
        shown.append(("mean HD95", f"{_html.significant(float(np.mean(far)))} mm"))
    took = [t.seconds for t in report.targets if not t.error and np.isfinite(t.seconds)]
    if took:
        shown.append(("median time of a target", _html.duration(float(np.median(took)))))
    listed = "".join(f"<li><strong>{escape(t.target)}</strong>: {escape(t.error)}</li>" for t in failed)
    check = (
        f'<section class="check" aria-labelledby="check"><h2 id="check">Failed</h2><ul>{listed}</ul></section>\n'
        if failed
        else ""
    )
    return (
        f'<header>\n<p class="kind">Segmentation of a cohort</p>\n<h1>{escape(report.name)}</h1>\n'
        f'<p class="cover">{said}</p>\n{_html.facts(shown)}{check}</header>\n<main>\n'
    )


def _targets(report: CohortReport) -> str:
    scored = any(t.metrics is not None for t in report.targets)
    pictured = any(t.thumbnail for t in report.targets)
    heads = [("Target", False)]
    heads += [("Slice", False)] if pictured else []
    heads += [("Mean Dice", True), ("Worst structure", False), ("Mean HD95, mm", True)] if scored else []
    heads += [("Labelled", True), ("Warnings", True), ("Seconds", True), ("Result", False)]
    rows = []
    for t in report.targets:
        name = f'<a href="{escape(t.href)}">{escape(t.target)}</a>' if t.href and not t.error else escape(t.target)
        cells = [Cell(name, t.target)]
        if pictured:
            cells.append(Cell(f'<div class="thumb">{t.thumbnail}</div>' if t.thumbnail else ""))
        if scored:
            dice, far = _of_labels(t, "dice"), _of_labels(t, "hausdorff_95_mm")
            mean = float(np.mean(list(dice.values()))) if dice else float("nan")
            cells.append(_html.fixed(mean, 3, part=mean if dice else None))
            worst = min(dice, key=lambda v: (dice[v], v), default=None)
            cells.append(
                Cell("")
                if worst is None
                else Cell(f"{escape(report.table.name(worst))} {dice[worst]:.3f}", f"{dice[worst]:.6f}")
            )
            cells.append(_html.fixed(float(np.mean(list(far.values()))) if far else float("nan"), 2))
        total = sum(_volumes(t).values())
        cells.append(Cell(_html.volume(total), f"{total:.6g}", numeric=True) if t.volumes is not None else Cell(""))
        cells.append(Cell(str(t.warnings), t.warnings, numeric=True))
        cells.append(_html.fixed(t.seconds, 1))
        cells.append(Cell('<span class="note">failed</span>', "failed") if t.error else Cell("done"))
        rows.append((cells, bool(t.error)))
    return (
        '<section aria-labelledby="targets"><h2 id="targets">Targets</h2>\n'
        f"<p class=hint>Column heads sort.</p>\n{_html.table(heads, rows)}</section>\n"
    )


def _strips(report: CohortReport) -> str:
    """Each structure across the targets: Dice where there is a reference, else volume against the cohort's median."""
    dice = [(t, _of_labels(t, "dice")) for t in report.targets]
    scored = [(t, d) for t, d in dice if d]
    if scored:
        title, about = "Dice of each structure", "A dot is a target, the line their median."
        drawn = _strip_plot(report, scored, 0.0, 1.0, [(x / 5, f"{x / 5:g}") for x in range(6)])
    else:
        measured = [(t, _volumes(t)) for t in report.targets]
        measured = [(t, {v: mm3 for v, mm3 in d.items() if mm3 > 0}) for t, d in measured if d]
        if len(measured) < 2:
            return ""
        medians = {
            v: float(np.median([d[v] for _, d in measured if v in d])) for v in {v for _, d in measured for v in d}
        }
        ratios = [(t, {v: float(np.log2(mm3 / medians[v])) for v, mm3 in d.items()}) for t, d in measured]
        title = "Volume of each structure"
        about = (
            "A dot is a target: how many times the cohort's median its structure measures. Stray dots are worth a look."
        )
        drawn = _strip_plot(report, ratios, -2.0, 2.0, [(-2, "\u00bc"), (-1, "\u00bd"), (0, "1"), (1, "2"), (2, "4")])
    return (
        f'<section aria-labelledby="strips"><h2 id="strips">{title}</h2>\n<p>{about}{drawn[1]}</p>\n'
        f"<figure>{drawn[0]}</figure></section>\n"
    )


def _strip_plot(
    report: CohortReport,
    measured: Sequence[tuple[TargetSummary, Mapping[int, float]]],
    low: float,
    high: float,
    ticks: Sequence[tuple[float, str]],
) -> tuple[str, str]:
    """An SVG of one row a structure, values cut to `low`..`high`, and a remark on what is left out."""
    by_label: dict[int, list[tuple[TargetSummary, float]]] = {}
    for t, values in measured:
        for label, value in values.items():
            by_label.setdefault(label, []).append((t, value))
    remark = ""
    labels = sorted(by_label)
    if len(labels) > MOST_STRIPS:
        remark = f" Shown are the {MOST_STRIPS} of {len(labels)} structures that differ most between targets."
        labels = sorted(sorted(labels, key=lambda v: (-float(np.ptp([x for _, x in by_label[v]])), v))[:MOST_STRIPS])
    left, right, row, top = 250, 970, 20, 24
    height = top + row * len(labels) + 6

    def across(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    parts = [f'<svg class="strip" viewBox="0 0 1000 {height}" role="group" aria-label="One row a structure">']
    for value, said in ticks:
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 6}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="9">{said}</text>')
    for n, label in enumerate(labels):
        y = top + row * (n + 0.5)
        name = report.table.name(label)
        parts.append(f'<text x="0" y="{y:.1f}">{escape(name if len(name) <= 36 else name[:35] + chr(0x2026))}</text>')
        middle = across(float(np.median([v for _, v in by_label[label]])))
        for t, value in by_label[label]:
            shown = f"{2**value:.2f} times the median" if low < 0 else f"{value:.3f}"
            told = f"<title>{escape(t.target)}: {shown}</title>"
            dot = f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="4.5">{told}</circle>'
            parts.append(f'<a href="{escape(t.href)}" aria-label="{escape(t.target)}">{dot}</a>' if t.href else dot)
        parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}"/>')
    return "".join([*parts, "</svg>"]), remark
