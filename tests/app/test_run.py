"""A recipe over a data set, as the command runs it: what is written, and what happens when something is wrong."""

import errno
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.cli import app
from atlasseg.labels import LabelTable
from atlasseg.volume import LabelMap

RECIPE = """
[data]
atlases = "atlases"
targets = "targets"
out = "out"
[preprocessing]
steps = ["intensity"]
[registration]
steps = ["affine"]
[fusion]
method = "majority"
[output]
report = false
"""


@pytest.fixture
def recipe(dataset):
    path = dataset / "recipe.toml"
    path.write_text(RECIPE)
    return path


def run(recipe, *options):
    """Exit status and everything printed."""
    done = CliRunner().invoke(app, ["run", str(recipe), "--jobs", "1", *map(str, options)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def files(folder):
    """Name to content of all that a run wrote, but for what it kept for the next one."""
    every = ((str(p.relative_to(folder)), p) for p in sorted(Path(folder).rglob("*")) if p.is_file())
    return {name: path.read_bytes() for name, path in every if not name.startswith(".cache")}


def edit(path, change):
    """Rewrite a NIfTI file with `change(array, affine) -> (array, affine)`."""
    source = nib.load(path)
    array, affine = change(np.asanyarray(source.dataobj).copy(), source.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)


def shifted(voxels):
    def change(array, affine):
        affine[:3, 3] += affine[:3, 0] * voxels
        return array, affine

    return change


# -- what is written --------------------------------------------------------------------------------------------------


def test_a_run_writes_a_derivative_on_each_targets_own_grid(recipe, dataset):
    status, _ = run(
        recipe,
        "--set",
        "output.probabilities=true",
        "--set",
        "output.transforms=true",
        "--set",
        "output.disagreement=true",
    )
    assert status == 0
    out = dataset / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        ".cache",
        "dataset_description.json",
        "head3",
        "head4",
        "metrics.tsv",
        "quality.tsv",
        "volumes.tsv",
    ]
    for id_ in ("head3", "head4"):
        scan = nib.load(dataset / "targets" / "images" / f"{id_}.nii.gz")
        names = {p.name for p in (out / id_).iterdir()}
        stem = f"{id_}_desc-majority"
        wanted = {f"{stem}_dseg.nii.gz", f"{stem}_dseg.json", f"{stem}_dseg.tsv", f"{stem}_entropy.nii.gz"}
        wanted |= {f"{stem}_probseg.nii.gz", f"{id_}_volumes.tsv", f"{id_}_atlases.tsv", f"{id_}_metrics.tsv"}
        wanted |= {f"{stem}_disagreement.nii.gz", f"{id_}_calibration.tsv"}
        assert wanted <= names
        assert sum(name.endswith("_xfm.h5") for name in names) == 3
        share, votes = (
            nib.load(out / id_ / f"{stem}_{kind}.nii.gz").get_fdata() for kind in ("disagreement", "probseg")
        )
        np.testing.assert_allclose(share, 1 - votes.max(axis=3), atol=1e-4)  # as the majority weights all alike
        assert share.max() > 0.3
        bins = pd.read_csv(out / id_ / f"{id_}_calibration.tsv", sep="\t")
        assert len(bins) == 10 and bins.voxels.sum() > 100 and bins.expected_calibration_error.nunique() == 1
        for kind in ("dseg", "entropy", "disagreement"):
            written = nib.load(out / id_ / f"{stem}_{kind}.nii.gz")
            assert written.shape == scan.shape
            np.testing.assert_array_equal(written.affine, scan.affine)
            for code in ("sform_code", "qform_code"):
                assert written.header[code] == scan.header[code]
        sidecar = json.loads((out / id_ / f"{stem}_dseg.json").read_text())
        assert sidecar["Atlases"] == ["head0", "head1", "head2"]
    metrics = pd.read_csv(out / "metrics.tsv", sep="\t")
    assert list(metrics.columns) == ["target", "method", "label", "name", "metric", "value", "note"]
    volumes = pd.read_csv(out / "volumes.tsv", sep="\t")
    assert list(volumes.columns) == ["target", "label", "name", "voxels", "volume_mm3", "reference_mm3"]
    for row in volumes.itertuples():
        for path, volume_mm3 in (
            (out / row.target / f"{row.target}_desc-majority_dseg.nii.gz", row.volume_mm3),
            (dataset / "targets" / "labels" / f"{row.target}.nii.gz", row.reference_mm3),
        ):
            labels = nib.load(path)
            voxel_mm3 = np.prod(labels.header.get_zooms())
            assert volume_mm3 == pytest.approx((labels.get_fdata() == row.label).sum() * voxel_mm3, rel=1e-4)
    dice = metrics[(metrics.metric == "dice") & metrics.label.notna()]
    assert dice.groupby("target").value.mean().min() > 0.4  # heads of 18 voxels, affine alone; an unregistered one: 0.2


def test_output_is_identical_from_run_to_run_and_for_any_number_of_jobs(recipe, dataset):
    assert run(recipe, "--out", dataset / "a")[0] == 0
    assert run(recipe, "--out", dataset / "b", "--jobs", "2")[0] == 0
    a, b = files(dataset / "a"), files(dataset / "b")
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def test_a_target_in_the_library_does_not_vote_on_itself(recipe, dataset):
    shutil.copy(dataset / "atlases/images/head1.nii.gz", dataset / "targets/images/again.nii.gz")
    status, _ = run(recipe, "--targets", dataset / "targets/images/again.nii.gz")
    assert status == 0
    sidecar = json.loads((dataset / "out/again/again_desc-majority_dseg.json").read_text())
    assert sidecar["Atlases"] == ["head0", "head2"]


def test_that_it_is_left_out_is_said_in_the_log(recipe, dataset):
    options = ["-v", "run", str(recipe), "-j", "1", "--targets", str(dataset / "atlases/images/head1.nii.gz")]
    output = CliRunner().invoke(app, options).output
    assert "head1: atlas head1 is the scan itself and is left out" in output


def test_a_target_that_is_the_only_atlas_cannot_be_segmented(recipe, dataset):
    for id_ in ("head1", "head2"):
        (dataset / f"atlases/images/{id_}.nii.gz").unlink()
        (dataset / f"atlases/labels/{id_}.nii.gz").unlink()
    status, output = run(recipe, "--targets", dataset / "atlases/images/head0.nii.gz")
    assert status == 1
    assert "head0: expected atlases other than the scan itself, got none" in " ".join(output.split())


def test_labels_that_are_large_many_or_negative_arrive_unchanged(recipe, dataset):
    values = {}
    for path in sorted((dataset / "atlases/labels").iterdir()):
        source = nib.load(path)
        array = np.asanyarray(source.dataobj).astype(np.int32)
        array[array == 2] = 614454277
        array[array == 41] = -3
        nib.save(nib.Nifti1Image(array, source.affine), path)
        values[path.name] = set(np.unique(array).tolist())
    assert run(recipe)[0] == 0
    found = set(io.read_label_map(dataset / "out/head3/head3_desc-majority_dseg.nii.gz").values.tolist())
    assert {614454277, -3} <= found <= set.union(*values.values())


def test_labels_that_an_atlas_does_not_annotate_are_not_background(recipe, dataset):
    for id_ in ("head0", "head1"):
        edit(dataset / f"atlases/labels/{id_}.nii.gz", lambda a, m: (np.where(a == 2, 0, a), m))
    assert run(recipe)[0] == 0
    lost = (io.read_label_map(dataset / "out/head3/head3_desc-majority_dseg.nii.gz").array == 2).sum()
    for id_ in ("head0", "head1"):
        (dataset / f"atlases/labels/{id_}.json").write_text('{"not_annotated": [2]}')
    assert run(recipe)[0] == 0
    kept = (io.read_label_map(dataset / "out/head3/head3_desc-majority_dseg.nii.gz").array == 2).sum()
    assert lost < 0.5 * kept  # two votes of three against it, or none


def test_a_label_that_the_reference_does_not_annotate_has_no_reference_volume():
    made, drawn = (
        LabelMap(np.int32(values).reshape(1, 2, 4), np.diag([2.0, 1, 3, 1]))
        for values in ([1, 1, 2, 2, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 4])
    )
    found = outputs.volumes(made, LabelTable(), reference=drawn, not_annotated={2})
    assert found["volume_mm3"].tolist() == [12, 18, 0]
    np.testing.assert_array_equal(found["reference_mm3"], [18, np.nan, 6])


# -- a target that is wrong: it is named, the other one is done, nothing half-written remains --------

IMAGE, LABELS = "targets/images/head3.nii.gz", "targets/labels/head3.nii.gz"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_text(path):
    path.write_text("this is no NIfTI file")


def to_shape(*shape):
    return lambda path: edit(path, lambda a, m: (np.resize(a, shape), m))


def constant(path):
    edit(path, lambda a, m: (np.full_like(a, 7), m))


def all_nan(path):
    edit(path, lambda a, m: (np.full(a.shape, np.nan, np.float32), m))


def not_whole(path):
    edit(path, lambda a, m: (a.astype(np.float32) + 0.25, m))


def far_away(path):
    edit(path, lambda a, m: (a, m @ np.diag([1, 1, 1, 1.0]) + np.array([[0, 0, 0, 5000.0]] * 3 + [[0, 0, 0, 0]])))


def half_a_voxel(path):
    edit(path, shifted(0.5))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGE, truncate, "head3.nii.gz"),
        (IMAGE, as_text, "head3.nii.gz"),
        (IMAGE, to_shape(9, 8, 7, 9), r"head3.nii.gz.*9 volumes with more than 8"),
        (IMAGE, to_shape(9, 8), r"head3.nii.gz.*\(9, 8\)"),
        (IMAGE, constant, "head3.*all its intensities are 7"),
        (IMAGE, all_nan, "head3.nii.gz.*finite"),
        (LABELS, not_whole, "labels/head3.nii.gz.*whole"),
        (LABELS, to_shape(9, 8, 7), r"labels/head3.nii.gz.*\(9, 8, 7\)"),
        (LABELS, half_a_voxel, "labels/head3.nii.gz"),
        (LABELS, truncate, "labels/head3.nii.gz"),
    ],
)
def test_a_broken_target_is_named_and_the_others_are_done(recipe, dataset, name, damage, message):
    damage(dataset / name)
    status, output = run(recipe)
    assert status == 1
    flat = " ".join(output.split())
    assert re.search(rf"failed: head3: .*{message}", flat), flat
    assert sorted(p.name for p in (dataset / "out").iterdir()) == [
        ".cache",
        "dataset_description.json",
        "head4",
        "logs",
        "metrics.tsv",
        "quality.tsv",
        "volumes.tsv",
    ]


