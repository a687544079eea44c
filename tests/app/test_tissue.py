"""The tissue command on files: what it writes, priors of every kind, several modalities, and what it refuses."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.cli import app
from atlasseg.phantoms import tissue as phantom
from atlasseg.recipe import parse_recipe
from atlasseg.resampling import resample
from atlasseg.transforms import Affine
from atlasseg.volume import Image, LabelMap, Mask

QUICK = ("--model", "mixture", "--set", "partial_volume=false")


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def dice(found, truth):
    return [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def brain():
    return phantom((34, 38, 30), noise_percent=2, bias_percent=20, seed=4)


@pytest.fixture
def folder(brain, tmp_path):
    """A scan, its mask, and a prior a tissue: the true fractions, blurred, outside being nothing."""
    io.write_image(brain.image, tmp_path / "brain.nii.gz")
    io.write_mask(brain.mask, tmp_path / "mask.nii.gz")
    for n, name in enumerate(("csf", "gm", "wm")):
        io.write_image(Image(brain.fractions[..., n] * 0.8 + 0.06 * brain.mask.array, brain.image.affine),
                       tmp_path / f"{name}.nii.gz")  # fmt: skip
    return tmp_path


def test_it_writes_everything_on_the_scans_grid(brain, folder):
    status, output = call("tissue", folder / "brain.nii.gz", "--model", "mixture", "--names", "CSF,GM,WM",
                          "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    assert "CSF" in output and "results in" in output
    reason = "Names by the contrast of T1, found from the mean depths"
    assert reason in output and reason in (folder / "out/brain/brain.html").read_text()
    own = folder / "out/brain"
    stem = own / "brain_desc-mixture"
    labels = io.read_label_map(f"{stem}_dseg.nii.gz")
    assert min(dice(labels.array, brain.truth.array)) > 0.9
    probabilities = io.read_probability_map(f"{stem}_probseg.nii.gz")
    np.testing.assert_array_equal(probabilities.mode, labels.array)
    fractions = nib.load(f"{stem}_probseg.nii.gz").get_fdata()[..., 1:]
    inside = brain.mask.array
    np.testing.assert_allclose(fractions.sum(axis=3), inside, atol=1e-5)
    assert np.sqrt(((fractions - brain.fractions)[inside] ** 2).mean()) < 0.12
    scan, corrected, bias = (
        nib.load(path).get_fdata()
        for path in (folder / "brain.nii.gz", f"{stem}_corrected.nii.gz", f"{stem}_biasfield.nii.gz")
    )
    np.testing.assert_allclose(corrected * bias, scan, rtol=1e-4, atol=1e-2)
    assert (bias[~inside] == 1).all() and np.std(np.log(bias[inside])) > 0.01
    apart = np.log(bias / brain.gain)[inside]
    assert apart.std() < 0.4 * np.log(brain.gain[inside]).std()
    for name in ("dseg", "probseg", "corrected", "biasfield"):
        np.testing.assert_allclose(nib.load(f"{stem}_{name}.nii.gz").affine, brain.image.affine, atol=1e-6)
    volumes = pd.read_csv(own / "brain_volumes.tsv", sep="\t")
    assert list(volumes["name"]) == ["CSF", "GM", "WM"]
    assert volumes["mean"].is_monotonic_increasing
    voxel_mm3 = abs(np.linalg.det(brain.image.affine[:3, :3]))
    np.testing.assert_allclose(volumes["fraction_volume_mm3"].sum(), inside.sum() * voxel_mm3, rtol=1e-4)
    assert volumes["voxels"].sum() == inside.sum()
    sidecar = json.loads((own / "brain_desc-mixture_dseg.json").read_text())
    assert sidecar["Model"] == "mixture" and sidecar["Parameters"]["classes"] == 3
    page = (own / "brain.html").read_text()
    assert "Bias field" in page and "CSF" in page and page.count("<svg") > 20 and "http://" not in page.split("<svg")[0]
    assert (folder / "out/dataset_description.json").is_file()


@pytest.mark.parametrize("scale", [1, 100, 255])
def test_a_prior_of_one_file_a_class_of_any_scale(brain, folder, scale):
    for name in ("csf", "gm", "wm"):
        prior = io.read_image(folder / f"{name}.nii.gz")
        # white matter first in this prior: classes keep its order, not that of the intensities
        io.write_image(prior.with_array(prior.array * scale), folder / f"{name}.nii.gz")
    priors = [item for name in ("wm", "gm", "csf") for item in ("--prior", folder / f"{name}.nii.gz")]
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, *priors, "--out", folder / "out")
    assert status == 0, output
    found = io.read_label_map(folder / "out/brain/brain_desc-mixture_dseg.nii.gz").array
    assert min(dice(np.where(found > 0, 4 - found, 0), brain.truth.array)) > 0.95
    table = pd.read_csv(folder / "out/brain/brain_desc-mixture_dseg.tsv", sep="\t")
    assert list(table["name"]) == ["wm", "gm", "csf"]
    assert {1: "taken as" not in output, 100: "percent" in output, 255: "bytes" in output}[scale]


def test_a_prior_of_four_dimensions_on_another_grid_is_resampled_and_that_is_said(brain, folder):
    wide = brain.image.grid.cropped((-3, -2, -4), np.array(brain.image.shape) + 2)
    dense = np.stack([resample(io.read_image(folder / f"{n}.nii.gz"), wide).array for n in ("csf", "gm", "wm")], axis=3)
    nib.save(nib.Nifti1Image(dense.astype(np.float32), wide.affine), folder / "tpm.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, "--prior", folder / "tpm.nii.gz",
                          "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    page = (folder / "out/brain/brain.html").read_text()
    assert "on another grid than brain" in page and "it is resampled" in page
    found = io.read_label_map(folder / "out/brain/brain_desc-mixture_dseg.nii.gz").array
    assert min(dice(found, brain.truth.array)) > 0.95


def test_a_prior_that_does_not_overlap_fails_the_target(brain, folder):
    far = Affine.translation((400, 0, 0)).matrix @ brain.image.affine
    nib.save(nib.Nifti1Image(brain.fractions, far), folder / "far.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, "--prior", folder / "far.nii.gz",
                          "--out", folder / "out")  # fmt: skip
    assert status == 1
    assert "far.nii.gz" in output and "do not overlap" in output
    assert not (folder / "out/brain").exists()


def test_a_prior_that_is_zero_somewhere_or_sums_to_more_than_one_is_told(brain, folder):
    array = brain.fractions.copy()
    middle = tuple(n // 2 for n in brain.image.shape)
    array[middle] = 0
    array[:5] *= 1.6
    nib.save(nib.Nifti1Image(np.minimum(array, 1), brain.image.affine), folder / "odd.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, "--prior", folder / "odd.nii.gz",
                          "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    assert "the prior is 0 at 1 of" in output and "they are scaled" in output


def test_a_prior_that_is_a_library_is_registered(brain, folder):
    """The template is the brain, moved and rescaled; without registration its priors would lie elsewhere."""
    moved = Affine.translation((7.0, -5.0, 4.0)).matrix @ brain.image.affine
    library = folder / "library"
    io.write_image(Image(brain.image.array * 3, moved), library / "images/t.nii.gz")
    for n, name in enumerate(("fluid", "grey", "white")):
        io.write_image(Image(brain.fractions[..., n], moved), library / f"probabilities/{name}.nii.gz")
    (library / "labels.tsv").write_text("index\tname\n1\tfluid\n2\tgrey\n3\twhite\n")
    (folder / "r.toml").write_text(
        '[registration]\nsteps = ["affine"]\n[tissue]\nmethod = "mixture"\nprior = "library"\n'
    )
    status, output = call("tissue", folder / "brain.nii.gz", "--recipe", folder / "r.toml", "--set",
                          "partial_volume=false", "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    assert "white" in output
    found = io.read_label_map(folder / "out/brain/brain_desc-mixture_dseg.nii.gz").array
    assert min(dice(found, brain.truth.array)) > 0.9


def test_modalities_by_option_and_as_a_fourth_dimension_are_the_same(folder):
    two = phantom((30, 34, 26), noise_percent=9, bias_percent=0, seed=5,
                  brightness=((0.3, 0.7, 1.0), (1.0, 0.55, 0.3)))  # fmt: skip
    t1, t2 = (Image(two.image.channels[..., c], two.image.affine) for c in range(2))
    io.write_image(two.image, folder / "both.nii.gz")
    io.write_image(t1, folder / "t1.nii.gz")
    io.write_image(t2, folder / "t2.nii.gz")
    assert call("tissue", folder / "both.nii.gz", folder / "t1.nii.gz", *QUICK, "--out", folder / "out")[0] == 0
    alone = dice(io.read_label_map(folder / "out/t1/t1_desc-mixture_dseg.nii.gz").array, two.truth.array)
    status, output = call("tissue", folder / "t1.nii.gz", "--with", folder / "t2.nii.gz", *QUICK, "--out", folder / "o")
    assert status == 0, output
    one = nib.load(folder / "out/both/both_desc-mixture_dseg.nii.gz").get_fdata()
    np.testing.assert_array_equal(one, nib.load(folder / "o/t1/t1_desc-mixture_dseg.nii.gz").get_fdata())
    assert np.mean(dice(one, two.truth.array)) > np.mean(alone) + 0.02
    assert nib.load(folder / "o/t1/t1_desc-mixture_corrected.nii.gz").shape == (*two.image.shape, 2)
    assert "mean_2" in pd.read_csv(folder / "o/t1/t1_volumes.tsv", sep="\t")


def test_a_modality_on_another_grid_is_resampled_or_refused(brain, folder):
    shifted = brain.image.cropped((2, 1, 1), np.array(brain.image.shape) - (1, 2, 1))
    io.write_image(shifted, folder / "part.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", "--with", folder / "part.nii.gz", *QUICK,
                          "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    assert "part.nii.gz: on another grid than" in output
    far = Image(brain.image.array, Affine.translation((999, 0, 0)).matrix @ brain.image.affine)
    io.write_image(far, folder / "far.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", "--with", folder / "far.nii.gz", *QUICK,
                          "--out", folder / "out2")  # fmt: skip
    assert status == 1 and "does not overlap" in output


def test_a_target_that_fails_does_not_stop_the_others(brain, folder):
    io.write_image(Image(np.full((9, 8, 7), 5.0), np.eye(4)), folder / "flat.nii.gz")
    status, output = call("tissue", folder / "flat.nii.gz", folder / "brain.nii.gz", *QUICK, "--out", folder / "out")
    assert status == 1
    assert "failed: flat" in output and "all its intensities are 5" in output
    assert (folder / "out/brain/brain_volumes.tsv").is_file() and not (folder / "out/flat").exists()


def one_target(folder, array, *more, mask=None):
    """Status and output for an image of these intensities."""
    io.write_image(Image(array, np.diag([1.2, 1.1, 0.9, 1])), folder / "odd.nii.gz")
    if mask is not None:
        io.write_mask(Mask(mask, np.diag([1.2, 1.1, 0.9, 1])), folder / "odd_mask.nii.gz")
        more = (*more, "--mask", folder / "odd_mask.nii.gz")
    return call("tissue", folder / "odd.nii.gz", *QUICK, *more, "--out", folder / "out")


def test_more_classes_than_distinct_values(folder):
    array = np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.float32)
    status, output = one_target(folder, array, "--classes", 5, mask=np.ones(array.shape, bool))
    assert status == 1 and "5" in output and "distinct" in output and not (folder / "out/odd").exists()


def test_as_many_classes_as_distinct_values_have_no_variance_and_are_found(folder):
    array = np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.float32)
    status, output = one_target(folder, array, "--set", "bias_order=0", mask=np.ones(array.shape, bool))
    assert status == 0, output
    found = io.read_label_map(folder / "out/odd/odd_desc-mixture_dseg.nii.gz").array
    np.testing.assert_array_equal(found, array + 1)


def test_a_constant_scan_in_a_mask(folder):
    status, output = one_target(folder, np.full((9, 8, 7), 3.0), mask=np.ones((9, 8, 7), bool))
    assert status == 1 and "expected different intensities" in output


def test_an_empty_mask(folder):
    status, output = one_target(folder, np.random.default_rng(0).random((9, 8, 7)), mask=np.zeros((9, 8, 7), bool))
    assert status == 1 and "odd_mask.nii.gz: the mask is empty" in output


def test_a_class_that_the_prior_has_nowhere(brain, folder):
    array = brain.fractions.copy()
    array[..., 1] = 0
    nib.save(nib.Nifti1Image(array, brain.image.affine), folder / "none.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, "--prior", folder / "none.nii.gz",
                          "--out", folder / "out")  # fmt: skip
    assert status == 1 and "class 2 of 3 is empty" in output


def test_a_mask_on_another_grid(brain, folder):
    io.write_mask(Mask(np.ones((5, 6, 7), bool), np.eye(4)), folder / "other.nii.gz")
    status, output = call("tissue", folder / "brain.nii.gz", *QUICK, "--mask", folder / "other.nii.gz",
                          "--out", folder / "out")  # fmt: skip
    assert status == 1 and "other.nii.gz" in output and "not on the grid" in output


def test_wrong_requests_are_told_before_the_work(folder):
    scan = folder / "brain.nii.gz"
    for arguments, reason in (
        ((scan,), "--out"),
        (("--out", folder / "o"), "SCAN"),
        ((scan, folder / "csf.nii.gz", "--with", folder / "gm.nii.gz", "--out", folder / "o"), "single scan"),
        ((scan, "--prior", folder / "nothing.nii.gz", "--out", folder / "o"), "no such file"),
        ((scan, "--prior", folder / "gm.nii.gz", "--classes", 3, "--out", folder / "o"), "prior of 3 classes, got one"),
        ((scan, "--set", "clases=3", "--out", folder / "o"), "did you mean 'classes'"),
        ((scan, "--set", "classes=2.5", "--out", folder / "o"), "got 2.5"),
    ):
        status, output = call("tissue", *arguments, "--model", "mixture")
        assert status == 2 and reason in output, (arguments, output)
    assert not (folder / "o/brain").exists()
    status, output = call("tissue", scan, *QUICK, "--names", "a,b", "--out", folder / "o")
    assert status == 1 and "expected 3 different names, one per class, got a, b" in output


def test_a_recipe_of_tissues_is_not_run_and_others_are_no_tissue(folder):
    (folder / "t.toml").write_text('[tissue]\nmethod = "mixture"\n')
    status, output = call("run", folder / "t.toml", "--targets", folder / "brain.nii.gz", "--out", folder / "o")
    assert status == 2 and "atlasseg tissue" in output
    (folder / "f.toml").write_text('[fusion]\nmethod = "majority"\n')
    status, output = call("tissue", folder / "brain.nii.gz", "--recipe", folder / "f.toml", "--out", folder / "o")
    assert status == 2 and "table [tissue]" in output


def test_a_recipe_is_checked_against_the_models_signature():
    recipe = parse_recipe({"tissue": {"method": "mixture", "mixture": {"classes": 4}}})
    assert recipe.tissue.method.arguments == {"classes": 4}
    assert parse_recipe(
        {"tissue": {"method": "mixture"}}, overrides=["tissue.bias_order=2"]
    ).tissue.method.arguments == {"bias_order": 2}


def test_labels_of_a_library_are_a_prior_too(brain, folder):
    library = folder / "labels"
    io.write_image(brain.image, library / "images/one.nii.gz")
    io.write_label_map(LabelMap(brain.truth.array, brain.truth.affine), library / "labels/one.nii.gz")
    (folder / "r.toml").write_text(
        '[registration]\nsteps = ["affine"]\n[tissue]\nmethod = "mixture"\nprior = "labels"\n'
    )
    status, output = call("tissue", folder / "brain.nii.gz", "--recipe", folder / "r.toml", "--set",
                          "partial_volume=false", "--out", folder / "out")  # fmt: skip
    assert status == 0, output
    assert "label 3" in output
