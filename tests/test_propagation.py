"""An atlas carried onto a target's grid."""

import numpy as np
import pytest

from atlasseg.propagation import propagate
from atlasseg.resampling import coverage, resample, resample_fractions
from atlasseg.transforms import Affine, BSplineField
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap

SOURCE = np.array([[0.2, 1.4, 0, 30], [-1.7, 0.1, 0.2, 9], [0, 0.2, -2.1, 55], [0, 0, 0, 1.0]])
ONTO = Grid((8, 6, 7), np.array([[1.6, 0, 0.1, 30], [0, -1.9, 0, 6], [0.2, 0, 1.8, 41], [0, 0, 0, 1.0]]))
BIG = 614454277


def atlas(kind="labels"):
    rng = np.random.default_rng(0)
    drawn = LabelMap(rng.choice([0, 5, BIG], size=(7, 9, 5)), SOURCE)
    labels = drawn if kind == "labels" else ProbabilityMap.from_dense(rng.random((7, 9, 5, 3)), [0, 5, BIG], SOURCE)
    mask = Mask(rng.random((7, 9, 5)) > 0.5, SOURCE)
    return Atlas("a7", Image(rng.normal(size=(7, 9, 5)), SOURCE, "scan"), labels, mask, frozenset({9}))


def bend():
    control = BSplineField.control_grid(ONTO, 6.0)
    coefficients = np.random.default_rng(1).normal(size=(*control.shape, 3))
    return Affine.translation((0.7, -0.4, 0.9)) @ BSplineField(coefficients, control.affine)


@pytest.mark.parametrize("interpolation", ["linear", "gaussian", "nearest"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("fractions", [True, False])
def test_every_part_comes_along_through_one_transform(kind, interpolation, fractions):
    given, transform = atlas(kind), bend()
    carried = propagate(given, transform, ONTO, interpolation=interpolation, fractions=fractions)
    assert carried.id == "a7" and carried.not_annotated == {9}
    assert carried.image.grid.matches(ONTO) and carried.image.name == "scan"
    np.testing.assert_array_equal(carried.image.array, resample(given.image, ONTO, transform).array)
    shares = resample_fractions(given.labels, ONTO, transform, interpolation=interpolation)
    assert isinstance(carried.labels, ProbabilityMap if fractions else LabelMap)
    np.testing.assert_array_equal(carried.segmentation.array, shares.mode)
    assert BIG in carried.label_values
    if fractions:
        np.testing.assert_array_equal(carried.labels.values, shares.values)


def test_the_mask_of_a_candidate_is_its_field_of_view():
    transform = bend()
    carried = propagate(atlas(), transform, ONTO)
    wanted = coverage(atlas().image.grid, ONTO, transform).array
    assert 0.2 < wanted.mean() < 0.9
    np.testing.assert_array_equal(carried.mask.array, wanted)
    assert (carried.segmentation.array[~wanted] == 0).all()


def test_onto_its_own_grid_an_atlas_is_itself():
    given = atlas()
    carried = propagate(given, Affine.identity(), given.image.grid)
    np.testing.assert_array_equal(carried.image.array, given.image.array)
    np.testing.assert_array_equal(carried.segmentation.array, given.labels.array)
    assert carried.mask.array.all() and carried.labels.voxels.size == 0


def test_a_label_that_does_not_land_is_still_spoken_of():
    carried = propagate(atlas(), Affine.translation((500, 0, 0)), ONTO)
    assert carried.label_values.tolist() == [0, 5, BIG]
    assert not carried.mask.array.any() and (carried.segmentation.array == 0).all()
