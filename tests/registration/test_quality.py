"""The Jacobian measures against closed forms and against ITK's filter."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from atlasseg.errors import GeometryError, InputError
from atlasseg.registration.quality import compute_jacobian_determinant, measure_quality
from atlasseg.transforms import Transform
from atlasseg.volume import Grid, Mask

ROUND_OFF = 1e-6  # determinants are kept as float32


class Function(Transform):
    """Any function of (N, 3) points as a transform."""

    def __init__(self, function):
        self.function = function

    def __call__(self, points_mm):
        points = np.asarray(points_mm)
        return self.function(points.reshape(-1, 3)).reshape(points.shape)

    def __invert__(self):
        raise NotImplementedError


def oblique_grid(shape=(7, 9, 5)):
    """Anisotropic, rotated and left-handed."""
    a, b = 0.4, -0.3
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.3, 2.1])
    affine[:3, 3] = (31.0, -12.0, 250.0)
    return Grid(shape, affine)


@pytest.mark.parametrize("matrix", [np.diag([2.0, 0.5, 3.0]), np.array([[1, 0.2, 0], [-0.3, 1.1, 0.1], [0.4, 0, 0.8]])])
def test_an_affine_has_its_own_determinant_everywhere(matrix):
    found = measure_quality(Function(lambda x: x @ matrix.T + 5), oblique_grid())
    expected = np.linalg.det(matrix)
    assert found.jacobian_min == pytest.approx(expected, rel=ROUND_OFF)
    assert found.jacobian_max == pytest.approx(expected, rel=ROUND_OFF)
    assert found.folded_share == 0
    assert found.sd_log_jacobian == pytest.approx(0, abs=ROUND_OFF)
    assert found.voxels == 7 * 9 * 5


def test_a_mirror_is_folded_everywhere():
    assert measure_quality(Function(lambda x: x * (-1, 1, 1)), oblique_grid()).folded_share == 1


def test_a_quadratic_map_has_its_analytic_determinant_inside():
    # central differences are exact for polynomials of degree 2
    grid = oblique_grid((6, 5, 4))
    centre = grid.centre_mm

    def bend(points):
        x, y, z = (points - centre).T
        return np.stack([x + 0.03 * y * y, y + 0.02 * x * z, z - 0.01 * x * x], 1)

    index = np.indices(grid.shape).reshape(3, -1).T
    x, y, z = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - centre).T
    one, nought = np.ones_like(x), np.zeros_like(x)
    rows = [[one, 0.06 * y, nought], [0.02 * z, one, 0.02 * x], [-0.02 * x, nought, one]]
    expected = np.linalg.det(np.moveaxis(np.array(rows), -1, 0)).reshape(grid.shape)
    found = compute_jacobian_determinant(Function(bend), grid)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-5)


def test_agrees_with_itk_on_a_random_field():
    rng = np.random.default_rng(3)
    shape, spacing = (8, 6, 7), np.array([1.0, 1.5, 0.7])
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    field = rng.normal(0, 0.6, (*shape, 3))

    def displaced(points):
        index = np.rint(points / spacing).astype(int)
        return points + field[tuple(index.T)]

    image = SimpleITK.GetImageFromArray(field.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing(spacing.tolist())
    itk = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(image)).transpose(2, 1, 0)
    found = compute_jacobian_determinant(Function(displaced), grid)
    inner = (slice(1, -1),) * 3  # ITK repeats the last voxel across the face, which halves the derivative there
    np.testing.assert_allclose(found[inner], itk[inner], rtol=1e-4, atol=1e-4)
    whole = measure_quality(Function(displaced), grid)
    assert whole.folded_share == pytest.approx((found <= 0).mean()) and whole.folded_share > 0
    assert whole.jacobian_min == found.min() and whole.jacobian_max == found.max()


def test_the_slabs_do_not_show(monkeypatch):
    grid = oblique_grid((9, 4, 5))
    wave = Function(lambda x: x + 0.4 * np.sin(x))
    whole = compute_jacobian_determinant(wave, grid)
    for planes in (1, 2, 4):
        cuts = [(start, min(start + planes, 9)) for start in range(0, 9, planes)]
        monkeypatch.setattr("atlasseg.registration.quality.split_slabs", lambda _, cuts=cuts: cuts)
        np.testing.assert_allclose(compute_jacobian_determinant(wave, grid), whole, rtol=ROUND_OFF)


def test_only_the_mask_is_measured():
    grid = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    array = np.zeros(grid.shape, bool)
    array[1:3] = True

    def stretched_beyond(points):
        x = points[:, 0]
        return np.column_stack([np.where(x > 3, 3 * x - 6, x), points[:, 1:]])

    inside = measure_quality(Function(stretched_beyond), grid, mask=Mask(array, grid.affine))
    assert (inside.jacobian_min, inside.jacobian_max, inside.voxels) == (1, 1, 40)
    everywhere = measure_quality(Function(stretched_beyond), grid)
    assert everywhere.jacobian_max == 3
    planes = np.repeat([0.0, 0.0, 0.0, np.log(2), np.log(3), np.log(3)], 20)
    assert everywhere.sd_log_jacobian == pytest.approx(planes.std(), rel=ROUND_OFF)
    assert "folded 0 %" in str(everywhere)


def test_bad_input_is_named():
    grid = Grid((4, 5, 6), np.eye(4))
    with pytest.raises(InputError, match="empty"):
        measure_quality(Function(np.copy), grid, mask=Mask(np.zeros(grid.shape, bool), grid.affine))
    with pytest.raises(GeometryError, match="not on the grid"):
        measure_quality(Function(np.copy), grid, mask=Mask(np.ones((4, 5, 7), bool), grid.affine))
    with pytest.raises(InputError, match="NaN"):
        measure_quality(Function(lambda x: x * np.nan), grid)
