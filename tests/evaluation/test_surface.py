import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation import surface
from atlasseg.phantoms import tilted_grid
from atlasseg.volume import Grid

SHAPE = (7, 9, 5)
EXACT_MM = 1e-9
"""Distances are sums of three products in double precision: what differs is rounding."""


def sheared_grid():
    grid = tilted_grid(SHAPE, axes="LSA")
    shear = np.eye(4)
    shear[0, 1] = 0.3
    return Grid(SHAPE, shear @ grid.affine)


def blob(seed, shape=SHAPE):
    noise = np.random.default_rng(seed).random(shape)
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis)
    return noise > np.quantile(noise, 0.6)


def brute_surface_mm(mask, grid):
    points = []
    for voxel in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                neighbour = voxel.copy()
                neighbour[axis] += step
                inside = all(0 <= n < size for n, size in zip(neighbour, mask.shape, strict=True))
                if not inside or not mask[tuple(neighbour)]:
                    points.append(grid.affine[:3, :3] @ voxel + grid.affine[:3, 3])
                    break
            else:
                continue
            break
    return np.array(points)


@pytest.mark.parametrize("grid", [tilted_grid(SHAPE), tilted_grid(SHAPE, axes="LSA"), sheared_grid()], ids=str)
def test_against_brute_force(grid):
    one, other = blob(1), blob(2)
    found = surface.surface_distances(one, other, grid)
    apart = cdist(brute_surface_mm(one, grid), brute_surface_mm(other, grid))
    to_reference, to_segmentation = apart.min(1), apart.min(0)
    np.testing.assert_allclose(found.to_reference_mm, to_reference, atol=EXACT_MM)
    np.testing.assert_allclose(found.to_segmentation_mm, to_segmentation, atol=EXACT_MM)
    both = np.concatenate((to_reference, to_segmentation))
    percentiles = (np.percentile(to_reference, 95), np.percentile(to_segmentation, 95))
    assert found.hausdorff_mm() == pytest.approx(both.max())
    assert found.hausdorff_mm(95) == pytest.approx(max(percentiles))
    assert found.average_mm() == pytest.approx(both.mean())
    assert found.surface_dice_voxels(1.05) == pytest.approx(np.mean(both <= 1.05))


def test_against_simpleitk():
    grid = tilted_grid(SHAPE, spacing_mm=(1.0, 0.7, 2.1))
    one, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[1:4, 2:5, 1:3] = True
    other[2:6, 3:8, 1:4] = True  # they overlap, and neither holds the other: ITK measures from sets, we from surfaces

    def to_itk(mask):
        image = sitk.GetImageFromArray(mask.astype(np.uint8).T)
        image.SetSpacing(grid.spacing_mm.tolist())
        return image

    itk = sitk.HausdorffDistanceImageFilter()
    itk.Execute(to_itk(one), to_itk(other))
    assert surface.surface_distances(one, other, grid).hausdorff_mm() == pytest.approx(itk.GetHausdorffDistance())
    # the average over surface voxels, from ITK's own contours and distance maps
    contours = [sitk.BinaryContour(to_itk(mask), False) for mask in (one, other)]
    maps = [sitk.Abs(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True)) for c in contours]
    values = [sitk.GetArrayFromImage(maps[1 - n])[sitk.GetArrayFromImage(contours[n]) > 0] for n in range(2)]
    assert surface.surface_distances(one, other, grid).average_mm() == pytest.approx(
        np.concatenate(values).mean(), rel=1e-5
    )


