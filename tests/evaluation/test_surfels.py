import numpy as np
import pytest
import surface_distance
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from atlasseg import io
from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation import evaluate, surfels
from atlasseg.phantoms import tilted_grid
from atlasseg.volume import Grid, LabelMap

# the oracle uses namespaces of scipy that are to go
pytestmark = pytest.mark.filterwarnings("ignore:Please (use|import):DeprecationWarning")

SHAPE = (9, 8, 7)
SPACINGS_MM = ((1, 1, 1), (0.7, 1.3, 2.1), (2.5, 0.4, 0.9))
TOLERANCES_MM = (0.0, 0.55, 1.0, 2.3)
SAME = 1e-9


def blob(seed, shape=SHAPE):
    noise = np.random.default_rng(seed).random(shape)
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis)
    return noise > np.quantile(noise, 0.6)


def oracle(segmentation, reference, spacing_mm, tolerance_mm):
    apart = surface_distance.compute_surface_distances(reference, segmentation, spacing_mm)
    return surface_distance.compute_surface_dice_at_tolerance(apart, tolerance_mm)


def aligned(labels, other):
    """The labels of another subject on this one's grid, with the centre of their foreground brought to this one's."""
    placed = np.zeros_like(labels)
    centre, start = (np.argwhere(x).mean(axis=0).round().astype(int) for x in (labels, other))
    voxels = np.argwhere(other)
    moved = voxels + centre - start
    inside = ((moved >= 0) & (moved < labels.shape)).all(axis=1)
    placed[tuple(moved[inside].T)] = other[tuple(voxels[inside].T)]
    return placed


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_areas_are_those_of_the_published_table(spacing_mm):
    grid = tilted_grid(SHAPE, spacing_mm=spacing_mm)
    published = create_table_neighbour_code_to_surface_area(grid.spacing_mm)
    assert np.count_nonzero(published) == 254
    np.testing.assert_allclose(surfels.surfel_areas_mm2(grid.affine), published, rtol=SAME)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("seed", range(4))
def test_against_surface_distance(seed, spacing_mm):
    one, other = blob(seed), blob(seed + 10)  # they reach the edges of the grid
    grid = tilted_grid(SHAPE, spacing_mm=spacing_mm)
    for tolerance_mm in TOLERANCES_MM:
        found = surfels.surface_dice(one, other, grid, tolerance_mm=tolerance_mm)
        assert found == pytest.approx(oracle(one, other, spacing_mm, tolerance_mm), abs=1e-9)


def test_distances_and_areas_of_each_surfel_against_surface_distance():
    one, other = blob(3), blob(4)
    grid = tilted_grid(SHAPE, spacing_mm=(0.7, 1.3, 2.1))
    apart = surface_distance.compute_surface_distances(other, one, (0.7, 1.3, 2.1))
    found = surfels.surfel_distances(surfels.find_surfels(one * 5)[5], surfels.find_surfels(other * 3)[3], grid)
    for mine, areas, theirs in (
        (found.to_reference_mm, found.segmentation_areas_mm2, "pred_to_gt"),
        (found.to_segmentation_mm, found.reference_areas_mm2, "gt_to_pred"),
    ):
        np.testing.assert_allclose(np.sort(mine), apart[f"distances_{theirs}"], atol=1e-9)
        theirs_areas = apart["surfel_areas_gt" if theirs == "gt_to_pred" else "surfel_areas_pred"]
        np.testing.assert_allclose(np.sort(areas), np.sort(theirs_areas), atol=1e-9)


def test_all_twenty_hippocampus_pairs(real_data):
    files = sorted((real_data / "hippocampus" / "targets" / "labels").glob("*.nii.gz"))
    assert len(files) == 20
    maps = [io.read_label_map(file) for file in files]
    below = []
    for n, reference in enumerate(maps):
        other = aligned(reference.array, maps[n - 1].array)
        spacing_mm = SPACINGS_MM[n % 3]
        affine = np.diag([*spacing_mm, 1.0])
        result = evaluate(LabelMap(other, affine), LabelMap(reference.array, affine), groups={"both": (1, 2)})
        for name, labels in (("label 1", [1]), ("label 2", [2]), ("both", [1, 2])):
            expected = oracle(np.isin(other, labels), np.isin(reference.array, labels), spacing_mm, 1.0)
            assert 0.2 < expected < 1
            assert result["surface_dice_1mm", name] == pytest.approx(expected, abs=1e-6)
            below.append(expected - result["surface_dice_voxels_1mm", name])
    assert np.mean(below) > 0.02


