import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.preprocessing import intensity
from atlasseg.volume import Image, Mask

AFFINE = np.diag([1.5, -2, 0.7, 1])


def scan(seed=0, shape=(11, 9, 7)):
    return Image(np.random.default_rng(seed).gamma(3.0, size=shape), AFFINE, "scan")


def test_percentiles_go_to_0_and_1():
    image = scan()
    low, high = np.percentile(image.array.astype(float), (2, 97))
    scaled = intensity.preprocess(image, low_percent=2, high_percent=97, clip=False)
    np.testing.assert_allclose(scaled.array, (image.array - low) / (high - low), rtol=1e-5, atol=1e-6)
    clipped = intensity.preprocess(image, low_percent=2, high_percent=97)
    np.testing.assert_array_equal(clipped.array, np.clip(scaled.array, 0, 1))


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(-1e3, 1e3), st.sampled_from(["percentile", "zscore"]))
def test_scale_and_offset_do_not_matter(scale, offset, kind):
    image = scan()
    other = image.with_array(image.array.astype(float) * scale + offset * scale)
    apart = intensity.preprocess(other, scale=kind).array - intensity.preprocess(image, scale=kind).array
    assert np.abs(apart).max() < 5e-3  # float32 keeps 1e-7 of an offset of up to a thousand times the scale


def test_zscore_in_a_mask():
    image, inside = scan(), scan(1).array > 3
    scaled = intensity.preprocess(image, scale="zscore", mask=Mask(inside, AFFINE), low_percent=0, high_percent=100)
    assert scaled.array[inside].mean() == pytest.approx(0, abs=1e-5)
    assert scaled.array[inside].std() == pytest.approx(1, abs=1e-5)


def test_erased_background_is_not_counted():
    """More of it must not change the brain."""
    brain = scan().array
    small, large = np.zeros((15, 13, 11)), np.zeros((31, 29, 27))
    small[2:13, 2:11, 2:9] = large[10:21, 10:19, 10:17] = brain
    a = intensity.preprocess(Image(small, AFFINE)).array[2:13, 2:11, 2:9]
    b = intensity.preprocess(Image(large, AFFINE)).array[10:21, 10:19, 10:17]
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, intensity.preprocess(Image(brain, AFFINE)).array)


def test_channels_are_scaled_apart():
    both = Image(np.stack([scan(0).array, 1e5 * scan(1).array], -1), AFFINE)
    scaled = intensity.preprocess(both).array
    np.testing.assert_array_equal(scaled[..., 1], intensity.preprocess(Image(both.array[..., 1], AFFINE)).array)


def test_nearly_constant_images_span_the_scale():
    nearly = np.full((9, 8, 7), 5.0)
    nearly[4, 4, 4] = 6
    scaled = intensity.preprocess(Image(nearly, AFFINE)).array
    assert scaled.min() == 0 and scaled.max() == 1


def test_what_cannot_be_scaled_is_refused():
    constant = Image(np.full((4, 5, 6), 2.5), AFFINE, "flat")
    with pytest.raises(InputError, match=r"'flat': all its intensities are 2.5"):
        intensity.preprocess(constant)
    with pytest.raises(InputError, match=r"'flat': all its intensities are 2.5"):
        intensity.preprocess(constant, scale="zscore")
    with pytest.raises(InputError, match=r"0 <= low_percent < high_percent <= 100"):
        intensity.preprocess(scan(), low_percent=50, high_percent=50)
    with pytest.raises(InputError, match=r"'scan' .* is empty or does not fit"):
        intensity.preprocess(scan(), mask=Mask(np.zeros(scan().shape), AFFINE))
