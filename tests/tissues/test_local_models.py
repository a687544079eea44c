"""Models of tissues without a bias field: LOCUS, the field alone, nearest neighbours; and the mixture's relaxation."""

import numpy as np
import pytest

import atlasseg
from atlasseg import methods
from atlasseg.errors import InputError
from atlasseg.phantoms import tissue
from atlasseg.recipe import parse_recipe
from atlasseg.statistics import locus as locus_fit
from atlasseg.statistics import markov_field as field_fit
from atlasseg.statistics import nearest_neighbours as neighbours
from atlasseg.tissues import locus, markov_field, mixture, nearest_neighbours
from atlasseg.volume import ProbabilityMap

SHAPE = (30, 33, 27)


def dice(found, truth):
    return [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def flat():
    return tissue(SHAPE, noise_percent=5, bias_percent=0, seed=3)


@pytest.fixture(scope="module")
def prior(flat):
    """(N, 3) the parts of each tissue, blurred by a share of the others."""
    parts = flat.fractions[flat.mask.array]
    return 0.92 * parts + 0.08 / 3


MODELS = {
    "locus": lambda made, prior: locus.classify(made.image, made.mask, prior, max_iterations=10),
    "markov_field": lambda made, prior: markov_field.classify(made.image, made.mask, prior, max_iterations=10),
    "nearest_neighbours": lambda made, prior: nearest_neighbours.classify(made.image, made.mask, prior),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_out_fits_together(name, flat, prior):
    result, inside = MODELS[name](flat, prior), flat.mask.array
    np.testing.assert_array_equal(result.labels.array > 0, inside)
    np.testing.assert_array_equal(result.probabilities.mode, result.labels.array)
    np.testing.assert_allclose(result.probabilities.dense()[inside].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(result.corrected.array, flat.image.array)
    assert (result.bias.array == 1).all() and (np.diff(result.means[:, 0]) > 0).all() and (result.sds > 0).all()
    assert min(dice(result.labels.array, flat.truth.array)) > 0.8


@pytest.mark.parametrize("solver", ["icm", "graph_cut"])
def test_the_field_is_the_one_of_statistics(flat, solver):
    result = markov_field.classify(flat.image, flat.mask, beta=0.3, neighbours=6, solver=solver, max_iterations=4)
    inside = flat.mask.array
    by_hand = field_fit.fit(
        flat.image.channels[inside], inside, flat.image.affine[:3, :3], classes=3, beta=0.3, neighbours=6,
        solver=solver, max_iterations=4,
    )  # fmt: skip
    np.testing.assert_array_equal(result.labels.array[inside], by_hand.classes + 1)


def test_parameters_of_locus_arrive(flat):
    given = {"side_mm": 9.0, "tie": 0.3, "beta": 0.1, "solver": "mean_field", "max_iterations": 3}
    result = locus.classify(flat.image, flat.mask, **given)
    inside = flat.mask.array
    by_hand = locus_fit.fit(flat.image.channels[inside], inside, flat.image.affine[:3, :3], classes=3, **given)
    np.testing.assert_array_equal(result.labels.array[inside], by_hand.classes + 1)


def test_locus_bears_a_bias_field_that_it_does_not_model():
    made = tissue(SHAPE, noise_percent=3, bias_percent=100, seed=5)
    local = locus.classify(made.image, made.mask, side_mm=9, max_iterations=15)
    one = markov_field.classify(made.image, made.mask, max_iterations=15)
    assert (
        np.mean(dice(local.labels.array, made.truth.array)) > np.mean(dice(one.labels.array, made.truth.array)) + 0.02
    )


def test_nearest_neighbours_by_hand(flat, prior):
    given = {"smoothing_mm": (1.5,), "position_weight": 0.5}
    result = nearest_neighbours.classify(
        flat.image, flat.mask, prior, neighbours=7, confidence=0.85, samples=300, seed=4, **given
    )
    inside = flat.mask.array
    features = neighbours.features(flat.image, inside, **given)
    rows = neighbours.select_confident(prior, least=0.85, number=300, seed=4)
    distance = ((features[:200, None] - features[rows]) ** 2).sum(axis=-1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :7]
    shares = (prior[rows].argmax(axis=1)[nearest][..., None] == np.arange(3)).mean(axis=1)
    np.testing.assert_allclose(result.probabilities.dense()[inside][:200, 1:], shares, atol=1e-6)


def test_relaxation_of_the_mixture(flat, prior):
    """A prior that is wrong in a part counts for less where it is relaxed."""
    wrong = prior.copy()
    part = np.argwhere(flat.mask.array)[:, 0] < SHAPE[0] // 2
    wrong[part] = np.where(prior[part] == prior[part].max(axis=1, keepdims=True), 0.1, 0.45)
    wrong /= wrong.sum(axis=1, keepdims=True)
    as_given = mixture.classify(flat.image, flat.mask, wrong, bias_order=0)
    relaxed = mixture.classify(flat.image, flat.mask, wrong, bias_order=0, relaxation=0.8, relaxation_sigma_voxels=1.5)
    scores = [np.mean(dice(each.labels.array, flat.truth.array)) for each in (as_given, relaxed)]
    assert scores[1] > scores[0] + 0.01
    with pytest.raises(InputError, match="relaxation: expected a prior"):
        mixture.classify(flat.image, flat.mask, relaxation=0.5)


def test_recipes_name_them():
    for name, key in (("locus", "side_mm"), ("markov_field", "beta"), ("nearest_neighbours", "confidence"),
                      ("mixture", "relaxation")):  # fmt: skip
        recipe = parse_recipe({"tissue": {"method": name, name: {key: 0.5}}})
        assert recipe.tissue.method.name == name and recipe.tissue.method.arguments == {key: 0.5}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("markov_field", {"solver": "icm", "max_iterations": 2}),
        ("locus", {"side_mm": 15.0, "max_iterations": 2}),
        ("nearest_neighbours", {"samples": 100}),
    ],
)
def test_the_verb_and_the_function_agree(name, parameters, flat, prior):
    inside = flat.mask.array
    given = np.zeros((*inside.shape, 3), np.float32)
    given[inside] = prior
    chances = ProbabilityMap.from_dense(
        np.concatenate([1 - given.sum(axis=-1, keepdims=True), given], axis=-1), [0, 1, 2, 3], flat.image.affine
    )
    found = atlasseg.tissue(flat.image, name, mask=flat.mask, prior=chances, **parameters)
    direct = methods.get("tissue", name).function(flat.image, flat.mask, prior, **parameters)
    assert (found.labels.array == direct.labels.array).mean() > 0.999


def test_what_is_refused(flat, prior):
    with pytest.raises(InputError, match="--prior"):
        nearest_neighbours.classify(flat.image, flat.mask)
    with pytest.raises(InputError, match=r"expected a prior of 0\.99 at some voxel"):
        nearest_neighbours.classify(flat.image, flat.mask, prior, confidence=0.99)
    for wrong in ({"confidence": 0.0}, {"samples": 0}, {"smoothing_mm": (0.0,)}, {"position_weight": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            nearest_neighbours.classify(flat.image, flat.mask, prior, **wrong)
    with pytest.raises(InputError, match="classes: expected at least 2"):
        locus.classify(flat.image, flat.mask, classes=1)
