"""NRRD, MetaImage and the rarer formats of ITK: read as ITK reads them, damaged ones refused by name and cheaply."""

import bz2
import contextlib
import gzip
import subprocess
import sys
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.interop import affine_from_sitk

VALUES = np.random.default_rng(3).integers(-500, 500, (4, 5, 6)).astype(np.int16)


RAW = VALUES.tobytes()


def itk_image(values=VALUES):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.5, 1.2, 2.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    return image


def assert_read_as_itk_reads_it(path):
    theirs, ours = sitk.ReadImage(str(path)), io.read_image(path)
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs).T.astype(np.float32))
    np.testing.assert_allclose(ours.affine, affine_from_sitk(theirs), atol=1e-9)


# ------------------------------------------------------------------------------------------------------ MetaImage


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_metaimage_is_read_as_itk_reads_it(tmp_path, name, compressed, dtype):
    sitk.WriteImage(itk_image(VALUES.astype(dtype)), str(tmp_path / name), useCompression=compressed)
    assert_read_as_itk_reads_it(tmp_path / name)


HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "1.5 1.2 2",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def metaimage(path, values=RAW, *, without=(), **changed):
    header = {key: value for key, value in {**HEADER, **changed}.items() if key not in (*without, "ElementDataFile")}
    lines = [f"{key} = {value}" for key, value in header.items()]
    lines.append(f"ElementDataFile = {changed.get('ElementDataFile', 'LOCAL')}\n")
    path.write_bytes("\n".join(lines).encode() + values)
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"BinaryDataByteOrderMSB": "True", "values": VALUES.astype(">i2").tobytes()},
        {
            "ElementByteOrderMSB": "True",
            "without": ["BinaryDataByteOrderMSB"],
            "values": VALUES.astype(">i2").tobytes(),
        },
        {"without": ["TransformMatrix", "Offset"], "Rotation": "0 0 1 1 0 0 0 1 0", "Position": "4 5 6"},
        {"without": ["TransformMatrix", "Offset"], "Orientation": "0 0 1 1 0 0 0 1 0", "Origin": "4 5 6"},
        {"without": ["ElementSpacing"], "ElementSize": "3 2 1"},
        {"ElementSize": "3 2 1"},
        {"HeaderSize": "-1", "values": b"junk" + VALUES.tobytes()},
    ],
    ids=[
        "MSB",
        "element MSB",
        "rotation",
        "orientation",
        "size",
        "size and spacing",
        "header size",
    ],
)
def test_other_headers_of_metaimage_are_read_as_itk_reads_them(tmp_path, changed):
    assert_read_as_itk_reads_it(metaimage(tmp_path / "a.mha", **changed))


@pytest.mark.parametrize("more", [{}, {"CompressedDataSize": "0"}])
@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_compressed_values_without_their_length_are_read_rightly(tmp_path, more, compress):
    """ITK reads beyond them and gives wrong values without a word."""
    path = metaimage(tmp_path / "A.MHA", compress(RAW), CompressedData="True", **more)
    np.testing.assert_array_equal(io.read_image(path).array, VALUES.T)


def test_channels_of_metaimage_come_last(tmp_path):
    two = np.stack([VALUES, -VALUES], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(two, isVector=True), str(tmp_path / "a.mha"))
    found, _ = io.read_scan(tmp_path / "a.mha", channels=True)
    np.testing.assert_array_equal(found.array, np.stack([VALUES.T, -VALUES.T], axis=-1))


def test_a_list_of_files_is_left_to_itk(tmp_path):
    for k, plane in enumerate(VALUES):
        (tmp_path / f"s{k}.raw").write_bytes(plane.tobytes())
    path = metaimage(tmp_path / "list.mhd", b"", ElementDataFile="LIST\n" + "\n".join(f"s{k}.raw" for k in range(4)))
    assert_read_as_itk_reads_it(path)


