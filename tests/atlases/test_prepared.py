"""A prepared library: its template lies amid the atlases, its transforms lead to them, and it knows its own library."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from atlasseg import io, methods
from atlasseg.app.registrar import make_registrar
from atlasseg.atlases import prepared as prepared_module
from atlasseg.atlases.library import read_library
from atlasseg.atlases.prepared import PreparedLibrary, prepare, read_prepared, register_prepared, write_prepared
from atlasseg.errors import InputError, OutputError
from atlasseg.files import seal
from atlasseg.phantoms import head, moving_from_fixed, tilted_grid
from atlasseg.pipeline import preprocess_scans
from atlasseg.recipe import Step, parse_recipe
from atlasseg.registration import template
from atlasseg.resampling import resample
from atlasseg.threads import limit_threads
from atlasseg.transforms import Affine, BSplineField, DisplacementField, grid_points
from atlasseg.volume import Image, Mask

SHAPES = ((30, 34, 25), (28, 36, 26), (33, 31, 27))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Volumes this small gain nothing from several threads, and lose much where other work shares the cores."""
    with limit_threads(1):
        yield


@pytest.fixture(scope="module")
def heads():
    grids = [
        tilted_grid(s, spacing_mm=(1.7, 1.8, 1.7), axes=a) for s, a in zip(SHAPES, ("RAS", "LAS", "PIR"), strict=True)
    ]
    return [head(f"atlas{n}", grid=grid, seed=n + 1, noise=0.02) for n, grid in enumerate(grids)]


