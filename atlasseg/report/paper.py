"""Figures for a paper, with matplotlib: scores, agreement of volumes, and volumes of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasseg.errors import InputError
from atlasseg.evaluation.agreement import difference, limits_of_agreement
from atlasseg.evaluation.groups import compare_groups
from atlasseg.volume import Float64

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_agreement", "plot_groups", "plot_scores"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""Colours that people with colour blindness can tell apart (Okabe and Ito 2008)."""

WIDTH_INCHES = 7.1
"""Width of two columns of a journal, 180 mm."""

MOST_PANELS = 12
"""Maximum number of structures in a figure with one panel each."""

PANEL_COLUMNS = 3
FEWEST_FOR_BOXES = 5
"""Minimum number of values for a box; of fewer only the points are drawn."""

ML_FROM_MM3 = 1000.0
"""Median volume from which volumes are given in ml instead of mm^3."""


def plot_scores(scores: pd.DataFrame, *, metric: str = "dice", group: str = "method") -> Figure:
    """Plot a measure of each structure: one point per target, and boxes of the quartiles.

    Parameters
    ----------
    scores : DataFrame
        Long form with the columns ``target``, ``name``, ``metric`` and ``value``, such as ``metrics.tsv``.
    metric : str
        Measure to draw.
    group : str
        Column whose values are drawn beside each other in colours, such as ``method``, if there are several.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        There is no such measure.
    """
    chosen = scores[scores["metric"] == metric].dropna(subset="value")
    if chosen.empty:
        known = ", ".join(sorted(scores["metric"].unique()))
        raise InputError(f"metric: expected one of {known}, got {metric!r}")
    structures = list(dict.fromkeys(chosen["name"]))
    series = list(dict.fromkeys(chosen[group])) if group in chosen else [""]
    row = 0.32 + 0.12 * (len(series) - 1)
    figure = _figure(WIDTH_INCHES, 0.9 + row * len(structures))
    axes = figure.add_subplot()
    breadth = 0.8 / len(series)
    for n, each in enumerate(series):
        own = chosen if len(series) == 1 else chosen[chosen[group] == each]
        for y, structure in enumerate(structures):
            values = own.loc[own["name"] == structure, "value"].to_numpy(float)
            place = y + (n - (len(series) - 1) / 2) * breadth
            _draw_values(axes, values, place, 0.7 * breadth, COLORS[n % len(COLORS)], vertical=False)
        if len(series) > 1:
            axes.plot([], [], "o", color=COLORS[n % len(COLORS)], label=str(each))
    axes.set_yticks(range(len(structures)), structures)
    axes.invert_yaxis()
    axes.set_xlabel(_title(metric))
    axes.grid(axis="x", color="0.9")
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=min(4, len(series)), frameon=False)
    return figure


def plot_agreement(volumes: pd.DataFrame, *, percent: bool = False) -> tuple[Figure, pd.DataFrame]:
    """Plot the agreement of segmented volumes with the reference (Bland and Altman), one panel per structure.

    Parameters
    ----------
    volumes : DataFrame
        Long form with the columns ``target``, ``name``, ``volume_mm3`` and ``reference_mm3``, such as ``volumes.tsv``.
    percent : bool
        Differences as a percentage of the mean of the two volumes.

    Returns
    -------
    Figure
        Difference (segmented - reference) against the mean of the two, with bias, limits of agreement and their
        confidence intervals of 95 %.
    DataFrame
        The numbers, one row per structure: pairs, bias and limits with intervals (mm^3 or percent), and the concordance
        correlation coefficient.

    Raises
    ------
    InputError
        No target has a reference, there are too many structures for one figure, or fewer than three targets.
    """
    import pandas as pd

    if "reference_mm3" not in volumes or volumes["reference_mm3"].isna().all():
        raise InputError("volumes: expected targets with reference labels, got none. Run on targets that have labels/.")
    structures = _panels(list(dict.fromkeys(volumes["name"])))
    figure, panels = _grid(len(structures), height=2.1)
    rows: list[dict[str, Any]] = []
    for panel, structure in zip(panels, structures, strict=True):
        own = volumes[volumes["name"] == structure].dropna(subset=["volume_mm3", "reference_mm3"])
        measured, reference = own["volume_mm3"].to_numpy(float), own["reference_mm3"].to_numpy(float)
        try:
            found = limits_of_agreement(measured, reference, percent=percent)
            apart = difference(measured, reference, percent=percent)
        except InputError as error:
            raise InputError(f"{structure}: {error}") from None
        scale, unit = _unit(np.concatenate([measured, reference]))
        high = 1.0 if percent else scale
        panel.axhline(0, color="0.7", linewidth=0.8)
        for value, interval, style in (
            (found.bias, found.bias_interval, "-"),
            (found.lower, found.lower_interval, "--"),
            (found.upper, found.upper_interval, "--"),
        ):
            panel.axhspan(interval[0] * high, interval[1] * high, color=COLORS[0], alpha=0.12, linewidth=0)
            panel.axhline(value * high, color=COLORS[0], linestyle=style, linewidth=1)
        panel.plot((measured + reference) / 2 * scale, apart * high, "o", color="black", markersize=3)
        panel.set_title(structure, fontsize=9)
        panel.set(xlabel=f"mean of both ({unit})", ylabel="difference (%)" if percent else f"difference ({unit})")
        told = {"structure": structure, "unit": "%" if percent else "mm3", "pairs": found.pairs}
        for name in ("bias", "lower", "upper"):
            low, top = getattr(found, f"{name}_interval")
            told |= {name: getattr(found, name), f"{name}_from": low, f"{name}_to": top}
        rows.append({**told, "concordance": found.concordance})
    return figure, pd.DataFrame(rows)


