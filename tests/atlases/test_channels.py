"""Several channels of one scan: files named by channel, volumes of a 4-D file, time series."""

import logging

import nibabel
import numpy as np
import pytest

from atlasseg import io
from atlasseg.api.coercion import as_image
from atlasseg.api.segmentation import as_cases
from atlasseg.atlases.channels import read_channels, suggest_channels
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.doctor import examine
from atlasseg.errors import GeometryError, InputError
from atlasseg.io import _opening
from atlasseg.recipe import parse_recipe
from atlasseg.volume import Image

SHAPE = (12, 13, 14)
RANDOM = np.random.default_rng(3)


def write(path, array, affine=None, *, step_s=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    if step_s:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = step_s
    nibabel.save(image, path)
    return path


@pytest.fixture
def library(tmp_path):
    """Two atlases of two channels; those of `b` lie on the same grid, the second of `a` is coarser."""
    for id_ in "ab":
        write(tmp_path / f"images/{id_}_T1.nii.gz", RANDOM.random(SHAPE, np.float32))
        write(tmp_path / f"labels/{id_}.nii.gz", np.ones(SHAPE, np.uint8))
    coarse = np.diag([2.0, 1, 1, 1])
    coarse[0, 3] = 0.5
    planes = np.arange(6, dtype=np.float32)[:, None, None] * 2 + 0.5
    write(tmp_path / "images/a_FLAIR.nii.gz", np.broadcast_to(planes, (6, 13, 14)), coarse)
    write(tmp_path / "images/b_FLAIR.nii.gz", RANDOM.random(SHAPE, np.float32))
    return tmp_path


def test_files_are_channels_in_the_order_of_the_list(library):
    for channels in (["T1", "FLAIR"], ["FLAIR", "T1"]):
        found = read_library(library, channels=channels)
        assert found.ids == ("a", "b")
        image = found.read("b").image
        for n, channel in enumerate(channels):
            expected = io.read_image(library / f"images/b_{channel}.nii.gz").array
            np.testing.assert_array_equal(image.channels[..., n], expected)


def test_another_grid_is_resampled_onto_the_first_with_both_voxel_sizes(library, caplog):
    caplog.set_level(logging.WARNING)
    atlas = read_library(library, channels=["T1", "FLAIR"]).read("a")
    assert "a_FLAIR.nii.gz: on another grid than a_T1.nii.gz" in caplog.text
    assert "from voxels of 2 x 1 x 1 to 1 x 1 x 1 mm" in caplog.text
    assert atlas.image.channels.shape == (*SHAPE, 2)
    np.testing.assert_allclose(atlas.image.channels[1:11, 5, 5, 1], np.arange(1, 11), atol=1e-5)  # the position in mm


def test_a_channel_elsewhere_in_space_is_refused(library):
    away = np.eye(4)
    away[0, 3] = 500
    write(library / "images/a_FLAIR.nii.gz", np.ones(SHAPE, np.float32), away)
    with pytest.raises(GeometryError, match=r"a_FLAIR\.nii\.gz: it does not overlap"):
        read_library(library, channels=["T1", "FLAIR"]).read("a")


def test_a_missing_channel_is_named_with_its_scan(library):
    (library / "images/b_FLAIR.nii.gz").unlink()
    message = r"images/b_FLAIR\.nii\.gz: expected the channel FLAIR of the scan b, got no such file \(1 of 2 scans"
    with pytest.raises(InputError, match=message):
        read_library(library, channels=["T1", "FLAIR"])
    with pytest.raises(InputError, match=r"b_FLAIR\.nii\.gz: expected the channel FLAIR of the scan b"):
        read_targets(library / "images/b_T1.nii.gz", channels=["T1", "FLAIR"])
    with pytest.raises(InputError, match=r"images: expected files ID_T2, as the channels are T2, PD, got a_FLAIR"):
        read_library(library, channels=["T2", "PD"])


def test_files_of_other_channels_are_named_as_unused(library, caplog):
    caplog.set_level(logging.WARNING)
    found = read_library(library, channels=["T1"])
    assert found.ids == ("a", "b")
    assert "2 files have none of the channels T1 in their names and are not used: a_FLAIR, b_FLAIR" in caplog.text


def test_the_longest_channel_that_fits_a_name_counts(tmp_path):
    for channel in ("T1", "C_T1"):
        for id_ in "ab":
            write(tmp_path / f"images/{id_}_{channel}.nii.gz", RANDOM.random(SHAPE, np.float32))
    targets = read_targets(tmp_path, channels=["T1", "C_T1"])
    assert [target.id for target in targets] == ["a", "b"]
    assert targets[0].channels == (tmp_path / "images/a_C_T1.nii.gz",)


def test_targets_take_their_other_channels_from_beside_them(library):
    (one,) = read_targets(library / "images/a_FLAIR.nii.gz", channels=["T1", "FLAIR"])
    assert (one.id, one.image.name, one.channels[0].name) == ("a", "a_T1.nii.gz", "a_FLAIR.nii.gz")
    folder = read_targets(library / "images", channels=["T1", "FLAIR"])
    assert [target.id for target in folder] == ["a", "b"]
    whole = read_targets(library, channels=["T1", "FLAIR"])
    assert whole[0].labels == library / "labels/a.nii.gz"


def test_names_that_look_like_channels_are_told(library, caplog):
    with pytest.raises(InputError, match=r'channels = \["FLAIR", "T1"\] in \[data\]'):
        read_library(library)
    caplog.set_level(logging.WARNING)
    assert len(read_targets(library / "images")) == 4
    assert "--channels FLAIR,T1" in caplog.text
    assert suggest_channels(["a_T1", "a_FLAIR", "b_T1"]) == ()
    assert suggest_channels(["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"]) == ()


def test_the_same_channel_twice_is_refused(library):
    with pytest.raises(InputError, match="channels: expected different names such as T1, FLAIR, got T1, T1"):
        read_library(library, channels=["T1", "T1"])


@pytest.fixture
def series(tmp_path):
    values = RANDOM.random((*SHAPE, 3), np.float32)
    return write(tmp_path / "bold.nii.gz", values, step_s=2.0), values


def test_a_time_series_says_how_to_choose_volumes(series):
    path, _ = series
    with pytest.raises(InputError, match=r"got 3 volumes with a time step of 2 s.*'.*bold\.nii\.gz#1' is the first"):
        read_targets(path)[0].read()
    with pytest.raises(InputError, match=r"expected one 3-D volume, got 4-D data.*bold\.nii\.gz#1' is the first"):
        io.read_image(path)


def test_more_volumes_than_channels_are_a_series(tmp_path):
    path = write(tmp_path / "dwi.nii.gz", RANDOM.random((4, 4, 4, 9), np.float32))
    with pytest.raises(InputError, match="got 9 volumes with more than 8"):
        read_targets(path)[0].read()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_a_scan_is_opened_once(tmp_path, monkeypatch, name):
    path = tmp_path / name
    io.write_image(Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4)), path)
    opened = []
    usual = _opening._open_file
    monkeypatch.setattr(_opening, "_open_file", lambda file, *more: opened.append(file) or usual(file, *more))
    read_channels([path])
    assert opened == [path]


