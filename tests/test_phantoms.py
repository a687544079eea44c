from pathlib import Path

import nibabel
import numpy as np
import pytest

from atlasseg import phantoms
from atlasseg.errors import InputError
from atlasseg.labels import parse_label_table
from atlasseg.phantoms import samples
from atlasseg.phantoms.__main__ import main
from atlasseg.volume import Image

SAMPLE_DATA = Path(__file__).parent.parent / "sample_data"
ROUND_TRIP_MM = 0.01
"""A true transform and its inverse: the inverse of a field is found by iteration, to 1e-4 mm at every point."""
LIBM_LEVELS = 1
"""Other machines' sines and cosines may differ in the last bit, and so round an intensity the other way."""
LIBM_LABELS = 1e-4
"""And part of the labels that may differ for the same reason, at voxels whose centre is on a boundary."""


def points_of(volume, where=None):
    grid = volume.grid
    voxels = np.argwhere(np.ones(grid.shape, bool) if where is None else where)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def small_head(**more):
    return phantoms.head(
        grid=phantoms.tilted_grid((17, 21, 14), spacing_mm=(2.7, 2.6, 2.8), centre_mm=(30, -9, 4)), subsamples=1, **more
    )


def test_left_mirrors_right_and_every_structure_is_there():
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3)) * phantoms.HEAD_SEMI_AXES_MM
    mirrored = phantoms.anatomy(points * (-1, 1, 1))
    found = phantoms.anatomy(points)
    assert set(np.unique(found)) == {0, *(s.value for s in phantoms.STRUCTURES)}
    by_name = {s.value: s.name.removeprefix("Left-").removeprefix("Right-") for s in phantoms.STRUCTURES} | {0: ""}
    assert [by_name[v] for v in found.tolist()] == [by_name[v] for v in mirrored.tolist()]
    right = [s.value for s in phantoms.STRUCTURES if s.name.startswith("Right")]
    assert (points[np.isin(found, right), 0] > 0).all()


def test_labels_are_the_anatomy_seen_through_the_transform():
    made = small_head(seed=3)
    expected = phantoms.anatomy(made.canonical_from_scan(points_of(made.labels))).reshape(made.labels.shape)
    np.testing.assert_array_equal(made.labels.array, expected)


def test_true_transforms_go_both_ways():
    one, other = small_head(seed=3), small_head(seed=4)
    there, back = phantoms.moving_from_fixed(one, other), phantoms.moving_from_fixed(other, one)
    points = points_of(one.labels, one.labels.array > 0)
    moved = there(points)
    assert np.linalg.norm(moved - points, axis=1).max() > 1.0  # two individuals do differ
    np.testing.assert_allclose(back(moved), points, atol=ROUND_TRIP_MM)
    mine, theirs = (phantoms.anatomy(p.canonical_from_scan(x)) for p, x in ((one, points), (other, moved)))
    assert np.mean(mine == theirs) > 1 - 1e-3  # the same anatomy, but for points within 0.01 mm of a boundary


def test_deformation_is_smooth_and_does_not_fold():
    grid = phantoms.tilted_grid((23, 26, 19), spacing_mm=(2.2, 2.0, 2.4))
    field = phantoms.smooth_deformation(grid, largest_mm=2.5, smoothness_mm=7.0, seed=5)
    lengths = np.linalg.norm(field.displacement_mm, axis=-1)
    assert lengths.max() == pytest.approx(2.5, rel=1e-5)
    for axis in range(3):
        assert np.take(lengths, (0, -1), axis).max() < 1e-6
    step = 0.05
    inner = points_of(grid_image(grid))[::7]
    jacobian = np.stack([(field(inner + e) - field(inner - e)) / (2 * step) for e in np.eye(3) * step], axis=-1)
    assert np.linalg.det(jacobian).min() > 0.2
    assert not phantoms.smooth_deformation(grid, largest_mm=0.0).displacement_mm.any()


