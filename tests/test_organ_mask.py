"""Masks of an organ: phantoms of whole heads in several contrasts, views and libraries, against their truth."""

import logging

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from atlasseg.atlases.library import read_library
from atlasseg.atlases.organs import ORGAN, organ_probabilities, organ_volume_mm3, organs_of
from atlasseg.errors import GeometryError, InputError
from atlasseg.fusion import majority
from atlasseg.io import write_image, write_label_map, write_mask
from atlasseg.organ_mask import extraction, fill_mask, find_organ, widen
from atlasseg.organ_mask.border import refine_border
from atlasseg.organ_mask.extraction import find_cut_off, largest_part
from atlasseg.phantoms import tilted_grid, whole_head, whole_head_grid
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.fixture(scope="module")
def atlases():
    return [whole_head(f"atlas{n}", seed=n, subsamples=1).atlas for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def target():
    """A scan on a grid of other axes and voxels than the atlases'."""
    return whole_head("target", seed=50, grid=whole_head_grid((1.8, 1.5, 1.7), axes="PSR"))


@pytest.fixture(scope="module")
def found(target, atlases):
    return find_organ(target.image, atlases)


def test_the_brain_of_a_whole_head(target, found):
    truth = target.labels.array > 0
    assert found.mask.grid.matches(target.image.grid)
    assert dice(found.mask.array, truth) > 0.97
    assert dict(found.cut_off) == {}
    assert found.volume_ml == pytest.approx(truth.sum() * 1.8 * 1.5 * 1.7 / 1000, rel=0.05)
    assert list(found.atlases) == ["atlas1", "atlas2", "atlas3"] and all(c.keep for c in found.atlases.values())
    assert all(0.5 < value < 1 for value in found.similarities.values())


def test_the_probability_is_unsure_at_the_border_alone(target, found):
    truth = target.labels.array > 0
    probability = found.probabilities.probability(ORGAN)
    assert dice(probability > 0.5, truth) > 0.97
    unsure = (probability > 0.05) & (probability < 0.95)
    border = truth ^ ndimage.binary_erosion(truth)
    apart_mm = ndimage.distance_transform_edt(~border, sampling=target.image.spacing_mm)
    assert unsure.any() and apart_mm[unsure].max() < 6
    # a voxel is as often organ as its probability says
    assert truth[(probability > 0.5) & unsure].mean() > 0.5 > truth[(probability < 0.5) & unsure].mean()


def test_one_atlas_is_enough_and_more_are_better(target, atlases, found):
    truth = target.labels.array > 0
    alone = [dice(find_organ(target.image, [atlas]).mask.array, truth) for atlas in atlases]
    assert min(alone) > 0.94
    assert dice(found.mask.array, truth) > np.mean(alone)


def test_another_contrast_than_the_atlases(atlases):
    other = whole_head("t2", seed=51, contrast="T2", subsamples=1)
    assert dice(find_organ(other.image, atlases).mask.array, other.labels.array > 0) > 0.94


def test_the_order_of_the_atlases_does_not_matter(target, atlases, found):
    turned = find_organ(target.image, atlases[::-1])
    np.testing.assert_array_equal(turned.mask.array, found.mask.array)


@pytest.mark.parametrize(
    ("first", "last", "face"),
    [(14, None, None), (28, None, "inferior"), (0, 40, "superior")],
    ids=["neck", "base", "vertex"],
)
def test_a_head_that_is_cut_off(atlases, first, last, face, caplog):
    whole = whole_head("whole", seed=52, subsamples=1)
    stop = whole.image.shape[2] if last is None else last
    scan = whole.image.cropped((0, 0, first), (*whole.image.shape[:2], stop))
    truth = (whole.labels.array > 0)[:, :, first:stop]
    assert truth.sum() < (whole.labels.array > 0).sum() or face is None
    with caplog.at_level(logging.WARNING):
        found = find_organ(scan, atlases)
    assert dice(found.mask.array, truth) > 0.95
    assert list(found.cut_off) == ([] if face is None else [face])
    assert ("reaches the border of the scan: " + str(face) in caplog.text) == (face is not None)
    if face is not None:
        end = found.mask.array[:, :, 0 if face == "inferior" else -1].sum()
        assert found.cut_off[face] == pytest.approx(end / found.mask.array.sum())


def test_an_atlas_that_cannot_be_registered_is_left_out(target, atlases, caplog):
    rng = np.random.default_rng(0)
    noise = Image(rng.normal(size=atlases[0].image.shape), atlases[0].image.affine)
    odd = Atlas("noise", noise, atlases[0].labels)
    further = [whole_head(f"atlas{n}", seed=n, subsamples=1).atlas for n in (4, 5)]
    with caplog.at_level(logging.WARNING):
        found = find_organ(target.image, [*atlases, *further, odd])
    assert [id_ for id_, check in found.atlases.items() if not check.keep] == ["noise"]
    assert "atlas noise left out of the mask" in caplog.text
    assert dice(found.mask.array, target.labels.array > 0) > 0.97


def test_no_atlas_and_no_organ_are_errors(target, atlases):
    with pytest.raises(InputError, match="target: expected at least one atlas, got none"):
        find_organ(target.image, [])
    empty = Atlas("bare", atlases[0].image, LabelMap(np.zeros(atlases[0].shape), atlases[0].image.affine, "bare.nii"))
    with pytest.raises(InputError, match=r"bare.nii: expected an organ in atlas 'bare' .* got background alone"):
        find_organ(target.image, [*atlases, empty])


def test_organs_are_labels_above_0_or_probabilities_of_them():
    head = whole_head("a", seed=1, subsamples=1).atlas
    (organ,) = organs_of([head])
    assert organ.label_values.tolist() == [0, ORGAN] and organ.mask is None
    np.testing.assert_array_equal(organ.segmentation.array, head.labels.array > 0)
    volume_mm3 = (head.labels.array > 0).sum() * 1.6 * 1.7 * 1.8
    assert organ_volume_mm3(organ) == pytest.approx(volume_mm3)
    weights = np.zeros((4, 5, 6, 3))
    weights[..., 0], weights[1, 2, 3] = 1, (0.25, 0.25, 0.5)
    weights[2, 2, 2] = (0, 0.5, 0.5)
    template = Atlas(
        "t", Image(np.zeros((4, 5, 6)), np.eye(4)), ProbabilityMap.from_dense(weights, (0, 7, 9), np.eye(4))
    )
    (organ,) = organs_of([template])
    probability = organ.labels.probability(ORGAN)
    assert probability[1, 2, 3] == 0.75 and probability[2, 2, 2] == 1 and probability.sum() == 1.75
    assert organ_volume_mm3(organ) == 1.75


def test_labels_that_were_not_annotated_may_be_organ():
    head = whole_head("a", seed=1, subsamples=1).atlas
    (organ,) = organs_of([Atlas("a", head.image, head.labels, None, frozenset({2}))])
    assert organ.not_annotated == {ORGAN}


def write_library(folder, heads, *, labels=True, masks=()):
    for head in heads:
        write_image(head.image, folder / "images" / f"{head.id}.nii.gz")
        if labels:
            write_label_map(head.labels, folder / "labels" / f"{head.id}.nii.gz")
        if head.id in masks:
            everything = ndimage.binary_dilation(head.labels.array > 0, iterations=2)
            write_mask(Mask(everything, head.image.affine), folder / "masks" / f"{head.id}.nii.gz")
    return folder


def test_masks_of_a_library_are_the_organ_if_every_atlas_has_one(atlases, tmp_path):
    ids = [atlas.id for atlas in atlases]
    sizes = {}
    for name, masks in (("none", ()), ("some", ids[:2]), ("all", ids)):
        library = read_library(write_library(tmp_path / name, atlases, masks=masks))
        sizes[name] = organ_volume_mm3(organs_of([library.read(id_) for id_ in library.ids])[0])
    assert sizes["none"] == sizes["some"] < sizes["all"]
    bare = write_library(tmp_path / "bare", atlases, labels=False, masks=ids)
    library = read_library(bare, masks_suffice=True)
    assert organ_volume_mm3(organs_of([library.read(ids[0])])[0]) == sizes["all"]
    with pytest.raises(InputError, match="3 of 3 images have no label file in labels/: atlas1"):
        read_library(bare)
    (bare / "masks" / "atlas2.nii.gz").unlink()
    with pytest.raises(InputError, match="1 of 3 images have no label file in labels/ and no mask in masks/: atlas2"):
        read_library(bare, masks_suffice=True)


def test_intensities_that_are_not_finite_make_no_organ(atlases, tmp_path):
    holed = atlases[0].image.array.copy()
    holed[3, 4, 5] = np.nan
    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(holed, atlases[0].image.affine), tmp_path / "images" / "a.nii.gz")
    write_label_map(atlases[0].labels, tmp_path / "labels" / "a.nii.gz")
    atlas = read_library(tmp_path).read("a")
    assert atlas.mask is not None
    np.testing.assert_array_equal(organs_of([atlas])[0].segmentation.array, atlases[0].labels.array > 0)


