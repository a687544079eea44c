import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from threadpoolctl import threadpool_limits

from atlasseg import phantoms
from atlasseg.errors import GeometryError, InputError
from atlasseg.files import seal
from atlasseg.labels import Label, LabelTable
from atlasseg.refinement._features import Scene, Window, list_oriented_offsets
from atlasseg.refinement.corrective_learning import correct, read_model, refine, train, write_model
from atlasseg.volume import Image, LabelMap, ProbabilityMap

AXES = ("RAS", "LAS", "SRA", "PIR")
QUICK = {"samples_per_label": 6000, "iterations": 25, "leaves": 7, "intensity_radius_voxels": 1}
MADE = {"fusion": {"method": {"method": "joint", "beta": 2.0}}, "atlases": {"a": ["1f"], "b": ["2e"]}}


@pytest.fixture(scope="module")
def examples(made):
    return [made(axes, seed, scale=10.0**seed) for seed, axes in enumerate(AXES[:3])]


@pytest.fixture(scope="module")
def model(examples):
    with threadpool_limits(1):
        return train(examples, **QUICK, provenance=MADE, record={"recipe": "text", "versions": {"atlasseg": "0"}})


@pytest.fixture
def folder(model, tmp_path):
    write_model(model, tmp_path / "model", table=LabelTable((Label(5, "left thing"),)))
    return tmp_path / "model"


def test_a_systematic_error_is_mended_in_an_orientation_never_seen(model, made, right):
    new = made(AXES[3], 9, scale=0.01)
    mended = correct(new.target, new.fused, model)
    assert right(new.fused, new) < 0.75
    assert right(mended, new) > 0.9
    assert mended.grid.matches(new.fused.grid)
    assert mended.label_values.tolist() == new.fused.label_values.tolist() == [0, 5, 700]
    np.testing.assert_allclose(np.add.reduceat(mended.values, mended.offsets[:-1]), 1, atol=1e-5)


def test_what_is_certain_all_around_does_not_change(model, made):
    new = made("RAS", 4)
    mended = correct(new.target, new.fused, model)
    scene = Scene(new.target, new.fused, model.window)
    asked = np.zeros(new.fused.mode.size, bool)
    for label in (0, 5, 700):
        asked[scene.region(label).voxels] = True
    assert 0 < asked.sum() < asked.size
    changed = np.abs(mended.dense() - new.fused.dense()).max(-1).reshape(-1) > 1e-6
    assert changed[asked].any() and not changed[~asked].any()


def test_probabilities_are_the_classifiers_shared_out(model, made):
    new = made("LAS", 5)
    scene = Scene(new.target, new.fused, model.window)
    weights = new.fused.dense().reshape(-1, 3).astype(np.float64)
    for column, label in enumerate((0, 5, 700)):
        region = scene.region(label)
        features = scene.features(region, region.voxels)
        weights[region.voxels, column] = model.classifiers[label].probability(features)
    expected = weights / weights.sum(-1, keepdims=True)
    found = correct(new.target, new.fused, model).dense().reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32


def test_same_seed_same_model_whatever_the_order_and_the_threads(examples, made):
    few = {**QUICK, "iterations": 4, "samples_per_label": 900}
    with threadpool_limits(1):
        model = train(examples, **few)
    with threadpool_limits(2):
        again = train(examples[::-1], **few)
    for label, trees in model.classifiers.items():
        for name in ("feature", "threshold", "left", "right", "value"):
            assert np.array_equal(getattr(trees, name), getattr(again.classifiers[label], name)), (label, name)
    new = made("RAS", 4)
    first, second = (correct(new.target, new.fused, each) for each in (model, again))
    assert np.array_equal(first.values, second.values) and np.array_equal(first.mode, second.mode)