def test_an_invented_voxel_size_is_told(tmp_path, caplog):
    found = io.read_image(metaimage(tmp_path / "a.mha", without=["ElementSpacing"]))
    np.testing.assert_allclose(found.spacing_mm, 1)
    assert "a.mha: the header has no ElementSpacing; a voxel size of 1 mm is used" in caplog.text


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"DimSize": "6 5"}, "expected 3 numbers as DimSize, got '6 5'"),
        ({"DimSize": "6 five 4"}, "expected 3 numbers as DimSize"),
        ({"DimSize": "6 0 4"}, "at least one voxel along each axis"),
        ({"DimSize": "6 -5 4"}, "at least one voxel along each axis"),
        ({"NDims": "1e9"}, "expected 1000000000 numbers as DimSize"),
        ({"ElementType": "MET_OTHER"}, "expected an ElementType of plain numbers"),
        ({"ElementNumberOfChannels": "0"}, "expected an ElementType of plain numbers in 1 to"),
        ({"ElementSpacing": "1 0 1"}, "expected voxel sizes above 0"),
        ({"ElementSpacing": "1 nan 1"}, "expected 3 numbers as ElementSpacing"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, "invertible"),
        ({"ElementDataFile": "absent.raw"}, "expected its values in absent.raw, found no such file"),
    ],
)
def test_damaged_headers_of_metaimage_are_refused(tmp_path, changed, reason):
    with pytest.raises(InputError, match=f"a.mha: {reason}|a.mha: .*{reason}"):
        io.read_image(metaimage(tmp_path / "a.mha", **changed))


def test_the_cases_of_truncated_metaimage(cases):
    for name, size in (("cut_c.mha", 9967), ("x.mhd", 7189)):
        with pytest.raises(InputError, match=rf"truncated.*expected 14379 compressed bytes by its header, got {size}"):
            io.read_image(cases / "truncated" / name)


# ------------------------------------------------------------------------------------ promises and what is there


