"""Registration through SimpleITK and ANTs on images of a known formula, so that the true transform is known."""

import random
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.preprocessing import intensity
from atlasseg.propagation import propagate
from atlasseg.registration import itk_affine, itk_bspline, itk_rigid, syn
from atlasseg.threads import limit_threads
from atlasseg.transforms import Affine, BSplineField, Chain, grid_points
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask

FAST = {"shrink_factors": (2, 1), "samples": 4000}
CENTRE = np.array([-31.0, 52, 14])


def blobs(points_mm):
    """A smooth picture of unlike blobs around CENTRE, in 0..1."""
    rng = np.random.default_rng(4)
    picture = np.zeros(points_mm.shape[:-1])
    for centre, width, height in zip(
        rng.uniform(-11, 11, (14, 3)), rng.uniform(2.5, 5, 14), rng.uniform(0.3, 1, 14), strict=True
    ):
        picture += height * np.exp(-((points_mm - CENTRE - centre) ** 2).sum(-1) / 2 / width**2)
    return picture / 2


def tilted(shape=(18, 23, 15), spacing=(1.9, 1.6, 2.3), angles=(12, -8, 20), flip=1, shear=0.0, centre=CENTRE):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * np.array([1, 1, flip])
    affine[1, 0] += shear
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


FIXED, MOVING = tilted(), tilted((21, 17, 20), (1.7, 2.0, 1.8), (-10, 5, 4), flip=-1)
SHEARED = tilted((21, 17, 20), (1.7, 2.0, 1.8), (-10, 5, 4), shear=0.3)


def about_centre(matrix, offset_mm=(0, 0, 0)):
    out = np.eye(4)
    out[:3, :3] = matrix
    out[:3, 3] = CENTRE + offset_mm - matrix @ CENTRE
    return Affine(out)


def turn(*angles, offset_mm=(0, 0, 0)):
    return about_centre(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), offset_mm)


RIGID = turn(4, -6, 8, offset_mm=(1.5, -2, 1))
AFFINE = about_centre(
    np.array([[1.08, 0.06, 0], [-0.05, 0.94, 0.04], [0.02, 0, 1.05]]) @ RIGID.matrix[:3, :3], (1.5, -2, 1)
)


def bent(size_mm=1.2, spacing_mm=14.0):
    control = BSplineField.control_grid(FIXED, spacing_mm)
    return AFFINE @ BSplineField(np.random.default_rng(1).normal(size=(*control.shape, 3)) * size_mm, control.affine)


def picture(grid, transform=None, name="picture"):
    points = grid_points(grid) if transform is None else transform(grid_points(grid))
    return Image(blobs(points), grid.affine, name)


def error_mm(found, truth):
    """Mean distance where there is something to see."""
    seen = picture(FIXED, RIGID).array > 0.1
    return np.linalg.norm(found(grid_points(FIXED)[seen]) - truth(grid_points(FIXED)[seen]), axis=1).mean()


@pytest.mark.parametrize("metric", ["mean_squares", "mutual_information", "correlation"])
def test_rigid_finds_the_truth(metric):
    (found,) = itk_rigid.register(picture(FIXED, RIGID), [picture(MOVING)], metric=metric, **FAST)
    np.testing.assert_allclose(found.matrix[:3, :3].T @ found.matrix[:3, :3], np.eye(3), atol=1e-9)
    assert error_mm(Affine.identity(), RIGID) > 2
    assert error_mm(found, RIGID) < 0.3  # voxels are 2 mm


@pytest.mark.parametrize("metric", ["mean_squares", "mutual_information", "correlation"])
def test_affine_finds_the_truth(metric):
    (found,) = itk_affine.register(picture(FIXED, AFFINE), [picture(MOVING)], metric=metric, **FAST)
    assert isinstance(found, Affine)
    assert error_mm(found, AFFINE) < 0.5


def test_mutual_information_needs_no_common_contrast():
    other = picture(MOVING)
    (found,) = itk_rigid.register(
        picture(FIXED, RIGID), [other.with_array(1000 - 900 * other.array**0.5)], metric="mutual_information", **FAST
    )
    assert error_mm(found, RIGID) < 0.5