def test_an_organ_that_lands_nowhere_is_an_error(atlases, monkeypatch):
    far = [Affine.identity()] * len(atlases)
    monkeypatch.setattr("atlasseg.registration.affine.register", lambda *data, **given: far)
    scan = whole_head("far", seed=3, subsamples=1, grid=tilted_grid((30, 30, 30), centre_mm=(900, 0, 0))).image
    with pytest.raises(GeometryError, match="far: no organ of the 3 atlases lands on the scan"):
        find_organ(scan, atlases)


def test_the_largest_part_without_holes():
    inside = np.zeros((9, 8, 7), bool)
    inside[1:6, 1:6, 1:6] = True
    inside[3, 3, 3] = False
    inside[7, 7, 0:2] = True
    cleaned = largest_part(inside)
    assert cleaned.sum() == 125 and cleaned[3, 3, 3] and not cleaned[7, 7].any()
    assert not largest_part(np.zeros((3, 3, 3), bool)).any()


def test_faces_are_named_by_the_axes_of_the_grid():
    inside = np.zeros((10, 10, 10), bool)
    inside[0:4, 3:6, 3:6] = True  # the first axis runs towards posterior
    grid = tilted_grid((10, 10, 10), angles_degrees=(0, 0, 0), axes="PSR")
    assert find_cut_off(inside, grid) == {"anterior": 0.25}
    assert find_cut_off(inside[::-1], grid) == {"posterior": 0.25}
    assert find_cut_off(np.swapaxes(inside, 0, 1), grid) == {"inferior": 0.25}


