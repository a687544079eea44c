"""HTML page of a run: a table of all targets, and the distribution of each structure over the targets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasseg import templating
from atlasseg.labels import LabelTable
from atlasseg.report.outliers import FEWEST, Measured, Standout, standouts
from atlasseg.report.sections import Number, label_colors
from atlasseg.report.strips import Axis, strips

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

MOST_REASONS = 3
"""Maximum number of reasons listed for an outlying target. The other reasons are counted."""


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """Result of one target, as shown on the page of the run.

    Parameters
    ----------
    target : str
        Id of the target.
    href : str
        Path of its report, relative to the page of the run; empty if there is none.
    seconds : float
        Duration of the segmentation, in seconds.
    error : str
        Reason of the failure; empty if the target did not fail.
    warnings : int
        Number of warnings.
    picture : Markup
        Its picture for the contact sheet, from `figures.contact`; empty if there is none.
    volumes, metrics : DataFrame, optional
        As in `TargetReport`.
    predicted : mapping of int to float
        Predicted Dice of each label, computed without a reference.
    similarity : float
        Similarity of scan and atlases after registration, mean over the atlases that voted.
    entropy_bits : float
        Mean entropy over the labelled voxels, in bits.
    atlases, voted : int
        Number of atlases, and number of atlases that voted.
    findings : sequence of (str, str)
        Implausible properties of the scan or of its registrations: name of the check, and message.
    """

    target: str
    href: str = ""
    seconds: float = float("nan")
    error: str = ""
    warnings: int = 0
    picture: Markup | str = ""
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
        """``check:`` and the names of the checks with findings, ``ok`` without findings, empty if the target failed."""
        if self.error:
            return ""
        return f"check: {', '.join(kind for kind, _ in self.findings)}" if self.findings else "ok"

    @property
    def predicted_mean(self) -> float:
        """Mean predicted Dice over the labels; NaN if there is no prediction."""
        known = [value for value in self.predicted.values() if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True, eq=False)
class CohortReport:
    """Contents of the page of a run.

    Parameters
    ----------
    name : str
        Name of the recipe.
    fusion : str
        Name of the fusion method.
    targets : sequence of TargetSummary
        In the order of the run.
    table : LabelTable
        Names and colours.
    atlases : int
        Number of atlases in the library.
    recipe : str
        Text of the recipe.
    versions : mapping
        Version of each piece of software.
    comparison : Markup
        Comparison of methods, from `comparison_sections`; empty if only one method was used.
    """

    name: str
    fusion: str
    targets: Sequence[TargetSummary]
    table: LabelTable = field(default_factory=LabelTable)
    atlases: int = 0
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    comparison: Markup | str = ""


def render_cohort(report: CohortReport) -> str:
    """Render the page of a run as HTML that needs no network. Equal reports give equal text.

    Parameters
    ----------
    report : CohortReport
        Contents of the page.

    Returns
    -------
    str
        HTML.
    """
    values = {int(v) for t in report.targets if t.volumes is not None for v in t.volumes["label"]} - {0}
    found = standouts(_measured(report))
    rows = [_row(target, found.get(target.target, ()), report.table) for target in report.targets]
    rows.sort(key=lambda row: (not row["summary"].error, not row["summary"].findings, -row["farthest"]))
    means = [row["dice"].value for row in rows if np.isfinite(row["dice"].value)]
    mean_dice = float(np.mean(means)) if means else None
    judged = sum(t.volumes is not None for t in report.targets) >= FEWEST
    return templating.render(
        "cohort.html.j2",
        name=report.name,
        fusion=report.fusion,
        atlases=report.atlases,
        recipe=report.recipe,
        versions=report.versions,
        colors=label_colors(values, report.table),
        facts=_facts(report, rows, mean_dice),
        failed=[target for target in report.targets if target.error],
        doubtful=[target for target in report.targets if target.findings and not target.error],
        means=means,
        mean_dice=mean_dice,
        standouts=len(found),
        rows=rows,
        scored=any(t.metrics is not None for t in report.targets),
        predicted=any(t.predicted for t in report.targets),
        fewest=None if judged else FEWEST,
        most_reasons=MOST_REASONS,
        distributions=_distributions(report),
        comparison=report.comparison,
    )


def _of_labels(target: TargetSummary, metric: str) -> dict[int, float]:
    if target.metrics is None:
        return {}
    rows = target.metrics[target.metrics["label"].notna() & (target.metrics["metric"] == metric)]
    return {int(label): float(value) for label, value in zip(rows["label"], rows["value"], strict=True)}


def _volumes(target: TargetSummary) -> dict[int, float]:
    if target.volumes is None:
        return {}
    return {int(v): float(mm3) for v, mm3 in zip(target.volumes["label"], target.volumes["volume_mm3"], strict=True)}


def _mean(values: Collection[float]) -> float:
    return float(np.mean([*values])) if values else float("nan")


def _row(target: TargetSummary, found: Sequence[Standout], table: LabelTable) -> dict[str, Any]:
    """Make the row of a target in the table."""
    dice = _of_labels(target, "dice")
    worst = min(dice, key=lambda v: (dice[v], v), default=None)
    mean, predicted = _mean(dice.values()), target.predicted_mean
    return {
        "summary": target,
        "reasons": [_reason(s) for s in found],
        "farthest": max((abs(s.score) for s in found), default=0.0),
        "dice": Number(mean, 3, mean),
        "worst": None if worst is None else {"name": table.name(worst), "dice": dice[worst]},
        "hausdorff": Number(_mean(_of_labels(target, "hausdorff_95_mm").values()), 2),
        "predicted": Number(predicted, 3, predicted),
        "volume_mm3": None if target.volumes is None else sum(_volumes(target).values()),
    }


def _facts(report: CohortReport, rows: Sequence[Mapping[str, Any]], mean_dice: float | None) -> list[tuple[str, str]]:
    done = [t for t in report.targets if not t.error]
    facts = [("targets done", f"{len(done)} of {len(rows)}")]
    if mean_dice is not None:
        facts.append(("mean Dice", f"{mean_dice:.3f}"))
    far = [row["hausdorff"].value for row in rows if np.isfinite(row["hausdorff"].value)]
    if far:
        facts.append(("mean HD95", f"{templating.significant(_mean(far))} mm"))
    predicted = [t.predicted_mean for t in report.targets if np.isfinite(t.predicted_mean)]
    if predicted:
        facts.append(("mean of predicted Dice", f"{np.mean(predicted):.3f}"))
    took = [t.seconds for t in done if np.isfinite(t.seconds)]
    if took:
        facts.append(("median time of a target", templating.duration(float(np.median(took)))))
    return facts


def _measured(report: CohortReport) -> list[Measured]:
    """Collect the measurements in which a target can be an outlier."""
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


def _reason(s: Standout) -> str:
    if s.what.startswith("volume of"):
        said = f"{templating.significant(2 ** (s.value - s.median), 2)} times the median"
    elif s.what == "uncertainty":
        said = f"{s.value:.2f} bit, median {s.median:.2f}"
    else:
        said = f"{s.value:.2f}, median {s.median:.2f}"
    return f"{s.what} {said}"


def _distributions(report: CohortReport) -> list[dict[str, Any]]:
    """Plot each structure over the targets: Dice, predicted Dice, and volume relative to the median."""
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
            "Dice predicted from the agreement of the atlases, without a reference.",
            {t.target: t.predicted for t in report.targets},
            share,
        ),
        (
            "volumes",
            "Volume of each structure",
            "Volume of each structure relative to its median over the targets. Check the targets far from 1.",
            ratios if sum(map(bool, volumes.values())) > 1 else {},
            times,
        ),
    )
    hrefs = {t.target: t.href for t in report.targets}
    plots = []
    for key, title, text, values, axis in every:
        drawn = strips(values, table=report.table, axis=axis, hrefs=hrefs, title=title)
        if drawn is not None:
            plots.append({"id": key, "title": title, "text": text, "drawn": drawn})
    return plots
