"""A BIDS dataset segmented as a BIDS-App: the derivative is valid, and what is wrong with a dataset is said."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import atlasseg
from atlasseg import io
from atlasseg.bids.derivative import Derivative
from atlasseg.bids.scans import Scan, find_scans, find_validator, list_validation_errors
from atlasseg.cli import app
from atlasseg.errors import InputError, OutputError
from atlasseg.files import files_together
from atlasseg.io import read_transform
from atlasseg.resampling import resample

RECIPE = """
[registration]
steps = ["affine"]
[registration.affine]
iterations = 10
[fusion]
method = "majority"
"""


@pytest.fixture(scope="session")
def heads(_small_heads):
    return {head.id: head for head in _small_heads}


@pytest.fixture
def study(tmp_path, heads):
    """``bids``: sub-01 without sessions, sub-02 with two; a library, and a recipe."""
    for id_ in ("head0", "head1"):
        for kind in ("images", "labels"):
            (tmp_path / "atlases" / kind).mkdir(parents=True, exist_ok=True)
        io.write_image(heads[id_].image, tmp_path / "atlases/images" / f"{id_}.nii.gz")
        io.write_label_map(heads[id_].labels, tmp_path / "atlases/labels" / f"{id_}.nii.gz")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    root = tmp_path / "bids"
    root.mkdir()
    io.write_json({"Name": "A study", "BIDSVersion": "1.10.0", "DatasetType": "raw"}, root / "dataset_description.json")
    (root / "README").write_text("A study of heads. " * 20)
    add(root, heads["head3"], "sub-01/anat/sub-01_T1w.nii.gz")
    add(root, heads["head4"], "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz")
    add(root, heads["head3"], "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz")
    return tmp_path


def add(root, head, name):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_image(head.image, path)
    image = nib.load(path)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header), path)
    return path


def call(study, level, *options, out="out"):
    """Exit status and everything printed."""
    given = ["--recipe", study / "recipe.toml", "--atlases", study / "atlases", "--skip-bids-validation", "-j", "1"]
    words = ["bids", study / "bids", study / out, level, *(given if level == "participant" else ()), *options]
    done = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def results(out):
    """The names of the derivative's files, but for what is kept for the next run."""
    every = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file())
    return [name for name in every if not name.startswith(".work/")]


# -- the derivative ---------------------------------------------------------------------------------------------------


