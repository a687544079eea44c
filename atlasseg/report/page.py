"""HTML page of one target: segmentation, uncertainty, quality, atlases and stages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg import templating
from atlasseg.evaluation import without_tolerance
from atlasseg.labels import LabelTable
from atlasseg.localisation import OrganLocation
from atlasseg.localisation.result import describe_view
from atlasseg.report import figures, viewer
from atlasseg.report.sections import Number, label_colors, voxel_size
from atlasseg.report.viewer import Candidate
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

_HEADS = {
    "dice": "Dice",
    "hausdorff_95_mm": "HD95, mm",
    "average_surface_distance_mm": "ASSD, mm",
    "surface_dice": "Surface Dice",
    "volume_similarity": "Volume similarity",
}
"""Metrics that the page shows if they are available, in this order. The table on disk has all metrics."""


@dataclass(frozen=True, eq=False)
class TargetReport:
    """Contents of the page of one target.

    Parameters
    ----------
    target : str
        Id of the target.
    image : Image
        The scan.
    labels : LabelMap
        The segmentation, on the scan's grid.
    table : LabelTable
        Names and colours.
    fusion : str
        Name of the fusion method.
    entropy : (I, J, K) float, optional
        Uncertainty of each voxel, in bits.
    reference : LabelMap, optional
        Reference labels on the scan's grid, outlined beside the segmentation.
    volumes : DataFrame, optional
        Columns ``label``, ``name``, ``voxels``, ``volume_mm3``: one row per structure, including those without voxels.
    metrics : DataFrame, optional
        Long form, columns ``label`` (missing for a group), ``name``, ``metric``, ``value``, ``note``.
    predicted : mapping of int to float
        Predicted Dice of each label, computed without a reference.
    atlases : DataFrame, optional
        Columns ``atlas``, ``similarity``, ``jacobian_min``, ``jacobian_max``, ``folded_percent``, ``sd_log_jacobian``,
        ``voted`` (``yes`` or ``no``), ``reason``, ``weight``. A missing column is not shown.
    localisation : OrganLocation, optional
        Where the organ was found, if it was localised.
    changes : DataFrame, optional
        Changes by regions: columns ``label``, ``voxels_before``, ``voxels_after``, ``parts_before``, ``parts_after``,
        ``by_region``, ``islands``, ``holes``, ``restored``; one row per label, background included.
    seconds : mapping
        Duration of each stage; ``total`` is shown separately.
    recipe : str
        Text of the recipe.
    warnings : sequence of str
        Warnings of the run about this target.
    versions : mapping
        Version of each piece of software.
    home : str
        Address of the page of the run; empty if there is none.
    convention : str
        ``radiological`` or ``neurological``.
    candidates : sequence of Candidate
        Other label maps that the viewer offers, in order of preference.
    viewer : bool
        Include the interactive viewer, which contains the scan.
    """

    target: str
    image: Image
    labels: LabelMap
    table: LabelTable
    fusion: str
    entropy: NDArray[np.floating[Any]] | None = None
    reference: LabelMap | None = None
    volumes: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None
    predicted: Mapping[int, float] = field(default_factory=dict)
    atlases: pd.DataFrame | None = None
    localisation: OrganLocation | None = None
    changes: pd.DataFrame | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    home: str = ""
    convention: figures.Convention = "radiological"
    candidates: Sequence[Candidate] = ()
    viewer: bool = True


def render(report: TargetReport) -> str:
    """Render the page as HTML that contains its pictures and needs no network.

    Equal reports give equal text. All names are escaped.

    Parameters
    ----------
    report : TargetReport
        Contents of the page.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    GeometryError
        Labels, entropy or reference are not on the scan's grid.
    """
    values = {*_values(report), *(int(v) for c in report.candidates for v in c.labels.values if v)}
    return templating.render(
        "target.html.j2",
        target=report.target,
        home=report.home,
        fusion=report.fusion,
        recipe=report.recipe,
        versions=report.versions,
        colors=label_colors(values, report.table),
        sections=[section(report) for section in SECTIONS],
        scripts=viewer.script() if report.viewer else "",
        **_summary(report),
        **_to_check(report),
    )


def _section(macro: str, **data: Any) -> Markup:
    return templating.render_macro("target_sections.html.j2", macro, **data)


def _values(report: TargetReport) -> list[int]:
    tables = (report.volumes, report.metrics, report.changes)
    found = {int(v) for table in tables if table is not None for v in table["label"].dropna()}
    return sorted((found | set(report.labels.values.tolist())) - {0})


def _of_labels(report: TargetReport) -> dict[int, dict[str, float]]:
    """All metrics of each label."""
    out: dict[int, dict[str, float]] = {}
    if report.metrics is not None:
        rows = report.metrics[report.metrics["label"].notna()]
        for label, metric, value in zip(rows["label"], rows["metric"], rows["value"], strict=True):
            out.setdefault(int(label), {})[str(metric)] = float(value)
    return out


def _notes(report: TargetReport) -> dict[int, str]:
    if report.metrics is None or "note" not in report.metrics:
        return {}
    rows = report.metrics[report.metrics["label"].notna()]
    return {int(label): str(note) for label, note in zip(rows["label"], rows["note"], strict=True) if note}


def _dropped(report: TargetReport) -> list[tuple[str, str]]:
    if report.atlases is None or "voted" not in report.atlases:
        return []
    rows = report.atlases[report.atlases["voted"] == "no"]
    reasons = rows["reason"] if "reason" in rows else [""] * len(rows)
    return [(str(a), str(r)) for a, r in zip(rows["atlas"], reasons, strict=True)]


def _summary(report: TargetReport) -> dict[str, Any]:
    """Data of the head of the page, and of the facts below it."""
    structures = len(set(report.labels.values.tolist()) - {0})
    scores = _of_labels(report)
    dice = [m["dice"] for m in scores.values() if "dice" in m]
    hausdorff = [m["hausdorff_95_mm"] for m in scores.values() if "hausdorff_95_mm" in m]
    mean_dice = float(np.mean(dice)) if dice else None
    facts = [("structures", str(structures))]
    if dice:
        facts.append(("mean Dice", f"{mean_dice:.3f}"))
    if hausdorff:
        facts.append(("mean HD95", f"{templating.significant(float(np.mean(hausdorff)))} mm"))
    if report.predicted:
        facts.append(("mean of predicted Dice", f"{np.mean([*report.predicted.values()]):.3f}"))
    if report.entropy is not None:
        labelled = report.labels.array != 0
        unsure = float((report.entropy[labelled] > 0.5).mean()) if labelled.any() else 0.0
        facts.append(("uncertain labelled voxels (over 0.5 bit)", f"{100 * unsure:.1f} %"))
    if "total" in report.seconds:
        facts.append(("time", templating.duration(report.seconds["total"])))
    facts.append(("voxels of the scan, mm", voxel_size(report.image.spacing_mm)))
    return {
        "structures": structures,
        "volume_mm3": 0.0 if report.volumes is None else float(report.volumes["volume_mm3"].clip(lower=0).sum()),
        "atlases": 0 if report.atlases is None else len(report.atlases),
        "dropped": _dropped(report),
        "dice": dice,
        "mean_dice": mean_dice,
        "facts": facts,
    }


def _to_check(report: TargetReport) -> dict[str, Any]:
    """Items that a person should check before using the result."""
    silent = [
        (atlas, reason)
        for atlas, reason in _dropped(report)
        if not any(reason and reason in warning for warning in report.warnings)
    ]
    notes = _notes(report)
    found = [
        ("in the reference but not found", [report.table.name(v) for v in sorted(notes) if notes[v] == "missed"]),
        (
            "found but not in the reference",
            [report.table.name(v) for v in sorted(notes) if notes[v] == "not in reference"],
        ),
    ]
    if report.volumes is not None and report.metrics is None:
        empty = report.volumes[report.volumes["voxels"] == 0]
        found.append(("without a voxel in the segmentation", [str(name) for name in empty["name"]]))
    return {"warnings": report.warnings, "silent": silent, "found": [each for each in found if each[1]]}


def _pictures(report: TargetReport) -> Markup:
    panels = figures.mosaic(
        report.image,
        report.labels,
        table=report.table,
        entropy=report.entropy,
        reference=report.reference,
        convention=report.convention,
    )
    choices = [("outlines", "outlines", True), ("fill", "filled", False)]
    choices += [("reference", "reference (dotted)", True)] if report.reference is not None else []
    choices += [("entropy", "uncertainty", False)] if report.entropy is not None and report.entropy.any() else []
    tilt = figures.tilt_degrees(report.image.grid)
    return _section(
        "pictures",
        panels=panels,
        choices=choices,
        convention=report.convention,
        tilt_degrees=tilt if tilt > figures.STRAIGHT_DEGREES else None,
    )


def _viewer(report: TargetReport) -> Markup | str:
    if not report.viewer:
        return ""
    return viewer.viewer(
        report.image,
        report.labels,
        table=report.table,
        entropy=report.entropy,
        candidates=report.candidates,
        convention=report.convention,
    )


def _uncertain(report: TargetReport) -> Markup | str:
    if report.entropy is None:
        return ""
    panels = figures.where_to_look(
        report.image, report.labels, report.entropy, table=report.table, convention=report.convention
    )
    return _section("uncertain", panels=panels) if panels else ""


def _structures(report: TargetReport) -> Markup:
    volumes: dict[int, float] = {}
    if report.volumes is not None:
        pairs = zip(report.volumes["label"], report.volumes["volume_mm3"], strict=True)
        volumes = {int(v): float(mm3) for v, mm3 in pairs}
    unsure = _mean_entropy(report)
    scores, notes = _of_labels(report), _notes(report)
    measures = _measures(scores.values())
    in_ml = bool(volumes) and float(np.median(list(volumes.values()))) >= 1000
    largest = max(volumes.values(), default=0.0) or 1.0

    heads = ["Volume, ml" if in_ml else "Volume, mm\u00b3"] if volumes else []
    heads += ["Uncertainty, bit"] if unsure else []
    heads += ["Predicted Dice"] if report.predicted else []
    rows = []
    for v in _values(report):
        shown = []
        if volumes:
            mm3 = volumes.get(v, 0.0)
            shown.append(Number(mm3 / 1000 if in_ml else mm3, part=mm3 / largest))
        if unsure:
            shown.append(_barred(unsure.get(v, float("nan")), 2))
        if report.predicted:
            shown.append(_barred(report.predicted.get(v, float("nan")), 3))
        shown += _measured(scores.get(v, {}), measures)
        rows.append({"label": v, "name": report.table.name(v), "note": notes.get(v, ""), "figures": shown})
    return _section("structures", heads=[*heads, *measures.values()], rows=rows)


def _barred(part: float, decimals: int) -> Number:
    """Make a number from 0 to 1 with a bar."""
    return Number(part, decimals, part)


def _mean_entropy(report: TargetReport) -> dict[int, float]:
    """Mean uncertainty, in bits, over the voxels of each label."""
    if report.entropy is None:
        return {}
    labelled = report.labels.array != 0
    values, number = np.unique(report.labels.array[labelled], return_inverse=True)
    total = np.bincount(number, weights=report.entropy[labelled], minlength=values.size)
    return dict(zip(values.tolist(), (total / np.bincount(number, minlength=values.size)).tolist(), strict=True))


def _measures(scores: Collection[Mapping[str, float]]) -> dict[str, str]:
    """The metrics to show, and their column heads."""
    there = sorted({metric for measured in scores for metric in measured})
    found = {}
    for known, head in _HEADS.items():
        for metric in there:
            if metric == known:
                found[metric] = head
            elif without_tolerance(metric) == known:
                found[metric] = f"{head}, {metric.removeprefix(f'{known}_').removesuffix('mm')} mm"
    return found


def _measured(measured: Mapping[str, float], measures: Iterable[str]) -> list[Number]:
    values = {metric: measured.get(metric, float("nan")) for metric in measures}
    return [
        _barred(value, 3) if metric == "dice" else Number(value, 2 if metric.endswith("_mm") else 3)
        for metric, value in values.items()
    ]


def _groups(report: TargetReport) -> Markup | str:
    if report.metrics is None or not report.metrics["label"].isna().any():
        return ""
    rows = report.metrics[report.metrics["label"].isna()]
    scores: dict[str, dict[str, float]] = {}
    for name, metric, value in zip(rows["name"], rows["metric"], rows["value"], strict=True):
        scores.setdefault(str(name), {})[str(metric)] = float(value)
    measures = _measures(scores.values())
    return _section(
        "groups",
        heads=list(measures.values()),
        rows=[(name, _measured(measured, measures)) for name, measured in scores.items()],
    )


_CHANGE_COLUMNS = {
    "voxels_before": "Voxels before",
    "voxels_after": "Voxels after",
    "parts_before": "Parts before",
    "parts_after": "Parts after",
    "by_region": "Gained",
    "islands": "Islands lost",
    "holes": "Holes filled",
    "restored": "Restored",
}


def _regions(report: TargetReport) -> Markup | str:
    """Table of the labels that regions changed."""
    if report.changes is None:
        return ""
    rows = []
    for row in report.changes.to_dict("records"):
        label = int(row["label"])
        touched = row["voxels_before"] != row["voxels_after"] or row["parts_before"] != row["parts_after"]
        if touched or any(row[c] for c in ("by_region", "islands", "holes", "restored")):
            name = report.table.name(label) if label else "background"
            shown = [Number(float(row[column]), 0) for column in _CHANGE_COLUMNS]
            rows.append({"label": label, "name": name, "restored": row["restored"], "figures": shown})
    return _section("regions", heads=list(_CHANGE_COLUMNS.values()), rows=rows)


_ATLAS_COLUMNS = {
    "similarity": "Similarity",
    "weight": "Weight",
    "jacobian_min": "Smallest Jacobian",
    "jacobian_max": "Largest Jacobian",
    "folded_percent": "Folded, %",
    "sd_log_jacobian": "SD of log Jacobian",
}


def _atlases(report: TargetReport) -> Markup | str:
    if report.atlases is None or report.atlases.empty:
        return ""
    columns = [c for c in _ATLAS_COLUMNS if c in report.atlases]
    rows = [
        {
            "atlas": row["atlas"],
            "figures": [
                _barred(float(row[c]), 3) if c in ("similarity", "weight") else Number(float(row[c])) for c in columns
            ],
            "voted": str(row.get("voted", "yes")),
            "reason": str(row.get("reason") or ""),
        }
        for row in report.atlases.to_dict("records")
    ]
    return _section("atlases", heads=[_ATLAS_COLUMNS[c] for c in columns], rows=rows)


def _stages(report: TargetReport) -> Markup | str:
    stages = {name: s for name, s in report.seconds.items() if name != "total"}
    if not stages:
        return ""
    return _section("stages", seconds=stages, total=report.seconds.get("total", sum(stages.values())))


def _localisation(report: TargetReport) -> Markup | str:
    """Candidate places of the organ, and how each atlas was aligned there."""
    found = report.localisation
    if found is None:
        return ""
    places = [
        {
            "name": f"{n}" if n > 1 or not found.found else "1 (chosen)",
            "centre": ", ".join(f"{x:.0f}" for x in place.centre_mm),
            "view": describe_view(place.turned_degrees, place.mirrored) or "as in the atlases",
            "figures": [Number(place.votes, 0), Number(place.score, 2), Number(place.similarity, 2)],
        }
        for n, place in enumerate(found.places, start=1)
    ]
    poses = [
        {
            "atlas": pose.atlas,
            "figures": [
                Number(pose.similarity, 2),
                Number(pose.apart_mm, 1),
                Number(pose.turned_degrees, 0),
                Number(pose.scale, 2),
            ],
            "keep": pose.keep,
            "reason": pose.reason,
        }
        for pose in found.poses
    ]
    spans = zip(found.start, found.stop, strict=True)
    box = " x ".join(f"{first} to {stop - 1}" for first, stop in spans) if found.found else ""
    return _section("localisation", box=box, message=found.message, places=places, poses=poses)


SECTIONS: list[Callable[[TargetReport], Markup | str]] = [
    _pictures,
    _viewer,
    _uncertain,
    _structures,
    _groups,
    _regions,
    _localisation,
    _atlases,
    _stages,
]
"""Sections of the page, in order. Each returns markup, empty if it has nothing to show. A plain str is escaped."""
