"""Registration from transforms that the user gives: of one pair by an option, of a run by the recipe."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.cli import app
from atlasseg.transforms import Affine

RECIPE = """
[data]
atlases = "atlases"
targets = "targets/images/head3.nii.gz"
out = "out"
[registration]
steps = ["affine"]
initial = "starts/{target}_{atlas}.tfm"
[registration.affine]
iterations = 0
[fusion]
method = "majority"
[output]
report = false
"""


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def start(number):
    """A small motion about the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (5 + number, -3, 4), degrees=True).as_matrix()
    matrix[:3, 3] = (1.5, number, -2)
    return Affine(matrix)


@pytest.fixture
def started(dataset):
    (dataset / "starts").mkdir()
    for n in range(3):
        io.write_transform(start(n), dataset / f"starts/head3_head{n}.tfm")
    (dataset / "recipe.toml").write_text(RECIPE)
    return dataset


@pytest.mark.parametrize("suffix", [".tfm", ".mat", ".h5", ".nii.gz"])
def test_register_starts_from_the_transform_that_is_given(dataset, suffix):
    fixed, moving = dataset / "targets/images/head3.nii.gz", dataset / "atlases/images/head1.nii.gz"
    given, out = dataset / f"given{suffix}", dataset / "found.tfm"
    io.write_transform(start(1), given, grid=io.read_image(fixed).grid)
    status, output = call(
        "register", fixed, moving, "--out", out, "--steps", "affine", "--set", "affine.iterations=0", "--initial", given
    )
    assert status == 0, output
    np.testing.assert_allclose(io.read_transform(out).matrix, start(1).matrix, atol=1e-3)


def test_register_names_an_initial_transform_that_is_missing(dataset):
    fixed = dataset / "targets/images/head3.nii.gz"
    status, output = call("register", fixed, fixed, "--out", dataset / "o.tfm", "--initial", dataset / "none.tfm")
    assert status == 2
    assert "none.tfm" in output
    assert not (dataset / "o.tfm").exists()


def test_a_run_starts_every_atlas_from_its_own_file(started):
    status, output = call("run", started / "recipe.toml", "--jobs", "1", "--set", "output.transforms=true")
    assert status == 0, output
    found = sorted((started / "out" / "head3").rglob("*xfm*"))
    assert len(found) == 3
    for n, path in enumerate(found):
        np.testing.assert_allclose(io.read_transform(path).matrix, start(n).matrix, atol=1e-6)


def test_another_start_is_another_run(started):
    call("run", started / "recipe.toml", "--jobs", "1", "--set", "output.transforms=true")
    io.write_transform(start(7), started / "starts/head3_head0.tfm")
    call("run", started / "recipe.toml", "--jobs", "1", "--set", "output.transforms=true")
    (path,) = (started / "out" / "head3").rglob("*head0*xfm*")
    np.testing.assert_allclose(io.read_transform(path).matrix, start(7).matrix, atol=1e-6)


def test_a_missing_file_is_named_before_work_begins(started):
    (started / "starts/head3_head2.tfm").unlink()
    status, output = call("run", started / "recipe.toml", "--jobs", "1")
    assert status == 2
    assert "head3_head2.tfm" in output.replace("\n", "")
    assert not (started / "out" / "head3").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('registration.initial="a/{subject}.tfm"', "expected a file name with {target} and {atlas}"),
        ('registration.prepared="somewhere"', "exclude each other"),
        ('selection.by="first_step"', "cannot be combined"),
    ],
)
def test_what_does_not_go_together_is_refused(started, line, message):
    status, output = call("run", started / "recipe.toml", "--jobs", "1", "--set", line)
    assert status == 2
    assert message in " ".join(output.split())
