"""The commands: help, status, and what they print. What a run writes is in tests/app/test_run.py."""

import re
import subprocess
import sys
import threading
import urllib.request

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import atlasseg
from atlasseg import io, methods
from atlasseg.cli import app
from atlasseg.report import server
from atlasseg.resampling import resample
from atlasseg.volume import LabelMap

COMMANDS = [
    "run",
    "bids",
    "compare",
    "view",
    "evaluate",
    "doctor",
    "convert",
    "transform",
    "fetch",
    "methods",
    "recipes",
    "init",
    "register",
    "fuse",
    "brain",
    "tissue",
    "atlases",
]


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def test_help_names_every_command_and_how_to_start():
    status, output = call("--help")
    assert status == 0
    for command in COMMANDS:
        assert f" {command} " in output
    assert "atlasseg run quickstart" in output and "Exit status" in output


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "atlases"])
def test_help_of_every_command_has_an_example(command):
    status, output = call(command, "--help")
    assert status == 0
    assert f"atlasseg {command} " in output.partition("Example")[2]


def test_version_is_the_same_by_command_and_by_module():
    assert call("--version") == (0, f"atlasseg {atlasseg.__version__} ")
    module = subprocess.run([sys.executable, "-m", "atlasseg", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"atlasseg {atlasseg.__version__}\n"


def test_completion_is_there():
    done = subprocess.run(
        [sys.executable, "-m", "atlasseg", "--show-completion", "bash"], capture_output=True, text=True, check=False
    )
    assert "complete" in done.stdout


def test_importing_the_package_and_its_commands_pulls_no_heavy_library():
    code = "import sys, atlasseg, atlasseg.cli; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torch",
        "ants",
        "SimpleITK",
        "numba",
        "matplotlib",
        "pandas",
        "sklearn",
        "skimage",
        "scipy",
        "nibabel",
        "numpy",
        "jinja2",
    }
    assert not heavy & set(loaded)


def test_every_name_that_the_package_offers_is_there():
    for name in atlasseg.__all__:
        assert getattr(atlasseg, name) is not None
    with pytest.raises(AttributeError, match="No atlasseg attribute segmnt"):
        atlasseg.segmnt  # noqa: B018


def test_methods_lists_them_all_with_parameters_and_references():
    told = call("methods", "--help")[1]
    assert all(stage in told for stage in methods.STAGES)
    status, output = call("methods")
    assert status == 0
    for stage in methods.STAGES:
        for name in methods.names(stage):
            assert f" {name} " in output
    status, output = call("methods", "fusion", "local_weighted")
    assert status == 0
    assert "power" in output and "Artaechevarria" in output and "majority" not in output.split("local_weighted")[0]
    assert call("methods", "fusoin")[0] == 2


def test_recipes_are_listed_with_one_line_each():
    from atlasseg.resources import shipped_recipes

    done = CliRunner().invoke(app, ["recipes"])
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split()) > 5 for line in lines)


def test_doctor_by_status(dataset):
    assert call("doctor", dataset / "atlases")[0] == 0
    (dataset / "atlases/labels/head1.nii.gz").write_bytes(b"nothing")
    status, output = call("doctor", dataset / "atlases")
    assert status == 1
    assert "head1.nii.gz" in output


def test_evaluate_prints_and_writes(dataset, tmp_path):
    reference = dataset / "targets/labels/head3.nii.gz"
    status, output = call("evaluate", reference, reference, "--out", tmp_path / "m.tsv")
    assert status == 0
    table = pd.read_csv(tmp_path / "m.tsv", sep="\t")
    assert set(table[table.metric == "dice"].value) == {1.0}
    assert "dice" in output
    status, output = call("evaluate", reference, dataset / "targets/labels/head4.nii.gz")
    assert status == 2
    assert "grid" in output


def test_list_of_atlases(dataset):
    status, output = call("atlases", "list", dataset / "atlases")
    assert status == 0
    assert "multi library" in output and "17 x 19 x 13" in output


