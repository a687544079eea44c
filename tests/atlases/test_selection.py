import numpy as np
import pytest
from scipy import ndimage

from atlasseg import phantoms
from atlasseg.atlases.selection import (
    LEAST_COVERAGE,
    _correlations,
    choose,
    likenesses,
    select,
    similarities,
    thumbnails,
)
from atlasseg.errors import InputError
from atlasseg.similarity import create_metric
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image, LabelMap, Mask

ROUNDING = 1e-5  # float32 thumbnails


def scene(kind, grid, *, noise=0.0, gain=1.0, at_mm=(0, 0, 0), seed=0):
    """An atlas of a smooth pattern that its kind decides, seen from a grid; `at_mm` moves the pattern."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - at_mm
    rng = np.random.default_rng(kind)
    value = np.zeros(grid.shape)
    for _ in range(6):
        centre, width = rng.uniform(-14, 14, 3), rng.uniform(5, 9)
        value += np.exp(-((points - centre) ** 2).sum(-1) / (2 * width**2))
    value += np.random.default_rng(seed).normal(0, noise, grid.shape)
    return Atlas(f"k{kind}", Image(gain * value, grid.affine), LabelMap(np.zeros(grid.shape), grid.affine))


@pytest.fixture
def grid():
    return phantoms.tilted_grid((21, 24, 17), spacing_mm=(1.9, 1.7, 2.2), angles_degrees=(10, -5, 3), axes="LAS")


@pytest.fixture
def other():
    return phantoms.tilted_grid((18, 20, 26), spacing_mm=(2.2, 2.0, 1.5), angles_degrees=(-4, 6, 0), axes="SRA")


def test_finds_the_alike_before_registration(grid, other):
    """The same pattern on another grid, intensities 10^4 times as large and 4 mm off, among others."""
    target = scene(1, grid).image
    library = [scene(k, other, seed=k, noise=0.02, gain=1e4, at_mm=(3, -2, 2)) for k in (5, 2, 1, 7, 3)]
    assert select(target, library, count=1) == (2,)
    assert len(select(target, library, count=9)) == 5


def test_scores_are_the_similarity_through_the_transforms(grid, other):
    target = scene(1, grid)
    library = [scene(k, other) for k in (1, 2)]
    seen = thumbnails(target.image, library, transforms=[Affine.identity()] * 2, longest_voxels=12)
    assert max(seen.grid.shape) == 12
    np.testing.assert_allclose(seen.grid.centre_mm, grid.centre_mm)
    # the pattern is smooth: a thumbnail is the pattern on the thumbnail's grid, but for scale
    exact = [scene(k, seen.grid).image.channels for k in (1, 2)]
    for n in range(2):
        inside = seen.covered[n]
        assert np.corrcoef(seen.images[n][inside].ravel(), exact[n][inside].ravel())[0, 1] > 0.97
    scores = similarities(seen)
    assert scores[0] > 0.95 > scores[1]
    for name, sign in (("mutual_information", 1), ("mean_squares", -1)):
        expected = sign * create_metric(name).value(seen.target, seen.images[1], mask=seen.covered[1])
        np.testing.assert_allclose(similarities(seen, metric=name)[1], expected, rtol=ROUNDING)


def test_after_registration_nothing_is_moved(grid):
    target = scene(1, grid)
    shifted = scene(1, grid, at_mm=(4, 0, 0))
    other = scene(2, grid)
    seen = thumbnails(target.image, [target, shifted, other])
    scores = similarities(seen)
    np.testing.assert_allclose(scores[0], 1, atol=ROUNDING)
    assert scores[1] < 0.95 and scores[2] < scores[1]


def test_likeness_is_correlation(grid):
    seen = thumbnails(scene(1, grid).image, [scene(k, grid) for k in (1, 2, 3)])
    expected = np.corrcoef(seen.images.reshape(3, -1))
    np.testing.assert_allclose(likenesses(seen), expected, atol=ROUNDING)


def test_mask_and_field_of_view(grid):
    """Outside the target's mask nothing counts; an atlas that covers next to nothing comes last."""
    target = scene(1, grid)
    half = np.zeros(grid.shape, bool)
    half[:10] = True
    spoiled = target.image.array.copy()
    spoiled[12:] = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 50, spoiled[12:].shape), 1)
    bad = Atlas("half", target.image.with_array(spoiled), target.labels)
    mask = Mask(half, grid.affine)
    assert select(target.image, [scene(2, grid), bad], count=1, mask=mask) == (1,)
    assert similarities(thumbnails(target.image, [bad]))[0] < 0.5
    far = Affine.translation((500.0, 0, 0))
    transforms = [far, Affine.identity()]
    assert select(target.image, [target, scene(2, grid)], count=2, transforms=transforms) == (1, 0)
    assert similarities(thumbnails(target.image, [target], transforms=[far]))[0] == -np.inf