def test_no_overlap_in_space_is_bridged_by_alignment_of_the_centres(recipe, dataset):
    """Origins hundreds of millimetres apart are normal between scanners; a start at the centres makes up for it."""
    far_away(dataset / IMAGE)
    edit(dataset / LABELS, lambda a, m: (a, nib.load(dataset / IMAGE).affine))
    assert run(recipe)[0] == 0


def test_a_target_without_anything_to_see_in_common_fails_by_name(recipe, dataset):
    (dataset / "targets/masks").mkdir()
    scan = nib.load(dataset / IMAGE)
    nib.save(nib.Nifti1Image(np.zeros(scan.shape, np.uint8), scan.affine), dataset / "targets/masks/head3.nii.gz")
    status, output = run(recipe)
    assert status == 1
    assert "failed: head3:" in output and "mask" in output


def test_some_nan_intensities_are_masked_with_a_warning(recipe, dataset):
    def change(array, affine):
        array = array.astype(np.float32)
        array[2:4, 3, 2] = np.nan
        array[5, 5, 5] = np.inf
        return array, affine

    edit(dataset / IMAGE, change)
    status, output = run(recipe)
    assert status == 0
    assert re.search(r"head3.nii.gz: 0.06% of the intensities are NaN or infinite \(3 of 4680", output), output


