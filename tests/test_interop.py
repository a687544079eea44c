"""To nibabel, SimpleITK and ANTs and back: the same values at the same places, whatever the axes."""

import base64
import io as bytes_io
import json
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow
from scipy.spatial.transform import Rotation

from atlasseg import interop
from atlasseg.errors import InputError
from atlasseg.labels import default_color
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap, SourceHeader

SHAPE = (5, 7, 4)
CORNER = (4, 6, 3)
LIBRARIES = ["nibabel", "sitk", "ants"]


def affine(axes="RAS", shear=0.0):
    """Oblique, anisotropic, its axes in the order of `axes`."""
    rotation = Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix()
    columns = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    signs = [1 if axis in "RAS" else -1 for axis in axes]
    found = np.eye(4)
    found[:3, :3] = rotation[:, [columns[axis] for axis in axes]] * signs * (1.2, 0.8, 2.5)
    found[:3, 1] += shear * found[:3, 0]
    found[:3, 3] = (13, -25, 9)
    return found


AFFINES = {axes: affine(axes) for axes in ("RAS", "LPS", "PSR", "LAS")} | {"sheared": affine(shear=0.2)}


def volumes(at):
    rng = np.random.default_rng(0)
    return {
        "image": Image(rng.normal(size=SHAPE).astype(np.float32), at, "scan"),
        "channels": Image(rng.normal(size=(*SHAPE, 3)).astype(np.float32), at),
        "labels": LabelMap(rng.choice([0, 3, 77, 2**31 - 1], SHAPE), at),
        "negative labels": LabelMap(rng.choice([-5, 0, 2**24], SHAPE), at),
        "mask": Mask(rng.random(SHAPE) > 0.5, at),
    }


KINDS = ["image", "channels", "labels", "negative labels", "mask"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", AFFINES)
def test_there_and_back_values_and_place_are_the_same(library, kind, axes):
    given = volumes(AFFINES[axes])[kind]
    back = getattr(type(given), f"from_{library}")(getattr(given, f"to_{library}")(), name="back")
    np.testing.assert_array_equal(back.array, given.array)
    np.testing.assert_allclose(back.affine, given.affine, rtol=0, atol=1e-12)
    assert back.array.dtype == given.array.dtype and back.name == "back"


@pytest.mark.parametrize("axes", AFFINES)
def test_a_voxel_has_the_place_in_every_library_that_it_has_here(axes):
    given = volumes(AFFINES[axes])["image"]
    here = given.affine @ (*CORNER, 1)
    lps = here[:3] * (-1, -1, 1)
    theirs = given.to_sitk()
    assert theirs[CORNER] == given.array[CORNER]
    np.testing.assert_allclose(theirs.TransformIndexToPhysicalPoint(CORNER), lps, atol=1e-9)
    ants_image = given.to_ants()
    ants = pytest.importorskip("ants")
    assert ants_image[CORNER] == given.array[CORNER]
    np.testing.assert_allclose(ants.transform_index_to_physical_point(ants_image, list(CORNER)), lps, atol=1e-5)
    nifti = given.to_nibabel()
    assert nifti.get_fdata()[CORNER] == given.array[CORNER]
    np.testing.assert_allclose(nifti.affine @ (*CORNER, 1), here, atol=1e-9)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "LAS"])
def test_what_nibabel_saves_itk_reads_at_the_same_place(axes, tmp_path):
    given = volumes(AFFINES[axes])["labels"]
    nibabel.save(given.to_nibabel(), tmp_path / "labels.nii.gz")
    theirs = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    back = LabelMap.from_sitk(theirs)
    np.testing.assert_array_equal(back.array, given.array)
    np.testing.assert_allclose(back.affine, given.affine, atol=1e-5)  # float32 header


def test_channels_are_components_of_a_vector_in_order():
    given = volumes(AFFINES["PSR"])["channels"]
    np.testing.assert_array_equal(given.to_sitk()[CORNER], given.array[CORNER])
    np.testing.assert_array_equal(given.to_ants().numpy()[CORNER], given.array[CORNER])


def test_nibabel_gets_codes_of_the_source_and_no_qform_of_a_shear():
    at = AFFINES["RAS"]
    given = Image(np.zeros(SHAPE), at, source_header=SourceHeader(sform_code=4, qform_code=3)).to_nibabel()
    assert (int(given.header["sform_code"]), int(given.header["qform_code"])) == (4, 3)
    assert given.header.get_xyzt_units()[0] == "mm"
    sheared = Image(np.zeros(SHAPE), AFFINES["sheared"]).to_nibabel()
    assert int(sheared.header["qform_code"]) == 0
    np.testing.assert_allclose(sheared.affine, AFFINES["sheared"])


def test_from_nibabel_scales_as_the_header_says_and_takes_the_name_of_the_file(tmp_path):
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = nibabel.Nifti1Image(array, AFFINES["LPS"])
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "some.scan.nii.gz")
    found = Image.from_nibabel(nibabel.load(tmp_path / "some.scan.nii.gz"))
    np.testing.assert_allclose(found.array, array * 0.5 - 10)
    assert found.name == "some.scan"