@pytest.mark.parametrize(
    ("metric", "spacing_mm", "shrink_factors"),
    [("mean_squares", 14.0, (2, 1)), ("correlation", 14.0, (2, 1)), ("mutual_information", 30.0, (1,))],
)
def test_bspline_goes_on_where_affine_ends(metric, spacing_mm, shrink_factors):
    truth = bent(1.2 if spacing_mm == 14.0 else 2.0, spacing_mm)
    (found,) = itk_bspline.register(
        picture(FIXED, truth),
        [picture(MOVING)],
        initial=[AFFINE],
        metric=metric,
        control_spacing_mm=spacing_mm,
        iterations=15,
        shrink_factors=shrink_factors,
    )
    assert isinstance(found, Chain) and [type(part) for part in found.transforms] == [Affine, BSplineField]
    assert error_mm(found, truth) < 0.6 * error_mm(AFFINE, truth)


@pytest.mark.parametrize("sheared", ["fixed", "moving"])
def test_shear_that_itk_cannot_hold(sheared):
    fixed, moving = (SHEARED, MOVING) if sheared == "fixed" else (FIXED, SHEARED)
    masks = {"moving_masks": [Mask(np.ones(moving.shape), moving.affine)]}
    (found,) = itk_rigid.register(picture(fixed, RIGID), [picture(moving)], **masks, **FAST)
    assert error_mm(found, RIGID) < 0.3


def test_several_at_once_are_as_one_by_one_and_threads_do_not_matter():
    fixed = picture(FIXED, RIGID)
    moving = [picture(MOVING), picture(SHEARED), picture(tilted((12, 30, 17)))]
    together = itk_rigid.register(fixed, moving, **FAST)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        with limit_threads(1):
            for image, one in zip(moving, together, strict=True):
                (alone,) = itk_rigid.register(fixed, [image], **FAST)
                np.testing.assert_array_equal(alone.matrix, one.matrix)
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert itk_rigid.register(fixed, [], **FAST) == []


def test_starts_bring_together_what_is_far_apart():
    away = Affine.translation((300, -200, 150))
    truth = away @ RIGID
    moved = Grid(MOVING.shape, away.matrix @ MOVING.affine)
    moving = Image(picture(MOVING).array, moved.affine, "far")
    for starts in (("geometry",), ("moments",), ("identity", "moments", "geometry")):
        (found,) = itk_rigid.register(picture(FIXED, RIGID), [moving], starts=starts, **FAST)
        assert error_mm(found, truth) < 0.3
    with pytest.raises(GeometryError, match="'near' and moving image 'far' do not overlap"):
        itk_rigid.register(picture(FIXED, RIGID, "near"), [moving], starts=("identity",), **FAST)


def test_a_large_turn_is_found_from_rotations_that_are_given():
    truth = turn(0, 0, 80)
    options = {"rotations_degrees": ((0, 0, 75), (0, 0, -75), (0, 75, 0)), "starts": ("geometry",), **FAST}
    (found,) = itk_rigid.register(picture(FIXED, truth), [picture(MOVING)], **options)
    assert error_mm(found, truth) < 0.3


def test_registration_goes_on_from_any_transform():
    truth = bent()
    aside = Affine.translation((0.8, -0.5, 0.6))
    for initial in (truth @ aside, ~(~truth) @ aside, Chain((~~truth, aside))):
        (found,) = itk_rigid.register(picture(FIXED, truth), [picture(MOVING)], initial=[initial], **FAST)
        assert error_mm(found, truth) < 0.3
    backward = ~bent()
    fixed = picture(FIXED, backward)
    (found,) = itk_rigid.register(fixed, [picture(MOVING)], initial=[backward @ aside], **FAST)
    inner = grid_points(FIXED.cropped((5, 5, 4), (13, 18, 11)))
    assert np.linalg.norm(found(inner) - backward(inner), axis=-1).mean() < 0.5


