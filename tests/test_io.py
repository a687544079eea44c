"""Files there and back: geometry and labels exactly, faults named, nothing half-written."""

import contextlib
import errno
import gzip
import hashlib
import json
import logging
import os
import stat
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlasseg import io
from atlasseg.errors import GeometryError, InputError, OutputError
from atlasseg.io import read_label_table
from atlasseg.labels import Label, LabelTable
from atlasseg.volume import Image, LabelMap, Mask, ProbabilityMap, SourceHeader

SHAPE = (7, 9, 5)
RNG = np.random.default_rng(5)
FLOAT32_ROUNDING = 2e-7
"""Relative; of a NIfTI-1 affine, which is float32."""


def rotation(angles=(0.3, -0.2, 0.5)):
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def oblique(*, flip=False, shear=0.0):
    """Anisotropic and oblique, rounded to the float32 that a NIfTI header holds."""
    edges = rotation() @ np.diag([-0.9 if flip else 0.9, 1.25, 2.5])
    edges[:, 1] += shear * edges[:, 0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = edges, (31.0, -12.5, 207.25)
    return affine.astype(np.float32).astype(np.float64)


AFFINE = oblique()
SCAN = RNG.normal(100, 30, SHAPE).astype(np.float32)


def image(array=SCAN, affine=AFFINE, **more):
    return Image(array, affine, **more)


def label_map(array, affine=AFFINE, **more):
    return LabelMap(array, affine, **more)


def nifti(path, array, affine=AFFINE, *, sform=1, qform=1, qform_affine=None, version=1, unit="mm", dtype=None):
    """A NIfTI file written by nibabel alone."""
    header = (nib.Nifti2Header if version == 2 else nib.Nifti1Header)()
    header.set_data_dtype(dtype or array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units(unit)
    header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), 1.0, 1.0, 1.0)[: array.ndim])
    header.set_qform(affine if qform_affine is None else qform_affine, qform, strip_shears=True)
    header.set_sform(affine, sform)
    kind = nib.Nifti2Image if version == 2 else nib.Nifti1Image
    nib.save(kind(array, None, header), path)
    return path


# -------------------------------------------------------------------------------------------- geometry of NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_nifti_is_read_as_nibabel_reads_it(tmp_path, suffix, flip, shear):
    path = nifti(tmp_path / f"scan{suffix}", SCAN, oblique(flip=flip, shear=shear), qform=0)
    found, expected = io.read_image(path), nib.load(path)
    np.testing.assert_array_equal(found.array, expected.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert found.array.dtype == np.float32 and found.array.flags.c_contiguous
    assert found.name == "scan" and found.source_header.path == path


def test_big_endian_files_are_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int32)
    swapped = nib.Nifti1Image(np.array([[[614454277, 3, 0]]], np.int32), AFFINE, header)
    nib.save(swapped, tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "big")
    labels = io.read_label_map(tmp_path / "a.nii.gz")
    assert labels.array.tolist() == [[[614454277, 3, 0]]] and labels.array.dtype == np.int32
    assert io.read_image(tmp_path / "a.nii.gz").array.dtype == np.float32
    np.testing.assert_array_equal(labels.affine, AFFINE)
    io.write_label_map(labels, tmp_path / "b.nii.gz")
    assert io.read_label_map(tmp_path / "b.nii.gz").array.tolist() == labels.array.tolist()


def test_the_origin_alone_says_how_to_write(tmp_path):
    io.write_label_map(
        label_map(SCAN > 100), tmp_path / "a.nii", like=SourceHeader(dtype="int16", sform_code=4, qform_code=0)
    )
    found = nib.load(tmp_path / "a.nii")
    assert found.get_data_dtype() == np.int16
    assert (found.header["sform_code"], found.header["qform_code"]) == (4, 0)
    np.testing.assert_array_equal(found.affine, AFFINE)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 1), (4, 0), (0, 1), (0, 3), (0, 0)])
@pytest.mark.parametrize("flip", [False, True])
def test_what_is_written_like_a_file_has_its_header(tmp_path, version, sform, qform, flip):
    source = nifti(tmp_path / "scan.nii.gz", SCAN, oblique(flip=flip), sform=sform, qform=qform, version=version)
    scan = io.read_image(source)
    io.write_label_map(label_map(np.ones(SHAPE, int), scan.affine), tmp_path / "out.nii.gz", like=scan)
    given_, found = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    assert type(found) is type(given_)
    # a quaternion in double precision comes back from its matrix but for the last bit
    np.testing.assert_allclose(found.affine, given_.affine, rtol=0, atol=1e-12 if (sform, version) == (0, 2) else 0)
    fields = ["sform_code", "qform_code", "xyzt_units"]
    fields += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_z"] if qform else []
    for field in fields:
        assert found.header[field] == pytest.approx(given_.header[field], rel=FLOAT32_ROUNDING, abs=1e-12), field
    first = 0 if qform else 1  # which holds the handedness of the qform
    np.testing.assert_allclose(found.header["pixdim"][first:4], given_.header["pixdim"][first:4], rtol=FLOAT32_ROUNDING)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(-3.2, 3.2)] * 3), st.booleans())
def test_a_place_that_only_the_qform_knows_survives(tmp_path_factory, angles, flip):
    folder = tmp_path_factory.mktemp("qform")
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag([-0.9 if flip else 0.9, 1.25, 2.5])
    affine[:3, 3] = 31.0, -12.5, 207.25
    scan = io.read_image(nifti(folder / "a.nii", SCAN, affine, sform=0, qform=1))
    io.write_image(scan, folder / "b.nii")
    again = io.read_image(folder / "b.nii")
    # the quaternion is float32 and its real part is left out, so half turns keep 1e-7 of a turn at best
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-6)


