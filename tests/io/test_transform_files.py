"""Damaged files of transforms: an error that names the file, in a program that goes on."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.io import _guard
from atlasseg.transforms import Affine, BSplineField, Chain, DisplacementField

RNG = np.random.default_rng(9)
POINTS = RNG.uniform(-10, 10, (20, 3))


def affine():
    matrix = np.eye(4)
    matrix[:3, :3] += RNG.normal(0, 0.05, (3, 3))
    matrix[:3, 3] = 1, -2, 3
    return Affine(matrix)


def grid_affine():
    placed = np.diag([4.0, 5.0, 6.0, 1.0])
    placed[:3, 3] = -20, -22, -24
    return placed


def field():
    return DisplacementField(RNG.normal(0, 1, (12, 11, 10, 3)).astype(np.float32), grid_affine())


def spline():
    return BSplineField(RNG.normal(0, 1, (12, 11, 10, 3)), grid_affine())


@pytest.mark.parametrize("make", [affine, field, spline, lambda: affine() @ field() @ affine()])
def test_what_another_process_reads_is_the_same_transform(tmp_path, make):
    transform = make()
    io.write_transform(transform, tmp_path / "t.h5")
    np.testing.assert_allclose(io.read_transform(tmp_path / "t.h5")(POINTS), transform(POINTS), atol=1e-4)


def test_a_chain_keeps_its_order(tmp_path):
    first, second = affine(), affine()
    io.write_transform(first @ field() @ second, tmp_path / "t.h5")
    found = io.read_transform(tmp_path / "t.h5")
    assert isinstance(found, Chain) and len(found.transforms) == 3


def test_a_damaged_h5_cannot_take_the_program_along(tmp_path):
    """Bytes all over the file, where HDF5's own structures lie: in ITK's process some of these end it."""
    io.write_transform(affine(), tmp_path / "t.h5")
    content = (tmp_path / "t.h5").read_bytes()
    refused = 0
    for seed in range(8):
        damaged = bytearray(content)
        for at in np.random.default_rng(seed).integers(0, len(content), 30 + 40 * seed):
            damaged[at] = int(np.random.default_rng(at).integers(256))
        (tmp_path / "bad.h5").write_bytes(damaged)
        try:
            io.read_transform(tmp_path / "bad.h5")
        except InputError as error:
            refused += f"{tmp_path / 'bad.h5'}" in str(error)
    assert refused >= 4


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"its reader crashed \(SIGSEGV\)"),
        ("import time; time.sleep(60)", "took more than 2 seconds"),
        ("raise MemoryError", "needs more memory"),
        ("import sys; print('no transform here'); sys.exit(3)", "no transform here"),
        ("import sys; sys.exit('something odd')", "something odd"),
    ],
)
def test_whatever_happens_there_is_an_error_with_the_reason(tmp_path, monkeypatch, code, reason):
    path = tmp_path / "t.h5"
    path.write_bytes(b"x")
    package = tmp_path / "fake" / "atlasseg" / "io"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "_guarded.py").write_text(code)
    monkeypatch.setattr(_guard, "__file__", str(package / "_guard.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"t\.h5: .*{reason}"):
        _guard.run_guarded("transform", [path], timeout_s=2 if "sleep" in code else 60)


def test_a_huge_promise_in_an_h5_is_refused(tmp_path):
    io.write_transform(field(), tmp_path / "t.h5")
    (tmp_path / "t.h5").write_bytes((tmp_path / "t.h5").read_bytes()[:4000])
    with pytest.raises(InputError, match=r"t\.h5"):
        io.read_transform(tmp_path / "t.h5")


@pytest.mark.parametrize("name", ["t.tfm", "t.txt"])
def test_bytes_that_are_no_text_are_an_input_error(tmp_path, name):
    io.write_transform(affine(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for at in (0, 30, len(content) - 5):
        (tmp_path / name).write_bytes(content[:at] + b"\xff\xfe\x80" + content[at:])
        with pytest.raises(InputError, match=rf"{name}: expected a transform as text, got byte {at} that is not text"):
            io.read_transform(tmp_path / name)


def test_a_transform_kind_of_odd_bytes_in_a_mat_file_is_an_input_error(tmp_path):
    io.write_transform(affine(), tmp_path / "t.mat")
    content = bytearray((tmp_path / "t.mat").read_bytes())
    content[22:26] = b"\xff\xfe\x80\x81"
    (tmp_path / "t.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.mat: expected a matrix's name as text"):
        io.read_transform(tmp_path / "t.mat")


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (4, 100_000_000, r"truncated.*expected \d+ bytes"),
        (8, 100_000_000, r"truncated.*expected \d+ bytes"),
        (4, -3, "level 4"),
        (12, 1, "level 4"),
        (16, 0, "level 4"),
        (0, 97, "level 4"),
    ],
)
def test_a_mat_file_that_promises_what_is_not_there_is_refused(tmp_path, at, value, reason):
    io.write_transform(affine(), tmp_path / "t.mat")
    content = bytearray((tmp_path / "t.mat").read_bytes())
    struct.pack_into("<i", content, at, value)
    (tmp_path / "t.mat").write_bytes(content)
    with pytest.raises(InputError, match=rf"t\.mat: .*{reason}"):
        io.read_transform(tmp_path / "t.mat")


@pytest.mark.parametrize("kind", ["t.tfm", "t.mat", "t.h5", "t.nii.gz", "t.nrrd", "t.mha"])
def test_files_cut_short_are_refused(tmp_path, kind, capfd):
    io.write_transform(field() if kind.endswith((".nii.gz", ".nrrd", ".mha")) else affine(), tmp_path / kind)
    content = (tmp_path / kind).read_bytes()
    (tmp_path / kind).write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(InputError, match=rf"{kind}"):
        io.read_transform(tmp_path / kind)
    assert not capfd.readouterr().err, "ITK's own words reach the terminal"


@pytest.mark.parametrize("make", [affine, lambda: affine() @ affine()])
def test_text_cut_anywhere_is_never_another_transform(tmp_path, make, caplog):
    """ITK gives the identity for what was cut off."""
    transform = make()
    io.write_transform(transform, tmp_path / "t.tfm")
    content = (tmp_path / "t.tfm").read_bytes().rstrip()
    for end in range(1, len(content) + 1, 3):
        (tmp_path / "t.tfm").write_bytes(content[:end])
        caplog.clear()
        try:
            found = io.read_transform(tmp_path / "t.tfm")
        except InputError:
            continue
        else:  # a digit of the last number at most
            np.testing.assert_allclose(found(POINTS), transform(POINTS), atol=1e-4)
            assert "may be truncated" in caplog.text


@pytest.mark.parametrize("bad", ["nan", "inf", "1.5x", "--3"])
def test_numbers_that_are_none_are_named_by_their_line(tmp_path, bad):
    kind = "#Insight Transform File V1.0\nTransform: TranslationTransform_double_3_3\n"
    (tmp_path / "t.tfm").write_text(f"{kind}Parameters: 1 {bad} 2\nFixedParameters:\n")
    with pytest.raises(InputError, match=r"t\.tfm, line 3: expected (finite )?numbers"):
        io.read_transform(tmp_path / "t.tfm")


def test_a_field_that_promises_gigabytes_is_refused(tmp_path):
    io.write_transform(field(), tmp_path / "t.mha")
    content = (tmp_path / "t.mha").read_bytes().replace(b"DimSize = 12 11 10", b"DimSize = 900 900 900")
    (tmp_path / "t.mha").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.mha: the file is truncated.*expected 8748000332 bytes"):
        io.read_transform(tmp_path / "t.mha")


@pytest.mark.parametrize("kind", ["t.nii", "t.nii.gz", "t.nrrd", "t.mha", "t.mhd"])
def test_fields_are_read_as_itk_applies_them(tmp_path, kind):
    io.write_transform(field(), tmp_path / kind)
    theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / kind), sitk.sitkVectorFloat64))
    ours = io.read_transform(tmp_path / kind)
    for point in POINTS[:5]:
        expected = np.array(theirs.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
        np.testing.assert_allclose(ours(point[None])[0], expected, atol=1e-4)
