"""DICOM: every slice by its own header, or the reason why it is not read."""

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, JPEGLosslessSV1, RLELossless, RTStructureSetStorage, SegmentationStorage

from atlasseg import io
from atlasseg.atlases.library import read_targets
from atlasseg.errors import GeometryError, InputError


def slice_by_slice(folder):
    """Oracle: values by position, each slice rescaled by its own slope and intercept."""
    found = {}
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        values = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
        found[float(dataset.ImagePositionPatient[2])] = values.T
    return np.stack([found[z] for z in sorted(found)], axis=-1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ one series


def test_a_series_is_read_in_the_order_of_its_positions(
    tmp_path, write_slices, expected_affine, expected_values, caplog
):
    write_slices(tmp_path / "t1")
    scan = io.read_image(tmp_path / "t1")
    np.testing.assert_array_equal(scan.array, expected_values)
    np.testing.assert_allclose(scan.affine, expected_affine, atol=1e-5)
    assert scan.name == "t1" and not caplog.records
    np.testing.assert_allclose(scan.spacing_mm, (1.2, 1.5, 2.5), rtol=1e-6)


def test_it_lies_where_itk_reads_it(tmp_path, write_slices):
    write_slices(tmp_path / "t1")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "t1")))
    theirs, ours = reader.Execute(), io.read_image(tmp_path / "t1")
    for voxel in ((0, 0, 0), (11, 9, 7), (3, 1, 5)):
        place = theirs.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((ours.affine @ [*voxel, 1])[:3] * [-1, -1, 1], place, atol=1e-3)
        assert ours.array[voxel] == theirs[voxel]


RESCALES = {
    "intercepts, the first whole": lambda k: (1.0, -1024.0 if k % 3 == 1 else 0.0),
    "slopes, the first whole": lambda k: (1.0 if k == 0 else 100.0, 0.0),
    "fractions": lambda k: (0.25 + k / 8, 0.5 * k),
    "beyond 16 bits": lambda k: (1000.0 * (k + 1), -3e5),
    "negative": lambda k: (-1.0, 7.0),
}


@pytest.mark.parametrize("kind", RESCALES)
def test_each_slice_is_rescaled_by_its_own(tmp_path, write_slices, expected_values, kind):
    def change(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = RESCALES[kind](k)

    write_slices(tmp_path / "ct", kind=CTImageStorage, change=change)
    expected = np.stack([expected_values[..., k] * RESCALES[kind](k)[0] + RESCALES[kind](k)[1] for k in range(8)], -1)
    np.testing.assert_allclose(io.read_image(tmp_path / "ct").array, expected, rtol=1e-6)


def test_signed_pixels_are_signed(tmp_path, write_slices):
    signed = np.random.default_rng(1).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)

    def change(dataset, k):
        dataset.PixelRepresentation = 1
        dataset.PixelData = signed[k].tobytes()

    write_slices(tmp_path / "ct", values=signed, change=change)
    np.testing.assert_array_equal(io.read_image(tmp_path / "ct").array, np.transpose(signed, (2, 1, 0)))


def test_a_tilted_gantry_shears(tmp_path, write_slices, directions, expected_affine, expected_values, caplog):
    column, normal = directions
    step = 2.5 * normal + 0.67 * column
    write_slices(tmp_path / "tilt", step_mm=step)
    scan = io.read_image(tmp_path / "tilt")
    expected = expected_affine.copy()
    expected[:3, 2] = step * [-1, -1, 1]
    np.testing.assert_allclose(scan.affine, expected, atol=1e-5)
    np.testing.assert_array_equal(scan.array, expected_values)
    assert "the slices are not stacked along their normal: sheared by 15 degrees" in caplog.text
    io.write_image(scan, tmp_path / "tilt.nii.gz")
    assert "tilt.nii.gz: the axes are sheared by 15 degrees" in caplog.text
    assert "ITK, ANTs and Slicer cannot open it" in caplog.text


