import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation.prediction import atlas_agreement, expected_dice
from atlasseg.phantoms import tilted_grid
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

SHAPE = (9, 7, 5)
GRID = tilted_grid(SHAPE, spacing_mm=(0.8, 1.1, 1.7), angles_degrees=(9, -6, 12))
VALUES = (0, 2, 5, 300)


def labels(seed):
    return LabelMap(np.random.default_rng(seed).choice(VALUES, SHAPE), GRID.affine)


def atlas(id_, volume, mask=None, not_annotated=()):
    covered = None if mask is None else Mask(mask, GRID.affine)
    return Atlas(id_, Image(np.zeros(SHAPE), GRID.affine), volume, covered, frozenset(not_annotated))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_agreement_against_brute_force(seed, count):
    rng = np.random.default_rng(seed)
    made, masks = labels(seed), rng.random((count, *SHAPE)) < 0.7
    given_ = [labels(seed + 1 + n) for n in range(count)]
    found = atlas_agreement([atlas(f"a{n}", v, masks[n]) for n, v in enumerate(given_)], made)
    for value in VALUES[1:]:
        dice = []
        for other, mask in zip(given_, masks, strict=True):
            a, b = (other.array == value) & mask, (made.array == value) & mask
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert found[value] == pytest.approx(np.mean(dice))
    assert 0 not in found


def test_agreement_of_what_nobody_knows():
    made = labels(0)
    silent = atlas("s", labels(1), not_annotated=(5,))
    assert atlas_agreement([atlas("same", made)], made) == {2: 1, 5: 1, 300: 1}
    assert atlas_agreement([atlas("same", made), silent], made)[5] == 1
    assert np.isnan(atlas_agreement([silent], made)[5])
    with pytest.raises(InputError, match="at least one"):
        atlas_agreement([], made)
    elsewhere = LabelMap(made.array, np.eye(4))
    with pytest.raises(GeometryError, match="'same': expected the grid"):
        atlas_agreement([atlas("same", made)], elsewhere)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_expected_dice_against_its_definition(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((*SHAPE, 4)) ** 4 * (rng.random((*SHAPE, 4)) < 0.6)
    made = ProbabilityMap.from_dense(weights, VALUES, GRID.affine)
    found = expected_dice(made)
    for value in VALUES[1:]:
        p = made.probability(value).astype(float)
        chosen = made.mode == value
        assert found[value] == pytest.approx(2 * p[chosen].sum() / (chosen.sum() + p.sum()), abs=1e-6)


def test_expected_dice_is_the_mean_dice_of_truths_that_are_drawn():
    rng = np.random.default_rng(0)
    shape = (17, 13, 11)
    p = np.clip(rng.normal(0.35, 0.3, shape), 0, 1)
    made = ProbabilityMap.from_dense(np.stack([1 - p, p], -1), (0, 4), GRID.affine)
    chosen = made.mode == 4
    drawn = rng.random((300, *shape)) < p
    dice = 2 * (drawn & chosen).sum((1, 2, 3)) / (drawn.sum((1, 2, 3)) + chosen.sum())
    assert expected_dice(made)[4] == pytest.approx(dice.mean(), abs=0.003)


def test_expected_dice_of_what_is_certain_or_nowhere():
    made = labels(0)
    sure = ProbabilityMap.from_labels(made, label_values=[77])
    assert expected_dice(sure) == {2: 1, 5: 1, 300: 1}
