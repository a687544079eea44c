import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasseg.report.outliers import LEAST_SCORE, Measured, limits, modified_scores, standouts

numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 2)), min_size=5, max_size=30)


@given(numbers, st.floats(0.1, 10), st.floats(-50, 50))
def test_scores_do_not_depend_on_the_unit(values, scale, shift):
    x = np.array(values)
    np.testing.assert_allclose(modified_scores(scale * x + shift), modified_scores(x), atol=1e-6, rtol=1e-6)


def test_scores_of_normal_values_are_standard_scores():
    x = np.random.default_rng(0).normal(7, 3, 20_001)
    assert np.std(modified_scores(x)) == pytest.approx(1, abs=0.03)


def test_scores_where_most_are_the_same():
    assert modified_scores([2, 2, 2, 2]).tolist() == [0, 0, 0, 0]
    found = modified_scores([0, 0, 0, 0, 0, 0, 1])
    assert found[-1] == pytest.approx(0.7979 * 7) and (found[:-1] == 0).all()


def measured(values, side="both", kind="k"):
    return Measured("x", {f"t{n}": v for n, v in enumerate(values)}, side, kind)


@pytest.mark.parametrize(("side", "who"), [("low", ["t1"]), ("high", ["t0"]), ("both", ["t0", "t1"])])
def test_only_the_suspicious_side_stands_out(side, who):
    found = standouts([measured([50, -50, 1, 2, 3, 2, 1, 2, 3, float("nan")], side)])
    assert sorted(found) == who
    for target in found:
        assert found[target][0].median == 2 and abs(found[target][0].score) > LEAST_SCORE


def test_few_targets_and_equal_ones_do_not_stand_out():
    assert standouts([measured([1, 1, 1, 99])]) == {}
    assert standouts([measured([5] * 9)]) == {}


def test_many_values_need_more():
    """Of 20 targets with 139 structures that are normal, hardly ever does one stand out."""
    rng = np.random.default_rng(1)
    every = [measured(rng.normal(size=200), kind="volume") for _ in range(139)]
    assert limits(every)["volume"] > 4.5 > limits([measured(range(9))])["k"] == LEAST_SCORE
    assert len(standouts(every)) <= 3


def test_the_farthest_comes_first():
    near, far = (
        measured([1, 2, 3, 2, 1, 2, 9]),
        Measured("y", {f"t{n}": v for n, v in enumerate([1, 2, 3, 2, 1, 2, 90])}),
    )
    assert [s.what for s in standouts([near, far])["t6"]] == ["y", "x"]