def test_sform_and_qform_that_disagree_are_warned_of_and_the_sform_is_used(tmp_path, caplog):
    moved = AFFINE.copy()
    moved[:3, 3] += 3, 0, 4
    path = nifti(tmp_path / "scan.nii.gz", SCAN, qform_affine=moved)
    scan = io.read_image(path)
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert "scan.nii.gz: sform and qform differ by up to 5 mm; the sform (code 1) is used" in caplog.text
    caplog.clear()
    # and the disagreement is kept in what is written like it, for other programs to treat both files alike
    io.write_image(scan, tmp_path / "out.nii.gz", like=scan)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").get_qform(), moved, atol=1e-5)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, AFFINE)


def test_sform_and_qform_that_agree_but_for_rounding_are_not_warned_of(tmp_path, caplog):
    io.read_image(nifti(tmp_path / "scan.nii", SCAN))
    assert not caplog.records


def test_neither_sform_nor_qform_is_warned_of_and_read_as_nibabel_does(tmp_path, caplog):
    path = nifti(tmp_path / "scan.nii.gz", SCAN, sform=0, qform=0)
    scan = io.read_image(path)
    np.testing.assert_array_equal(scan.affine, nib.load(path).affine)
    assert "scan.nii.gz: neither sform nor qform is set" in caplog.text
    assert "0.9 x 1.25 x 2.5 mm" in caplog.text


def test_a_part_of_a_volume_without_sform_and_qform_is_placed_by_an_sform(tmp_path):
    scan = io.read_image(nifti(tmp_path / "scan.nii.gz", SCAN, sform=0, qform=0))
    part = scan.cropped((1, 2, 1), (6, 8, 4))
    io.write_image(part, tmp_path / "part.nii.gz")
    again = io.read_image(tmp_path / "part.nii.gz")
    np.testing.assert_allclose(again.affine, part.affine, rtol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (0, 1), (1, 0)])
def test_a_part_of_a_volume_is_written_where_it_lies(tmp_path, caplog, sform, qform):
    scan = io.read_image(nifti(tmp_path / "scan.nii.gz", SCAN, sform=sform, qform=qform))
    part = scan.cropped((1, 2, 1), (6, 8, 4))
    io.write_image(part, tmp_path / "part.nii.gz")
    again = io.read_image(tmp_path / "part.nii.gz")
    np.testing.assert_allclose(again.affine, part.affine, atol=1e-5)
    np.testing.assert_array_equal(again.array, SCAN[1:6, 2:8, 1:4])
    assert not caplog.records  # sform and qform agree


def test_a_faulty_qform_is_left_aside_where_there_is_an_sform(tmp_path, caplog):
    path = nifti(tmp_path / "scan.nii", SCAN)
    set_field(path, 256, "<f", 1.5)  # quatern_b: longer than 1
    scan = io.read_image(path)
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert "the qform is faulty" in caplog.text
    io.write_image(scan, tmp_path / "out.nii")
    assert nib.load(tmp_path / "out.nii").header["qform_code"] == 0


def test_a_faulty_qform_without_an_sform_is_refused(tmp_path):
    path = nifti(tmp_path / "scan.nii", SCAN, sform=0)
    set_field(path, 256, "<f", 1.5)
    with pytest.raises(GeometryError, match=r"scan\.nii.*no sform, and the qform is faulty"):
        io.read_image(path)


def test_a_singular_sform_without_a_qform_is_refused_by_name(tmp_path):
    path = nifti(tmp_path / "scan.nii", SCAN, qform=0)
    for row in range(3):
        set_field(path, 280 + 16 * row, "<4f", 0, 0, 0, 0)
    with pytest.raises(GeometryError, match=r"scan\.nii.*invertible"):
        io.read_image(path)


def test_a_sheared_affine_of_our_own_is_written_without_a_qform(tmp_path):
    sheared = oblique(shear=0.3)
    io.write_image(image(affine=sheared), tmp_path / "out.nii.gz")
    found = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(found.affine, sheared)
    assert (found.header["sform_code"], found.header["qform_code"]) == (1, 0)


def test_a_volume_of_our_own_is_placed_by_both_forms(tmp_path):
    io.write_image(image(affine=oblique(flip=True)), tmp_path / "out.nii.gz")
    found = nib.load(tmp_path / "out.nii.gz")
    assert (found.header["sform_code"], found.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(found.get_qform(), found.get_sform(), atol=1e-5)


def test_axes_too_long_for_nifti_1_make_nifti_2(tmp_path):
    io.write_mask(Mask(np.ones((32768, 1, 1), bool), AFFINE), tmp_path / "long.nii.gz")
    assert isinstance(nib.load(tmp_path / "long.nii.gz"), nib.Nifti2Image)
    assert io.read_mask(tmp_path / "long.nii.gz").shape == (32768, 1, 1)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float64, (3, 4), elements=st.floats(-300, 300, width=32)),
    hnp.arrays(
        st.sampled_from(["uint8", "int16", "int32", "int64"]), hnp.array_shapes(min_dims=3, max_dims=3, max_side=4)
    ),
    st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]),
)
def test_any_labels_come_back_from_any_place(tmp_path_factory, rows, array, suffix):
    affine = np.vstack([rows, [0, 0, 0, 1]])
    affine[:3, :3] += 400 * np.eye(3)[:, [2, 0, 1]]  # invertible, whatever the rest
    array = np.clip(array, -(2**31), 2**31 - 1)
    path = tmp_path_factory.mktemp("any") / f"labels{suffix}"
    io.write_label_map(label_map(array, affine), path)
    found = io.read_label_map(path)
    np.testing.assert_array_equal(found.array, array)
    # NIfTI-1 holds these float32 numbers; the text of the others 15 to 17 digits of directions times spacings
    np.testing.assert_allclose(found.affine, affine.astype(np.float32), rtol=1e-6, atol=1e-4)


