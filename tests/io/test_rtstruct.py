"""RTSTRUCT: voxels by the even-odd rule, in the planes of the series, and the reason where a file is not read."""

import logging

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import points_in_poly

from atlasseg import io
from atlasseg.errors import GeometryError, InputError
from atlasseg.labels import Label, LabelTable
from atlasseg.terminology import ANATOMICAL_STRUCTURE, Code, Terminology
from atlasseg.volume import LabelMap

SHAPE = (12, 10, 8)
LIVER = Terminology(ANATOMICAL_STRUCTURE, Code("SCT", "10200004", "Liver"), Code("SCT", "24028007", "Right"))


@pytest.fixture
def series(tmp_path, write_slices):
    """Folder of an oblique series whose files are not in the order of the slices."""
    write_slices(tmp_path / "ct", kind=CTImageStorage, series="CT")
    return tmp_path / "ct"


def item(**values):
    dataset = pydicom.Dataset()
    for key, value in values.items():
        setattr(dataset, key, value)
    return dataset


def contour(points_mm, kind="CLOSED_PLANAR"):
    """A contour of LPS points, written with 5 decimals."""
    numbers = np.asarray(points_mm, float).ravel()
    return item(
        ContourGeometricType=kind, NumberOfContourPoints=len(numbers) // 3, ContourData=[f"{x:.5f}" for x in numbers]
    )


@pytest.fixture
def write_rtstruct(expected_affine):
    """Write structures {name: [(slice, [(i, j), ...]), ...]} in voxel coordinates; a third entry is the kind."""
    lps = np.diag([-1.0, -1, 1, 1]) @ expected_affine

    def write(path, structures, *, series="CT", frame="study", numbers=None, color=(10, 20, 30), change=lambda d: None):
        dataset = item(SOPClassUID=RTStructureSetStorage, SOPInstanceUID=generate_uid(), Modality="RTSTRUCT")
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid(entropy_srcs=["study"])
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        uid = generate_uid(entropy_srcs=[frame])
        study = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=generate_uid(entropy_srcs=[series]))])
        dataset.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=uid, RTReferencedStudySequence=[study])]
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        for n, (name, polygons) in enumerate(structures.items(), start=1):
            number = n if numbers is None else numbers[n - 1]
            drawn = []
            for k, points, *kind in polygons:
                voxels = np.column_stack([np.asarray(points, float), np.full(len(points), float(k))])
                drawn.append(contour(voxels @ lps[:3, :3].T + lps[:3, 3], *kind))
            dataset.StructureSetROISequence.append(
                item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=uid, ROIGenerationAlgorithm="")
            )
            dataset.ROIContourSequence.append(item(ReferencedROINumber=number, ROIDisplayColor=list(color)))
            if drawn:
                dataset.ROIContourSequence[-1].ContourSequence = drawn
        change(dataset)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


def inside(*polygons):
    """Oracle: voxels (i, j) whose centre is inside an odd number of polygons."""
    centres = np.stack(np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij"), -1).reshape(-1, 2)
    count = sum(points_in_poly(centres, np.asarray(polygon, float)).astype(int) for polygon in polygons)
    return (np.asarray(count) % 2 == 1).reshape(SHAPE[:2])


OUTER = [(1.3, 0.6), (10.4, 1.7), (9.6, 8.4), (2.2, 7.7)]
HOLE = [(4.4, 3.3), (7.7, 3.6), (6.2, 6.4)]
ISLAND = [(5.3, 3.8), (6.4, 3.9), (5.8, 4.6)]
PARTS = [[(0.4, 0.4), (3.3, 0.4), (3.3, 3.4)], [(6.4, 5.5), (9.3, 5.5), (9, 8.6)]]
KEYHOLE = [*OUTER, OUTER[0], *HOLE, HOLE[0], OUTER[0]]


def only(mask, *slices):
    expected = np.zeros(SHAPE, np.int32)
    for k in slices:
        expected[..., k] = mask
    return expected


# ------------------------------------------------------------------------------------------------------------- voxels


@pytest.mark.parametrize(
    "polygons",
    [
        [OUTER],
        [OUTER, HOLE],
        [OUTER, HOLE, ISLAND],
        [[(0.4, 0.4), (3.3, 0.4), (3.3, 3.4)], [(6.4, 5.5), (9.3, 5.5), (9, 8.6)]],
    ],
    ids=["one", "hole", "island in a hole", "two parts"],
)
def test_voxels_whose_centre_is_inside_an_odd_number_of_contours(series, write_rtstruct, polygons):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(k, polygon) for k in (2, 3) for polygon in polygons]})
    found = io.read_label_map(path)
    np.testing.assert_array_equal(found.array, only(inside(*polygons), 2, 3))
    assert found.grid.matches(io.read_image(series).grid)