@pytest.mark.parametrize(("unit", "to_mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_from_nibabel_converts_lengths_to_mm(caplog, unit, to_mm):
    given = AFFINES["PSR"].copy()
    given[:3] /= to_mm
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), given)
    image.header.set_xyzt_units(unit)
    for kind in (Image, LabelMap, Mask):
        np.testing.assert_allclose(kind.from_nibabel(image).affine, AFFINES["PSR"], rtol=1e-6)
    assert (f"lengths in {unit} are converted to mm" in caplog.text) is (to_mm != 1)


def test_from_nibabel_tells_of_two_voxel_sizes(tmp_path, caplog):
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), np.diag([2.0, 3, 4, 1]))
    assert Image.from_nibabel(image).spacing_mm.tolist() == [2, 3, 4] and not caplog.text
    image.header["pixdim"][1:4] = 0.5, 3, 4
    assert Image.from_nibabel(image).spacing_mm.tolist() == [2, 3, 4]
    assert "two voxel sizes: [2.0, 3.0, 4.0] in its affine and [0.5, 3.0, 4.0] in its pixdim" in caplog.text


def test_from_nibabel_takes_a_fourth_axis_of_length_one_away():
    image = nibabel.Nifti1Image(np.ones((*SHAPE, 1), np.float32), np.eye(4))
    assert Image.from_nibabel(image).array.shape == SHAPE
    assert LabelMap.from_nibabel(image).array.shape == SHAPE


@pytest.mark.parametrize("library", LIBRARIES)
def test_probabilities_there_and_back(library):
    rng = np.random.default_rng(1)
    dense = rng.random((*SHAPE, 3))
    dense[:2] = (0, 1, 0)
    given = ProbabilityMap.from_dense(dense, [0, 4, 9], AFFINES["PSR"])
    theirs = getattr(given, f"to_{library}")()
    labels = {} if library == "nibabel" else {"labels": [0, 4, 9]}
    back = getattr(ProbabilityMap, f"from_{library}")(theirs, **labels)
    np.testing.assert_allclose(back.dense(), given.dense(), atol=1e-6)
    np.testing.assert_array_equal(back.label_values, [0, 4, 9])
    np.testing.assert_allclose(back.affine, given.affine, atol=1e-12)
    np.testing.assert_array_equal(back.mode, given.mode)


@pytest.mark.parametrize(
    ("array", "labels", "message"),
    [
        (np.zeros((*SHAPE, 2)), None, "expected the label of each volume"),
        (np.zeros((*SHAPE, 2)), [1], r"expected a different label for each of 2 volumes, got \[1\]"),
        (np.zeros((*SHAPE, 2)), [1, 1], "a different label"),
        (np.full((*SHAPE, 2), 50.0), [0, 1], "expected probabilities in 0..1, got 50 to 50"),
        (np.full((*SHAPE, 2), np.nan), [0, 1], "expected probabilities in 0..1"),
        (np.full((*SHAPE, 2), -1.0), [0, 1], "expected probabilities in 0..1"),
    ],
)
def test_what_is_no_probability_is_refused(array, labels, message):
    with pytest.raises(InputError, match=message):
        ProbabilityMap.from_nibabel(nibabel.Nifti1Image(array, np.eye(4)), labels=labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image.from_sitk(sitk.Image(4, 5, sitk.sitkFloat32)), "expected 3 axes, got 2"),
        (lambda: LabelMap.from_sitk(sitk.Image([4, 5, 6], sitk.sitkVectorFloat32)), "expected a 3-D volume"),
        (lambda: Image.from_nibabel(nibabel.Nifti1Image(np.zeros(SHAPE), None)), "expected an affine, got None"),
        (lambda: Image.from_nibabel(nibabel.Nifti1Image(np.zeros((4, 5)), np.eye(4))), "expected a volume"),
        (lambda: Image.from_nibabel(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5, 6)), np.eye(4))), "expected a volume"),
        (lambda: Image.from_nibabel(nibabel.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4))), "plain numbers"),
        (lambda: LabelMap.from_nibabel(nibabel.Nifti1Image(np.full(SHAPE, 0.5), np.eye(4))), "whole numbers"),
        (lambda: Mask(np.full(SHAPE, np.nan), np.eye(4)), "finite numbers"),
        (lambda: LabelMap(np.array([[[-1, 2**25]]]), np.eye(4)).to_ants(), "negative labels"),
    ],
)
def test_what_does_not_suit_is_refused_with_the_reason(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_libraries_are_told_apart_by_class():
    image = volumes(np.eye(4))["image"]
    assert interop.image_library(image.to_nibabel()) == "nibabel"
    assert interop.image_library(nibabel.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4))) == "nibabel"
    assert interop.image_library(image.to_sitk()) == "SimpleITK"
    assert interop.image_library(image.to_ants()) == "ANTs"
    assert [interop.image_library(other) for other in (image, image.array, None, "scan.nii")] == [None] * 4
    assert interop.is_sitk_transform(sitk.AffineTransform(3)) and not interop.is_sitk_transform(image.to_sitk())