def test_a_result_on_another_grid_is_refused(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    with pytest.raises(GeometryError, match=r"out\.nii\.gz.*not on the grid of scan"):
        io.write_label_map(label_map(np.ones(SHAPE)), tmp_path / "out.nii.gz", like=image(affine=moved, name="scan"))
    with pytest.raises(GeometryError, match=r"\(7, 9, 5\)"):
        io.write_mask(Mask(np.ones((7, 9, 4)), AFFINE), tmp_path / "out.nii.gz", like=image())
    assert not list(tmp_path.iterdir())


def set_field(path, offset, form, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------------ other formats


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("flip", [False, True])
def test_itk_and_nifti_files_of_one_volume_are_read_alike(tmp_path, suffix, flip):
    """SimpleITK reads the NIfTI file and writes the other: LPS and the order of axes are its own affair."""
    path = nifti(tmp_path / "scan.nii.gz", SCAN, oblique(flip=flip))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"scan{suffix}"))
    found, expected = io.read_image(tmp_path / f"scan{suffix}"), io.read_image(path)
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert found.name == "scan"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int32", "int64"])
def test_labels_in_itk_files_are_kept_exactly(tmp_path, suffix, dtype):
    array = np.zeros(SHAPE, np.int64)
    array[1, 2, 3] = min(614454277, np.iinfo(dtype).max)
    given_ = label_map(array, source_header=SourceHeader(dtype=dtype))
    io.write_label_map(given_, tmp_path / f"labels{suffix}")
    found = io.read_label_map(tmp_path / f"labels{suffix}")
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-9)
    assert found.source_header.dtype == dtype


def test_channels_become_the_fourth_axis_or_a_vector(tmp_path):
    both = image(np.stack([SCAN, -SCAN], axis=-1))
    io.write_image(both, tmp_path / "both.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "both.nii.gz").get_fdata(dtype=np.float32), both.array)
    io.write_image(both, tmp_path / "both.nrrd")
    vector = sitk.ReadImage(str(tmp_path / "both.nrrd"))
    assert vector.GetNumberOfComponentsPerPixel() == 2
    assert vector[1, 2, 3] == (SCAN[1, 2, 3], -SCAN[1, 2, 3])


@pytest.mark.parametrize("suffix", [".mgz", ".img", ".hdr"])
def test_other_files_of_nibabel_are_read(tmp_path, suffix):
    array = (SCAN > 100).astype(np.uint8)
    if suffix == ".mgz":
        nib.save(nib.MGHImage(array, AFFINE), tmp_path / "a.mgz")
    else:
        nib.save(nib.Nifti1Pair(array, AFFINE), tmp_path / "a.img")
    found = io.read_label_map(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)  # MGH keeps the centre, in float32


def test_an_analyze_file_is_read_with_a_warning(tmp_path, caplog):
    nib.save(nib.AnalyzeImage(SCAN, None), tmp_path / "a.img")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.img").array, SCAN)
    assert "a.img: an Analyze header does not distinguish left from right" in caplog.text


@pytest.fixture
def dicom(tmp_path):
    """A series of slices, written by ITK from an oblique volume."""
    folder = tmp_path / "series"
    folder.mkdir()
    volume = sitk.GetImageFromArray(np.ascontiguousarray(SCAN.astype(np.int16).T))
    volume.SetSpacing((0.9, 1.25, 2.5))
    volume.SetDirection(rotation().ravel().tolist())
    volume.SetOrigin((31.0, -12.5, 207.25))
    write_series(folder, volume, "1.2.3")
    return folder


def write_series(folder, volume, uid, tilt=(0.0, 0.0, 0.0)):
    """Slices whose positions move by `tilt` mm, beside what the volume says, from one to the next."""
    directions = np.reshape(volume.GetDirection(), (3, 3))
    orientation = "\\".join(f"{x:.10f}" for x in (*directions[:, 0], *directions[:, 1]))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.GetDepth()):
        piece = volume[:, :, k]
        position = np.array(volume.TransformIndexToPhysicalPoint((0, 0, k)))
        for key, value in {
            "0008|0060": "MR",
            "0020|000d": "1.2.3.1",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.10f}" for x in position + k * np.array(tilt)),
            "0020|0037": orientation,
        }.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{k:02}.dcm"))
        writer.Execute(piece)


def test_a_dicom_series_is_one_scan(dicom):
    scan = io.read_image(dicom)
    assert scan.name == "series" and scan.source_header.path == dicom
    np.testing.assert_array_equal(scan.array, SCAN.astype(np.int16))
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = rotation() @ np.diag([0.9, 1.25, 2.5]), (31.0, -12.5, 207.25)
    np.testing.assert_allclose(scan.affine, np.diag([-1, -1, 1, 1]) @ lps, atol=1e-4)


def test_a_dicom_series_without_a_slice_is_refused(dicom):
    (dicom / "1.2.3_02.dcm").unlink()
    with pytest.raises(GeometryError, match=r"series.*a gap: slices are 2\.5 mm apart, and none lies at"):
        io.read_image(dicom)


