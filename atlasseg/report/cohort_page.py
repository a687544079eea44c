"""The page on a whole run: every target at a glance, and every structure across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.labels import LabelTable
from atlasseg.report import _html
from atlasseg.report._html import Cell, address
from atlasseg.report.outliers import FEWEST, Measured, Standout, standouts
from atlasseg.report.page import label_colours
from atlasseg.report.strips import Axis, strips

if TYPE_CHECKING:
    import pandas as pd

MOST_REASONS = 3
"""So many of the things by which a target stands out are told; the others are counted."""


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """How one target went.

    Parameters
    ----------
    target : str
        Its id.
    href : str
        Path of its report, seen from the cohort's page; empty where there is none.
    seconds : float
        How long it took.
    error : str
        Why it failed; empty where it did not.
    warnings : int
        How often was warned.
    picture : str
        Its place on the contact sheet, as `figures.contact` makes it.
    volumes, metrics : DataFrame, optional
        As in `TargetReport`.
    predicted : mapping of int to float
        Dice that each label is likely to have, made without a reference.
    similarity : float
        Mean over the atlases that voted, after registration.
    entropy_bits : float
        Mean over the labelled voxels.
    atlases, voted : int
        How many atlases there were, and how many of them voted.
    findings : sequence of (str, str)
        What is implausible about the scan or its registrations: what was compared, and a message.
    """

    target: str
    href: str = ""
    seconds: float = float("nan")
    error: str = ""
    warnings: int = 0
    picture: str = ""
    volumes: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None
    predicted: Mapping[int, float] = field(default_factory=dict)
    similarity: float = float("nan")
    entropy_bits: float = float("nan")
    atlases: int = 0
    voted: int = 0
    findings: Sequence[tuple[str, str]] = ()

    @property
    def quality(self) -> str:
        """What is to be checked, "ok" where nothing is, and nothing for a target that failed."""
        if self.error:
            return ""
        return f"check: {', '.join(kind for kind, _ in self.findings)}" if self.findings else "ok"

    @property
    def predicted_mean(self) -> float:
        """Mean of what is predicted over the labels; NaN where nothing is."""
        known = [value for value in self.predicted.values() if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")


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
    comparison : str
        Sections that compare methods, where several were tried.
    """

    name: str
    fusion: str
    targets: Sequence[TargetSummary]
    table: LabelTable = field(default_factory=LabelTable)
    atlases: int = 0
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    comparison: str = ""


def render_cohort(report: CohortReport) -> str:
    """The page, as HTML that needs no network; the same report gives the same text."""
    values = sorted({int(v) for t in report.targets if t.volumes is not None for v in t.volumes["label"]} - {0})
    found = standouts(_measured(report))
    ordered = sorted(report.targets, key=lambda t: (not t.error, not t.findings, -_farthest(found.get(t.target, ()))))
    body = "".join(
        (
            _header(report, found),
            _targets(report, ordered, found),
            _distributions(report),
            _contact_sheet(ordered, found),
            report.comparison,
            _html.making(report.recipe, report.versions),
        )
    )
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


def _header(report: CohortReport, found: Mapping[str, Sequence[Standout]]) -> str:
    failed = [t for t in report.targets if t.error]
    done = len(report.targets) - len(failed)
    said = f"{_html.count(done, 'target')} segmented"
    if report.atlases:
        said += f" from {_html.count(report.atlases, 'atlas', 'atlases')}"
    said += f" by <em>{escape(report.fusion.replace('_', ' '))}</em> fusion."
    means = [float(np.mean(list(d.values()))) for d in (_of_labels(t, "dice") for t in report.targets) if d]
    if means:
        said += f" Mean Dice {np.mean(means):.3f}; of single targets, {min(means):.3f} to {max(means):.3f}."
    if found:
        said += f" {_html.count(len(found), 'target stands', 'targets stand')} out; see the first rows of the table."
    doubtful = [t for t in report.targets if t.findings and not t.error]
    if doubtful:
        said += f" <strong>{_html.count(len(doubtful), 'target')} to check.</strong>"
    if failed:
        said += f" <strong>{_html.count(len(failed), 'target')} failed.</strong>"
    shown = [("targets done", f"{done} of {len(report.targets)}")]
    if means:
        shown.append(("mean Dice", f"{np.mean(means):.3f}"))
    far = [float(np.mean(list(d.values()))) for d in (_of_labels(t, "hausdorff_95_mm") for t in report.targets) if d]
    if far:
        shown.append(("mean HD95", f"{_html.significant(float(np.mean(far)))} mm"))
    predicted = [t.predicted_mean for t in report.targets if np.isfinite(t.predicted_mean)]
    if predicted:
        shown.append(("mean of predicted Dice", f"{np.mean(predicted):.3f}"))
    took = [t.seconds for t in report.targets if not t.error and np.isfinite(t.seconds)]
    if took:
        shown.append(("median time of a target", _html.duration(float(np.median(took)))))
    listed = "".join(f"<li><strong>{escape(t.target)}</strong>: {escape(t.error)}</li>" for t in failed)
    check = (
        f'<section class="check" aria-labelledby="check"><h2 id="check">Failed</h2><ul>{listed}</ul></section>\n'
        if failed
        else ""
    )
    told = "".join(f"<li>{_link(t)}: {escape(message)}</li>" for t in doubtful for _, message in t.findings)
    if doubtful:
        check += (
            '<section class="check" aria-labelledby="doubtful"><h2 id="doubtful">To check</h2>'
            f"<ul>{told}</ul></section>\n"
        )
    return (
        f'<header>\n<p class="kind">Segmentation of a cohort</p>\n<h1>{escape(report.name)}</h1>\n'
        f'<p class="cover">{said}</p>\n{_html.facts(shown)}{check}</header>\n<main>\n'
    )