def test_labels_in_a_header_are_what_was_put_there():
    image = nibabel.Nifti1Image(np.zeros(SHAPE), np.eye(4))
    assert interop.embedded_labels(image.header) is None
    interop.embed_labels(image.header, np.array([0, 7]))
    assert interop.embedded_labels(image.header) == [0, 7]
    assert json.loads(image.header.extensions[0].get_content())["LabelMap"] == [0, 7]


# ------------------------------------------------------------------------------------------------------ what is shown


def test_short_texts_never_hold_the_array():
    at = affine("PSR")
    every = volumes(at)
    labels = LabelMap(np.arange(np.prod(SHAPE)).reshape(SHAPE), at, "many")
    assert repr(every["image"]).startswith(
        "Image(name: scan; shape: 5 x 7 x 4; spacing: 1.2 x 0.8 x 2.5 mm; orientation: PSR (oblique, "
    )
    low, high = every["image"].array.min(), every["image"].array.max()
    assert repr(every["image"]).endswith(f"range: {low:.4g} to {high:.4g})")
    assert "channels: 3" in repr(every["channels"])
    assert repr(labels).endswith("labels: 0, 1, 2, 3, ... 139 (140 labels))")
    assert "labels: 0, 3, 77, 2147483647)" in repr(every["labels"])
    inside = int(every["mask"].array.sum())
    assert f"inside: {inside} voxels" in repr(every["mask"])
    atlas = Atlas("one", every["image"], every["labels"], not_annotated=frozenset({8}))
    assert "id: one" in repr(atlas) and "labels: 0, 3, 77" in repr(atlas) and "not annotated: [8]" in repr(atlas)
    fractions = ProbabilityMap.from_dense(np.full((*SHAPE, 2), 0.5), [0, 3], at)
    assert "label probabilities: 0, 3" in repr(Atlas("two", every["image"], fractions))
    assert "uncertain: 100 % of the voxels" in repr(fractions)
    assert all(len(repr(each)) < 250 for each in (*every.values(), labels, atlas, fractions, fractions.grid))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "LAS"])
def test_orientation_is_that_of_nibabel(axes):
    grid = Grid(SHAPE, affine(axes))
    assert grid.orientation == "".join(nibabel.aff2axcodes(grid.affine)) == axes
    straight = Grid(SHAPE, np.diag([-2.0, 1, 1, 1]))
    assert straight.tilt_degrees == 0 and "oblique" not in repr(straight)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix()
    assert Grid(SHAPE, turned).tilt_degrees == pytest.approx(12)


def picture(volume):
    found = re.search(r'src="data:image/png;base64,([^"]+)"', volume._repr_html_())
    return np.asarray(Pillow.open(bytes_io.BytesIO(base64.b64decode(found[1]))).convert("RGB"))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA"])
def test_the_picture_shows_the_patients_right_on_the_left_and_true_proportions(axes):
    """One label fills the right third, another the front, another the top: found in the slices where they belong."""
    extent_mm = np.array([60.0, 90.0, 30.0])
    step = np.array([2.0, 3.0, 1.0])
    ras = np.zeros((30, 30, 30), np.int32)
    ras[20:] = 1  # right
    ras[:20, 20:] = 2  # front, on the left
    ras[:20, :20, 20:] = 3  # top, left, back
    ras[(ras == 0)] = 4
    at = np.diag([*step, 1.0])
    image = nibabel.Nifti1Image(ras, at)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(at), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    labels = LabelMap.from_nibabel(image.as_reoriented(turn))
    assert labels.grid.orientation == axes
    shown = picture(labels)
    height = shown.shape[0]
    scale = height / max(extent_mm[1:])
    widths = [round(extent_mm[0] * scale), round(extent_mm[0] * scale), round(extent_mm[1] * scale)]
    assert shown.shape[1] == pytest.approx(sum(widths) + 12, abs=2)

    def at_pixel(x, y):
        return tuple(int(v) for v in shown[round(y), round(x)])

    colours = [default_color(n) for n in range(5)]
    axial, coronal = 0, widths[0] + 6
    assert at_pixel(axial + widths[0] * 0.15, height * 0.7) == colours[1]  # the patient's right is on the left
    assert at_pixel(axial + widths[0] * 0.7, height * 0.15) == colours[2]  # the front is above
    top = (height - extent_mm[2] * scale) / 2  # the coronal slice is lower, and stands in the middle
    assert at_pixel(coronal + widths[1] * 0.15, top + 0.5 * extent_mm[2] * scale) == colours[1]


def test_html_says_what_the_text_says_and_nothing_unescaped():
    shown = Image(np.arange(140.0).reshape(SHAPE), affine(), "<script>")._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "5 x 7 x 4" in shown and "0 to 139" in shown
    flat = Image(np.full(SHAPE, 7.0), np.eye(4)), LabelMap(np.zeros(SHAPE), np.eye(4))
    for volume in (*volumes(affine()).values(), *flat):
        assert picture(volume).shape[0] == 180
