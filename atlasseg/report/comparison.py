"""The page on a comparison of fusion methods: who did best, whether that holds, where, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Protocol

import numpy as np

from atlasseg.report import _html
from atlasseg.report._html import Cell

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""A difference holds whose p-value, corrected by Holm, lies below this."""

FEWEST_FOR_BOXES = 5
"""Of fewer targets quartiles say nothing, and only the dots are drawn."""


class Ranks(Protocol):
    """What `evaluation.comparison.ranking` returns."""

    @property
    def mean_rank(self) -> pd.Series[float]:
        """Method to mean rank over the targets, best first."""

    @property
    def friedman_p(self) -> float:
        """Probability of ranks this different where all methods are equal; NaN where not known."""

    @property
    def critical_difference(self) -> float:
        """Methods whose mean ranks differ by less are not told apart."""


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
    """The page, as HTML that needs no network; the same figures give the same text.

    Parameters
    ----------
    metrics : DataFrame
        Long form: target, method, label, name, metric, value, note. `label` is missing for groups and, where `name`
        is ``all``, for what a method costs: ``seconds``, ``peak_memory_mb``, ``expected_calibration_error``.
    scores : DataFrame
        Mean Dice over the labels: one row a target, one column a method.
    tests : DataFrame
        Every pair of methods: method_a, method_b, targets, mean_difference, a_better, p, p_holm.
    ranking : Ranks
        Mean ranks, best first, Friedman's p and the critical difference.
    recipe : str
        Its text.
    versions : mapping
        Version of each piece of software.
    left_out : mapping, optional
        Why each method that was asked for and could not be used is not among them.
    """
    parts = (
        _header(scores, tests, ranking),
        _left_out(left_out or {}),
        comparison_sections(metrics, scores, tests, ranking),
        _html.making(recipe, versions),
    )
    return _html.document("Comparison of fusion methods \u00b7 atlasseg", "".join(parts))


def comparison_sections(metrics: pd.DataFrame, scores: pd.DataFrame, tests: pd.DataFrame, ranking: Ranks) -> str:
    """What the page says between its head and its end, for the page of a cohort; parameters as above."""
    return "".join(
        (
            _overview(metrics, scores, ranking),
            _boxes(scores, ranking),
            _ranks(scores, ranking),
            _heat(metrics, ranking),
            _tests(scores, tests),
            _costs(metrics, ranking),
        )
    )


def _shown(method: object) -> str:
    return escape(str(method).replace("_", " "))


