"""Slices with matplotlib: the right place, the right side, errors that name what is wrong."""

import matplotlib
import numpy as np
import pytest

from atlasseg.errors import GeometryError, InputError
from atlasseg.report import plot_slices
from atlasseg.volume import Image, LabelMap

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def marked_image(axes="LPS"):
    """A dark scan with one bright voxel: the patient's right, front and top. Its axes run as `axes` says."""
    shape, spacing = np.array([6, 8, 10]), np.array([1.0, 2.0, 3.0])
    signs = np.array([1.0 if letter in "RAS" else -1.0 for letter in axes])
    affine = np.diag([*(signs * spacing), 1.0])
    affine[:3, 3] = [5.0, -7.0, 11.0]
    array = np.zeros(shape, np.float32)
    voxel = tuple(int(n - 1 if sign > 0 else 0) for n, sign in zip(shape, signs, strict=True))
    array[voxel] = 1.0
    return Image(array, affine), affine[:3, :3] @ voxel + affine[:3, 3]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "RPI"])
def test_right_is_on_the_left_and_up_is_up_for_every_orientation(axes):
    image, point = marked_image(axes)
    for panel, plane in zip(plot_slices(image, at_mm=point), ("axial", "coronal", "sagittal"), strict=True):
        picture = np.asarray(panel.images[0].get_array())
        (row,), (column,) = np.nonzero(picture)
        assert column == 0, f"{plane}: the patient's right, or front, is drawn on the left"
        assert row == picture.shape[0] - 1, f"{plane}: front, or top, is drawn at the top"
        letters = [text.get_text() for text in panel.texts]
        assert letters == {"axial": list("RLPA"), "coronal": list("RLIS"), "sagittal": list("APIS")}[plane]


def test_voxels_have_their_true_proportions():
    image, _ = marked_image()
    aspects = [float(panel.get_aspect()) for panel in plot_slices(image)]
    np.testing.assert_allclose(aspects, [2 / 1, 3 / 1, 3 / 2])


def test_slices_go_through_the_middle_of_the_labels():
    image, _ = marked_image("RAS")
    labels = np.zeros(image.shape, np.int32)
    labels[1, 2, 3] = 7
    panels = plot_slices(image, LabelMap(labels, image.affine), overlay=labels.astype(float), overlay_name="label")
    for panel in panels:
        assert np.asarray(panel.images[1].get_array()).max() == 7
    assert panels[0].figure.axes[-1].get_ylabel() == "label"


def test_wrong_input_is_named():
    image, _ = marked_image()
    other = LabelMap(np.ones((2, 2, 2), np.int32), np.eye(4))
    with pytest.raises(GeometryError, match=r"labels: expected the scan's grid, shape \(6, 8, 10\), got"):
        plot_slices(image, other)
    with pytest.raises(GeometryError, match="overlay: expected the scan's shape"):
        plot_slices(image, overlay=np.ones((2, 2, 2)))
    with pytest.raises(GeometryError, match="expected a point in the scan"):
        plot_slices(image, at_mm=(500, 0, 0))
    with pytest.raises(InputError, match="expected axial, coronal or sagittal, got 'frontal'"):
        plot_slices(image, planes=["frontal"])
    with pytest.raises(InputError, match="expected one for each of the 3 planes, got 1"):
        plot_slices(image, axes=[plot_slices(image)[0]])
