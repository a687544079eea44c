"""k-means and nearest neighbours against brute force, and what they cannot use."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from atlasseg import phantoms
from atlasseg.errors import InputError
from atlasseg.statistics import kmeans, nearest_neighbours
from atlasseg.volume import Image

SHAPE = (17, 22, 14)


@pytest.fixture(scope="module")
def brain():
    return phantoms.tissue(SHAPE, spacing_mm=(2.5, 2.4, 2.7), bias_percent=0, brightness=((0.3, 0.7, 1), (1, 0.6, 0.4)))


def test_clusters_are_a_fixed_point_in_order(brain):
    values = brain.image.channels[brain.mask.array]
    found = kmeans.cluster(values, classes=3)
    assert (np.diff(found.centres[:, 0]) > 0).all()
    scale = values.std(axis=0)
    nearest = cdist(values / scale, found.centres / scale).argmin(1)
    assert (nearest == found.assigned).mean() > 0.999
    for k in range(3):
        np.testing.assert_allclose(found.centres[k], values[found.assigned == k].mean(0), rtol=1e-2)
    again = kmeans.cluster(values, classes=3)
    np.testing.assert_array_equal(again.assigned, found.assigned)
    moved = kmeans.cluster(values * (1e3, 1e-3) + (7, 0), classes=3)
    assert (moved.assigned == found.assigned).mean() > 0.999


def test_many_voxels_are_clustered_by_some(monkeypatch, brain):
    values = brain.image.channels[brain.mask.array]
    whole = kmeans.cluster(values).assigned
    monkeypatch.setattr(kmeans, "SAMPLE", 500)
    assert (kmeans.cluster(values).assigned == whole).mean() > 0.97
    rare = np.zeros((5000, 1))
    rare[777], rare[778] = 1, 2  # between the voxels of the sample
    assert np.unique(kmeans.cluster(rare, classes=3).assigned).size == 3


@pytest.mark.parametrize("values", [np.full((50, 1), 7.0), np.tile([[1.0, 2], [3, 4]], (9, 1))])
def test_more_classes_than_values(values):
    with pytest.raises(InputError, match=r"classes: expected at most [12], the number of distinct values, got 3"):
        kmeans.cluster(values, classes=3)


def test_no_voxels():
    with pytest.raises(InputError, match="at least one voxel"):
        kmeans.cluster(np.zeros((0, 1)))
    with pytest.raises(InputError, match="classes: expected at least 1"):
        kmeans.cluster(np.zeros((9, 1)), classes=0)


def test_neighbours_vote(brain):
    inside = brain.mask.array
    every = nearest_neighbours.features(brain.image, inside)
    assert every.shape == (inside.sum(), 2 * 4 + 3)
    np.testing.assert_allclose(every[:, :8].std(axis=0), 1)
    assert np.abs(every[:, 8:]).max() == 1
    truth = brain.truth.array[inside]
    rows = np.arange(0, truth.size, 7)
    values, shares = nearest_neighbours.classify(every[rows], truth[rows], every[3:50], neighbours=5)
    np.testing.assert_array_equal(values, (1, 2, 3))
    order = np.argsort(cdist(every[3:50], every[rows]), axis=1, kind="stable")[:, :5]
    expected = np.stack([(truth[rows][order] == v).mean(1) for v in values], axis=1)
    np.testing.assert_allclose(shares, expected)
    _, whole = nearest_neighbours.classify(every[rows], truth[rows], every)
    assert (values[whole.argmax(1)] == truth).mean() > 0.85


def test_learning_from_a_prior(brain):
    prior = brain.fractions[brain.mask.array]
    rows = nearest_neighbours.select_confident(prior, number=50)
    assert (np.diff(rows) > 0).all() and (prior[rows].max(axis=1) >= 0.9).all()
    np.testing.assert_array_equal(np.bincount(prior[rows].argmax(axis=1)), 50)
    with pytest.raises(InputError, match="class 2 of 3 is empty"):
        nearest_neighbours.select_confident(np.tile([0.95, 0.05, 0], (9, 1)))


def test_constant_image_has_features():
    flat = phantoms.tissue(SHAPE).image.with_array(np.ones(SHAPE))
    assert np.isfinite(nearest_neighbours.features(flat, np.ones(SHAPE, bool))).all()


def test_features_are_smoothed_in_millimetres():
    """An impulse comes out as a Gaussian of that many mm, and its gradient as the derivative of one of 1 mm."""
    spacing = np.array([0.4, 0.8, 0.6])
    spike = np.zeros((41, 25, 31))
    spike[20, 12, 15] = 1
    image = Image(spike, np.diag([*spacing, 1]))
    found = nearest_neighbours.features(image, np.ones(spike.shape, bool), smoothing_mm=(1.5,), position_weight=0)
    squared = (((np.indices(spike.shape).reshape(3, -1).T - (20, 12, 15)) * spacing) ** 2).sum(1)
    assert np.corrcoef(found[:, 2], np.exp(-squared / (2 * 1.5**2)))[0, 1] > 0.999
    slope = np.abs(np.stack(np.gradient(np.exp(-squared / 2).reshape(spike.shape), *spacing)))
    in_voxels = np.sqrt(((slope * spacing[:, None, None, None]) ** 2).sum(0)).ravel()
    assert np.corrcoef(found[:, 1], in_voxels)[0, 1] > 0.99


def test_neighbours_that_cannot_be(brain):
    known = np.zeros((4, 2))
    for wrong in ({"neighbours": 0}, {"known": known[:0]}, {"classes": [1, 2]}, {"unknown": np.zeros((3, 1))}):
        with pytest.raises(InputError):
            nearest_neighbours.classify(**{"known": known, "classes": [1, 1, 2, 2], "unknown": known, **wrong})
    with pytest.raises(InputError, match="region"):
        nearest_neighbours.features(brain.image, np.zeros(SHAPE, bool))
