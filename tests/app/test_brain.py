"""``atlasseg brain``, and brain masks as a stage of recipes and of ``atlasseg tissue``, on phantoms of whole heads."""

import json
import re

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

import atlasseg
from atlasseg import io
from atlasseg.cli import app
from atlasseg.phantoms import whole_head
from atlasseg.pipeline import preprocess_scans
from atlasseg.recipe import parse_recipe
from atlasseg.volume import LabelMap


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.fixture(scope="module")
def heads():
    return [whole_head(f"head{n}", seed=n, subsamples=1) for n in (1, 2, 50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, heads):
    root = tmp_path_factory.mktemp("heads")
    for head, part in zip(heads, ("atlases", "atlases", "targets"), strict=True):
        io.write_image(head.image, root / part / "images" / f"{head.id}.nii.gz")
        io.write_label_map(head.labels, root / part / "labels" / f"{head.id}.nii.gz")
    return root


def test_brain_writes_mask_probability_table_and_page(folder, heads, tmp_path):
    status, output = call("brain", folder / "targets", "--atlases", folder / "atlases", "--out", tmp_path)
    assert status == 0, output
    assert "masks of the brain" in output and "head50" in output
    written = tmp_path / "head50"
    truth = heads[2].labels.array > 0
    mask = nibabel.load(written / "head50_desc-brain_mask.nii.gz")
    np.testing.assert_allclose(mask.affine, heads[2].image.affine, atol=1e-4)
    found = np.asarray(mask.dataobj) != 0
    assert dice(found, truth) > 0.96
    probability = np.asarray(nibabel.load(written / "head50_desc-brain_probseg.nii.gz").dataobj)
    assert probability.min() >= 0 and probability.max() <= 1 and dice(probability > 0.5, found) > 0.99
    sidecar = json.loads((written / "head50_desc-brain_mask.json").read_text())
    assert sidecar["Atlases"] == ["head1", "head2"] and sidecar["Type"] == "Brain" and sidecar["CutOff"] == {}
    assert sidecar["VolumeMl"] == pytest.approx(found.sum() * 1.6 * 1.7 * 1.8 / 1000, rel=1e-3)
    table = (written / "head50_atlases.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["atlas", "similarity", "used", "reason"] and len(table) == 3
    scores = (written / "head50_metrics.tsv").read_text()
    assert f"{dice(found, truth):.6g}"[:6] in scores
    page = (written / "head50.html").read_text()
    assert "Mask report" in page and f"{dice(found, truth):.4f}" in page and "2 of 2" in page


def test_an_organ_of_another_name_from_masks_alone(folder, heads, tmp_path):
    for head in heads[:2]:
        io.write_image(head.image, tmp_path / "lib" / "images" / f"{head.id}.nii.gz")
        left = np.isin(head.labels.array, (2, 3))
        io.write_mask(atlasseg.Mask(left, head.image.affine), tmp_path / "lib" / "masks" / f"{head.id}.nii.gz")
    scan = folder / "targets" / "images" / "head50.nii.gz"
    status, output = call("brain", scan, "--atlases", tmp_path / "lib", "--organ", "left hemisphere", "--no-report",
                          "--out", tmp_path / "out")  # fmt: skip
    assert status == 0, output
    assert not (tmp_path / "out" / "head50" / "head50.html").exists()
    found = (
        np.asarray(nibabel.load(tmp_path / "out" / "head50" / "head50_desc-lefthemisphere_mask.nii.gz").dataobj) != 0
    )
    inside = np.isin(heads[2].labels.array, (2, 3, 4, 10, 11, 12, 17))  # holes are filled
    assert dice(found, inside) > 0.9


def test_a_library_without_brains_is_an_error_that_names_the_file(folder, heads, tmp_path):
    for head in heads[:2]:
        io.write_image(head.image, tmp_path / "lib" / "images" / f"{head.id}.nii.gz")
        nothing = np.zeros(head.image.shape, np.int32) if head.id == "head2" else head.labels.array
        io.write_label_map(LabelMap(nothing, head.image.affine), tmp_path / "lib" / "labels" / f"{head.id}.nii.gz")
    scan = folder / "targets" / "images" / "head50.nii.gz"
    status, output = call("brain", scan, "--atlases", tmp_path / "lib", "--out", tmp_path / "out")
    assert status == 2
    assert "lib/labels/head2.nii.gz: expected an organ in atlas 'head2'" in output and "background alone" in output
    status, output = call("brain", scan, "--atlases", folder / "atlases", "--organ", "-", "--out", tmp_path / "out")
    assert status == 2 and "--organ: expected a name with letters, got '-'" in output


def test_a_scan_is_not_its_own_atlas(folder, tmp_path):
    scan = folder / "atlases" / "images" / "head1.nii.gz"
    status, output = call("brain", scan, "--atlases", folder / "atlases", "--out", tmp_path / "out")
    assert status == 0, output
    sidecar = json.loads((tmp_path / "out" / "head1" / "head1_desc-brain_mask.json").read_text())
    assert sidecar["Atlases"] == ["head2"]


RECIPE = {
    "preprocessing": {"steps": ["intensity"], "mask": "brain", "mask_margin_mm": 3.0,
                      "intensity": {"scale": "zscore", "low_percent": 0.0, "high_percent": 100.0}},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority"},
}  # fmt: skip


def test_a_recipe_preprocesses_and_registers_inside_the_brain(heads):
    recipe = parse_recipe(RECIPE)
    atlases = [head.atlas for head in heads[:2]]
    scans = preprocess_scans(heads[2].image, atlases, None, recipe.preprocessing)
    brain = heads[2].labels.array > 0
    assert dice(scans.target_mask.array, brain) < 0.9  # wider than the brain
    assert (scans.target_mask.array & brain).sum() > 0.99 * brain.sum()
    inside = scans.atlases[0].image.array[heads[0].labels.array > 0]
    assert inside.mean() == pytest.approx(0, abs=1e-4) and inside.std() == pytest.approx(1, abs=1e-4)
    assert scans.target.array[brain].mean() == pytest.approx(0, abs=0.05)
    near = ~scans.atlas_masks[1].array
    assert not (near & (heads[1].labels.array > 0)).any() and near.any()


def test_segment_by_a_recipe_with_a_brain_mask(heads):
    recipe = parse_recipe({**RECIPE, "preprocessing": {**RECIPE["preprocessing"], "crop_margin_mm": 4.0}})
    result = atlasseg.segment(heads[2].image, [head.atlas for head in heads[:2]], recipe)
    assert result.labels.array.shape == heads[2].image.shape
    assert dice(result.labels.array > 0, heads[2].labels.array > 0) > 0.9
    filled = parse_recipe(
        {**RECIPE, "preprocessing": {**RECIPE["preprocessing"], "crop_margin_mm": 4.0, "fill_mask": True}}
    )
    mask = atlasseg.extract_brain(heads[2].image, [head.atlas for head in heads[:2]]).mask.array
    labels = atlasseg.segment(heads[2].image, [head.atlas for head in heads[:2]], filled).labels.array
    np.testing.assert_array_equal(labels > 0, mask)
    same = mask & (result.labels.array > 0)
    np.testing.assert_array_equal(labels[same], result.labels.array[same])
    empty = atlasseg.Mask(np.zeros(heads[2].image.shape, bool), heads[2].image.affine)
    with pytest.raises(atlasseg.errors.InputError, match="head50: expected a mask that shares voxels with the brain"):
        preprocess_scans(heads[2].image, [heads[0].atlas], empty, recipe.preprocessing)
    with pytest.raises(atlasseg.errors.InputError, match="fill_mask: expected mask = \"brain\", got 'given'"):
        parse_recipe({**RECIPE, "preprocessing": {"fill_mask": True}})
    with pytest.raises(atlasseg.errors.InputError, match="mask_margin_mm"):
        parse_recipe({**RECIPE, "preprocessing": {"mask": "brain", "mask_margin_mm": -1.0}})


def test_tissue_finds_its_mask_from_a_library(folder, heads, tmp_path):
    scan = folder / "targets" / "images" / "head50.nii.gz"
    status, output = call("tissue", scan, "--model", "mixture", "--classes", 3, "--atlases", folder / "atlases",
                          "--out", tmp_path)  # fmt: skip
    assert status == 0, output
    labels = np.asarray(nibabel.load(tmp_path / "head50" / "head50_desc-mixture_dseg.nii.gz").dataobj)
    assert dice(labels > 0, heads[2].labels.array > 0) > 0.96
    status, output = call("tissue", scan, "--set", "classes=3", "--recipe", tmp_path / "r.toml", "--out", tmp_path)
    assert status == 2
    (tmp_path / "r.toml").write_text('[preprocessing]\nmask = "brain"\n[tissue]\nmethod = "mixture"\n')
    status, output = call("tissue", scan, "--recipe", tmp_path / "r.toml", "--out", tmp_path)
    assert status == 2 and 'expected atlases for [preprocessing] mask = "brain", got none' in output