@pytest.mark.parametrize("syntax", [RLELossless])
def test_compressed_pixels_are_read(tmp_path, write_slices, expected_values, syntax):
    for path in write_slices(tmp_path / "t1"):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    np.testing.assert_array_equal(io.read_image(tmp_path / "t1").array, expected_values)


def test_what_only_itk_can_decode_is_decoded_in_a_process_of_its_own(tmp_path, write_slices, expected_values):
    """Lossless JPEG, the usual compression of archives; each slice rescaled by its own."""

    def change(dataset, k):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + k, -3.0 * k

    for path in write_slices(tmp_path / "ct", kind=CTImageStorage, change=change):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.LoadPrivateTagsOn()
        image = reader.Execute()
        dataset = pydicom.dcmread(path)
        stored = sitk.GetImageFromArray(dataset.pixel_array[None].astype(np.uint16))
        for key in image.GetMetaDataKeys():
            if key.split("|")[0] not in ("0028",):
                stored.SetMetaData(key, image.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.Execute(stored)
        written = pydicom.dcmread(path)
        assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        for keyword in (
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
            "ImageOrientationPatient",
            "ImagePositionPatient",
        ):
            setattr(written, keyword, dataset[keyword].value)
        written.save_as(path)
    found = io.read_image(tmp_path / "ct").array
    expected = np.stack([expected_values[..., k] * (0.5 + k) - 3 * k for k in range(8)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_file_without_a_suffix_is_known_by_its_content(tmp_path, write_slices, expected_values):
    for n, path in enumerate(write_slices(tmp_path / "t1")):
        path.rename(path.with_name(f"IM{n}"))
    (tmp_path / "t1" / "notes.txt").write_text("a note")
    (tmp_path / "t1" / ".hidden").write_bytes(b"\0" * 128 + b"DICMjunk")
    np.testing.assert_array_equal(io.read_image(tmp_path / "t1").array, expected_values)


# ------------------------------------------------------------------------------------- what does not make one volume


def test_a_missing_slice_is_named_by_its_position(tmp_path, write_slices, directions):
    files = write_slices(tmp_path / "t1")
    files[3].unlink()
    place = pydicom.dcmread(files[2]).ImagePositionPatient
    with pytest.raises(GeometryError, match=r"t1: .*a gap: slices are 2\.5 mm apart, and none lies at") as caught:
        io.read_image(tmp_path / "t1")
    expected = np.array(place, float) + 2.5 * directions[1]
    assert f"({', '.join(f'{x:.5g}' for x in expected)})" in str(caught.value)


def test_uneven_slices_are_refused(tmp_path, write_slices):
    def change(dataset, k):
        if k > 4:
            dataset.ImagePositionPatient = [float(x) + 0.9 for x in dataset.ImagePositionPatient]

    write_slices(tmp_path / "t1", change=change)
    with pytest.raises(GeometryError, match="expected evenly spaced slices, got distances from"):
        io.read_image(tmp_path / "t1")


@pytest.mark.parametrize(
    ("keyword", "what"),
    [
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "pixel spacing"),
    ],
)
@pytest.mark.parametrize("which", ["all", "one"])
def test_what_does_not_say_where_it_lies_is_refused(tmp_path, write_slices, keyword, what, which):
    def change(dataset, k):
        if which == "all" or k == 3:
            delattr(dataset, keyword)

    write_slices(tmp_path / "t1", change=change)
    with pytest.raises(GeometryError, match=rf"t1: expected the {what} of every slice \({keyword}\), got none for T1"):
        io.read_image(tmp_path / "t1")


def test_a_changing_pixel_spacing_is_refused_with_both(tmp_path, write_slices):
    def change(dataset, k):
        dataset.PixelSpacing = [1.5, 1.2] if k < 4 else [3.0, 2.4]

    write_slices(tmp_path / "t1", change=change)
    with pytest.raises(
        GeometryError, match=r"one pixel spacing.*1\.5 x 1\.2 mm in T1.*3 x 2\.4 mm in T1|3 x 2\.4.*1\.5 x"
    ):
        io.read_image(tmp_path / "t1")


def test_a_changing_orientation_is_refused(tmp_path, write_slices):
    def change(dataset, k):
        if k == 7:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]

    write_slices(tmp_path / "t1", change=change)
    with pytest.raises(GeometryError, match=r"one orientation in the series, .*as in a localizer"):
        io.read_image(tmp_path / "t1")


def test_a_changing_size_is_refused(tmp_path, write_slices):
    def change(dataset, k):
        if k == 5:
            dataset.Rows, dataset.PixelData = 9, dataset.PixelData[: 9 * 12 * 2]

    write_slices(tmp_path / "t1", change=change)
    with pytest.raises(GeometryError, match=r"slices of one size, got 12 x (9|10) pixels"):
        io.read_image(tmp_path / "t1")


def test_several_volumes_in_one_series_are_refused(tmp_path, write_slices, directions):
    def change(dataset, k):
        dataset.EchoTime = 10 * (k % 2)

    write_slices(tmp_path / "a", change=change, step_mm=(0, 0, 0))
    with pytest.raises(InputError, match="8 slices at 1 positions: several volumes in one series"):
        io.read_image(tmp_path / "a")

    def pairs(dataset, k):
        dataset.ImagePositionPatient = [float(x) for x in np.array([-20, -30, 10]) + (k // 2) * 2.5 * directions[1]]

    write_slices(tmp_path / "b", change=pairs)
    with pytest.raises(InputError, match="8 slices at 4 positions: several volumes"):
        io.read_image(tmp_path / "b")


def test_a_mosaic_is_refused_by_name(tmp_path, write_slices):
    write_slices(
        tmp_path / "m",
        change=lambda dataset, k: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]),
    )
    with pytest.raises(InputError, match="got a Siemens mosaic"):
        io.read_image(tmp_path / "m")


def test_colours_are_refused(tmp_path, write_slices):
    def change(dataset, k):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3

    write_slices(tmp_path / "us", change=change)
    with pytest.raises(InputError, match=r"expected grey values, got RGB"):
        io.read_image(tmp_path / "us")


def test_a_truncated_slice_is_named(tmp_path, write_slices):
    files = write_slices(tmp_path / "t1")
    files[4].write_bytes(files[4].read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"{files[4].name}.*(truncated|damaged)"):
        io.read_image(tmp_path / "t1")


def test_pixels_that_are_promised_and_not_there_cost_nothing(tmp_path, write_slices):
    files = write_slices(
        tmp_path / "t1", change=lambda dataset, k: (setattr(dataset, "Rows", 60000), setattr(dataset, "Columns", 60000))
    )
    with pytest.raises(InputError, match=r"expected 7200000000 bytes of pixels by its header, in a file of \d{4}\."):
        io.read_image(files[0].parent)


# -------------------------------------------------------------------------------------------------------- one file


def test_one_file_of_a_series_is_told(tmp_path, write_slices):
    files = write_slices(tmp_path / "t1")
    with pytest.raises(
        InputError, match=rf"{files[3].name}: .*one of the 8 slices of its series. Give the folder: .*t1"
    ):
        io.read_image(files[3])


def test_a_slice_without_its_series_is_one_slice_and_told(tmp_path, write_slices, caplog, expected_values):
    file = write_slices(tmp_path / "t1")[3]
    shutil.copy(file, tmp_path / "alone.dcm")
    scan = io.read_image(tmp_path / "alone.dcm")
    np.testing.assert_array_equal(scan.array, expected_values[..., 3:4])
    np.testing.assert_allclose(scan.spacing_mm, (1.2, 1.5, 2.0), rtol=1e-6)
    assert "a single slice of a DICOM series, without the others" in caplog.text
    assert "its thickness of 2 mm is taken as the voxel size" in caplog.text


def test_a_slice_without_a_thickness_is_refused(tmp_path, write_slices):
    write_slices(
        tmp_path / "t1",
        values=np.ones((1, 4, 5), np.uint16),
        change=lambda dataset, k: delattr(dataset, "SliceThickness"),
    )
    with pytest.raises(GeometryError, match=r"expected the thickness of its only slice \(SliceThickness\), got none"):
        io.read_image(tmp_path / "t1")


# -------------------------------------------------------------------------------------------------- several series


def test_several_series_are_listed_and_one_is_chosen(tmp_path, write_slices, expected_values):
    write_slices(tmp_path / "study" / "a", series="T1", change=lambda dataset, k: setattr(dataset, "SeriesNumber", 5))
    other = np.arange(3 * 6 * 7, dtype=np.uint16).reshape(3, 6, 7)
    write_slices(tmp_path / "study" / "b" / "c", series="scout", values=other)
    with pytest.raises(InputError) as caught:
        io.read_image(tmp_path / "study")
    for part in (
        "found 2",
        "#1: scout (MR, 7 x 6 x 3",
        "#2: T1 (MR, 12 x 10 x 8",
        f"Choose one by its number, as {tmp_path / 'study'}#1",
    ):
        assert part in str(caught.value)
    found = io.list_series(tmp_path / "study")
    assert [(one.number, one.description, one.shape) for one in found] == [
        (1, "scout", (7, 6, 3)),
        (2, "T1", (12, 10, 8)),
    ]
    for chosen in (f"{tmp_path / 'study'}#2", f"{tmp_path / 'study'}#{found[1].uid}"):
        np.testing.assert_array_equal(io.read_image(chosen).array, expected_values)
    for chosen in (2, "2", found[1].uid):
        np.testing.assert_array_equal(io.read_image(tmp_path / "study", series=chosen).array, expected_values)
    np.testing.assert_array_equal(io.read_image(f"{tmp_path / 'study'}#1").array, other.T)
    with pytest.raises(InputError, match=r"study: expected one of its series, got '9'\. It has #1: scout"):
        io.read_image(f"{tmp_path / 'study'}#9")
    with pytest.raises(InputError, match="no such file or folder"):
        io.read_image(f"{tmp_path / 'nothing'}#1")


def test_targets_can_be_series_of_one_folder(tmp_path, write_slices, expected_values):
    write_slices(tmp_path / "study", series="T1")
    write_slices(tmp_path / "study", series="T2", values=np.ones((4, 5, 6), np.uint16))
    first, second = read_targets([f"{tmp_path / 'study'}#1", f"{tmp_path / 'study'}#2"])
    assert (first.id, second.id) == ("study_series-1", "study_series-2")
    np.testing.assert_array_equal(first.read()[0].array, expected_values)
    assert second.read()[0].shape == (6, 5, 4)


def test_a_name_that_holds_a_number_sign_is_a_name(tmp_path, write_slices, expected_values):
    write_slices(tmp_path / "scan#2")
    np.testing.assert_array_equal(io.read_image(tmp_path / "scan#2").array, expected_values)


def test_series_below_the_folder_are_found(tmp_path, write_slices, expected_values):
    write_slices(tmp_path / "study" / "ST1" / "SE1")
    np.testing.assert_array_equal(io.read_image(tmp_path / "study").array, expected_values)


# ---------------------------------------------------------------------------------------------- enhanced multi-frame


@pytest.mark.parametrize("as_folder", [True, False])
def test_an_enhanced_file_is_a_volume(tmp_path, write_frames, expected_affine, expected_values, as_folder, caplog):
    path = write_frames(tmp_path / "e" / "e.dcm")
    scan = io.read_image(path.parent if as_folder else path)
    np.testing.assert_array_equal(scan.array, expected_values)
    np.testing.assert_allclose(scan.affine, expected_affine, atol=1e-5)
    assert not caplog.records


def test_frames_are_ordered_by_position_and_rescaled_each(tmp_path, write_frames, expected_affine, expected_values):
    slopes = [(1.0 + k / 4, -10.0 * k) for k in range(8)]
    path = write_frames(tmp_path / "e.dcm", order=[3, 0, 7, 1, 6, 2, 5, 4], slopes=slopes)
    scan = io.read_image(path)
    expected = np.stack([expected_values[..., k] * slopes[k][0] + slopes[k][1] for k in range(8)], axis=-1)
    np.testing.assert_allclose(scan.array, expected, rtol=1e-6)
    np.testing.assert_allclose(scan.affine, expected_affine, atol=1e-5)


def test_frames_with_a_gap_are_refused_with_the_position(tmp_path, write_frames):
    path = write_frames(tmp_path / "e.dcm", places=[0, 1, 2, 3, 5, 6, 7, 8])
    with pytest.raises(GeometryError, match=r"a gap: slices are 2\.5 mm apart, and none lies at \("):
        io.read_image(path)


def test_frames_at_one_place_are_refused(tmp_path, write_frames):
    path = write_frames(tmp_path / "e.dcm", places=[0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(InputError, match="8 slices at 4 positions: several volumes"):
        io.read_image(path)


def test_frames_without_positions_are_refused(tmp_path, write_frames):
    path = write_frames(tmp_path / "e.dcm", change=lambda dataset: delattr(dataset, "PerFrameFunctionalGroupsSequence"))
    with pytest.raises(GeometryError, match=r"e\.dcm: expected the position of each of its 8 frames, found none"):
        io.read_image(path)


def test_two_enhanced_files_are_two_series(tmp_path, write_frames):
    write_frames(tmp_path / "e" / "a.dcm")
    write_frames(tmp_path / "e" / "b.dcm", order=[1, 0, 2, 3, 4, 5, 6, 7])
    with pytest.raises(InputError, match=r"found 2: #1: enhanced \(MR, 12 x 10 x 8, a\.dcm\); #2: .*b\.dcm"):
        io.read_image(tmp_path / "e")
    assert io.read_image(f"{tmp_path / 'e'}#2").shape == (12, 10, 8)


def test_without_highdicom_the_extra_is_named(tmp_path, write_frames, monkeypatch):
    from atlasseg.errors import MissingLibraryError

    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'atlasseg\[dicom\]'"):
        io.read_image(write_frames(tmp_path / "e.dcm"))


# ---------------------------------------------------------------------------------------------- what is not a picture


@pytest.mark.parametrize("read", [io.read_image, io.read_probability_map])
@pytest.mark.parametrize(
    ("kind", "name"), [(SegmentationStorage, r"DICOM segmentation \(SEG\)"), (RTStructureSetStorage, "RTSTRUCT")]
)
def test_segmentations_and_structures_are_never_pictures(tmp_path, write_slices, read, kind, name):
    (file,) = write_slices(tmp_path / "s", values=np.ones((1, 4, 5), np.uint16), kind=kind)
    for path in (file, file.parent):
        with pytest.raises(InputError, match=rf"expected .*scan, found .*{name}.*It holds labels\. Read it with"):
            read(path)


@pytest.mark.parametrize("read", [io.read_label_map, io.read_mask, io.read_label_table])
@pytest.mark.parametrize(("kind", "parts"), [(SegmentationStorage, "segments"), (RTStructureSetStorage, "structures")])
def test_files_without_structures_are_refused(tmp_path, write_slices, read, kind, parts):
    (file,) = write_slices(tmp_path / "s", values=np.ones((1, 4, 5), np.uint16), kind=kind)
    for path in (file, file.parent):
        with pytest.raises(InputError, match=rf"T100\.dcm: expected {parts} in the .*, got none"):
            read(path)


def test_beside_a_scan_they_are_left_aside(tmp_path, write_slices, expected_values):
    write_slices(tmp_path / "s")
    write_slices(tmp_path / "s", series="seg", values=np.ones((1, 4, 5), np.uint16), kind=SegmentationStorage)
    np.testing.assert_array_equal(io.read_image(tmp_path / "s").array, expected_values)
    with pytest.raises(InputError, match="expected a scan, found DICOM segmentation"):
        io.read_image(tmp_path / "s#2")


# -------------------------------------------------------------------------------------------------------- the cases


@pytest.mark.parametrize("name", ["ct_inter_mixed", "slope_large", "plain", "nested"])
def test_the_cases_of_slices(cases, name):
    folder = cases / "dicom" / name
    scan = io.read_image(folder)
    np.testing.assert_array_equal(scan.array, slice_by_slice(folder))
    np.testing.assert_allclose(scan.spacing_mm, (1.2, 1.5, 2.5))


@pytest.mark.parametrize("name", ["enh_plain", "enh_shuffled", "enh_slopes"])
def test_the_cases_of_frames(cases, name):
    scan = io.read_image(cases / "dicom" / name)
    dataset = pydicom.dcmread(cases / "dicom" / name / "e.dcm")
    expected = {}
    for values, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        given = group.get("PixelValueTransformationSequence", [pydicom.Dataset()])[0]
        rescaled = values * float(given.get("RescaleSlope", 1)) + float(given.get("RescaleIntercept", 0))
        expected[float(group.PlanePositionSequence[0].ImagePositionPatient[2])] = rescaled.T
    np.testing.assert_allclose(scan.array, np.stack([expected[z] for z in sorted(expected)], -1), rtol=1e-6)
    np.testing.assert_allclose(scan.spacing_mm, (1.2, 1.5, 2.5))
    if name != "enh_slopes":
        np.testing.assert_array_equal(scan.array, np.transpose(np.load(cases / "dicom_V.npy"), (2, 1, 0)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("enh_gap", r"none lies at \(-20, -30, 20\)"),
        ("mosaic", "Siemens mosaic"),
        ("px_differs", r"1\.5 x 1\.2 mm in 0\.dcm and 3 x 2\.4 mm in 4\.dcm"),
        ("no_ipp", "expected the position of every slice"),
        ("two_series", "found 2: #1"),
        ("with_localizer", "found 2: #1"),
        ("plain/IM003.dcm", "one of the 8 slices of its series"),
    ],
)
def test_the_cases_that_are_refused(cases, name, reason):
    with pytest.raises(InputError, match=reason):
        io.read_image(cases / "dicom" / name)


@pytest.mark.parametrize(("name", "slices"), [("two_series#2", 8), ("with_localizer#1", 8), ("with_localizer#2", 1)])
def test_the_cases_that_are_chosen_from(cases, name, slices):
    assert io.read_image(f"{cases / 'dicom'}/{name}").shape == (12, 10, slices)


def test_the_case_of_a_tilted_gantry(cases, caplog):
    scan = io.read_image(cases / "dicom" / "tilt15")
    np.testing.assert_array_equal(scan.array, np.transpose(np.load(cases / "dicom_V.npy"), (2, 1, 0)))
    np.testing.assert_allclose(scan.affine[:3, 2], (0, -0.66987, 2.5), atol=1e-4)
    assert "sheared by 15 degrees" in caplog.text


@pytest.mark.parametrize(
    ("name", "truth", "labels"),
    [
        ("one_segment_all_slices.dcm", "all_slices_truth.nii.gz", [1]),
        ("one_segment_binary.dcm", "truth.nii.gz", [1]),
        ("two_segments_binary.dcm", "truth.nii.gz", [1, 2]),
        ("two_segments_labelmap.dcm", "truth.nii.gz", [1, 2]),
    ],
)
def test_the_cases_of_segmentations(cases, name, truth, labels):
    expected = io.read_label_map(cases / "dicomseg" / truth)
    for reference in (None, expected):
        found = io.read_label_map(cases / "dicomseg" / name, reference=reference)
        assert found.grid.matches(expected.grid)
        np.testing.assert_array_equal(found.array, np.where(np.isin(expected.array, labels), expected.array, 0))
    table = io.read_label_table(cases / "dicomseg" / name)
    assert [(label.value, label.name) for label in table] == [(1, "liver"), (2, "spleen")][: len(labels)]
    assert str(table[1].terminology.type) == "SCT^10200004^Liver"


def test_the_case_of_a_scan_with_structures(cases):
    scan = io.read_image(cases / "dicomseg" / "image_and_rtstruct")
    np.testing.assert_array_equal(scan.array, slice_by_slice(cases / "dicom" / "plain"))
