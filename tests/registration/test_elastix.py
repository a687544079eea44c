"""Registration through elastix: the map is exactly elastix's own, and it finds a known motion."""

import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from atlasseg import phantoms
from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.registration import elastix
from atlasseg.transforms import Affine, grid_points
from atlasseg.volume import Image, Mask

FIXED = phantoms.tilted_grid((22, 27, 19), spacing_mm=(1.6, 1.5, 1.9), angles_degrees=(12, -8, 20))
MOVING = phantoms.tilted_grid((25, 21, 24), spacing_mm=(1.5, 1.8, 1.6), angles_degrees=(-10, 5, 4), axes="LAS")
FAST = {"resolutions": 2, "iterations": 100, "metric": "correlation"}

TURN = np.eye(4)
TURN[:3, :3] = Rotation.from_euler("xyz", (4, -6, 8), degrees=True).as_matrix()
TURN[:3, 3] = (1.5, -2, 1)


def blobs(points_mm, affine, name):
    rng = np.random.default_rng(4)
    picture = np.zeros(points_mm.shape[:-1])
    for centre, width, height in zip(
        rng.uniform(-11, 11, (14, 3)), rng.uniform(2.5, 5, 14), rng.uniform(0.3, 1, 14), strict=True
    ):
        picture += height * np.exp(-((points_mm - centre) ** 2).sum(-1) / 2 / width**2)
    return Image(picture.astype(np.float32), affine, name)


@pytest.fixture(scope="module")
def pair():
    return blobs(Affine(TURN).on_grid(FIXED), FIXED.affine, "f"), blobs(grid_points(MOVING), MOVING.affine, "m")


@pytest.mark.parametrize(("transform", "floor_mm"), [("rigid", 0.1), ("affine", 0.3), ("bspline", 1.0)])
def test_the_map_is_elastixs_own_and_near_the_truth(pair, transform, floor_mm, monkeypatch, tmp_path):
    pytest.importorskip("itk")
    monkeypatch.chdir(tmp_path)  # transformix leaves its field behind
    itk = elastix._import_elastix()
    run, results = itk.elastix_registration_method, []

    def kept(*images, **options):
        results.append(run(*images, **options)[1])
        return None, results[-1]

    monkeypatch.setattr(itk, "elastix_registration_method", kept)
    fixed, moving = pair
    everywhere = Mask(np.ones(fixed.shape, bool), fixed.affine)
    few = {"iterations": 40} if transform == "bspline" else {}
    (found,) = elastix.register(fixed, [moving], fixed_mask=everywhere, transform=transform, **FAST | few)
    field = np.asarray(
        itk.transformix_deformation_field(elastix._to_itk_image(itk, moving.array, moving.affine), results[0])
    )
    moved = found.on_grid(FIXED)
    # elastix writes its field as float32 millimetres and its parameters with some ten digits.
    np.testing.assert_allclose(moved - grid_points(FIXED), field.transpose(2, 1, 0, 3) * (-1, -1, 1), atol=1e-4)
    inner = (slice(4, -4),) * 3
    assert np.linalg.norm(moved - Affine(TURN).on_grid(FIXED), axis=-1)[inner].mean() < floor_mm


def test_it_goes_on_from_where_it_starts_and_repeats_itself(pair):
    pytest.importorskip("itk")
    fixed, moving = pair
    options = {**FAST, "transform": "rigid", "initial": [Affine(TURN)]}
    one, two = (elastix.register(fixed, [moving], **options)[0].on_grid(FIXED) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.linalg.norm(one - Affine(TURN).on_grid(FIXED), axis=-1).mean() < 0.1


def test_bad_input_is_named(pair, monkeypatch):
    fixed, moving = pair
    of_range = ({"grid_spacing_mm": 0}, {"bending": -0.5}, {"resolutions": 0}, {"iterations": 0}, {"samples": 0})
    for wrong in ({"metric": "ncc"}, {"transform": "spline"}, *of_range):
        with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
            elastix.register(fixed, [moving], **wrong)
    with pytest.raises(InputError, match="constant"):
        elastix.register(fixed, [moving.with_array(np.ones(moving.shape, np.float32))])
    with pytest.raises(GeometryError, match="do not overlap"):
        elastix.register(fixed, [moving], initial=[Affine.translation((500.0, 0, 0))])
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'atlasseg\[elastix\]'"):
        elastix.register(fixed, [moving])