@pytest.mark.parametrize("axes", AXES)
def test_features_by_the_definition(axes, made):
    each = made(axes, 2)
    two = np.stack([each.target.array, each.target.array**2], -1)
    scene = Scene(Image(two, each.target.affine), each.fused, Window(1, 1, 1, (2, 3)))
    region = scene.region(700)
    voxels = region.voxels[::97]
    found = scene.features(region, voxels)
    assert found.shape == (voxels.size, scene.window.columns(2)) == (voxels.size, 2 * 27 + 2 * 27 + 2 * 7 * 4 + 3)
    there = two.reshape(-1, 2)[region.voxels]
    scaled = (two - there.mean(0)) / there.std(0)
    own = np.argwhere(each.fused.mode == 700) @ each.target.affine[:3, :3].T + each.target.affine[:3, 3]
    steps = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    coarse = {}
    for scale in (2, 3):
        smooth = [ndimage.gaussian_filter(v, scale / 3, mode="nearest") for v in np.moveaxis(scaled, 3, 0)]
        inside = [ndimage.gaussian_filter(each.fused.probability(v), scale / 3, mode="nearest") for v in (0, 700)]
        coarse[scale] = np.stack([*smooth, *inside], -1)
    cross = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    for row, voxel in zip(found, voxels, strict=True):
        at = np.array(np.unravel_index(voxel, two.shape[:3]))
        intensities, inside, outside = [], [], []
        for patient in np.ndindex(3, 3, 3):
            step = [(patient[steps[a][0]] - 1) * steps[a][1] for a in axes]
            near = tuple(np.clip(at + step, 0, np.array(two.shape[:3]) - 1))
            intensities += scaled[near].tolist()
            inside.append(each.fused.probability(700)[near])
            outside.append(each.fused.probability(0)[near])
        place = each.target.affine[:3, :3] @ at + each.target.affine[:3, 3]
        np.testing.assert_allclose(row[:54], intensities, atol=1e-4)
        np.testing.assert_array_equal(row[54:108], inside + outside)
        begin = 108
        for scale, volumes in coarse.items():
            seen = []
            for patient in cross:
                step = [scale * patient[steps[a][0]] * steps[a][1] for a in axes]
                seen.append(volumes[tuple(np.clip(at + step, 0, np.array(two.shape[:3]) - 1))])
            wide, own_label = np.array(seen)[:, :3], np.array(seen)[:, 3]
            np.testing.assert_allclose(row[begin : begin + 21], wide.reshape(-1), atol=1e-4)
            np.testing.assert_allclose(row[begin + 21 : begin + 28], own_label, atol=1e-5)
            begin += 28
        np.testing.assert_allclose(row[begin:], (place - own.mean(0)) / own.std(0), atol=1e-4)


def test_offsets_follow_the_patient():
    grid = phantoms.tilted_grid((5, 6, 7), spacing_mm=(1, 2, 3), angles_degrees=(3, -4, 2), axes="PIR")
    offsets = list_oriented_offsets(grid.affine, 1)
    along = offsets @ grid.affine[:3, :3].T
    expected = [(r, a, s) for r in (-1, 0, 1) for a in (-1, 0, 1) for s in (-1, 0, 1)]
    for step, wanted in zip(along, expected, strict=True):
        assert np.array_equal(np.sign(np.round(step / 0.6)), wanted)


def test_read_as_written(model, folder, made):
    found = read_model(folder)
    assert {path.name for path in folder.iterdir()} == {"SHA256SUMS", "model.json", "trees.npz", "labels.tsv"}
    assert (found.labels, found.channels, found.window) == (model.labels, 1, model.window)
    assert found.provenance == MADE and found.record["samples"] == model.record["samples"]
    new = made("RAS", 4)
    by_file, by_memory = refine(new.target, new.fused, model=folder, provenance=MADE), correct(*new[1:3], model)
    assert np.array_equal(by_file.values, by_memory.values) and np.array_equal(by_file.labels, by_memory.labels)
    assert "left thing" in (folder / "labels.tsv").read_text()
    header = json.loads((folder / "model.json").read_text())
    assert header["recipe"] == "text" and header["training"]["seed"] == 0


def test_what_differs_from_training_is_named(folder, made):
    new = made("RAS", 4)
    other = json.loads(json.dumps(MADE))
    other["fusion"]["method"]["beta"] = 4.0
    other["atlases"] = {"a": ["ff"], "c": ["3d"]}
    with pytest.raises(InputError) as told:
        refine(new.target, new.fused, model=folder, provenance=other)
    for part in (str(folder), "'beta': 2.0", "'beta': 4.0", "a has other content", "b is missing", "c was not there"):
        assert part in str(told.value)


