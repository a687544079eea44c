"""The report on one target: a page that shows what was made, how sure it is, and how it came about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.evaluation import without_tolerance
from atlasseg.labels import LabelTable
from atlasseg.report import _html, figures
from atlasseg.report._html import Cell, address
from atlasseg.report.viewer import Candidate, script, viewer
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd

_HEADS = {
    "dice": "Dice",
    "hausdorff_95_mm": "HD95, mm",
    "average_surface_distance_mm": "ASSD, mm",
    "surface_dice": "Surface Dice",
    "volume_similarity": "Volume similarity",
}
"""Measures that the page shows, in this order, where they are there; the others are in the table on disk."""


@dataclass(frozen=True, eq=False)
class TargetReport:
    """What is to be said of one target.

    Parameters
    ----------
    target : str
        Its id.
    image : Image
        The scan.
    labels : LabelMap
        The segmentation, on the scan's grid.
    table : LabelTable
        Names and colours.
    fusion : str
        Name of the method that made it.
    entropy : (I, J, K) float, optional
        Uncertainty of each voxel, in bits.
    reference : LabelMap, optional
        The true labels, on the scan's grid, where they are known: outlined beside the segmentation.
    volumes : DataFrame, optional
        Columns ``label``, ``name``, ``voxels``, ``volume_mm3``: one row a structure, those with no voxel included.
    metrics : DataFrame, optional
        Long form, columns ``label`` (missing for a group), ``name``, ``metric``, ``value``, ``note``.
    predicted : mapping of int to float
        Dice that each label is likely to have, made without a reference.
    atlases : DataFrame, optional
        Columns ``atlas``, ``similarity``, ``jacobian_min``, ``jacobian_max``, ``folded_percent``, ``sd_log_jacobian``,
        ``voted`` (``yes`` or ``no``), ``reason``, perhaps ``weight``; a column that is absent is not shown.
    changes : DataFrame, optional
        What regions changed: columns ``label``, ``voxels_before``, ``voxels_after``, ``parts_before``, ``parts_after``,
        ``by_region``, ``islands``, ``holes``, ``restored``, one row a label, background included.
    seconds : mapping
        Time of each stage; ``total`` is shown apart.
    recipe : str
        Its text.
    warnings : sequence of str
        What was warned of on the way.
    versions : mapping
        Version of each piece of software.
    home : str
        Address of the cohort's page, empty where there is none.
    convention : str
        ``radiological`` or ``neurological``.
    candidates : sequence of Candidate
        Other labels that the viewer can step to, the most interesting first.
    viewer : bool
        Whether the page holds the scan to look through.
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
    """The page, as HTML that holds its pictures and needs no network.

    The same report gives the same text. What is in it is escaped, whatever the names.

    Raises
    ------
    GeometryError
        The labels, the entropy or the reference are not on the scan's grid.
    """
    parts = [section(report) for section in SECTIONS]
    values = sorted({*_values(report), *(int(v) for c in report.candidates for v in c.labels.values if v)})
    return _html.document(
        f"{report.target} \u00b7 atlasseg",
        "".join(parts),
        style=label_colours(values, report.table),
        scripts=script() if report.viewer else "",
    )


def _viewer(report: TargetReport) -> str:
    if not report.viewer:
        return ""
    return viewer(
        report.image,
        report.labels,
        table=report.table,
        entropy=report.entropy,
        candidates=report.candidates,
        convention=report.convention,
    )


def label_colours(values: Sequence[int], table: LabelTable) -> str:
    """Style rules that give each label's class (``l17``) its colour."""
    return "".join(f".l{v}{{--c:{figures.drawn_color(table.color(v))}}}\n" for v in values)


def _values(report: TargetReport) -> list[int]:
    found = set(report.labels.values.tolist())
    if report.volumes is not None:
        found |= {int(v) for v in report.volumes["label"]}
    if report.metrics is not None:
        found |= {int(v) for v in report.metrics["label"].dropna()}
    if report.changes is not None:
        found |= {int(v) for v in report.changes["label"]}
    return sorted(found - {0})


def _of_labels(report: TargetReport) -> dict[int, dict[str, float]]:
    """Every measure of every label."""
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