def test_register_then_fuse_on_files(dataset):
    fixed = dataset / "targets/images/head3.nii.gz"
    warped = dataset / "warped"
    for kind in ("images", "labels"):
        (warped / kind).mkdir(parents=True)
    for id_ in ("head0", "head1"):
        status, output = call(
            "register", fixed, dataset / f"atlases/images/{id_}.nii.gz", "--out", dataset / f"{id_}.h5",
            "--steps", "affine", "--warped", warped / f"images/{id_}.nii.gz",
            "--labels", dataset / f"atlases/labels/{id_}.nii.gz", "--warped-labels", warped / f"labels/{id_}.nii.gz",
        )  # fmt: skip
        assert status == 0, output
        assert "local correlation" in output and "Jacobian" in output
    from atlasseg.io import read_transform

    scan = io.read_image(fixed)
    again = resample(
        io.read_image(dataset / "atlases/images/head0.nii.gz"), scan.grid, read_transform(dataset / "head0.h5")
    )
    np.testing.assert_allclose(again.array, io.read_image(warped / "images/head0.nii.gz").array, rtol=1e-4, atol=1e-2)

    out = dataset / "fused.nii.gz"
    status, output = call(
        "fuse", fixed, warped, "--method", "majority", "--out", out, "--entropy", dataset / "e.nii.gz"
    )
    assert status == 0, output
    assert nib.load(out).shape == scan.shape
    assert nib.load(dataset / "e.nii.gz").get_fdata().max() == pytest.approx(1, abs=0.6)
    status, output = call("fuse", fixed, dataset / "atlases", "--method", "majority", "--out", dataset / "no.nii.gz")
    assert status == 2
    assert "head0" in output and "grid" in output and not (dataset / "no.nii.gz").exists()


def test_register_refuses_labels_without_a_place_for_them(dataset):
    fixed = dataset / "targets/images/head3.nii.gz"
    status, output = call("register", fixed, fixed, "--out", dataset / "x.h5", "--labels", fixed)
    assert status == 2
    assert "--warped-labels" in output


def test_view_serves_the_reports_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<p>all targets</p>")
    asked = []

    def visited(address):
        with urllib.request.urlopen(address, timeout=10) as answer:
            asked.append((address, answer.read().decode()))
        raise KeyboardInterrupt

    real = server.Server.serve_forever

    def serves(self, *arguments):  # the browser comes once the server runs
        visitor = threading.Thread(target=real, args=[self, 0.01])
        visitor.start()
        try:
            visited(self.url("index.html"))
        finally:
            self.shutdown()
            visitor.join()

    monkeypatch.setattr(server.Server, "serve_forever", serves)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    status, output = call("view", tmp_path)
    assert status == 0 and asked[0][1] == "<p>all targets</p>"
    assert opened == [asked[0][0]] and re.match(
        r"http://127\.0\.0\.1:\d+/index\.html\?token=[\w-]{43} \(Ctrl\+C to stop\)", output
    )
    assert call("view", tmp_path, "--no-browser")[0] == 0 and len(opened) == 1
    status, output = call("view", tmp_path / "none")
    assert status == 2 and "expected the output folder of a run, got no folder" in output


def test_a_run_without_a_recipe_chooses_the_methods_by_the_atlases_and_says_which(dataset, monkeypatch):
    monkeypatch.chdir(dataset)
    status, output = call("run", "--atlases", "atlases", "--targets", "targets", "--dry-run")
    assert status == 0, output
    chosen = "preprocessing intensity; registration affine, diffeomorphic; fusion joint"
    assert f"no recipe given, so for 3 atlases: {chosen} ('atlasseg init' writes this as a recipe)" in output
    assert "fusion.joint" in output and (dataset / "out/default").is_dir()
    for id_ in ("head1", "head2"):
        for kind in ("images", "labels"):
            (dataset / f"atlases/{kind}/{id_}.nii.gz").unlink()
    status, output = call(
        "run", "--atlases", "atlases", "--targets", "targets/images/head3.nii.gz", "--out", "here", "--dry-run"
    )
    assert status == 0, output
    assert "for a single atlas: " in output and "fusion majority" in output
    assert (dataset / "here").is_dir()


def test_a_run_without_recipe_and_atlases_says_what_to_do():
    status, output = call("run", "--targets", "scan.nii.gz")
    assert status == 2
    assert "expected a recipe or --atlases DIR, got neither. Try: atlasseg run quickstart" in output


def test_the_cases_of_metrics(cases):
    folder = cases.parent / "methods" / "metrics"
    result = atlasseg.evaluate(folder / "ref_flipstore.nii.gz", folder / "ref.nii.gz")
    assert list(result["dice"][:2]) == [1, 1]
    status, told = call("evaluate", folder / "empty.nii.gz", folder / "empty.nii.gz")
    assert status == 0 and "neither the segmentation nor the reference has a label: all measures are undefined" in told


def test_evaluate_tells_its_notes_and_that_both_maps_are_empty(tmp_path):
    empty = LabelMap(np.zeros((3, 4, 5), np.int32), np.eye(4))
    io.write_label_map(empty, tmp_path / "empty.nii.gz")
    status, told = call("evaluate", tmp_path / "empty.nii.gz", tmp_path / "empty.nii.gz")
    assert status == 0 and "foreground" in told
    assert "neither the segmentation nor the reference has a label: all measures are undefined (NaN)" in told
    assert "Where neither has any label (empty against empty), no measure is defined" in call("evaluate", "--help")[1]