def grid_image(grid):
    return Image(np.zeros(grid.shape, np.float32), grid.affine)


def test_the_same_seed_gives_the_same_scan_and_another_gives_another():
    one, again, other = small_head(seed=6), small_head(seed=6), small_head(seed=7)
    np.testing.assert_array_equal(one.image.array, again.image.array)
    np.testing.assert_array_equal(one.labels.array, again.labels.array)
    assert (one.image.array != other.image.array).mean() > 0.9
    assert (one.labels.array != other.labels.array).any()


def test_tissue_contrast_noise_and_bias():
    flat = small_head(seed=8, bias=0.0, noise=0.0, white_matter=500.0)
    for structure in phantoms.STRUCTURES:
        inside = flat.image.array[flat.labels.array == structure.value]
        np.testing.assert_allclose(inside, 500 * structure.brightness, rtol=1e-6)
    noisy = small_head(seed=8, bias=0.0, noise=0.1, white_matter=500.0)
    background = noisy.image.array[noisy.labels.array == 0]
    assert background.min() >= 0
    # pure noise has Rayleigh's mean, sigma sqrt(pi / 2)
    assert background.mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.03)
    gain = phantoms.bias_field(flat.image.grid, strength=0.3, seed=8)
    biased = small_head(seed=8, bias=0.3, noise=0.0, white_matter=500.0)
    np.testing.assert_allclose(biased.image.array, flat.image.array * gain, rtol=1e-5)
    assert 0.75 < gain.min() < 0.95 and 1.05 < gain.max() < 1.31


def test_partial_volume_lies_between_its_tissues():
    grid = phantoms.tilted_grid((17, 21, 14), spacing_mm=(2.7, 2.6, 2.8))
    sharp = phantoms.head(grid=grid, seed=9, bias=0, noise=0, subsamples=1)
    soft = phantoms.head(grid=grid, seed=9, bias=0, noise=0, subsamples=3)
    assert np.unique(soft.image.array).size > 3 * np.unique(sharp.image.array).size
    assert soft.image.array.max() <= sharp.image.array.max() * (1 + 1e-6)
    np.testing.assert_array_equal(soft.labels.array, sharp.labels.array)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "ILA"])
def test_tilted_grid(axes):
    grid = phantoms.tilted_grid((7, 9, 5), spacing_mm=(1, 2, 3), centre_mm=(4, -5, 6), axes=axes)
    assert "".join(nibabel.aff2axcodes(grid.affine)) == axes
    np.testing.assert_allclose(grid.spacing_mm, (1, 2, 3))
    np.testing.assert_allclose(grid.centre_mm, (4, -5, 6))
    directions = grid.affine[:3, :3] / (1, 2, 3)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    assert np.abs(directions).max() < 0.999  # oblique


def test_bad_requests():
    with pytest.raises(InputError, match="each of R/L, A/P and S/I once, got 'RLS'"):
        phantoms.tilted_grid((7, 9, 5), axes="RLS")
    with pytest.raises(InputError, match=r"no sample 'atlas7'. Choose from atlas1, atlas2"):
        phantoms.sample("atlas7")


@pytest.mark.parametrize("id", [s.id for s in (*phantoms.SAMPLE_ATLASES, *phantoms.SAMPLE_TARGETS)])
def test_sample_data_is_what_its_seeds_give(id):
    group = "targets" if id.startswith("target") else "atlases"
    made = phantoms.sample(id)
    image = nibabel.load(SAMPLE_DATA / group / "images" / f"{id}.nii.gz")
    labels = nibabel.load(SAMPLE_DATA / group / "labels" / f"{id}.nii.gz")
    for volume in (image, labels):
        assert volume.get_sform(coded=True)[1] == volume.get_qform(coded=True)[1] == 1
        np.testing.assert_allclose(volume.affine, made.image.affine, atol=1e-5)
        np.testing.assert_allclose(volume.get_qform(), made.image.affine, atol=1e-4)
    assert np.abs(np.asarray(image.dataobj).astype(float) - made.image.array).max() <= LIBM_LEVELS
    assert np.mean(np.asarray(labels.dataobj) != made.labels.array) <= LIBM_LABELS
    assert set(np.unique(made.labels.array)) == {0, *(s.value for s in phantoms.STRUCTURES)}
    faces = [np.take(made.labels.array, (0, -1), axis) for axis in range(3)]
    assert not any(face.any() for face in faces)  # the whole head is in the field of view