@pytest.fixture(scope="module")
def folder(heads, tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    for phantom in heads:
        io.write_image(phantom.image, root / "images" / f"{phantom.id}.nii.gz")
        io.write_label_map(phantom.labels, root / "labels" / f"{phantom.id}.nii.gz")
    return root


@pytest.fixture(scope="module")
def prepared(folder):
    return prepare(read_library(folder), rounds=2)


def distance_mm(found, truth, points):
    return np.linalg.norm(found(points) - truth(points), axis=-1)


def test_the_transforms_lead_from_one_atlas_through_the_template_to_another(prepared, heads):
    first, second = heads[0], heads[1]
    points = grid_points(first.image.grid)[first.labels.array > 0]
    there = prepared.transforms[second.id] @ ~prepared.transforms[first.id]
    truth = moving_from_fixed(first, second)
    error_mm = distance_mm(there, truth, points)
    assert np.median(error_mm) < 0.6 * np.median(distance_mm(Affine.identity(), truth, points))
    assert np.median(error_mm) < 1.2  # voxels of 1.7 mm


def test_the_template_lies_on_the_mean_shape(prepared):
    inside = prepared.template.array > 0.2
    points = grid_points(prepared.template.grid)[inside]
    shapes = [np.linalg.slogdet(t.transforms[0].matrix[:3, :3])[1] for t in prepared.transforms.values()]
    assert abs(np.mean(shapes)) < 1e-9  # the affines' volumes cancel
    beyond = [(~t.transforms[0])(t(points)) - points for t in prepared.transforms.values()]
    # what is left of the mean displacement: interpolation of fields between nodes, once
    assert np.linalg.norm(np.mean(beyond, axis=0), axis=1).max() < 0.25 * np.abs(beyond).max()


def test_the_template_is_sharper_than_a_mean_without_registration(prepared, heads):
    grid = prepared.template.grid
    warped = [resample(h.image, grid, prepared.transforms[h.id]).array for h in heads]
    alike = [np.corrcoef(a[a + b > 0], b[a + b > 0])[0, 1] for a, b in pairwise(warped)]
    assert min(alike) > 0.9
    assert prepared.mask is None or prepared.mask.array.mean() > 0.5


def test_a_target_is_registered_by_way_of_the_template(prepared, heads):
    target = head("target", grid=tilted_grid((31, 33, 26), spacing_mm=(1.7, 1.8, 1.7)), seed=9, noise=0.02)
    ids = ("atlas2", "atlas0")
    moving = [heads[2].image, heads[0].image]
    points = grid_points(target.image.grid)[target.labels.array > 0]
    truth = [moving_from_fixed(target, heads[2]), moving_from_fixed(target, heads[0])]
    composed = register_prepared(target.image, prepared, moving, ids=ids, refine_iterations=(0, 0))
    refined = register_prepared(target.image, prepared, moving[::-1], ids=ids[::-1])[::-1]
    for right, rough, fine in zip(truth, composed, refined, strict=True):
        before_mm = np.median(distance_mm(Affine.identity(), right, points))
        assert np.median(distance_mm(rough, right, points)) < 0.6 * before_mm
        assert np.median(distance_mm(fine, right, points)) < 1.2


def test_composition_is_that_of_the_parts(prepared, heads):
    first = prepared.transforms["atlas0"]
    grid = heads[1].image.grid
    bend = np.zeros((*grid.shape, 3), np.float32)
    bend[..., 0] = 2 * np.sin(grid_points(grid)[..., 1] / 9)
    second = Affine.translation((1, -2, 0.5)) @ DisplacementField(bend, grid.affine)
    (found,) = template.compose_through_template([first], second, grid)
    points = grid_points(grid)[4:-4, 4:-4, 4:-4]
    np.testing.assert_allclose(found(points), first(second(points)), atol=1e-4)  # stored as float32
    assert isinstance(found.transforms[0], Affine) and len(found.transforms) == 2


def test_written_and_read_it_is_the_same(prepared, folder, tmp_path):
    where = tmp_path / "made" / "prepared"
    write_prepared(prepared, where)
    write_prepared(prepared, where)  # in the place of the first
    again = read_prepared(where)
    again.check(read_library(folder))
    assert again.ids == prepared.ids == ("atlas0", "atlas1", "atlas2")
    assert again.settings["rounds"] == 2
    np.testing.assert_array_equal(again.template.array, prepared.template.array)
    points = np.random.default_rng(0).uniform(-15, 15, (50, 3))
    for id_ in again.ids:
        np.testing.assert_array_equal(again.transforms[id_](points), prepared.transforms[id_](points))
    assert [p.name for p in where.parent.iterdir()] == ["prepared"]  # nothing is left aside


def test_a_changed_library_is_refused_by_name(prepared, folder, heads, tmp_path):
    library = read_library(folder)
    with pytest.raises(InputError, match="'atlas1' was removed"):
        prepared.check(library.without("atlas1"))
    with pytest.raises(InputError, match="'atlas1' is new"):
        replace(prepared, hashes={k: v for k, v in prepared.hashes.items() if k != "atlas1"}).check(library)
    for phantom in heads:
        changed = phantom.image.array + (phantom.id == "atlas2")
        io.write_image(phantom.image.with_array(changed), tmp_path / "images" / f"{phantom.id}.nii.gz")
        io.write_label_map(phantom.labels, tmp_path / "labels" / f"{phantom.id}.nii.gz")
    assert prepared.changes(read_library(tmp_path)) == ["the scan or mask of atlas 'atlas2' has other contents"]
    io.write_label_map(heads[0].labels.with_array(heads[0].labels.array * 0 + 1), folder / "labels" / "atlas0.nii.gz")
    assert prepared.changes(read_library(folder)) == []  # labels do not enter
    everywhere = Mask(np.ones(heads[0].image.shape, bool), heads[0].image.affine)
    io.write_mask(everywhere, tmp_path / "masks" / "atlas0.nii.gz")
    assert "the scan or mask of atlas 'atlas0' has other contents" in prepared.changes(read_library(tmp_path))


def tiny():
    image = Image(np.arange(60.0).reshape(3, 4, 5), np.diag([1, 2, 3, 1]))
    field = DisplacementField(np.zeros((3, 4, 5, 3)), image.affine)
    return PreparedLibrary(image, Mask(image.array > 3, image.affine), {"a/b": Affine.identity() @ field})


def test_a_mask_and_any_id_are_kept(tmp_path):
    write_prepared(tiny(), tmp_path / "p")
    again = read_prepared(tmp_path / "p")
    assert again.ids == ("a/b",)
    np.testing.assert_array_equal(again.mask.array, tiny().mask.array)


def test_nothing_else_is_overwritten_and_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="expected a new folder or a prepared library"):
        write_prepared(tiny(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    write_prepared(tiny(), tmp_path / "p")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        write_prepared(tiny(), tmp_path / "p")
    assert read_prepared(tmp_path / "p").ids == ("a/b",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "p"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="expected a prepared library, got a folder without"):
        read_prepared(tmp_path)
    write_prepared(tiny(), tmp_path / "p")
    header = tmp_path / "p" / "preparation.json"
    header.write_text(header.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match=r"preparation.json: damaged, its bytes are not those that were written"):
        read_prepared(tmp_path / "p")
    seal(tmp_path / "p", ["preparation.json", "template.nii.gz"])
    with pytest.raises(InputError, match="expected format 1, got 99"):
        read_prepared(tmp_path / "p")
    write_prepared(tiny(), tmp_path / "p")
    (tmp_path / "p" / "transforms" / "0.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"0.npz: damaged"):
        read_prepared(tmp_path / "p")
    write_prepared(tiny(), tmp_path / "p")
    io.write_image(tiny().template.with_array(tiny().template.array + 1), tmp_path / "p" / "template.nii.gz")
    with pytest.raises(InputError, match=r"template.nii.gz: damaged"):
        read_prepared(tmp_path / "p")
    seal(tmp_path / "p", ["preparation.json", "template.nii.gz"])
    with pytest.raises(InputError, match=r"expected the template of preparation\.json, got another one"):
        read_prepared(tmp_path / "p")
    write_prepared(replace(tiny(), hashes={"a/b": "1", "c": "2"}), tmp_path / "p")
    with pytest.raises(InputError, match="differ in the atlases c"):
        read_prepared(tmp_path / "p")
    spline = BSplineField(np.zeros((4, 4, 4, 3)), np.eye(4))
    with pytest.raises(InputError, match="atlas 'x'"):
        write_prepared(replace(tiny(), transforms={"x": spline}), tmp_path / "q")


def test_bad_requests_are_named(prepared, heads):
    with pytest.raises(InputError, match="at least 2 images"):
        template.groupwise_template([heads[0].image])
    with pytest.raises(InputError, match="0 rounds"):
        template.groupwise_template([h.image for h in heads], rounds=0)
    with pytest.raises(InputError, match="'atlas7'"):
        register_prepared(heads[0].image, prepared, [heads[0].image], ids=["atlas7"])
    with pytest.raises(InputError, match="expected one image for each of 3 atlases, got 1"):
        register_prepared(heads[0].image, prepared, [heads[0].image])


def test_the_engine_is_the_recipes_but_for_its_levels():
    method = methods.get("registration", "diffeomorphic")
    own = {
        "radius_voxels": 3,
        "update_sigma_voxels": 2.5,
        "iterations": (40, 10),
        "total_field_sigma_voxels": (1.0, 0.5),
    }
    steps = (Step(methods.get("registration", "affine"), {"radius_voxels": 4}), Step(method, own))
    smoothing = {"radius_voxels": 3, "update_sigma_voxels": 2.5}
    assert prepared_module.engine_of(steps).keywords == {**smoothing, "total_field_sigma_voxels": (1.0, 0.5)}
    levels = (Step(method, {**own, "shrink_factors": (2, 1)}),)
    assert prepared_module.engine_of(levels).keywords == smoothing
    assert prepared_module.engine_of(steps[:1]).keywords == {}


def test_a_recipe_says_how_far_the_way_from_the_template_is_refined(prepared, folder, heads, tmp_path):
    write_prepared(prepared, tmp_path / "prepared")
    table = {"steps": ["diffeomorphic"], "prepared": str(tmp_path / "prepared"), "refine_iterations": [0, 0]}
    recipe = parse_recipe({"registration": table, "fusion": {"method": "majority"}})
    library = read_library(folder)
    atlases = [library.read(id_) for id_ in library.ids]
    scans = preprocess_scans(heads[0].image, atlases, None, recipe.preprocessing)
    found = make_registrar(recipe, library)(scans).transforms
    composed = register_prepared(heads[0].image, prepared, scans.images, refine_iterations=(0, 0))
    points = grid_points(heads[0].image.grid)[::4, ::4, ::4]
    for one, other in zip(found, composed, strict=True):
        np.testing.assert_allclose(one(points), other(points), atol=1e-3)
