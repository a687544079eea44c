"""Formats of results beside NIfTI: for 3D Slicer, ITK-SNAP and radiotherapy."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import MRImageStorage, generate_uid

from atlasseg import io
from atlasseg.app.run import run
from atlasseg.app.tissue import tissue
from atlasseg.errors import InputError
from atlasseg.labels import parse_label_table
from atlasseg.recipe import parse_recipe


def write_dicom(image, folder):
    """The volume as a DICOM series of 16-bit slices."""
    folder.mkdir(parents=True)
    scale = 30000 / image.array.max()
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    for k in range(image.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["study"])
        dataset.SeriesInstanceUID, dataset.Modality = generate_uid(entropy_srcs=["series"]), "MR"
        dataset.PatientName, dataset.PatientID = "Doe^J", "7"
        dataset.ImagePositionPatient = (lps @ [0, 0, k, 1])[:3].round(6).tolist()
        directions = lps[:3, :2] / image.spacing_mm[:2]
        dataset.ImageOrientationPatient = directions.T.ravel().round(8).tolist()
        dataset.PixelSpacing = image.spacing_mm[[1, 0]].tolist()
        dataset.SliceThickness = float(image.spacing_mm[2])
        dataset.Columns, dataset.Rows = image.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelData = (image.array[..., k].T * scale).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def recipe(dataset, targets):
    return parse_recipe(
        {
            "data": {"atlases": str(dataset / "atlases"), "targets": [str(targets)], "out": str(dataset / "out")},
            "registration": {"steps": ["rigid"], "rigid": {"finest_shrink": 2}},
            "fusion": {"method": "majority"},
            "output": {"report": False, "formats": ["seg.nrrd", "rtstruct", "dicomseg"]},
        }
    )


def test_a_dicom_target_is_written_in_every_format(dataset):
    scan = io.read_image(dataset / "targets" / "images" / "head3.nii.gz")
    write_dicom(scan, dataset / "patient")
    (done,) = run(recipe(dataset, dataset / "patient"))
    assert not done.error, done.error
    stem = dataset / "out" / "patient" / "patient_desc-majority"
    expected = io.read_label_map(f"{stem}_dseg.nii.gz")
    table = io.read_label_table(f"{stem}_dseg.tsv")
    assert len(expected.values) > 2
    for ending in ("dseg.seg.nrrd", "rtstruct.dcm", "dicomseg.dcm"):
        found = io.read_label_map(f"{stem}_{ending}", reference=dataset / "patient")
        np.testing.assert_array_equal(found.array, expected.array)
        names = {label.value: label.name for label in io.read_label_table(f"{stem}_{ending}")}
        assert names == {int(value): table.name(int(value)) for value in expected.values if value}
    described = parse_label_table(stem.with_name(f"{stem.name}_dseg.label").read_text())
    assert [(x.value, x.name) for x in described] == [(x.value, x.name) for x in table]
    assert sitk.ReadImage(f"{stem}_dseg.seg.nrrd").GetMetaData("Segment0_Name") == table.name(int(expected.values[1]))


def test_formats_that_the_target_does_not_allow_are_refused_before_the_work(dataset):
    with pytest.raises(InputError, match=r"head3\.nii\.gz: expected a DICOM series, to which .* rtstruct refers"):
        run(recipe(dataset, dataset / "targets" / "images" / "head3.nii.gz"))
    assert not (dataset / "out" / "head3").exists()


def test_tissue_refuses_them_before_the_work_too(dataset):
    targets = [str(dataset / "targets" / "images" / "head3.nii.gz")]
    tables = {"data": {"targets": targets, "out": str(dataset / "out")}, "tissue": {"method": "mixture"}}
    with pytest.raises(InputError, match=r"head3\.nii\.gz: expected a DICOM series, .* dicomseg refers"):
        tissue(parse_recipe({**tables, "output": {"formats": ["dicomseg"]}}))
    assert not (dataset / "out" / "head3").exists()