def test_a_dataset_becomes_a_valid_derivative_and_the_group_a_table_and_a_page(study, heads):
    status, output = call(study, "participant", "--probseg", "--xfm", "--set", "preprocessing.mask=none")
    assert status == 0, output
    out = study / "out"
    stem = "sub-02/ses-a/anat/sub-02_ses-a_desc-majority"
    assert {name for name in results(out) if name.startswith("sub-02") and "ses-b" not in name} == {
        *(f"{stem}_dseg.{end}" for end in ("nii.gz", "json", "tsv")),
        *(f"{stem}_{kind}.{end}" for kind in ("probseg", "entropy") for end in ("nii.gz", "json")),
        *(f"{stem}_volumes.{end}" for end in ("tsv", "json")),
        *(f"{stem}_{kind}.tsv" for kind in ("atlases", "prediction")),
        *(f"sub-02/ses-a/anat/sub-02_ses-a_from-head{n}_to-T1w_mode-image_xfm.h5" for n in (0, 1)),
        "sub-02/sub-02_ses-a.html",
        "sub-02/figures/sub-02_ses-a_dseg.html",
    }

    head = heads["head4"]
    labels = io.read_label_map(out / f"{stem}_dseg.nii.gz")
    assert labels.grid.matches(head.image.grid)
    sidecar = io.read_json(out / f"{stem}_dseg.json")
    assert sidecar["Sources"] == ["bids:raw:sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"]
    assert sidecar["FusionMethod"] == "majority" and sidecar["Atlases"] == ["head0", "head1"]
    described = io.read_json(out / "dataset_description.json")
    assert described["DatasetType"] == "derivative" and described["DatasetLinks"] == {"raw": "../bids"}
    assert described["GeneratedBy"][0]["Version"] == atlasseg.__version__

    probabilities = nib.load(out / f"{stem}_probseg.nii.gz").get_fdata()
    order = io.read_json(out / f"{stem}_probseg.json")["LabelMap"]
    assert probabilities.shape == (*labels.shape, len(order))
    assert np.array_equal(np.asarray(order)[probabilities.argmax(axis=-1)], labels.array)

    # images of the atlas come onto the scan by it, as its name says
    transform = read_transform(out / "sub-02/ses-a/anat/sub-02_ses-a_from-head0_to-T1w_mode-image_xfm.h5")
    moved = resample(heads["head0"].image, head.image.grid, transform).array
    here = resample(heads["head0"].image, head.image.grid).array
    alike = [np.corrcoef(each.ravel(), head.image.array.ravel())[0, 1] for each in (moved, here)]
    assert alike[0] > max(alike[1], 0.5)

    status, output = call(study, "group")
    assert status == 0 and "volumes of 3 scans" in output
    table = pd.read_csv(out / "group_volumes.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    assert table["participant_id"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert table["session_id"].fillna("").tolist() == ["", "ses-a", "ses-b"]
    voxel = abs(np.linalg.det(labels.affine[:3, :3]))
    name = io.read_json(out / "group_volumes.json")
    for column in table.columns[4:]:
        label = int(name[column]["Description"].removeprefix("volume of label "))
        assert table[column][1] == pytest.approx((labels.array == label).sum() * voxel, rel=1e-5)
    page = (out / "index.html").read_text("utf-8")
    assert "A study" in page and 'href="sub-02/sub-02_ses-a.html"' in page and page.count('<img class="contact"') == 3
    assert 'href="../index.html"' in (out / "sub-02/sub-02_ses-a.html").read_text("utf-8")
    assert table["scan"][0] == "sub-01_T1w.nii.gz"

    program = find_validator()
    if program is None:
        pytest.skip("bids-validator-deno is not installed: what was written is not validated")
    assert list_validation_errors(study / "bids", program) == []
    assert list_validation_errors(out, program) == []
    shutil.copy(out / f"{stem}_dseg.nii.gz", out / "sub-02/ses-a/anat/sub-02_ses-a_dsegg.nii.gz")
    assert len(list_validation_errors(out, program)) == 1


def test_a_run_goes_on_where_it_was_and_reports_are_made_again_from_the_derivative(study):
    status, output = call(study, "participant", "--participant-label", "sub-02", "--session-id", "a")
    assert status == 0 and results(study / "out")[-1].startswith("sub-02/sub-02_ses-a")
    segmentation = study / "out/sub-02/ses-a/anat/sub-02_ses-a_desc-majority_dseg.nii.gz"
    before = segmentation.read_bytes()
    other = segmentation.with_name("sub-02_ses-a_acq-other_desc-majority_dseg.nii.gz")
    other.write_bytes(b"of another scan")
    stale = segmentation.with_name("sub-02_ses-a_desc-old_dseg.nii.gz")
    stale.write_bytes(b"of an earlier run")

    status, output = call(study, "participant", "--participant-label", "02", "01")
    assert status == 0 and len(re.findall(r"_T1w .* done$", output, re.MULTILINE)) == 3, output
    assert segmentation.read_bytes() == before and other.exists() and not stale.exists()
    assert not list((study / "out").rglob("*.partial"))

    page = study / "out/sub-01/sub-01.html"
    picture = study / "out/sub-01/figures/sub-01_dseg.html"
    drawn = picture.read_text("utf-8")
    page.unlink()
    picture.unlink()
    shutil.rmtree(study / "out/.work")
    status, output = call(study, "participant", "--reports-only", "--participant-label", "01")
    assert status == 0 and "head0" in page.read_text("utf-8") and picture.read_text("utf-8") == drawn
    shutil.rmtree(study / "out/sub-01")
    status, output = call(study, "participant", "--reports-only")
    assert status == 1 and "expected results of sub-01_T1w.nii.gz, got none" in output
    status, output = call(study, "group")
    assert status == 1 and "sub-01_T1w.nii.gz: no results" in output
    assert "no results" in (study / "out/index.html").read_text("utf-8")


def test_a_scan_that_fails_is_named_and_may_stop_the_run(study):
    damaged = study / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    status, output = call(study, "participant", "--stop-on-first-crash")
    assert status == 1 and "failed: sub-01_T1w" in output and "truncated" in output
    assert "not done: stopped after target sub-01_T1w failed" in output
    assert "sub-02_ses-a_T1w" in output and "sub-02_ses-b_T1w" in output
    assert "truncated" in (study / "out/logs/sub-01_T1w.log").read_text("utf-8")
    assert not any("dseg" in name for name in results(study / "out"))
    status, output = call(study, "participant")
    assert status == 1 and not (study / "out/sub-01").exists()
    assert (study / "out/sub-02/ses-b/anat/sub-02_ses-b_desc-majority_dseg.json").is_file()
    assert not (study / "out/logs/sub-02_ses-b_T1w.log").exists()


def test_worker_processes_write_the_derivative_too_and_the_plan_says_so_before(study):
    given = "--work-dir", study / "work", "--mem-gb", "3", "--participant-label", "02"
    status, output = call(study, "participant", "--dry-run", *given)
    assert status == 0 and "2 targets, 0 finished" in output and not (study / "out").exists()
    status, output = call(study, "participant", "-j", "2", *given)
    assert status == 0, output
    assert sum(name.endswith("dseg.json") for name in results(study / "out")) == 2
    assert (study / "work/.cache").is_dir() and not (study / "out/.work").exists()


def test_results_that_share_a_folder_come_together_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "anat"
    folder.mkdir()
    for name in ("a_image", "a_seal.json", "b_image"):
        (folder / name).write_text("old")
    moves = []
    for verb in ("replace", "unlink"):
        own = getattr(Path, verb)
        monkeypatch.setattr(
            Path, verb, lambda self, *a, o=own, v=verb, **k: (moves.append((v, self.name)), o(self, *a, **k))[1]
        )

    def write(fault=None):
        with files_together(folder, "a", replaced=lambda name: name.startswith("a_"), seal="_seal.json") as aside:
            for name in ("a_seal.json", "a_image", "a_table"):
                (aside / name).write_text("new")
            if fault is not None:
                raise fault

    for fault, error in ((RuntimeError("a mistake"), RuntimeError), (OSError(28, "No space left"), OutputError)):
        with pytest.raises(error):
            write(fault)
        assert {p.name: p.read_text() for p in folder.iterdir()} == dict.fromkeys(
            ("a_image", "a_seal.json", "b_image"), "old"
        )
    assert not moves
    write()
    assert moves[0] == ("unlink", "a_seal.json") and moves[-1] == ("replace", "a_seal.json") and len(moves) == 5
    new = dict.fromkeys(("a_image", "a_seal.json", "a_table"), "new")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {**new, "b_image": "old"}


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_scans_are_chosen_by_labels_and_by_a_filter(study, heads):
    root = study / "bids"
    assert [scan.stem for scan in find_scans(root)] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert [scan.stem for scan in find_scans(root, participants=["sub-02"], sessions=["ses-b"])] == ["sub-02_ses-b"]
    for run in (1, 2):
        add(root, heads["head4"], f"sub-03/anat/sub-03_acq-high_run-{run}_T1w.nii.gz")
    add(root, heads["head4"], "sub-03/anat/sub-03_acq-low_T1w.nii.gz")
    add(root, heads["head4"], "sub-03/anat/sub-03_desc-brain_T1w.nii.gz")
    add(root, heads["head4"], "sub-03/func/sub-03_T1w.nii.gz")
    given = study / "filter.json"

    def found(**chosen):
        given.write_text(json.dumps({"t1w": chosen, "bold": {"task": "rest"}}))
        return [scan.path.name for scan in find_scans(root, participants=["03"], filter_file=given)]

    assert found(acquisition="low") == ["sub-03_acq-low_T1w.nii.gz"]
    assert found(acquisition="high", run=[1, 2]) == [f"sub-03_acq-high_run-{run}_T1w.nii.gz" for run in (1, 2)]
    assert found(run="*") == [f"sub-03_acq-high_run-{run}_T1w.nii.gz" for run in (1, 2)]
    assert found(run=None) == ["sub-03_acq-low_T1w.nii.gz"]
    assert found(desc="brain") == ["sub-03_desc-brain_T1w.nii.gz"]
    assert Scan(root / "sub-03/anat/sub-03_desc-brain_T1w.nii.gz").stem == "sub-03"


def test_a_scan_that_is_a_link_has_the_address_of_the_link(study):
    scan = study / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    annexed = study / "bids/.git/annex/objects/SHA256E-s1--1.nii.gz"
    annexed.parent.mkdir(parents=True)
    scan.rename(annexed)
    scan.symlink_to(annexed)
    (found,) = find_scans(study / "bids", participants=["01"])
    (study / "link").symlink_to(study / "bids")
    for dataset in (study / "bids", study / "link"):
        assert Derivative(study / "out", dataset).uri(found) == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"


def test_version():
    done = CliRunner().invoke(app, ["bids", "--version"])
    assert (done.exit_code, done.output) == (0, f"atlasseg {atlasseg.__version__}\n")


# -- what is wrong ----------------------------------------------------------------------------------------------------


def emptied(root):
    for path in root.rglob("*_T1w.nii.gz"):
        path.unlink()


def two_runs(root):
    scan = root / "sub-01/anat/sub-01_T1w.nii.gz"
    for name in ("sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"):
        shutil.copy(scan, scan.with_name(name))
    scan.unlink()


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (emptied, (), r"bids: there is no T1w scan of any of its participants"),
        (lambda root: shutil.rmtree(root), (), r"bids: no such folder"),
        (
            lambda root: (root / "dataset_description.json").unlink(),
            (),
            r"bids: expected a BIDS dataset, got a folder without dataset_d",
        ),
        (
            lambda root: (root / "dataset_description.json").write_text('{"Name": "x",}'),
            (),
            r"dataset_description.json, line 1: not JSON",
        ),
        (
            lambda root: (root / "dataset_description.json").write_text('{"Name": "x"}'),
            (),
            r"dataset_description.json: expected the key 'BIDSVersion'",
        ),
        (
            lambda root: [shutil.rmtree(p) for p in root.glob("sub-*")],
            (),
            r"bids: expected participants in folders",
        ),
        (
            lambda root: (root / "sub-01/anat/sub-01_T1w.json").write_text("{\n'EchoTime': 1}"),
            (),
            r"sub-01_T1w.json, line 2: not JSON",
        ),
        (lambda root: (root / "T1w.json").write_text("[]"), (), r"T1w.json: expected a JSON object, got list"),
        (None, {"participants": ["04"]}, r"bids: there is no participant '04'\. Choose from 01, 02"),
        (None, {"sessions": ["c"]}, r"bids: there is no T1w scan with session 'c' of any"),
        (None, {"sessions": ["a", "c"]}, r"bids: there is no session 'c' with a T1w scan"),
        (None, {"participants": ["01", "02"], "sessions": ["a"]}, r"participant '01' has no T1w scan with session 'a'"),
        (
            two_runs,
            (),
            r"anat: expected one T1w scan per session, got 2 in sub-01, which differ in run: .*\"run\": \"1\"",
        ),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said_with_file_and_cause(study, harm, options, message):
    if harm is not None:
        harm(study / "bids")
    with pytest.raises(InputError, match=message):
        find_scans(study / "bids", **dict(options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t1w: x", r"filter.json, line 1: not JSON"),
        ('{"t1w": "high"}', r'filter.json: "t1w": expected an object'),
        (
            '{"t1w": {"aquisition": "high"}}',
            r"filter.json: BIDS has no entity 'aquisition'; did you mean 'acquisition'",
        ),
        ('{"t1w": {"run": {"a": 1}}}', r"filter.json: run: expected a text, a whole number, null or a list"),
        ('{"t1w": {"acquisition": "high"}}', r"there is no T1w scan with acquisition 'high' of any"),
    ],
)
def test_a_filter_file_that_cannot_be_used_is_named(study, text, message):
    given = study / "filter.json"
    given.write_text(text)
    with pytest.raises(InputError, match=message):
        find_scans(study / "bids", filter_file=given)


def test_a_request_that_cannot_be_done_is_refused_before_anything_is_written(study):
    status, output = call(study, "participant", out="bids")
    assert status == 2 and "expected an output folder other than the dataset itself" in output
    status, output = call(study, "group")
    assert status == 2 and "Run the participant level first" in output
    words = ["bids", str(study / "bids"), str(study / "out"), "participant"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2 and "expected a recipe or --atlases DIR, got neither" in " ".join(told.output.split())
    assert call(study, "participants")[0] == 2
    for kind in ("images", "labels"):
        shutil.copy(study / "atlases" / kind / "head0.nii.gz", study / "atlases" / kind / "head_0.nii.gz")
    status, output = call(study, "participant", "--xfm")
    assert status == 2 and "atlases 'head0' and 'head_0' would have the same file name" in output
    assert call(study, "participant", "--mem-gb", "0")[0] == 2
    assert not (study / "out").exists()


def test_a_dataset_that_is_not_valid_is_refused_unless_told_otherwise(study):
    if find_validator() is None:
        pytest.skip("bids-validator-deno is not installed")
    (study / "bids/sub-01/anat/sub-01_t1.nii.gz").write_bytes(b"")
    words = ["bids", study / "bids", study / "out", "participant", "--recipe", study / "recipe.toml"]
    done = CliRunner().invoke(app, [*map(str, words), "--atlases", str(study / "atlases"), "--dry-run"])
    assert done.exit_code == 2 and "the BIDS validator finds" in done.output and "sub-01_t1.nii.gz" in done.output
    assert call(study, "participant", "--dry-run")[0] == 0
