"""A header that gives two voxel sizes: told by every command, and the one that is chosen is used everywhere."""

import gzip
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.recipe import parse_recipe
from atlasseg.volume import Image, LabelMap

ONE_MM = np.eye(4)
PIXDIM = (0.8, 0.9, 2.0)


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.output


def spoiled(path):
    """Give a NIfTI file, whose sform says 1 mm, another pixdim."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<3f", content, 80, *PIXDIM)
    struct.pack_into("<h", content, 252, 0)  # no qform
    path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture
def hearts(tmp_path):
    drawn = np.zeros((20, 18, 12), np.int32)
    drawn[5:15, 4:14, 3:9] = 1
    for folder, ids in (("atlases", "ab"), ("targets", "t")):
        for n, id_ in enumerate(ids):
            (tmp_path / folder / "images").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "labels").mkdir(exist_ok=True)
            noise = np.random.default_rng(n + len(ids)).normal(0, 5, drawn.shape)
            io.write_image(Image(100 * drawn + noise, ONE_MM), tmp_path / folder / "images" / f"{id_}.nii.gz")
            io.write_label_map(LabelMap(drawn, ONE_MM), tmp_path / folder / "labels" / f"{id_}.nii.gz")
            for kind in ("images", "labels"):
                spoiled(tmp_path / folder / kind / f"{id_}.nii.gz")
    return tmp_path


def test_libraries_and_targets_are_read_by_the_size_that_is_chosen(hearts):
    for chosen, size in (("sform", (1, 1, 1)), ("pixdim", PIXDIM)):
        atlas = read_library(hearts / "atlases", spacing_from=chosen).read("a")
        target = read_targets(hearts / "targets", spacing_from=chosen)[0]
        scan, _ = target.read()
        for volume in (atlas.image, atlas.labels, scan, target.read_labels(scan)):
            np.testing.assert_allclose(volume.spacing_mm, size, rtol=1e-6)


def test_a_recipe_says_which(hearts):
    tables = {"fusion": {"method": "majority"}, "data": {"spacing_from": "pixdim", "atlases": "atlases"}}
    assert parse_recipe(tables, base=hearts).data.spacing_from == "pixdim"
    assert parse_recipe(tables, base=hearts).data.atlases == (hearts / "atlases",)
    with pytest.raises(InputError, match="spacing_from"):
        parse_recipe({**tables, "data": {"spacing_from": "guess"}})


def test_doctor_calls_it_an_error(hearts):
    status, output = call("doctor", hearts / "atlases")
    assert status == 1 and "1 x 1 x 1 mm in its sform and 0.8 x 0.9 x 2 mm in its pixdim" in " ".join(output.split())


def test_evaluate_tells_both_and_measures_by_the_chosen_one(hearts):
    moved = np.roll(io.read_label_map(hearts / "targets" / "labels" / "t.nii.gz").array, 2, axis=2)
    other = hearts / "moved.nii.gz"
    io.write_label_map(LabelMap(moved, ONE_MM), other)
    spoiled(other)
    found = {}
    for chosen in ("sform", "pixdim"):
        table = hearts / f"{chosen}.tsv"
        reference = hearts / "targets" / "labels" / "t.nii.gz"
        status, output = call("evaluate", other, reference, "--spacing-from", chosen, "--out", table)
        said = " ".join(output.split())
        assert status == 0 and "1 x 1 x 1 mm in its sform and 0.8 x 0.9 x 2 mm in its pixdim" in said
        assert f"The {chosen} is used" in said
        rows = [line.split("\t") for line in table.read_text().splitlines()]
        head = rows[0]
        found[chosen] = {row[head.index("metric")]: row[head.index("value")] for row in rows[1:]}
    assert float(found["sform"]["hausdorff_95_mm"]) == pytest.approx(2)
    assert float(found["pixdim"]["hausdorff_95_mm"]) == pytest.approx(4)


def test_run_tells_both_and_writes_on_the_chosen_size(hearts):
    for chosen, size in (("sform", (1, 1, 1)), ("pixdim", PIXDIM)):
        out = hearts / f"out_{chosen}"
        status, output = call(
            "run", "--atlases", hearts / "atlases", "--targets", hearts / "targets", "--out", out, "--jobs", "1",
            "--spacing-from", chosen, "--set", 'registration.steps=["rigid"]',
        )  # fmt: skip
        said = " ".join(output.split())
        assert status == 0, output
        assert (
            "1 x 1 x 1 mm in its sform and 0.8 x 0.9 x 2 mm in its pixdim" in said and f"The {chosen} is used" in said
        )
        labels = io.read_label_map(next((out / "t").glob("*_dseg.nii.gz")))
        np.testing.assert_allclose(labels.spacing_mm, size, rtol=1e-6)
        volumes = next((out / "t").glob("*volumes.tsv")).read_text().splitlines()
        volume = float(volumes[1].split("\t")[volumes[0].split("\t").index("volume_mm3")])
        assert volume == pytest.approx((labels.array == 1).sum() * np.prod(size), rel=1e-3)


@pytest.mark.parametrize("chosen", ["sform", "pixdim"])
def test_register_uses_it(hearts, chosen):
    fixed, moving = (hearts / "atlases" / "images" / f"{id_}.nii.gz" for id_ in "ab")
    status, output = call(
        "register", fixed, moving, "--out", hearts / "t.tfm", "--warped", hearts / "w.nii.gz", "--steps", "rigid",
        "--spacing-from", chosen,
    )  # fmt: skip
    assert status == 0, output
    size = (1, 1, 1) if chosen == "sform" else PIXDIM
    np.testing.assert_allclose(io.read_image(hearts / "w.nii.gz").spacing_mm, size, rtol=1e-6)
