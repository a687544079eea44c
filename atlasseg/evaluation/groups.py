"""Comparison of groups of subjects: tests that the mean volumes of groups are equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlasseg.errors import InputError
from atlasseg.volume import Float64

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_groups"]


def compare_groups(values: pd.DataFrame, groups: pd.Series[str]) -> pd.DataFrame:
    """Test for each structure whether the means of the groups are equal, without assuming equal variances.

    Welch's analysis of variance, which is Welch's t-test for two groups, corrected over the structures by Holm's
    method. For two groups also Hedges' g, the difference of the means (first minus second group) in units of the pooled
    standard deviation, corrected for small samples.

    Parameters
    ----------
    values : DataFrame
        One row per subject, one column per structure. NaN are left out.
    groups : Series
        Group of each subject, by the index of `values`.

    Returns
    -------
    DataFrame
        One row per structure: ``structure``; ``n_GROUP``, ``mean_GROUP`` and ``sd_GROUP`` of each group; ``statistic``
        (F), ``df``, ``df_error``, ``p``, ``p_holm``; for two groups ``hedges_g``. A structure that does not vary within
        the groups has no test (NaN).

    Raises
    ------
    InputError
        There are fewer than two groups, or a group has fewer than two subjects.

    References
    ----------
    .. [1] Welch (1951), On the comparison of several mean values: an alternative approach, Biometrika 38:330-336.
    .. [2] Holm (1979), A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6(2):65-70.
    .. [3] Hedges (1981), Distribution theory for Glass's estimator of effect size, J. Educational Statistics 6:107-128.

    Examples
    --------
    >>> import pandas as pd
    >>> values = pd.DataFrame({"Left-Hippocampus": [4.1, 4.0, 3.8, 3.2, 3.4, 3.1]})
    >>> found = compare_groups(values, pd.Series(["control"] * 3 + ["patient"] * 3))
    >>> found[["mean_control", "mean_patient", "hedges_g"]].round(2).values.tolist()
    [[3.97, 3.23, 3.84]]
    """
    import pandas as pd
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.oneway import anova_oneway

    belongs = groups.reindex(values.index)
    names = sorted(belongs.dropna().astype(str).unique())
    if len(names) < 2:
        raise InputError(f"groups: expected at least two groups, got {', '.join(names) or 'none'}")
    rows = []
    for structure in values.columns:
        samples = [values.loc[belongs.astype(str) == name, structure].dropna().to_numpy(float) for name in names]
        row: dict[str, object] = {"structure": structure}
        for name, sample in zip(names, samples, strict=True):
            if sample.size < 2:
                raise InputError(
                    f"groups: expected at least two subjects with {structure} in {name}, got {sample.size}"
                )
            row |= {f"n_{name}": sample.size, f"mean_{name}": sample.mean(), f"sd_{name}": sample.std(ddof=1)}
        if min(sample.std() for sample in samples) > 0:
            test = anova_oneway(samples, use_var="unequal", welch_correction=True)
            row |= {"statistic": float(test.statistic), "df": float(test.df_num), "df_error": float(test.df_denom)}
            row["p"] = float(test.pvalue)
        else:
            row |= dict.fromkeys(("statistic", "df", "df_error", "p"), float("nan"))
        rows.append(row | ({"hedges_g": _hedges_g(*samples)} if len(names) == 2 else {}))
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table.insert(table.columns.get_loc("p") + 1, "p_holm", np.nan)
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"].to_numpy(float), method="holm")[1]
    return table


def _hedges_g(first: Float64, second: Float64) -> float:
    """Standardised difference of the means of two samples, corrected for small samples."""
    freedom = first.size + second.size - 2
    pooled = np.sqrt(((first.size - 1) * first.var(ddof=1) + (second.size - 1) * second.var(ddof=1)) / freedom)
    correction = 1 - 3 / (4 * freedom - 1)
    return float(correction * (first.mean() - second.mean()) / pooled) if pooled > 0 else float("nan")