def _measured(report: CohortReport) -> list[Measured]:
    """What can make a target stand out."""
    volumes = {t.target: _volumes(t) for t in report.targets if t.volumes is not None}
    labels = sorted({v for of in volumes.values() for v in of})
    measured = []
    for label in labels:
        logs = {t: float(np.log2(of[label])) for t, of in volumes.items() if of.get(label, 0) > 0}
        measured.append(Measured(f"volume of {report.table.name(label)}", logs, "both", "volume"))
    predicted = sorted({v for t in report.targets for v in t.predicted})
    for label in predicted:
        values = {t.target: t.predicted[label] for t in report.targets if label in t.predicted}
        measured.append(Measured(f"predicted Dice of {report.table.name(label)}", values, "low", "predicted label"))
    means = {t.target: t.predicted_mean for t in report.targets}
    return [
        *measured,
        Measured("predicted Dice", means, "low", "predicted"),
        Measured("similarity", {t.target: t.similarity for t in report.targets}, "low", "similarity"),
        Measured("uncertainty", {t.target: t.entropy_bits for t in report.targets}, "high", "uncertainty"),
    ]


def _farthest(found: Sequence[Standout]) -> float:
    return max((abs(s.score) for s in found), default=0.0)


def _reason(s: Standout) -> str:
    if s.what.startswith("volume of"):
        said = f"{_html.significant(2 ** (s.value - s.median), 2)} times the median"
    elif s.what == "uncertainty":
        said = f"{s.value:.2f} bit, median {s.median:.2f}"
    else:
        said = f"{s.value:.2f}, median {s.median:.2f}"
    return f"{escape(s.what)} {said}"


def _reasons(found: Sequence[Standout]) -> str:
    told = "; ".join(_reason(s) for s in found[:MOST_REASONS])
    return told + (f"; and {len(found) - MOST_REASONS} more" if len(found) > MOST_REASONS else "")


def _link(t: TargetSummary) -> str:
    return f'<a href="{address(t.href)}">{escape(t.target)}</a>' if t.href and not t.error else escape(t.target)


