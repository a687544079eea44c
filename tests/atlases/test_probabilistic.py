"""A probabilistic atlas: the mean of warped labels, what is not annotated, how wide it is smoothed, and its library."""

import json
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from atlasseg import io, methods
from atlasseg.app import average as averaging
from atlasseg.app.run import run
from atlasseg.atlases.library import read_library
from atlasseg.atlases.prepared import PreparedLibrary, fingerprints, write_prepared
from atlasseg.atlases.probabilistic import ITERATIONS, LEAST, average
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.evaluation import overlap
from atlasseg.phantoms import head, moving_from_fixed, tilted_grid
from atlasseg.recipe import parse_recipe
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine, DisplacementField, to_displacement_field
from atlasseg.volume import Atlas, Grid, Image, LabelMap

GRID = tilted_grid((11, 9, 13), spacing_mm=(1.4, 1.7, 1.2))


def blobs(id_, seed, *, labels=(1, 2, 7), grid=GRID, not_annotated=()):
    """Smooth random regions; what is not annotated is background in them."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(0).normal(size=(len(labels) + 1, *grid.shape))
    noise = shared + rng.normal(size=shared.shape)
    order = np.argmax([ndimage.gaussian_filter(n, 1.5) for n in noise], axis=0)
    array = np.array([0, *labels])[order]
    array[np.isin(array, not_annotated)] = 0
    image = Image(rng.random(grid.shape, np.float32), grid.affine)
    return Atlas(id_, image, LabelMap(array, grid.affine), not_annotated=frozenset(not_annotated))


def one_hot_mean(atlases, transforms, grid, sigma_mm):
    """Oracle: each label's 0-1 volume warped as an image, smoothed and averaged where atlases reach."""
    values = sorted({int(v) for a in atlases for v in a.label_values} | {0})
    total, reach = np.zeros((*grid.shape, len(values))), np.zeros(grid.shape)
    for atlas, transform in zip(atlases, transforms, strict=True):
        known = coverage(atlas.image.grid, grid, transform).array
        reach += known
        for n, value in enumerate(values):
            hot = Image((atlas.labels.array == value).astype(np.float32), atlas.labels.affine)
            total[..., n] += known * resample(hot, grid, transform).array
    sigma = sigma_mm / grid.spacing_mm
    total = ndimage.gaussian_filter(total, (*sigma, 0), mode="constant")
    votes = ndimage.gaussian_filter(reach, sigma, mode="constant")
    return values, total / np.maximum(votes, 1e-9)[..., None]


@pytest.mark.parametrize("sigma_mm", [0.0, 1.3])
def test_it_is_the_mean_of_the_warped_labels(sigma_mm):
    atlases = [blobs(str(n), n + 1) for n in range(3)]
    field = np.random.default_rng(5).normal(size=(*GRID.shape, 3)).astype(np.float32)
    moved = DisplacementField(ndimage.gaussian_filter(field, (2, 2, 2, 0)) * 6, GRID.affine)
    transforms = [Affine.identity(), Affine.translation((1.0, -0.6, 0.3)), moved]
    wide = GRID.cropped((-1, 0, -2), GRID.shape + np.array([1, 1, 0]))
    found = average(atlases, transforms, wide, smoothing_mm=sigma_mm)
    values, wanted = one_hot_mean(atlases, transforms, wide, sigma_mm)
    reached = wanted.sum(axis=-1) > 0.99
    assert found.probabilities.label_values.tolist() == values
    assert found.smoothing_mm == sigma_mm and not found.log_likelihoods
    # what is below LEAST is left out, and the others scaled
    np.testing.assert_allclose(found.probabilities.dense()[reached], wanted[reached], atol=len(values) * LEAST)


def test_where_no_atlas_reaches_is_background():
    far = GRID.cropped((-3, 0, 0), np.array(GRID.shape) + 2)
    found = average([blobs("a", 1), blobs("b", 2)], [Affine.identity()] * 2, far, smoothing_mm=0)
    reached = coverage(GRID, far).array
    assert not reached.all()
    assert (found.probabilities.mode[~reached] == 0).all() and (found.probabilities.confidence()[~reached] == 1).all()


def test_what_is_not_annotated_is_not_background():
    full = [blobs(str(n), n + 1) for n in range(6)]
    half = [*full[:3], *(blobs(str(n), n + 1, not_annotated=(7,)) for n in range(3, 6))]
    same = [Affine.identity()] * 6
    drawn = average(full[:3], same[:3], GRID, smoothing_mm=1.5).probabilities.probability(7).sum()
    taught = average(half, same, GRID, smoothing_mm=1.5).probabilities.probability(7).sum()
    taken = [replace(a, not_annotated=frozenset()) for a in half]
    naive = average(taken, same, GRID, smoothing_mm=1.5).probabilities.probability(7).sum()
    assert naive < 0.6 * drawn  # as background, half of it is lost
    assert taught == pytest.approx(drawn, rel=0.15)


