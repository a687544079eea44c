"""A segmentation made consistent: what must change changes, what must not does not, and the report adds up."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError, InputError
from atlasseg.regions import split_and_merge
from atlasseg.regions.consistency import _with_labels, make_consistent, region_channels
from atlasseg.regions.evidence import with_intensity
from atlasseg.volume import Image, LabelMap, ProbabilityMap

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
SUM_ROUNDING = 1e-5  # float32 probabilities


def label_map(shape=(9, 11, 7)):
    labels = np.zeros(shape, np.int32)
    labels[1:5, 1:8, 1:6] = 3
    labels[5:8, 1:8, 1:6] = 70
    return labels


def image_of(labels, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return Image(
        np.choose(np.searchsorted([0, 3, 70], labels), [10.0, 60, 90]) + rng.normal(0, noise, labels.shape), OBLIQUE
    )


def by(result, label):
    return next(c for c in result.changes if c.label == label)


def entries_are_sound(p):
    if p.voxels.size:
        sums = np.add.reduceat(p.values, p.offsets[:-1])
        np.testing.assert_allclose(sums, 1, atol=SUM_ROUNDING)
        best = np.maximum.reduceat(p.values, p.offsets[:-1])
        at_mode = p.labels == p.mode.reshape(-1)[p.entry_voxels]
        np.testing.assert_array_equal(p.values[at_mode], best)


def test_a_consistent_label_map_comes_back_unchanged():
    labels = label_map()
    method = partial(split_and_merge.partition, merge_threshold=3.0)
    result = make_consistent(image_of(labels, 2.0), LabelMap(labels, OBLIQUE), method=method)
    np.testing.assert_array_equal(result.labels.array, labels)
    assert result.voxels_changed == 0
    assert all(c.voxels_before == c.voxels_after and not c.islands for c in result.changes)


def test_regions_vote_where_the_posterior_is_torn():
    """One bright region whose voxels lean one way by little and the other way by less: its sum decides for all."""
    labels = label_map()
    dense = np.stack([(labels == v).astype(float) for v in (0, 3, 70)], axis=-1)
    torn = np.zeros(labels.shape, bool)
    torn[5:8, 1:8, 1:6] = True
    rng = np.random.default_rng(1)
    lean = np.where(rng.random(torn.sum()) < 0.25, 0.47, 0.6)
    dense[torn] = np.stack([np.zeros(lean.size), 1 - lean, lean], axis=-1)
    fused = ProbabilityMap.from_dense(dense, (0, 3, 70), OBLIQUE)
    before = fused.mode.copy()
    assert (before[torn] == 3).any()
    method = partial(split_and_merge.partition, merge_threshold=30.0)
    result = make_consistent(image_of(labels, 2.0), fused, method=method, posterior_weight=5.0)
    np.testing.assert_array_equal(result.labels.array, labels)
    entries_are_sound(result.probabilities)
    assert by(result, 70).by_region == (before[torn] == 3).sum() == result.voxels_changed
    np.testing.assert_array_equal(fused.mode, before)  # what was given is left alone


def test_islands_go_to_the_neighbour_that_explains_them_best():
    labels = label_map()
    dense = np.stack([(labels == v).astype(float) for v in (0, 3, 70)], axis=-1)
    dense[4, 4, 3] = (0.0, 0.3, 0.7)  # touches both 3 and 70 itself, so no island
    dense[2, 3, 3] = (0.1, 0.3, 0.6)  # in the middle of 3
    dense[8, 9, 6] = (0.45, 0.0, 0.55)  # out in the background
    fused = ProbabilityMap.from_dense(dense, (0, 3, 70), OBLIQUE)
    result = make_consistent(image_of(labels), fused, intensity_exponent=0.0, min_component_fraction=0.1)
    assert (result.labels.array[4, 4, 3], result.labels.array[2, 3, 3], result.labels.array[8, 9, 6]) == (70, 3, 0)
    assert by(result, 70).islands == 2 and by(result, 70).parts_before == 3 and by(result, 70).parts_after == 1
    assert result.voxels_changed == 2
    entries_are_sound(result.probabilities)
    kept = make_consistent(image_of(labels), fused, intensity_exponent=0.0, min_component_fraction=0.0)
    assert kept.voxels_changed == 0


def test_where_no_neighbour_has_probability_intensity_decides():
    labels = np.zeros((9, 7, 5), np.int32)
    labels[:5] = 3
    labels[8, 6, 4] = 3  # large part of 3 elsewhere; the island below lies between 3 and 70
    labels[5:, :3] = 70
    labels[4, 1, 2] = 9
    labels[7:, 5:, 0:2] = 9
    labels[7, 4, 1] = 9
    array = np.where(labels == 3, 60.0, np.where(labels == 70, 90.0, 10.0))
    array[4, 1, 2] = 88
    result = make_consistent(Image(array, OBLIQUE), LabelMap(labels, OBLIQUE), min_component_fraction=0.2)
    assert result.labels.array[4, 1, 2] == 70


def test_topology_is_seen_to_only_where_asked_for():
    labels = label_map()
    labels[2:4, 3:5, 2:4] = 0  # a hole in 3
    labels[6, 4, 3] = 0  # and in 70
    labels[8, 10, 0:3] = 70  # a second part
    image = image_of(labels)
    nothing = make_consistent(image, LabelMap(labels, OBLIQUE), min_component_fraction=0.0)
    assert nothing.voxels_changed == 0
    result = make_consistent(
        image, LabelMap(labels, OBLIQUE), min_component_fraction=0.0, fill_holes=(3,), largest_part=(70,)
    )
    expected = labels.copy()
    expected[2:4, 3:5, 2:4] = 3
    expected[8, 10, 0:3] = 0
    np.testing.assert_array_equal(result.labels.array, expected)
    assert by(result, 3).holes == 8 and by(result, 70).islands == 1 and by(result, 70).holes == 0
    everything = make_consistent(image, LabelMap(labels, OBLIQUE), min_component_fraction=0.0, fill_holes="all")
    assert by(everything, 70).holes == 1


def test_holes_of_a_slice_are_filled():
    ring = np.zeros((7, 1, 6), np.int32)
    ring[1:6, :, 1:5] = 4
    ring[3, 0, 2] = 0
    result = make_consistent(
        Image(np.zeros(ring.shape), OBLIQUE), LabelMap(ring, OBLIQUE), fill_holes="all", min_component_fraction=0
    )
    assert result.labels.array[3, 0, 2] == 4 and result.labels.array[0, 0, 0] == 0


def test_no_label_vanishes_unasked():
    labels = label_map()
    labels[3, 4, 3] = 12
    labels[6, 4, 4] = 5
    image = image_of(np.where((labels == 12) | (labels == 5), 3, labels), 1.0)
    everything = partial(lambda channels, noise_sd: LabelMap(np.ones(channels.shape, np.int32), channels.affine))
    result = make_consistent(image, LabelMap(labels, OBLIQUE), method=everything)
    assert set(np.unique(result.labels.array)) == {0, 3, 5, 12, 70}
    assert by(result, 12).restored == by(result, 5).restored == 1 and by(result, 70).restored == (labels == 70).sum()
    asked = make_consistent(image, LabelMap(labels, OBLIQUE), method=everything, removable_labels=(5, 70))
    assert set(np.unique(asked.labels.array)) == {0, 3, 12}
    assert by(asked, 70).voxels_after == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_report_probabilities_and_labels_agree(seed, count, votes):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.choice(np.arange(1, 500), count, replace=False))
    dense = rng.random((6, 5, 7, count + 1)) ** 4
    dense[rng.random(dense.shape) < 0.4] = 0
    fused = ProbabilityMap.from_dense(dense, (0, *values), OBLIQUE)
    image = Image(rng.normal(0, 1, (6, 5, 7, 2)), OBLIQUE)
    method = partial(split_and_merge.partition, merge_threshold=2.0) if votes else None
    result = make_consistent(image, fused, method=method, min_component_fraction=0.3, posterior_weight=4.0)
    entries_are_sound(result.probabilities)
    after = result.labels.array
    assert result.voxels_changed == (after != fused.mode).sum()
    for change in result.changes:
        assert change.voxels_before == (fused.mode == change.label).sum()
        assert change.voxels_after == (after == change.label).sum()
        assert change.voxels_after > 0 or change.label == 0 or change.voxels_before == 0
    np.testing.assert_array_equal(result.probabilities.label_values, np.union1d(fused.label_values, fused.mode))


def test_labels_that_meet_get_different_channels_and_the_others_share():
    labels = np.zeros((20, 4, 3), np.int32)
    labels[1:4], labels[4:7], labels[10:12], labels[12:15] = 1, 2, 3, 4
    image = Image(np.random.default_rng(0).normal(0, 5, labels.shape), OBLIQUE)
    channels = region_channels(image, ProbabilityMap.from_labels(LabelMap(labels, OBLIQUE)), posterior_weight=8.0)
    assert channels.array.shape[-1] == 1 + 3  # background, and two colors for four labels
    posterior = channels.array[..., 1:].reshape(-1, 3)
    assert np.linalg.norm(
        posterior[labels.reshape(-1) == 1][0] - posterior[labels.reshape(-1) == 2][0]
    ) == pytest.approx(8)
    assert (
        region_channels(image, ProbabilityMap.from_labels(LabelMap(labels, OBLIQUE)), posterior_weight=0).array.shape[
            -1
        ]
        == 1
    )


def test_intensity_speaks_where_it_tells_labels_apart():
    rng = np.random.default_rng(3)
    truth = np.zeros((11, 13, 9), np.int32)
    truth[5:] = 2
    dense = np.zeros((*truth.shape, 2))
    dense[..., 1] = np.clip((np.arange(11) - 1.5) / 6, 0, 1)[:, None, None]  # the border lies half a voxel off
    dense[..., 0] = 1 - dense[..., 1]
    fused = ProbabilityMap.from_dense(dense, (0, 2), OBLIQUE)
    bright = Image(20.0 * truth + rng.normal(0, 1, truth.shape), OBLIQUE)
    updated = with_intensity(bright, fused)
    wrong = [(p.mode != truth).sum() for p in (fused, updated)]
    assert wrong[1] == 0 < wrong[0] or wrong == [0, 0]
    assert updated.confidence()[3:8].mean() > fused.confidence()[3:8].mean()
    flat = Image(np.full(truth.shape, 4.0), OBLIQUE)
    np.testing.assert_allclose(with_intensity(flat, fused).dense(), fused.dense(), atol=SUM_ROUNDING)
    certain = np.ones(truth.size, bool)
    certain[fused.voxels] = False
    np.testing.assert_array_equal(updated.mode.reshape(-1)[certain], fused.mode.reshape(-1)[certain])
    assert with_intensity(bright, fused, exponent=0.0) is fused


def test_what_cannot_be_used_is_refused():
    labels = LabelMap(label_map(), OBLIQUE)
    image = image_of(labels.array)
    with pytest.raises(GeometryError, match=r"expected one grid, got shapes \(9, 11, 8\) and \(9, 11, 7\)"):
        make_consistent(Image(np.zeros((9, 11, 8)), OBLIQUE), labels)
    with pytest.raises(GeometryError, match="expected one grid"):
        make_consistent(Image(image.array, np.eye(4)), labels)
    with pytest.raises(InputError, match="fill_holes: expected labels among 3, 70, got 8"):
        make_consistent(image, labels, fill_holes=(8,))
    with pytest.raises(InputError, match="min_component_fraction"):
        make_consistent(image, labels, min_component_fraction=1.5)
    with pytest.raises(InputError, match="posterior_weight"):
        make_consistent(image, labels, posterior_weight=-1.0)
    with pytest.raises(InputError, match="exponent"):
        make_consistent(image, labels, intensity_exponent=-1.0)
    with pytest.raises(InputError, match="sigma_voxels: expected more than 0, got 0"):
        make_consistent(image, labels, window_voxels=0)


def test_nothing_but_background_is_left_as_it_is():
    empty = LabelMap(np.zeros((4, 3, 5)), OBLIQUE)
    result = make_consistent(Image(np.zeros((4, 3, 5)), OBLIQUE), empty, method=split_and_merge.partition)
    assert result.voxels_changed == 0 and [c.label for c in result.changes] == [0]


@pytest.mark.parametrize("decided", [1, 2, 5])
def test_a_label_that_was_decided_for_leads_where_it_tied(decided):
    tie = np.full(3, 1 / 3, np.float32)
    given = ProbabilityMap.from_entries(
        np.full((1, 1, 1), 1, np.int32), OBLIQUE, np.zeros(3, np.int64), np.array([1, 2, 5], np.int32), tie,
        label_values=np.array([1, 2, 5], np.int32),
    )  # fmt: skip
    found = _with_labels(given, np.full((1, 1, 1), decided, np.int32))
    rest = [found.probability(label).item() for label in (1, 2, 5) if label != decided]
    assert found.mode.item() == decided
    assert decided == 1 or (found.probability(decided).item() > max(rest) and rest[0] == rest[1])
