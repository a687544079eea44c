import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.app.outputs import calibration_table
from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation.calibration import expected_calibration_error, reliability
from atlasseg.volume import LabelMap, Mask, ProbabilityMap

AFFINE = np.array([[-0.8, 0.3, 0, 5], [0.2, 1.1, 0, 7], [0, 0, 2, -3], [0, 0, 0, 1.0]])
ROUNDING = 1e-6  # float32 probabilities


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(1, 12))
def test_against_a_loop(seed, bins):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.5, 0.3, 0.3], (4, 5, 3))
    p[0] = [1, 0, 0]
    truth = rng.choice([0, 3, 9], (4, 5, 3))
    truth[0, :4] = 0
    map_ = ProbabilityMap.from_dense(p, [0, 3, 9], AFFINE)
    rows = [[] for _ in range(bins)]
    for x in np.ndindex(4, 5, 3):
        best = float(map_.confidence()[x])
        if (map_.mode[x] == 0 and best == 1) and truth[x] == 0:
            continue
        n = next(b for b in range(bins) if best <= np.linspace(0, 1, bins + 1)[b + 1])
        rows[n].append((best, map_.mode[x] == truth[x]))
    table = reliability(map_, LabelMap(truth, AFFINE), bins=bins)
    assert table.counts.tolist() == [len(r) for r in rows]
    gaps = []
    for n, row in enumerate(rows):
        if row:
            confidence, accuracy = np.mean(row, axis=0)
            np.testing.assert_allclose([table.confidence[n], table.accuracy[n]], [confidence, accuracy], atol=ROUNDING)
            gaps += [abs(confidence - accuracy)] * len(row)
        else:
            assert np.isnan(table.confidence[n]) and np.isnan(table.accuracy[n])
    np.testing.assert_allclose(
        expected_calibration_error(map_, LabelMap(truth, AFFINE), bins=bins), np.mean(gaps), atol=ROUNDING
    )
    np.testing.assert_allclose(table.maximum_calibration_error, max(gaps), atol=ROUNDING)


def test_what_is_drawn_from_the_probabilities_is_calibrated():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, (40, 30, 20))
    truth = (rng.random(p.shape) < p) * 7
    map_ = ProbabilityMap.from_dense(np.stack([1 - p, p], -1), [0, 7], AFFINE)
    right = expected_calibration_error(map_, LabelMap(truth, AFFINE))
    sharp = ProbabilityMap.from_dense(np.stack([(1 - p) ** 3, p**3], -1), [0, 7], AFFINE)
    assert right < 0.02  # 24 000 voxels in 5 bins
    assert expected_calibration_error(sharp, LabelMap(truth, AFFINE)) > 0.1
    table = reliability(map_, LabelMap(truth, AFFINE), label=7)
    np.testing.assert_allclose(table.accuracy, (table.lower + table.upper) / 2, atol=0.05)


def test_labels_not_annotated_are_left_out_of_the_written_table():
    rng = np.random.default_rng(3)
    map_ = ProbabilityMap.from_dense(rng.dirichlet([0.5, 0.3, 0.3], (4, 5, 3)), [0, 3, 9], AFFINE)
    truth = LabelMap(rng.choice([0, 3, 9], (4, 5, 3)), AFFINE)
    every, some = (calibration_table(map_, truth, target="t", method="m", not_annotated=out) for out in ((), {9}))
    judged = Mask((map_.mode != 9) & (truth.array != 9), AFFINE)
    assert some.voxels.tolist() == reliability(map_, truth, mask=judged).counts.tolist()
    assert 0 < some.voxels.sum() < every.voxels.sum() - 10


def test_certain_and_right_or_wrong():
    truth = np.zeros((7, 9, 5), np.int32)
    truth[2:5, 3:6, 1:4] = 4
    labels = LabelMap(truth, AFFINE)
    assert expected_calibration_error(ProbabilityMap.from_labels(labels), labels) == 0
    nothing = ProbabilityMap.from_labels(LabelMap(np.zeros_like(truth), AFFINE))
    assert expected_calibration_error(nothing, labels) == 1  # every voxel in question is missed
    assert np.isnan(expected_calibration_error(nothing, LabelMap(np.zeros_like(truth), AFFINE)))


def test_mask():
    truth = np.zeros((3, 4, 2), np.int32)
    truth[0] = 1
    said = ProbabilityMap.from_labels(LabelMap(np.ones_like(truth), AFFINE))
    here = Mask(truth == 1, AFFINE)
    assert expected_calibration_error(said, LabelMap(truth, AFFINE), mask=here) == 0
    np.testing.assert_allclose(expected_calibration_error(said, LabelMap(truth, AFFINE)), 2 / 3)


def test_errors():
    labels = LabelMap(np.ones((3, 4, 2)), AFFINE)
    map_ = ProbabilityMap.from_labels(labels)
    with pytest.raises(InputError, match="bins: expected at least 1, got 0"):
        reliability(map_, labels, bins=0)
    with pytest.raises(GeometryError, match="reference 'other'"):
        reliability(map_, LabelMap(np.ones((3, 4, 3)), AFFINE, "other"))
    with pytest.raises(GeometryError, match="mask"):
        reliability(map_, labels, mask=Mask(np.ones((3, 4, 2)), 2 * AFFINE + np.diag([0, 0, 0, -1])))