def _listed(methods: Sequence[object], word: str = "and") -> str:
    names = [f"<em>{_shown(m)}</em>" for m in methods]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _left_out(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return ""
    said = "".join(f"<li><em>{_shown(method)}</em>: {escape(reason)}</li>" for method, reason in reasons.items())
    return f'<section aria-labelledby="out"><h2 id="out">Left out</h2>\n<ul>{said}</ul></section>\n'


def _against(tests: pd.DataFrame, method: object) -> dict[object, tuple[float, float]]:
    """Of every other method: mean difference from it, positive where `method` is better, and corrected p."""
    found: dict[object, tuple[float, float]] = {}
    for row in tests.to_dict("records"):
        if row["method_a"] == method:
            found[row["method_b"]] = (float(row["mean_difference"]), float(row["p_holm"]))
        elif row["method_b"] == method:
            found[row["method_a"]] = (-float(row["mean_difference"]), float(row["p_holm"]))
    return found


def _header(scores: pd.DataFrame, tests: pd.DataFrame, ranking: Ranks) -> str:
    ranks = ranking.mean_rank
    first = [m for m in ranks.index if ranks[m] <= ranks.iloc[0] + 1e-9]
    best, means = first[0], scores.mean()
    if len(first) > 1:
        said = f"{_listed(first)} share the first rank on {_html.count(len(scores), 'target')}."
    else:
        said = (
            f"{_listed([best])} did best on {_html.count(len(scores), 'target')}: mean Dice {means[best]:.3f}, "
            f"mean rank {ranks[best]:.2f} of {len(ranks)}."
        )
        highest = means.idxmax()
        if means[highest] > means[best]:
            said += f" The highest mean Dice, {means[highest]:.3f}, is that of {_listed([highest])}."
        said += f" {_whether_it_holds(best, scores, tests)}"
    shown = [
        ("methods", str(len(ranks))),
        ("targets", str(len(scores))),
        ("mean Dice of the first", f"{means[best]:.3f}"),
        ("critical difference of ranks", f"{ranking.critical_difference:.2f}"),
    ]
    return (
        '<header>\n<p class="kind">Comparison of fusion methods on the same registrations</p>\n'
        f"<h1>{_html.count(len(ranks), 'method')}, {_html.count(len(scores), 'target')}</h1>\n"
        f'<p class="cover">{said}</p>\n{_html.facts(shown)}</header>\n<main>\n'
    )


def _whether_it_holds(best: object, scores: pd.DataFrame, tests: pd.DataFrame) -> str:
    """What the paired tests say of the method that ranks first."""
    rivals = _against(tests, best)
    beaten = [m for m, (difference, p) in rivals.items() if p < LEVEL and difference > 0]
    level = [m for m in rivals if m not in beaten]
    least_p = len(tests) * 2.0 ** (1 - len(scores))
    if not level:
        worst = max(p for _, p in rivals.values())
        whom = _listed(list(rivals)) if len(rivals) == 1 else "every other method"
        said = "p < 0.001" if worst < 0.001 else f"p at most {worst:.3f}"
        return f"The difference from {whom} <strong>holds</strong> (Wilcoxon, corrected by Holm: {said})."
    if least_p >= LEVEL:
        return (
            f"<strong>No difference can hold</strong> with so few targets: of {_html.count(len(tests), 'pair')} on "
            f"{_html.count(len(scores), 'target')} the least corrected p that there can be is {min(least_p, 1):.2g}."
        )
    if not beaten:
        return (
            "<strong>Its lead does not hold</strong>: no difference from another method passes the paired tests "
            f"(Wilcoxon, corrected by Holm, {LEVEL})."
        )
    return (
        f"Its lead over {_listed(beaten)} <strong>holds</strong> (Wilcoxon, corrected by Holm, {LEVEL}); "
        f"from {_listed(level, 'or')} it is <strong>not told apart</strong>."
    )


def _per_target(metrics: pd.DataFrame, method: object, metric: str) -> pd.Series[float]:
    """Mean over the labels (or the cost itself) for every target, those not known left out."""
    rows = metrics[(metrics["method"] == method) & (metrics["metric"] == metric)]
    rows = rows[rows["label"].notna() | (rows["name"] == "all")]
    return rows.groupby("target", sort=False)["value"].mean().dropna().astype(float)


def _mean(values: pd.Series[float]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _overview(metrics: pd.DataFrame, scores: pd.DataFrame, ranking: Ranks) -> str:
    heads = [("Method", False)]
    heads += [
        (head, True)
        for head in (
            "Mean Dice",
            "SD",
            "Worst target",
            "HD95, mm",
            "Structures missed",
            "Calibration error",
            "Seconds",
            "Peak MB",
            "Mean rank",
        )
    ]
    rows = []
    for method, rank in ranking.mean_rank.items():
        dice = scores[method]
        of_dice = metrics[(metrics["method"] == method) & (metrics["metric"] == "dice") & metrics["label"].notna()]
        missed = int((of_dice["note"] == "missed").sum())
        cells = [
            Cell(_shown(method), str(method)),
            _html.fixed(float(dice.mean()), 4, part=float(dice.mean())),
            _html.fixed(float(dice.std()) if len(dice) > 1 else float("nan"), 4),
            Cell(f'{dice.min():.3f} <span class="soft">{escape(str(dice.idxmin()))}</span>', f"{dice.min():.6g}"),
            _html.fixed(_mean(_per_target(metrics, method, "hausdorff_95_mm")), 2),
            Cell(str(missed), missed, numeric=True),
            _html.fixed(_mean(_per_target(metrics, method, "expected_calibration_error")), 4),
            _html.number(_mean(_per_target(metrics, method, "seconds"))),
            _html.number(_mean(_per_target(metrics, method, "peak_memory_mb"))),
            _html.fixed(float(rank), 2),
        ]
        rows.append((cells, False))
    return (
        '<section aria-labelledby="methods"><h2 id="methods">Methods compared</h2>\n'
        "<p>Means over the targets, of each target the mean over its structures. A structure that was missed counts "
        "with Dice 0 and the worst distance there can be. Calibration error: how far the probability of the chosen "
        "label lies, on average, from the share of voxels where it is right. Column heads sort.</p>\n"
        f"{_html.table(heads, rows)}</section>\n"
    )


# -- plots -------------------------------------------------------------------------------------------------------------

_LEFT, _RIGHT = 210.0, 970.0


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round values that span `low` to `high`."""
    span = max(high - low, 1e-3)
    unit = 10.0 ** np.floor(np.log10(span / 3))
    step = max(unit * m for m in (1, 2, 5, 10) if span / (unit * m) >= 2.5 or m == 1)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(round(n * step, 10)) for n in np.arange(first, max(last, first + 1) + 1)]


def _boxes(scores: pd.DataFrame, ranking: Ranks) -> str:
    boxed = len(scores) >= FEWEST_FOR_BOXES
    ticks = _ticks(float(scores.to_numpy().min()), float(scores.to_numpy().max()))
    decimals = max(0, -int(np.floor(np.log10(ticks[1] - ticks[0]) + 1e-9)))
    top, row = 24, 34
    height = top + row * scores.shape[1] + 6

    def across(value: float) -> float:
        return _LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_RIGHT - _LEFT)

    said = "Mean Dice of every target, a row a method: " + "; ".join(
        f"{str(m).replace('_', ' ')} median {scores[m].median():.3f}" for m in ranking.mean_rank.index
    )
    parts = [f'<svg class="strip" viewBox="0 0 1000 {height}" role="img" aria-label="{escape(said)}">']
    for value in ticks:
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 6}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="9">{value:.{decimals}f}</text>')
    for n, method in enumerate(ranking.mean_rank.index):
        values, y = scores[method].to_numpy(float), top + row * (n + 0.5)
        parts.append(f'<text x="0" y="{y:.1f}">{_shown(method)}</text>')
        if boxed:
            q1, q3 = np.percentile(values, (25, 75))
            reach = 1.5 * (q3 - q1)
            whiskers = values[values >= q1 - reach].min(), values[values <= q3 + reach].max()
            a, b, w1, w2 = (across(float(v)) for v in (q1, q3, *whiskers))
            parts.append(f'<path class="whisker" d="M{w1:.1f} {y:.1f}H{a:.1f}M{b:.1f} {y:.1f}H{w2:.1f}"/>')
            parts.append(f'<rect x="{a:.1f}" y="{y - 10:.1f}" width="{max(b - a, 0.5):.1f}" height="20" rx="2"/>')
        for i, (target, value) in enumerate(zip(scores.index, values, strict=True)):
            aside = 6.0 * ((i * 0.618034) % 1.0 - 0.5)  # spread alike in every row, so that dots are not hidden
            told = f"<title>{escape(str(target))}: {value:.3f}</title>"
            parts.append(f'<circle cx="{across(value):.1f}" cy="{y + aside:.1f}" r="3.5">{told}</circle>')
        middle = across(float(np.median(values)))
        parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 10:.1f}" y2="{y + 10:.1f}"/>')
    about = "A dot is a target, the heavy line their median." + (
        " Boxes hold the middle half of the targets, whiskers reach as far as 1.5 times their width." if boxed else ""
    )
    return (
        '<section aria-labelledby="spread"><h2 id="spread">Dice over the targets</h2>\n'
        f'<p>{about}</p>\n<figure class="scroll">{"".join(parts)}</svg></figure></section>\n'
    )


def _not_told_apart(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last of every largest run of ascending `ranks` in which all lie less than `critical` apart.

    Runs that lie within another are left out, and so are those of a single method.

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


def _ranks(scores: pd.DataFrame, ranking: Ranks) -> str:
    """The critical-difference diagram (Demsar 2006, figure 1), the best at the left."""
    methods, ranks = list(ranking.mean_rank.index), [float(r) for r in ranking.mean_rank]
    critical, k = ranking.critical_difference, len(ranks)
    runs = _not_told_apart(ranks, critical)
    left, right, axis, row = 230.0, 770.0, 58.0 if critical < k - 1 else 34.0, 24.0
    under = axis + 14 + 9 * len(runs)
    height = under + row * ((k + 1) // 2) + 8

    def across(rank: float) -> float:
        return left + (rank - 1) / (k - 1) * (right - left)

    said = "Mean ranks: " + ", ".join(
        f"{str(m).replace('_', ' ')} {r:.2f}" for m, r in zip(methods, ranks, strict=True)
    )
    parts = [f'<svg class="strip ranks" viewBox="0 0 1000 {height:.0f}" role="img" aria-label="{escape(said)}">']
    parts.append(f'<path class="rule" d="M{left} {axis}H{right}"/>')
    for whole in range(1, k + 1):
        x = across(whole)
        parts.append(f'<path class="rule" d="M{x:.1f} {axis}v-6"/><text class="axis" x="{x:.1f}" y="{axis - 15}">')
        parts.append(f"{whole}</text>")
    if critical < k - 1:
        end = across(1 + critical)
        parts.append(f'<path class="rule" d="M{left} 20v-8M{left} 16H{end:.1f}M{end:.1f} 20v-8"/>')
        parts.append(f'<text x="{end + 8:.1f}" y="16">critical difference {critical:.2f}</text>')
    for n, (method, rank) in enumerate(zip(methods, ranks, strict=True)):
        on_left = n < (k + 1) // 2
        y = under + row * ((n if on_left else k - 1 - n) + 0.5)
        x, end = across(rank), left - 20 if on_left else right + 20
        parts.append(f'<path class="lead" d="M{x:.1f} {axis}V{y:.1f}H{end}"/>')
        anchor, text = ("end", end - 6) if on_left else ("start", end + 6)
        number = f'<tspan class="soft">{rank:.2f}</tspan>'
        words = f"{_shown(method)}  {number}" if on_left else f"{number}  {_shown(method)}"
        parts.append(f'<text x="{text}" y="{y:.1f}" text-anchor="{anchor}" xml:space="preserve">{words}</text>')
    for n, (first, last) in enumerate(runs):
        a, b = across(ranks[first]) - 4, across(ranks[last]) + 4
        parts.append(f'<path class="together" d="M{a:.1f} {axis + 10 + 9 * n:.1f}H{b:.1f}"/>')
    about = (
        "Mean rank over the targets, 1 best. Bars join methods that are not told apart, their ranks lying less than "
        f"the critical difference of {critical:.2f} apart (Nemenyi, {LEVEL}; Demsar 2006)."
    )
    if critical >= k - 1:
        about += f" With {_html.count(len(scores), 'target')} it is larger than ranks can differ at all."
    if np.isfinite(ranking.friedman_p):
        differ = "differ more than chance has it" if ranking.friedman_p < LEVEL else "could differ so much by chance"
        about += f" Ranks {differ} (Friedman, {_p(ranking.friedman_p)})."
    return (
        '<section aria-labelledby="ranks"><h2 id="ranks">Ranks</h2>\n'
        f'<p>{about}</p>\n<figure class="scroll">{"".join(parts)}</svg></figure></section>\n'
    )


def _heat(metrics: pd.DataFrame, ranking: Ranks) -> str:
    """Structures by methods: each cell says its Dice, and its colour how it stands to the others of its row."""
    dice = metrics[(metrics["metric"] == "dice") & metrics["label"].notna()]
    means = dice.pivot_table(index="label", columns="method", values="value", aggfunc="mean")[
        list(ranking.mean_rank.index)
    ].sort_index()
    names = dict(zip(dice["label"], dice["name"], strict=True))
    middle = means.mean(axis=1)
    apart = means.sub(middle, axis=0)
    strongest = float(np.nanpercentile(np.abs(apart.to_numpy(float)), 98)) if apart.size else 0.0
    scale = max(strongest, 1e-9)
    heads = [("Structure", False), ("Mean", True), *((_shown(m), True) for m in means.columns)]
    rows = []
    for label, values in means.iterrows():
        cells = [_html.text(names[label]), _html.fixed(float(middle[label]), 3, part=float(middle[label]))]
        best = values.max()
        for method, value in values.items():
            if not np.isfinite(value):
                cells.append(_html.fixed(float("nan"), 3))
                continue
            tint = float(np.clip(apart.loc[label, method] / scale, -1, 1))
            said = f"{value:.3f}"
            if value == best and (values < best).any():
                said = f"<b>{said}</b>"
            side = "tint below" if tint < 0 else "tint"
            html = f'<span class="{side}" style="--tint:{abs(tint):.2f}">{said}</span>'
            cells.append(Cell(html, f"{value:.6g}", numeric=True))
        rows.append((cells, False))
    return (
        '<section aria-labelledby="structures"><h2 id="structures">Dice of each structure by method</h2>\n'
        "<p>Means over the targets. The colour says how a method stands to the mean of all methods on that structure: "
        f'<span class="tint" style="--tint:1">above</span> or <span class="tint below" style="--tint:1">below</span> '
        f"it, full colour from {_html.significant(scale, 2)} on; the best of a row is bold. Column heads sort.</p>\n"
        f'<div class="heat">{_html.table(heads, rows)}</div></section>\n'
    )


# -- tables ------------------------------------------------------------------------------------------------------------


def _tests(scores: pd.DataFrame, tests: pd.DataFrame) -> str:
    heads = [("Better", False), ("Worse", False), ("Difference of mean Dice", True), ("Targets won : lost", True)]
    heads += [("p", True), ("p, Holm", True), ("Holds", False)]
    rows = []
    for row in tests.sort_values(["p_holm", "p"], kind="stable").to_dict("records"):
        difference = float(row["mean_difference"])
        pair = [row["method_a"], row["method_b"]] if difference >= 0 else [row["method_b"], row["method_a"]]
        wins, losses = (int((scores[pair[i]] > scores[pair[1 - i]]).sum()) for i in (0, 1))
        holds = float(row["p_holm"]) < LEVEL
        cells = [
            *(Cell(_shown(m), str(m)) for m in pair),
            _html.fixed(abs(difference), 4),
            Cell(f"{wins} : {losses}", wins - losses, numeric=True),
            _p_cell(float(row["p"])),
            _p_cell(float(row["p_holm"])),
            Cell("yes" if holds else '<span class="soft">no</span>', "yes" if holds else "no"),
        ]
        rows.append((cells, False))
    return (
        '<section aria-labelledby="tests"><h2 id="tests">Every two methods</h2>\n'
        "<p>Wilcoxon's signed-rank test on the mean Dice of the same targets, two-sided; p corrected for the number of "
        f"pairs by Holm. A difference holds below {LEVEL}.</p>\n{_html.table(heads, rows)}</section>\n"
    )


def _p_cell(p: float) -> Cell:
    return Cell("&lt; 0.001" if p < 0.001 else f"{p:.3f}", f"{p:.6g}", numeric=True)


def _costs(metrics: pd.DataFrame, ranking: Ranks) -> str:
    heads = [("Method", False), ("Seconds, mean", True), ("Seconds, longest", True)]
    heads += [("Peak MB, mean", True), ("Peak MB, most", True)]
    of = {
        method: [_per_target(metrics, method, metric) for metric in ("seconds", "peak_memory_mb")]
        for method in ranking.mean_rank.index
    }
    longest = max((_mean(seconds) for seconds, _ in of.values()), default=0.0) or 1.0
    rows = []
    for method, measured in of.items():
        cells = [Cell(_shown(method), str(method))]
        for n, values in enumerate(measured):
            most = float(values.max()) if len(values) else float("nan")
            cells.append(_html.number(_mean(values), part=_mean(values) / longest if n == 0 and len(values) else None))
            cells.append(_html.number(most))
        rows.append((cells, False))
    return (
        '<section aria-labelledby="costs"><h2 id="costs">What a fusion costs</h2>\n'
        "<p>For one target, without its registrations, which all methods share. Memory is what the process took at "
        "most beyond what it had before; a first fusion may include compilation.</p>\n"
        f"{_html.table(heads, rows)}</section>\n"
    )
