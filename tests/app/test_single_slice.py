"""Single slices go through register and run to the end, and are registered and labelled rightly."""

import numpy as np
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.cli import app
from atlasseg.registration.quality import measure_quality
from atlasseg.transforms import Affine
from atlasseg.volume import Grid, Image, LabelMap

SHAPE = (48, 56)
SPACING = 1.5, 1.25, 4.0


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.output


def placed(axis, shift=(0.0, 0.0)):
    """Affine of a slice whose third, single-voxel axis of the anatomy is the given axis of the array."""
    order = {2: [0, 1, 2], 1: [0, 2, 1], 0: [2, 0, 1]}[axis]
    affine = np.zeros((4, 4))
    for column, anatomy in enumerate(order):
        affine[anatomy, column] = SPACING[anatomy]
    affine[:3, 3] = -30 + shift[0], -35 + shift[1], 12
    affine[3, 3] = 1
    return affine


def drawn(seed, moved_mm=(0.0, 0.0)):
    """A disc with two discs in it, textured: intensities and labels of shape SHAPE, moved in the plane."""
    x, y = np.meshgrid(np.arange(SHAPE[0]) * SPACING[0] - 36, np.arange(SHAPE[1]) * SPACING[1] - 35, indexing="ij")
    x, y = x - moved_mm[0], y - moved_mm[1]
    labels = np.zeros(SHAPE, np.int32)
    labels[(x / 27) ** 2 + (y / 30) ** 2 < 1] = 1
    labels[((x + 9) / 7) ** 2 + (y / 12) ** 2 < 1] = 2
    labels[((x - 10) / 8) ** 2 + ((y - 6) / 7) ** 2 < 1] = 3
    noise = np.random.default_rng(seed).normal(0, 4, SHAPE)
    return np.array([0, 90, 180, 140])[labels] + 10 * np.sin(x / 5) * (labels > 0) + noise, labels


def write(folder, id_, axis, **how):
    intensities, labels = drawn(**how)
    affine = placed(axis)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    io.write_image(Image(np.expand_dims(intensities, axis), affine), folder / "images" / f"{id_}.nii.gz")
    io.write_label_map(LabelMap(np.expand_dims(labels, axis), affine), folder / "labels" / f"{id_}.nii.gz")
    return folder / "images" / f"{id_}.nii.gz"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", ["affine", "rigid,ffd", "rigid,diffeomorphic", "itk_rigid"])
def test_slices_are_registered_in_their_plane(tmp_path, axis, steps):
    fixed = write(tmp_path / "fixed", "f", axis, seed=1)
    moving = write(tmp_path / "moving", "m", axis, seed=2, moved_mm=(4.5, -3.75))
    carried = tmp_path / "carried.nii.gz"
    status, output = call(
        "register", fixed, moving, "--out", tmp_path / "t.h5", "--steps", steps, "--labels",
        tmp_path / "moving" / "labels" / "m.nii.gz", "--warped-labels", carried,
    )  # fmt: skip
    assert status == 0, output
    found = io.read_label_map(carried).array.squeeze()
    expected = drawn(seed=1)[1]
    for label in (1, 2, 3):
        both = ((found == label) & (expected == label)).sum()
        assert 2 * both / ((found == label).sum() + (expected == label).sum()) > 0.93
    scan = io.read_image(fixed)
    point = scan.grid.centre_mm[None]
    moved = (io.read_transform(tmp_path / "t.h5")(point) - point)[0]
    np.testing.assert_allclose(moved, (4.5, -3.75, 0), atol=1.0)


def test_slices_run_to_the_end(tmp_path):
    for n, moved in enumerate([(3, -2.5), (-4.5, 2.5), (1.5, 5)]):
        write(tmp_path / "atlases", f"a{n}", 2, seed=n, moved_mm=moved)
    write(tmp_path / "targets", "t", 2, seed=9)
    out = tmp_path / "out"
    status, output = call(
        "run", "--atlases", tmp_path / "atlases", "--targets", tmp_path / "targets", "--out", out, "--jobs", "1"
    )
    assert status == 0, output
    found = next((out / "t").glob("*_dseg.nii.gz"))
    labels = io.read_label_map(found)
    assert labels.shape == (*SHAPE, 1)
    expected = drawn(seed=9)[1]
    for label in (1, 2, 3):
        both = ((labels.array[..., 0] == label) & (expected == label)).sum()
        assert 2 * both / ((labels.array == label).sum() + (expected == label).sum()) > 0.93
    assert (out / "index.html").is_file() and (out / "t" / "t.html").is_file()


def test_a_jacobian_of_a_slice_is_that_of_its_plane():
    stretch = Affine(np.diag([1.5, 0.8, 1.0, 1.0]))
    for axis in range(3):
        shape = np.insert(np.array(SHAPE), axis, 1)
        found = measure_quality(stretch, Grid(tuple(int(n) for n in shape), placed(axis)))
        assert found.jacobian_min == pytest.approx(1.2, rel=1e-6) and found.jacobian_max == pytest.approx(1.2, rel=1e-6)
        assert found.folded_share == 0
    folded = measure_quality(Affine(np.diag([-1.0, 1.0, 1.0, 1.0])), Grid((*SHAPE, 1), placed(2)))
    assert folded.folded_share == 1


def test_a_slice_of_nothing_but_a_row_is_measured():
    assert measure_quality(
        Affine(np.diag([2.0, 1.0, 1.0, 1.0])), Grid((9, 1, 1), np.eye(4))
    ).jacobian_mean == pytest.approx(2)


def test_the_case_of_two_slices(cases, tmp_path):
    folder = cases.parent / "methods" / "misc"
    status, output = call(
        "register", folder / "slice.nii.gz", folder / "slice_m.nii.gz", "--out", tmp_path / "t.h5", "--warped",
        tmp_path / "w.nii.gz",
    )  # fmt: skip
    assert status == 0, output
    fixed, carried = io.read_image(folder / "slice.nii.gz"), io.read_image(tmp_path / "w.nii.gz")
    before = np.corrcoef(fixed.array.ravel(), io.read_image(folder / "slice_m.nii.gz").array.ravel())[0, 1]
    assert np.corrcoef(fixed.array.ravel(), carried.array.ravel())[0, 1] >= before - 0.02
