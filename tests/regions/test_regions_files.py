"""The command on files: what it writes, and what it says when something is wrong."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.cli import app
from atlasseg.recipe import parse_recipe
from atlasseg.volume import Image, LabelMap, ProbabilityMap

AFFINE = np.array([[1.1, 0.2, 0, 5], [-0.3, 1.4, 0.1, -7], [0.0, 0.1, 2.5, 30], [0, 0, 0, 1.0]])


@pytest.fixture
def scan(tmp_path):
    truth = np.zeros((13, 15, 9), np.int32)
    truth[3:9, 4:12, 2:7] = 4
    array = 50.0 * (truth == 4) + np.random.default_rng(0).normal(100, 2, truth.shape)
    io.write_image(Image(array, AFFINE), tmp_path / "scan.nii.gz")
    truth[12, 14, 8] = 4
    io.write_label_map(LabelMap(truth, AFFINE), tmp_path / "labels.nii.gz")
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, ["regions", *map(str, arguments)])


@pytest.mark.parametrize("method", ["split_and_merge", "growing", "watershed"])
def test_regions_table_and_pictures(scan, method):
    result = invoke(
        scan / "scan.nii.gz", "--method", method, "--out", scan / "r.nii.gz", "--table", scan / "r.tsv",
        "--pictures", scan / "pictures",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    regions = io.read_label_map(scan / "r.nii.gz")
    np.testing.assert_allclose(regions.affine, AFFINE, atol=1e-5)
    table = pd.read_csv(scan / "r.tsv", sep="\t")
    assert table["region"].tolist() == regions.values[regions.values != 0].tolist()
    assert table["voxels"].sum() == (regions.array != 0).sum()
    inside = table.loc[table["region"] == regions.array[6, 8, 4]].iloc[0]
    assert abs(inside["mean"] - 150) < 2
    drawn = {p.name for p in (scan / "pictures").iterdir()}
    expected = {"scan_borders.png"}
    if method != "growing":
        expected |= {"scan_dendrogram.png"}
    if method == "split_and_merge":
        expected |= {"scan_blocks.png"}
    assert drawn == expected
    assert all((scan / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_a_scan_with_nan_is_cut_with_a_warning(scan):
    array = io.read_image(scan / "scan.nii.gz").array.copy()
    array[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(array, AFFINE), scan / "holed.nii.gz")
    result = invoke(scan / "holed.nii.gz", "--out", scan / "r.nii.gz")
    assert result.exit_code == 0, result.output
    said = " ".join((result.output + (result.stderr if result.stderr_bytes else "")).split())
    assert "NaN or infinite" in said
    assert io.read_label_map(scan / "r.nii.gz").array.min() == 1


def test_segmentation_made_consistent_with_instances_and_masks(scan):
    result = invoke(
        scan / "scan.nii.gz", "--segmentation", scan / "labels.nii.gz", "--out", scan / "fit.nii.gz",
        "--table", scan / "changes.tsv", "--fill-holes", "all", "--largest-part", "4",
        "--instances", scan / "i.nii.gz", "--masks", scan / "masks",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    fit = io.read_label_map(scan / "fit.nii.gz").array
    assert fit[12, 14, 8] == 0 and (fit == 4).sum() == 6 * 8 * 5
    assert pd.read_csv(scan / "changes.tsv", sep="\t").set_index("label")["islands"].to_dict() == {0: 0, 4: 1}
    np.testing.assert_array_equal(io.read_label_map(scan / "i.nii.gz").array, fit == 4)
    np.testing.assert_array_equal(io.read_mask(scan / "masks" / "fit_label-4_mask.nii.gz").array, fit == 4)


def test_probabilities_are_taken_as_such(scan):
    labels = io.read_label_map(scan / "labels.nii.gz").array
    dense = np.stack([labels == 0, labels == 4], axis=-1) * 0.8 + 0.1
    io.write_probability_map(ProbabilityMap.from_dense(dense, (0, 4), AFFINE), scan / "p.nii.gz")
    result = invoke(scan / "scan.nii.gz", "--segmentation", scan / "p.nii.gz", "--out", scan / "f.nii.gz", "--no-votes")
    assert result.exit_code == 0, result.output
    labels[12, 14, 8] = 0  # the island
    np.testing.assert_array_equal(io.read_label_map(scan / "f.nii.gz").array, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "significnce=0.1"], "did you mean 'significance'"),
        (["--set", "significance=high"], "significance"),
        (["--set", "regions=10000000"], "got 10000000"),
        (["--seeds", "labels.nii.gz"], "takes no seeds"),
        (["--masks", "m"], "--segmentation"),
        (["--segmentation", "labels.nii.gz", "--pictures", "p"], "expected no --segmentation"),
        (["--segmentation", "labels.nii.gz", "--fill-holes", "four"], "got 'four'"),
        (["--segmentation", "labels.nii.gz", "--fill-holes", "9"], "labels among 4, got 9"),
        (["--segmentation", "labels.nii.gz", "--masks", "m"], "--instances"),
    ],
)
def test_what_cannot_be_done_is_said_with_status_2(scan, monkeypatch, arguments, message):
    monkeypatch.chdir(scan)
    result = invoke("scan.nii.gz", "--out", "o.nii.gz", *arguments)
    assert result.exit_code == 2
    assert message in " ".join((result.output + (result.stderr if result.stderr_bytes else "")).split())


def test_grids_that_differ_are_refused(scan):
    io.write_label_map(LabelMap(np.ones((3, 4, 5)), AFFINE), scan / "other.nii.gz")
    for option, extra in (("--segmentation", ()), ("--seeds", ("--method", "growing"))):
        result = invoke(scan / "scan.nii.gz", "--out", scan / "o.nii.gz", option, scan / "other.nii.gz", *extra)
        assert result.exit_code == 2 and "grid" in result.output


def test_recipe_has_a_regions_table():
    fusion = {"fusion": {"method": "majority"}}
    assert parse_recipe(fusion).regions is None
    without = parse_recipe({**fusion, "regions": {"fill_holes": "all", "largest_part": [4, 5]}}).regions
    assert without.method is None and without.fill_holes == "all" and without.largest_part == (4, 5)
    tables = {**fusion, "regions": {"method": "split_and_merge", "split_and_merge": {"merge_threshold": 3.0}}}
    voting = parse_recipe(tables).regions
    assert voting.method.name == "split_and_merge" and voting.method.arguments == {"merge_threshold": 3.0}