def test_a_keyhole_is_the_hole(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(4, KEYHOLE)]})
    np.testing.assert_array_equal(io.read_label_map(path).array, only(inside(OUTER, HOLE), 4))
    assert inside(OUTER).sum() > inside(OUTER, HOLE).sum()


def test_structures_with_a_common_edge_share_no_voxel(series, write_rtstruct):
    left, right = [(0.5, 0.5), (5, 0.5), (5, 5.5), (0.5, 5.5)], [(5, 0.5), (8.5, 0.5), (8.5, 5.5), (5, 5.5)]
    found = io.read_label_map(write_rtstruct(series / "rs.dcm", {"a": [(1, left)], "b": [(1, right)]}))
    assert (found.array != 0).sum() == 8 * 5


def test_names_colours_and_numbers_are_kept(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Lung/left": [(1, OUTER)], "Tumeur é ": [(3, OUTER)]}, numbers=[7, 3])
    table = io.read_label_table(path)
    assert [(x.value, x.name, x.color) for x in table] == [
        (7, "Lung/left", (10, 20, 30)),
        (3, "Tumeur é", (10, 20, 30)),
    ]
    np.testing.assert_array_equal(io.read_label_map(path).values, [0, 3, 7])


def test_numbers_that_are_no_labels_are_replaced(series, write_rtstruct, caplog):
    path = write_rtstruct(series / "rs.dcm", {"a": [(1, OUTER)], "b": [(3, OUTER)]}, numbers=[0, 1])
    np.testing.assert_array_equal(io.read_label_map(path).values, [0, 1, 2])
    assert "they are numbered 1 'a', 2 'b'" in caplog.text


def test_the_grid_may_be_that_of_a_nifti_with_other_axes(tmp_path, series, write_rtstruct):
    path = write_rtstruct(tmp_path / "elsewhere" / "rs.dcm", {"Liver": [(k, OUTER) for k in range(2, 6)]})
    scan = io.read_image(series)
    turned = LabelMap(
        np.zeros((8, 12, 10), np.int32),
        scan.affine @ np.array([[0, 1, 0, 0], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]]),
    )
    io.write_label_map(turned, tmp_path / "turned.nii.gz")
    found = io.read_label_map(path, reference=tmp_path / "turned.nii.gz").array
    expected = only(inside(OUTER), 2, 3, 4, 5)
    np.testing.assert_array_equal(found, np.transpose(expected[:, ::-1], (2, 0, 1)))


# ------------------------------------------------------------------------------------------------ choice, and overlaps


