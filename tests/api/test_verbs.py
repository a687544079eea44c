"""The functions of ``import atlasseg``: on every form of data, one or many; wrong types are refused before any work."""

import nibabel
import numpy as np
import pandas as pd
import pytest

import atlasseg
from atlasseg import phantoms
from atlasseg.errors import GeometryError, InputError
from atlasseg.pipeline import segment as segment_by_recipe
from atlasseg.propagation import propagate as propagate_one
from atlasseg.registration import affine as affine_registration
from atlasseg.resampling import resample, stack_channels
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Grid, Image, LabelMap, Mask, ProbabilityMap

AFFINE_ONLY = ['registration.steps=["affine"]']

# ------------------------------------------------------------------------------------------------------- wrong types

BAD = {
    "None": None,
    "no file": "nowhere.nii.gz",
    "a dictionary": {"image": 1},
    "a list of wrong things": [None, 3],
    "an empty list": [],
    "a NumPy array": np.zeros((9, 8, 7)),
    "a number": 3.5,
}


def verbs(tiny):
    """Name of each argument that holds data, to a call with that argument given."""
    image, labels, atlas = (tiny[k] for k in ("image", "labels", "atlas"))
    move = Affine.identity()
    return {
        "register, fixed": lambda bad: atlasseg.register(bad, image),
        "register, moving": lambda bad: atlasseg.register(image, bad),
        "register, method": lambda bad: atlasseg.register(image, image, bad),
        "register, initial": lambda bad: atlasseg.register(image, image, initial=[bad]),
        "register, fixed_mask": lambda bad: atlasseg.register(image, image, fixed_mask=[bad]),
        "register, moving_mask": lambda bad: atlasseg.register(image, image, moving_mask=[[bad]]),
        "propagate, atlas": lambda bad: atlasseg.propagate(bad, move, image),
        "propagate, transform": lambda bad: atlasseg.propagate(atlas, bad, image),
        "propagate, target": lambda bad: atlasseg.propagate(atlas, move, bad),
        "fuse, target": lambda bad: atlasseg.fuse(bad, [atlas]),
        "fuse, candidates": lambda bad: atlasseg.fuse(image, bad),
        "fuse, method": lambda bad: atlasseg.fuse(image, [atlas], bad),
        "fuse, mask": lambda bad: atlasseg.fuse(image, [atlas], mask=[bad]),
        "refine, target": lambda bad: atlasseg.refine(bad, labels),
        "refine, fused": lambda bad: atlasseg.refine(image, bad),
        "refine, method": lambda bad: atlasseg.refine(image, labels, bad),
        "segment, scan": lambda bad: atlasseg.segment(bad, [atlas]),
        "segment, library": lambda bad: atlasseg.segment(image, bad),
        "segment, recipe": lambda bad: atlasseg.segment(image, [atlas], bad if bad is not None else 3),
        "segment, mask": lambda bad: atlasseg.segment(image, [atlas], mask=[bad, bad]),
        "segment, overrides": lambda bad: atlasseg.segment(image, [atlas], "majority", overrides=[bad]),
        "evaluate, segmentation": lambda bad: atlasseg.evaluate(bad, labels),
        "evaluate, reference": lambda bad: atlasseg.evaluate(labels, bad),
        "evaluate, table": lambda bad: atlasseg.evaluate(labels, labels, table=bad if bad is not None else 3),
        "tissue, scan": lambda bad: atlasseg.tissue(bad),
        "tissue, method": lambda bad: atlasseg.tissue(image, bad),
        "tissue, mask": lambda bad: atlasseg.tissue(image, mask=[bad]),
        "tissue, modalities": lambda bad: atlasseg.tissue(image, modalities=[bad]),
        "tissue, prior": lambda bad: atlasseg.tissue(image, prior=bad if bad is not None else 3),
        "compare, targets": lambda bad: atlasseg.compare(bad, [atlas]),
        "compare, library": lambda bad: atlasseg.compare([(image, labels)], bad),
        "compare, methods": lambda bad: atlasseg.compare([(image, labels)], [atlas], bad),
        "compare, recipe": lambda bad: atlasseg.compare(
            [(image, labels)], [atlas], recipe=bad if bad is not None else 3
        ),
        "apply_transform, value": lambda bad: atlasseg.apply_transform(
            bad, atlasseg.Affine.identity(), reference=image
        ),
        "apply_transform, transforms": lambda bad: atlasseg.apply_transform(image, bad, reference=image),
        "apply_transform, reference": lambda bad: atlasseg.apply_transform(
            image, atlasseg.Affine.identity(), reference=bad
        ),
        "read_image": atlasseg.read_image,
        "read_label_map": atlasseg.read_label_map,
        "read_mask": atlasseg.read_mask,
        "read_probability_map": atlasseg.read_probability_map,
        "read_transform": atlasseg.read_transform,
        "read_label_table": atlasseg.read_label_table,
        "read_library": atlasseg.read_library,
        "read_targets": atlasseg.read_targets,
        "read_recipe": atlasseg.read_recipe,
        "write_image": lambda bad: atlasseg.write_image(bad, "never.nii.gz"),
        "write_image, path": lambda bad: atlasseg.write_image(image, "" if isinstance(bad, str) else bad),
        "write_label_map": lambda bad: atlasseg.write_label_map(bad, "never.nii.gz"),
        "write_mask": lambda bad: atlasseg.write_mask(bad, "never.nii.gz"),
        "write_probability_map": lambda bad: atlasseg.write_probability_map(bad, "never.nii.gz"),
        "write_transform": lambda bad: atlasseg.write_transform(bad, "never.h5"),
        "write_label_table": lambda bad: atlasseg.write_label_table(bad, "never.tsv"),
        "list_methods": lambda bad: atlasseg.list_methods(bad if bad is not None else 3),
    }


