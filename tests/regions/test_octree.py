"""The octree: leaves partition the volume and are homogeneous, noise alone is not split, steps are found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.regions.noise import noise_sd
from atlasseg.regions.octree import split
from atlasseg.volume import Image

OBLIQUE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])
ESTIMATE = 0.1  # relative: a median of a few hundred coefficients
FEW = 32  # voxels in which a step of three noise deviations may go unnoticed
SPLITS = 0.01  # share of noise blocks that may split where one in a thousand does on average


def boxes(labels):
    """First and last voxel of every block, which must fill its box."""
    for label in np.unique(labels):
        at = np.argwhere(labels == label)
        first, last = at.min(0), at.max(0) + 1
        assert len(at) == np.prod(last - first), "a block is a box"
        yield tuple(slice(a, b) for a, b in zip(first, last, strict=True))


volumes = st.tuples(
    st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 10**6), st.integers(1, 2), st.tuples(*[st.floats(0.3, 4)] * 3)
)


@settings(max_examples=30, deadline=None)
@given(volumes, st.sampled_from(["range", "variance"]), st.floats(0, 3))
def test_leaves_partition_the_volume_and_satisfy_the_criterion(volume, homogeneity, threshold):
    shape, seed, channels, spacing = volume
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 3, (*shape, channels)).astype(np.float32)
    blocks = split(Image(array, np.diag([*spacing, 1])), homogeneity=homogeneity, threshold=threshold).array
    first = np.unique(blocks, return_index=True)
    np.testing.assert_array_equal(first[0], np.arange(1, len(first[0]) + 1))
    assert (np.diff(first[1]) > 0).all()  # numbered by first voxel
    for box in boxes(blocks):
        inside = array[box].reshape(-1, channels).astype(np.float64)
        measure = np.ptp(inside, axis=0) if homogeneity == "range" else inside.var(axis=0)
        assert len(inside) == 1 or (measure <= threshold + 1e-12).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_axis_order_and_flips_do_not_matter_where_halves_are_equal(seed, axes, flips):
    array = np.random.default_rng(seed).normal(0, 1, (8, 16, 4)).astype(np.float32)
    array[:4, :8] *= 0.1
    spacing = np.array([1.0, 1.0, 2.5])
    flipped = tuple(slice(None, None, -1) if f else slice(None) for f in flips)

    def blocks(values, mm):
        found = split(Image(values, np.diag([*mm, 1])), homogeneity="range", threshold=1.0).array
        return {frozenset(np.flatnonzero(found == n).tolist()) for n in np.unique(found)}

    where = np.arange(array.size).reshape(array.shape)
    moved = where.transpose(axes)[flipped].reshape(-1)
    there = blocks(np.ascontiguousarray(array.transpose(axes)[flipped]), spacing[list(axes)])
    assert {frozenset(moved[list(block)].tolist()) for block in there} == blocks(array, spacing)


def test_a_homogeneous_volume_is_one_block_whatever_its_size():
    for shape in ((7, 9, 5), (1, 1, 1), (13, 1, 1), (1, 6, 11)):
        image = Image(np.full(shape, 3.3), OBLIQUE)
        assert (split(image, homogeneity="range", threshold=0.0).array == 1).all()
        assert (split(image).array == 1).all()


def test_thick_slices_are_cut_within_the_slice_first():
    array = np.zeros((8, 8, 4), np.float32)
    array[0, 0] = 1
    blocks = split(Image(array, np.diag([1, 1, 6, 1])), homogeneity="range", threshold=0.0).array
    assert blocks[0, 0, 0] != blocks[0, 0, 2], "the slices are as thick as the slice is wide, so they part"
    sheets = split(Image(array, np.diag([1, 1, 0.1, 1])), homogeneity="range", threshold=0.0).array
    assert (sheets[0, 0] == sheets[0, 0, 0]).all(), "thin sheets stay together down to single columns"


def test_noise_is_not_split_and_a_step_is():
    rng = np.random.default_rng(2)
    array = rng.normal(100, 4, (32, 48, 32, 2)).astype(np.float32)
    assert noise_sd(Image(array, OBLIQUE)) == pytest.approx([4, 4], rel=ESTIMATE)
    noise_alone = sum(
        split(Image(rng.normal(0, 1, (8, 9, 7)), OBLIQUE), noise_sd=(1.0,)).array.max() > 1 for _ in range(200)
    )
    assert noise_alone <= SPLITS * 200
    array[11:, :, :, 1] += 12
    blocks = split(Image(array, OBLIQUE))
    assert blocks.array.max() > 1
    for box in boxes(blocks.array):
        rows = range(*box[0].indices(32))
        assert len(rows) == 1 or not (rows[0] < 11 <= rows[-1]) or array[box].size <= 2 * FEW


def test_one_odd_voxel_in_a_large_block_is_found():
    array = np.random.default_rng(3).normal(0, 1, (32, 32, 32)).astype(np.float32)
    array[20, 21, 22] = 9
    blocks = split(Image(array, np.eye(4)), noise_sd=(1.0,)).array
    assert (blocks == blocks[20, 21, 22]).sum() == 1


def test_what_cannot_be_done_is_said():
    image = Image(np.zeros((3, 4, 2)), OBLIQUE)
    for arguments, message in (
        ({"homogeneity": "range"}, "threshold: expected 0 or more for homogeneity 'range'"),
        ({"homogeneity": "variance", "threshold": -1.0}, "threshold: expected 0 or more.* got -1"),
        ({"homogeneity": "range", "threshold": float("nan")}, "got nan"),
        ({"threshold": 2.0}, "got 'noise', which takes a significance"),
        ({"significance": 0.0}, "between 0 and 1, got"),
        ({"noise_sd": (1.0, 2.0)}, "1 values of 0 or more"),
        ({"homogeneity": "smooth"}, "range, variance, noise, got 'smooth'"),
    ):
        with pytest.raises(InputError, match=message):
            split(image, **arguments)
    with pytest.raises(InputError, match="NaN"):
        Image(np.full((2, 2, 2), np.nan), OBLIQUE)
    with pytest.raises(InputError):
        Image(np.zeros((0, 2, 2)), OBLIQUE)
