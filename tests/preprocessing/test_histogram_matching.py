import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.preprocessing import histogram_matching
from atlasseg.volume import Image

AFFINE = np.diag([1.5, -2, 0.7, 1])


def scan(seed=0, shape=(11, 9, 7)):
    return Image(np.random.default_rng(seed).gamma(3.0, size=shape), AFFINE, f"scan{seed}")


def test_quantiles_become_the_references():
    image, reference = scan(0), scan(1, (8, 13, 10)).with_array(500 + 90 * scan(1, (8, 13, 10)).array ** 1.5)
    matched = histogram_matching.preprocess(image, reference=reference, landmarks=15)
    percents = np.linspace(1, 99, 15)
    wanted = np.percentile(reference.array, percents)
    np.testing.assert_allclose(np.percentile(matched.array, percents), wanted, rtol=5e-3)
    order = np.argsort(image.array, axis=None)
    assert (np.diff(matched.array.ravel()[order]) >= 0).all()


def test_a_linear_change_is_undone_beyond_the_landmarks_too():
    image = scan()
    changed = image.with_array(-300 + 17 * image.array)
    matched = histogram_matching.preprocess(changed, reference=image)
    np.testing.assert_allclose(matched.array, image.array, atol=1e-4)


def test_erased_background_is_not_counted_and_stays_lowest():
    brain = scan().array
    small, large = np.zeros((15, 13, 11)), np.zeros((31, 29, 27))
    small[2:13, 2:11, 2:9] = large[10:21, 10:19, 10:17] = brain
    matched = histogram_matching.preprocess(Image(large * 40, AFFINE), reference=Image(small, AFFINE)).array
    np.testing.assert_allclose(matched, large, atol=1e-5)


def test_an_image_of_few_values_is_matched():
    image = Image(np.indices((9, 8, 7))[0] % 2 * 5.0, AFFINE)
    matched = histogram_matching.preprocess(image, reference=scan()).array
    assert np.isfinite(matched).all() and np.unique(matched).size == 2


def test_what_cannot_be_matched_is_refused():
    flat = Image(np.full((4, 5, 6), 2.5), AFFINE, "flat")
    with pytest.raises(InputError, match=r"'flat'"):
        histogram_matching.preprocess(flat, reference=scan())
    with pytest.raises(InputError, match=r"'flat'"):
        histogram_matching.preprocess(scan(), reference=flat)
    with pytest.raises(InputError, match=r"'scan0': .*expected a reference"):
        histogram_matching.preprocess(scan())
    with pytest.raises(InputError, match=r"landmarks: expected at least 2, got 1"):
        histogram_matching.preprocess(scan(), reference=scan(), landmarks=1)
    with pytest.raises(InputError, match=r"1 channels, its reference 'two' has 2"):
        histogram_matching.preprocess(scan(), reference=Image(np.ones((3, 4, 5, 2)), AFFINE, "two"))