def test_an_affine_that_differs_by_a_trifle_is_accepted(recipe, dataset):
    edit(dataset / LABELS, lambda a, m: (a, m + 1e-7))
    edit(dataset / "atlases/labels/head0.nii.gz", lambda a, m: (a, m + 1e-7))
    assert run(recipe)[0] == 0


@pytest.mark.parametrize("kind", ["sheared", "left-handed", "disagree", "absent"])
def test_odd_headers_of_a_target_are_taken(recipe, dataset, kind):
    path = dataset / IMAGE
    source = nib.load(path)
    affine = source.affine.copy()
    if kind == "sheared":
        affine[0, 1] += 0.15 * affine[0, 0]
    elif kind == "left-handed":
        affine[:3, 0] *= -1
    image = nib.Nifti1Image(np.asanyarray(source.dataobj), affine)
    if kind == "disagree":
        image.set_qform(affine + np.array([[0, 0, 0, 3.0]] * 3 + [[0, 0, 0, 0]]), code=1)
    if kind == "absent":
        image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)
    (dataset / LABELS).unlink()
    assert run(recipe)[0] == 0
    written = nib.load(dataset / "out/head3/head3_desc-majority_dseg.nii.gz")
    read = nib.load(path)
    np.testing.assert_allclose(written.affine, read.affine, atol=1e-6)
    assert [int(written.header[c]) for c in ("sform_code", "qform_code")] == [
        int(read.header[c]) for c in ("sform_code", "qform_code")
    ]
    if kind == "disagree":
        np.testing.assert_allclose(written.get_qform(), read.get_qform(), atol=1e-5)