def test_a_dicom_series_with_a_tilted_gantry_is_sheared(dicom, tmp_path, caplog):
    """Slices pushed sideways: the affine follows their positions, which ITK's does not."""
    volume = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(dicom)))
    folder = tmp_path / "tilted"
    folder.mkdir()
    write_series(folder, volume, "1.2.5", tilt=(0.0, 0.5, 0.0))
    scan, straight = io.read_image(folder), io.read_image(dicom)
    np.testing.assert_array_equal(scan.array, straight.array)
    expected = straight.affine.copy()
    expected[1, 2] -= 0.5  # LPS to RAS
    np.testing.assert_allclose(scan.affine, expected, atol=1e-4)
    assert "tilted: the slices are not stacked along their normal" in caplog.text


def test_a_dicom_series_of_several_volumes_is_refused(dicom, tmp_path):
    volume = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(dicom)))
    folder = tmp_path / "times"
    folder.mkdir()
    step = np.array(volume.TransformIndexToPhysicalPoint((0, 0, 1))) - volume.GetOrigin()
    write_series(folder, volume, "1.2.6", tilt=-step)
    with pytest.raises(InputError, match="5 slices at 1 positions: several volumes in one series"):
        io.read_image(folder)


def test_a_folder_of_two_dicom_series_is_refused(dicom):
    other = sitk.GetImageFromArray(np.ones((3, 4, 5), np.int16))
    write_series(dicom, other, "1.2.4")
    with pytest.raises(InputError, match=r"series.*one DICOM series, found 2: #1"):
        io.read_image(dicom)


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with a DICOM series, found no DICOM file"):
        io.read_image(tmp_path)


# ------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_labels_of_every_type_are_kept_exactly(tmp_path, dtype):
    largest = 614454277 if dtype == "float64" else min(614454277, np.iinfo(dtype).max)
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3], array[3, 2, 1] = largest, largest - 1
    labels = io.read_label_map(nifti(tmp_path / "in.nii.gz", array))
    assert labels.array.dtype == np.int32
    assert labels.array[1, 2, 3] == largest and labels.array[3, 2, 1] == largest - 1
    io.write_label_map(labels, tmp_path / "out.nii.gz")
    found = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), array.astype(np.int64))
    assert found.get_data_dtype() == (np.int32 if dtype == "float64" else dtype)


def test_scaled_labels_are_kept_exactly(tmp_path):
    """614454277 as 614454276 + 1 with a slope: the header's scaling is done in double precision."""
    path = nifti(tmp_path / "in.nii", np.array([0, 1], np.int32).reshape(2, 1, 1))
    set_field(path, 112, "<2f", 2.0, 5.0)
    assert io.read_label_map(path).values.tolist() == [5, 7]
    array = np.array([0, 614454277], np.int32).reshape(2, 1, 1)
    path = nifti(tmp_path / "in.nii", array)
    set_field(path, 112, "<2f", 2.0, 0.0)
    assert io.read_label_map(path).values.tolist() == [0, 1228908554]


def test_labels_in_float32_that_may_have_been_rounded_are_warned_of(tmp_path, caplog):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = 614454277
    labels = io.read_label_map(nifti(tmp_path / "in.nii.gz", array))
    assert labels.values.tolist() == [0, 614454272]  # what the file holds
    assert "in.nii.gz: labels beyond 16777216 are stored as float32" in caplog.text


@pytest.mark.parametrize(
    ("values", "own", "like", "expected"),
    [
        ((0, 2), None, None, "uint8"),
        ((0, 300), None, None, "int16"),
        ((-1, 2), None, None, "int16"),
        ((0, 40000), None, None, "uint16"),
        ((-1, 40000), None, None, "int32"),
        ((0, 614454277), None, None, "int32"),
        ((0, 2), "uint32", "int16", "uint32"),
        ((0, 2), None, "int16", "int16"),
        ((0, 300), "uint8", "int16", "int16"),
        ((0, 300), "uint8", "float32", "int16"),
        ((0, 2), "float32", "float64", "uint8"),
        ((0, 2), "bool", None, "uint8"),
    ],
)
def test_labels_are_written_in_their_own_type_or_the_smallest_that_fits(tmp_path, values, own, like, expected):
    array = np.resize(values, SHAPE)
    scan = None if like is None else image(source_header=SourceHeader(dtype=like))
    io.write_label_map(label_map(array, source_header=SourceHeader(dtype=own)), tmp_path / "out.nii.gz", like=scan)
    assert nib.load(tmp_path / "out.nii.gz").get_data_dtype() == expected
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "out.nii.gz").array, array)


def test_three_hundred_labels_and_negative_ones_come_back(tmp_path):
    array = (np.arange(np.prod(SHAPE)) - 15).reshape(SHAPE)
    io.write_label_map(label_map(array), tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "out.nii.gz").array, array)
    assert np.unique(array).size > 300


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_labels_that_are_not_whole_are_refused_with_their_place(tmp_path, value, shown):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    with pytest.raises(
        InputError, match=rf"in\.nii\.gz: expected whole numbers as labels, got {shown} at voxel \[1, 2, 3\]"
    ):
        io.read_label_map(nifti(tmp_path / "in.nii.gz", array))


@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64", "float64"])
def test_labels_beyond_32_bits_are_refused(tmp_path, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3] = 2**31
    with pytest.raises(InputError, match=r"in\.nii\.gz.*32 bits.*2147483648"):
        io.read_label_map(nifti(tmp_path / "in.nii.gz", array))


