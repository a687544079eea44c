"""Limits of agreement and comparison of groups, beside other implementations and published numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from atlasseg.errors import InputError
from atlasseg.evaluation.agreement import limits_of_agreement
from atlasseg.evaluation.groups import compare_groups

PEAK_FLOW = (
    [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427],
    [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451],
)
"""Peak expiratory flow by two meters, in l/min: Bland and Altman (1986), Lancet 327:307-310, first readings."""


def test_the_published_limits_of_agreement():
    found = limits_of_agreement(*PEAK_FLOW)
    assert found.pairs == 17
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    # published with 2 SD, and standard errors sd/sqrt(n) and sqrt(3 sd^2/n)
    assert found.bias_interval == pytest.approx((-22.0, 17.8), abs=0.2)
    assert found.lower_interval == pytest.approx((-114.3, -45.1), abs=3)
    assert found.upper_interval == pytest.approx((40.9, 110.1), abs=3)
    assert found.upper - found.lower == pytest.approx(2 * 1.96 * found.sd)


def test_concordance_punishes_a_shift_that_correlation_does_not_see():
    a = np.array([1.0, 2, 3, 4, 6])
    assert limits_of_agreement(a, a).concordance == pytest.approx(1)
    found = limits_of_agreement(a + 2, a).concordance
    assert found == pytest.approx(2 * a.var() / (2 * a.var() + 4)) and found < 1
    assert np.isnan(limits_of_agreement([2, 2, 2], [2, 2, 2]).concordance)


def test_differences_in_percent_are_of_the_mean_of_both():
    found = limits_of_agreement([110, 210, 330, np.nan], [90, 190, 270, 5], percent=True)
    assert found.pairs == 3
    assert found.bias == pytest.approx(np.mean([20, 10, 20]))


@pytest.mark.parametrize(
    ("measured", "reference", "percent", "message"),
    [
        ([1, 2, 3], [1, 2], False, "expected 2 values, as in reference, got 3"),
        ([1, 2, np.nan], [1, 2, 3], False, "at least 3 pairs of measurements, got 2"),
        ([0, 2, 3], [0, 2, 3], True, "no pair of zeros"),
    ],
)
def test_measurements_that_cannot_be_compared(measured, reference, percent, message):
    with pytest.raises(InputError, match=message):
        limits_of_agreement(measured, reference, percent=percent)


@pytest.fixture
def cohort():
    rng = np.random.default_rng(4)
    values = pd.DataFrame(
        {"a": rng.normal(5, 1, 12), "b": np.r_[rng.normal(3, 0.2, 5), rng.normal(4, 0.5, 7)], "c": np.ones(12)},
        index=[f"p{n}" for n in range(12)],
    )
    groups = pd.Series(["control"] * 5 + ["patient"] * 7, index=values.index)
    return values, groups


def test_two_groups_get_welchs_t_test_and_holms_correction(cohort):
    values, groups = cohort
    found = compare_groups(values, groups.sample(frac=1, random_state=1)).set_index("structure")
    p = {name: stats.ttest_ind(values[name][:5], values[name][5:], equal_var=False).pvalue for name in ("a", "b")}
    for name, expected in p.items():
        assert found.loc[name, "p"] == pytest.approx(expected)
        assert found.loc[name, "mean_patient"] == pytest.approx(values[name][5:].mean())
    assert p["b"] < p["a"]
    assert found.loc["b", "p_holm"] == pytest.approx(2 * p["b"])
    assert found.loc["a", "p_holm"] == pytest.approx(max(p["a"], 2 * p["b"]))
    assert found.loc["c", ["p", "p_holm"]].isna().all()
    b = values["b"]
    pooled = np.sqrt((4 * b[:5].var() + 6 * b[5:].var()) / 10)
    assert found.loc["b", "hedges_g"] == pytest.approx((1 - 3 / 39) * (b[:5].mean() - b[5:].mean()) / pooled)
    assert found.loc["b", "n_control"] == 5


def test_three_groups_have_no_effect_size_of_two(cohort):
    values, groups = cohort
    groups[-3:] = "third"
    found = compare_groups(values, groups)
    assert "hedges_g" not in found and found["df"].tolist()[:2] == [2, 2]


def test_groups_that_cannot_be_compared(cohort):
    values, groups = cohort
    with pytest.raises(InputError, match="at least two groups, got control"):
        compare_groups(values, groups[:5])
    values.loc["p1":"p4", "a"] = np.nan
    with pytest.raises(InputError, match="at least two subjects with a in control, got 1"):
        compare_groups(values, groups)