def _targets(report: CohortReport, ordered: Sequence[TargetSummary], found: Mapping[str, Sequence[Standout]]) -> str:
    scored = any(t.metrics is not None for t in ordered)
    guessed = any(t.predicted for t in ordered)
    heads = [("Target", False), ("Quality", False), ("Stands out by", False)]
    heads += [("Mean Dice", True), ("Worst structure", False), ("Mean HD95, mm", True)] if scored else []
    heads += [("Predicted Dice", True)] if guessed else []
    heads += [("Similarity", True), ("Uncertainty, bit", True), ("Labelled", True), ("Atlases voted", True)]
    heads += [("Warnings", True), ("Seconds", True)]
    rows = []
    for t in ordered:
        why = found.get(t.target, ())
        reason = f'<span class="note">failed</span> {escape(t.error)}' if t.error else _reasons(why)
        quality = f'<span class="note">{escape(t.quality)}</span>' if t.findings else escape(t.quality)
        cells = [
            Cell(_link(t), t.target),
            Cell(quality, t.quality),
            Cell(f'<div class="why">{reason}</div>', f"{_farthest(why):.4g}"),
        ]
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
        if guessed:
            cells.append(_html.fixed(t.predicted_mean, 3, part=t.predicted_mean if t.predicted else None))
        cells += [_html.fixed(t.similarity, 3), _html.fixed(t.entropy_bits, 3)]
        total = sum(_volumes(t).values())
        cells.append(Cell(_html.volume(total), f"{total:.6g}", numeric=True) if t.volumes is not None else Cell(""))
        cells.append(Cell(f"{t.voted} of {t.atlases}", t.voted, numeric=True) if t.atlases else Cell(""))
        cells.append(Cell(str(t.warnings), t.warnings, numeric=True))
        cells.append(_html.fixed(t.seconds, 1))
        rows.append((cells, bool(t.error) or bool(why) or bool(t.findings)))
    judged = sum(t.volumes is not None for t in ordered) >= FEWEST
    about = (
        "First those that failed, then those that stand out, the farthest first: by the volume of a structure, by "
        "similarity to the atlases, by uncertainty, or by predicted Dice, measured in robust standard deviations from "
        "the median of the cohort."
        if judged
        else f"Of fewer than {FEWEST} targets none can stand out."
    )
    if guessed:
        about += (
            " Predicted Dice needs no reference: it is what the agreement of the atlases lets expect. It finds what "
            "went wrong and what is hard; it is no measurement, and hardly ranks targets that went equally well."
        )
    return (
        '<section class="overview" aria-labelledby="targets"><h2 id="targets">Targets</h2>\n'
        f"<p>{about} Column heads sort.</p>\n{_html.table(heads, rows)}</section>\n"
    )


def _distributions(report: CohortReport) -> str:
    """Each structure across the targets: Dice where there is a reference, predicted Dice, volume against the median."""
    dice = {t.target: _of_labels(t, "dice") for t in report.targets}
    volumes = {t.target: {v: mm3 for v, mm3 in _volumes(t).items() if mm3 > 0} for t in report.targets}
    medians = {
        v: float(np.median([of[v] for of in volumes.values() if v in of]))
        for v in {v for of in volumes.values() for v in of}
    }
    ratios = {t: {v: float(np.log2(mm3 / medians[v])) for v, mm3 in of.items()} for t, of in volumes.items()}
    fifths = [(x / 5, f"{x / 5:g}") for x in range(6)]
    share = Axis(0.0, 1.0, fifths, lambda v: f"{v:.3f}")
    octaves = [(-2.0, "\u00bc"), (-1.0, "\u00bd"), (0.0, "1"), (1.0, "2"), (2.0, "4")]
    times = Axis(-2.0, 2.0, octaves, lambda v: f"{2**v:.2f} times the median")
    every = (
        ("dice", "Dice of each structure", "Against the reference.", dice, share),
        (
            "predicted",
            "Predicted Dice of each structure",
            "What the agreement of the atlases lets expect.",
            {t.target: t.predicted for t in report.targets},
            share,
        ),
        (
            "volumes",
            "Volume of each structure",
            "How many times the cohort's median a structure measures. Stray dots are worth a look.",
            ratios if sum(map(bool, volumes.values())) > 1 else {},
            times,
        ),
    )
    hrefs = {t.target: t.href for t in report.targets}
    parts = []
    for key, title, about, values, axis in every:
        drawn = strips(values, table=report.table, axis=axis, hrefs=hrefs, title=title)
        if drawn is not None:
            parts.append(
                f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>\n<p>{about} {drawn.about}</p>\n'
                f'<figure class="scroll">{drawn.svg}</figure></section>\n'
            )
    return "".join(parts)


def _contact_sheet(ordered: Sequence[TargetSummary], found: Mapping[str, Sequence[Standout]]) -> str:
    pictured = [t for t in ordered if t.picture]
    if not pictured:
        return ""
    cards = "".join(
        f"<li{' class=flag' if t.target in found else ''}><figure>{t.picture}<figcaption>{_link(t)}"
        f"{f' predicted Dice {t.predicted_mean:.2f}' if t.predicted else ''}</figcaption></figure></li>\n"
        for t in pictured
    )
    return (
        '<section aria-labelledby="sheet"><h2 id="sheet">Contact sheet</h2>\n'
        "<p>Of each target the axial, coronal and sagittal slice through the middle of what is labelled, in the order "
        "of the table. Radiological convention: the body's right is on the left of the first two.</p>\n"
        f'<ul class="sheet">\n{cards}</ul></section>\n'
    )