# ----------------------------------------------------------------------------------------------- images and masks


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_intensities_that_are_not_finite_are_masked_with_a_warning(tmp_path, caplog, bad):
    array = SCAN.copy()
    array[1, 2, 3], array[0, 0, 0] = bad, -5
    path = nifti(tmp_path / "scan.nii.gz", array)
    scan, finite = io.read_scan(path)
    assert scan.array[1, 2, 3] == -5  # the lowest there is
    assert finite is not None and not finite.array[1, 2, 3] and finite.array.sum() == array.size - 1
    assert (
        "scan.nii.gz: 0.32% of the intensities are NaN or infinite (1 of 315, the first at voxel [1, 2, 3])"
        in caplog.text
    )
    np.testing.assert_array_equal(io.read_image(path).array, scan.array)
    with pytest.raises(InputError, match=r"scan\.nii\.gz: .* of the intensities are NaN or infinite \(1 of 315"):
        io.read_image(path, nonfinite="refuse")


def test_intensities_beyond_float32_are_not_finite(tmp_path):
    array = SCAN.astype(np.float64)
    array[1, 2, 3] = 1e300
    _, finite = io.read_scan(nifti(tmp_path / "scan.nii.gz", array))
    assert finite is not None and not finite.array[1, 2, 3]


def test_a_scan_without_any_finite_intensity_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"315 of 315"):
        io.read_image(nifti(tmp_path / "scan.nii.gz", np.full(SHAPE, np.nan, np.float32)))


def test_a_finite_scan_has_no_mask_and_a_constant_one_is_read(tmp_path):
    scan, finite = io.read_scan(nifti(tmp_path / "scan.nii.gz", np.full(SHAPE, 3, np.uint8)))
    assert finite is None and (scan.array == 3).all()


def test_scaled_intensities_are_scaled(tmp_path):
    path = nifti(tmp_path / "scan.nii", np.full(SHAPE, 3, np.int16))
    set_field(path, 112, "<2f", 0.5, -1.0)
    assert (io.read_image(path).array == 0.5).all()


def test_a_mask_is_where_it_is_not_0(tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3], array[1, 2, 4] = 255, -1
    mask = io.read_mask(nifti(tmp_path / "mask.nii.gz", array))
    assert np.argwhere(mask.array).tolist() == [[1, 2, 3], [1, 2, 4]]
    io.write_mask(mask, tmp_path / "out.nii.gz", like=mask)
    assert nib.load(tmp_path / "out.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(io.read_mask(tmp_path / "out.nii.gz").array, mask.array)


@pytest.mark.parametrize(("value", "reason"), [(0, "empty"), (np.nan, "finite")])
def test_a_mask_that_is_none_is_refused(tmp_path, value, reason):
    with pytest.raises(InputError, match=rf"mask\.nii\.gz.*{reason}"):
        io.read_mask(nifti(tmp_path / "mask.nii.gz", np.full(SHAPE, value, np.float32)))


@pytest.mark.parametrize("shape", [(7, 9, 5, 1), (7, 9, 5, 1, 1)])
def test_four_dimensions_with_one_volume_are_three(tmp_path, shape):
    assert io.read_image(nifti(tmp_path / "a.nii.gz", SCAN.reshape(shape))).array.shape == SHAPE


@pytest.mark.parametrize("shape", [(7, 45), (7, 9, 5, 2), (7, 9, 1, 5)])
@pytest.mark.parametrize("read", [io.read_image, io.read_label_map, io.read_mask])
def test_other_numbers_of_dimensions_are_refused_with_file_and_shape(tmp_path, shape, read):
    array = np.ones(shape, np.float32)
    with pytest.raises(InputError) as refused:
        read(nifti(tmp_path / "a.nii.gz", array))
    assert "a.nii.gz" in str(refused.value) and str(shape) in str(refused.value)


def test_a_picture_is_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((5, 7, 3), np.uint8), isVector=True), str(tmp_path / "a.png"))
    with pytest.raises(InputError, match=r"a\.png: expected one 3-D volume, got 2-D data"):
        io.read_image(tmp_path / "a.png")


def test_colours_are_refused(tmp_path):
    array = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz.*colours"):
        io.read_image(tmp_path / "a.nii.gz")


# ---------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("read", [io.read_image, io.read_label_map, io.read_mask, io.read_probability_map])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files_are_refused_by_name(tmp_path, read, share, suffix):
    path = nifti(tmp_path / f"cut{suffix}", SCAN)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"cut\{suffix}: "):
        read(path)


def test_a_truncated_file_is_said_to_be_truncated(tmp_path):
    path = nifti(tmp_path / "cut.nii.gz", SCAN)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        InputError, match=r"cut\.nii\.gz: the file is truncated.*expected 1612 bytes by its header, got \d{3,4}\."
    ):
        io.read_image(path)


def test_a_file_whose_checksum_is_wrong_is_refused(tmp_path):
    """A flipped bit that the decompressor does not notice: only gzip's checksum does."""
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nifti(tmp_path / "a.nii", SCAN).read_bytes(), compresslevel=0))
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii\.gz: .*CRC"):
        io.read_image(path)


