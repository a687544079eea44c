"""Data types: what they accept, what they refuse, and that a probability map is one."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Atlas, Grid, Image, LabelMap, LabelWeights, Mask, ProbabilityMap, SourceHeader

SHAPE = (7, 9, 5)
FLOAT32_SUM = 1e-6
"""A few float32 probabilities, each rounded to 6e-8, sum to 1 within this."""

# oblique, anisotropic, left-handed
AFFINE = np.array([[-0.9, 0.2, 0.1, 31.0], [0.15, 1.2, -0.3, -12.5], [0.05, 0.25, 2.5, 7.25], [0, 0, 0, 1]])


def image(shape=SHAPE, affine=AFFINE, **more):
    return Image(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine, **more)


# ------------------------------------------------------------------------------------------------------------ Grid


def test_grid_knows_its_spacing_corners_and_centre():
    grid = Grid(SHAPE, AFFINE)
    voxels = np.array([(i, j, k, 1) for i in (0, 6) for j in (0, 8) for k in (0, 4)])
    np.testing.assert_allclose(grid.corners_mm, (voxels @ AFFINE.T)[:, :3])
    np.testing.assert_allclose(grid.centre_mm, grid.corners_mm.mean(axis=0))
    np.testing.assert_allclose(grid.spacing_mm, [np.sqrt(0.81 + 0.0225 + 0.0025), np.sqrt(1.5425), np.sqrt(6.35)])


@pytest.mark.parametrize(("apart_voxels", "same"), [(0, True), (1e-7, True), (0.5, False)])
def test_grids_match_within_a_hundredth_of_a_voxel(apart_voxels, same):
    moved = AFFINE.copy()
    moved[:3, 3] += apart_voxels * 0.9
    assert Grid(SHAPE, AFFINE).matches(Grid(SHAPE, moved)) is same


def test_grids_do_not_match_when_a_far_corner_is_off():
    turned = AFFINE.copy()
    turned[0, 0] += 0.01
    assert not Grid(SHAPE, AFFINE).matches(Grid(SHAPE, turned))
    assert not Grid(SHAPE, AFFINE).matches(Grid((7, 9, 6), AFFINE))


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.diag([1.0, 0, 1, 1]),
        np.full((4, 4), np.nan),
        # singular, though rounding leaves its determinant at 7e-16
        np.array([[1.0, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 0], [0, 0, 0, 1]]),
    ],
)
def test_grid_refuses_an_affine_that_is_none(affine):
    with pytest.raises(GeometryError, match="invertible"):
        Grid(SHAPE, affine)


def test_grid_accepts_tiny_voxels():
    assert Grid(SHAPE, np.diag([1e-4, 2e-4, 1e-4, 1])).spacing_mm[1] == 2e-4


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 5, 2), (7, 0, 5)])
def test_grid_refuses_other_than_three_axes(shape):
    with pytest.raises(GeometryError, match="three axes"):
        Grid(shape, AFFINE)


def test_grid_keeps_a_copy_of_its_affine():
    affine = AFFINE.copy()
    grid = Grid(SHAPE, affine)
    affine[0, 3] = 1000
    assert grid.affine[0, 3] == 31.0


# --------------------------------------------------------------------------------------- Image, Mask and LabelMap


def test_cropping_moves_the_affine_and_the_qform_along():
    qform = tuple(tuple(row) for row in (AFFINE + np.array([[0, 0, 0, 4.0]] * 3 + [[0] * 4])).tolist())
    whole = image(source_header=SourceHeader(Path("scan.nii.gz"), qform=qform))
    part = whole.cropped((1, 2, 3), (6, 9, 5))
    assert part.shape == (5, 7, 2)
    assert part.array[0, 0, 0] == whole.array[1, 2, 3]
    first = AFFINE @ [1, 2, 3, 1]
    np.testing.assert_allclose(part.affine[:, 3], first)
    assert part.source_header.qform is not None
    np.testing.assert_allclose(np.array(part.source_header.qform)[:3, 3], first[:3] + 4)
    np.testing.assert_array_equal(whole.affine, AFFINE)


@pytest.mark.parametrize(("start", "stop"), [((-1, 0, 0), (7, 9, 5)), ((0, 0, 0), (7, 9, 6)), ((3, 3, 3), (3, 9, 5))])
def test_cropping_outside_or_to_nothing_is_refused(start, stop):
    with pytest.raises(GeometryError):
        image().cropped(start, stop)


def test_image_becomes_float32_and_may_have_channels():
    plain = Image(np.ones(SHAPE, np.int16), AFFINE)
    assert plain.array.dtype == np.float32
    assert plain.channels.shape == (*SHAPE, 1)
    both = Image(np.ones((*SHAPE, 2)), AFFINE)
    assert both.shape == SHAPE
    assert both.channels.shape == (*SHAPE, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_image_refuses_what_is_not_finite(bad):
    array = np.ones(SHAPE)
    array[1, 2, 3] = bad
    with pytest.raises(InputError, match=r"'scan'.*got 1 NaN or infinite"):
        Image(array, AFFINE, "scan")


@pytest.mark.parametrize("kind", [Image, Mask, LabelMap])
def test_two_dimensions_are_refused_with_the_shape(kind):
    with pytest.raises(InputError, match=r"\(7, 9\)"):
        kind(np.ones((7, 9)), AFFINE)


def test_values_of_another_shape_are_refused():
    with pytest.raises(GeometryError, match=r"\(7, 9, 4\)"):
        image(name="scan").with_array(np.ones((7, 9, 4)))
    assert image().with_array(np.zeros(SHAPE)).array.sum() == 0


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_labels_of_every_type_are_kept(dtype):
    given = np.zeros(SHAPE, dtype)
    given[1, 2, 3] = 1 if dtype == "bool" else min(614454277, np.iinfo(dtype).max if dtype[0] != "f" else 614454277)
    labels = LabelMap(given, AFFINE)
    assert labels.array.dtype == np.int32
    assert labels.values.tolist() == [0, int(given[1, 2, 3])]


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf, 2.0**31, -(2.0**31) - 1])
def test_labels_that_are_not_whole_32_bit_numbers_are_refused(value):
    array = np.zeros(SHAPE)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match=r"expected .*labels"):
        LabelMap(array, AFFINE)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_beyond_32_bits_are_refused_and_not_wrapped(value):
    array = np.zeros(SHAPE, np.int64)
    array[0, 0, 0] = value
    with pytest.raises(InputError, match=str(value)):
        LabelMap(array, AFFINE)


def test_complex_labels_are_refused():
    with pytest.raises(InputError, match="complex128"):
        LabelMap(np.zeros(SHAPE, complex), AFFINE)


def test_the_extreme_labels_of_32_bits_are_kept():
    array = np.zeros(SHAPE)
    array[0, 0, :2] = -(2.0**31), 2.0**31 - 1
    assert LabelMap(array, AFFINE).values.tolist() == [-(2**31), 0, 2**31 - 1]


# ----------------------------------------------------------------------------------------------------------- Atlas


def test_atlas_refuses_labels_or_mask_on_another_grid():
    labels = LabelMap(np.zeros(SHAPE, np.int32), AFFINE)
    moved = AFFINE.copy()
    moved[2, 3] += 1.25  # half a voxel
    with pytest.raises(GeometryError, match="atlas 'a': expected its labels on the grid of its image"):
        Atlas("a", image(), LabelMap(labels.array, moved))
    with pytest.raises(GeometryError, match=r"atlas 'a': expected its mask on the grid of its image.*\(7, 9, 4\)"):
        Atlas("a", image(), labels, Mask(np.ones((7, 9, 4)), AFFINE))


def test_atlas_gives_hard_labels_of_either_kind():
    labels = LabelMap((np.arange(np.prod(SHAPE)) % 3).reshape(SHAPE), AFFINE)
    for given_labels in (labels, ProbabilityMap.from_labels(labels)):
        atlas = Atlas("a", image(), given_labels)
        np.testing.assert_array_equal(atlas.segmentation.array, labels.array)
        assert atlas.label_values.tolist() == [0, 1, 2]


# -------------------------------------------------------------------------------------------------- ProbabilityMap

LABELS = [-3, 0, 2, 614454277]
WEIGHTS = hnp.arrays(
    np.float64,
    (2, 3, 2, len(LABELS)),
    elements=st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-60, 1e6)),
)


def oracle(weights):
    """Probabilities by plain division; certain background where there is nothing."""
    total = weights.sum(axis=-1, keepdims=True)
    nothing = np.zeros(len(LABELS))
    nothing[LABELS.index(0)] = 1
    return np.where(total > 0, weights / np.where(total > 0, total, 1), nothing)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_a_probability_map_says_what_dense_arithmetic_says(weights):
    expected = oracle(weights)
    found = ProbabilityMap.from_dense(weights, LABELS, AFFINE)
    dense = found.dense()
    assert found.label_values.tolist() == LABELS
    np.testing.assert_allclose(dense, expected, atol=FLOAT32_SUM)
    np.testing.assert_allclose(dense.sum(axis=-1), 1, atol=FLOAT32_SUM)
    assert (found.values > 0).all()
    assert (np.diff(found.voxels) > 0).all()
    # the mode is the label of the largest probability as stored, the smallest label on a tie
    np.testing.assert_array_equal(found.mode, np.array(LABELS)[dense.argmax(axis=-1)])
    np.testing.assert_array_equal(found.confidence(), dense.max(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(expected > 0, -expected * np.log2(expected), 0).sum(axis=-1)
    np.testing.assert_allclose(found.entropy(), entropy, atol=1e-5)  # -p log p is steep near 0 and 1
    assert np.isfinite(found.entropy()).all() and (found.entropy() >= 0).all()


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.randoms(use_true_random=False))
def test_entries_may_come_in_any_order_and_in_parts(weights, random):
    flat = weights.reshape(-1, len(LABELS))
    voxels, columns = np.nonzero(flat)
    voxels, columns = np.concatenate([voxels, voxels]), np.concatenate([columns, columns])  # each weight in two halves
    order = np.array(random.sample(range(voxels.size), voxels.size), dtype=int)
    found = ProbabilityMap.from_entries(
        np.zeros(weights.shape[:3], np.int32),
        AFFINE,
        voxels[order],
        np.array(LABELS)[columns][order],
        flat[voxels, columns][order] / 2,
        label_values=LABELS,
    )
    whole = ProbabilityMap.from_dense(weights, LABELS, AFFINE)
    np.testing.assert_array_equal(found.mode, whole.mode)
    np.testing.assert_array_equal(found.voxels, whole.voxels)
    np.testing.assert_array_equal(found.values, whole.values)


def test_only_what_is_uncertain_is_stored():
    weights = np.zeros((*SHAPE, 2))
    weights[..., 0] = 1
    weights[2, 3, 4] = 0.25, 0.75
    found = ProbabilityMap.from_dense(weights, [0, 9], AFFINE)
    assert found.voxels.tolist() == [np.ravel_multi_index((2, 3, 4), SHAPE)]
    assert found.labels.tolist() == [0, 9]
    assert found.mode[2, 3, 4] == 9
    assert found.entropy()[2, 3, 4] == pytest.approx(0.811278, abs=1e-6)  # -0.25 log2 0.25 - 0.75 log2 0.75
    assert found.probability(9).sum() == pytest.approx(0.75)
    assert found.probability(77).sum() == 0


def test_weights_too_small_for_float32_leave_no_trace():
    weights = np.zeros((*SHAPE, 2))
    weights[...] = 1, 1e-50
    found = ProbabilityMap.from_dense(weights, [0, 9], AFFINE)
    assert found.voxels.size == 0
    assert found.entropy().max() == 0


def test_ties_go_to_the_smallest_label():
    weights = np.full((*SHAPE, 3), 1 / 3)
    assert (ProbabilityMap.from_dense(weights, [7, 5, 6], AFFINE).mode == 5).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(InputError, match="expected finite weights, got 1 NaN or infinite"):
        ProbabilityMap.from_entries(
            np.zeros(SHAPE, np.int32), AFFINE, np.array([0, 1]), np.array([1, 1]), np.array([1.0, bad])
        )


def test_a_certain_map_is_its_labels():
    labels = LabelMap((np.arange(np.prod(SHAPE)) % 3).reshape(SHAPE), AFFINE, "a")
    found = ProbabilityMap.from_labels(labels, label_values=[300])
    assert found.name == "a"
    assert found.label_values.tolist() == [0, 1, 2, 300]
    assert found.voxels.size == 0 and found.confidence().min() == 1 and found.entropy().max() == 0
    np.testing.assert_array_equal(found.label_map().array, labels.array)
    found.mode[...] = 5
    assert labels.array.max() == 2  # it does not share memory


@settings(max_examples=20, deadline=None)
@given(WEIGHTS, st.tuples(*[st.integers(0, 3)] * 3))
def test_a_part_embedded_in_its_grid_is_where_it_was(weights, start):
    part = ProbabilityMap.from_dense(weights, LABELS, Grid(SHAPE, AFFINE).cropped(start, np.array(start) + 1).affine)
    whole = part.padded_to(Grid(SHAPE, AFFINE), start)
    box = tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))
    np.testing.assert_array_equal(whole.dense()[box], part.dense())
    outside = np.ones(SHAPE, bool)
    outside[box] = False
    assert (whole.probability(0)[outside] == 1).all()
    assert whole.grid.matches(Grid(SHAPE, AFFINE))


def test_a_cropped_map_is_that_of_the_cropped_weights():
    rng = np.random.default_rng(4)
    weights = rng.random((*SHAPE, len(LABELS))) ** 3
    weights[rng.random(SHAPE) < 0.6, 1:] = 0  # certain
    whole = ProbabilityMap.from_dense(weights, LABELS, AFFINE, name="scan")
    for start, stop in (((0, 0, 0), SHAPE), ((1, 0, 2), np.array(SHAPE) - 1), ((1, 1, 1), (2, 2, 2))):
        found = whole.cropped(start, stop)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        direct = ProbabilityMap.from_dense(weights[box], LABELS, whole.grid.cropped(start, stop).affine)
        for name in ("mode", "voxels", "offsets", "labels", "values", "affine", "label_values"):
            one, other = getattr(found, name), getattr(direct, name)
            np.testing.assert_array_equal(one, other, err_msg=name)
            assert one.dtype == other.dtype and one.flags.c_contiguous, name
        assert found.name == "scan"


def test_label_weights_take_and_keep_as_lists_do():
    rng = np.random.default_rng(1)
    lists = [[(int(v), float(rng.random())) for v in sorted(rng.choice(9, n, replace=False))] for n in (2, 0, 1, 4)]
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in lists])))
    labels, values = (np.array([pair[k] for each in lists for pair in each]) for k in (0, 1))
    weights = LabelWeights(offsets, labels, values)
    assert weights.sizes.tolist() == [2, 0, 1, 4] and weights.places.tolist() == [0, 0, 2, 3, 3, 3, 3]

    def unpacked(found):
        return [list(zip(found.labels[a:b], found.values[a:b], strict=True)) for a, b in pairwise(found.offsets)]

    assert unpacked(weights.take(np.array([3, 1, 0, 3]))) == [lists[n] for n in (3, 1, 0, 3)]
    assert unpacked(weights.keep(values > 0.5)) == [[pair for pair in each if pair[1] > 0.5] for each in lists]
    assert unpacked(weights.with_values(-values)) == [[(v, -w) for v, w in each] for each in lists]