def test_a_plane_has_its_area():
    labels = np.zeros((6, 5, 4), np.int32)
    labels[2:5] = 7
    grid = Grid(labels.shape, np.diag([3.0, 2.0, 1.5, 1.0]))
    found = surfels.find_surfels(labels)[7]
    areas = surfels.surfel_areas_mm2(grid.affine)[found.codes]
    on_plane = np.isin(found.codes, (0b11110000, 0b00001111))
    corners = np.stack(np.unravel_index(found.corners, (7, 6, 5)), -1)
    assert set(corners[on_plane, 0].tolist()) == {2, 5}
    assert areas[on_plane].tolist() == [2.0 * 1.5] * (2 * 4 * 3)


def test_surfels_of_all_labels_are_those_of_each():
    labels = np.random.default_rng(3).choice(np.array([0, 5, 9, -4], np.int16), SHAPE)
    labels[2:6, 2:7, 1:4] = 5
    found = surfels.find_surfels(labels)
    assert list(found) == [-4, 5, 9]
    for label, mine in found.items():
        alone = surfels.find_surfels((labels == label).astype(np.uint8))[1]
        np.testing.assert_array_equal(mine.corners, alone.corners)
        np.testing.assert_array_equal(mine.codes, alone.codes)
        assert (np.diff(mine.corners) > 0).all()
    assert surfels.find_surfels(np.zeros(SHAPE, np.int32)) == {}


def test_the_value_does_not_depend_on_how_the_grid_is_stored():
    one, other = blob(5), blob(6)
    straight = Grid(SHAPE, np.diag([0.7, 1.3, 2.1, 1.0]))
    tilted = tilted_grid(SHAPE, spacing_mm=(0.7, 1.3, 2.1), axes="LSA")
    turned = tilted_grid((7, 9, 8), spacing_mm=(2.1, 0.7, 1.3), axes="ASL")
    value = surfels.surface_dice(one, other, straight, tolerance_mm=1)
    assert surfels.surface_dice(one, other, tilted, tolerance_mm=1) == pytest.approx(value, abs=1e-12)
    turn = [np.flip(mask.transpose(2, 0, 1), 1) for mask in (one, other)]
    assert surfels.surface_dice(*turn, turned, tolerance_mm=1) == pytest.approx(value, abs=1e-12)


def test_a_sheared_grid_has_the_areas_of_its_geometry():
    shear = np.eye(4)
    shear[0, 2] = 1.5  # the planes across the third axis keep their area, those across the first grow
    areas = surfels.surfel_areas_mm2(shear)
    assert areas[0b10101010] == pytest.approx(1)
    assert areas[0b11110000] == pytest.approx(np.hypot(1, 1.5))


def test_empty_masks_and_bad_requests():
    grid = tilted_grid(SHAPE)
    empty, mask = np.zeros(SHAPE, bool), blob(1)
    assert surfels.surface_dice(empty, mask, grid, tolerance_mm=100) == 0
    assert surfels.surface_dice(mask, empty, grid, tolerance_mm=100) == 0
    assert np.isnan(surfels.surface_dice(empty, empty, grid, tolerance_mm=1))
    assert surfels.surface_dice(mask * 3, mask, grid, tolerance_mm=0) == 1
    with pytest.raises(GeometryError, match=r"expected a mask of shape \(9, 8, 7\), got \(7, 8, 9\)"):
        surfels.surface_dice(mask, mask.T, grid, tolerance_mm=1)
    for bad in (-1, float("nan")):
        with pytest.raises(InputError, match="0 or more"):
            surfels.surface_dice(mask, blob(2), grid, tolerance_mm=bad)