def test_background_that_may_be_a_label_is_shared_out_in_proportion():
    """One atlas of another set of labels: the maximum of the likelihood is known in closed form."""
    grid = Grid((3, 4, 2), np.diag([1.0, 1.2, 0.9, 1]))
    said = [7, 0, 0, 2, 7, 0]  # the last two atlases did not draw 7
    atlases = []
    for n, value in enumerate(said):
        array = np.full(grid.shape, 2)
        array[1, 1, 1] = value
        unknown = (7,) if n >= 4 and value != 7 else ()
        image = Image(np.zeros(grid.shape, np.float32), grid.affine)
        atlases.append(Atlas(str(n), image, LabelMap(array, grid.affine), not_annotated=frozenset(unknown)))
    dense = average(atlases, [Affine.identity()] * 6, grid, smoothing_mm=0).probabilities.dense()[1, 1, 1]
    # 1 of 6 says 2; among 0 and 7 the four clear votes are 2 to 2, so the vague one is split in half
    np.testing.assert_allclose(dense, [2.5 / 6, 1 / 6, 2.5 / 6], atol=1e-6)


def test_groups_that_overlap_come_to_the_most_likely_probabilities():
    """Two ways of not annotating: no other probabilities near by are more likely."""
    grid = Grid((2, 3, 2), np.diag([1.0, 1.2, 0.9, 1]))
    votes = [(0, ()), (0, ()), (1, ()), (1, ()), (2, ()), (0, (1,)), (0, (1,)), (0, (2,)), (0, (1, 2)), (2, (1,))]
    image = Image(np.zeros(grid.shape, np.float32), grid.affine)
    atlases = [
        Atlas(str(n), image, LabelMap(np.full(grid.shape, v), grid.affine), not_annotated=frozenset(silent))
        for n, (v, silent) in enumerate(votes)
    ]
    p = average(atlases, [Affine.identity()] * len(votes), grid, smoothing_mm=0).probabilities.dense()[0, 0, 0]

    def likelihood(q):
        return sum(np.log(sum(q[m] for m in ({0, *silent} if v == 0 else {v}))) for v, silent in votes)

    assert ITERATIONS > 50 and p.sum() == pytest.approx(1)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        for step in (-0.01, 0.01):
            other = p.astype(float).copy()
            other[a] += step
            other[b] -= step
            assert likelihood(other) < likelihood(p)


@settings(max_examples=8)
@given(st.permutations(range(4)), st.sampled_from([0.0, 0.9, None]))
def test_the_order_of_the_atlases_does_not_matter(order, sigma_mm):
    atlases = [blobs(str(n), n + 1, not_annotated=(2,) if n == 1 else ()) for n in range(4)]
    first = average(atlases, [Affine.identity()] * 4, GRID, smoothing_mm=sigma_mm)
    again = average([atlases[n] for n in order], [Affine.identity()] * 4, GRID, smoothing_mm=sigma_mm)
    assert first.smoothing_mm == again.smoothing_mm
    np.testing.assert_allclose(first.probabilities.dense(), again.probabilities.dense(), atol=2e-3)


def test_atlases_that_differ_more_are_smoothed_wider():
    rng = np.random.default_rng(3)
    grid = tilted_grid((20, 22, 18), spacing_mm=(1.4, 1.7, 1.2))
    points = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)

    def library(apart_voxels):
        made = []
        for n in range(6):
            centre = np.array([10, 11, 9]) + rng.normal(size=3) * apart_voxels
            array = (np.linalg.norm((points - centre) / (5, 6, 4), axis=-1) < 1).astype(int)
            made.append(Atlas(str(n), Image(np.zeros(grid.shape), grid.affine), LabelMap(array, grid.affine)))
        return average(made, [Affine.identity()] * 6, grid)

    close, apart = library(0.0), library(1.5)
    assert close.smoothing_mm == 0 < apart.smoothing_mm
    scores = apart.log_likelihoods
    assert max(scores, key=scores.get) == apart.smoothing_mm and len(scores) > 3


def test_bad_requests_are_refused():
    atlas = blobs("a", 1)
    with pytest.raises(InputError, match="expected one transform for each atlas, got 0"):
        average([atlas], [], GRID)
    with pytest.raises(InputError, match=r"expected at least 2 atlases.*got 1"):
        average([atlas], [Affine.identity()], GRID)
    with pytest.raises(InputError, match="0 mm or more, got -1"):
        average([atlas], [Affine.identity()], GRID, smoothing_mm=-1)
    with pytest.raises(InputError, match="no label of the 1 atlases is inside"):
        average([atlas], [Affine.translation((500, 0, 0))], GRID, smoothing_mm=1)