def _header(report: TargetReport) -> str:
    volumes_mm3 = [] if report.volumes is None else [float(v) for v in report.volumes["volume_mm3"] if v > 0]
    structures = len(set(report.labels.values.tolist()) - {0})
    scores = _of_labels(report)
    dice = [m["dice"] for m in scores.values() if "dice" in m]
    dropped = _dropped(report)
    atlases = 0 if report.atlases is None else len(report.atlases)

    said = f"{_html.count(structures, 'structure')}"
    if volumes_mm3:
        said += f", {_html.volume(sum(volumes_mm3))} in all,"
    made = f"{said} segmented"
    if atlases:
        made += f" from {_html.count(atlases, 'atlas', 'atlases')}"
        made += f", of which {atlases - len(dropped)} voted," if dropped else ""
    made += f" by <em>{escape(report.fusion.replace('_', ' '))}</em> fusion."
    if dice:
        made += f" Against the reference, Dice is {np.mean(dice):.3f} on average, {min(dice):.3f} at the least."

    shown = [("structures", str(structures))]
    if dice:
        shown.append(("mean Dice", f"{np.mean(dice):.3f}"))
    hausdorff = [m["hausdorff_95_mm"] for m in scores.values() if "hausdorff_95_mm" in m]
    if hausdorff:
        shown.append(("mean HD95", f"{_html.significant(float(np.mean(hausdorff)))} mm"))
    if report.predicted:
        shown.append(("mean of predicted Dice", f"{np.mean([*report.predicted.values()]):.3f}"))
    if report.entropy is not None:
        labelled = report.labels.array != 0
        unsure = float((report.entropy[labelled] > 0.5).mean()) if labelled.any() else 0.0
        shown.append(("of labelled voxels uncertain (over 0.5 bit)", f"{100 * unsure:.1f} %"))
    if "total" in report.seconds:
        shown.append(("time", _html.duration(report.seconds["total"])))
    spacing = " \u00d7 ".join(f"{mm:.3g}" for mm in report.image.spacing_mm)
    shown.append(("voxels of the scan, mm", f"{spacing}"))
    home = f'<a href="{address(report.home)}">All targets</a> \u00b7 ' if report.home else ""
    return (
        f'<header>\n<p class="kind">{home}Segmentation report</p>\n<h1>{escape(report.target)}</h1>\n'
        f'<p class="cover">{made}</p>\n{_html.facts(shown)}{_check(report)}</header>\n<main>\n'
    )


def _check(report: TargetReport) -> str:
    """What a person should look at before using the result; nothing where there is nothing."""
    items = [escape(w) for w in report.warnings]
    items += [
        f"Atlas <strong>{escape(atlas)}</strong> did not vote{': ' + escape(reason) if reason else ''}"
        for atlas, reason in _dropped(report)
        if not any(reason and reason in w for w in report.warnings)
    ]
    notes = _notes(report)
    for note, said in (
        ("missed", "in the reference but not found"),
        ("not in reference", "found but not in the reference"),
    ):
        names = [report.table.name(v) for v in sorted(notes) if notes[v] == note]
        if names:
            items.append(f"{_html.count(len(names), 'structure')} {said}: {escape(_some(names))}")
    if report.volumes is not None and report.metrics is None:
        empty = [
            str(n) for n, voxels in zip(report.volumes["name"], report.volumes["voxels"], strict=True) if voxels == 0
        ]
        if empty:
            items.append(f"{_html.count(len(empty), 'structure')} of the atlases found nowhere: {escape(_some(empty))}")
    if not items:
        return ""
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f'<section class="check" aria-labelledby="check"><h2 id="check">To check</h2><ul>{listed}</ul></section>\n'


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _pictures(report: TargetReport) -> str:
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
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{key}"{" checked" if on else ""}>{said}</label>'
        for key, said, on in choices
    )
    rows = "".join(_plane(plane, [p for p in panels if p.plane == plane], 5) for plane in figures.PLANES)
    return (
        '<section aria-labelledby="pictures"><h2 id="pictures">Segmentation</h2>\n'
        f"<p>{_orientation(report)}</p>\n"
        f'<fieldset class="show"><legend>Show</legend>{boxes}</fieldset>\n<div class="choose">\n'
        f"{rows}</div></section>\n"
    )


def _orientation(report: TargetReport) -> str:
    whose = "right" if report.convention == "radiological" else "left"
    tilt = figures.tilt_degrees(report.image.grid)
    leaning = (
        f" The scan is oblique, up to {tilt:.0f}\u00b0: its planes are named after the nearest anatomical ones."
        if tilt > figures.STRAIGHT_DEGREES
        else ""
    )
    return (
        f"{report.convention.capitalize()} convention: the body's {whose} is on the left of axial and coronal slices, "
        f"and faces look left on sagittal ones. Slices lie at equal shares of what is labelled.{leaning}"
    )


def _plane(plane: str, panels: Sequence[figures.Panel], columns: int) -> str:
    shown = "".join(f"<figure>{p.svg}<figcaption>{p.place}</figcaption></figure>\n" for p in panels)
    return f'<div class="plane" style="--columns:{columns}"><h3>{plane.capitalize()}</h3>\n{shown}</div>\n'


