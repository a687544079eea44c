import numpy as np
import pytest
import SimpleITK as sitk

from atlasseg.errors import InputError
from atlasseg.preprocessing import n4
from atlasseg.volume import Image, Mask

AFFINE = np.array([[0, 1.9, 0, 3], [-2.0, 0, 0.2, -5], [0, 0.1, 1.7, 9], [0, 0, 0, 1]])
FAST = {"shrink_factor": 2, "iterations": (20, 20)}


def biased(scale=100.0):
    """Two tissues in a ball, and the field over them."""
    i, j, k = np.indices((26, 31, 22)) / np.array([26, 31, 22])[:, None, None, None] - 0.5
    ball = i**2 + j**2 + k**2 < 0.2
    tissue = np.where(np.sin(17 * i) * np.sin(15 * j) * np.sin(13 * k) > 0, 1.0, 0.6) * ball
    field = np.exp(0.8 * i - 0.5 * j * k * 4 + 0.3 * k)
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=ball.shape)
    return ball, tissue, Image(scale * tissue * field * noise, AFFINE, "scan")


def spread(array, tissue):
    """Coefficient of variation within a tissue: 0 where the bias is gone."""
    return max(array[tissue == value].std() / array[tissue == value].mean() for value in (0.6, 1.0))


@pytest.mark.parametrize("scale", [100.0, 1.7e6, 1e-3])
def test_bias_is_taken_out_at_any_scale(scale):
    ball, tissue, image = biased(scale)
    corrected = n4.preprocess(image, **FAST)
    assert spread(image.array, tissue) > 0.15
    assert spread(corrected.array, tissue) < 0.5 * spread(image.array, tissue)
    assert corrected.array[ball].mean() == pytest.approx(image.array[ball].mean(), rel=0.01)


def test_negative_intensities_are_shifted_and_shifted_back():
    ball, _, image = biased()
    lower = image.with_array(image.array - 50)
    corrected = n4.preprocess(lower, mask=Mask(ball, AFFINE), **FAST)
    expected = n4.preprocess(image, mask=Mask(ball, AFFINE), **FAST)
    np.testing.assert_allclose(corrected.array + 50, expected.array, atol=0.5)
    assert corrected.array[~ball].max() == pytest.approx(-50, abs=1e-3)


def test_threads_do_not_matter():
    _, _, image = biased()
    before, results = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), []
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            results.append(n4.preprocess(image, **FAST).array)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*results)


def test_channels_and_thin_volumes():
    _, _, image = biased()
    both = n4.preprocess(Image(np.stack([image.array, image.array * 3], -1), AFFINE), **FAST).array
    np.testing.assert_array_equal(both[..., 0], n4.preprocess(image, **FAST).array)
    thin = image.cropped((0, 0, 10), (26, 31, 12))
    assert np.isfinite(n4.preprocess(thin, **FAST).array).all()


def test_what_cannot_be_corrected_is_refused():
    ball, _, image = biased()
    with pytest.raises(InputError, match=r"'scan': all its intensities are 0"):
        n4.preprocess(image.with_array(np.zeros(image.shape)))
    with pytest.raises(InputError, match=r"'scan' .* is empty or does not fit"):
        n4.preprocess(image, mask=Mask(np.zeros(image.shape), AFFINE))
    with pytest.raises(InputError, match=r"constant within its mask"):
        n4.preprocess(image, mask=Mask(~ball, AFFINE))
