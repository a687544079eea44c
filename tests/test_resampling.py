"""Resampling against SciPy, SimpleITK and brute force."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from atlasseg import itk
from atlasseg.errors import InputError
from atlasseg.resampling import coverage, resample, resample_fractions, smooth
from atlasseg.threads import limit_threads
from atlasseg.transforms import Affine, BSplineField, grid_points
from atlasseg.volume import Grid, Image, LabelMap, Mask, ProbabilityMap

FLOAT32 = 1e-6  # relative to intensities and fractions of about 1
BIG = 614454277  # a label that float32 cannot hold


def tilted(shape, spacing, angles, flip=1, shear=0.0):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * np.array([1, 1, flip])
    affine[0, 1] += shear
    affine[:3, 3] = np.array([-40, 12, 88]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


SOURCE = tilted((9, 7, 8), (1.5, 2.1, 1.7), (10, -20, 30))
ONTO = {
    "oblique": tilted((8, 11, 6), (1.8, 1.1, 2.5), (-35, 5, 15)),
    "left-handed": tilted((8, 11, 6), (1.8, 1.1, 2.5), (-35, 5, 15), flip=-1),
    "sheared": tilted((8, 11, 6), (1.8, 1.1, 2.5), (-35, 5, 15), shear=0.6),
}
MOVE = Affine(np.array([[1, 0.05, 0, -40 * 0 + 1.3], [0, 0.95, 0, 0.4], [0, 0, 1.02, -1.9], [0, 0, 0, 1]]))


def bend(grid):
    control = BSplineField.control_grid(grid, 6.0)
    return MOVE @ BSplineField(np.random.default_rng(5).normal(size=(*control.shape, 3)), control.affine)


def index_in(grid, onto, transform):
    """(3, N) voxel index in `grid` of each voxel of `onto`; and (N,) whether it is within."""
    points = transform(grid_points(onto)).reshape(-1, 3)
    index = (points - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    inside = ((index >= -0.5) & (index <= np.array(grid.shape) - 0.5)).all(axis=1)
    return index.T, inside


def clipped(index, grid):
    """With the outermost voxels' values holding beyond their centres."""
    return np.clip(index, 0, np.array(grid.shape)[:, None] - 1)


def image(seed=0, grid=SOURCE):
    return Image(np.random.default_rng(seed).normal(size=grid.shape), grid.affine, "scan")


def labels(seed=0, values=(0, 3, BIG, -4), grid=SOURCE):
    return LabelMap(np.random.default_rng(seed).choice(values, size=grid.shape), grid.affine, "drawn")


def brute_fractions(drawn, onto, transform):
    """(..., L) linear fractions of one-hot volumes, by SciPy."""
    index, inside = index_in(drawn.grid, onto, transform)
    index = clipped(index, drawn.grid)
    hot = [ndimage.map_coordinates((drawn.array == v).astype(float), index, order=1) * inside for v in drawn.values]
    dense = np.stack(hot, -1)
    dense[~inside, np.flatnonzero(drawn.values == 0)] = 1
    return dense.reshape(*onto.shape, -1)


@pytest.mark.parametrize("onto", ONTO.values(), ids=ONTO)
@pytest.mark.parametrize(("ours", "order"), [("linear", 1), ("cubic", 3), ("nearest", 0)])
def test_image_against_scipy(onto, ours, order):
    transform = bend(onto)
    index, inside = index_in(SOURCE, onto, transform)
    assert 0.2 < inside.mean() < 0.98
    where = index if ours == "cubic" else clipped(index, SOURCE)
    wanted = ndimage.map_coordinates(image().array.astype(float), where, order=order, mode="mirror")
    result = resample(image(), onto, transform, interpolation=ours, fill=-7.0)
    np.testing.assert_allclose(result.array.ravel(), np.where(inside, wanted, -7), atol=5 * FLOAT32)
    np.testing.assert_array_equal(result.affine, onto.affine)
    assert result.name == "scan"
    np.testing.assert_array_equal(coverage(SOURCE, onto, transform).array.ravel(), inside)


