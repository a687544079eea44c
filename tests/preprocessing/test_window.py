"""Window of calibrated intensities, and the body in CT."""

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.preprocessing.window import find_body, preprocess
from atlasseg.volume import Image, Mask

AFFINE = np.array([[0.0, -1.2, 0.3, 5], [-1.5, 0, 0.1, -7], [0, 0.1, 4, 2], [0, 0, 0, 1]])


def trunk(*, couch_apart=2):
    """A trunk of soft tissue with a lung, a couch below it, air around it, and padding at the edges."""
    array = np.full((40, 36, 7), -1000.0)
    i, j = np.meshgrid(np.arange(40), np.arange(36), indexing="ij")
    body = ((i - 19) / 15) ** 2 + ((j - 14) / 11) ** 2 <= 1
    lung = ((i - 14) / 4) ** 2 + ((j - 14) / 5) ** 2 <= 1
    array[body] = 40
    array[lung] = -850
    array[4:36, 26 + couch_apart : 27 + couch_apart] = 0
    array[((i - 19.5) ** 2 + (j - 17.5) ** 2) > 24**2] = -3024
    return Image(array, AFFINE), np.broadcast_to(body[..., None], array.shape)


@pytest.mark.parametrize("couch_apart", [0, 1, 4])
def test_the_body_has_its_lung_and_not_the_couch(couch_apart):
    image, body = trunk(couch_apart=couch_apart)
    found = find_body(image).array
    assert found[14, 14].all() and not found[6, 26 + couch_apart].any()
    assert np.count_nonzero(found ^ body) < 0.02 * np.count_nonzero(body)


def test_the_window_goes_from_0_to_1_inside_the_body():
    image, _ = trunk()
    result = preprocess(image, low=-160, high=240).array
    assert result[20, 10, 3] == pytest.approx(0.5) and result[14, 14, 3] == 0
    assert (result[:, 28] == 0).all() and (result[0, 0] == 0).all()
    kept = preprocess(image, low=-160, high=240, body_above=None).array
    assert kept[20, 28, 3] == pytest.approx(0.4)
    np.testing.assert_array_equal(kept, np.clip((image.array + 160) / 400, 0, 1).astype(np.float32))


def test_a_given_mask_is_the_body():
    image, _ = trunk()
    inside = np.zeros(image.shape, bool)
    inside[10:20] = True
    result = preprocess(image, mask=Mask(inside, AFFINE)).array
    assert (result[20:] == 0).all() and result[10:20].any()


def test_every_channel_is_windowed_by_itself():
    image, _ = trunk()
    both = Image(np.stack([image.array, image.array + 100], -1), AFFINE)
    result = preprocess(both, low=0, high=400).array
    assert result[20, 10, 3].tolist() == pytest.approx([0.1, 0.35])


def test_unsuitable_windows_are_refused():
    image, _ = trunk()
    with pytest.raises(InputError, match="expected low below high, got 300 and -200"):
        preprocess(image, low=300, high=-200)
    with pytest.raises(InputError, match="expected intensities between 1000 and 2000, got -3024 to 40"):
        preprocess(image, low=1000, high=2000)
    with pytest.raises(InputError, match="expected a body above -500, got -700 at most"):
        preprocess(image.with_array(np.full(image.shape, -700.0)))