def test_overlapping_structures_are_refused_by_name_and_can_be_ordered(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Heart": [(1, OUTER)], "PTV": [(1, ISLAND), (2, OUTER)]})
    both = int(inside(ISLAND).sum())
    assert both
    with pytest.raises(InputError, match=rf"rs\.dcm: .*'Heart' and 'PTV' overlap in {both} voxels.*--overlap first"):
        io.read_label_map(path)
    first = io.read_label_map(path, overlap="first").array
    last = io.read_label_map(path, structures=["ptv", "Heart"], overlap="first").array
    np.testing.assert_array_equal(first[..., 1], inside(OUTER))
    np.testing.assert_array_equal(last[..., 1], np.where(inside(ISLAND), 2, inside(OUTER)))
    np.testing.assert_array_equal(io.read_label_map(path, structures=["PTV"]).values, [0, 2])
    layers = io.read_structures(path)
    assert [label.name for label, _ in layers] == ["Heart", "PTV"]
    np.testing.assert_array_equal(layers[0][1].array[..., 1], inside(OUTER))
    np.testing.assert_array_equal(layers[1][1].array[..., 1], inside(ISLAND))


def test_a_table_chooses_and_numbers(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Couch": [(1, OUTER)], "heart": [(2, OUTER)], "Lung": [(3, OUTER)]})
    table = LabelTable((Label(40, "Lung"), Label(50, "Heart"), Label(60, "Liver")))
    found = io.read_label_map(path, structures=table).array
    np.testing.assert_array_equal(found, 50 * only(inside(OUTER), 2) + 40 * only(inside(OUTER), 3))
    with pytest.raises(
        InputError, match=r"expected a structure with a name of the label table \(Liver\), got Couch, heart"
    ):
        io.read_label_map(path, structures=LabelTable((Label(1, "Liver"),)))


def test_an_unknown_structure_is_named_with_the_nearest(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Heart": [(1, OUTER)], "Lung": [(3, OUTER)]})
    with pytest.raises(InputError, match=r"got 'Haert'. It has Heart, Lung. Did you mean 'Heart'\?"):
        io.read_label_map(path, structures=["Haert"])


def test_two_structures_of_one_name_are_chosen_by_number(series, write_rtstruct):
    def rename(dataset):
        for roi in dataset.StructureSetROISequence:
            roi.ROIName = "node"

    path = write_rtstruct(series / "rs.dcm", {"a": [(1, OUTER)], "b": [(3, OUTER)]}, numbers=[4, 9], change=rename)
    with pytest.raises(InputError, match="one structure with the name 'node', got 2, with the numbers 4 and 9"):
        io.read_label_map(path, structures=["node"])
    np.testing.assert_array_equal(io.read_label_map(path, structures=["9"]).values, [0, 9])


# ------------------------------------------------------------------------------------------------- what is not as usual


def test_empty_and_open_structures_are_told(series, write_rtstruct, caplog):
    structures = {"Liver": [(1, OUTER), (2, OUTER, "OPEN_PLANAR")], "Empty": [], "Iso": [(1, [(2, 2)], "POINT")]}
    found = io.read_label_map(write_rtstruct(series / "rs.dcm", structures))
    np.testing.assert_array_equal(found.array, only(inside(OUTER), 1))
    assert (
        "'Liver' has 1 open contours or points, which have no inside; its closed contours alone are read" in caplog.text
    )
    assert "'Empty' has no contours; it has no voxels" in caplog.text
    assert "'Iso' has 1 open contours or points, which have no inside; it has no voxels" in caplog.text


def test_contours_off_the_slices_are_refused_unless_stated(series, write_rtstruct):
    small, large = [(3.4, 2.4), (6.6, 2.4), (6.6, 5.6), (3.4, 5.6)], [(1.4, 0.4), (8.6, 0.4), (8.6, 7.6), (1.4, 7.6)]
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1.4, small), (3.4, large)]})
    with pytest.raises(GeometryError, match=r"got 2 of 2 planes of 'Liver' between slices, by up to 0.4 of a slice"):
        io.read_label_map(path)
    nearest = io.read_label_map(path, between_slices="nearest").array
    np.testing.assert_array_equal(nearest, only(inside(small), 1, 2) + only(inside(large), 3, 4))
    between = io.read_label_map(path, between_slices="interpolate").array
    sizes = between.sum(axis=(0, 1)).tolist()
    assert sizes[0] == 0 and sizes[1] == inside(small).sum() and sizes[4] == inside(large).sum() and sizes[5] == 0
    assert inside(small).sum() < sizes[2] < sizes[3] < inside(large).sum()