def test_a_text_file_named_nii_gz_is_refused(tmp_path):
    path = tmp_path / "notes.nii.gz"
    path.write_text("see the other folder")
    with pytest.raises(InputError, match=r"notes\.nii\.gz: expected a NIfTI file, .* got b'see '"):
        io.read_image(path)
    path.write_bytes(gzip.compress(b"see the other folder"))
    with pytest.raises(InputError, match=r"notes\.nii\.gz: expected a NIfTI file"):
        io.read_image(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.mgz", "a.hdr", "a.dcm", "a.txt", "a"])
@pytest.mark.parametrize("content", [b"", b"see the other folder", bytes(1000)])
def test_files_that_are_no_volumes_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: "):
        io.read_image(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_breaks_nothing(tmp_path_factory, data):
    """Bytes of the header are overwritten: the volume comes out, or an error that names the file."""
    path = tmp_path_factory.mktemp("damaged") / data.draw(st.sampled_from(["a.nii", "a.nrrd", "a.mha"]))
    io.write_label_map(label_map(SCAN > 100), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(352, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for read in (io.read_scan, io.read_label_map, io.read_mask):
        with contextlib.suppress(InputError):
            assert read(path) is not None


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match=r"absent\.nii\.gz: no such file"):
        io.read_image(tmp_path / "absent.nii.gz")


def test_an_uncompressed_file_named_gz_is_read_all_the_same(tmp_path):
    nifti(tmp_path / "a.nii", SCAN).rename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.nii.gz").array, SCAN)


# ------------------------------------------------------------------------------------------------ probabilities


def probabilities(labels=(0, 3, 614454277)):
    weights = RNG.random((*SHAPE, len(labels))) ** 4
    weights[:3] = np.eye(len(labels))[1]
    return ProbabilityMap.from_dense(weights, labels, AFFINE)


def assert_same_probabilities(found, expected, atol=1e-6):
    assert found.label_values.tolist() == expected.label_values.tolist()
    np.testing.assert_allclose(found.dense(), expected.dense(), atol=atol)
    np.testing.assert_array_equal(found.mode, expected.mode)


def test_probabilities_come_back_with_their_labels(tmp_path):
    given_ = probabilities()
    scan = io.read_image(nifti(tmp_path / "scan.nii.gz", SCAN, sform=2, qform=1))
    io.write_probability_map(given_, tmp_path / "out.nii.gz", like=scan)
    assert_same_probabilities(io.read_probability_map(tmp_path / "out.nii.gz"), given_)
    found = nib.load(tmp_path / "out.nii.gz")
    assert found.shape == (*SHAPE, 3) and found.header["sform_code"] == 2
    np.testing.assert_allclose(found.get_fdata(), given_.dense(), atol=1e-7)


def test_labels_of_probabilities_come_from_the_caller_or_the_sidecar(tmp_path):
    given_ = probabilities()
    path = nifti(tmp_path / "p.nii.gz", given_.dense())
    with pytest.raises(InputError, match=r"p\.nii\.gz: expected the label of each of its 3 volumes.*p\.json"):
        io.read_probability_map(path)
    assert_same_probabilities(io.read_probability_map(path, labels=[0, 3, 614454277]), given_)
    (tmp_path / "p.json").write_text(json.dumps({"LabelMap": [0, 3, 614454277]}))
    assert_same_probabilities(io.read_probability_map(path), given_)


def test_a_file_a_label_makes_the_same_map(tmp_path):
    given_ = probabilities()
    paths = [nifti(tmp_path / f"{label}.nii.gz", given_.probability(label)) for label in (0, 3, 614454277)]
    assert_same_probabilities(io.read_probability_map(paths, labels=[0, 3, 614454277]), given_)
    # and without that of the background, which gets the rest unless it may be rounding
    assert_same_probabilities(io.read_probability_map(paths[1:], labels=[3, 614454277]), given_, atol=2e-5)


def test_files_of_probabilities_on_different_grids_are_refused(tmp_path):
    paths = [nifti(tmp_path / f"{n}.nii.gz", np.ones((7, 9, n), np.float32)) for n in (5, 4)]
    with pytest.raises(GeometryError, match=r"4\.nii\.gz: expected the grid of .*5\.nii\.gz"):
        io.read_probability_map(paths, labels=[1, 2])


def test_percent_is_recognised_with_a_warning(tmp_path, caplog):
    given_ = probabilities()
    path = nifti(tmp_path / "p.nii.gz", given_.dense() * 100)
    assert_same_probabilities(io.read_probability_map(path, labels=[0, 3, 614454277]), given_)
    assert "p.nii.gz: the largest value is 100, so the values are read as percent" in caplog.text


def test_bytes_are_recognised_with_a_warning(tmp_path, caplog):
    given_ = probabilities()
    path = nifti(tmp_path / "p.nii.gz", np.rint(given_.dense() * 255).astype(np.uint8))
    assert_same_probabilities(io.read_probability_map(path, labels=[0, 3, 614454277]), given_, atol=1 / 255)
    assert "p.nii.gz: the largest value is 255, so the values are read as bytes, parts of 255" in caplog.text


def test_a_background_of_its_own_that_is_0_with_all_others_is_told(tmp_path, caplog):
    array = np.full((*SHAPE, 2), 0.5, np.float32)
    array[1, 2] = 0
    found = io.read_probability_map(nifti(tmp_path / "p.nii.gz", array), labels=[0, 4])
    assert f"all probabilities are 0 at {SHAPE[2]} voxels; they are background" in caplog.text
    assert (found.mode[1, 2] == 0).all() and (found.confidence()[1, 2] == 1).all()


def test_four_dimensions_are_channels_where_they_are_asked_for(tmp_path):
    array = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)
    array[2, 3, 1, 1] = np.nan
    path = nifti(tmp_path / "two.nii.gz", array)
    image, known = io.read_scan(path, channels=True)
    assert image.channels.shape == (*SHAPE, 2) and known.shape == SHAPE
    assert not known.array[2, 3, 1] and known.array.sum() == known.array.size - 1
    np.testing.assert_array_equal(image.array[known.array], array[known.array])
    with pytest.raises(InputError, match="expected one 3-D volume"):
        io.read_scan(path)
    with pytest.raises(InputError, match="a 4-D volume of channels"):
        io.read_scan(nifti(tmp_path / "five.nii.gz", array[..., None, :].repeat(2, axis=3)), channels=True)


def test_probabilities_that_do_not_sum_to_one_are_scaled_with_a_warning(tmp_path, caplog):
    given_ = probabilities()
    path = nifti(tmp_path / "p.nii.gz", given_.dense() * 0.5)
    assert_same_probabilities(io.read_probability_map(path, labels=[0, 3, 614454277]), given_)
    assert "p.nii.gz: the sum of the probabilities differs from 1 by up to 0.5, at 315 voxels" in caplog.text


@pytest.mark.parametrize(
    ("value", "labels", "reason"),
    [
        (np.nan, [0, 1], "got NaN or infinity"),
        (-0.5, [0, 1], "label 1 of at least 0, got -0.5"),
        (1.5, [0, 1], "got values up to 1.5"),
        (255, [0, 1], "got values up to 255"),
        (0.5, [0, 1, 2, 3], "expected a different label for each"),
        (0.5, [1, 1], "expected a different label for each"),
    ],
)
def test_faulty_probabilities_are_refused(tmp_path, value, labels, reason):
    array = np.full((*SHAPE, 2), 0.5, np.float32)
    array[1, 2, 3, 1] = value
    with pytest.raises(InputError, match=rf"p\.nii\.gz.*{reason}"):
        io.read_probability_map(nifti(tmp_path / "p.nii.gz", array), labels=labels)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 5, 1, 3)])
