"""DICOM-SEG: segments on the grid of their scan, exactly; written files as other readers see them."""

import warnings

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from atlasseg import io
from atlasseg.errors import GeometryError, InputError
from atlasseg.labels import Label, LabelTable
from atlasseg.terminology import ANATOMICAL_STRUCTURE, Code, Terminology
from atlasseg.volume import LabelMap

SHAPE = (12, 10, 8)
LIVER = Terminology(
    ANATOMICAL_STRUCTURE,
    Code("SCT", "10200004", "Liver"),
    Code("SCT", "24028007", "Right"),
    Code("SCT", "818981001", "Abdomen"),
    Code("SCT", "7771000", "Left"),
)
TABLE = LabelTable((Label(3, "Leber é", (1, 2, 3), terminology=LIVER), Label(207, "Lung/left", (250, 128, 7))))


@pytest.fixture
def series(tmp_path, write_slices):
    write_slices(tmp_path / "ct", series="CT")
    return tmp_path / "ct"


def labels_on(scan, seed=1):
    rng = np.random.default_rng(seed)
    array = rng.choice([0, 3, 207], scan.shape, p=[0.6, 0.2, 0.2]).astype(np.int32)
    array[..., 2] = 0  # a slice without any label: no frame of the file holds it
    return LabelMap(array, scan.affine)


