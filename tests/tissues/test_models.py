"""Models of tissues: against known phantoms, each other, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest

from atlasseg import methods
from atlasseg.errors import InputError
from atlasseg.phantoms import tissue
from atlasseg.tissues import chain, field, mixture
from atlasseg.volume import Image, Mask

MODELS = {"mixture": mixture.classify, "chain": chain.classify, "field": field.classify}


def dice(found, truth):
    return [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def noisy():
    return tissue((40, 46, 36), noise_percent=9, bias_percent=20, seed=7)


@pytest.fixture(scope="module")
def found(noisy):
    return {name: classify(noisy.image, noisy.mask) for name, classify in MODELS.items()}


def test_every_model_is_a_method_of_its_stage():
    assert set(methods.names("tissue")) == {*MODELS, "locus", "markov_field", "nearest_neighbours"}


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_out_fits_together(name, found, noisy):
    result, inside = found[name], noisy.mask.array
    np.testing.assert_array_equal(result.labels.array > 0, inside)
    np.testing.assert_array_equal(result.probabilities.mode, result.labels.array)
    assert np.sqrt(((result.probabilities.dense()[..., 1:] - noisy.fractions)[inside] ** 2).mean()) < 0.25
    np.testing.assert_allclose(result.corrected.array * result.bias.array, noisy.image.array, rtol=1e-4, atol=1e-3)
    assert (np.diff(result.means[:, 0]) > 0).all() and (result.sds > 0).all()
    np.testing.assert_allclose(result.probabilities.dense()[inside].sum(axis=1), 1, atol=1e-5)


def test_those_that_know_their_neighbours_bear_noise_better(found, noisy):
    scores = {name: np.mean(dice(result.labels.array, noisy.truth.array)) for name, result in found.items()}
    assert scores["field"] > scores["mixture"] + 0.01 and scores["chain"] > scores["mixture"] + 0.01
    assert scores["field"] > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_classes_far_apart_are_told_apart(name):
    """At 1 % noise the density of a wrong class is too small for a float64."""
    made = tissue((40, 46, 36), noise_percent=1, bias_percent=0, seed=7)
    result = MODELS[name](made.image, made.mask)
    assert min(dice(result.labels.array, made.truth.array)) > 0.97


def test_a_field_without_strength_is_the_mixture(found, noisy):
    alone = field.classify(noisy.image, noisy.mask, beta=0)
    np.testing.assert_allclose(alone.probabilities.dense(), found["mixture"].probabilities.dense(), atol=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_scale_of_the_intensities_does_not_matter(name, found, noisy):
    scaled = noisy.image.with_array(noisy.image.array * 2**9)
    again = MODELS[name](scaled, noisy.mask)
    assert (again.labels.array == found[name].labels.array).mean() > 0.999
    np.testing.assert_allclose(again.means, found[name].means * 2**9, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_negative_intensities_are_borne(name):
    made = tissue((30, 33, 27), noise_percent=3, bias_percent=0, seed=3)
    low = Image(made.image.array - 700, made.image.affine)
    result = MODELS[name](low, made.mask, partial_volume=False)
    assert min(dice(result.labels.array, made.truth.array)) > 0.85
    np.testing.assert_allclose(result.means[2, 0], 300, atol=60)


@pytest.mark.parametrize("name", MODELS)
def test_one_voxel_beside_another_is_a_region(name):
    array = np.zeros((5, 4, 3), np.float32)
    array[1, 1, 1], array[3, 2, 1] = 1, 9
    image = Image(array, np.diag([1.0, 1.2, 0.8, 1]))
    result = MODELS[name](image, Mask(array > 0, image.affine), classes=2, bias_order=0, partial_volume=False)
    assert result.labels.array[1, 1, 1] == 1 and result.labels.array[3, 2, 1] == 2


@pytest.mark.parametrize("name", MODELS)
def test_bad_requests_are_refused(name, noisy):
    classify = MODELS[name]
    with pytest.raises(InputError, match="classes: expected at least 2"):
        classify(noisy.image, noisy.mask, classes=1)
    with pytest.raises(InputError, match="empty"):
        classify(noisy.image, replace(noisy.mask, array=np.zeros(noisy.image.shape, bool)))
    with pytest.raises(InputError, match=r"expected a prior of shape \(\d+, classes\)"):
        classify(noisy.image, noisy.mask, np.ones((5, 3)) / 3)
    single = np.zeros(noisy.image.shape, bool)
    single[20, 20, 20] = True
    with pytest.raises(InputError, match="at most 1, the number of distinct values, got 3"):
        classify(noisy.image, replace(noisy.mask, array=single))


def test_a_field_needs_a_strength_of_0_or_more(noisy):
    with pytest.raises(InputError, match="0 or more, got -1"):
        field.classify(noisy.image, noisy.mask, beta=-1)