def test_probabilities_of_other_dimensions_are_refused(tmp_path, shape):
    path = nifti(tmp_path / "p.nii.gz", np.full(shape, 0.5, np.float32))
    with pytest.raises(
        InputError, match=r"p\.nii\.gz: expected a volume of shape \(I, J, K, labels\), got shape \(7, 9"
    ):
        io.read_probability_map(path, labels=[0, 1, 2])
    with pytest.raises(InputError, match=r"p\.nii\.gz: expected a volume of shape \(I, J, K\), got"):
        io.read_probability_map([path, path], labels=[1, 2])


def test_as_many_files_of_probabilities_as_labels_are_wanted(tmp_path):
    path = nifti(tmp_path / "p.nii.gz", np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(InputError, match="expected a different label for each of 2 volumes"):
        io.read_probability_map([path, path], labels=[1, 1])


def test_one_label_in_three_dimensions_leaves_the_rest_to_background(tmp_path):
    found = io.read_probability_map(nifti(tmp_path / "p.nii.gz", np.full(SHAPE, 0.25, np.float32)), labels=[4])
    assert found.label_values.tolist() == [0, 4]
    np.testing.assert_array_equal(found.probability(0), np.full(SHAPE, 0.75))


def test_probabilities_are_written_as_nifti_only(tmp_path):
    with pytest.raises(InputError, match=r"out\.nrrd"):
        io.write_probability_map(probabilities(), tmp_path / "out.nrrd")


# ------------------------------------------------------------------------------------------- whole or not at all


def written():
    """Every way to write, each with the file that it makes."""
    return {
        "image.nii.gz": lambda path: io.write_image(image(), path),
        "image.nii": lambda path: io.write_image(image(), path),
        "image.nrrd": lambda path: io.write_image(image(), path),
        "labels.nii.gz": lambda path: io.write_label_map(label_map(SCAN > 100), path),
        "mask.nii.gz": lambda path: io.write_mask(Mask(SCAN > 100, AFFINE), path),
        "p.nii.gz": lambda path: io.write_probability_map(probabilities(), path),
        "table.tsv": lambda path: io.write_label_table(LabelTable((Label(1, "a"),)), path),
        "rows.tsv": lambda path: io.write_tsv([{"a": 1}], path),
        "a.json": lambda path: io.write_json({"a": 1}, path),
    }


@pytest.mark.parametrize("name", written())
def test_nothing_but_the_file_itself_appears(tmp_path, name):
    path = tmp_path / "new" / "folder" / name
    written()[name](path)
    assert [found.name for found in path.parent.iterdir()] == [name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", written())
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, error):
    """The disk is full, or the user interrupts, when everything is written but for the last byte."""
    path = tmp_path / name
    path.write_text("old")

    def full(_):
        raise error

    monkeypatch.setattr(os, "fsync", full)
    if isinstance(error, OSError):
        with pytest.raises(OutputError, match=rf"{name}: cannot be written: No space left on device"):
            written()[name](path)
    else:
        with pytest.raises(KeyboardInterrupt):
            written()[name](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii", "p.nii.gz"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, name):
    """The temporary file is a link to a device on which every write finds no space."""
    monkeypatch.setattr("atlasseg.files._owner", lambda: "x")
    temporary = tmp_path / f".x.partial.{name}"
    temporary.symlink_to("/dev/full")
    opened = Path.open

    def open_link(self, mode="r", *rest, **more):
        return opened(self, mode.replace("x", "w"), *rest, **more)

    monkeypatch.setattr(Path, "open", open_link)
    with pytest.raises(OutputError, match=rf"{name}: cannot be written: No space left on device"):
        written()[name](tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_between_two_volumes_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, label):
        raise KeyboardInterrupt

    monkeypatch.setattr(ProbabilityMap, "probability", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.write_probability_map(probabilities(), tmp_path / "p.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", written())
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, name):
    """A file where a folder is wanted stands for a read-only one, which does not stop root."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=rf"out/{name}: cannot be written"):
        written()[name](tmp_path / "out" / name)
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"a\.json: cannot be written: Permission denied"):
        io.write_json({}, tmp_path / "out" / "a.json")


def test_permission_denied_is_named(tmp_path, monkeypatch):
    def denied(self, *rest, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OutputError, match=r"a\.nii\.gz: cannot be written: Permission denied"):
        io.write_image(image(), tmp_path / "a.nii.gz")


def test_what_itk_fails_to_write_is_named(tmp_path, monkeypatch):
    def fail(*rest, **more):
        raise RuntimeError("Exception thrown in SimpleITK\nsitk::ERROR: no space")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(OutputError, match=r"a\.nrrd: cannot be written: sitk::ERROR: no space"):
        io.write_image(image(), tmp_path / "a.nrrd")
    assert not list(tmp_path.iterdir())


def test_other_suffixes_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(InputError, match=r"out\.jpg: expected a name that ends in \.nii\.gz, \.nii, \.nrrd, \.mha"):
        io.write_image(image(), tmp_path / "new" / "out.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in written() if not name.startswith("p.")])
def test_the_same_volume_gives_the_same_bytes(tmp_path, monkeypatch, name):
    hashes = []
    for folder, now in (("one", 1e9), ("two", 1.1e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)  # gzip would note the time
        written()[name](tmp_path / folder / name)
        hashes.append(hashlib.sha256((tmp_path / folder / name).read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


# --------------------------------------------------------------------------------------------------- small texts


def test_tables_are_written_as_bids_wants_them(tmp_path):
    rows = [{"name": "a", "dice": 0.5, "note": None}, {"name": "b", "dice": float("nan")}]
    io.write_tsv(rows, tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "name\tdice\tnote\na\t0.5\tn/a\nb\tn/a\tn/a\n"
    io.write_tsv(rows, tmp_path / "t.tsv", columns=["dice"])
    assert (tmp_path / "t.tsv").read_text() == "dice\n0.5\nn/a\n"
    io.write_tsv([], tmp_path / "t.tsv", columns=["dice"])
    assert (tmp_path / "t.tsv").read_text() == "dice\n"


def test_json_there_and_back(tmp_path):
    io.write_json({"Sources": ["é"], "n": 1}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "Sources": [\n    "é"')
    assert io.read_json(tmp_path / "a.json") == {"Sources": ["é"], "n": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        io.write_json({"x": float("nan")}, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{\n"a": }', "line 2: not JSON"), ("[1]", "expected a JSON object, got list"), (None, "cannot be read")],
)
def test_faulty_json_is_refused_by_name(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json.*{reason}"):
        io.read_json(tmp_path / "a.json")


def test_label_tables_there_and_back(tmp_path):
    table = LabelTable((Label(3, "Left, CA1", (1, 2, 3)),))
    for name in ("labels.tsv", "labels.csv"):
        io.write_label_table(table, tmp_path / name)
        assert read_label_table(tmp_path / name) == table
    assert "," not in (tmp_path / "labels.tsv").read_text().splitlines()[0]
    io.write_label_table(table, tmp_path / "labels.txt", format="itk-snap")
    assert "Label Description" in (tmp_path / "labels.txt").read_text()


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("sub-01_T1w.nii.gz", "sub-01_T1w"),
        ("a.b.nii", "a.b"),
        ("A.NII.GZ", "A"),
        ("x.nrrd", "x"),
        ("series", "series"),
        ("a.gz", "a.gz"),
    ],
)
def test_the_id_of_a_volume_is_its_name_without_suffixes(name, id_):
    assert io.volume_id(Path("folder") / name) == id_


@pytest.mark.parametrize(
    ("name", "is_"),
    [("a.nii.gz", True), ("a.hdr", True), ("a.img", False), ("a.json", False), (".a.nii.gz", False), ("a.raw", False)],
)
def test_what_counts_as_a_volume(name, is_):
    assert io.is_volume(name) is is_


# --------------------------------------------------------------------------------------------------------- content


def test_content_is_the_same_whatever_the_file_and_differs_with_every_value(tmp_path):
    for name in ("a.nii", "b.nii.gz", "c.mha"):
        io.write_label_map(label_map(SCAN > 100), tmp_path / name)
    hashes = [io.content_hash(io.read_label_map(tmp_path / name)) for name in ("a.nii", "b.nii.gz")]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    labels = label_map(SCAN > 100)
    other = labels.array.copy()
    other[1, 2, 3] += 1
    moved = AFFINE.copy()
    moved[0, 3] += 1
    different = [
        labels,
        labels.with_array(other),
        label_map(labels.array, moved),
        label_map(labels.array.reshape(9, 7, 5)),
        Mask(labels.array, AFFINE),
        Image(labels.array, AFFINE),
        ProbabilityMap.from_labels(labels),
        probabilities(),
    ]
    assert len({io.content_hash(volume) for volume in different}) == len(different)
    assert io.content_hash(labels, place=False) == io.content_hash(label_map(labels.array, moved), place=False)
    assert io.content_hash(labels, place=False) != io.content_hash(labels.with_array(other), place=False)


def test_content_does_not_depend_on_the_order_in_memory():
    assert io.content_hash(image()) == io.content_hash(image(np.asfortranarray(SCAN)))


# ------------------------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize("folder", ["hippocampus/atlases", "mouse_brain/atlases"])
def test_real_files_come_back_with_their_headers(real_data, tmp_path, folder, caplog):
    for kind, read, write in (
        ("images", io.read_image, io.write_image),
        ("labels", io.read_label_map, io.write_label_map),
    ):
        source = sorted((real_data / folder / kind).iterdir())[0]
        volume = read(source)
        write(volume, tmp_path / "out.nii.gz", like=volume)
        given_, found = nib.load(source), nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_array_equal(found.affine, given_.affine)
        np.testing.assert_array_equal(found.get_fdata(), given_.get_fdata())
        for field in ("sform_code", "qform_code", "qoffset_x", "quatern_b"):
            assert found.header[field] == given_.header[field], field
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