def make(series, masks, path, *, kind="BINARY", names=("a", "b"), change=lambda dataset: None, **options):
    """A file by highdicom: `masks` are (I, J, K) arrays, one a segment, or one of segment numbers."""
    scan = sorted(map(pydicom.dcmread, series.glob("*.dcm")), key=lambda x: int(x.InstanceNumber))
    stacked = np.stack([np.transpose(mask, (2, 1, 0)) for mask in masks], -1)
    descriptions = [
        SegmentDescription(n, name, codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for n, name in enumerate(names[: len(masks)], start=1)
    ]
    uid = highdicom.UID
    with warnings.catch_warnings():  # of the patient's name, which has one part
        warnings.simplefilter("ignore")
        dataset = highdicom.seg.Segmentation(
            *(scan, stacked, SegmentationTypeValues(kind), descriptions),
            *(uid(), 1, uid(), 1, "maker", "model", "1", "serial"),
            **options,
        )
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def blobs(seed=5):
    rng = np.random.default_rng(seed)
    one, two = rng.random(SHAPE) > 0.7, rng.random(SHAPE) > 0.7
    one[..., :3] = two[..., 5:] = False
    return one, two & ~one


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("omit", [True, False])
def test_frames_are_placed_by_their_positions_and_missing_ones_are_empty(series, tmp_path, omit):
    one, two = blobs()
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm", omit_empty_frames=omit)
    assert (int(pydicom.dcmread(path).NumberOfFrames) < 16) == omit
    found = io.read_label_map(path)
    np.testing.assert_array_equal(found.array, one + 2 * two)
    assert found.grid.matches(io.read_image(series).grid)
    assert [(x.value, x.name) for x in io.read_label_table(path)] == [(1, "a"), (2, "b")]


def test_without_its_scan_a_file_has_its_own_grid(series, tmp_path):
    one, two = blobs()
    one[..., 4] = two[..., 4] = False  # a gap between the planes of the file
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm")
    path = path.rename(tmp_path / "seg" / "alone.dcm")
    series.rename(tmp_path / "seg.hidden")
    (tmp_path / "seg.hidden").rename(tmp_path.parent / f"{tmp_path.name}-away")
    found = io.read_label_map(path)
    planes = np.flatnonzero((one | two).any(axis=(0, 1)))
    expected = (one + 2 * two)[..., planes[0] : planes[-1] + 1]
    np.testing.assert_array_equal(found.array, expected)
    np.testing.assert_allclose(found.spacing_mm, (1.2, 1.5, 2.5), rtol=1e-5)


def test_a_grid_with_other_axes_takes_the_frames(series, tmp_path):
    one, two = blobs()
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm")
    scan = io.read_image(series)
    turn = np.array([[0, 1, 0, 0], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned = LabelMap(np.zeros((8, 12, 10), np.int32), scan.affine @ turn)
    found = io.read_label_map(path, reference=turned).array
    np.testing.assert_array_equal(found, np.transpose((one + 2 * two)[:, ::-1], (2, 0, 1)))


def test_a_grid_of_other_voxels_is_refused(series, tmp_path):
    path = make(series, blobs(), tmp_path / "seg" / "s.dcm")
    scan = io.read_image(series)
    finer = LabelMap(np.zeros((24, 10, 8), np.int32), scan.affine @ np.diag([0.5, 1, 1, 1]))
    with pytest.raises(GeometryError, match=r"s\.dcm: expected frames on the voxels of the reference .*, got frame 1"):
        io.read_label_map(path, reference=finer)


def test_a_smaller_grid_loses_voxels_with_a_word(series, tmp_path, caplog):
    one, two = blobs()
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm")
    scan = io.read_image(series).cropped((2, 3, 1), (9, 8, 6))
    found = io.read_label_map(path, reference=scan).array
    np.testing.assert_array_equal(found, (one + 2 * two)[2:9, 3:8, 1:6])
    assert f"{one.sum() - one[2:9, 3:8, 1:6].sum()} voxels of 'a' lie outside the reference scan" in caplog.text


def test_overlapping_segments_are_refused_by_name(series, tmp_path):
    one, two = blobs()
    two |= one & (np.arange(12) < 4)[:, None, None]
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm")
    with pytest.raises(InputError, match=rf"structures 'a' and 'b' overlap in {(one & two).sum()} voxels"):
        io.read_label_map(path)
    np.testing.assert_array_equal(
        io.read_label_map(path, structures=["b", "a"], overlap="first").array, np.where(two, 2, one)
    )
    np.testing.assert_array_equal(io.read_structures(path)[1][1].array, two)
    np.testing.assert_array_equal(io.read_mask(path).array, one | two)


def test_fractional_segments_become_labels_at_one_half_with_a_word(series, tmp_path, caplog):
    share = np.random.default_rng(2).random(SHAPE).astype(np.float32)
    share[share < 0.3] = 0
    path = make(series, [share], tmp_path / "seg" / "s.dcm", kind="FRACTIONAL", max_fractional_value=200)
    stored = np.around(share * 200)
    np.testing.assert_array_equal(io.read_label_map(path).array, stored >= 100)
    assert f"'a' is fractional: {((stored > 0) & (stored < 200)).sum()} voxels lie between 0 and 1" in caplog.text


def test_a_label_map_keeps_its_numbers(series, tmp_path):
    one, two = blobs()
    path = make(series, [one, two], tmp_path / "seg" / "s.dcm", kind="LABELMAP")
    np.testing.assert_array_equal(io.read_label_map(path).array, one + 2 * two)


def test_an_empty_segment_is_told(series, tmp_path, caplog):
    one, _ = blobs()
    path = make(series, [one, np.zeros(SHAPE, bool)], tmp_path / "seg" / "s.dcm")
    np.testing.assert_array_equal(io.read_label_map(path).array, one)
    assert "'b' has no voxels" in caplog.text


def test_another_frame_of_reference_is_refused(series, tmp_path):
    def change(dataset):
        dataset.FrameOfReferenceUID = highdicom.UID()

    path = make(series, blobs(), tmp_path / "seg" / "s.dcm", change=change)
    with pytest.raises(GeometryError, match=r"expected the segments in the frame of reference of .* another scan"):
        io.read_label_map(path)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-40])


def compress_and_shorten(path):
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.SegmentationType, dataset.MaximumFractionalValue = 7, "FRACTIONAL", 1
    dataset.PixelData = (np.arange(10 * 120) % 2).astype(np.uint8).tobytes()
    dataset.compress(RLELossless)
    dataset.save_as(path)
    shorten(path)


def forget_frames(path):
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-2]
    dataset.save_as(path)


def forget_segments(path):
    dataset = pydicom.dcmread(path)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.SegmentIdentificationSequence
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shorten, "the file is truncated: expected 150 bytes of frames, got 1[01][0-9]"),
        (compress_and_shorten, "the file is truncated: expected the end of its frames, found none"),
        (forget_frames, "expected the position of each of its 10 frames, found 8"),
        (forget_segments, "expected the segment of every frame"),
    ],
)
def test_damaged_files_are_refused(series, tmp_path, damage, reason):
    path = make(series, blobs(), tmp_path / "seg" / "s.dcm")
    damage(path)
    with pytest.raises(InputError, match=rf"s\.dcm: .*{reason}"):
        io.read_label_map(path)