NAMES = list(verbs(dict.fromkeys(("image", "labels", "atlas"))))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_types_are_refused_by_our_own_error(name, bad, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (name, bad) in (("tissue, modalities", "an empty list"), ("tissue, mask", "None")):
        pytest.skip("to give none is no fault")
    with pytest.raises(InputError) as caught:
        verbs(tiny)[name](BAD[bad])
    assert str(caught.value).strip() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: atlasseg.register(t["labels"], t["image"]), "fixed: expected an image .* got a LabelMap"),
        (lambda t: atlasseg.register(t["image"], t["labels"]), "moving: expected an image .* got a LabelMap"),
        (lambda t: atlasseg.fuse(t["labels"], [t["atlas"]]), "target: expected an image .* got a LabelMap"),
        (lambda t: atlasseg.fuse(t["image"], [(t["labels"], t["labels"])]), "number 1, image: expected an image"),
        (lambda t: atlasseg.fuse(t["image"], [(t["image"], t["image"])]), "number 1, labels: expected a label map"),
        (lambda t: atlasseg.segment(t["labels"], [t["atlas"]]), "scan: expected an image .* got a LabelMap"),
        (lambda t: atlasseg.evaluate(t["image"], t["labels"]), "segmentation: expected a label map .* got an Image"),
        (lambda t: atlasseg.evaluate(t["labels"], t["image"]), "reference: expected a label map .* got an Image"),
        (lambda t: atlasseg.refine(t["image"], t["image"]), "fused: expected label probabilities .* got an Image"),
        (lambda t: atlasseg.tissue(t["labels"]), "scan: expected an image .* got a LabelMap"),
        (lambda t: atlasseg.compare([t["image"]], [t["atlas"]]), "targets: expected reference labels .* tiny"),
        (
            lambda t: atlasseg.write_image(t["labels"], "never.nii.gz"),
            "expected an Image to write, got LabelMap",
        ),
        (
            lambda t: atlasseg.write_label_map(t["image"], "never.nii.gz"),
            "expected a LabelMap to write, got Image",
        ),
    ],
)
def test_a_label_map_for_an_image_and_the_other_way_round(call, message, tiny):
    with pytest.raises(InputError, match=message):
        call(tiny)


# --------------------------------------------------------------------------------------------------- register and warp


@pytest.mark.parametrize("form", ["path", "nibabel", "sitk", "ants"])
def test_register_is_the_method_whatever_the_form(form, forms, heads):
    fixed, moving = heads[1].image, heads[0]
    expected = affine_registration.register(fixed, [moving.image], initial=None, fixed_mask=None, moving_masks=None)[0]
    found = atlasseg.register(fixed, forms[form][0], "affine")
    points = fixed.grid.corners_mm
    np.testing.assert_allclose(found.transform(points), expected(points), atol=2e-2)  # headers on disk are float32
    np.testing.assert_allclose(found.transform_points(points), found.transform(points))
    assert found.warped.grid.matches(fixed.grid) and found.method == "affine"
    assert 0.2 < found.similarity <= 1 and found.quality.folded_share == 0