def test_slices_without_contours_are_told_and_filled_only_when_stated(series, write_rtstruct, caplog):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(k, OUTER) for k in (1, 3, 5)]})
    np.testing.assert_array_equal(io.read_label_map(path).array, only(inside(OUTER), 1, 3, 5))
    assert "'Liver' has no contours on 2 slices between its first and last one" in caplog.text
    filled = io.read_label_map(path, between_slices="interpolate").array
    np.testing.assert_array_equal(filled.any(axis=(0, 1)), [0, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(filled[..., 2], inside(OUTER))


def test_another_frame_of_reference_is_refused(series, write_rtstruct):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1, OUTER)]}, frame="other")
    with pytest.raises(
        GeometryError, match=r"expected Liver in the frame of reference of .*ct.*it belongs to another scan"
    ):
        io.read_label_map(path)
    io.write_image(io.read_image(series), series.parent / "scan.nii.gz")
    np.testing.assert_array_equal(
        io.read_label_map(path, reference=series.parent / "scan.nii.gz").array, only(inside(OUTER), 1)
    )


def test_another_series_of_the_frame_of_reference_is_told(series, write_rtstruct, caplog):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1, OUTER)]}, series="PET")
    with pytest.raises(InputError, match=r"expected the DICOM series that the contours were drawn on .* found none"):
        io.read_label_map(path)
    np.testing.assert_array_equal(io.read_label_map(path, reference=series).array, only(inside(OUTER), 1))
    assert "it was made on another series" in caplog.text


def test_the_referenced_series_is_found_among_others(tmp_path, series, write_slices, write_rtstruct):
    write_slices(series / "pet", series="PET")
    path = write_rtstruct(tmp_path / "structures" / "rs.dcm", {"Liver": [(1, OUTER)]})
    np.testing.assert_array_equal(io.read_label_map(path).array, only(inside(OUTER), 1))
    np.testing.assert_array_equal(io.read_label_map(path, reference=series).array, only(inside(OUTER), 1))


def test_contours_outside_the_scan_are_told(series, write_rtstruct, caplog):
    beyond = [(i + 30, j) for i, j in OUTER]
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1, OUTER), (9, OUTER), (1, beyond)]})
    np.testing.assert_array_equal(io.read_label_map(path).array, only(inside(OUTER), 1))
    assert "'Liver' reaches beyond the reference scan in 2 of 2 planes" in caplog.text
    with pytest.raises(GeometryError, match="contours of 'Liver' inside the reference scan, got all of them outside"):
        io.read_label_map(write_rtstruct(series / "rs.dcm", {"Liver": [(20, OUTER), (1, beyond)]}))


def test_contours_in_other_planes_are_refused(series, write_rtstruct):
    def tilt(dataset):
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        points[0] += (3, 5, 40)
        contour.ContourData = [f"{x:.3f}" for x in points.ravel()]

    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1, OUTER), (2, OUTER)]}, change=tilt)
    with pytest.raises(GeometryError, match="got 1 of 2 contours in other planes"):
        io.read_label_map(path)


def test_contours_that_cross_or_repeat_are_told(series, write_rtstruct, caplog):
    crossing = [(i + 3, j + 1) for i, j in OUTER]
    path = write_rtstruct(series / "rs.dcm", {"a": [(1, OUTER), (1, crossing)], "b": [(3, OUTER), (3, OUTER)]})
    found = io.read_label_map(path).array
    np.testing.assert_array_equal(found, only(inside(OUTER, crossing), 1) + 2 * only(inside(OUTER), 3))
    assert "two contours of 'a' overlap in part" in caplog.text and "'b' has the same contour twice" in caplog.text


def damage(field):
    def change(dataset):
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        if field == "count":
            contour.NumberOfContourPoints = 99
        elif field == "data":
            contour.ContourData = contour.ContourData[:-1]
        else:
            dataset.StructureSetROISequence = []

    return change


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("count", "the contours of 'Liver' are damaged: expected 99 points of three numbers, got 12 numbers"),
        ("data", "the contours of 'Liver' are damaged: expected 4 points of three numbers, got 11 numbers"),
        ("rois", "expected structures in the RTSTRUCT, got none"),
    ],
)
def test_damaged_files_are_refused(series, write_rtstruct, field, reason):
    path = write_rtstruct(series / "rs.dcm", {"Liver": [(1, OUTER)]}, change=damage(field))
    with pytest.raises(InputError, match=rf"rs\.dcm: {reason}"):
        io.read_label_map(path)


