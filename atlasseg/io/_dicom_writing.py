"""Label maps as RTSTRUCT and DICOM-SEG, with the study, frame of reference and series of their scan."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg.errors import GeometryError, InputError, MissingLibraryError
from atlasseg.io._contours import trace_polygons
from atlasseg.io._dicom_codes import make_code
from atlasseg.io._dicom_reference import DicomReference
from atlasseg.io._source import log
from atlasseg.io.dicom_series import quiet_pydicom
from atlasseg.io.dicomseg import LABEL_DESCRIPTION
from atlasseg.itk import LPS
from atlasseg.labels import Label, LabelTable
from atlasseg.terminology import UNSPECIFIED, Code
from atlasseg.version import __version__
from atlasseg.volume import Int32, LabelMap

Algorithm = Literal["automatic", "semiautomatic", "manual"]
"""How a segmentation was made, as DICOM files state it."""

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_FAMILY = Code("99ATLASSEG", "ATLAS", "Atlas-based segmentation")
_LONGEST_NAME = 64  # characters of a DICOM LO


def make_rtstruct(
    labels: LabelMap, path: Path, reference: DicomReference, table: LabelTable, algorithm: Algorithm = "automatic"
) -> Any:
    """Make an RTSTRUCT: labels as contours in the planes of a DICOM series.

    Contours run midway between the centres of voxels inside and outside (marching squares). Holes are joined to the
    contour around them by a keyhole channel of no width.

    Parameters
    ----------
    labels : LabelMap
        Labels above 0, on the voxels of the series.
    path : Path
        File to write, for messages.
    reference : DicomReference
    table : LabelTable
        Names, colours and codes; default ones for missing labels.
    algorithm : {"automatic", "semiautomatic", "manual"}

    Returns
    -------
    pydicom.Dataset

    Raises
    ------
    InputError
        A label is negative, a name is too long, or the series lacks its study or frame of reference.
    GeometryError
        The labels are not on the voxels of the series.
    """
    import pydicom

    reference.require("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    array = place_labels(labels, reference, path)
    rows = _rows(array, table, path)
    now = datetime.now()
    with quiet_pydicom():
        dataset = _common_header(reference, now)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = _RTSTRUCT
        dataset.Modality, dataset.OperatorsName = "RTSTRUCT", ""
        dataset.StructureSetLabel, dataset.StructureSetName = "atlasseg", "atlasseg"
        dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(reference)]
        rois, contours, observations = [], [], []
        for label in rows:
            roi, drawn, observed = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            roi.ROINumber, roi.ROIName = label.value, label.name
            roi.ReferencedFrameOfReferenceUID = reference.frame_of_reference_uid
            roi.ROIGenerationAlgorithm = algorithm.upper()
            drawn.ReferencedROINumber, drawn.ROIDisplayColor = label.value, list(table.color(label.value))
            drawn.ContourSequence = _contours(array == label.value, reference)
            observed.ObservationNumber = observed.ReferencedROINumber = label.value
            observed.RTROIInterpretedType, observed.ROIInterpreter = "", ""
            if label.terminology is not None:
                observed.RTROIIdentificationCodeSequence = [make_code(label.terminology.type)]
            rois.append(roi)
            contours.append(drawn)
            observations.append(observed)
        dataset.StructureSetROISequence = rois
        dataset.ROIContourSequence = contours
        dataset.RTROIObservationsSequence = observations
    return dataset


def make_dicomseg(
    labels: LabelMap, path: Path, reference: DicomReference, table: LabelTable, algorithm: Algorithm = "automatic"
) -> Any:
    """Make a DICOM-SEG with highdicom: labels as binary segments. Parameters and errors of `make_rtstruct`.

    Segments are numbered from 1 in the order of the label values, which their descriptions keep (``label 17``). Labels
    without codes get the category and type "Anatomical Structure".
    """
    try:
        import highdicom
    except ImportError as error:
        raise MissingLibraryError(f"{path}: DICOM-SEG needs highdicom: pip install 'atlasseg[dicom]'") from error
    reference.require("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    array = place_labels(labels, reference, path)
    rows = _rows(array, table, path)
    if not rows:
        raise InputError(f"{path}: expected labels, got background alone, which a DICOM-SEG cannot hold.")
    numbers = np.zeros(array.shape, np.uint8 if len(rows) < 256 else np.uint16)
    for number, label in enumerate(rows, start=1):
        numbers[array == label.value] = number
    frames = np.ascontiguousarray(np.transpose(numbers, (2, 1, 0)))
    if reference.frames:
        frames = frames[np.argsort(reference.frames)]
    made_by = None
    if algorithm != "manual":
        made_by = highdicom.AlgorithmIdentificationSequence("atlasseg", _coded(_FAMILY), __version__)
    descriptions = []
    for number, label in enumerate(rows, start=1):
        terms = label.terminology or UNSPECIFIED
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label.name,
            segmented_property_category=_coded(terms.category),
            segmented_property_type=_coded(terms.type),
            algorithm_type=algorithm.upper(),
            algorithm_identification=made_by,
            anatomic_regions=None if terms.region is None else [_coded(terms.region)],
            display_color=highdicom.color.CIELabColor.from_rgb(*table.color(label.value)),
        )
        description.SegmentDescription = LABEL_DESCRIPTION.format(value=label.value)
        if terms.type_modifier is not None:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [make_code(terms.type_modifier)]
        if terms.region_modifier is not None and terms.region is not None:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [make_code(terms.region_modifier)]
        descriptions.append(description)
    with quiet_pydicom():
        return highdicom.seg.Segmentation(
            source_images=[_completed(header) for header in reference.headers],
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="atlasseg",
            manufacturer_model_name="atlasseg",
            software_versions=__version__,
            device_serial_number="none",
            content_label="ATLASSEG",
            series_description="atlasseg segmentation",
        )


def place_labels(labels: LabelMap, reference: DicomReference, path: Path) -> Int32:
    """Labels on the grid of a series: axes may be swapped or reversed, and the labels may cover a part of it.

    Returns
    -------
    (I, J, K) int32

    Raises
    ------
    GeometryError
        The voxels are not those of the series.
    """
    grid = reference.grid
    inverse = np.linalg.inv(grid.affine)
    corners = labels.grid.corners_mm @ inverse[:3, :3].T + inverse[:3, 3]
    low, high = np.round(corners.min(axis=0)).astype(int), np.round(corners.max(axis=0)).astype(int) + 1
    try:
        turned = labels.reoriented_to(grid.cropped(low, high)).array
    except GeometryError:
        raise GeometryError(
            f"{path}: expected labels on the voxels of {reference.path} ({grid.describe()}), got others "
            f"({labels.grid.describe()}). Resample them first: atlasseg transform --labels."
        ) from None
    first, last = np.clip(low, 0, grid.shape), np.clip(high, 0, grid.shape)
    taken = turned[tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))]
    lost = int(np.count_nonzero(turned)) - int(np.count_nonzero(taken))
    if lost:
        raise GeometryError(f"{path}: expected labels inside {reference.path}, got {lost} labelled voxels outside it.")
    out = np.zeros(grid.shape, np.int32)
    out[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = taken
    return out


def _rows(array: Int32, table: LabelTable, path: Path) -> list[Label]:
    """Rows of the labels that occur, ascending by value."""
    values = [int(value) for value in np.unique(array) if value != 0]
    if values and values[0] < 0:
        raise InputError(f"{path}: expected labels above 0, as DICOM numbers structures, got {values[0]}.")
    complete = table.completed(values)
    rows = [complete[value] for value in values]
    for label in rows:
        if len(label.name) > _LONGEST_NAME or "\\" in label.name:
            raise InputError(
                f"{path}: expected names of at most {_LONGEST_NAME} characters without a backslash, as DICOM has them, "
                f"got {label.name!r} (label {label.value}). Shorten it in the label table."
            )
    absent = [label.name for label in table if label.value not in values and label.value != 0]
    if absent:
        log.info("%s: %d labels of the table have no voxels; they are not written", path, len(absent))
    return rows


def _common_header(reference: DicomReference, now: datetime) -> Any:
    """Data set with patient, study, frame of reference, and new series and instance UIDs."""
    import pydicom

    source = reference.headers[0]
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    for keyword in _PATIENT_AND_STUDY:
        value = source.get(keyword)
        if value is not None or keyword != "StudyDescription":
            setattr(dataset, keyword, "" if value is None else value)
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesNumber, dataset.InstanceNumber = 1000, 1
    dataset.SeriesDescription = "atlasseg segmentation"
    dataset.SeriesDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.SeriesTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")
    dataset.FrameOfReferenceUID = reference.frame_of_reference_uid
    dataset.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    dataset.Manufacturer = dataset.ManufacturerModelName = "atlasseg"
    dataset.SoftwareVersions = __version__
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced_frame(reference: DicomReference) -> Any:
    import pydicom

    frame, study, series = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    images = [_image_reference(reference, k) for k in range(len(reference.headers))]
    series.SeriesInstanceUID, series.ContourImageSequence = reference.series_uid, images
    study.ReferencedSOPClassUID = _DETACHED_STUDY
    study.ReferencedSOPInstanceUID = reference.headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = reference.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_reference(reference: DicomReference, k: int, *, frame: bool = False) -> Any:
    import pydicom

    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, number = reference.instance(k)
    if frame and number is not None:
        item.ReferencedFrameNumber = number
    return item


def _contours(mask: Any, reference: DicomReference) -> Sequence[Any]:
    """Contour items of a structure, in the order of the slices."""
    import pydicom

    items: list[Any] = []
    affine = LPS @ reference.grid.affine
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        for polygon in trace_polygons(mask[..., k]):
            voxels = np.column_stack([polygon, np.full(len(polygon), float(k))])
            points = voxels @ affine[:3, :3].T + affine[:3, 3]
            item = pydicom.Dataset()
            item.ContourImageSequence = [_image_reference(reference, int(k), frame=True)]
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourNumber = len(items) + 1
            item.ContourData = [f"{number:.5f}".rstrip("0").rstrip(".") for number in points.ravel()]
            items.append(item)
    return items


def _coded(code: Code) -> Any:
    import highdicom

    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _completed(header: Any) -> Any:
    """Header with empty values for attributes that a DICOM-SEG repeats, where the scan lacks them."""
    complete = copy.copy(header)
    for keyword in (*_PATIENT_AND_STUDY, "PositionReferenceIndicator"):
        if keyword not in complete:
            setattr(complete, keyword, "")
    return complete