def test_probabilities_of_an_organ():
    share = np.zeros((3, 3, 3), np.float32)
    share[0, 0, 0], share[1, 1, 1], share[2, 2, 2] = 1, 0.25, 0.5
    made = organ_probabilities(share, np.eye(4))
    np.testing.assert_allclose(made.probability(ORGAN), share)
    assert made.label_values.tolist() == [0, ORGAN] and made.voxels.size == 2


def discs(offset_voxels, *, seed, count=5):
    """A ball in noise with a rim that is darker than both, and candidates whose organs all end `offset_voxels` off."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.indices((26, 28, 24)) - np.array([12.5, 13.5, 11.5])[:, None, None, None], axis=0)

    def ball(rim, border, label):
        inside = np.clip(rim - radius + 0.5, 0, 1)
        dark = np.clip(1.6 - np.abs(radius - rim - 1.2), 0, 1)
        image = Image(100 * inside - 60 * dark + rng.normal(0, 4, radius.shape) + 80, np.eye(4), label)
        return Atlas(
            label, image, organ_probabilities(np.clip(border - radius + 0.5, 0, 1).astype(np.float32), np.eye(4))
        )

    scan = ball(8, 8, "scan")
    return scan, [ball(8 + offset_voxels, 8 + offset_voxels, f"a{n}") for n in range(count)]


def test_the_border_goes_to_where_the_scan_shows_it():
    scan, candidates = discs(0.7, seed=1)
    truth = scan.labels.probability(ORGAN) > 0.5
    fused = majority.fuse(scan.image, candidates)
    before = dice(fused.probability(ORGAN) > 0.5, truth)
    after = dice(refine_border(scan.image, candidates, fused) > 0.5, truth)
    assert before < 0.93 and after > before + 0.02
    unchanged = refine_border(scan.image, candidates, fused, weight=0)
    assert dice(unchanged > 0.5, fused.probability(ORGAN) > 0.5) > 0.96


def test_the_border_does_not_depend_on_the_scale_of_intensities_nor_on_the_order():
    scan, candidates = discs(0.7, seed=2)
    fused = majority.fuse(scan.image, candidates)
    expected = refine_border(scan.image, candidates, fused)
    brighter = scan.image.with_array(scan.image.array * 37)
    np.testing.assert_allclose(refine_border(brighter, candidates, fused), expected, atol=0.02)
    np.testing.assert_array_equal(refine_border(scan.image, candidates[::-1], fused), expected)


def test_a_border_that_nobody_doubts_stays():
    scan, candidates = discs(0.0, seed=3)
    sure = organ_probabilities((scan.labels.probability(ORGAN) > 0.5).astype(np.float32), np.eye(4))
    np.testing.assert_array_equal(refine_border(scan.image, candidates, sure), sure.probability(ORGAN))
    with pytest.raises(InputError, match=r"weight: expected a number from 0 to 1, got 1\.5"):
        refine_border(scan.image, candidates, sure, weight=1.5)


def test_a_mask_is_widened_by_mm_on_any_voxels():
    inside = np.zeros((11, 9, 7), bool)
    inside[5, 4, 3] = inside[0, 0, 0] = True
    grid = tilted_grid((11, 9, 7), spacing_mm=(1, 2, 3))
    wide = widen(Mask(inside, grid.affine), margin_mm=2.0).array
    expected = np.zeros_like(inside)
    for i, j, k in np.argwhere(inside):
        there = np.indices(inside.shape) - np.array([i, j, k])[:, None, None, None]
        expected |= ((there * np.array([1, 2, 3])[:, None, None, None]) ** 2).sum(axis=0) <= 4.0 + 1e-9
    np.testing.assert_array_equal(wide, expected)
    nothing = Mask(np.zeros((3, 3, 3), bool), np.eye(4))
    assert not widen(nothing, margin_mm=2.0).array.any()


def test_a_scan_in_which_nothing_is_probably_organ_is_an_error(target, atlases, monkeypatch):
    monkeypatch.setattr(extraction, "refine_border", lambda scan, *rest: np.full(scan.shape, 0.25, np.float32))
    with pytest.raises(GeometryError, match=r"target: no voxel is probably organ \(the highest probability is 0\.25\)"):
        find_organ(target.image, atlases)


def test_labels_fill_a_mask():
    weights = np.zeros((5, 4, 3, 3))
    weights[..., 0] = 1
    weights[0, 0, 0] = (0.6, 0.3, 0.1)  # background is most probable, and label 4 next
    weights[1, 0, 0] = (0, 0, 1)
    weights[2, 0, 0] = (0.2, 0.2, 0.6)
    weights[4, 3, 2] = (0, 1, 0)  # outside
    fused = ProbabilityMap.from_dense(weights, (0, 4, 9), np.diag([1, 2, 3, 1]))
    inside = np.zeros((5, 4, 3), bool)
    inside[:4, 0, 0] = True
    filled = fill_mask(fused, Mask(inside, fused.affine))
    assert filled.mode[:4, 0, 0].tolist() == [4, 9, 9, 9] and (filled.mode != 0).sum() == 4
    np.testing.assert_allclose(filled.probability(4)[:4, 0, 0], [0.75, 0, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(filled.dense().sum(axis=-1), 1, atol=1e-6)
    assert filled.label_values.tolist() == [0, 4, 9] and filled.probability(4)[4, 3, 2] == 0
    nothing = ProbabilityMap.from_labels(LabelMap(np.zeros((5, 4, 3)), fused.affine))
    assert not fill_mask(nothing, Mask(inside, fused.affine)).mode.any()
    with pytest.raises(GeometryError, match="the mask is not on the grid of the segmentation"):
        fill_mask(fused, Mask(inside, np.eye(4)))