def test_sample_data_is_small_and_complete():
    files = {p.relative_to(SAMPLE_DATA).as_posix(): p.stat().st_size for p in SAMPLE_DATA.rglob("*") if p.is_file()}
    expected = {
        f"{group}/{kind}/{s.id}.nii.gz"
        for group, specs in (("atlases", phantoms.SAMPLE_ATLASES), ("targets", phantoms.SAMPLE_TARGETS))
        for s in specs
        for kind in ("images", "labels")
    }
    assert set(files) == expected | {"README.md", "atlases/labels.tsv"}
    assert sum(files.values()) < 2_000_000
    table = parse_label_table((SAMPLE_DATA / "atlases" / "labels.tsv").read_text())
    assert {x.value: x.name for x in table} == {s.value: s.name for s in phantoms.STRUCTURES}


def test_written_twice_the_folder_is_the_same_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SAMPLE_ATLASES", phantoms.SAMPLE_ATLASES[:1])
    monkeypatch.setattr(samples, "SAMPLE_TARGETS", phantoms.SAMPLE_TARGETS[:1])
    written = []
    for name in ("one", "two"):
        assert main([str(tmp_path / name)]) == 0
        written.append({p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()})
    assert written[0] == written[1] and len(written[0]) == 4


def test_command_line(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "usage: python -m atlasseg.phantoms FOLDER" in capsys.readouterr().err


def test_tissue_is_what_it_says():
    shape = (27, 34, 23)
    clean = phantoms.tissue(shape, noise_percent=0, bias_percent=0, spacing_mm=(1.8, 2.0, 2.1))
    brain = clean.mask.array
    assert set(np.unique(clean.truth.array)) == {0, *phantoms.TISSUES.values()}
    assert all((clean.truth.array == label).sum() > 0.1 * brain.sum() for label in phantoms.TISSUES.values())
    np.testing.assert_allclose(clean.fractions.sum(-1), brain, atol=1e-6)
    np.testing.assert_allclose(clean.image.array, 1000 * clean.fractions @ np.array([0.3, 0.7, 1.0]), rtol=1e-4)
    biased = phantoms.tissue(shape, noise_percent=0, bias_percent=40, spacing_mm=(1.8, 2.0, 2.1))
    np.testing.assert_array_equal(biased.fractions, clean.fractions)
    np.testing.assert_allclose(biased.image.array, clean.image.array * biased.gain, rtol=1e-5)
    inside = biased.gain[brain]
    assert inside.min() == pytest.approx(0.8, abs=1e-6) and inside.max() == pytest.approx(1.2, abs=1e-6)
    two = phantoms.tissue(shape, bias_percent=0, brightness=((0.3, 0.7, 1.0), (1.0, 0.6, 0.4)), seed=1)
    pure = two.fractions.max(-1) == 1
    for c, level in enumerate(two.image.array[pure & (two.truth.array == 3)].mean(0)):
        assert level == pytest.approx((1000, 400)[c], rel=0.01)
    apart = np.corrcoef((two.image.array - 1000 * two.fractions @ np.array([[0.3, 0.7, 1], [1, 0.6, 0.4]]).T)[pure].T)
    assert abs(apart[0, 1]) < 0.1


def test_tissue_asked_for_badly():
    with pytest.raises(InputError, match="noise of 0"):
        phantoms.tissue((7, 9, 5), noise_percent=-1)
    with pytest.raises(InputError, match="three tissues"):
        phantoms.tissue((7, 9, 5), brightness=(1, 2))
