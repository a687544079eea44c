"""HTML page of a comparison of fusion methods: ranks, paired tests, Dice of each structure, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlasseg.report.sections import Number
from atlasseg.report.strips import Box
from atlasseg.templating import render, render_macro

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

__all__ = ["comparison_sections", "render_comparison"]

LEVEL = 0.05
"""Significance level for p-values corrected by Holm's method."""

FEWEST_FOR_BOXES = 5
"""Minimum number of targets for box plots. With fewer targets only the dots are drawn."""


class Ranks(Protocol):
    """Type of the result of `evaluation.comparison.rank_methods`."""

    @property
    def mean_rank(self) -> pd.Series[float]:
        """Mean rank of each method over the targets, best first."""

    @property
    def friedman_p(self) -> float:
        """p-value of Friedman's test; NaN if it cannot be computed."""

    @property
    def critical_difference(self) -> float:
        """Critical difference of mean ranks (Nemenyi)."""


def render_comparison(
    metrics: pd.DataFrame,
    scores: pd.DataFrame,
    tests: pd.DataFrame,
    ranking: Ranks,
    *,
    recipe: str,
    versions: Mapping[str, str],
    left_out: Mapping[str, str] | None = None,
) -> str:
    """Render the comparison as an HTML page that needs no network. Equal data give equal text.

    Parameters
    ----------
    metrics : DataFrame
        Long form: target, method, label, name, metric, value, note. `label` is missing for groups and, if `name`
        is ``all``, for ``seconds``, ``peak_memory_mb`` and ``expected_calibration_error``.
    scores : DataFrame
        Mean Dice over the labels: one row per target, one column per method.
    tests : DataFrame
        One row per pair of methods: method_a, method_b, targets, mean_difference, a_better, p, p_holm.
    ranking : Ranks
        Mean ranks, best first, Friedman's p and the critical difference.
    recipe : str
        Text of the recipe.
    versions : mapping
        Version of each piece of software.
    left_out : mapping, optional
        Methods that could not be used, each with the reason.

    Returns
    -------
    str
        HTML.
    """
    ranks, means = ranking.mean_rank, scores.mean()
    first = [m for m in ranks.index if ranks[m] <= ranks.iloc[0] + 1e-9]
    best, highest = first[0], means.idxmax()
    return render(
        "comparison.html.j2",
        methods=len(ranks),
        targets=len(scores),
        pairs=len(tests),
        first=first,
        first_dice=means[best],
        first_rank=ranks[best],
        highest=(highest, means[highest]) if means[highest] > means[best] else None,
        lead=_lead(best, scores, tests),
        significance=LEVEL,
        left_out=left_out or {},
        facts=[
            ("methods", str(len(ranks))),
            ("targets", str(len(scores))),
            ("mean Dice of the best rank", f"{means[best]:.3f}"),
            ("critical difference of ranks", f"{ranking.critical_difference:.2f}"),
        ],
        sections=comparison_sections(metrics, scores, tests, ranking),
        recipe=recipe,
        versions=versions,
        colors=(),
    )


def comparison_sections(metrics: pd.DataFrame, scores: pd.DataFrame, tests: pd.DataFrame, ranking: Ranks) -> Markup:
    """Render the sections of the comparison alone, for the page of a run.

    Parameters
    ----------
    metrics, scores, tests, ranking
        As for `render_comparison`.

    Returns
    -------
    Markup
        HTML of the sections.
    """
    return render_macro(
        "comparison_sections.html.j2",
        "sections",
        overview=_overview(metrics, scores, ranking),
        spread=_boxes(scores, ranking),
        spread_boxed=len(scores) >= FEWEST_FOR_BOXES,
        ranks=_ranks(scores, ranking),
        structures=_heat(metrics, ranking),
        tests=_tests(scores, tests),
        costs=_costs(metrics, ranking),
        significance=LEVEL,
    )


def _against(tests: pd.DataFrame, method: object) -> dict[object, tuple[float, float]]:
    """Mean difference from each other method, positive where `method` is better, and corrected p."""
    found: dict[object, tuple[float, float]] = {}
    for row in tests.to_dict("records"):
        if row["method_a"] == method:
            found[row["method_b"]] = (float(row["mean_difference"]), float(row["p_holm"]))
        elif row["method_b"] == method:
            found[row["method_a"]] = (-float(row["mean_difference"]), float(row["p_holm"]))
    return found


