import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError, InputError
from atlasseg.preprocessing.crop import box_around
from atlasseg.resampling import resample
from atlasseg.transforms import Affine, BSplineField
from atlasseg.volume import Grid, LabelMap

GRID = Grid((23, 19, 17), np.array([[0.2, 1.6, 0, 30], [-1.7, 0.1, 0.2, 9], [0, 0.2, -2.1, 55], [0, 0, 0, 1.0]]))
SOURCE = np.array([[1.5, 0, 0.1, 32], [0, -1.9, 0, -3], [0.2, 0, 1.8, 31], [0, 0, 0, 1.0]])


def drawn(seed, size=(12, 9, 10)):
    labels = np.zeros(size, int)
    low = np.random.default_rng(seed).integers(2, 5, 3)
    labels[low[0] : low[0] + 4, low[1] : low[1] + 3, low[2] : low[2] + 4] = 7
    labels[low[0], low[1], low[2]] = -3
    return LabelMap(labels, SOURCE, f"atlas{seed}")


def bend(seed):
    control = BSplineField.control_grid(GRID, 20.0)
    coefficients = np.random.default_rng(seed).normal(size=(*control.shape, 3))
    return Affine.translation(np.random.default_rng(seed).uniform(-2, 2, 3)) @ BSplineField(
        coefficients, control.affine
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 3.0, 8.0]))
def test_every_label_that_lands_is_in_the_box_with_its_margin(seed, margin_mm):
    labels, transforms = [drawn(seed), drawn(seed + 1)], [bend(seed), bend(seed + 1)]
    start, stop = box_around(labels, transforms, GRID, margin_mm=margin_mm)
    landed = [resample(a, GRID, t, interpolation="nearest").array != 0 for a, t in zip(labels, transforms, strict=True)]
    found = np.argwhere(np.any(landed, axis=0))
    assert len(found)
    margin = np.floor(margin_mm / GRID.spacing_mm - 1.5)  # labels' outer half voxels are not counted in the box
    assert (start <= np.maximum(found.min(axis=0) - margin, 0)).all()
    assert (stop >= np.minimum(found.max(axis=0) + margin + 1, GRID.shape)).all()
    generous = np.ceil(1.3 * margin_mm / GRID.spacing_mm + 3)
    assert (start >= np.maximum(found.min(axis=0) - generous, 0)).all()
    assert (stop <= np.minimum(found.max(axis=0) + generous + 1, GRID.shape)).all()


def test_an_atlas_without_labels_takes_no_part():
    empty = LabelMap(np.zeros((4, 5, 6), int), SOURCE)
    both = box_around([drawn(1), empty], [bend(1), Affine.translation((999, 0, 0))], GRID)
    np.testing.assert_array_equal(both, box_around([drawn(1)], [bend(1)], GRID))


def test_what_lands_nowhere_is_named():
    with pytest.raises(GeometryError, match=r"no label of 'atlas1' lands .*\(23, 19, 17\)"):
        box_around([drawn(1)], [Affine.translation((999, 0, 0))], GRID)
    with pytest.raises(GeometryError, match="no label"):
        box_around([LabelMap(np.zeros((4, 5, 6), int), SOURCE)], [bend(1)], GRID)
    with pytest.raises(InputError, match="margin_mm: expected 0 or more"):
        box_around([drawn(1)], [bend(1)], GRID, margin_mm=-1)
    with pytest.raises(InputError, match="expected one transform for each of 1 label maps, got 2"):
        box_around([drawn(1)], [bend(1), bend(2)], GRID)
