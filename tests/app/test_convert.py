"""Volumes from one format to another, sheared ones straightened where asked for."""

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from atlasseg import io
from atlasseg.app.convert import convert
from atlasseg.cli import app
from atlasseg.volume import Image, LabelMap

SHAPE = (14, 12, 10)
AFFINE = np.diag([-1.2, -1.5, 2.5, 1.0])
SHEARED = AFFINE.copy()
SHEARED[1, 2] = -0.67


def call(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.output


def ramp(affine):
    """Intensities that are linear in space, so that linear interpolation is exact."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return (at @ affine[:3, :3].T + affine[:3, 3]) @ [1.0, 2.0, 3.0] + 500


def test_a_sheared_scan_becomes_one_that_itk_opens(tmp_path):
    io.write_image(Image(ramp(SHEARED), SHEARED), tmp_path / "tilt.nii.gz")
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "tilt.nii.gz"))
    grid = convert(tmp_path / "tilt.nii.gz", tmp_path / "straight.nii.gz", orthogonal=True)
    theirs = sitk.ReadImage(str(tmp_path / "straight.nii.gz"))
    assert theirs.GetSize() == grid.shape
    found = io.read_image(tmp_path / "straight.nii.gz")
    inside = tuple(slice(3, -3) for _ in range(3))
    at = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1)
    expected = (at @ found.affine[:3, :3].T + found.affine[:3, 3]) @ [1.0, 2.0, 3.0] + 500
    np.testing.assert_allclose(found.array[inside], expected[inside], rtol=1e-4)


def test_sheared_labels_stay_labels(tmp_path, caplog):
    drawn = np.zeros(SHAPE, np.int32)
    drawn[4:10, 3:9, 2:8] = 614454277
    io.write_label_map(LabelMap(drawn, SHEARED), tmp_path / "seg.nii.gz")
    caplog.clear()
    assert call("convert", tmp_path / "seg.nii.gz", tmp_path / "out.nii.gz", "--labels", "--orthogonal")[0] == 0
    found = io.read_label_map(tmp_path / "out.nii.gz")
    assert found.values.tolist() == [0, 614454277]
    volume = abs(np.linalg.det(found.affine[:3, :3])) * (found.array > 0).sum()
    assert volume == pytest.approx((drawn > 0).sum() * abs(np.linalg.det(SHEARED[:3, :3])), rel=0.05)
    assert not caplog.records
    sitk.ReadImage(str(tmp_path / "out.nii.gz"))


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_volume_without_shear_stays_as_it_is(tmp_path, orthogonal):
    io.write_image(Image(ramp(AFFINE), AFFINE), tmp_path / "a.mha")
    convert(tmp_path / "a.mha", tmp_path / "b.nii.gz", orthogonal=orthogonal)
    first, second = io.read_image(tmp_path / "a.mha"), io.read_image(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)


def test_a_wrong_request_is_one_line(tmp_path):
    status, output = call("convert", tmp_path / "none.nii.gz", tmp_path / "out.nii.gz")
    assert status == 2 and "none.nii.gz: no such file or folder" in output
    io.write_image(Image(ramp(AFFINE), AFFINE), tmp_path / "a.mha")
    status, output = call("convert", tmp_path / "a.mha", tmp_path / "out.jpg")
    assert status == 2 and "expected a name that ends in" in output


def test_the_case_of_a_tilted_gantry(cases, tmp_path):
    status, output = call("convert", cases / "dicom" / "tilt15", tmp_path / "out.nii.gz", "--orthogonal")
    assert status == 0 and "sheared by 15 degrees" in output
    assert sitk.ReadImage(str(tmp_path / "out.nii.gz")).GetSize()[0] >= 12


def test_a_series_is_chosen_by_number(cases, tmp_path):
    folder = cases / "dicom" / "two_series"
    status, output = call("convert", folder, tmp_path / "out.nii.gz")
    assert status == 2 and "#1: T1" in output and "#2: T1" in output
    assert call("convert", folder, tmp_path / "a.nii.gz", "--series", "2")[0] == 0
    assert call("convert", f"{folder}#2", tmp_path / "b.nii.gz")[0] == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


# --------------------------------------------------------------------------------------------- formats with structures


def boxes():
    array = np.zeros((7, 6, 5), np.int32)
    array[1:3, 1:4, 1:3], array[4:6, 2:5, 2:5] = 3, 40
    return LabelMap(array, np.diag([-1.5, -1.2, 2.0, 1.0]))


TABLE = 'index\tname\tcolor\ttype_code\n3\tKidney "L"\t#0102FF\tSCT^64033007^Kidney\n40\tLiver/é\t#FF8000\tn/a\n'


def test_a_slicer_segmentation_keeps_names_colours_and_codes(tmp_path):
    io.write_label_map(boxes(), tmp_path / "a.nii.gz")
    (tmp_path / "a.tsv").write_text(TABLE)
    assert (
        call("convert", tmp_path / "a.nii.gz", tmp_path / "a.seg.nrrd", "--labels", "--table", tmp_path / "a.tsv")[0]
        == 0
    )
    found = io.read_label_table(tmp_path / "a.seg.nrrd")
    assert found == io.read_label_table(tmp_path / "a.tsv")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "a.seg.nrrd").array, boxes().array)
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert image.GetMetaData("Segment1_Extent") == "4 5 2 4 2 4" and image.GetMetaData("Segment1_LabelValue") == "40"
    assert call("convert", tmp_path / "a.seg.nrrd", tmp_path / "b.nii.gz")[0] == 0
    assert io.read_label_table(tmp_path / "b.tsv") == found
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "b.nii.gz").array, boxes().array)


def test_structures_are_chosen_and_ordered(tmp_path):
    io.write_label_map(boxes(), tmp_path / "a.seg.nrrd")
    assert call("convert", tmp_path / "a.seg.nrrd", tmp_path / "b.nii.gz", "--structures", "label 40")[0] == 0
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "b.nii.gz").values, [0, 40])
    status, output = call("convert", tmp_path / "b.nii.gz", tmp_path / "c.nii.gz", "--labels", "--structures", "x")
    assert status == 2 and "expected a file with named structures" in output


def test_negative_labels_have_no_segment(tmp_path):
    io.write_label_map(LabelMap(-boxes().array, boxes().affine), tmp_path / "a.nii.gz")
    status, output = call("convert", tmp_path / "a.nii.gz", tmp_path / "a.seg.nrrd", "--labels")
    assert status == 2 and "expected labels above 0, as 3D Slicer numbers segments, got -40" in " ".join(output.split())


def test_the_reference_of_an_evaluation_goes_by_names(tmp_path, cases):
    structures = cases / "dicomseg" / "two_segments_binary.dcm"
    labels = io.read_label_map(structures)
    renumbered = np.select([labels.array == 1, labels.array == 2], [70, 5])
    renumbered[0, 0, 0] = 9
    io.write_label_map(LabelMap(renumbered, labels.affine), tmp_path / "seg.nii.gz")
    (tmp_path / "seg.tsv").write_text("index\tname\n70\tLiver\n5\tspleen\n9\tnode\n")
    status, output = call("evaluate", tmp_path / "seg.nii.gz", structures, "--out", tmp_path / "scores.tsv")
    assert status == 0, output
    rows = [line.split("\t") for line in (tmp_path / "scores.tsv").read_text().splitlines()]
    dice = {row[1]: float(row[3]) for row in rows if row[2] == "dice"}
    assert dice == {"spleen": 1.0, "Liver": 1.0, "foreground": 1.0}
    assert "has no structures for 'node', which are not evaluated" in " ".join(output.split())
