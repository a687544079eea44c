"""Whether one method is better than another on the same targets: paired tests and ranks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from atlasseg.errors import InputError
from atlasseg.templating import render_macro

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

OVERVIEW = {
    "hausdorff_95_mm": "HD95 (mm)",
    "expected_calibration_error": "calibration error",
    "seconds": "seconds",
    "peak_memory_mb": "peak MB",
}
"""Metrics of a comparison's overview beside Dice and rank, with the titles of their columns."""


class Ranking(NamedTuple):
    """Ranks of methods over targets.

    Parameters
    ----------
    mean_rank : Series
        Method to mean rank over the targets, best (1) first; ties share their ranks.
    friedman_p : float
        Probability of ranks this different where all methods are equal (Friedman 1937); NaN for fewer than three
        methods or three targets.
    critical_difference : float
        Methods whose mean ranks differ by less are not told apart (Nemenyi test; Demsar 2006, section 3.2.2).
    """

    mean_rank: pd.Series[float]
    friedman_p: float
    critical_difference: float

    def to_frame(self) -> pd.DataFrame:
        """One row a method, best first: ``method``, ``mean_rank``, and in all rows the test and critical difference."""
        table = self.mean_rank.rename("mean_rank").rename_axis("method").reset_index()
        return table.assign(friedman_p=self.friedman_p, critical_difference=self.critical_difference)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several methods on the same targets.

    Parameters
    ----------
    metrics : DataFrame
        Long form: ``target``, ``method``, ``label``, ``name``, ``metric``, ``value``, ``note``; seconds (and peak
        memory, where it was measured) are metrics too.
    scores : DataFrame
        Mean Dice over the labels: one row a target, one column a method. Targets on which a method has no Dice are left
        out of it, and so of tests and ranking.
    tests : DataFrame
        Every pair of methods, see `paired_tests`.
    ranking : Ranking
        Mean rank of each method, with the critical difference.
    """

    metrics: pd.DataFrame
    scores: pd.DataFrame
    tests: pd.DataFrame
    ranking: Ranking

    @classmethod
    def of(cls, metrics: pd.DataFrame) -> Comparison:
        """Scores, tests and ranks over the targets on which every method has a Dice.

        Parameters
        ----------
        metrics : DataFrame
            As the field `metrics`.

        Raises
        ------
        InputError
            There is no such target.
        """
        dice = metrics[(metrics["metric"] == "dice") & metrics["label"].notna()]
        means = dice.pivot_table(index="target", columns="method", values="value", aggfunc="mean", sort=False)
        means = means.reindex(index=metrics["target"].unique().tolist(), columns=metrics["method"].unique().tolist())
        scores, unknown = means.dropna(), means.isna().to_numpy()
        left_out = [
            f"{target} ({', '.join(means.columns[row])})"
            for target, row in zip(means.index, unknown, strict=True)
            if row.any()
        ]
        if left_out:
            log.warning("no Dice, so these targets are left out of tests and ranks: %s", "; ".join(left_out))
        if scores.empty:
            raise InputError(
                f"no target has a Dice of every method: {'; '.join(left_out)}; its other measures are written"
            )
        return Comparison(metrics, scores, paired_tests(scores), ranking(scores))

    def overview(self) -> pd.DataFrame:
        """One row a method, best first: its Dice over the targets, mean HD95, rank, and what else was measured."""
        import pandas as pd

        of_labels = self.metrics[self.metrics["label"].notna() | (self.metrics["name"] == "all")]
        per_target = of_labels.groupby(["method", "metric", "target"])["value"].mean()
        means = per_target.groupby(["method", "metric"]).mean()
        rows = []
        for method, rank in self.ranking.mean_rank.items():
            dice = self.scores[method]
            row = {"method": method, "Dice": dice.mean(), "sd": dice.std(), "worst": dice.min()}
            row |= {title: means[method, metric] for metric, title in OVERVIEW.items() if (method, metric) in means}
            rows.append({**row, "mean rank": rank})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        table = self.overview().to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"mean over {len(self.scores)} targets\n{table}"

    def _repr_html_(self) -> str:
        table = self.overview().to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}")
        return render_macro("notebook.html.j2", "comparison", targets=len(self.scores), table=table)


def paired_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """Wilcoxon's signed-rank test between every two methods, corrected for their number by Holm.

    Parameters
    ----------
    scores : DataFrame
        One row a target, one column a method; no value missing.

    Returns
    -------
    DataFrame
        One row a pair: ``method_a``, ``method_b``, ``targets``, ``mean_difference`` and ``median_difference`` (a - b),
        ``a_better`` (targets on which a is higher), ``p`` (two-sided; 1 where no target differs), ``p_holm``.

    Raises
    ------
    InputError
        A value is missing.

    References
    ----------
    .. [1] Wilcoxon (1945), Individual comparisons by ranking methods, Biometrics Bulletin 1(6):80-83.
    .. [2] Holm (1979), A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6(2):65-70.
    """
    import pandas as pd
    from scipy.stats import wilcoxon
    from statsmodels.stats.multitest import multipletests

    _check_complete(scores)
    rows = []
    for a, b in combinations(scores.columns, 2):
        difference = scores[a].to_numpy(float) - scores[b].to_numpy(float)
        p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
        rows.append(
            {
                "method_a": a,
                "method_b": b,
                "targets": len(difference),
                "mean_difference": difference.mean(),
                "median_difference": np.median(difference),
                "a_better": int((difference > 0).sum()),
                "p": p,
            }
        )
    table = pd.DataFrame(
        rows, columns=["method_a", "method_b", "targets", "mean_difference", "median_difference", "a_better", "p"]
    )
    return table.assign(p_holm=multipletests(table["p"].to_numpy(float), method="holm")[1])


def ranking(scores: pd.DataFrame, *, higher_is_better: bool = True, alpha: float = 0.05) -> Ranking:
    """Rank methods on every target, and say how far apart mean ranks must lie to differ.

    Parameters
    ----------
    scores : DataFrame
        One row a target, one column a method (at least two); no value missing.
    higher_is_better : bool
        False for distances.
    alpha : float
        Level of the critical difference, 0 to 1.

    References
    ----------
    .. [1] Demsar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7:1-30.
    """
    from scipy.stats import friedmanchisquare, studentized_range

    _check_complete(scores)
    targets, methods = scores.shape
    if methods < 2:
        raise InputError(f"a ranking needs at least two methods, got {list(scores.columns)}")
    mean_rank = scores.rank(axis=1, ascending=not higher_is_better).mean().sort_values(kind="stable")
    friedman_p = float("nan")
    if methods > 2 and targets > 2 and (scores.nunique(axis=1) > 1).any():
        friedman_p = float(friedmanchisquare(*(scores[m] for m in scores.columns)).pvalue)
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return Ranking(mean_rank, friedman_p, float(q * np.sqrt(methods * (methods + 1) / (6 * targets))))


def _check_complete(scores: pd.DataFrame) -> None:
    if scores.isna().to_numpy().any():
        row, column = np.argwhere(scores.isna().to_numpy())[0]
        raise InputError(f"no score of method {scores.columns[column]!r} on target {scores.index[row]!r}")