def test_a_registration_warps_by_type_back_and_forth(heads, tmp_path):
    fixed, moving = heads[1], heads[0]
    found = atlasseg.register(fixed.image, moving.image, "affine")
    labels = found.warp(moving.labels)
    assert isinstance(labels, LabelMap)
    np.testing.assert_array_equal(labels.array, resample(moving.labels, fixed.image.grid, found.transform).array)
    for volume in (
        moving.image,
        Mask(moving.labels.array > 0, moving.labels.affine),
        ProbabilityMap.from_labels(moving.labels),
    ):
        assert type(found.warp(volume)) is type(volume) and found.warp(volume).grid.matches(fixed.image.grid)
    back = found.inverse.warp(fixed.labels)
    assert back.grid.matches(moving.image.grid)
    np.testing.assert_allclose(
        found.inverse.transform_points(found.transform_points([[1, 2, 3]])), [[1, 2, 3]], atol=1e-6
    )
    nearest = found.warp(moving.image, interpolation="nearest")
    assert set(np.unique(nearest.array)) <= set(np.unique(moving.image.array))
    found.write(tmp_path / "t.h5")
    expected = found.transform([5, 6, 7])
    np.testing.assert_allclose(atlasseg.read_transform(tmp_path / "t.h5")([5, 6, 7]), expected, atol=1e-6)
    np.testing.assert_allclose(found.to_sitk().TransformPoint((-5.0, -6.0, 7.0)), expected * (-1, -1, 1))
    with pytest.raises(InputError, match='Give kind="image", "labels" or "mask", which decides the interpolation'):
        found.warp(moving.labels.to_nibabel())
    by_kind = found.warp(moving.labels.to_nibabel(), kind="labels")
    np.testing.assert_array_equal(by_kind.array, labels.array)
    with pytest.raises(InputError, match=r"expected an image .* got a LabelMap"):
        found.warp(moving.labels, kind="image")
    with pytest.raises(InputError, match="expected 'image', 'labels' or 'mask', got the text 'pictures'"):
        found.warp(moving.labels, kind="pictures")
    with pytest.raises(InputError, match="path: expected a path, got None"):
        found.write(None)
    assert "moving head0 to fixed head1; method: affine; transform: Affine" in repr(found)
    assert found._repr_html_().count("data:image/png") == 2


def test_register_many_from_a_library_a_folder_or_a_list(dataset, heads):
    fixed = heads[3].image
    library = atlasseg.read_library(dataset / "atlases")
    expected = [atlasseg.register(fixed, library.read(id_).image, "affine").transform for id_ in library.ids]
    for moving in (
        library,
        dataset / "atlases",
        [library.read(i) for i in library.ids],
        [library.read(i).image for i in library.ids],
    ):
        found = atlasseg.register(fixed, moving, "affine")
        assert [each.moving.name for each in found] == list(library.ids)
        for one, transform in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.transform.matrix, transform.matrix)
    assert found[0].candidate is None
    candidates = atlasseg.register(fixed, library, "affine")
    assert all(each.candidate.grid.matches(fixed.grid) for each in candidates)
    fused = atlasseg.fuse(fixed, candidates, "majority")
    by_hand = atlasseg.fuse(fixed, atlasseg.propagate(library, candidates, fixed), "majority")
    np.testing.assert_array_equal(fused.mode, by_hand.mode)
    with pytest.raises(InputError, match="This registration has no labels"):
        atlasseg.fuse(fixed, found, "majority")


def test_register_starts_where_it_is_told_and_looks_where_it_is_told(heads):
    fixed, moving = heads[1].image, heads[0].image
    start = Affine.translation((8, 0, 0))
    begun = atlasseg.register(fixed, [moving, moving], "diffeomorphic", initial=start, iterations=[0])
    for each in begun:
        np.testing.assert_allclose(each.transform([[0, 0, 0]]), [[8, 0, 0]], atol=1e-3)
    inside = Mask(heads[1].labels.array > 0, fixed.affine)
    foreground = Mask(heads[0].labels.array > 0, moving.affine)
    expected = affine_registration.register(
        fixed, [moving], initial=None, fixed_mask=inside, moving_masks=[foreground]
    )[0].matrix
    with_mask = Atlas("a", moving, heads[0].labels, foreground)
    for given, mask in ((with_mask, None), (moving, heads[0].labels), (moving, [foreground.to_sitk()])):
        found = atlasseg.register(fixed, given, "affine", fixed_mask=heads[1].labels, moving_mask=mask)
        np.testing.assert_array_equal(found.transform.matrix, expected)