# ------------------------------------------------------------------------------------------------------------- writing


def labelled(scan, seed=3):
    """Labels of several parts with holes, one of a single voxel, some at the border."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=scan.shape), (1.5, 1.5, 0.6))
    array = np.where(smooth > 0.08, 17, np.where(smooth < -0.12, 3, 0)).astype(np.int32)
    array[5, 5, 0] = 250
    return LabelMap(array, scan.affine)


TABLE = LabelTable(
    (Label(3, "Leber é", (1, 2, 3), terminology=LIVER), Label(17, "Lung/left", (250, 128, 7)), Label(250, "node"))
)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_is_read_again(tmp_path, series, seed):
    scan = io.read_image(series)
    labels = labelled(scan, seed)
    io.write_label_map(labels, tmp_path / "out" / "rs.dcm", like=scan, format="rtstruct", table=TABLE)
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "out" / "rs.dcm", reference=series).array, labels.array)
    table = io.read_label_table(tmp_path / "out" / "rs.dcm")
    assert [(x.value, x.name) for x in table] == [(3, "Leber é"), (17, "Lung/left"), (250, "node")]
    assert [table.color(x) for x in (3, 17)] == [(1, 2, 3), (250, 128, 7)]
    assert str(table[3].terminology.type) == "SCT^10200004^Liver"


def test_study_frame_of_reference_and_images_are_those_of_the_scan(tmp_path, series):
    scan = io.read_image(series)
    io.write_label_map(labelled(scan), tmp_path / "rs.dcm", like=series, format="rtstruct", algorithm="manual")
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    slices = {x.SOPInstanceUID: x for x in map(pydicom.dcmread, series.iterdir())}
    one = next(iter(slices.values()))
    assert written.StudyInstanceUID == one.StudyInstanceUID and written.FrameOfReferenceUID == one.FrameOfReferenceUID
    assert written.PatientID == one.PatientID and written.SeriesInstanceUID != one.SeriesInstanceUID
    frame = written.ReferencedFrameOfReferenceSequence[0]
    referenced = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == one.SeriesInstanceUID
    assert {x.ReferencedSOPInstanceUID for x in referenced.ContourImageSequence} == set(slices)
    assert {x.ROIGenerationAlgorithm for x in written.StructureSetROISequence} == {"MANUAL"}
    normal = np.cross(one.ImageOrientationPatient[:3], one.ImageOrientationPatient[3:])
    for roi in written.ROIContourSequence:
        for each in roi.ContourSequence:
            image = slices[each.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(each.ContourData, float).reshape(-1, 3)
            np.testing.assert_allclose((points - np.array(image.ImagePositionPatient, float)) @ normal, 0, atol=1e-3)


def test_labels_with_turned_axes_or_of_a_part_are_placed(tmp_path, series):
    scan = io.read_image(series)
    labels = labelled(scan)
    part = LabelMap(labels.array[2:9, :, 1:6], scan.grid.cropped((2, 0, 1), (9, 10, 6)).affine)
    turn = np.array([[0, 0, -1, 6], [1, 0, 0, 0], [0, -1, 0, 4], [0, 0, 0, 1]])  # voxels of `turned` to those of `part`
    turned = LabelMap(np.transpose(part.array[::-1, :, ::-1], (1, 2, 0)), part.affine @ turn)
    expected = np.zeros(SHAPE, np.int32)
    expected[2:9, :, 1:6] = part.array
    for given in (part, turned):
        io.write_label_map(given, tmp_path / "rs.dcm", like=series, format="rtstruct")
        np.testing.assert_array_equal(io.read_label_map(tmp_path / "rs.dcm", reference=series).array, expected)


def test_labels_on_other_voxels_are_refused(tmp_path, series):
    scan = io.read_image(series)
    affine = scan.affine @ np.diag([0.5, 1, 1, 1])
    with pytest.raises(GeometryError, match=r"rs\.dcm: expected labels on the voxels of .*Resample them first"):
        io.write_label_map(LabelMap(np.ones(SHAPE), affine), tmp_path / "rs.dcm", like=series, format="rtstruct")
    assert not (tmp_path / "rs.dcm").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "expected a format for a .dcm file. Choose 'rtstruct' or 'dicomseg'"),
        ({"format": "rtstruct"}, "expected the DICOM scan of the labels, got a volume without file"),
        ({"format": "nifti"}, r"expected a name that ends in \.nii\.gz or \.nii for the format nifti"),
        ({"format": "dicom"}, "format: expected one of nifti, seg.nrrd, rtstruct, dicomseg, got 'dicom'"),
    ],
)
def test_what_is_lacking_is_said(tmp_path, series, options, reason):
    labels = LabelMap(np.ones(SHAPE), io.read_image(series).affine)
    with pytest.raises(InputError, match=reason):
        io.write_label_map(labels, tmp_path / "rs.dcm", **options)


@pytest.mark.parametrize(
    ("value", "name", "reason"),
    [
        (-2, "a", "expected labels above 0, as DICOM numbers structures, got -2"),
        (1, "x" * 65, "expected names of at most 64 characters"),
        (1, "a\\b", "without a backslash"),
    ],
)
def test_labels_that_dicom_cannot_hold_are_refused(tmp_path, series, value, name, reason):
    labels = LabelMap(np.full(SHAPE, value), io.read_image(series).affine)
    with pytest.raises(InputError, match=reason):
        io.write_label_map(
            labels, tmp_path / "a.dcm", like=series, format="rtstruct", table=LabelTable((Label(value, name),))
        )


def test_a_series_without_frame_of_reference_is_refused(tmp_path, write_slices):
    write_slices(tmp_path / "ct", change=lambda dataset, k: delattr(dataset, "FrameOfReferenceUID"))
    labels = LabelMap(np.ones(SHAPE), io.read_image(tmp_path / "ct").affine)
    with pytest.raises(InputError, match="expected a FrameOfReferenceUID"):
        io.write_label_map(labels, tmp_path / "a.dcm", like=tmp_path / "ct", format="rtstruct")


def test_an_enhanced_file_is_referenced_by_its_frames(tmp_path, write_frames):
    path = write_frames(tmp_path / "e.dcm", order=[3, 0, 7, 1, 2, 6, 5, 4])
    scan = io.read_image(path)
    labels = labelled(scan)
    io.write_label_map(labels, tmp_path / "out" / "rs.dcm", like=scan, format="rtstruct")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "out" / "rs.dcm", reference=path).array, labels.array)
    header = pydicom.dcmread(path)
    orientation = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(orientation[:3], orientation[3:])
    for roi in pydicom.dcmread(tmp_path / "out" / "rs.dcm").ROIContourSequence:
        for each in roi.ContourSequence:
            frame = each.ContourImageSequence[0].ReferencedFrameNumber
            position = header.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0]
            aside = np.array(each.ContourData[:3], float) - np.array(position.ImagePositionPatient, float)
            assert abs(aside @ normal) < 1e-3


def test_messages_stay_off_the_terminal_of_a_good_file(series, write_rtstruct, caplog):
    caplog.set_level(logging.WARNING)
    io.read_label_map(write_rtstruct(series / "rs.dcm", {"Liver": [(k, OUTER) for k in range(8)]}))
    assert not caplog.records


def test_the_phantom_is_its_published_mask(tmp_path, real_data):
    folder = real_data / "ct_rtstruct"
    truth = io.read_label_map(folder / "nifti" / "mask" / "mask.nii.gz")
    found = io.read_label_map(folder / "dicom" / "mask" / "DCM_RS_00060.dcm")
    assert found.grid.matches(truth.grid)
    np.testing.assert_array_equal(found.array, truth.array)
    for name in ("rtstruct", "dicomseg"):
        io.write_label_map(truth, tmp_path / f"{name}.dcm", like=folder / "dicom" / "image", format=name)
        again = io.read_label_map(tmp_path / f"{name}.dcm", reference=folder / "dicom" / "image")
        np.testing.assert_array_equal(again.array, truth.array)
