"""Curves visit every voxel once, by face neighbours, whatever the size of the box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.statistics import curves

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
NAMES = ("hilbert", "serpentine")


def check(shape, name):
    order = curves.curve(shape, name)
    np.testing.assert_array_equal(np.sort(order), np.arange(np.prod(shape)))
    assert order[0] == 0
    assert curves.jumps(order, shape) == 0


@pytest.mark.parametrize("name", NAMES)
@given(shape=SHAPES)
def test_every_voxel_once_by_face_neighbours(name, shape):
    check(shape, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 9), (3, 1, 1), (1, 2, 1), (1, 3, 5), (2, 101, 3), (3, 3, 3), (97, 1, 31), (61, 45, 33)]
)
def test_boxes_of_awkward_size(name, shape):
    check(shape, name)


def test_every_small_box():
    for shape in np.ndindex(8, 8, 8):
        check((shape[0] + 1, shape[1] + 1, shape[2] + 1), "hilbert")


def test_jumps_are_counted():
    assert curves.jumps(np.array([0, 1, 3, 2]), (1, 2, 2)) == 0
    assert curves.jumps(np.array([0, 3, 1, 2]), (1, 2, 2)) == 2  # two diagonals
    assert curves.jumps(np.arange(24), (2, 3, 4)) == 5  # ends of rows


def test_powers_of_two_are_cut_into_octants():
    """Of a Hilbert curve: each octant of each octant is visited in one go."""
    for side in (4, 8, 16):
        index = np.stack(np.unravel_index(curves.curve((side, side, side)), (side,) * 3))
        while side > 1:
            side //= 2
            octant = index // side
            changes = (np.diff(octant) != 0).any(axis=0).sum()
            assert changes + 1 == np.unique(octant, axis=1).shape[1]


def test_neighbours_on_the_curve_stay_near():
    """The point of Hilbert's curve: a stretch of n voxels fits in a box of about its cube root, a row does not."""
    shape = (39, 50, 45)

    def reach(name):
        index = np.stack(np.unravel_index(curves.curve(shape, name), shape))
        return np.linalg.norm(index[:, 512:] - index[:, :-512], axis=0).max()

    assert reach("hilbert") < 30 < reach("serpentine")


@pytest.mark.parametrize("name", NAMES)
def test_through_a_region(name):
    inside = np.zeros((7, 9, 8), bool)
    inside[2:6, 1:8, 3:7] = np.random.default_rng(0).random((4, 7, 4)) < 0.7
    voxels, starts = curves.scan_order(inside, name)
    np.testing.assert_array_equal(np.sort(voxels), np.flatnonzero(inside))
    assert starts[0] and 1 < starts.sum() < starts.size
    index = np.stack(np.unravel_index(voxels, inside.shape))
    steps = np.abs(np.diff(index)).sum(axis=0)
    assert (steps[~starts[1:]] == 1).all()
    whole, begins = curves.scan_order(np.ones((3, 4, 5), bool), name)
    np.testing.assert_array_equal(whole, curves.curve((3, 4, 5), name))
    assert begins.sum() == 1


def test_curves_are_made_once_and_cannot_be_spoilt():
    order = curves.curve((5, 6, 7))
    assert curves.curve((5, 6, 7)) is order
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 3


def test_what_is_refused():
    with pytest.raises(InputError, match=r"hilbert or serpentine, got 'spiral'"):
        curves.curve((2, 2, 2), "spiral")
    with pytest.raises(InputError, match="at least one voxel"):
        curves.curve((2, 0, 2))
    with pytest.raises(InputError, match="mask is empty"):
        curves.scan_order(np.zeros((2, 3, 4), bool))
