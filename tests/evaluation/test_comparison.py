"""Paired tests and ranks, against scipy, a published table and cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from atlasseg.errors import InputError
from atlasseg.evaluation.comparison import paired_tests, rank_methods

SCORES = pd.DataFrame(
    np.random.default_rng(4).normal((0.8, 0.82, 0.81, 0.85), 0.05, (14, 4)).round(2), columns=["a", "b", "c", "d"]
)


def test_ranks_are_those_of_scipy_and_the_critical_difference_that_of_the_paper():
    found = rank_methods(SCORES)
    ranks = np.mean([stats.rankdata(-row) for row in SCORES.to_numpy()], axis=0)
    assert found.mean_rank.to_dict() == pytest.approx(dict(zip(SCORES.columns, ranks, strict=True)))
    assert list(found.mean_rank) == sorted(found.mean_rank)
    # 2.569 is q at 0.05 for four methods in table 5 of Demsar 2006
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), rel=1e-3)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*SCORES.to_numpy().T).pvalue)


def test_distances_rank_the_other_way():
    assert rank_methods(SCORES, higher_is_better=False).mean_rank.index[-1] == rank_methods(SCORES).mean_rank.index[0]


def test_pairs_are_those_of_scipy_corrected_by_holm():
    table = paired_tests(SCORES)
    assert len(table) == 6
    row = table[(table.method_a == "a") & (table.method_b == "d")].iloc[0]
    assert row.p == pytest.approx(stats.wilcoxon(SCORES["a"], SCORES["d"]).pvalue)
    assert row.mean_difference == pytest.approx((SCORES["a"] - SCORES["d"]).mean())
    assert row.a_better == (SCORES["a"] > SCORES["d"]).sum()
    rising = table.sort_values("p")  # Holm by hand: p times the number of tests not yet rejected, never falling
    by_hand = np.minimum(np.maximum.accumulate(rising.p * np.arange(len(rising), 0, -1)), 1)
    np.testing.assert_allclose(rising.p_holm, by_hand)


def test_methods_that_never_differ_are_not_told_apart():
    same = pd.DataFrame({"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7]})
    assert paired_tests(same).p.tolist() == [1.0]
    assert rank_methods(same).mean_rank.tolist() == [1.5, 1.5]


def test_bad_input():
    with pytest.raises(InputError, match="'b' on target 't2'"):
        paired_tests(pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, np.nan]}, index=["t1", "t2"]))
    with pytest.raises(InputError, match="at least two"):
        rank_methods(pd.DataFrame({"a": [1.0, 2.0]}))