def test_masks_hide_what_is_not_to_count():
    fixed, moving = picture(FIXED, RIGID), picture(MOVING)
    spoilt_fixed, spoilt_moving = fixed.array.copy(), moving.array.copy()
    spoilt_fixed[:, :6] = 4
    spoilt_moving[15:] = 4
    keep_fixed, keep_moving = np.ones(FIXED.shape, bool), np.ones(MOVING.shape, bool)
    keep_fixed[:, :9], keep_moving[12:] = False, False  # clear of what smoothing carries across
    pair = (fixed.with_array(spoilt_fixed), [moving.with_array(spoilt_moving)])
    masks = {
        "fixed_mask": Mask(keep_fixed, FIXED.affine),
        "moving_masks": [Mask(keep_moving, MOVING.affine)],
    }
    start = {"initial": [Affine.identity()]}
    (blind,) = itk_rigid.register(*pair, **start, **FAST)
    (found,) = itk_rigid.register(*pair, **start, **masks, **FAST)
    assert error_mm(blind, RIGID) > 5
    assert error_mm(found, RIGID) < 0.8  # a third of either picture is hidden


METHODS = {"rigid": itk_rigid, "affine": itk_affine, "bspline": itk_bspline, "syn": syn}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_cannot_be_registered_is_named(method):
    if method is syn:
        pytest.importorskip("ants", reason="antspyx is not installed")
    fixed, moving = picture(FIXED, None, "target"), picture(MOVING, None, "atlas")
    flat = moving.with_array(np.full(MOVING.shape, 7.0))
    empty = Mask(np.zeros(MOVING.shape), MOVING.affine)
    dark = Mask(np.zeros(FIXED.shape), FIXED.affine)
    with pytest.raises(InputError, match=r"moving image 'atlas' is constant.* 7"):
        method.register(fixed, [moving, flat])
    with pytest.raises(InputError, match="fixed image 'target' is constant"):
        method.register(fixed.with_array(np.zeros(FIXED.shape)), [moving])
    with pytest.raises(InputError, match="moving image 'atlas': its mask is empty"):
        method.register(fixed, [moving], moving_masks=[empty])
    with pytest.raises(InputError, match="fixed image 'target': its mask is empty"):
        method.register(fixed, [moving], fixed_mask=dark)
    with pytest.raises(GeometryError, match="fixed image 'target' and its mask are not on one grid"):
        method.register(fixed, [moving], fixed_mask=Mask(np.ones(MOVING.shape), MOVING.affine))
    with pytest.raises(InputError, match="'target': expected one channel, as ITK's metrics require, got 2"):
        method.register(Image(np.stack([fixed.array] * 2, -1), FIXED.affine, "target"), [moving])
    with pytest.raises(InputError, match=r"initial transforms: expected one per moving image \(2\), got 1"):
        method.register(fixed, [moving, moving], initial=[RIGID])
    with pytest.raises(GeometryError, match="'target' and moving image 'atlas' do not overlap"):
        method.register(fixed, [moving], initial=[Affine.translation((400, 0, 0))])


def test_parameters_that_mean_nothing_are_refused():
    pair = (picture(FIXED), [picture(MOVING)])
    with pytest.raises(InputError, match=r"metric: expected one of correlation, mean_squares, .*, got 'nmi'"):
        itk_rigid.register(*pair, metric="nmi")
    with pytest.raises(InputError, match="geometry, moments or identity, got 'middle'"):
        itk_rigid.register(*pair, starts=("middle",))
    with pytest.raises(InputError, match="starts: expected at least one of geometry"):
        itk_affine.register(*pair, starts=())
    for wrong in ({"shrink_factors": ()}, {"shrink_factors": (2, 0)}, {"iterations": 0}, {"samples": 0}):
        with pytest.raises(InputError, match="at least 1"):
            itk_affine.register(*pair, **wrong)
    with pytest.raises(InputError, match="control_spacing_mm: expected more than 0"):
        itk_bspline.register(*pair, control_spacing_mm=0.0)