def plot_groups(volumes: pd.DataFrame, groups: pd.Series[str]) -> tuple[Figure, pd.DataFrame]:
    """Plot the volumes of each structure by group, one panel per structure.

    Parameters
    ----------
    volumes : DataFrame
        In mm^3: one row per scan, one column per structure.
    groups : Series
        Group of each scan, by the index of `volumes`.

    Returns
    -------
    Figure
        Points of the scans, with boxes of the quartiles and the p-value of each structure.
    DataFrame
        Means and tests, see `evaluation.groups.compare_groups`.

    Raises
    ------
    InputError
        There are too many structures for one figure, fewer than two groups, or fewer than two scans in a group.
    """
    structures = _panels(list(volumes.columns))
    table = compare_groups(volumes, groups)
    names = sorted(groups.reindex(volumes.index).dropna().astype(str).unique())
    figure, panels = _grid(len(structures), height=2.3)
    p_values = dict(zip(table["structure"], table["p_holm"], strict=True))
    for panel, structure in zip(panels, structures, strict=True):
        scale, unit = _unit(volumes[structure].to_numpy(float))
        for n, name in enumerate(names):
            values = volumes.loc[groups.reindex(volumes.index).astype(str) == name, structure].dropna()
            _draw_values(panel, values.to_numpy(float) * scale, n, 0.5, COLORS[n % len(COLORS)], vertical=True)
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_ylabel(f"volume ({unit})")
        panel.set_title(f"{structure}\n{_p_text(p_values[structure])}", fontsize=9)
    return figure, table


def _figure(width: float, height: float) -> Figure:
    """A figure outside pyplot, which no window and no global state keeps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows."""
    columns = min(PANEL_COLUMNS, count)
    rows = -(-count // columns)
    figure = _figure(WIDTH_INCHES * columns / PANEL_COLUMNS if columns > 1 else WIDTH_INCHES / 2, height * rows)
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]


def _panels(structures: Sequence[str]) -> Sequence[str]:
    if len(structures) > MOST_PANELS:
        raise InputError(
            f"structures: expected at most {MOST_PANELS} for one figure, got {len(structures)}. Choose some of "
            f"{', '.join(structures[:5])}, ..."
        )
    return structures


def _draw_values(axes: Axes, values: Float64, place: float, breadth: float, color: str, *, vertical: bool) -> None:
    """Points of one sample, spread sideways by their rank, and a box where there are enough."""
    if values.size == 0:
        return
    turns = np.argsort(np.argsort(values)) * 0.6180339887 % 1 - 0.5  # golden ratio: neighbours never overlap
    across = place + turns * breadth * 0.6
    points = (across, values) if vertical else (values, across)
    axes.plot(*points, "o", color=color, markersize=3, alpha=0.7, markeredgewidth=0)
    if values.size >= FEWEST_FOR_BOXES:
        line = {"color": color, "linewidth": 1}
        axes.boxplot(
            values,
            positions=[place],
            widths=breadth,
            orientation="vertical" if vertical else "horizontal",
            showfliers=False,
            manage_ticks=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={**line, "linewidth": 2},
        )


def _unit(volumes_mm3: Float64) -> tuple[float, str]:
    """Factor and unit in which volumes are easy to read."""
    known = volumes_mm3[np.isfinite(volumes_mm3)]
    return (1e-3, "ml") if known.size and np.median(known) >= ML_FROM_MM3 else (1.0, "mm³")


def _p_text(p: float) -> str:
    return "no test" if np.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _title(metric: str) -> str:
    """Name of a measure as a reader of a paper knows it."""
    names = {
        "dice": "Dice coefficient",
        "jaccard": "Jaccard index",
        "hausdorff_mm": "Hausdorff distance (mm)",
        "hausdorff_95_mm": "95 % Hausdorff distance (mm)",
        "average_surface_distance_mm": "average symmetric surface distance (mm)",
    }
    return names.get(metric, metric.replace("_", " "))