def test_volumes_are_chosen_by_number(series):
    path, values = series
    np.testing.assert_array_equal(io.read_image(f"{path}#2").array, values[..., 1])
    np.testing.assert_array_equal(io.read_image(f"{path}#3,1").array, values[..., [2, 0]])
    (target,) = read_targets(f"{path}#3,1")
    assert target.id == "bold_volumes-3-1"
    np.testing.assert_array_equal(target.read()[0].array, values[..., [2, 0]])
    (target,) = read_targets(path, volumes=[2, 3])
    assert target.id == "bold"
    np.testing.assert_array_equal(target.read()[0].array, values[..., 1:])


@pytest.mark.parametrize("chosen", ["0", "4", "1,1", "1,", "1.5"])
def test_wrong_volumes_are_refused(series, chosen):
    path, _ = series
    with pytest.raises(InputError, match=rf"bold\.nii\.gz#{chosen}: expected different numbers of volumes from 1 to 3"):
        io.read_image(f"{path}#{chosen}")


def test_a_4d_scan_without_a_time_step_is_one_scan_with_channels(tmp_path):
    values = RANDOM.random((*SHAPE, 2), np.float32)
    path = write(tmp_path / "scan.nii.gz", values)
    image, mask = read_targets(path)[0].read()
    np.testing.assert_array_equal(image.array, values)
    assert mask is None


def test_a_recipe_names_channels_and_volumes():
    tables = {"data": {"channels": ["T1", "FLAIR"], "volumes": [1, 2]}, "fusion": {"method": "majority"}}
    reading = parse_recipe(tables).data.reading
    assert (reading["channels"], reading["volumes"]) == (("T1", "FLAIR"), (1, 2))


def test_doctor_proposes_channels_and_checks_them(library):
    plain = examine(library, register=False).findings
    assert any("channels = [" in each.message and "--channels FLAIR,T1" in each.remedy for each in plain)
    named = examine(library, register=False, channels=["T1", "FLAIR"]).findings
    assert not [each for each in named if each.severity == "error"]
    (library / "images/b_FLAIR.nii.gz").unlink()
    broken = examine(library, register=False, channels=["T1", "FLAIR"]).findings
    assert any("expected the channel FLAIR of the scan b" in each.message for each in broken)


def test_a_list_is_one_scan_in_python(library):
    paths = [library / "images/b_T1.nii.gz", io.read_image(library / "images/b_FLAIR.nii.gz")]
    image = as_image(paths)
    np.testing.assert_array_equal(image.array[..., 1], paths[1].array)
    (case,), many = as_cases([paths])
    assert many
    np.testing.assert_array_equal(case.scan.array, image.array)