# -- a request that is wrong: exit status 2, nothing written -----------------------------------------------------------


def test_wrong_libraries(recipe, dataset):
    def refused(message):
        status, output = run(recipe)
        assert status == 2
        assert message in output
        assert not (dataset / "out").exists() or not any((dataset / "out").glob("head*"))

    image, labels = dataset / "atlases/images/head0.nii.gz", dataset / "atlases/labels/head0.nii.gz"
    kept = labels.read_bytes()
    labels.unlink()
    refused("head0")
    labels.write_bytes(kept)
    shutil.copy(image, dataset / "atlases/images/head0.nii")
    refused("head0")
    (dataset / "atlases/images/head0.nii").unlink()
    half_a_voxel(labels)
    refused("labels/head0.nii.gz")
    labels.write_bytes(kept)
    truncate(labels)
    refused("labels/head0.nii.gz")
    labels.write_bytes(kept)
    assert run(recipe)[0] == 0


def test_two_targets_of_one_name(recipe, dataset):
    shutil.copytree(dataset / "targets", dataset / "more")
    status, output = run(recipe, "--targets", dataset / "targets", "--targets", dataset / "more")
    assert status == 2
    assert "head3" in output


def test_an_empty_label_map_in_a_library_of_one(recipe, dataset):
    for id_ in ("head1", "head2"):
        (dataset / f"atlases/images/{id_}.nii.gz").unlink()
        (dataset / f"atlases/labels/{id_}.nii.gz").unlink()
    edit(dataset / "atlases/labels/head0.nii.gz", lambda a, m: (np.zeros_like(a), m))
    status, output = run(recipe)
    assert status == 2
    assert "labels/head0.nii.gz" in " ".join(output.split()) and "background" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "fusion.method=majorty"], "did you mean 'majority'"),
        (["--set", "fusion.sft=true"], "no parameter 'sft'"),
        (["--set", "fusion.soft=3"], "soft"),
        (["--targets", "nowhere"], "nowhere"),
        (["--atlases", "nowhere"], "nowhere"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_wrong_options(recipe, options, message):
    status, output = run(recipe, *options)
    assert status == 2
    assert message in " ".join(output.split())


def test_an_output_folder_that_cannot_be_written(recipe, dataset):
    (dataset / "out").write_text("a file where a folder is wanted")
    status, output = run(recipe)
    assert status == 2
    assert f"{dataset / 'out'}" in output.replace("\n", "")


def test_a_full_disk_leaves_nothing_half_written(recipe, dataset, monkeypatch):
    write = io.write_image

    def full(image, path, **options):
        if "head3" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(image, path, **options)

    monkeypatch.setattr(outputs.io, "write_image", full)
    status, output = run(recipe)
    assert status == 1
    assert "failed: head3:" in output and "No space left" in " ".join(output.split())
    assert not list((dataset / "out").glob("*head3*")) and (dataset / "out/head4").is_dir()


@pytest.mark.posix
def test_ctrl_c_leaves_nothing_half_written(recipe, dataset):
    slow = dataset / "slow.py"
    slow.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from atlasseg.app import outputs\n"
        "from atlasseg.cli import main\n"
        "write = outputs.io.write_image\n"
        "def waits(image, path, **options):\n"
        "    write(image, path, **options)\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "outputs.io.write_image = waits\n"
        "sys.argv = ['atlasseg', 'run', sys.argv[1], '--jobs', '1']\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, slow, recipe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    assert list((dataset / "out").glob(".head3*"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert sorted(p.name for p in (dataset / "out").iterdir()) == [".cache", "dataset_description.json"]


# -- what an earlier run left ------------------------------------------------------------------------------------------


def test_nothing_of_an_earlier_run_is_taken_for_the_present_ones(recipe, dataset):
    """Other settings, a target that fails, one not asked for, labels that are gone, a killed run's temporary files."""
    out = dataset / "out"
    assert run(recipe)[0] == 0
    first = files(out)
    assert run(recipe)[0] == 0 and files(out) == first

    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    half = out / f".head3.{platform.node()}-{killed.pid}-0123abcd.partial"
    half.mkdir()
    (out / f".{platform.node()}-{killed.pid}-0123abcd.partial.metrics.tsv").touch()
    shutil.rmtree(dataset / "targets" / "labels")
    scan = dataset / "targets" / "images" / "head4.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:400])
    status, output = run(recipe, "--set", "registration.affine.iterations=7")
    assert status == 1 and "head4" in output
    (moved,) = (out / "earlier").iterdir()
    assert {path.name for path in moved.iterdir()} >= {"head4", "metrics.tsv"}
    assert not (moved / "head3").exists(), "its successor is written"
    assert (moved / "head4" / "head4_metrics.tsv").read_bytes() == first["head4/head4_metrics.tsv"]
    assert sorted(p.name for p in out.iterdir()) == [
        *(".cache", "dataset_description.json", "earlier", "head3", "logs", "quality.tsv", "volumes.tsv")
    ]
    assert not (out / "head3" / "head3_metrics.tsv").exists()
    shutil.rmtree(out / "earlier")
    scan.write_bytes(whole)

    assert run(recipe, "--targets", dataset / "targets" / "images" / "head3.nii.gz")[0] == 0
    (moved,) = (out / "earlier").iterdir()
    assert sorted(p.name for p in out.iterdir()) == [
        *(".cache", "dataset_description.json", "earlier", "head3", "quality.tsv", "volumes.tsv")
    ]
    # the recipe that is written down names what was used, not what the file said
    assert "head3.nii.gz" in io.read_json(out / "dataset_description.json")["Recipe"]