# ------------------------------------------------------------------------------------------- propagate, fuse, refine


def test_propagate_is_one_resampling_one_or_many(tiny):
    move = Affine.translation((1.5, -2, 0.5))
    grid = Grid((8, 9, 6), np.diag([1.3, 1.1, 1.7, 1]))
    expected = propagate_one(tiny["atlas"], move, grid)
    for atlas in (tiny["atlas"], (tiny["image"], tiny["labels"])):
        found = atlasseg.propagate(atlas, move, grid)
        np.testing.assert_array_equal(found.image.array, expected.image.array)
        np.testing.assert_array_equal(found.labels.dense(), expected.labels.dense())
    target = Image(np.zeros(grid.shape), grid.affine)
    both = [tiny["atlas"], (tiny["image"], tiny["labels"])]
    many = atlasseg.propagate(both, [move, Affine.identity()], target.to_sitk())
    np.testing.assert_array_equal(many[0].image.array, expected.image.array)
    assert np.abs(many[1].image.array - many[0].image.array).max() > 0
    with pytest.raises(InputError, match="transform: expected one, or a list of 2, got 3"):
        atlasseg.propagate(both, [move] * 3, target)
    with pytest.raises(InputError, match="lienar"):
        atlasseg.propagate(tiny["atlas"], move, grid, interpolation="lienar")


@pytest.mark.parametrize("method", ["majority", "joint"])
def test_fuse_is_the_method_on_every_form_of_candidates(method, tiny):
    rng = np.random.default_rng(1)
    candidates = []
    for n in range(3):
        noisy = tiny["image"].array + rng.normal(0, 5, tiny["image"].shape).astype(np.float32)
        shifted = np.roll(tiny["labels"].array, n, 0)
        candidates.append(Atlas(f"c{n}", tiny["image"].with_array(noisy), tiny["labels"].with_array(shifted)))
    function = next(m for m in atlasseg.list_methods("fusion") if m.name == method).function
    expected = function(tiny["image"], candidates)
    pairs = [(c.image.to_nibabel(), c.labels.to_sitk()) for c in candidates]
    for given in (candidates, pairs):
        found = atlasseg.fuse(tiny["image"].to_ants(), given, method)
        np.testing.assert_allclose(found.dense(), expected.dense(), atol=1e-6)
    if method == "majority":
        found = atlasseg.fuse(tiny["image"], [c.labels for c in candidates], method)
        np.testing.assert_array_equal(found.dense(), expected.dense())