def test_two_voxels_thin_volumes_are_registered():
    thin = tilted((18, 23, 2), (1.9, 1.6, 4.0))
    (found,) = itk_rigid.register(picture(thin), [picture(thin)], **FAST)
    assert np.abs(found(grid_points(thin)) - grid_points(thin)).max() < 0.3


def test_syn_finds_a_bent_truth_each_time_the_same_and_leaves_nothing_behind():
    pytest.importorskip("ants", reason="antspyx is not installed")
    truth = bent()
    fixed, moving = picture(FIXED, truth), picture(MOVING)
    temporary = set(Path(tempfile.gettempdir()).glob("atlasseg-syn*"))
    random.seed(5)
    state, legacy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    (first,) = syn.register(fixed, [moving], iterations=(20, 10))
    assert random.getstate() == state and (np.random.get_state()[1] == legacy).all()  # noqa: NPY002
    (second,) = syn.register(fixed, [moving], iterations=(20, 10))
    points = grid_points(FIXED)
    np.testing.assert_array_equal(first(points), second(points))
    assert error_mm(first, truth) < 0.8 * error_mm(AFFINE, truth)
    (further,) = syn.register(fixed, [moving], initial=[AFFINE], type_of_transform="SyNOnly", iterations=(20, 10))
    assert error_mm(further, truth) < 0.8 * error_mm(AFFINE, truth)
    assert set(Path(tempfile.gettempdir()).glob("atlasseg-syn*")) <= temporary


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "normalized_mutual_information"}, "metric: expected one of .*, local_correlation, .* got 'norm"),
        ({"metric": "CC"}, "metric: expected 'local_correlation', the new name of 'CC', got 'CC'"),
        ({"metric": "cc"}, "metric: expected one of .* got 'cc'"),
        ({"metric_parameter": 0}, "metric_parameter: expected 1 or more, got 0"),
    ],
)
def test_syn_refuses_a_metric_that_ants_does_not_have(given, message):
    with pytest.raises(InputError, match=message):
        syn.register(picture(FIXED), [picture(MOVING)], **given)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_syn_names_the_images_where_ants_fails(monkeypatch, error):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")

    def fail(*_, **__):
        raise error("no gradient")

    monkeypatch.setattr(ants, "registration", fail)
    message = "fixed image 'target' and moving image 'atlas': ANTs' registration failed: no gradient"
    with pytest.raises(InputError, match=message):
        syn.register(picture(FIXED, None, "target"), [picture(MOVING, None, "atlas")])


def test_syn_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ants", None)
    with pytest.raises(MissingLibraryError, match=r"atlasseg\[syn\]"):
        syn.register(picture(FIXED), [picture(MOVING)])


def test_affine_brings_real_hippocampi_together(real_data):
    def read(folder, name):
        scan = nib.load(real_data / "hippocampus" / folder / "images" / name)
        drawn = nib.load(real_data / "hippocampus" / folder / "labels" / name)
        image = intensity.preprocess(Image(scan.get_fdata(), scan.affine, name))
        return Atlas(name, image, LabelMap(np.asarray(drawn.dataobj), drawn.affine))

    names = sorted(path.name for path in (real_data / "hippocampus" / "atlases" / "images").iterdir())[:3]
    target = read("targets", sorted(p.name for p in (real_data / "hippocampus" / "targets" / "images").iterdir())[1])
    atlases = [read("atlases", name) for name in names]
    grid = target.image.grid
    overlaps = {}
    centred = [Affine.translation(atlas.image.grid.centre_mm - grid.centre_mm) for atlas in atlases]
    registered = itk_affine.register(target.image, [atlas.image for atlas in atlases], samples=8000)
    for kind, transforms in (("centres", centred), ("affine", registered)):
        dice = []
        for atlas, transform in zip(atlases, transforms, strict=True):
            landed = propagate(atlas, transform, grid, fractions=False).segmentation.array
            for label in (1, 2):
                a, b = landed == label, target.segmentation.array == label
                dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        overlaps[kind] = np.mean(dice)
    assert overlaps["affine"] > overlaps["centres"]
    assert overlaps["affine"] > 0.55
