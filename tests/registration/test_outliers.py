"""Failed registrations are found, sound ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from atlasseg.errors import InputError
from atlasseg.registration.outliers import find_failures


def test_the_z_score_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.5, 0.1, 15)
    expected = (values - np.median(values)) / median_abs_deviation(values, scale="normal")
    found = [v.z for v in find_failures(values, least_spread=0)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # 1.4826 is rounded


@pytest.mark.parametrize("failures", [1, 4, 7])
def test_up_to_half_the_library_may_fail_without_hiding_it(failures):
    rng = np.random.default_rng(failures)
    values = np.concatenate([rng.normal(0.5, 0.02, 15 - failures), rng.normal(0.12, 0.02, failures)])
    keep = np.array([v.keep for v in find_failures(values)])
    assert keep[: 15 - failures].all()
    assert not keep[15 - failures :].any()


@given(
    st.lists(st.floats(0.2, 0.9), min_size=4, max_size=12),
    st.permutations(range(12)),
)
@settings(max_examples=25, deadline=None)
def test_order_does_not_matter_and_the_better_half_is_kept_whole(values, order):
    checks = find_failures(values)
    for value, qc in zip(values, checks, strict=True):
        if value >= np.median(values):
            assert qc.keep and qc.weight == 1 and not qc.reason
        assert qc.keep == (qc.weight > 0 or abs(qc.z + 3.5) < 1e-12)
    order = [i for i in order if i < len(values)]
    assert [checks[i] for i in order] == find_failures([values[i] for i in order])


def test_the_weight_falls_between_doubt_and_threshold():
    middle, spread = 0.5, 0.025  # all others are alike, so the spread is the least: 5 % of the median
    z = np.array([-2.4, -2.75, -3.0, -3.25, -3.6])
    checks = find_failures([*(middle + z * spread), *([middle] * 20)])
    np.testing.assert_allclose([v.weight for v in checks[:5]], [1, 0.75, 0.5, 0.25, 0], atol=1e-9)
    assert [v.keep for v in checks[:5]] == [True, True, True, True, False]
    assert "weight 0.50" in checks[2].reason and "median 0.5 of 25 atlases" in checks[4].reason


def test_a_small_library_is_judged_by_the_floor_alone():
    checks = find_failures([0.6, 0.2, 0.01])
    assert [v.keep for v in checks] == [True, True, False]
    assert "below the floor 0.05" in checks[2].reason
    assert np.isnan(checks[0].z)


def test_what_cannot_be_measured_has_failed():
    checks = find_failures([0.5, float("nan"), 0.5, 0.52, 0.49])
    assert [v.keep for v in checks] == [True, False, True, True, True]
    assert "overlap" in checks[1].reason


def test_where_all_fail_none_is_dropped_and_each_says_so():
    for values, best in (([0.01, 0.02], "best, b, 0.02"), ([float("nan")] * 2, "none overlaps")):
        checks = find_failures(values, names=["a", "b"])
        assert all(v.keep and "no atlas reaches" in v.reason and best in v.reason for v in checks)


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"names: expected one per similarity .*got 2"):
        find_failures([0.5], names=["a", "b"])
    with pytest.raises(InputError, match="doubt <= threshold"):
        find_failures([0.5], doubt=4)
