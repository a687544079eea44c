import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from atlasseg.errors import InputError
from atlasseg.preprocessing.foreground import find_erased_background, foreground
from atlasseg.volume import Image

AFFINE = np.array([[0, 1.1, 0, 3], [-2.0, 0, 0.2, -5], [0, 0.1, 1.7, 9], [0, 0, 0, 1]])


def ball(shape=(19, 23, 15), radius=6.5):
    away = np.indices(shape) - np.array(shape)[:, None, None, None] / 2
    return np.sqrt((away**2).sum(0)) < radius


def noisy_head(scale=1.0, offset=0.0):
    rng = np.random.default_rng(0)
    inside = ball()
    values = np.where(inside, 100 + 12 * rng.normal(size=inside.shape), np.abs(8 * rng.normal(size=inside.shape)))
    return inside, Image(values * scale + offset, AFFINE, "head")


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1.7e4, 0), (1e-4, 0), (1, -1024)])
def test_a_head_in_noisy_air(scale, offset):
    inside, image = noisy_head(scale, offset)
    np.testing.assert_array_equal(foreground(image).array, inside)
    np.testing.assert_array_equal(foreground(image).affine, AFFINE)


def test_the_threshold_is_otsus():
    values = np.random.default_rng(1).gamma(2.0, size=(15, 17, 13))
    values[4:11, 4:11, 4:11] += 6
    clipped = np.clip(values.astype(np.float32), *np.percentile(values.astype(np.float32), (0.1, 99.9)))
    parts, _ = ndimage.label(clipped > threshold_otsu(clipped, nbins=256))
    wanted = ndimage.binary_fill_holes(parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1)
    assert (foreground(Image(values, AFFINE)).array != wanted).mean() < 0.01  # a bin's width


def test_specks_are_dropped_holes_filled_and_outliers_ignored():
    inside, image = noisy_head()
    array = image.array.copy()
    array[8:10, 10:13, 6:8] = 0  # a ventricle
    array[0, 0, 0], array[18, 22, 14], array[9, 11, 9] = 90, 95, 1e7
    np.testing.assert_array_equal(foreground(image.with_array(array)).array, inside)


def test_erased_background_leaves_all_that_was_kept():
    inside, image = noisy_head()
    dark_and_bright = np.where(np.indices(inside.shape)[0] > 9, 20.0, 100.0)
    stripped = np.where(inside, dark_and_bright, 0)
    np.testing.assert_array_equal(foreground(image.with_array(stripped)).array, inside)
    np.testing.assert_array_equal(foreground(image.with_array(stripped - 1000)).array, inside)
    np.testing.assert_array_equal(find_erased_background(stripped), ~inside)
    assert find_erased_background(image.array) is None


def test_any_channel_counts():
    inside, image = noisy_head()
    half = np.indices(inside.shape)[1] > 11
    channels = np.stack([np.where(half, image.array, 0), np.where(half, 0, image.array)], -1)
    found = foreground(Image(channels, AFFINE)).array
    assert (found != inside).mean() < 0.02


def test_thin_volumes_and_constant_ones():
    flat = np.zeros((6, 7, 1))
    flat[2:4, 2:5] = 5
    np.testing.assert_array_equal(foreground(Image(flat, AFFINE)).array, flat > 0)
    with pytest.raises(InputError, match=r"'empty': all its intensities are 3"):
        foreground(Image(np.full((4, 5, 6), 3.0), AFFINE, "empty"))