def nrrd(path, values, *, sizes="6 5 4", encoding="raw", kind="short", more=""):
    header = (
        f"NRRD0004\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        f"space directions: (1.5,0,0) (0,1.2,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
        f"encoding: {encoding}\nspace origin: (1,2,3)\n{more}"
    )
    path.write_bytes(header.encode() + b"\n" + values)
    return path


def files(folder, *, promised=None):
    """Files of every kind with VALUES inside; with `promised`, their headers say so many voxels along each axis."""
    raw = VALUES.tobytes()
    sizes = "6 5 4" if promised is None else f"{promised} {promised} {promised}"
    yield metaimage(folder / "raw.mha", raw, DimSize=sizes)
    yield metaimage(folder / "zlib.mha", zlib.compress(raw), DimSize=sizes, CompressedData="True")
    (folder / "values.zraw").write_bytes(zlib.compress(raw))
    yield metaimage(folder / "two.mhd", b"", DimSize=sizes, CompressedData="True", ElementDataFile="values.zraw")
    yield nrrd(folder / "raw.nrrd", raw, sizes=sizes)
    yield nrrd(folder / "gzip.nrrd", gzip.compress(raw), sizes=sizes, encoding="gzip")
    (folder / "values.raw").write_bytes(raw)
    yield nrrd(folder / "two.nhdr", b"", sizes=sizes, more="data file: values.raw\n")
    yield nrrd(folder / "text.nrrd", " ".join(map(str, VALUES.ravel())).encode(), sizes=sizes, encoding="ascii")


KINDS = ["raw.mha", "zlib.mha", "two.mhd", "raw.nrrd", "gzip.nrrd", "two.nhdr", "text.nrrd"]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_whole_is_read(tmp_path, name):
    path = next(path for path in files(tmp_path) if path.name == name)
    np.testing.assert_array_equal(io.read_image(path).array, VALUES.T)


@pytest.mark.parametrize("name", KINDS)
def test_small_files_that_promise_gigabytes_are_refused(tmp_path, name):
    path = next(path for path in files(tmp_path, promised=1500) if path.name == name)
    wanted = r"truncated.*expected 675\d{7} bytes by its header, got \d+"
    for read in (io.read_image, io.read_label_map, io.read_mask):
        with pytest.raises(InputError, match=wanted):
            read(path)


def test_none_of_them_takes_memory(tmp_path):
    """In a process that may take 300 MB beyond what it has."""
    paths = [str(path) for path in files(tmp_path, promised=1500)]
    code = f"""
import resource, SimpleITK, nibabel, scipy
from atlasseg import io
from atlasseg.errors import InputError
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * 2**20,) * 2)
for path in {paths!r}:
    try:
        io.read_label_map(path)
    except InputError as error:
        assert path.rsplit("/", 1)[1].split(".")[0] in str(error) or "values" in str(error), error
print("refused", int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused"), done.stderr
    assert int(done.stdout.split()[1]) < 500_000  # KiB, of which the libraries take most
    assert not done.stderr, "ITK's own words reach the terminal"


@pytest.mark.parametrize("name", [kind for kind in KINDS if kind != "text.nrrd"])
def test_files_cut_short_are_said_to_be_truncated(tmp_path, name):
    path = next(path for path in files(tmp_path) if path.name == name)
    values = {"two.mhd": tmp_path / "values.zraw", "two.nhdr": tmp_path / "values.raw"}.get(name, path)
    values.write_bytes(values.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"the file is truncated.*expected \d+ bytes by its header, got \d+"):
        io.read_image(path)


@pytest.mark.parametrize("name", ["zlib.mha", "two.mhd", "gzip.nrrd"])
def test_a_flipped_bit_in_compressed_values_is_noticed(tmp_path, name):
    path = next(path for path in files(tmp_path) if path.name == name)
    values = tmp_path / "values.zraw" if name == "two.mhd" else path
    content = bytearray(values.read_bytes())
    content[-20] ^= 4
    values.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|truncated"):
        io.read_image(path)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"sizes": "6 5 x"}, "expected a type of plain numbers and sizes"),
        ({"kind": "block"}, "expected a type of plain numbers"),
        ({"sizes": "6 0 4"}, "at least one voxel"),
        ({"encoding": "magic"}, ""),
    ],
)
def test_damaged_headers_of_nrrd_are_refused(tmp_path, more, reason):
    with pytest.raises(InputError, match=rf"a\.nrrd: .*{reason}"):
        io.read_image(nrrd(tmp_path / "a.nrrd", VALUES.tobytes(), **more))


def test_what_is_no_nrrd_is_said_to_be_none(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"see the other folder")
    with pytest.raises(InputError, match=r"a\.nrrd: expected a NRRD file, which begins with NRRD, got b'see '"):
        io.read_image(tmp_path / "a.nrrd")


def test_bzip2_is_refused_with_what_to_do(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", bz2.compress(RAW), encoding="bzip2")
    with pytest.raises(InputError, match=r"a\.nrrd: expected raw, gzip or text values, got 'bzip2'\. Save it"):
        io.read_image(path)


def test_bytes_to_skip_are_left_to_itk(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", b"junk" + VALUES.tobytes(), more="byte skip: 4\n")
    assert_read_as_itk_reads_it(path)


# ---------------------------------------------------------------------------------------------------- rarer formats


@pytest.mark.parametrize("name", ["a.gipl", "a.gipl.gz", "a.vtk", "a.tif", "a.hdf5"])
def test_rarer_formats_are_read_as_itk_reads_them(tmp_path, name):
    values = VALUES.astype(np.uint16 if name == "a.tif" else np.int16)
    sitk.WriteImage(itk_image(values), str(tmp_path / name))
    assert_read_as_itk_reads_it(tmp_path / name)


@pytest.mark.parametrize("name", ["a.gipl", "a.gipl.gz", "a.hdf5", "a.vtk"])
def test_damaged_ones_cannot_take_the_program_along(tmp_path, name):
    sitk.WriteImage(itk_image(), str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    for k in range(6):
        damaged = bytearray(content[: len(content) // 2] if k == 0 else content)
        for at in np.random.default_rng(k).integers(0, len(damaged), 40):
            damaged[at] ^= 0x5A
        (tmp_path / name).write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert io.read_image(tmp_path / name).array.size < 1e8


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(InputError, match=r"a\.npy: .*expected a volume in a known format \(NIfTI, NRRD"):
        io.read_image(tmp_path / "a.npy")


def test_a_picture_is_no_volume(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(tmp_path / "a.png"))
    with pytest.raises(InputError, match=r"a\.png: .*expected one 3-D volume, got 2-D"):
        io.read_image(tmp_path / "a.png")