@pytest.fixture
def averaged(tmp_path):
    """A library of three heads, prepared by the transforms by which they were made, and averaged."""
    grids = [tilted_grid((22, 24, 17), spacing_mm=(2.4, 2.6, 2.7), axes=axes) for axes in ("RAS", "LAS", "PIR")]
    heads = [head(f"h{n}", grid=grid, seed=n + 1, noise=0.02, subsamples=1) for n, grid in enumerate(grids)]
    for n, phantom in enumerate(heads):
        labels = phantom.labels
        if n == 2:
            labels = labels.with_array(np.where(labels.array == 2, 0, labels.array))
            io.write_json({"not_annotated": [2]}, tmp_path / "library/labels/h2.json")
        io.write_image(phantom.image, tmp_path / f"library/images/h{n}.nii.gz")
        io.write_label_map(labels, tmp_path / f"library/labels/h{n}.nii.gz")
    library = read_library(tmp_path / "library")
    transforms = {h.id: to_displacement_field(moving_from_fixed(heads[0], h), heads[0].image.grid) for h in heads}
    template = replace(heads[0].image, array=heads[0].image.array / heads[0].image.array.max(), name="template")
    write_prepared(PreparedLibrary(template, None, transforms, fingerprints(library)), tmp_path / "prepared")
    averaging.average_library(
        tmp_path / "library", tmp_path / "averaged", prepared=tmp_path / "prepared", smoothing_mm=0.8
    )
    return tmp_path, heads


def test_it_is_read_back_as_a_probabilistic_library_of_one(averaged):
    folder, heads = averaged
    library = read_library(folder / "averaged")
    assert library.kind == "probabilistic" and library.ids == ("template",)
    atlas = library.read("template")
    assert set(atlas.label_values.tolist()) == set(heads[0].labels.values.tolist()) | {0}
    assert set(library.table.values) == set(atlas.label_values.tolist()) - {0}
    # the anatomy is that of the head whose space the template is
    inside = heads[0].labels.array > 0
    assert (atlas.segmentation.array == heads[0].labels.array)[inside].mean() > 0.8
    header = json.loads((folder / "averaged/average.json").read_text())
    assert header["Atlases"] == ["h0", "h1", "h2"] and header["SmoothingMillimetres"] == 0.8


def test_a_run_with_it_registers_once(averaged):
    folder, heads = averaged
    calls = []
    honest = methods.get("registration", "affine").function

    @wraps(honest)
    def counted(target, moving, **given):
        calls.append(len(moving))
        return honest(target, moving, **given)

    io.write_image(heads[1].image, folder / "scan.nii.gz")
    recipe = parse_recipe(
        {
            "data": {
                "atlases": str(folder / "averaged"),
                "targets": str(folder / "scan.nii.gz"),
                "out": str(folder / "out"),
            },
            "registration": {"steps": ["affine"]},
            "fusion": {"method": "majority"},
            "output": {"report": False},
        }
    )
    step = recipe.registration.steps[0]
    counting = replace(step, method=replace(step.method, function=counted))
    (done,) = run(replace(recipe, registration=replace(recipe.registration, steps=(counting,))))
    assert done.error == "" and calls == [1]
    found = io.read_label_map(folder / "out/scan/scan_desc-majority_dseg.nii.gz")
    counts = overlap.count(found.array, heads[1].labels.array)
    assert np.nanmean(overlap.dice(counts)[counts.reference > 100]) > 0.6  # voxels are too coarse for the small ones


def test_an_averaged_library_is_replaced_and_other_folders_are_not(averaged):
    folder, _ = averaged
    again = averaging.average_library(
        folder / "library", folder / "averaged", prepared=folder / "prepared", smoothing_mm=1.0
    )
    assert again.smoothing_mm == 1.0
    with pytest.raises(InputError, match="expected a new folder or an averaged library"):
        averaging.average_library(folder / "library", folder / "library", prepared=folder / "prepared")
    io.write_image(Image(np.random.default_rng(0).random((9, 8, 7)), np.eye(4)), folder / "library/images/h1.nii.gz")
    io.write_label_map(LabelMap(np.ones((9, 8, 7)), np.eye(4)), folder / "library/labels/h1.nii.gz")
    with pytest.raises(InputError, match="'h1' has other contents"):
        averaging.average_library(folder / "library", folder / "new", prepared=folder / "prepared")
    assert not (folder / "new").exists()


def test_the_command_says_how_wide_it_smoothed(averaged):
    folder, _ = averaged
    arguments = ["atlases", "average", folder / "library", "--out", folder / "new", "--prepared", folder / "prepared"]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    header = json.loads((folder / "new/average.json").read_text())
    assert f"smoothing: {header['SmoothingMillimetres']:.3g} mm (most likely for atlases held out)" in done.output
    scores = {each["SmoothingMillimetres"]: each["NatsPerVoxel"] for each in header["HeldOutLogLikelihood"]}
    assert max(scores, key=scores.get) == header["SmoothingMillimetres"]
    assert (
        CliRunner().invoke(app, ["atlases", "average", str(folder / "none"), "--out", str(folder / "x")]).exit_code == 2
    )


def test_what_no_atlas_drew_is_said_of_the_result(averaged):
    folder, heads = averaged
    for n, phantom in enumerate(heads):
        io.write_json({"not_annotated": [2, 3] if n else [2]}, folder / f"library/labels/h{n}.json")
        without = np.where(phantom.labels.array == 2, 0, phantom.labels.array)
        io.write_label_map(phantom.labels.with_array(without), folder / f"library/labels/h{n}.nii.gz")
    averaging.average_library(folder / "library", folder / "new", prepared=folder / "prepared", smoothing_mm=1.0)
    library = read_library(folder / "new")
    assert library.files("template").not_annotated == {2}
    assert 2 not in library.read("template").label_values