def test_bad_requests(model, folder, examples, caplog, made):
    new = made("RAS", 4)
    with pytest.raises(InputError, match="expected a model of corrective learning, got none"):
        refine(new.target, new.fused, model=folder / "nowhere")
    unknown = replace(new.fused, label_values=np.array([0, 5, 9, 700], np.int32))
    with pytest.raises(InputError, match="expected labels of the training, got others: 9"):
        correct(new.target, unknown, model)
    with pytest.raises(InputError, match="expected 1 channels as in the training, got 2"):
        correct(Image(np.stack([new.target.array] * 2, -1), new.target.affine), new.fused, model)
    with pytest.raises(GeometryError, match="different grids"):
        correct(made("LAS", 4).target, new.fused, model)
    larger = np.diag([1.8, 1.8, 1.8, 1.0]) @ new.target.affine
    correct(replace(new.target, affine=larger), replace(new.fused, affine=larger), model)
    assert "times their size" in caplog.text
    with pytest.raises(InputError, match="examples: expected at least one"):
        train([])
    with pytest.raises(InputError, match="dilation of 1 or more, got 2, 1 and 0"):
        train(examples, dilation_voxels=0)
    with pytest.raises(InputError, match=r"expected scales of 1 or more.*got \(0,\) and 0.2"):
        train(examples, scales_voxels=(0,))
    two = examples[0]._replace(target=Image(np.stack([examples[0].target.array] * 2, -1), examples[0].target.affine))
    with pytest.raises(InputError, match="same channels"):
        train([two, examples[1]])


def test_damaged_files_are_refused_and_nothing_is_unpickled(folder, tmp_path):
    header = json.loads((folder / "model.json").read_text())

    def rewritten(**changes):
        (folder / "model.json").write_text(json.dumps({**header, **changes}))
        seal(folder, ["model.json", "trees.npz", "labels.tsv"])

    rewritten(method="unet")
    with pytest.raises(InputError, match="expected a model of 'corrective_learning' in format 3, got one of 'unet'"):
        read_model(folder)
    rewritten(window={"far": 3})
    with pytest.raises(InputError, match="damaged"):
        read_model(folder)
    rewritten(channels=0)  # fewer columns than the trees look at
    with pytest.raises(InputError, match="expected valid trees"):
        read_model(folder)
    content = (folder / "trees.npz").read_bytes()
    (folder / "trees.npz").write_bytes(content[:-40])
    with pytest.raises(InputError, match=r"trees.npz: damaged, its bytes are not those that were written: train"):
        read_model(folder)
    with (folder / "trees.npz").open("wb") as file:
        np.savez(file, labels=np.array([Unsafe(tmp_path / "ran")], object))
    rewritten()
    with pytest.raises(InputError, match="damaged"):
        read_model(folder)
    assert not (tmp_path / "ran").exists()


class Unsafe:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_negative_labels_are_learned_too(examples):
    few = {**QUICK, "iterations": 2, "samples_per_label": 900}
    negative = [
        each._replace(
            fused=ProbabilityMap.from_dense(each.fused.dense()[..., [2, 0, 1]], [-7, 0, 5], each.fused.affine),
            truth=LabelMap(np.where(each.truth.array == 700, -7, each.truth.array), each.truth.affine),
        )
        for each in examples
    ]
    model = train(negative, **few)
    assert set(model.classifiers) == {-7, 0, 5}
    assert sum(model.record["samples"]["-7"].values()) == 900  # drawn, not all


def test_too_few_samples_of_every_label(examples):
    with pytest.raises(InputError, match="expected a label with at least 30 samples of it"):
        train(examples, **{**QUICK, "samples_per_label": 30})


def test_rare_and_not_annotated_labels_stay_as_fused(examples, made):
    rare = [
        each._replace(fused=replace(each.fused, label_values=np.array([0, 5, 9, 700], np.int32))) for each in examples
    ]
    blind = [rare[0], *(each._replace(not_annotated=frozenset({700})) for each in rare[1:])]
    model = train(blind, **QUICK)
    samples = model.record["samples"]
    assert 9 not in model.classifiers and samples["9"] == {"of it": 0, "others": 0}
    assert sum(samples["700"].values()) < sum(samples["5"].values()) / 2
    assert sum(samples["0"].values()) < sum(samples["5"].values())  # what is background is known in one alone
    none = train([each._replace(not_annotated=frozenset({700})) for each in rare], **QUICK)
    assert set(none.classifiers) == {5}
    new = made("RAS", 4)
    found = correct(new.target, new.fused, none).dense()
    kept = found[..., 2] / np.maximum(found[..., [0, 2]].sum(-1), 1e-9)
    was = new.fused.dense()
    asked = was[..., [0, 2]].sum(-1) > 0.01
    expected = was[..., 2] / np.maximum(was[..., [0, 2]].sum(-1), 1e-9)
    np.testing.assert_allclose(kept[asked], expected[asked], atol=1e-4)
