"""Statistical comparison of methods on the same targets: paired tests and ranks."""

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

__all__ = ["Comparison", "Ranking", "paired_tests", "rank_methods"]

log = logging.getLogger(__name__)

OVERVIEW = {
    "hausdorff_95_mm": "HD95 (mm)",
    "expected_calibration_error": "calibration error",
    "seconds": "seconds",
    "peak_memory_mb": "peak MB",
}
"""Metrics in the overview of a comparison besides Dice and rank, and their column titles."""


class Ranking(NamedTuple):
    """Ranks of methods over targets.

    Parameters
    ----------
    mean_rank : Series
        Mean rank of each method over the targets, best (1) first; ties get their average rank.
    friedman_p : float
        P value of the Friedman test (1937) that all methods are equal; NaN for fewer than three methods or three
        targets.
    critical_difference : float
        Critical difference of the Nemenyi test (Demsar 2006, section 3.2.2): two methods differ significantly if their
        mean ranks differ by at least this much.
    """

    mean_rank: pd.Series[float]
    friedman_p: float
    critical_difference: float

    def to_frame(self) -> pd.DataFrame:
        """Convert to a table, with test and critical difference in every row.

        Returns
        -------
        DataFrame
            One row per method, best first.
        """
        table = self.mean_rank.rename("mean_rank").rename_axis("method").reset_index()
        return table.assign(friedman_p=self.friedman_p, critical_difference=self.critical_difference)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Comparison of several methods on the same targets.

    Parameters
    ----------
    metrics : DataFrame
        All measures in long form: ``target``, ``method``, ``label``, ``name``, ``metric``, ``value``, ``note``. Seconds
        (and peak memory, if measured) are metrics too.
    scores : DataFrame
        Mean Dice over the labels, one row per target and one column per method. Targets on which a method has no Dice
        are left out, also of tests and ranking.
    tests : DataFrame
        Paired tests of every two methods, see `paired_tests`.
    ranking : Ranking
        Mean rank of each method, with the critical difference.
    """

    metrics: pd.DataFrame
    scores: pd.DataFrame
    tests: pd.DataFrame
    ranking: Ranking

    @classmethod
    def from_metrics(cls, metrics: pd.DataFrame) -> Comparison:
        """Compute scores, tests and ranks over the targets on which every method has a Dice.

        Parameters
        ----------
        metrics : DataFrame
            Measures in long form, as in the field `metrics`.

        Raises
        ------
        InputError
            No target has a Dice for every method.
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
            log.warning("targets without a Dice are left out of tests and ranks: %s", "; ".join(left_out))
        if scores.empty:
            raise InputError(
                f"expected a target with a Dice of every method, got none: {'; '.join(left_out)}. The other measures "
                f"are "
                f"written."
            )
        return Comparison(metrics, scores, paired_tests(scores), rank_methods(scores))

    def overview(self) -> pd.DataFrame:
        """Summarise the methods in a table, best first: Dice over the targets, mean rank, HD95 and other measures.

        Returns
        -------
        DataFrame
            One row per method.
        """
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
    """Run Wilcoxon's signed-rank test for every two methods, with Holm's correction for multiple tests.

    Parameters
    ----------
    scores : DataFrame
        One row per target, one column per method, without missing values.

    Returns
    -------
    DataFrame
        One row per pair: ``method_a``, ``method_b``, ``targets``, ``mean_difference`` and ``median_difference`` (a -
        b), ``a_better`` (number of targets on which a is higher), ``p`` (two-sided; 1 if no target differs),
        ``p_holm``.

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


def rank_methods(scores: pd.DataFrame, *, higher_is_better: bool = True, alpha: float = 0.05) -> Ranking:
    """Rank methods on every target, with Friedman's test and the critical difference of the mean ranks.

    Parameters
    ----------
    scores : DataFrame
        One row per target, one column per method (at least two), without missing values.
    higher_is_better : bool
        False for distances.
    alpha : float
        Significance level of the critical difference, 0 to 1.

    Returns
    -------
    Ranking

    References
    ----------
    .. [1] Demsar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7:1-30.
    """
    from scipy.stats import friedmanchisquare, studentized_range

    _check_complete(scores)
    targets, methods = scores.shape
    if methods < 2:
        raise InputError(f"scores: expected at least two methods, got {list(scores.columns)}")
    mean_rank = scores.rank(axis=1, ascending=not higher_is_better).mean().sort_values(kind="stable")
    friedman_p = float("nan")
    if methods > 2 and targets > 2 and (scores.nunique(axis=1) > 1).any():
        friedman_p = float(friedmanchisquare(*(scores[m] for m in scores.columns)).pvalue)
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return Ranking(mean_rank, friedman_p, float(q * np.sqrt(methods * (methods + 1) / (6 * targets))))


def _check_complete(scores: pd.DataFrame) -> None:
    if scores.isna().to_numpy().any():
        row, column = np.argwhere(scores.isna().to_numpy())[0]
        raise InputError(
            f"expected a score of method {scores.columns[column]!r} on target {scores.index[row]!r}, got none"
        )
