"""`apply_transform` and ``atlasseg transform``, against what ANTs does with the same files."""

import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import atlasseg
from atlasseg import io
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.phantoms import head, tilted_grid
from atlasseg.resampling import resample
from atlasseg.transforms import Affine, DisplacementField
from atlasseg.volume import Grid, Image, LabelMap

FIXED = tilted_grid((24, 28, 20), spacing_mm=(2.4, 2.4, 2.6), axes="LPS")
MATRIX = np.array([[0.98, 0.06, -0.1, 3.0], [-0.05, 1.03, 0.08, -2.0], [0.11, -0.02, 0.95, 1.5], [0, 0, 0, 1]])
POINTS = np.random.default_rng(2).uniform(-20, 20, (30, 3))


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def bend(grid=FIXED, size_mm=2.0):
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    phase = (voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]) / 20
    moved = size_mm * np.stack([np.sin(phase[..., 1]), np.cos(phase[..., 2]), np.sin(phase[..., 0])], -1)
    return DisplacementField(moved.astype(np.float32), grid.affine)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A moving head with labels, the fixed grid, an affine and a warp, as files."""
    folder = tmp_path_factory.mktemp("transform")
    moving = head(
        "moving", grid=tilted_grid((26, 24, 22), spacing_mm=(2.3, 2.6, 2.5), axes="RAS"), seed=1, subsamples=1
    )
    io.write_image(moving.image, folder / "moving.nii.gz")
    io.write_label_map(moving.labels, folder / "labels.nii.gz")
    io.write_image(Image(np.zeros(FIXED.shape), FIXED.affine), folder / "fixed.nii.gz")
    io.write_transform(Affine(MATRIX), folder / "affine.mat")
    io.write_transform(bend(), folder / "warp.nii.gz")
    return folder


LISTS = (["affine.mat"], ["[affine.mat,1]"], ["warp.nii.gz", "affine.mat"], ["[affine.mat,1]", "warp.nii.gz"])


@pytest.mark.parametrize("names", LISTS, ids=", ".join)
def test_images_labels_and_points_against_ants(files, tmp_path, names):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    bare = [str(files / name.strip("[]").split(",")[0]) for name in names]
    flags = [name.startswith("[") for name in names]
    entries = [f"[{path},1]" if flag else path for path, flag in zip(bare, flags, strict=True)]
    fixed, moving, labels = (ants.image_read(str(files / f"{n}.nii.gz")) for n in ("fixed", "moving", "labels"))
    for kind, source, interpolator, name in (
        ("image", moving, "linear", "moving"),
        ("labels", labels, "nearestNeighbor", "labels"),
    ):
        expected = ants.apply_transforms(fixed, source, bare, interpolator=interpolator, whichtoinvert=flags).numpy()
        ours = atlasseg.apply_transform(
            files / f"{name}.nii.gz",
            entries,
            reference=files / "fixed.nii.gz",
            kind=kind,
            interpolation="nearest" if kind == "labels" else None,
        )
        tolerance = 0.5 if kind == "labels" else 1e-3 * np.ptp(expected)
        assert (expected != 0).mean() > 0.05
        assert (np.abs(ours.array - expected) > tolerance).mean() < 0.01  # ties and borders, in single precision
    lps = pd.DataFrame(POINTS * [-1, -1, 1], columns=["x", "y", "z"])
    expected = ants.apply_transforms_to_points(3, lps, bare, whichtoinvert=flags)[["x", "y", "z"]].to_numpy()
    moved = atlasseg.apply_transform(POINTS, entries)
    np.testing.assert_allclose(moved, expected * [-1, -1, 1], atol=1e-3)
    lps.to_csv(tmp_path / "points.csv", index=False)
    options = [option for entry in entries for option in ("-t", entry)]
    status, told = run("transform", tmp_path / "points.csv", tmp_path / "moved.csv", *options, "--coordinates", "lps")
    assert status == 0 and "30 points, from the space of the fixed to the moving scan, LPS+ mm" in told
    np.testing.assert_allclose(pd.read_csv(tmp_path / "moved.csv").to_numpy(), expected, atol=1e-3)


def test_points_of_the_moving_scan_go_where_its_volume_goes(files):
    """A label of one voxel, and its centre."""
    entries = [files / "warp.nii.gz", files / "affine.mat"]
    moving = Grid((40, 40, 40), np.diag([2.0, 2, 2, 1]) + np.array([[0, 0, 0, -40]] * 3 + [[0, 0, 0, 0]]))
    array = np.zeros(moving.shape, np.int32)
    array[18:22, 20:24, 21:25] = 300
    fine = Grid((80, 80, 80), np.diag([1.5, 1.5, 1.5, 1]) + np.array([[0, 0, 0, -60]] * 3 + [[0, 0, 0, 0]]))
    result = atlasseg.apply_transform(LabelMap(array, moving.affine), entries, reference=fine)
    assert set(np.unique(result.array)) == {0, 300}
    centre = moving.affine[:3, :3] @ [19.5, 21.5, 22.5] + moving.affine[:3, 3]
    arrived = fine.affine[:3, :3] @ np.argwhere(result.array).mean(axis=0) + fine.affine[:3, 3]
    np.testing.assert_allclose(
        atlasseg.apply_transform(centre, entries, kind="points", inverse=True), arrived, atol=0.4
    )
    forth = atlasseg.apply_transform(POINTS[:5], entries)
    np.testing.assert_allclose(atlasseg.apply_transform(forth, entries, inverse=True), POINTS[:5], atol=1e-3)


def test_objects_and_files_go_together(files):
    mixed = [bend(), files / "affine.mat", Affine.translation((1, 2, 3)).to_sitk()]
    expected = Affine.translation((1, 2, 3))(Affine(MATRIX)(bend()(POINTS)))
    np.testing.assert_allclose(atlasseg.apply_transform(POINTS, mixed), expected, atol=1e-4)
    moving = io.read_image(files / "moving.nii.gz")
    ours = atlasseg.apply_transform(moving, mixed[1], reference=FIXED, interpolation="cubic")
    wanted = resample(moving, FIXED, Affine(MATRIX), interpolation="cubic")
    np.testing.assert_allclose(ours.array, wanted.array, atol=1e-3)
    np.savetxt(files / "flirt.mat", MATRIX)
    by_image = atlasseg.apply_transform(POINTS, [files / "flirt.mat"], flirt_source=moving, flirt_reference=FIXED)
    read = io.read_transform(files / "flirt.mat", flirt_source=moving.grid, flirt_reference=FIXED)
    np.testing.assert_allclose(by_image, read(POINTS), atol=1e-9)


def test_labels_on_the_command_line_are_never_mixed(files, tmp_path):
    source, out = files / "labels.nii.gz", tmp_path / "out.nii.gz"
    rest = ("-t", files / "warp.nii.gz", "-t", files / "affine.mat", "--reference", files / "fixed.nii.gz")
    status, told = run("transform", source, out, *rest)
    assert status == 2 and "as in a label map. Add --labels" in told and not out.exists()
    status, told = run("transform", source, out, *rest, "--labels")
    assert status == 0 and "24 x 28 x 20" in told
    written = io.read_label_map(out)
    assert set(np.unique(written.array)) <= set(np.unique(io.read_label_map(source).array))
    expected = resample(io.read_label_map(source), FIXED, Affine(MATRIX) @ bend())
    assert (written.array != expected.array).mean() < 1e-3  # the affines in the headers are float32
    assert run("transform", source, out, *rest, "--image")[0] == 0
    assert nib.load(out).get_data_dtype() == np.float32
    status, _ = run("transform", files / "moving.nii.gz", out, *rest, "--interpolation", "cubic")
    assert status == 0
    status, told = run("transform", files / "moving.nii.gz", out, *rest, "--interpolation", "gaussian")
    assert status == 2 and "gaussian" in told


def test_flirt_and_spm_on_the_command_line(files, tmp_path):
    np.savetxt(tmp_path / "flirt.mat", MATRIX)
    source, out = files / "moving.nii.gz", tmp_path / "out.nii.gz"
    status, told = run("transform", source, out, "-t", tmp_path / "flirt.mat")
    assert status == 2 and "Add --reference" in told
    status, told = run("transform", source, out, "-t", tmp_path / "flirt.mat", "-r", source)
    assert status == 2 and "Add --flirt-source and --flirt-reference" in told
    images = ("--flirt-source", source, "--flirt-reference", files / "fixed.nii.gz")
    assert run("transform", source, out, "-t", tmp_path / "flirt.mat", *images)[0] == 0  # on the reference of FLIRT
    transform = io.read_transform(tmp_path / "flirt.mat", flirt_source=source, flirt_reference=files / "fixed.nii.gz")
    expected = resample(io.read_image(source), io.read_image(files / "fixed.nii.gz").grid, transform)
    np.testing.assert_allclose(io.read_image(out).array, expected.array, atol=1e-3)
    voxels = np.stack(np.meshgrid(*map(np.arange, FIXED.shape), indexing="ij"), -1)
    positions = voxels @ FIXED.affine[:3, :3].T + FIXED.affine[:3, 3] + bend().displacement_mm
    made = nib.Nifti1Image(positions[:, :, :, None].astype(np.float32), FIXED.affine)
    made.header["intent_code"] = 1007
    nib.save(made, tmp_path / "y_x.nii")
    nib.save(made, tmp_path / "x.nii")
    (tmp_path / "p.tsv").write_text("R\tA\tS\tname\n1\t2\t3\tone\n-10\t5\t7\ttwo, with a comma\n")
    assert run("transform", tmp_path / "p.tsv", tmp_path / "q.tsv", "-t", tmp_path / "y_x.nii")[0] == 0
    moved = pd.read_csv(tmp_path / "q.tsv", sep="\t")
    np.testing.assert_allclose(moved[["R", "A", "S"]], bend()([[1, 2, 3], [-10, 5, 7]]), atol=1e-3)
    assert moved["name"].tolist() == ["one", "two, with a comma"]
    status, told = run("transform", tmp_path / "p.tsv", tmp_path / "q.tsv", "-t", tmp_path / "x.nii")
    assert status == 2 and "Add --convention" in told
    again = run("transform", tmp_path / "p.tsv", tmp_path / "q.tsv", "-t", tmp_path / "x.nii", "--convention", "spm")
    assert again[0] == 0


def test_the_wrong_way_round_is_told(files, caplog):
    far = Affine.translation((1000, 0, 0))
    moving = io.read_image(files / "moving.nii.gz")
    atlasseg.apply_transform(moving, far, reference=FIXED)
    assert "nothing of the volume reaches the grid of the reference" in caplog.text
    caplog.clear()
    atlasseg.apply_transform(moving, Affine(MATRIX), reference=FIXED)
    assert not caplog.text
    atlasseg.apply_transform([[0.0, 0, 0], [900, 0, 0]], bend(), kind="points")
    assert "50 % of the points lie outside of a field" in caplog.text


def test_bad_requests(files):
    image = io.read_image(files / "moving.nii.gz")
    with pytest.raises(InputError, match="reference: expected the fixed image"):
        atlasseg.apply_transform(image, Affine(MATRIX))
    with pytest.raises(InputError, match="whose kind is known"):
        atlasseg.apply_transform(files / "moving.nii.gz", Affine(MATRIX), reference=FIXED)
    with pytest.raises(InputError, match="expected none for points"):
        atlasseg.apply_transform(POINTS, Affine(MATRIX), reference=FIXED)
    with pytest.raises(InputError, match="transforms, number 2: expected a transform"):
        atlasseg.apply_transform(POINTS, [Affine(MATRIX), np.eye(4)])
    for points in ([[1, 2]], [[1, 2, np.nan]], "text"):
        with pytest.raises(InputError, match="value: expected points"):
            atlasseg.apply_transform(points, Affine(MATRIX), kind="points")
    for transforms in ([], None, 3):
        with pytest.raises(InputError):
            atlasseg.apply_transform(POINTS, transforms)