def _uncertain(report: TargetReport) -> str:
    if report.entropy is None:
        return ""
    panels = figures.where_to_look(
        report.image, report.labels, report.entropy, table=report.table, convention=report.convention
    )
    if not panels:
        return ""
    shown = "".join(
        f"<figure>{p.svg}<figcaption>{p.plane.capitalize()}, {p.place}</figcaption></figure>\n" for p in panels
    )
    return (
        '<section aria-labelledby="look"><h2 id="look">Where to look</h2>\n'
        "<p>In each plane the most uncertain slice: orange is where the atlases disagree, strongest at 1 bit "
        "(two labels are even) or more.</p>\n"
        f'<div class="plane look" style="--columns:3">{shown}</div></section>\n'
    )


def _structures(report: TargetReport) -> str:
    values = _values(report)
    if not values:
        return "<section><h2>Structures</h2><p>Nothing was labelled.</p></section>\n"
    volumes: dict[int, float] = {}
    if report.volumes is not None:
        volumes = {
            int(v): float(mm3) for v, mm3 in zip(report.volumes["label"], report.volumes["volume_mm3"], strict=True)
        }
    unsure = _mean_entropy(report)
    scores, notes = _of_labels(report), _notes(report)
    shown = list(_measures(scores.values()))
    in_ml = bool(volumes) and float(np.median(list(volumes.values()))) >= 1000
    largest = max(volumes.values(), default=0.0) or 1.0

    unit = "ml" if in_ml else "mm\u00b3"
    heads = [("Structure", False), ("Label", True)]
    heads += [(f"Volume, {unit}", True)] if volumes else []
    heads += [("Uncertainty, bit", True)] if unsure else []
    heads += [("Predicted Dice", True)] if report.predicted else []
    heads += [(head, True) for _, head in shown]
    rows = []
    for v in values:
        note = notes.get(v, "")
        name = report.table.name(v)
        title = (
            f'<button type="button" data-label="l{v}" aria-pressed="false">'
            f'<span class="swatch l{v}" aria-hidden="true"></span>{escape(name)}</button>'
            + (f' <span class="note">{escape(note)}</span>' if note else "")
        )
        cells = [Cell(title, name), Cell(str(v), v, numeric=True)]
        if volumes:
            mm3 = volumes.get(v, 0.0)
            cells.append(_html.number(mm3 / 1000 if in_ml else mm3, part=mm3 / largest))
        if unsure:
            cells.append(_html.fixed(unsure.get(v, float("nan")), 2, part=unsure.get(v, 0.0)))
        if report.predicted:
            expected = report.predicted.get(v, float("nan"))
            cells.append(_html.fixed(expected, 3, part=expected if v in report.predicted else None))
        cells += _measured(scores.get(v, {}), shown)
        rows.append((cells, bool(note)))
    return (
        '<section aria-labelledby="structures"><h2 id="structures">Structures</h2>\n'
        "<p class=hint>Point at a row to see its structure in the pictures; press its name to keep it.</p>\n"
        f"{_html.table(heads, rows)}</section>\n"
    )


def _mean_entropy(report: TargetReport) -> dict[int, float]:
    """Mean uncertainty, in bits, over the voxels of each label."""
    if report.entropy is None:
        return {}
    labelled = report.labels.array != 0
    values, number = np.unique(report.labels.array[labelled], return_inverse=True)
    total = np.bincount(number, weights=report.entropy[labelled], minlength=values.size)
    return dict(zip(values.tolist(), (total / np.bincount(number, minlength=values.size)).tolist(), strict=True))


def _measures(scores: Any) -> Iterator[tuple[str, str]]:
    """The measures to show, and their heads."""
    there = {metric for measured in scores for metric in measured}
    for known, head in _HEADS.items():
        for metric in sorted(there):
            if metric == known:
                yield metric, head
            elif without_tolerance(metric) == known:
                yield metric, f"{head}, {metric.removeprefix(f'{known}_').removesuffix('mm')} mm"


def _measured(measured: Mapping[str, float], shown: Sequence[tuple[str, str]]) -> list[Cell]:
    cells = []
    for metric, _ in shown:
        value = measured.get(metric, float("nan"))
        decimals = 2 if metric.endswith("_mm") else 3
        cells.append(_html.fixed(value, decimals, part=value if metric == "dice" else None))
    return cells


def _groups(report: TargetReport) -> str:
    if report.metrics is None or not report.metrics["label"].isna().any():
        return ""
    rows = report.metrics[report.metrics["label"].isna()]
    scores: dict[str, dict[str, float]] = {}
    for name, metric, value in zip(rows["name"], rows["metric"], rows["value"], strict=True):
        scores.setdefault(str(name), {})[str(metric)] = float(value)
    shown = list(_measures(scores.values()))
    heads = [("Group", False), *((head, True) for _, head in shown)]
    body = [([_html.text(name), *_measured(measured, shown)], False) for name, measured in scores.items()]
    caption = "Groups of structures, each judged as one"
    return f'<section aria-label="Groups of structures">{_html.table(heads, body, caption=caption)}</section>\n'


