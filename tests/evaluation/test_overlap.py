import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError
from atlasseg.evaluation import overlap

SHAPE = (7, 9, 5)


def random_labels(seed, values=(0, 0, 1, 4, 614454277)):
    return np.random.default_rng(seed).choice(np.array(values, np.int32), SHAPE)


def test_hand_computed():
    reference = np.zeros((1, 5, 2), np.int32)
    segmentation = reference.copy()
    reference[0, :, 0] = [3, 3, 3, 3, 0]
    segmentation[0, :, 0] = [0, 0, 3, 3, 3]
    counts = overlap.count(segmentation, reference)
    assert [*counts.labels, *counts.segmentation, *counts.reference, *counts.both] == [3, 3, 4, 2]
    assert overlap.dice(counts) == pytest.approx([4 / 7])
    assert overlap.jaccard(counts) == pytest.approx([2 / 5])
    assert overlap.volume_similarity(counts) == pytest.approx([1 - 1 / 7])
    assert overlap.sensitivity(counts) == pytest.approx([2 / 4])
    assert overlap.precision(counts) == pytest.approx([2 / 3])


def test_against_simpleitk():
    segmentation, reference = random_labels(1), random_labels(2)
    counts = overlap.count(segmentation, reference)
    itk = sitk.LabelOverlapMeasuresImageFilter()
    itk.Execute(sitk.GetImageFromArray(segmentation), sitk.GetImageFromArray(reference))
    for n, label in enumerate(counts.labels.tolist()):
        assert overlap.dice(counts)[n] == pytest.approx(itk.GetDiceCoefficient(label))
        assert overlap.jaccard(counts)[n] == pytest.approx(itk.GetJaccardCoefficient(label))
        assert overlap.volume_similarity(counts)[n] == pytest.approx(1 - abs(itk.GetVolumeSimilarity(label)) / 2)
        assert 1 - overlap.sensitivity(counts)[n] == pytest.approx(itk.GetFalseNegativeError(label))
        assert overlap.precision(counts)[n] == pytest.approx(1 - itk.GetFalseDiscoveryRate(label))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_invariants(one, other):
    a, b = random_labels(one), random_labels(other)
    there, back = overlap.count(a, b), overlap.count(b, a)
    dice, jaccard = overlap.dice(there), overlap.jaccard(there)
    np.testing.assert_allclose(dice, 2 * jaccard / (1 + jaccard), rtol=1e-12)
    np.testing.assert_array_equal(dice, overlap.dice(back))
    np.testing.assert_array_equal(overlap.sensitivity(there), overlap.precision(back))
    for measure in overlap.METRICS.values():
        assert ((measure(there) >= 0) & (measure(there) <= 1)).all()
        assert (measure(overlap.count(a, a)) == 1).all()


def test_missing_on_either_side_is_worst():
    segmentation, reference = np.array([[[1, 0, 2]]]), np.array([[[1, 3, 0]]])
    counts = overlap.count(segmentation, reference)
    assert counts.labels.tolist() == [1, 2, 3]
    for measure in overlap.METRICS.values():
        assert measure(counts).tolist() == [1, 0, 0]


def test_large_negative_and_many_labels_are_kept_apart():
    labels = np.arange(-2, 313).reshape(9, 7, 5)
    labels[0, 0, 0] = 614454277
    counts = overlap.count(labels, labels + (labels == 614454277))  # the reference has 614454278 there
    assert counts.labels.tolist() == [-1, *range(1, 313), 614454277, 614454278]
    assert overlap.dice(counts).tolist() == [1.0] * 313 + [0.0, 0.0]


def test_nothing_in_either():
    counts = overlap.count(np.zeros(SHAPE, np.int32), np.zeros(SHAPE, np.int32))
    assert counts.labels.size == 0 and overlap.dice(counts).size == 0


def test_shapes_differ():
    with pytest.raises(GeometryError, match=r"\(7, 9, 5\) and \(9, 7, 5\)"):
        overlap.count(np.zeros(SHAPE, int), np.zeros((9, 7, 5), int))
