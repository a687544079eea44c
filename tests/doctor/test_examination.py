"""Every fault planted in a good folder is found, and a good folder has none."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from atlasseg import doctor, io
from atlasseg.doctor import examination, files
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Image, LabelMap, Mask, ProbabilityMap

IDS = "abcdef"


def examine(folder, **options):
    return list(doctor.examine(folder, register=False, **options).findings)


SHAPE = (9, 11, 8)
AFFINE = np.array([[0.9, 0.2, 0.1, 31.0], [-0.15, 1.2, -0.3, -12.5], [0.05, 0.25, 2.5, 7.25], [0, 0, 0, 1]])
AFFINE[:3, :3] = np.linalg.svd(AFFINE[:3, :3] / [1, 1.2, 2.5])[0] @ np.diag([0.9, 1.2, 2.5])  # no shear


def place(id_, affine=AFFINE):
    moved = affine.copy()
    moved[:3, 3] += 50 * IDS.index(id_)
    return moved


def scan(id_):
    return np.random.default_rng(IDS.index(id_)).normal(100, 30, SHAPE).astype(np.float32)


def drawing(id_):
    """Two solid boxes whose sizes differ a little from atlas to atlas."""
    array = np.zeros(SHAPE, np.int32)
    more, notch = IDS.index(id_) % 2, IDS.index(id_) // 2
    array[1:4, 1 : 9 + more, 2:6] = 1
    array[5:8, 2:9, 2 : 6 + more] = 300
    array[1, 1, 2 : 2 + notch] = 0
    return array


@pytest.fixture
def folder(tmp_path):
    for id_ in IDS:
        io.write_image(Image(scan(id_), place(id_)), tmp_path / "images" / f"{id_}.nii.gz")
        io.write_label_map(LabelMap(drawing(id_), place(id_)), tmp_path / "labels" / f"{id_}.nii.gz")
        io.write_mask(Mask(np.ones(SHAPE), place(id_)), tmp_path / "masks" / f"{id_}.nii.gz")
    io.write_label_table(LabelTable((Label(1, "head"), Label(300, "tail"))), tmp_path / "labels.tsv")
    return tmp_path


def nifti(path, array, affine, **codes):
    header = nib.Nifti1Image(array, affine).header
    header.set_sform(affine, codes.get("sform", 1))
    header.set_qform(codes.get("qform_affine", affine), codes.get("qform", 1))
    header.set_xyzt_units(codes.get("unit", "mm"))
    nib.save(nib.Nifti1Image(array, None, header), path)


def redraw(folder, id_, array, affine=None):
    io.write_label_map(LabelMap(array, place(id_) if affine is None else affine), folder / "labels" / f"{id_}.nii.gz")


def assert_found(folder, severity, file, text):
    findings = examine(folder)
    matching = [
        finding
        for finding in findings
        if (finding.severity, finding.file) == (severity, folder / file) and text in finding.message
    ]
    assert len(matching) == 1, findings
    return matching[0]


def test_a_good_folder_has_no_findings(folder):
    assert examine(folder) == []


def test_a_folder_of_targets_has_a_note_only(folder):
    for path in (folder / "labels").iterdir():
        path.unlink()
    assert_found(folder, "note", ".", "the scans can be targets")
    assert len(examine(folder)) == 1


def test_progress_is_told_every_id(folder):
    told = []
    examine(folder, progress=told.append)
    assert told == list(IDS)


def test_what_reading_warns_of_is_not_logged_as_well(folder, caplog):
    nifti(folder / "images" / "a.nii.gz", scan("a"), place("a"), sform=0, qform=0)
    examine(folder)
    assert not caplog.records
    io.read_image(folder / "images" / "a.nii.gz")
    assert caplog.records  # and afterwards it is again


# -------------------------------------------------------------------------------------------- layout and files


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_folder_without_images_is_an_error(tmp_path, path):
    (finding,) = examine(tmp_path / path)
    assert finding.severity == "error" and "expected a folder images/" in finding.message


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    assert_found(tmp_path, "error", "images", "expected images, got none")


def test_files_without_a_partner_are_errors(folder):
    (folder / "labels" / "b.nii.gz").unlink()
    assert "labels/b.nii.gz" in assert_found(folder, "error", "images/b.nii.gz", "expected a label file").message
    (folder / "images" / "c.nii.gz").unlink()
    assert_found(folder, "error", "labels/c.nii.gz", "without an image")
    assert_found(folder, "warning", "masks/c.nii.gz", "a mask without an image")


def test_duplicate_ids_are_errors(folder):
    (folder / "images" / "b.nii").write_bytes((folder / "images" / "b.nii.gz").read_bytes())
    assert_found(folder, "error", "images/b.nii.gz", "expected unique ids, got 'b', which b.nii has too")


@pytest.mark.parametrize("kind", ["images", "labels", "masks"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "two-dimensional"])
def test_files_that_cannot_be_read_are_errors(folder, kind, damage):
    path = folder / kind / "b.nii.gz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "two-dimensional":
        nib.save(nib.Nifti1Image(np.ones((7, 9), np.uint8), np.eye(4)), path)
    else:
        path.write_text("text" if damage == "text" else "")
    findings = [finding for finding in examine(folder) if finding.file == path]
    assert [finding.severity for finding in findings] == ["error"]
    assert findings[0].remedy


def test_labels_that_are_not_whole_are_errors(folder):
    nifti(folder / "labels" / "b.nii.gz", drawing("b") + np.float32(0.5), place("b"))
    assert_found(folder, "error", "labels/b.nii.gz", "whole numbers")


def test_an_unforeseen_failure_is_a_finding(folder, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(files, "_image_flaws", fail)
    findings = examine(folder)
    assert {(finding.severity, finding.message) for finding in findings} == {("error", "ZeroDivisionError: oh")}
    assert len(findings) == len(IDS)


def test_a_folder_that_cannot_be_listed_is_a_finding(folder, monkeypatch):
    nifti(folder / "images" / "a.nii.gz", np.full(SHAPE, 7, np.uint8), place("a"))

    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "labels")

    monkeypatch.setattr(examination, "read_library", fail)
    assert_found(folder, "error", ".", "PermissionError")
    assert_found(folder, "error", "images/a.nii.gz", "every intensity is 7")


def test_a_faulty_label_table_or_sidecar_is_an_error(folder):
    (folder / "labels" / "b.json").write_text("{")
    assert_found(folder, "error", ".", "b.json, line 1: not JSON")
    (folder / "labels" / "b.json").unlink()
    (folder / "labels.tsv").write_text("index\tname\n1\thead\n1\ttail\n")
    assert_found(folder, "error", "labels.tsv", "line 3")


# ------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_labels_and_masks_off_the_grid_are_errors(folder, kind):
    moved = place("b")
    moved[:3, 3] += moved[:3, 2] / 2
    nifti(folder / kind / "b.nii.gz", drawing("b").astype(np.uint16), moved)
    assert_found(folder, "error", f"{kind}/b.nii.gz", "not on the grid of b.nii.gz: its corners are up to 1.25 mm")
    nifti(folder / kind / "b.nii.gz", drawing("b")[:-1].astype(np.uint16), place("b"))
    assert_found(folder, "error", f"{kind}/b.nii.gz", "its shape is (8, 11, 8), that of the image (9, 11, 8)")


def test_headers_that_leave_the_place_in_doubt_are_warned_of(folder):
    moved = place("a")
    moved[:3, 3] += 0, 3, 4
    nifti(folder / "images" / "a.nii.gz", scan("a"), place("a"), qform_affine=moved)
    assert_found(folder, "warning", "images/a.nii.gz", "sform and qform differ by up to 5 mm")
    nifti(folder / "images" / "b.nii.gz", scan("b"), place("b"), sform=0, qform=0)
    assert_found(folder, "warning", "images/b.nii.gz", "neither sform nor qform is set")
    nifti(folder / "images" / "c.nii.gz", scan("c"), place("c"), unit="meter")
    assert_found(folder, "warning", "images/c.nii.gz", "lengths in the header are in meter")


def test_two_voxel_sizes_in_one_header_are_an_error(folder):
    path = folder / "images" / "a.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<3f", content, 80, 1.25, 1.25, 0.5)
    path.write_bytes(gzip.compress(content))
    assert_found(folder, "error", "images/a.nii.gz", "in its sform and 1.25 x 1.25 x 0.5 mm in its pixdim")


def test_labels_that_scaling_moved_are_warned_of(folder):
    path = folder / "labels" / "a.nii.gz"
    nifti(path, (drawing("a") + np.float32(2e-4) * (drawing("a") > 0)).astype(np.float32), place("a"))
    assert_found(folder, "warning", "labels/a.nii.gz", "they are rounded")


def test_unusual_axes_are_noted(folder):
    flipped = place("b")
    flipped[:3, 0] *= -1
    nifti(folder / "images" / "b.nii.gz", scan("b"), flipped)
    assert_found(folder, "note", "images", "axes are left-handed in 1 of 6: b")
    assert_found(folder, "note", "images/b.nii.gz", "as in the other scans")
    sheared = place("c")
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    nifti(folder / "images" / "c.nii.gz", scan("c"), sheared, qform=0)
    assert_found(folder, "note", "images/c.nii.gz", "sheared")


def test_unusual_spacing_is_warned_of_whatever_the_order_of_the_axes(folder):
    turned = place("b")[:, [2, 0, 1, 3]]
    nifti(folder / "images" / "b.nii.gz", np.transpose(scan("b"), (2, 0, 1)), turned)
    assert not [
        finding for finding in examine(folder) if "as in the other scans" in finding.message and "mm" in finding.message
    ]
    scaled = place("c")
    scaled[:3, :3] *= 10  # centimetres for millimetres
    nifti(folder / "images" / "c.nii.gz", scan("c"), scaled)
    told = "expected voxels of 0.9 x 1.2 x 2.5 mm as in the other scans, got 9 x 12 x 25 mm"
    assert_found(folder, "warning", "images/c.nii.gz", told)


# ---------------------------------------------------------------------------------------------------- intensities


def test_odd_intensities_are_found(folder):
    nifti(folder / "images" / "a.nii.gz", np.full(SHAPE, 7, np.uint8), place("a"))
    assert_found(folder, "error", "images/a.nii.gz", "every intensity is 7")
    array = scan("b")
    array[:2] = np.nan
    nifti(folder / "images" / "b.nii.gz", array, place("b"))
    assert_found(folder, "warning", "images/b.nii.gz", "22.22% of the intensities are NaN or infinite")
    nifti(folder / "images" / "c.nii.gz", scan("c") * 1000, place("c"))
    assert_found(folder, "note", "images/c.nii.gz", "expected an intensity range near")
    nifti(folder / "images" / "d.nii.gz", drawing("d").astype(np.float32) + 60, place("d"))
    assert_found(folder, "warning", "images/d.nii.gz", "fewer than ten different intensities")


def test_duplicates_are_found_by_content_under_any_name_and_header(folder):
    nifti(folder / "images" / "b.nii.gz", scan("a"), place("b"))
    assert_found(folder, "warning", "images/b.nii.gz", "the same intensities as a.nii.gz")
    array = drawing("c")
    array[2, 3, 3] = 0  # as no other
    redraw(folder, "c", array)
    redraw(folder, "d", array)
    assert_found(folder, "warning", "labels/d.nii.gz", "the same labels as c.nii.gz, though the images differ")


# --------------------------------------------------------------------------------------------------------- labels


def test_empty_negative_and_unknown_labels_are_warned_of(folder):
    redraw(folder, "a", np.zeros(SHAPE, np.int32))
    assert_found(folder, "warning", "labels/a.nii.gz", "has only background")
    array = drawing("b")
    array[1:4, 1:3, 2:6] = -4
    redraw(folder, "b", array)
    assert_found(folder, "warning", "labels/b.nii.gz", "negative labels: -4")
    assert_found(folder, "warning", "labels/b.nii.gz", "labels that the label table lacks: -4")


def test_labels_stored_as_floats_are_noted_once(folder):
    for id_ in "ab":
        nifti(folder / "labels" / f"{id_}.nii.gz", drawing(id_).astype(np.float32), place(id_))
    assert_found(folder, "note", "labels", "stored as floats with integer values in 2 of 6: a, b")


def test_labels_that_some_atlases_lack_are_warned_of_unless_said(folder):
    array = drawing("b")
    array[array == 300] = 0
    redraw(folder, "b", array)
    finding = assert_found(
        folder, "warning", "labels/b.nii.gz", "expected labels that most other scans have, got none of 300"
    )
    assert '{"not_annotated": [300]}' in finding.remedy
    io.write_json({"not_annotated": [300]}, folder / "labels" / "b.json")
    assert examine(folder) == []


def test_labels_that_few_have_and_that_none_has_are_noted(folder):
    array = drawing("b")
    array[1:4, 1:3, 2:6] = 8
    redraw(folder, "b", array)
    rows = (Label(1, "head"), Label(8, "rare"), Label(9, "nowhere"), Label(300, "tail"))
    io.write_label_table(LabelTable(rows), folder / "labels.tsv")
    assert_found(folder, "note", "labels/b.nii.gz", "labels that most other scans do not have: 8")
    assert_found(folder, "note", ".", "labels of the label table that are in no label map: 9")


def test_slips_of_the_brush_are_found(folder):
    array = drawing("b")
    array[8, 10, 7] = 1  # loose, and of a diagonal neighbour's label below
    array[7, 9, 6] = 300
    array[0, 0, 0] = 5
    redraw(folder, "b", array)
    assert_found(folder, "warning", "labels/b.nii.gz", "labels of a single voxel: 5")
    finding = assert_found(folder, "note", "labels/b.nii.gz", "loose fragments")
    assert "1 (1 of at most 1 voxels)" in finding.message
    # the one that touches its structure by a corner is no fragment, in 3-D neighbourhoods of 26
    assert "300 (" not in finding.message


def test_huge_labels_cost_no_memory(folder):
    for id_ in IDS:
        array = drawing(id_)
        array[array == 300] = 614454277
        redraw(folder, id_, array)
    io.write_label_table(LabelTable((Label(1, "head"), Label(614454277, "tail"))), folder / "labels.tsv")
    assert examine(folder) == []


def test_volumes_far_from_the_usual_are_warned_of(folder):
    array = drawing("b")
    array[5:7, 2:9] = 0  # a third of the tail is left
    redraw(folder, "b", array)
    finding = assert_found(folder, "warning", "labels/b.nii.gz", "outlying volumes in mm^3: tail 94.5 (median")
    assert "head" not in finding.message


def test_too_few_atlases_say_nothing_of_volumes(folder):
    array = drawing("b")
    array[5:7, 2:9] = 0
    redraw(folder, "b", array)
    for id_ in "cdef":
        for kind in ("images", "labels", "masks"):
            (folder / kind / f"{id_}.nii.gz").unlink()
    assert examine(folder) == []


def test_a_mask_that_cuts_labels_off_is_warned_of(folder):
    mask = np.ones(SHAPE)
    mask[:2] = 0
    io.write_mask(Mask(mask, place("a")), folder / "masks" / "a.nii.gz")
    assert_found(folder, "warning", "masks/a.nii.gz", "of the labelled voxels lie outside the mask")


# -------------------------------------------------------------------------------------------------- probabilities


def test_probabilities_are_read_too(tmp_path):
    io.write_image(Image(scan("a"), place("a")), tmp_path / "images" / "a.nii.gz")
    weights = np.random.default_rng(0).random((*SHAPE, 2))
    probabilities = ProbabilityMap.from_dense(weights, [0, 3], place("a"))
    io.write_probability_map(probabilities, tmp_path / "probabilities" / "a.nii.gz")
    assert examine(tmp_path) == []
    moved = ProbabilityMap.from_dense(weights, [0, 3], place("b"))
    io.write_probability_map(moved, tmp_path / "probabilities" / "a.nii.gz")
    assert_found(tmp_path, "error", "probabilities/a.nii.gz", "expected the grid of")


def test_findings_come_worst_first(folder):
    nifti(folder / "images" / "a.nii.gz", scan("a") * 1000, place("a"))  # a note
    nifti(
        folder / "images" / "b.nii.gz", scan("b"), place("b"), sform=0, qform=0
    )  # moves it off its labels: an error too
    severities = [finding.severity for finding in examine(folder)]
    assert set(severities) == {"error", "warning", "note"}
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_real_folders_hold_no_errors(real_data):
    findings = examine(real_data / "hippocampus" / "atlases")
    assert {finding.severity for finding in findings} <= {"warning", "note"}
    spans = [finding.file.name for finding in findings if "expected an intensity range near" in finding.message]
    assert "hippocampus_136.nii.gz" in spans  # one of those that range to 1e6
    assert all(isinstance(finding.file, Path) for finding in findings)