def test_choose_by_hand():
    scores = np.array([0.9, 0.89, 0.5, -np.inf])
    likeness = np.array([[1, 0.99, 0.1, 0], [0.99, 1, 0.1, 0], [0.1, 0.1, 1, 0], [0, 0, 0, 1.0]])
    assert choose(scores, count=2) == (0, 1)
    assert choose(scores, count=2, likeness=likeness, redundancy=0.6) == (0, 2)
    assert choose(scores, count=9) == (0, 1, 2, 3)
    assert choose(np.array([0.3, 0.3, 0.1]), count=2) == (0, 1)  # ties to the first


def test_twins_are_not_chosen_together(grid):
    target = scene(1, grid, noise=0.05, seed=9)
    twins = [scene(1, grid, noise=0.2, seed=4) for _ in range(3)]
    different = scene(1, grid, noise=0.25, seed=5)
    library = [*twins, different]
    assert 3 not in select(target.image, library, count=2)
    assert 3 in select(target.image, library, count=2, redundancy=1.0)


def test_constant_images(grid):
    flat = Atlas("flat", Image(np.ones(grid.shape), grid.affine), LabelMap(np.zeros(grid.shape), grid.affine))
    assert select(flat.image, [flat, scene(1, grid)], count=2) == (0, 1)
    assert select(scene(1, grid).image, [flat, scene(1, grid)], count=1) == (1,)


def test_errors(grid):
    target = scene(1, grid)
    with pytest.raises(InputError, match=r"expected at least one atlas.*got none"):
        select(target.image, [], count=1)
    with pytest.raises(InputError, match="count of at least 1"):
        select(target.image, [target], count=0)
    with pytest.raises(InputError, match="got 2 for 1"):
        select(target.image, [target], count=1, transforms=[Affine.identity()] * 2)
    with pytest.raises(InputError, match="'beauty'"):
        select(target.image, [target], count=1, metric="beauty")
    with pytest.raises(InputError, match=r"mask.*empty"):
        select(target.image, [target], count=1, mask=Mask(np.zeros(grid.shape, bool), grid.affine))
    with pytest.raises(InputError, match="likeness"):
        choose(np.ones(3), count=2, redundancy=0.5)
    two = Image(np.stack([target.image.array] * 2, -1), grid.affine, "scan")
    with pytest.raises(InputError, match=r"'k1': expected 2 channels.*got 1"):
        select(two, [target], count=1)


def test_correlations_of_all_windows_are_those_of_one_after_the_other():
    rng = np.random.default_rng(3)
    wanted, known = rng.random((7, 5, 6)) < 0.8, rng.random((9, 9, 7)) < 0.9
    known[:3] = False  # windows there cover too little
    target = rng.normal(size=(*wanted.shape, 2)).astype(np.float32) * wanted[..., None]
    image = rng.normal(size=(*known.shape, 2)).astype(np.float32) * known[..., None]
    image[..., 1] = np.where(known, 0.5, 0)  # constant
    found = _correlations(target, wanted, image, known)
    assert found.shape == (3, 5, 2)
    for step in np.ndindex(*found.shape):
        box = tuple(slice(a, a + n) for a, n in zip(step, wanted.shape, strict=True))
        inside = known[box] & wanted
        if inside.sum() < LEAST_COVERAGE * wanted.sum():
            assert found[step] == -np.inf
        else:
            expected = np.corrcoef(target[inside, 0], image[box][inside, 0])[0, 1] / 2
            assert found[step] == pytest.approx(expected, abs=1e-7)