@pytest.mark.parametrize("onto", ONTO.values(), ids=ONTO)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", sitk.sitkLinear), ("cubic", sitk.sitkBSpline), ("nearest", sitk.sitkNearestNeighbor)],
)
def test_image_against_simpleitk(onto, ours, theirs):
    transform = bend(onto)
    reference = itk.image_to_sitk(Image(np.zeros(onto.shape), onto.affine))
    wanted = sitk.Resample(itk.image_to_sitk(image()), reference, itk.transform_to_sitk(transform), theirs, -7.0)
    result = resample(image(), onto, transform, interpolation=ours, fill=-7.0)
    np.testing.assert_allclose(result.array, itk.image_from_sitk(wanted).array, atol=1e-5)


def test_channels_go_together():
    both = Image(np.stack([image(0).array, image(1).array], -1), SOURCE.affine)
    onto = ONTO["oblique"]
    for interpolation in ("linear", "cubic", "nearest"):
        result = resample(both, onto, MOVE, interpolation=interpolation)
        for c in (0, 1):
            alone = resample(image(c), onto, MOVE, interpolation=interpolation)
            np.testing.assert_array_equal(result.array[..., c], alone.array)


def test_outside_an_image_has_its_smallest_value():
    result = resample(image(), ONTO["oblique"], Affine.translation((500, 0, 0)))
    np.testing.assert_array_equal(result.array, image().array.min())


@pytest.mark.parametrize("onto", ONTO.values(), ids=ONTO)
def test_labels_against_brute_force(onto):
    drawn, transform = labels(), bend(onto)
    dense = brute_fractions(drawn, onto, transform)
    fractions = resample_fractions(drawn, onto, transform)
    assert fractions.label_values.tolist() == [-4, 0, 3, BIG]
    np.testing.assert_allclose(fractions.dense(), dense, atol=FLOAT32)
    largest = dense.max(axis=-1, keepdims=True)
    wanted = drawn.values[(dense >= largest - 1e-9).argmax(axis=-1)]  # the smallest label on a tie
    np.testing.assert_array_equal(resample(drawn, onto, transform).array, wanted)
    np.testing.assert_array_equal(fractions.mode, wanted)


def test_fractions_are_kept_only_where_they_are():
    drawn = LabelMap((np.indices(SOURCE.shape)[0] > 4) * 7, SOURCE.affine)
    fractions = resample_fractions(drawn, ONTO["oblique"], MOVE)
    assert 0 < fractions.voxels.size < 0.5 * fractions.mode.size
    assert (np.diff(fractions.offsets) == 2).all()
    assert (np.diff(fractions.voxels) > 0).all()
    np.testing.assert_allclose(np.add.reduceat(fractions.values, fractions.offsets[:-1]), 1, atol=FLOAT32)
    assert (fractions.values > 0).all()


def test_ties_go_to_the_smallest_label():
    drawn = LabelMap(np.array([9, 2, 2, 9, BIG, -4]).reshape(6, 1, 1), np.diag([1.0, 1, 1, 1]))
    between = Grid((5, 1, 1), np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    for interpolation in ("linear", "gaussian"):
        assert resample(drawn, between, interpolation=interpolation).array.ravel().tolist()[::2] == [2, 2, -4]


def test_probabilities_are_resampled_linearly():
    onto, again = ONTO["oblique"], ONTO["left-handed"]
    once = resample_fractions(labels(), onto, MOVE)
    twice = resample(once, again, ~MOVE)
    index, inside = index_in(onto, again, ~MOVE)
    index = clipped(index, onto)
    hot = [ndimage.map_coordinates(once.probability(int(v)).astype(float), index, order=1) for v in once.label_values]
    wanted = np.stack(hot, -1)
    wanted[~inside] = once.label_values == 0
    np.testing.assert_allclose(twice.dense().reshape(wanted.shape), wanted, atol=2 * FLOAT32)
    np.testing.assert_array_equal(twice.label_values, once.label_values)


def test_probabilities_that_are_certain_are_as_labels():
    onto = ONTO["sheared"]
    certain = ProbabilityMap.from_labels(labels())
    for interpolation in ("linear", "gaussian", "nearest"):
        a = resample(certain, onto, MOVE, interpolation=interpolation)
        b = resample_fractions(labels(), onto, MOVE, interpolation=interpolation)
        for part in ("mode", "voxels", "offsets", "labels", "values"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7])