def test_hand_computed():
    grid = Grid((2, 6, 1), np.diag([1.0, 2.0, 3.0, 1.0]))
    one, other = np.zeros((2, 2, 6, 1), bool)
    one[0, 0:2] = True  # 0 and 2 mm
    other[0, 1:4] = True  # 2, 4 and 6 mm
    found = surface.surface_distances(one, other, grid)
    assert found.to_reference_mm.tolist() == [2, 0]
    assert found.to_segmentation_mm.tolist() == [0, 2, 4]
    assert found.hausdorff_mm() == 4
    assert found.hausdorff_mm(95) == pytest.approx(3.8)
    assert found.average_mm() == pytest.approx(8 / 5)
    assert found.surface_dice_voxels(1.0) == pytest.approx(2 / 5)
    assert found.surface_dice_voxels(2.0) == pytest.approx(4 / 5)


def test_a_shift_of_one_voxel_is_its_length_in_space():
    grid = tilted_grid(SHAPE, spacing_mm=(0.9, 1.3, 2.7), axes="ASL")
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 3:6, 1:3] = True
    for axis, step_mm in enumerate((0.9, 1.3, 2.7)):
        shifted = np.roll(mask, 1, axis)
        assert surface.surface_distances(shifted, mask, grid).hausdorff_mm() == pytest.approx(step_mm)


def test_surfaces_of_all_labels_are_those_of_each():
    labels = np.random.default_rng(3).choice(np.array([0, 5, 9, -4], np.int32), SHAPE)
    labels[2:6, 2:7, 1:4] = 5  # so that there are voxels inside
    found = surface.surfaces(labels)
    assert list(found) == [-4, 5, 9]
    grid = tilted_grid(SHAPE)
    for label, flat in found.items():
        expected = brute_surface_mm(labels == label, grid)
        points = np.argwhere(labels == label)
        assert len(flat) == len(expected) and (label != 5 or len(flat) < len(points))
        placed = np.stack(np.unravel_index(flat, SHAPE), -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        np.testing.assert_allclose(placed, expected, atol=EXACT_MM)
    assert surface.surfaces(np.zeros(SHAPE, np.int32)) == {}


def test_a_missing_structure_is_as_far_as_can_be():
    grid = tilted_grid(SHAPE)
    mask = blob(4)
    longest = cdist(grid.corners_mm, grid.corners_mm).max()
    for found in (
        surface.surface_distances(np.zeros(SHAPE), mask, grid),
        surface.surface_distances(mask, np.zeros(SHAPE), grid),
    ):
        assert found.missing
        assert found.hausdorff_mm() == found.hausdorff_mm(95) == found.average_mm() == pytest.approx(longest)
        assert found.surface_dice_voxels(100.0) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 5))
def test_invariants(seed_one, seed_other, tolerance_mm):
    grid = tilted_grid(SHAPE)
    one, other = blob(seed_one), blob(seed_other)
    there, back = surface.surface_distances(one, other, grid), surface.surface_distances(other, one, grid)
    assert there.hausdorff_mm() == back.hausdorff_mm() <= surface.worst_distance_mm(grid)
    assert there.average_mm() == pytest.approx(back.average_mm()) and there.average_mm() <= there.hausdorff_mm()
    assert there.hausdorff_mm(95) <= there.hausdorff_mm()
    assert there.surface_dice_voxels(tolerance_mm) <= there.surface_dice_voxels(tolerance_mm + 1)
    assert there.surface_dice_voxels(there.hausdorff_mm()) == 1
    same = surface.surface_distances(one, one, grid)
    assert same.hausdorff_mm() == 0 and same.surface_dice_voxels(0) == 1


def test_bad_requests():
    grid = tilted_grid(SHAPE)
    with pytest.raises(GeometryError, match=r"expected a mask of shape \(7, 9, 5\), got \(9, 7, 5\)"):
        surface.surface_distances(np.zeros(SHAPE), np.zeros((9, 7, 5)), grid)
    with pytest.raises(InputError, match="0 or more"):
        surface.surface_distances(blob(1), blob(2), grid).surface_dice_voxels(-1)
    with pytest.raises(InputError, match="0 or more, got nan"):
        surface.surface_distances(blob(1), blob(2), grid).surface_dice_voxels(float("nan"))