_CHANGE_COLUMNS = {
    "voxels_before": "Voxels before",
    "voxels_after": "Voxels after",
    "parts_before": "Parts before",
    "parts_after": "Parts after",
    "by_region": "Gained",
    "islands": "Islands lost",
    "holes": "Holes filled",
    "restored": "Put back",
}


def _regions(report: TargetReport) -> str:
    """What regions did to each label that they changed."""
    if report.changes is None:
        return ""
    rows = []
    for row in report.changes.to_dict("records"):
        label = int(row["label"])
        touched = row["voxels_before"] != row["voxels_after"] or row["parts_before"] != row["parts_after"]
        if not touched and not any(row[c] for c in ("by_region", "islands", "holes", "restored")):
            continue
        name = report.table.name(label) if label else "background"
        swatch = f'<span class="swatch l{label}" aria-hidden="true"></span>' if label else ""
        cells = [Cell(f"{swatch}{escape(name)}", name)]
        cells += [_html.fixed(float(row[column]), 0) for column in _CHANGE_COLUMNS]
        rows.append((cells, bool(row["restored"])))
    said = (
        "Labels before and after the regions of the scan had their say; those that are not listed stayed as they were. "
        "Gained are voxels that intensity and the votes of regions brought; islands are parts that went to a "
        "neighbour. Holes filled and what was put back, since the label had vanished, are voxels."
        if rows
        else "The segmentation agreed with the regions of the scan: no label was changed."
    )
    heads = [("Structure", False), *((head, True) for head in _CHANGE_COLUMNS.values())]
    return (
        f'<section aria-labelledby="regions"><h2 id="regions">What regions changed</h2>\n<p>{said}</p>\n'
        f"{_html.table(heads, rows) if rows else ''}</section>\n"
    )


_ATLAS_COLUMNS = {
    "similarity": "Similarity",
    "weight": "Weight",
    "jacobian_min": "Least Jacobian",
    "jacobian_max": "Largest Jacobian",
    "folded_percent": "Folded, %",
    "sd_log_jacobian": "SD of log Jacobian",
}


def _atlases(report: TargetReport) -> str:
    if report.atlases is None or report.atlases.empty:
        return ""
    columns = [c for c in _ATLAS_COLUMNS if c in report.atlases]
    heads = [("Atlas", False), *((_ATLAS_COLUMNS[c], True) for c in columns), ("Voted", False)]
    rows = []
    for row in report.atlases.to_dict("records"):
        cells = [_html.text(row["atlas"])]
        for column in columns:
            value = float(row[column])
            bar = value if column in ("similarity", "weight") and value == value else None
            cells.append(_html.number(value) if bar is None else _html.fixed(value, 3, part=bar))
        voted = str(row.get("voted", "yes"))
        reason = str(row.get("reason") or "")
        said = f'<span class="{"note" if voted == "no" else "soft"}">{escape(voted)}</span>'
        cells.append(Cell(f"{said} <span class=soft>{escape(reason)}</span>" if reason else said, voted))
        rows.append((cells, voted == "no"))
    return (
        '<section aria-labelledby="atlases"><h2 id="atlases">Atlases</h2>\n'
        "<p>Similarity to the target after registration; how much each registration squeezes and stretches (Jacobian "
        "determinant, 1 where volume is kept), and where it folds (0 or less).</p>\n"
        f"{_html.table(heads, rows)}</section>\n"
    )


def _stages(report: TargetReport) -> str:
    stages = {name: s for name, s in report.seconds.items() if name != "total"}
    if not stages:
        return ""
    longest = max(stages.values()) or 1.0
    rows = [([_html.text(name), _html.fixed(s, 2, part=s / longest)], False) for name, s in stages.items()]
    caption = f"{_html.duration(report.seconds.get('total', sum(stages.values())))} in all"
    shown = _html.table([("Stage", False), ("Seconds", True)], rows, caption=caption, sorts=False)
    return f'<section aria-labelledby="made"><h2 id="made">How it was made</h2>\n{shown}</section>\n'


def _making(report: TargetReport) -> str:
    return _html.making(report.recipe, report.versions)


SECTIONS: list[Callable[[TargetReport], str]] = [
    _header,
    _pictures,
    _viewer,
    _uncertain,
    _structures,
    _groups,
    _regions,
    _atlases,
    _stages,
    _making,
]
"""Sections of the page in their order: each takes the report and returns HTML, empty where it has nothing to show."""
