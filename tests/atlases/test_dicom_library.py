"""Libraries and targets in DICOM: a folder for each case, structures known by their names."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, generate_uid

from atlasseg import io
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.doctor import examine
from atlasseg.errors import InputError
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import LabelMap

SHAPE = (9, 8, 6)


def write_series(folder, *, study, series="ct", seed=0):
    """A CT series of 6 slices."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.uint16)
    for k in range(SHAPE[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        uid = generate_uid(entropy_srcs=[study, series, str(k)])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[study])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[study, series])
        dataset.SeriesDescription, dataset.Modality, dataset.PatientID = series, "CT", study
        dataset.PatientName = dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = ""
        dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.ReferringPhysicianName = ""
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-10, -20, 3.0 * k], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.25], 3.0
        dataset.Columns, dataset.Rows = SHAPE[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
        dataset.PixelData = values[..., k].T.tobytes()
        dataset.save_as(folder / f"{series}{k}.dcm", enforce_file_format=True)
    return folder


def write_structures(folder, rows, *, name="rs.dcm", kind="rtstruct", scan=None):
    """Structures {name: (number, first i)}: blocks of 2 x 3 x 2 voxels."""
    scan = io.read_image(scan or folder)
    array = np.zeros(SHAPE, np.int32)
    for number, i in rows.values():
        array[i : i + 2, 2:5, 1:3] = number
    table = LabelTable(tuple(Label(number, name) for name, (number, _) in rows.items()))
    io.write_label_map(LabelMap(array, scan.affine), folder / name, like=scan, format=kind, table=table)
    return array


@pytest.fixture
def library(tmp_path):
    """Three cases whose structures have other numbers in each, and a label table that chooses two of them."""
    root = tmp_path / "library"
    rows = [{"Heart": (1, 1), "Couch": (2, 5)}, {"Couch": (1, 5), "heart": (4, 2), "Lung": (9, 6)}, {"Lung": (1, 3)}]
    for n, each in enumerate(rows):
        folder = write_series(root / f"p{n}", study=f"p{n}", seed=n)
        write_structures(folder, each, kind="dicomseg" if n == 1 else "rtstruct")
    (root / "labels.tsv").write_text("index\tname\n10\tHeart\n20\tLung\n")
    return root


def test_a_library_of_dicom_folders(library, caplog):
    found = read_library(library)
    assert found.ids == ("p0", "p1", "p2") and found.kind == "multi"
    assert [sorted(found.files(id_).not_annotated) for id_ in found.ids] == [[20], [], [10]]
    assert "p0/rs.dcm: structures of the label table that it lacks count as not annotated: Lung" in caplog.text
    atlas = found.read("p1")
    expected = np.zeros(SHAPE, np.int32)
    expected[2:4, 2:5, 1:3], expected[6:8, 2:5, 1:3] = 10, 20
    np.testing.assert_array_equal(atlas.segmentation.array, expected)
    assert atlas.image.grid.matches(atlas.labels.grid)


def test_without_a_table_the_numbers_must_agree(library):
    (library / "labels.tsv").unlink()
    with pytest.raises(InputError, match=r"one meaning of label 1 .* 'Couch'.* has 'Heart'\. Write the structures"):
        read_library(library)
    for folder in library.iterdir():
        write_structures(folder, {"Heart": (3, 1)})
    assert [(x.value, x.name) for x in read_library(library).table] == [(3, "Heart")]


def test_a_case_without_structures_is_named(library):
    (library / "p2" / "rs.dcm").unlink()
    with pytest.raises(InputError, match="expected an RTSTRUCT or DICOM-SEG beside each DICOM scan, found none for p2"):
        read_library(library)


def test_the_scan_that_the_structures_refer_to_is_taken(library):
    write_series(library / "p0" / "pet", study="p0", series="pet", seed=9)
    ct = read_library(library).read("p0").image
    assert read_library(library).files("p0").image.name.startswith("p0#")
    write_structures(library / "p0", {"Heart": (1, 1)}, scan=library / "p0" / "pet")
    pet = read_library(library).read("p0").image
    assert not np.array_equal(ct.array, pet.array)
    np.testing.assert_array_equal(pet.array, io.read_image(library / "p0" / "pet").array)


def test_structures_may_lie_in_the_folder_of_labels(tmp_path, library):
    for id_ in ("p0", "p1"):
        (tmp_path / "flat" / "labels").mkdir(parents=True, exist_ok=True)
        io.write_image(io.read_image(library / id_), tmp_path / "flat" / "images" / f"{id_}.nii.gz")
        (library / id_ / "rs.dcm").rename(tmp_path / "flat" / "labels" / f"{id_}.dcm")
    (library / "labels.tsv").rename(tmp_path / "flat" / "labels.tsv")
    found = read_library(tmp_path / "flat")
    np.testing.assert_array_equal(found.read("p0").segmentation.values, [0, 10])
    np.testing.assert_array_equal(found.read("p1").segmentation.values, [0, 10, 20])


def test_targets_of_several_studies_are_several(library):
    found = read_targets(library)
    assert [target.id for target in found] == ["p0", "p1", "p2"]
    table = read_library(library).table
    labels = found[0].read_labels(found[0].read()[0], table)
    np.testing.assert_array_equal(labels.values, [0, 10])
    assert found[0].not_annotated(table) == {20}


def test_a_target_folder_is_its_scan_with_its_structures(library, caplog):
    (found,) = read_targets(library / "p2")
    assert found.id == "p2" and found.labels == library / "p2" / "rs.dcm"
    assert found.read_labels(found.read()[0], LabelTable((Label(5, "Liver"),))) is None
    assert "has no structure of the label table; the result is not evaluated" in caplog.text


def test_series_of_one_study_are_still_chosen_from(tmp_path):
    for series in ("ct", "mr"):
        write_series(tmp_path / "case" / series, study="x", series=series)
    (target,) = read_targets(tmp_path / "case")
    with pytest.raises(InputError, match="expected one DICOM series, found 2"):
        target.read()


def test_doctor_reads_it(library):
    assert not [finding for finding in examine(library).findings if finding.severity == "error"]
