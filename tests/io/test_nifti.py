"""NIfTI headers that contradict themselves, are broken, or use other units; values that promise more than there is."""

import gzip
import struct
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from atlasseg import io
from atlasseg.errors import GeometryError, InputError
from atlasseg.itk import transform_to_sitk
from atlasseg.resampling import resample
from atlasseg.transforms import Affine
from atlasseg.volume import Image, LabelMap, Mask, ProbabilityMap

RNG = np.random.default_rng(15)
SHAPE = (6, 5, 4)
SCAN = RNG.integers(0, 1000, SHAPE).astype(np.int16)
SPACING = (1.5, 1.2, 2.0)


def rotation(x, z):
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_x @ about_z


def oblique(spacing=SPACING, origin=(12, -30, 7)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(0.2, 0.3) @ np.diag([-spacing[0], *spacing[1:]])
    affine[:3, 3] = origin
    return affine


def save(path, array=SCAN, *, sform=None, qform=None, pixdim=SPACING, unit="mm", codes=None, slope=None):
    """A NIfTI-1 file whose parts may contradict each other."""
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units(unit)
    if qform is not None:
        header.set_qform(qform, 1)
    header["pixdim"][1:4] = pixdim
    if sform is not None:
        header["sform_code"] = 1
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            header[name] = np.asarray(sform)[row]
    for name, code in (codes or {}).items():
        header[name] = code
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    if slope is not None:
        header["scl_slope"] = slope
    content = header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# ------------------------------------------------------------------------------------------- sform against pixdim

ONE_MM = np.diag([1.0, 1.0, 1.0, 1.0])
ONE_MM[:3, 3] = -54, -54, -37


@pytest.mark.parametrize("read", [io.read_image, io.read_label_map, io.read_mask])
def test_two_voxel_sizes_are_told_and_either_can_be_taken(tmp_path, caplog, read):
    path = save(tmp_path / "heart.nii.gz", sform=ONE_MM, pixdim=(0.866, 0.866, 0.796))
    found = read(path)
    np.testing.assert_array_equal(found.affine, ONE_MM)
    np.testing.assert_allclose(found.source_header.pixdim_mm, (0.866, 0.866, 0.796), rtol=1e-6)
    assert "heart.nii.gz" in caplog.text
    assert "1 x 1 x 1 mm in its sform and 0.866 x 0.866 x 0.796 mm in its pixdim. The sform is used" in caplog.text
    assert "--spacing-from pixdim" in caplog.text
    caplog.clear()
    other = read(path, spacing_from="pixdim")
    np.testing.assert_allclose(other.spacing_mm, (0.866, 0.866, 0.796), rtol=1e-6)
    np.testing.assert_array_equal(other.affine[:3, 3], ONE_MM[:3, 3])
    assert "The pixdim is used" in caplog.text
    np.testing.assert_array_equal(other.array, found.array)


def test_sizes_from_pixdim_keep_the_directions_of_the_sform_as_itk_does(tmp_path):
    path = save(tmp_path / "a.nii", sform=oblique((1.0, 1.0, 1.0)), pixdim=SPACING)
    ours, theirs = io.read_image(path, spacing_from="pixdim"), sitk.ReadImage(str(path))
    np.testing.assert_allclose(ours.spacing_mm, theirs.GetSpacing(), rtol=1e-6)
    corner = theirs.TransformIndexToPhysicalPoint((5, 4, 3))
    np.testing.assert_allclose(ours.grid.corners_mm[-1] * [-1, -1, 1], corner, atol=1e-4)


@pytest.mark.parametrize("apart", [0.002, 0.02, 3.0])
def test_only_sizes_that_differ_by_more_than_rounding_are_told(tmp_path, caplog, apart):
    io.read_image(save(tmp_path / "a.nii", sform=oblique(np.multiply(SPACING, 1 + apart))))
    assert ("two voxel sizes" in caplog.text) is (apart > 0.01)


@pytest.mark.parametrize("pixdim", [(0, 0, 0), (np.nan, 1, 1), (np.inf, 1, 1)])
def test_a_pixdim_that_says_nothing_is_no_contradiction(tmp_path, caplog, pixdim):
    path = save(tmp_path / "a.nii", sform=oblique(), pixdim=pixdim)
    np.testing.assert_allclose(io.read_image(path).affine, oblique(), rtol=1e-6)
    assert not caplog.records
    with pytest.raises(GeometryError, match=r"a\.nii: expected voxel sizes above 0 in pixdim"):
        io.read_image(path, spacing_from="pixdim")


def test_a_result_on_the_chosen_size_says_it_twice(tmp_path, caplog):
    scan = io.read_image(save(tmp_path / "a.nii", sform=ONE_MM, pixdim=SPACING), spacing_from="pixdim")
    io.write_image(scan, tmp_path / "out.nii", like=scan)
    caplog.clear()
    np.testing.assert_allclose(io.read_image(tmp_path / "out.nii").affine, scan.affine, rtol=1e-6)
    np.testing.assert_allclose(nib.load(tmp_path / "out.nii").header.get_zooms(), SPACING, rtol=1e-6)
    assert not caplog.records


def test_probabilities_take_the_size_that_is_chosen(tmp_path):
    path = save(tmp_path / "p.nii", np.full((*SHAPE, 1), 0.5, np.float32), sform=ONE_MM, pixdim=SPACING)
    for source, size in (("sform", (1, 1, 1)), ("pixdim", SPACING)):
        found = io.read_probability_map(path, labels=[1], spacing_from=source)
        np.testing.assert_allclose(found.grid.spacing_mm, size, rtol=1e-6)


def test_the_case_of_a_resaved_heart(cases, caplog):
    path = cases / "nifti" / "sform_identity_pixdim_other.nii.gz"
    np.testing.assert_allclose(io.read_image(path).spacing_mm, 1)
    assert "0.8658 x 0.8658 x 0.796 mm in its pixdim" in caplog.text
    theirs = sitk.ReadImage(str(path)).GetSpacing()
    np.testing.assert_allclose(io.read_image(path, spacing_from="pixdim").spacing_mm, theirs, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ broken affines


@pytest.mark.parametrize(
    ("sform", "why"),
    [
        (np.zeros((4, 4)), "it is zero"),
        (np.full((4, 4), np.nan), "it is not finite"),
        (np.diag([np.inf, 1, 1, 1]), "it is not finite"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "it is not invertible"),
    ],
)
@pytest.mark.parametrize("version", [".nii", ".nii.gz"])
def test_a_broken_sform_gives_way_to_a_good_qform(tmp_path, caplog, sform, why, version):
    path = save(tmp_path / f"a{version}", sform=sform, qform=oblique())
    np.testing.assert_allclose(io.read_image(path).affine, oblique(), rtol=1e-5, atol=1e-5)
    assert f"the sform (code 1) is faulty ({why}); the qform (code 1) is used" in caplog.text


@pytest.mark.parametrize("codes", [{}, {"qform_code": 1, "quatern_b": 3.0}])
def test_without_a_good_affine_a_file_is_refused(tmp_path, codes):
    path = save(tmp_path / "a.nii", sform=np.zeros((4, 4)), codes=codes)
    with pytest.raises(GeometryError, match=r"a\.nii: .*expected an invertible sform or qform.*the sform is faulty"):
        io.read_image(path)


def test_the_case_of_a_zero_sform(cases, caplog):
    path = cases / "nifti" / "sform_zero_qform_ok.nii.gz"
    np.testing.assert_array_equal(io.read_image(path).affine, nib.load(path).header.get_qform())
    assert "the qform (code 1) is used" in caplog.text


# ---------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(("unit", "to_mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_are_millimetres_inside_and_the_files_own_outside(tmp_path, caplog, unit, to_mm):
    raw = oblique(np.divide(SPACING, to_mm), np.divide((12, -30, 7), to_mm))
    path = save(tmp_path / "a.nii", sform=raw, qform=raw, pixdim=np.divide(SPACING, to_mm), unit=unit)
    scan = io.read_image(path)
    np.testing.assert_allclose(scan.affine, oblique(), rtol=1e-5, atol=1e-5)
    theirs = sitk.ReadImage(str(path))
    np.testing.assert_allclose(scan.spacing_mm, theirs.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(scan.affine[:3, 3], np.multiply(theirs.GetOrigin(), [-1, -1, 1]), rtol=1e-5)
    assert ("converted to mm: voxels of 1.5 x 1.2 x 2 mm" in caplog.text) is (to_mm != 1)
    given = nib.load(path).header
    for kind, volume in {
        "image": scan,
        "labels": LabelMap(np.ones(SHAPE), scan.affine, source_header=scan.source_header),
        "mask": Mask(np.ones(SHAPE), scan.affine, source_header=scan.source_header),
    }.items():
        out = tmp_path / f"{kind}.nii.gz"
        {"image": io.write_image, "labels": io.write_label_map, "mask": io.write_mask}[kind](volume, out)
        found = nib.load(out).header
        assert found.get_xyzt_units()[0] == unit
        np.testing.assert_allclose(found.get_sform(), given.get_sform(), rtol=1e-6)
        np.testing.assert_allclose(found.get_qform(), given.get_qform(), rtol=1e-4, atol=1e-3 / to_mm)
        np.testing.assert_allclose(found.get_zooms(), given.get_zooms(), rtol=1e-6)
        np.testing.assert_allclose(sitk.ReadImage(str(out)).GetOrigin(), theirs.GetOrigin(), rtol=1e-5)


def test_probabilities_like_a_scan_in_micrometres_are_in_micrometres(tmp_path):
    raw = oblique(np.multiply(SPACING, 1e3), (12e3, -30e3, 7e3))
    scan = io.read_image(save(tmp_path / "a.nii", sform=raw, pixdim=np.multiply(SPACING, 1e3), unit="micron"))
    certain = ProbabilityMap.from_labels(LabelMap(SCAN % 3, scan.affine))
    io.write_probability_map(certain, tmp_path / "p.nii.gz", like=scan)
    np.testing.assert_allclose(nib.load(tmp_path / "p.nii.gz").affine, raw, rtol=1e-6)
    np.testing.assert_allclose(io.read_probability_map(tmp_path / "p.nii.gz").affine, scan.affine, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".nii.gz"])
def test_a_transform_of_a_scan_in_micrometres_resamples_alike_in_itk(tmp_path, suffix):
    """The issue: the file's numbers taken as millimetres gave a transform by which ITK saw nothing but zeros."""
    smooth = np.add.outer(np.add.outer(np.sin(np.arange(16) / 3), np.cos(np.arange(14) / 4)), np.arange(12) / 6)
    array = (100 * (smooth + 2)).astype(np.float32)
    raw = oblique(np.multiply(SPACING, 1e3), (12e3, -30e3, 7e3))
    path = save(tmp_path / "a.nii", array, sform=raw, pixdim=np.multiply(SPACING, 1e3), unit="micron")
    scan = io.read_image(path)
    moved = np.eye(4)
    moved[:3, :3] = rotation(0.05, -0.04)
    moved[:3, 3] = 1.3, -0.7, 2.1
    transform = Affine(moved)
    io.write_transform(transform, tmp_path / f"t{suffix}", grid=scan.grid)
    if suffix == ".nii.gz":
        field = sitk.ReadImage(str(tmp_path / f"t{suffix}"), sitk.sitkVectorFloat64)
        theirs = sitk.DisplacementFieldTransform(field)
    else:
        theirs = sitk.ReadTransform(str(tmp_path / f"t{suffix}"))
    itk_scan = sitk.ReadImage(str(path), sitk.sitkFloat32)
    expected = sitk.GetArrayFromImage(sitk.Resample(itk_scan, itk_scan, theirs, sitk.sitkLinear, -1.0)).T
    ours = resample(scan, scan.grid, transform, fill=-1.0).array
    inside = (expected > 0) & (ours > 0)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(ours[inside], expected[inside], atol=0.05)
    assert transform_to_sitk(io.read_transform(tmp_path / f"t{suffix}"), grid=scan.grid).GetDimension() == 3


def test_the_case_in_micrometres(cases, caplog):
    path = cases / "nifti" / "units_micron.nii.gz"
    scan, theirs = io.read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_allclose(scan.spacing_mm, theirs.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(scan.affine[:3, 3], (12, -30, 7), rtol=1e-6)


# ---------------------------------------------------------------------------------------------- labels by scaling


@pytest.mark.parametrize("read", [io.read_label_map])
def test_labels_that_scaling_moved_a_little_are_rounded_and_told(tmp_path, caplog, read):
    """0.1 in float32 times 370 is 37.0000006."""
    raw = (SCAN % 38 * 10).astype(np.int16)
    found = read(save(tmp_path / "seg.nii.gz", raw, sform=oblique(), slope=0.1))
    np.testing.assert_array_equal(found.array, SCAN % 38)
    assert "seg.nii.gz: " in caplog.text and "differ from whole numbers by up to" in caplog.text
    assert "they are rounded" in caplog.text


@pytest.mark.parametrize(("value", "whole"), [(2.0009, True), (2.0011, False), (2.5, False), (np.nan, False)])
def test_labels_farther_from_whole_numbers_are_refused(tmp_path, value, whole):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    path = save(tmp_path / "seg.nii", array, sform=oblique())
    if whole:
        assert io.read_label_map(path).array[1, 2, 3] == 2
    else:
        with pytest.raises(
            InputError, match=r"seg\.nii: expected whole numbers as labels, got .* at voxel \[1, 2, 3\]"
        ):
            io.read_label_map(path)


@pytest.mark.parametrize("name", ["label37_nib_autoscale_int16", "label_slope_0.1"])
def test_the_cases_of_scaled_labels(cases, caplog, name):
    path = cases / "nifti" / f"{name}.nii.gz"
    found = io.read_label_map(path)
    np.testing.assert_array_equal(found.array, np.round(nib.load(path).get_fdata()))
    assert "they are rounded" in caplog.text


# ----------------------------------------------------------------------------------------- promises and what is there


def promise(path, shape, *, body=b"\0" * 100):
    """A NIfTI file whose header promises a volume of int16 of that shape."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    content = header.binaryblock + b"\0\0\0\0" + body
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


READERS = ["read_image", "read_label_map", "read_mask", "read_probability_map"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "b.nii.gz"])
def test_a_small_file_that_promises_gigabytes_costs_nothing(tmp_path, reader, name):
    """In a process that may take 400 MB beyond what it has, and that dies where it takes more."""
    body = b"\0" * (100 if name.startswith("a") else 8 << 20)  # the second decompresses from 8 kB to 8 MB
    path = promise(tmp_path / name, (2000, 2000, 800), body=body)
    assert path.stat().st_size < 9000 or name == "a.nii"
    code = f"""
import resource
from atlasseg import io
from atlasseg.errors import InputError
import nibabel, scipy
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)
try:
    io.{reader}({str(path)!r})
except InputError as error:
    assert "expected 6400000352 bytes by its header" in str(error), error
    print("refused", int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused"), done.stderr
    assert int(done.stdout.split()[1]) < 400_000  # KiB, of which the libraries take most


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_one_byte_less_is_truncated_and_one_more_is_not(tmp_path, name):
    for body, whole in ((119, False), (120, True), (121, True)):
        path = promise(tmp_path / name, (5, 4, 3), body=b"\0" * body)
        if whole:
            assert io.read_image(path).shape == (5, 4, 3)
        else:
            with pytest.raises(InputError, match=r"truncated.*expected 472 bytes by its header, got 471"):
                io.read_image(path)


def test_a_gzip_file_of_several_parts_is_read_whole(tmp_path):
    """As bgzip writes them: the length at the end is that of the last part alone."""
    content = save(tmp_path / "a.nii", sform=oblique()).read_bytes()
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(b"".join(gzip.compress(content[at : at + 100]) for at in range(0, len(content), 100)))
    np.testing.assert_array_equal(io.read_image(path).array, SCAN)
    path.write_bytes(path.read_bytes() + b"\0" * 50)
    np.testing.assert_array_equal(io.read_image(path).array, SCAN)


@pytest.mark.parametrize("shape", [(0, 4, 3), (-5, 4, 3)])
def test_axes_without_voxels_are_refused(tmp_path, shape):
    path = promise(tmp_path / "a.nii", (5, 4, 3), body=b"\0" * 120)
    content = bytearray(path.read_bytes())
    struct.pack_into("<3h", content, 42, *shape)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nii: expected at least one voxel along each axis"):
        io.read_image(path)


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz", "a.hdr", "a.img.gz"])
def test_other_formats_of_nibabel_keep_their_promises_too(tmp_path, name):
    volume = {
        "a.mgh": nib.MGHImage,
        "a.mgz": nib.MGHImage,
        "a.hdr": nib.Spm2AnalyzeImage,
        "a.img.gz": nib.Nifti1Pair,
    }[name](SCAN, np.diag([-1.0, 1, 1, 1]))
    nib.save(volume, tmp_path / name.replace(".hdr", ".img"))
    np.testing.assert_array_equal(io.read_image(tmp_path / name).array, SCAN)
    values = tmp_path / name.replace(".hdr", ".img")
    content = values.read_bytes()
    zipped = content[:2] == b"\x1f\x8b"
    content = gzip.decompress(content) if zipped else content
    cut = content[: len(content) // 2]
    values.write_bytes(gzip.compress(cut) if zipped else cut)
    with pytest.raises(InputError, match=r"truncated, .*expected \d+ bytes by its header, got \d+"):
        io.read_image(tmp_path / name)


def test_a_header_without_its_values_is_told(tmp_path):
    nib.save(nib.Nifti1Pair(SCAN, oblique()), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"a\.hdr: .*a\.img"):
        io.read_image(tmp_path / "a.hdr")


def test_an_image_in_another_unit_is_the_same_image(tmp_path):
    first = save(tmp_path / "a.nii", sform=oblique())
    raw = oblique(np.multiply(SPACING, 1e3), (12e3, -30e3, 7e3))
    second = save(tmp_path / "b.nii", sform=raw, pixdim=np.multiply(SPACING, 1e3), unit="micron")
    one, two = io.read_image(first), io.read_image(second)
    assert one.grid.matches(two.grid) and isinstance(two, Image)


def test_a_header_without_any_size_is_refused_and_not_guessed(tmp_path):
    with pytest.raises(GeometryError, match=r"a\.nii: .*invertible"):
        io.read_image(save(tmp_path / "a.nii", pixdim=(0, 0, 0)))


def test_what_is_written_on_sheared_axes_is_said_to_be_closed_to_itk(tmp_path, caplog):
    sheared = oblique()
    sheared[:3, 1] += 0.2 * sheared[:3, 0] / 1.5 * 1.2
    io.write_label_map(LabelMap(SCAN % 3, sheared), tmp_path / "seg.nii.gz")
    assert "seg.nii.gz: the axes are sheared by 11.3 degrees" in caplog.text and "--orthogonal" in caplog.text
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "seg.nii.gz"))
    np.testing.assert_array_equal(io.read_label_map(tmp_path / "seg.nii.gz").array, SCAN % 3)
    caplog.clear()
    io.write_label_map(LabelMap(SCAN % 3, oblique()), tmp_path / "straight.nii.gz")
    assert not caplog.records