# ------------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_again_exactly(series, tmp_path):
    scan = io.read_image(series)
    labels = labels_on(scan)
    path = tmp_path / "seg" / "s.dcm"
    io.write_label_map(labels, path, like=scan, format="dicomseg", table=TABLE)
    np.testing.assert_array_equal(io.read_label_map(path).array, labels.array)
    table = io.read_label_table(path)
    assert [(x.value, x.name, x.terminology) for x in table] == [(3, "Leber é", LIVER), (207, "Lung/left", None)]
    for value in (3, 207):
        np.testing.assert_allclose(table.color(value), TABLE.color(value), atol=1)


def test_frames_that_begin_within_a_byte_are_read(tmp_path, write_slices):
    """Frames of 7 x 9 bits: only the first begins at a byte."""
    values = np.random.default_rng(0).integers(0, 9, (8, 7, 9)).astype(np.uint16)
    write_slices(tmp_path / "ct", series="CT", values=values)
    scan = io.read_image(tmp_path / "ct")
    labels = labels_on(scan)
    io.write_label_map(labels, tmp_path / "s.dcm", like=scan, format="dicomseg")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "s.dcm", reference=scan).array, labels.array)


def test_highdicom_reads_what_is_written(series, tmp_path):
    scan = io.read_image(series)
    labels = labels_on(scan)
    path = tmp_path / "seg" / "s.dcm"
    io.write_label_map(labels, path, like=series, format="dicomseg", table=TABLE, algorithm="semiautomatic")
    theirs = highdicom.seg.segread(path)
    slices = sorted(map(pydicom.dcmread, series.glob("*.dcm")), key=lambda x: int(x.InstanceNumber))
    uids = [x.SOPInstanceUID for x in slices]
    found = theirs.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )
    numbers = np.searchsorted([0, 3, 207], labels.array)
    np.testing.assert_array_equal(np.transpose(found, (2, 1, 0)), numbers)
    assert theirs.StudyInstanceUID == slices[0].StudyInstanceUID
    assert theirs.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert theirs.ReferencedSeriesSequence[0].SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert {x.SegmentAlgorithmType for x in theirs.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_simpleitk_reads_the_frames_of_what_is_written(series, tmp_path):
    scan = io.read_image(series)
    labels = labels_on(scan)
    io.write_label_map(labels, tmp_path / "s.dcm", like=series, format="dicomseg")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "s.dcm")))
    frames = pydicom.dcmread(tmp_path / "s.dcm").pixel_array
    np.testing.assert_array_equal(theirs != 0, frames != 0)


def test_slices_in_reverse_order_are_placed(tmp_path, write_slices, directions):
    _, normal = directions
    write_slices(tmp_path / "ct", series="CT", step_mm=-2.5 * normal)
    scan = io.read_image(tmp_path / "ct")
    labels = labels_on(scan)
    for name in ("rtstruct", "dicomseg"):
        path = tmp_path / name / "s.dcm"
        io.write_label_map(labels, path, like=scan, format=name)
        np.testing.assert_array_equal(io.read_label_map(path).array, labels.array)


def test_an_enhanced_file_is_segmented_frame_by_frame(tmp_path, write_frames):
    path = write_frames(tmp_path / "mr" / "e.dcm", order=[3, 0, 7, 1, 2, 6, 5, 4])
    scan = io.read_image(path)
    labels = labels_on(scan)
    io.write_label_map(labels, tmp_path / "seg" / "s.dcm", like=scan, format="dicomseg")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "seg" / "s.dcm", reference=path).array, labels.array)


def test_background_alone_is_refused(series, tmp_path):
    labels = LabelMap(np.zeros(SHAPE, np.int32), io.read_image(series).affine)
    with pytest.raises(InputError, match=r"s\.dcm: expected labels, got background alone"):
        io.write_label_map(labels, tmp_path / "s.dcm", like=series, format="dicomseg")


def test_without_highdicom_the_extra_is_named(series, tmp_path, monkeypatch):
    from atlasseg.errors import MissingLibraryError

    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    labels = labels_on(io.read_image(series))
    with pytest.raises(MissingLibraryError, match=r"pip install 'atlasseg\[dicom\]'"):
        io.write_label_map(labels, tmp_path / "s.dcm", like=series, format="dicomseg")