def test_fuse_wants_the_grid_of_the_target(tiny):
    other = Image(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(GeometryError, match=r"candidate 'tiny': expected the grid of the target .* atlasseg.segment"):
        atlasseg.fuse(other, [tiny["atlas"]], "majority")
    with pytest.raises(GeometryError, match="mask: expected the grid of the target"):
        atlasseg.fuse(tiny["image"], [tiny["atlas"]], mask=Mask(np.ones((4, 4, 4)), np.eye(4)))
    with pytest.raises(GeometryError, match="fused: expected the grid of the target"):
        atlasseg.refine(other, tiny["labels"])


def test_refine_takes_what_fuse_and_segment_give(tiny):
    noisy = np.stack([1 - 0.9 * (tiny["labels"].array == 3) - 0.05, 0.9 * (tiny["labels"].array == 3) + 0.05], -1)
    fused = ProbabilityMap.from_dense(noisy, [0, 3], tiny["image"].affine)
    method = next(m for m in atlasseg.list_methods("refinement") if m.name == "markov_field").function
    expected = method(tiny["image"], fused, beta=0.4)
    found = atlasseg.refine(tiny["image"].to_nibabel(), fused, "markov_field", beta=0.4)
    np.testing.assert_array_equal(found.dense(), expected.dense())
    assert np.abs(found.dense() - fused.dense()).max() > 0.01
    certain = atlasseg.refine(tiny["image"], tiny["labels"])
    np.testing.assert_array_equal(certain.mode, tiny["labels"].array)
    with pytest.raises(InputError, match="nowhere"):
        atlasseg.refine(tiny["image"], fused, "corrective_learning", model="nowhere")


# --------------------------------------------------------------------------------------------------- segment, compare


def test_segment_reads_the_initial_transforms_of_the_recipe(dataset, tmp_path):
    initial = f'registration.initial="{tmp_path}/{{target}}_{{atlas}}.mat"'
    recipe = atlasseg.as_recipe("majority", overrides=[*AFFINE_ONLY, initial])
    with pytest.raises(InputError, match=r"head3_head0\.mat"):
        atlasseg.segment(dataset / "targets/images/head3.nii.gz", dataset / "atlases", recipe)


def test_segment_is_the_pipeline_for_every_form(dataset, heads):
    library = atlasseg.read_library(dataset / "atlases")
    recipe = atlasseg.as_recipe("majority", overrides=AFFINE_ONLY)
    atlases = [library.read(id_) for id_ in library.ids]
    scan = atlasseg.read_image(dataset / "targets/images/head3.nii.gz")
    expected = segment_by_recipe(scan, atlases, recipe)
    for given_scan, given_library, given_recipe, overrides in (
        (dataset / "targets/images/head3.nii.gz", library, recipe, ()),
        (scan, dataset / "atlases", "majority", AFFINE_ONLY),
        (scan, atlases, recipe, ()),
    ):
        found = atlasseg.segment(given_scan, given_library, given_recipe, overrides=overrides)
        np.testing.assert_array_equal(found.labels.array, expected.labels.array)
    many = atlasseg.segment(dataset / "targets", library, recipe)
    assert len(many) == 2
    np.testing.assert_array_equal(many[0].labels.array, expected.labels.array)
    result = atlasseg.evaluate(many, [dataset / "targets/labels/head3.nii.gz", heads[4].labels])
    assert len(result) == 2 and result[0].mean()["dice"] > 0.3
    stages = []
    atlasseg.segment(scan, atlases, recipe, progress=stages.append)
    assert stages == ["preprocess", "register", "propagate", "check", "fuse"]
    with pytest.raises(InputError, match="progress: expected a function"):
        atlasseg.segment(scan, atlases, recipe, progress="yes")
    with pytest.raises(InputError, match=r"expected no table \[tissue\], got one. Use it with atlasseg.tissue"):
        atlasseg.segment(scan, atlases, "tissue")


def test_no_atlas_votes_on_itself(dataset, caplog):
    library = atlasseg.read_library(dataset / "atlases")
    recipe = atlasseg.as_recipe("majority", overrides=AFFINE_ONLY)
    for scan in (library.read("head1"), dataset / "atlases/images/head1.nii.gz"):
        found = atlasseg.segment(scan, library, recipe)
        assert [c.atlas.id for c in found.alignment.candidates] == ["head0", "head2"]
    renamed = atlasseg.read_image(dataset / "atlases/images/head1.nii.gz").with_array(library.read("head1").image.array)
    object.__setattr__(renamed, "name", "somebody")
    with caplog.at_level("INFO", "atlasseg"):
        found = atlasseg.segment(renamed, library, recipe)
    assert [c.atlas.id for c in found.alignment.candidates] == ["head0", "head2"]
    assert "somebody: atlas head1 is the scan itself and is left out" in caplog.text
    with pytest.raises(InputError, match="head1: expected atlases other than the scan itself, got none"):
        atlasseg.segment(library.read("head1"), library.only(["head1"]), recipe)


def test_compare_in_memory_says_what_segment_and_evaluate_say(dataset):
    library = atlasseg.read_library(dataset / "atlases")
    targets = dataset / "targets"
    told = []
    found = atlasseg.compare(
        targets,
        library,
        ["majority", "staple", "majority+markov_field"],
        "majority",
        overrides=AFFINE_ONLY,
        progress=told.append,
    )
    assert list(found.scores.columns) == ["majority", "staple", "majority+markov_field"]
    assert list(found.scores.index) == ["head3", "head4"] and len(found.tests) == 3
    assert told[0] == "head3: preprocess" and "head4: fuse" in told and "head4: refine" in told
    alone = atlasseg.segment(targets / "images/head4.nii.gz", library, "staple", overrides=AFFINE_ONLY)
    dice = atlasseg.evaluate(alone, targets / "labels/head4.nii.gz").mean()["dice"]
    assert found.scores.loc["head4", "staple"] == pytest.approx(dice)
    assert set(found.overview().columns) == {"method", "Dice", "sd", "worst", "HD95 (mm)", "seconds", "mean rank"}
    assert repr(found).startswith("mean over 2 targets\n") and "<table" in found._repr_html_()
    assert isinstance(found.metrics, pd.DataFrame) and set(found.metrics["target"]) == {"head3", "head4"}
    itself = atlasseg.compare(library, library, ["majority", "staple"], overrides=AFFINE_ONLY)
    assert list(itself.scores.index) == ["head0", "head1", "head2"] and itself.scores.to_numpy().max() < 1
    with pytest.raises(InputError, match="at least two different methods to compare, got"):
        atlasseg.compare(targets, library, ["majority", "majority"])


# --------------------------------------------------------------------------------------------------------- tissue


@pytest.fixture(scope="module")
def brain():
    return phantoms.tissue((24, 28, 20), spacing_mm=(2.2, 2.0, 2.6))


def test_tissue_is_the_model_one_or_many_with_modalities_and_priors(brain):
    scan = brain.image
    inside = Mask(brain.truth.array > 0, brain.truth.affine)
    model = next(m for m in atlasseg.list_methods("tissue") if m.name == "mixture").function
    expected = model(scan, inside, None, classes=3)
    for given in (scan, scan.to_nibabel(), scan.to_sitk(), scan.to_ants()):
        found = atlasseg.tissue(given, "mixture", mask=inside, classes=3)
        np.testing.assert_array_equal(found.labels.array, expected.labels.array)
    many = atlasseg.tissue([scan, scan], "mixture", mask=[inside, inside])
    assert len(many) == 2
    coarse = resample(scan, Grid((12, 14, 10), scan.affine @ np.diag([2, 2, 2, 1])))
    both = atlasseg.tissue(scan, "mixture", mask=inside, modalities=[coarse])
    assert both.means.shape == (3, 2)
    stacked, reached = stack_channels([scan, coarse])
    direct = model(stacked, inside.with_array(inside.array & reached.array), None, classes=3)
    np.testing.assert_array_equal(both.labels.array, direct.labels.array)
    fractions = np.where(inside.array[..., None], 1 / 3, 0.0) * np.ones(3)
    fractions = np.concatenate([1 - fractions.sum(-1, keepdims=True), fractions], -1)
    prior = ProbabilityMap.from_dense(fractions, [0, 1, 2, 3], scan.affine)
    guided = atlasseg.tissue(scan, "mixture", mask=inside, prior=prior)
    assert guided.means.shape == (3, 1)
    with pytest.raises(InputError, match="classes: expected the number of classes of the prior"):
        atlasseg.tissue(scan, "mixture", mask=inside, prior=prior, classes=2)
    with pytest.raises(InputError, match="modalities: expected a single scan"):
        atlasseg.tissue([scan, scan], modalities=[coarse])
    with pytest.raises(GeometryError, match="mask: expected the grid of the scan"):
        atlasseg.tissue(scan, mask=Mask(np.ones((3, 3, 3)), np.eye(4)))
    with pytest.raises(GeometryError, match="not overlap"):
        atlasseg.tissue(
            scan, mask=inside, modalities=[Image(np.zeros((3, 3, 3)), np.diag([1, 1, 1, 1]) + np.eye(4, k=3) * 1e4)]
        )


# ------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("form", ["path", "text", "nibabel", "sitk", "ants", "ours"])
def test_evaluate_takes_every_form(form, forms, heads, tmp_path):
    labels = forms[form][1]
    result = atlasseg.evaluate(labels, heads[0].labels)
    assert result.mean()["dice"] == 1 and len(result["dice"]) == len(set(heads[0].labels.values.tolist()) - {0})
    (tmp_path / "labels.tsv").write_text("index\tname\n2\twhite matter\n")
    named = atlasseg.evaluate([labels], [heads[0].labels], table=tmp_path / "labels.tsv")
    assert named[0]["dice", "white matter"] == 1
    with pytest.raises(InputError, match="surface_tolerance_mm: expected a number of mm, got the text '1'"):
        atlasseg.evaluate(labels, labels, surface_tolerance_mm="1")
    with pytest.raises(InputError, match="groups: expected a dictionary"):
        atlasseg.evaluate(labels, labels, groups=[1, 2])


def test_nibabel_images_of_other_kinds_and_mgh(tiny, tmp_path):
    mgh = nibabel.MGHImage(tiny["labels"].array, tiny["labels"].affine)
    nibabel.save(mgh, tmp_path / "labels.mgz")
    assert atlasseg.evaluate(nibabel.load(tmp_path / "labels.mgz"), tiny["labels"]).mean()["dice"] == 1
