"""Gaussians against NumPy and SciPy, and where there is little to estimate them from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from atlasseg.errors import InputError
from atlasseg.statistics import gaussians


def sample(seed=0, number=20_000, channels=2, classes=3):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(number, channels)) @ rng.normal(size=(channels, channels)) * 30 + 1000
    return values, rng.dirichlet(np.ones(classes), number)


@pytest.mark.parametrize("channels", [1, 3])
def test_estimate_is_numpys(channels):
    values, weights = sample(channels=channels)
    found = gaussians.estimate(values, weights)
    for k in range(weights.shape[1]):
        np.testing.assert_allclose(found.means[k], np.average(values, axis=0, weights=weights[:, k]), rtol=1e-12)
        expected = np.cov(values.T, aweights=weights[:, k], ddof=0)
        np.testing.assert_allclose(found.covariances[k], np.atleast_2d(expected), rtol=1e-9, atol=1e-9)


def test_log_density_is_scipys():
    values, weights = sample(number=500)
    found = gaussians.estimate(values, weights)
    for k in range(3):
        expected = multivariate_normal(found.means[k], found.covariances[k]).logpdf(values)
        np.testing.assert_allclose(gaussians.log_density(values, found)[:, k], expected, rtol=1e-12)
    single = gaussians.log_density(values.astype(np.float32), found)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, gaussians.log_density(values, found), rtol=1e-5)


@given(gain=st.sampled_from([1e-6, 1e-2, 7.0, 1e6]), shift=st.floats(-10, 10))
def test_follows_the_scale(gain, shift):
    values, weights = sample(number=300)
    weights[:, 1] = np.arange(300) == 7  # one value only: at the floor
    plain = gaussians.estimate(values, weights)
    moved = gaussians.estimate(gain * (values + shift), weights)
    np.testing.assert_allclose(moved.means, gain * (plain.means + shift), rtol=1e-9)
    np.testing.assert_allclose(moved.covariances, gain**2 * plain.covariances, rtol=1e-4)


def test_floor():
    values, weights = sample(number=300)
    weights[:, 1] = np.arange(300) == 7
    found = gaussians.estimate(values, weights, floor=1e-3)
    scale = np.sqrt(np.cov(values.T, aweights=weights.sum(axis=1), ddof=0).diagonal())
    np.testing.assert_allclose(found.covariances[1], np.diag(1e-3 * scale**2), rtol=1e-6, atol=1e-6)
    assert np.isfinite(gaussians.log_density(values, found)).all()


@pytest.mark.parametrize("level", [0.0, 5.0, 1e6])
def test_nothing_varies(level):
    found = gaussians.estimate(np.full((9, 1), level), np.ones((9, 1)))
    assert found.means[0, 0] == level and found.covariances[0, 0, 0] > 0


def test_empty_class():
    values, weights = sample(number=50)
    before = gaussians.estimate(values, weights)
    weights[:, 2] = 0
    with pytest.raises(InputError, match="class 3 of 3 is empty"):
        gaussians.estimate(values, weights)
    kept = gaussians.estimate(values, weights, before=before)
    np.testing.assert_array_equal(kept.means[2], before.means[2])
    np.testing.assert_array_equal(kept.covariances[2], before.covariances[2])


def test_shapes_that_do_not_fit():
    values, weights = sample(number=50)
    with pytest.raises(InputError, match="expected"):
        gaussians.estimate(values, weights[1:])
    with pytest.raises(InputError, match="modalities"):
        gaussians.log_density(values[:, :1], gaussians.estimate(values, weights))
