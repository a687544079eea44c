from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from atlasseg.errors import InputError
from atlasseg.refinement._trees import Trees, join_trees
from atlasseg.threads import limit_threads

SAME = 1e-12
"""Both add the same float64 numbers in the same order; only the logistic may be rounded otherwise."""


@pytest.fixture(scope="module")
def grown():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(900, 7)).astype(np.float32)
    features[:, 3] = np.round(features[:, 3])  # many values that are equal to a threshold's neighbours
    answer = (features[:, 0] * features[:, 1] + 0.3 * rng.normal(size=900) + (features[:, 3] > 0)) > 0.4
    model = HistGradientBoostingClassifier(max_iter=12, max_leaf_nodes=9, early_stopping=False, random_state=1)
    return model.fit(features, answer), features, rng.normal(size=(333, 7)).astype(np.float32)


def test_same_probabilities_as_scikit_learn(grown):
    model, seen, unseen = grown
    trees = Trees.of(model)
    assert trees.roots.size == 12
    trees.check(7, "here")
    on_thresholds = np.repeat(seen[:50], 3, axis=0)
    split = trees.feature >= 0
    on_thresholds[np.arange(split.sum())[:150], trees.feature[split][:150] % 7] = trees.threshold[split][:150].astype(
        np.float32
    )
    for features in (seen, unseen, on_thresholds, unseen[:0]):
        expected = model.predict_proba(features)[:, 1] if len(features) else np.zeros(0)
        np.testing.assert_allclose(trees.probability(features), expected, rtol=0, atol=SAME)


def test_the_number_of_threads_changes_nothing(grown):
    model, _, unseen = grown
    trees, found = Trees.of(model), []
    for threads in (1, 3):
        with limit_threads(threads):
            found.append(trees.probability(unseen))
    assert np.array_equal(*found)


def test_a_tree_of_one_leaf_and_no_tree_at_all():
    features = np.zeros((5, 2), np.float32)
    model = HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=99, early_stopping=False)
    model.fit(np.arange(40, dtype=np.float32)[:, None].repeat(2, 1), np.arange(40) % 4 == 0)
    np.testing.assert_allclose(Trees.of(model).probability(features), 0.25, atol=SAME)
    none = np.zeros(0, np.int32)
    bare = Trees(np.array([1.5]), np.zeros(0, np.int64), none, np.zeros(0), none, none, np.zeros(0))
    bare.check(2, "here")
    np.testing.assert_allclose(bare.probability(features), 1 / (1 + np.exp(-1.5)), atol=SAME)


def test_many_as_one_set_of_arrays(grown):
    trees = Trees.of(grown[0])
    arrays, count, nodes = join_trees([trees, trees])
    assert count.tolist() == [12, 12] and nodes.tolist() == [trees.feature.size] * 2
    assert set(arrays) == {field.name for field in fields(Trees)}
    assert arrays["value"].size == 2 * trees.value.size


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda a, inner: np.where(inner, 0, a)),  # a loop
        ("right", lambda a, inner: np.where(inner, a.size, a)),  # beyond the end
        ("feature", lambda a, inner: np.where(inner, 7, a)),  # a column that is not there
        ("feature", lambda a, inner: np.where(inner, -2, a)),
        ("value", lambda a, inner: np.where(inner, a, np.nan)),
        ("threshold", lambda a, inner: a[:-1]),
        ("roots", lambda a, inner: np.array([5])),
        ("baseline", lambda a, inner: np.zeros(2)),
    ],
)
def test_damaged_trees_are_refused(grown, name, change):
    trees = Trees.of(grown[0])
    damaged = replace(trees, **{name: change(getattr(trees, name), trees.feature >= 0)})
    with pytest.raises(InputError, match=r"model/trees.npz: expected valid trees"):
        damaged.check(7, "model/trees.npz")
