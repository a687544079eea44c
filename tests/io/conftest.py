"""Makers of DICOM files."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

VALUES = np.random.default_rng(7).integers(0, 1000, (8, 10, 12)).astype(np.uint16)
"""(slices, rows, columns) that the DICOM files below hold, before rescaling."""

ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6 * 0.8, 0.8 * 0.8, 0.6])
NORMAL = np.cross(ROW, COLUMN)
START = np.array([-20.0, -30.0, 10.0])


def _header(sop_class, series, number, **more):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(
        entropy_srcs=[series, str(number)]
    )
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["study"])
    dataset.StudyID = dataset.AccessionNumber = "1"
    dataset.StudyDate, dataset.StudyTime = "20240101", "120000"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "A", "1", "", ""
    dataset.ReferringPhysicianName = dataset.Manufacturer = ""
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.ContentDate, dataset.ContentTime = "20240101", "120000"
    dataset.Modality = "CT" if sop_class == CTImageStorage else "MR"
    dataset.SeriesDescription = series
    dataset.Rows, dataset.Columns = VALUES.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    for key, value in more.items():
        setattr(dataset, key, value)
    return dataset


@pytest.fixture
def write_slices():
    """Write VALUES, or `values`, as one file a slice.

    `change(dataset, k)` may change each; `step_mm` goes from one slice to the next.
    """

    def write(folder, *, series="T1", values=VALUES, change=lambda dataset, k: None, step_mm=2.5 * NORMAL, kind=None):
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for k, plane in enumerate(values):
            dataset = _header(kind or MRImageStorage, series, k + 1)
            dataset.ImagePositionPatient = [float(f"{x:.6f}") for x in START + k * np.asarray(step_mm)]
            dataset.ImageOrientationPatient = [float(f"{x:.8f}") for x in (*ROW, *COLUMN)]
            dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.2], 2.0
            dataset.Rows, dataset.Columns = plane.shape
            dataset.PixelData = plane.astype("<u2").tobytes()
            change(dataset, k)
            # names that do not follow the positions
            files.append(folder / f"{series}{(k * 5) % 8}{k}.dcm")
            dataset.save_as(files[-1], enforce_file_format=True)
        return files

    return write


@pytest.fixture
def write_frames():
    """Write VALUES as one enhanced multi-frame file whose frames lie in the `order` of the slices."""

    def write(path, *, order=range(8), places=None, slopes=None, change=lambda dataset: None):
        path.parent.mkdir(parents=True, exist_ok=True)
        order = list(order)
        dataset = _header(EnhancedMRImageStorage, "enhanced", 1, NumberOfFrames=len(order))
        dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
        dataset.VolumeBasedCalculationTechnique, dataset.ComplexImageComponent = "NONE", "MAGNITUDE"
        dataset.AcquisitionContrast, dataset.PresentationLUTShape = "T1", "IDENTITY"
        dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
        shared = pydicom.Dataset()
        measures = pydicom.Dataset()
        measures.PixelSpacing, measures.SliceThickness = [1.5, 1.2], 2.0
        orientation = pydicom.Dataset()
        orientation.ImageOrientationPatient = [float(f"{x:.8f}") for x in (*ROW, *COLUMN)]
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        dataset.SharedFunctionalGroupsSequence = [shared]
        groups = []
        for n, k in enumerate(order):
            group, position, content = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            place = k if places is None else places[n]
            position.ImagePositionPatient = [float(f"{x:.6f}") for x in START + place * 2.5 * NORMAL]
            content.DimensionIndexValues, content.StackID, content.InStackPositionNumber = [1, k + 1], "1", k + 1
            group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
            if slopes is not None:
                transform = pydicom.Dataset()
                transform.RescaleSlope, transform.RescaleIntercept = slopes[k]
                transform.RescaleType = "US"
                group.PixelValueTransformationSequence = [transform]
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = groups
        organisation = pydicom.Dataset()
        organisation.DimensionOrganizationUID = generate_uid(entropy_srcs=["dimensions"])
        dataset.DimensionOrganizationSequence = [organisation]
        indices = []
        for pointer in (0x00209056, 0x00209057):
            index = pydicom.Dataset()
            index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, 0x00209111
            index.DimensionOrganizationUID = organisation.DimensionOrganizationUID
            indices.append(index)
        dataset.DimensionIndexSequence = indices
        dataset.PixelData = VALUES[order].astype("<u2").tobytes()
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def expected_affine():
    """Voxel to RAS+ mm of what the writers above write, by definition of DICOM's keywords."""
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = 1.2 * ROW, 1.5 * COLUMN, 2.5 * NORMAL, START
    return np.diag([-1.0, -1, 1, 1]) @ lps


@pytest.fixture
def expected_values():
    """(columns, rows, slices) of VALUES."""
    return np.transpose(VALUES, (2, 1, 0)).astype(np.float32)


@pytest.fixture
def directions():
    """Along a column and across the slices, LPS."""
    return COLUMN, NORMAL