def test_gaussian_labels_against_brute_force(sigma):
    """Weights are integrals of a Gaussian over each voxel that it reaches, as in ITK's label interpolator."""
    drawn, onto = labels(), ONTO["oblique"]
    index, inside = index_in(SOURCE, onto, MOVE)
    index = clipped(index, SOURCE)
    wanted = np.zeros((index.shape[1], 4))
    edges = [np.arange(n + 1) - 0.5 for n in SOURCE.shape]
    for p in np.flatnonzero(inside):
        weights = []
        for a in range(3):
            x = index[a, p]

            w = np.diff(norm.cdf(edges[a], loc=x, scale=sigma))
            voxel = np.arange(SOURCE.shape[a])
            w[(voxel < np.floor(x + 0.5 - 2 * sigma)) | (voxel >= np.ceil(x + 0.5 + 2 * sigma))] = 0
            weights.append(w)
        footprint = weights[0][:, None, None] * weights[1][:, None] * weights[2]
        wanted[p] = [footprint[drawn.array == v].sum() / footprint.sum() for v in drawn.values]
    wanted[~inside] = drawn.values == 0
    ours = resample_fractions(drawn, onto, MOVE, interpolation="gaussian", sigma_voxels=sigma)
    np.testing.assert_allclose(ours.dense().reshape(wanted.shape), wanted, atol=5 * FLOAT32)


def test_nearest_labels_against_simpleitk():
    onto = ONTO["left-handed"]
    reference = itk.image_to_sitk(Image(np.zeros(onto.shape), onto.affine))
    moved = itk.transform_to_sitk(bend(onto))
    wanted = sitk.Resample(itk.image_to_sitk(labels()), reference, moved, sitk.sitkNearestNeighbor, 0)
    ours = resample(labels(), onto, bend(onto), interpolation="nearest")
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(wanted).transpose(2, 1, 0))


def test_masks_stay_masks():
    inside = Mask(labels().array == 3, SOURCE.affine)
    onto = ONTO["oblique"]
    result = resample(inside, onto, MOVE)
    assert isinstance(result, Mask)
    wanted = resample(LabelMap(inside.array.astype(int), SOURCE.affine), onto, MOVE).array == 1
    np.testing.assert_array_equal(result.array, wanted)
    assert not resample(inside, onto, Affine.translation((900, 0, 0))).array.any()


def test_onto_its_own_grid_nothing_changes():
    """Also where the same grid is reached by way of another one, with rounding."""
    for transform in (None, MOVE @ ~MOVE, Affine.translation((1e-9, 0, 0))):
        np.testing.assert_array_equal(resample(image(), SOURCE, transform).array, image().array)
        fractions = resample_fractions(labels(), SOURCE, transform)
        np.testing.assert_array_equal(fractions.mode, labels().array)
        assert fractions.voxels.size == 0
        assert coverage(SOURCE, SOURCE, transform).array.all()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31 - 1), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_axes_may_come_in_any_order_and_direction(seed, order, flips):
    """The same volume stored with its axes turned about is the same volume."""
    drawn, scan = labels(seed % 100), image(seed % 100)
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for new, old in enumerate(order):
        turned[old, new] = -1 if flips[new] else 1
        turned[old, 3] = SOURCE.shape[old] - 1 if flips[new] else 0
    axes = [n for n in range(3) if flips[n]]
    affine = SOURCE.affine @ turned
    onto = ONTO["oblique"]
    stored = LabelMap(np.flip(drawn.array.transpose(order), axes), affine)
    np.testing.assert_array_equal(resample(stored, onto, MOVE).array, resample(drawn, onto, MOVE).array)
    copy = Image(np.flip(scan.array.transpose(order), axes), affine)
    apart = resample(copy, onto, MOVE).array - resample(scan, onto, MOVE).array
    assert np.abs(apart).max() < 5 * FLOAT32