def _lead(best: object, scores: pd.DataFrame, tests: pd.DataFrame) -> dict[str, Any]:
    """Summarise the paired tests of the method that ranks first."""
    rivals = _against(tests, best)
    beaten = [m for m, (difference, p) in rivals.items() if p < LEVEL and difference > 0]
    return {
        "beaten": beaten,
        "level": [m for m in rivals if m not in beaten],
        "largest_p": max(p for _, p in rivals.values()),
        "least_p": len(tests) * 2.0 ** (1 - len(scores)),
    }


def _per_target(metrics: pd.DataFrame, method: object, metric: str) -> pd.Series[float]:
    """Mean over the labels (or the cost itself) of each target, without the targets where it is not known."""
    rows = metrics[(metrics["method"] == method) & (metrics["metric"] == metric)]
    rows = rows[rows["label"].notna() | (rows["name"] == "all")]
    return rows.groupby("target", sort=False)["value"].mean().dropna().astype(float)


def _mean(values: pd.Series[float]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _overview(metrics: pd.DataFrame, scores: pd.DataFrame, ranking: Ranks) -> list[dict[str, Any]]:
    rows = []
    for method, rank in ranking.mean_rank.items():
        dice = scores[method]
        of_dice = metrics[(metrics["method"] == method) & (metrics["metric"] == "dice") & metrics["label"].notna()]
        rows.append(
            {
                "method": method,
                "dice": float(dice.mean()),
                "sd": float(dice.std()) if len(dice) > 1 else float("nan"),
                "worst": float(dice.min()),
                "worst_target": dice.idxmin(),
                "hausdorff": _mean(_per_target(metrics, method, "hausdorff_95_mm")),
                "missed": int((of_dice["note"] == "missed").sum()),
                "calibration": _mean(_per_target(metrics, method, "expected_calibration_error")),
                "seconds": _mean(_per_target(metrics, method, "seconds")),
                "megabytes": _mean(_per_target(metrics, method, "peak_memory_mb")),
                "rank": float(rank),
            }
        )
    return rows


# -- plots -------------------------------------------------------------------------------------------------------------

_LEFT, _RIGHT = 210.0, 970.0


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round values that span `low` to `high`."""
    span = max(high - low, 1e-3)
    unit = 10.0 ** np.floor(np.log10(span / 3))
    step = max(unit * m for m in (1, 2, 5, 10) if span / (unit * m) >= 2.5 or m == 1)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(round(n * step, 10)) for n in np.arange(first, max(last, first + 1) + 1)]


def _boxes(scores: pd.DataFrame, ranking: Ranks) -> Markup:
    ticks = _ticks(float(scores.to_numpy().min()), float(scores.to_numpy().max()))
    decimals = max(0, -int(np.floor(np.log10(ticks[1] - ticks[0]) + 1e-9)))
    top, row = 24, 34

    def across(value: float) -> float:
        return _LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_RIGHT - _LEFT)

    rows = []
    for n, method in enumerate(ranking.mean_rank.index):
        values, y = scores[method].to_numpy(float), top + row * (n + 0.5)
        spread = 6.0 * ((np.arange(len(values)) * 0.618034) % 1.0 - 0.5)  # equal in every row; no dot hides another one
        rows.append(
            {
                "y": y,
                "name": _shown(method),
                "box": Box.of(values).placed(across) if len(scores) >= FEWEST_FOR_BOXES else None,
                "dots": [
                    {"target": target, "x": across(value), "y": y + aside, "text": f"{value:.3f}", "href": ""}
                    for target, value, aside in zip(scores.index, values, spread, strict=True)
                ],
                "median": across(float(np.median(values))),
            }
        )
    medians = "; ".join(f"{_shown(m)} median {scores[m].median():.3f}" for m in ranking.mean_rank.index)
    return render_macro(
        "figures.html.j2",
        "strips",
        role="img",
        described=f"Mean Dice of every target, one row per method: {medians}",
        top=top,
        height=top + row * scores.shape[1] + 6,
        ticks=[(across(value), f"{value:.{decimals}f}") for value in ticks],
        rows=rows,
        radius=3.5,
        reach=10,
        median_reach=10,
    )


def _shown(method: object) -> str:
    return str(method).replace("_", " ")


def _not_told_apart(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last index of each maximal run of ascending `ranks` that differ by less than `critical`.

    Runs within another run and runs of a single method are left out.

    Examples
    --------
    >>> _not_told_apart([1.0, 1.4, 2.2, 3.5], 1.0)
    [(0, 1), (1, 2)]
    """
    runs: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if i == first or ranks[i] - ranks[first] < critical - 1e-9)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _ranks(scores: pd.DataFrame, ranking: Ranks) -> dict[str, Any]:
    """Critical-difference diagram (Demsar 2006, figure 1), best method on the left, and the figures of its text."""
    methods, ranks = list(ranking.mean_rank.index), [float(r) for r in ranking.mean_rank]
    critical, k = ranking.critical_difference, len(ranks)
    runs = _not_told_apart(ranks, critical)
    left, right, axis, row = 230.0, 770.0, 58.0 if critical < k - 1 else 34.0, 24.0
    under = axis + 14 + 9 * len(runs)

    def across(rank: float) -> float:
        return left + (rank - 1) / (k - 1) * (right - left)

    placed = []
    for n, (method, rank) in enumerate(zip(methods, ranks, strict=True)):
        on_left = n < (k + 1) // 2
        placed.append(
            {
                "name": _shown(method),
                "rank": rank,
                "on_left": on_left,
                "x": across(rank),
                "y": under + row * ((n if on_left else k - 1 - n) + 0.5),
                "end": left - 20 if on_left else right + 20,
            }
        )
    svg = render_macro(
        "figures.html.j2",
        "ranks",
        described="Mean ranks: " + ", ".join(f"{_shown(m)} {r:.2f}" for m, r in zip(methods, ranks, strict=True)),
        height=under + row * ((k + 1) // 2) + 8,
        left=left,
        right=right,
        axis=axis,
        ticks=[(across(whole), whole) for whole in range(1, k + 1)],
        critical=(across(1 + critical), critical) if critical < k - 1 else None,
        methods=placed,
        bars=[
            (across(ranks[first]) - 4, across(ranks[last]) + 4, axis + 10 + 9 * n)
            for n, (first, last) in enumerate(runs)
        ],
    )
    return {
        "svg": svg,
        "critical": critical,
        "too_few": critical >= k - 1,
        "targets": len(scores),
        "friedman_p": ranking.friedman_p,
    }


def _heat(metrics: pd.DataFrame, ranking: Ranks) -> dict[str, Any]:
    """Table of structures by methods: Dice of each cell, and its colour relative to the mean of the row."""
    dice = metrics[(metrics["metric"] == "dice") & metrics["label"].notna()]
    means = dice.pivot_table(index="label", columns="method", values="value", aggfunc="mean")[
        list(ranking.mean_rank.index)
    ].sort_index()
    names = dict(zip(dice["label"], dice["name"], strict=True))
    middle = means.mean(axis=1)
    apart = means.sub(middle, axis=0)
    strongest = float(np.nanpercentile(np.abs(apart.to_numpy(float)), 98)) if apart.size else 0.0
    scale = max(strongest, 1e-9)
    rows = []
    for label, values in means.iterrows():
        best = values.max()
        cells = [
            {
                "dice": float(value),
                "tint": float(np.clip(apart.loc[label, method] / scale, -1, 1)),
                "best": value == best and bool((values < best).any()),
            }
            for method, value in values.items()
        ]
        rows.append({"name": names[label], "mean": float(middle[label]), "cells": cells})
    return {"methods": [str(method) for method in means.columns], "scale": scale, "rows": rows}


def _tests(scores: pd.DataFrame, tests: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for row in tests.sort_values(["p_holm", "p"], kind="stable").to_dict("records"):
        difference = float(row["mean_difference"])
        better, worse = ("method_a", "method_b") if difference >= 0 else ("method_b", "method_a")
        a, b = row[better], row[worse]
        won, lost = int((scores[a] > scores[b]).sum()), int((scores[b] > scores[a]).sum())
        found = {"better": a, "worse": b, "difference": abs(difference), "won": won, "lost": lost}
        rows.append({**found, "p": float(row["p"]), "p_holm": float(row["p_holm"])})
    return rows


def _costs(metrics: pd.DataFrame, ranking: Ranks) -> list[dict[str, Any]]:
    of = {
        method: [_per_target(metrics, method, metric) for metric in ("seconds", "peak_memory_mb")]
        for method in ranking.mean_rank.index
    }
    longest = max((_mean(seconds) for seconds, _ in of.values()), default=0.0) or 1.0
    rows = []
    for method, (seconds, megabytes) in of.items():
        mean = _mean(seconds)
        shown = [Number(mean, part=mean / longest), Number(_most(seconds))]
        rows.append({"method": method, "figures": [*shown, Number(_mean(megabytes)), Number(_most(megabytes))]})
    return rows


def _most(values: pd.Series[float]) -> float:
    return float(values.max()) if len(values) else float("nan")
