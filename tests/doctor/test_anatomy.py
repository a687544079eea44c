"""Scans of another contrast, of another side or size, and of one person are found among phantoms of heads."""

import numpy as np
import pytest

from atlasseg import doctor, io
from atlasseg.doctor import anatomy, persons
from atlasseg.resampling import resample
from atlasseg.transforms import Affine
from atlasseg.volume import Grid, Image

IDS = "abcdef"
AXES = np.linalg.svd(np.array([[-1.0, 0.1, 0.1], [0.1, 1.0, -0.1], [0.1, 0.1, 1.0]]))
PLACE = np.eye(4)
PLACE[:3, :3] = AXES[0] @ AXES[2] @ np.diag([1.9, 2.0, 2.1])
PLACE[:3, 3] = 40, -46, -38
GRID = Grid((40, 48, 36), PLACE)
"""Left-handed, oblique, neither cubic nor isotropic."""


def head(seed, side=1.0, gain=1.0, noise=0):
    """A bright shell, dark ventricles, and a lump on one side alone, each head with sizes and folds of its own."""
    rng = np.random.default_rng(seed)
    x, y, z = np.moveaxis(np.stack(np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij"), -1), -1, 0)
    at = np.stack([x, y, z], -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3] - GRID.centre_mm
    radii = np.array([30, 38, 28]) * rng.uniform(0.93, 1.07, 3)
    r = np.linalg.norm(at / radii, axis=-1)
    mirrored = at * [side, 1, 1]
    halves = np.concatenate([np.abs(at[..., :1]), at[..., 1:]], -1)  # the folds that all have in common are symmetric
    common, own = np.random.default_rng(99), rng
    folds = sum(np.cos(halves @ common.normal(0, 0.2, 3) + common.uniform(0, 6)) for _ in range(5))
    folds += 0.5 * sum(np.cos(mirrored @ own.normal(0, 0.25, 3) + own.uniform(0, 6)) for _ in range(4))
    array = np.where(r < 1, 60 + 5 * folds, 0) + np.where((r > 0.8) & (r < 1), 50, 0)
    array -= np.where(np.linalg.norm(at / (radii * [0.15, 0.35, 0.2]), axis=-1) < 1, 45, 0)
    for eye in (-12, 12):
        array += np.where(np.linalg.norm(at - [eye, 34, -6], axis=-1) < 7, 120, 0)
    stem = (np.linalg.norm(at[..., :2] - [0, -6], axis=-1) < 8) & (at[..., 2] < -18)
    array += np.where(stem & (r < 1), 60, 0)
    lump = np.array([side * 14, 12, -8])
    array += np.where(np.linalg.norm((at - lump) / [9, 8, 8], axis=-1) < 1, 50, 0)
    array = np.where(r < 1, 150 * (1 - gain) / 2 + gain * array, 0)
    return array + np.random.default_rng(1000 + seed + noise).normal(0, 2, GRID.shape)


def write(folder, id_, array, affine=GRID.affine):
    io.write_image(Image(array.astype(np.float32), affine), folder / "images" / f"{id_}.nii.gz")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    for seed, id_ in enumerate(IDS):
        write(folder, id_, head(seed))
    return folder


def told(folder):
    """Messages of warnings by file."""
    found = doctor.examine(folder)
    return {f.file.name: f.message for f in found.findings if f.severity == "warning"}, found


@pytest.fixture
def changed(heads, tmp_path):
    """The heads, in a folder of their own that a test may change."""
    (tmp_path / "images").mkdir()
    for path in (heads / "images").iterdir():
        (tmp_path / "images" / path.name).symlink_to(path)
    return tmp_path


def replace(folder, id_, array, affine=GRID.affine):
    path = folder / "images" / f"{id_}.nii.gz"
    path.unlink(missing_ok=True)
    write(folder, id_, array, affine)


def test_heads_alike_give_no_warning(heads):
    warnings, found = told(heads)
    assert not warnings
    assert any("left and right, contrast, scans of one person" in line for line in found.checked)


def test_a_mirrored_head_and_one_of_inverted_contrast_are_found(changed):
    replace(changed, "d", head(3, side=-1.0))
    replace(changed, "b", head(1, gain=-1.0))
    warnings, _ = told(changed)
    assert sorted(warnings) == ["b.nii.gz", "d.nii.gz"]
    assert "another one (agreement -" in warnings["b.nii.gz"]
    assert "left and right as in the other scans" in warnings["d.nii.gz"]


def test_a_head_ten_times_too_large_is_found(changed):
    (changed / "images" / "f.nii.gz").unlink()
    replace(changed, "c", head(2), np.diag([10.0, 10, 10, 1]) @ GRID.affine)
    warnings = [f for f in doctor.examine(changed).findings if f.file.name == "c.nii.gz"]
    assert any("field of view" in f.message for f in warnings)


def test_a_person_who_was_scanned_twice_is_found(changed):
    turn = np.array([[0.995, -0.0998, 0, 3], [0.0998, 0.995, 0, -2], [0, 0, 1, 4], [0, 0, 0, 1.0]])
    again = resample(Image(head(4, noise=50).astype(np.float32), GRID.affine), GRID, Affine(turn))
    replace(changed, "h", again.array * 0.7)
    warnings, _ = told(changed)
    assert list(warnings) == ["h.nii.gz"]
    assert "same person as e.nii.gz: they are more alike than others" in warnings["h.nii.gz"]


def test_two_crops_of_one_scan_are_found_whatever_their_axes(changed):
    whole = np.rint(head(5) * 3)
    replace(changed, "f", whole[:, :, :30])
    flipped = whole[4:, ::-1, 2:].transpose(1, 0, 2)
    replace(changed, "h", flipped, GRID.affine)
    first, second = (persons.trace_source(io.read_image(changed / "images" / f"{i}.nii.gz")) for i in "fh")
    assert persons.find_crops([first, second])[0].reason == "they overlap, with identical intensities"
    (finding,) = (f for f in doctor.examine(changed, register=False).findings if "same person" in f.message)
    assert finding.file.name == "h.nii.gz" and "subjects.tsv" in finding.remedy
    (changed / "subjects.tsv").write_text("id\tsubject\nf\tone\nh\tone\na\ttwo\n")
    assert not [f for f in doctor.examine(changed, register=False).findings if "same person" in f.message]
    other = persons.trace_source(io.read_image(changed / "images" / "a.nii.gz"))
    assert not persons.find_crops([first, other])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,subject\na,one\n", "expected the columns id and subject, got id,subject"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_faulty_table_of_subjects_is_an_error(changed, content, reason):
    (changed / "subjects.tsv").write_bytes(content)
    (error,) = (f for f in doctor.examine(changed, register=False).findings if f.severity == "error")
    assert error.file == changed / "subjects.tsv" and reason in error.message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hashes_of_runs_by_hand(axis):
    """Of one line along each axis, as the sum in the docstring."""
    line = np.random.default_rng(0).integers(0, 50, 40)
    size, base = persons.RUN, persons.BASE
    d = np.diff(line).tolist()
    sums = [
        sum(d[n + k] * (pow(base, k, 2**64) - pow(base, size - 1 - k, 2**64)) for k in range(size)) % 2**64
        for n in range(len(d) - size + 1)
    ]
    mixed = {(s ^ s >> 31) * 0x9E3779B97F4A7C15 % 2**64 for s in sums}
    shape = [1, 1, 1]
    shape[axis] = line.size
    assert persons._hash_runs(line.reshape(shape)).tolist() == sorted(mixed)
    np.testing.assert_array_equal(persons._hash_runs(line[::-1].reshape(shape)), sorted(mixed))


def test_crops_without_overlap_are_found_by_the_step_of_their_intensities():
    def rescaled(seed, factor):
        return persons.trace_source(Image((np.rint(head(seed)) * factor).astype(np.float32), GRID.affine))

    traces = [rescaled(0, 5.958871), rescaled(1, 7.193452), rescaled(2, 5.958871), rescaled(3, 0.5), rescaled(4, 0.5)]
    traces.append(rescaled(5, 3.3394721))
    (found,) = persons.find_shared_steps(traces)
    assert (found.first, found.second) == (0, 2) and "5.95887" in found.reason
    assert traces[3].step is None, "a short decimal number tells nothing"
    assert traces[1].step == pytest.approx(7.193452, rel=1e-6)
    assert persons.find_step(np.random.default_rng(0).normal(size=(20, 20, 20))) is None


def test_a_step_that_most_scans_share_tells_nothing():
    traces = [persons.Trace(3.33947, np.zeros(0, np.uint64))] * 6 + [
        persons.Trace(s, np.zeros(0, np.uint64)) for s in (1.23456, 2.34567)
    ]
    assert persons.find_shared_steps(traces) == []


def test_quick_compares_no_anatomy_and_says_so(changed):
    replace(changed, "d", head(3, side=-1.0))
    found = doctor.examine(changed, register=False)
    assert not [f for f in found.findings if f.severity == "warning"]
    assert any("not (not asked for)" in line for line in found.checked)


def test_few_scans_are_not_compared_and_that_is_said(tmp_path):
    for n, id_ in enumerate("ab"):
        write(tmp_path, id_, head(n))
    assert any("not (fewer than 5 scans)" in line for line in doctor.examine(tmp_path).checked)


@pytest.mark.parametrize(
    ("similarity", "usual", "same"),
    [
        (0.9, (0.35, 0.4, 0.45, 0.38, 0.42), True),
        (0.5, (0.35, 0.4, 0.45, 0.38, 0.42), False),  # -log(1 - s) is not 1.5 times the median's
        (0.58, (0.399, 0.4, 0.401, 0.4, 0.4), True),
        (0.52, (0.399, 0.4, 0.401, 0.4, 0.4), False),
        (0.9, (0.1, 0.4, 0.7, 0.2, 0.6), False),  # no more than 6 standard deviations
        (0.97, (0.7, 0.72, 0.68, 0.69, 0.71), True),  # where 1.5 times the similarity would be above 1
    ],
)
def test_repeats_need_both_limits(similarity, usual, same):
    found = persons.find_repeats([(0, 1)], [similarity], usual)
    assert bool(found) is same


@pytest.mark.parametrize("set_", ["spinal_cord_gm"])
def test_repeat_scans_of_real_persons(real_data, set_):
    paths = sorted((real_data / set_ / "images").iterdir())
    found = anatomy.compare_all([anatomy.shrink(io.read_image(path)) for path in paths], print)
    same = sorted(paths[pair.second].name for pair in found.persons)
    assert same == ["sc_10062Ses2.nii.gz", "sc_9709Ses2.nii.gz"]


def test_crops_of_real_persons_by_their_step(real_data):
    """Neighbours of one person in the training set, cut from the same scan: left and right hippocampus."""
    folder = real_data / "hippocampus"
    names = {"more_atlases": ["004", "024", "034"], "atlases": ["003", "008"], "further_atlases": ["007"]}
    paths = [folder / s / "images" / f"hippocampus_{n}.nii.gz" for s, each in names.items() for n in each]
    found = persons.find_shared_steps([persons.trace_source(io.read_image(path)) for path in paths])
    assert {(paths[p.first].name[12:15], paths[p.second].stem[12:15]) for p in found} == {
        ("004", "003"),
        ("008", "007"),
    }