def test_results_do_not_depend_on_the_number_of_threads():
    onto, results = ONTO["oblique"], []
    for threads in (1, 3):
        with limit_threads(threads):
            fractions = resample_fractions(labels(), onto, bend(onto))
            results.append(
                (resample(image(), onto, bend(onto)).array, fractions.mode, fractions.labels, fractions.values)
            )
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_antialiasing_smooths_to_the_resolution_that_is_wanted():
    noise = Image(np.random.default_rng(0).normal(size=(40, 36, 32)), np.diag([1.0, 1, 2, 1]))
    coarse = Grid((9, 8, 15), np.array([[4, 0, 0, 2], [0, 4, 0, 2], [0, 0, 2, 2], [0, 0, 0, 1.0]]))
    plain, soft = resample(noise, coarse), resample(noise, coarse, antialias=True)
    sigma = np.array([np.sqrt(15), np.sqrt(15), 0]) / np.sqrt(8 * np.log(2))  # Cardoso 2015: FWHMs as squares
    wanted = resample(noise.with_array(ndimage.gaussian_filter(noise.array, sigma, mode="nearest")), coarse)
    np.testing.assert_allclose(soft.array, wanted.array, atol=FLOAT32)
    assert soft.array.std() < 0.3 * plain.array.std()
    fine = Grid((79, 71, 63), np.diag([0.5, 0.5, 1, 1.0]))
    np.testing.assert_array_equal(resample(noise, fine, antialias=True).array, resample(noise, fine).array)


def test_antialiasing_counts_in_millimetres():
    """Voxels of 0.5, 2 and 3 mm, seen on voxels 2, 3 and 1.5 times as large."""
    noise = Image(np.random.default_rng(1).normal(size=(30, 24, 20)), np.diag([0.5, 2, 3, 1]))
    coarse = Grid((12, 6, 10), np.array([[1.0, 0, 0, 2], [0, 6, 0, 4], [0, 0, 4.5, 5], [0, 0, 0, 1]]))
    sigma = np.sqrt(np.array([2, 3, 1.5]) ** 2 - 1) / np.sqrt(8 * np.log(2))  # in voxels of the image
    wanted = resample(noise.with_array(ndimage.gaussian_filter(noise.array, sigma, mode="nearest")), coarse)
    np.testing.assert_allclose(resample(noise, coarse, antialias=True).array, wanted.array, atol=FLOAT32)


def test_smoothing_is_in_millimetres():
    grid = np.diag([1.0, 2.0, 4.0, 1])
    spike = np.zeros((31, 21, 17))
    spike[15, 10, 8] = 1
    soft = smooth(Image(spike, grid), 4.0).array
    widths = [np.sqrt(np.average((np.arange(n) - n // 2) ** 2, weights=soft.sum(axis=other))) for n, other in
              ((31, (1, 2)), (21, (0, 2)), (17, (0, 1)))]  # fmt: skip
    np.testing.assert_allclose(widths * np.array([1, 2, 4]), 4.0, rtol=0.05)


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (image(), {"interpolation": "gaussian"}, "an Image can be interpolated as linear, cubic, nearest"),
        (labels(), {"interpolation": "cubic"}, "a LabelMap can be interpolated as linear, gaussian, nearest"),
        (labels(), {"fill": 3.0}, "not for a LabelMap"),
        (labels(), {"antialias": True}, "not for a LabelMap"),
        (labels(), {"interpolation": "gaussian", "sigma_voxels": 0.0}, "above 0"),
        (ProbabilityMap.from_labels(labels()), {"interpolation": "cubic"}, "linear, gaussian, nearest"),
    ],
)
def test_what_does_not_fit_the_type_is_refused(volume, options, message):
    with pytest.raises(InputError, match=message):
        resample(volume, SOURCE, **options)
