"""Transforms against SciPy and SimpleITK, and their algebra."""

import logging

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from atlasseg.errors import GeometryError, InputError
from atlasseg.transforms import (
    INVERSE_TOLERANCE_MM,
    Affine,
    BSplineField,
    Chain,
    DisplacementField,
    Inverse,
    grid_points,
    split_slabs,
    to_displacement_field,
)
from atlasseg.volume import Grid

ROUNDING_MM = 1e-10  # float64 through a few matrix products on coordinates of hundreds of mm
FLOAT32_MM = 2e-6  # displacements of a few mm kept as float32

OBLIQUE = np.array([[0.3, 1.1, 0.2, 93], [-1.9, 0.1, 0.1, -55], [0.1, 0.3, 1.7, 29], [0, 0, 0, 1.0]])
GRID = Grid((7, 9, 5), OBLIQUE)
SQUEEZE = Affine(np.array([[1.1, 0.1, 0, 3], [0, 0.9, -0.2, -4], [0.05, 0, 1, 2], [0, 0, 0, 1]]))


def spline(grid=GRID, spacing_mm=3.0, size_mm=0.3, seed=0):
    control = BSplineField.control_grid(grid, spacing_mm)
    return BSplineField(np.random.default_rng(seed).normal(size=(*control.shape, 3)) * size_mm, control.affine)


def field(grid=GRID, size_mm=0.5, seed=0):
    noise = np.random.default_rng(seed).normal(size=(*grid.shape, 3))
    return DisplacementField(ndimage.gaussian_filter(noise, (1.5, 1.5, 1.5, 0)) * size_mm * 4, grid.affine)


def points_around(grid, number=500, seed=1):
    """Points in and out of the grid."""
    index = np.random.default_rng(seed).uniform(-2, np.array(grid.shape) + 1, (number, 3))
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


ALL = {"affine": SQUEEZE, "field": field(), "spline": spline(), "chain": SQUEEZE @ spline() @ field()}


@pytest.mark.parametrize("transform", ALL.values(), ids=ALL)
def test_points_of_any_shape_go_where_single_points_go(transform):
    points = points_around(GRID, 24).reshape(2, 3, 4, 3)
    together = transform(points)
    assert together.shape == points.shape
    np.testing.assert_array_equal(together[1, 2, 3], transform(points[1, 2, 3]))


@pytest.mark.parametrize("transform", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    "grid",
    [
        GRID,
        Grid(
            (5, 8, 6), np.diag([1.5, -1.2, 2.0, 1]) + np.array([[0, 0, 0, 90], [0, 0, 0, -45], [0, 0, 0, 29], [0] * 4])
        ),
        Grid((9, 5, 7), OBLIQUE[:, [1, 2, 0, 3]]),  # the same axes in another order
        Grid((7, 9, 5), OBLIQUE @ np.diag([-1, 1, -1, 1.0])),  # turned about
        GRID.cropped((2, 0, 1), (6, 5, 4)),
    ],
    ids=["own", "other", "permuted", "flipped", "cropped"],
)
def test_a_grid_goes_where_its_points_go(transform, grid):
    np.testing.assert_allclose(transform.on_grid(grid), transform(grid_points(grid)), atol=FLOAT32_MM)


def test_the_last_of_a_chain_is_applied_first():
    points = points_around(GRID)
    a, b, c = SQUEEZE, spline(), field()
    np.testing.assert_array_equal((a @ b @ c)(points), a(b(c(points))))
    np.testing.assert_array_equal(Chain((a, Chain((b, c))))(points), a(b(c(points))))
    assert [type(part) for part in Chain((a, Chain((b, c)))).transforms] == [Affine, BSplineField, DisplacementField]


def test_neighbouring_affines_are_folded():
    both = SQUEEZE @ Affine.translation((1, 2, 3))
    assert isinstance(both, Affine)
    np.testing.assert_allclose(both((0, 0, 0)), SQUEEZE((1, 2, 3)), atol=ROUNDING_MM)
    assert len(((spline() @ SQUEEZE) @ (~SQUEEZE @ field())).transforms) == 3


def test_field_against_scipy():
    moved = field()
    points = points_around(GRID, 2000)
    index = (points - OBLIQUE[:3, 3]) @ np.linalg.inv(OBLIQUE[:3, :3]).T
    inside = ((index >= -0.5) & (index <= np.array(GRID.shape) - 0.5)).all(axis=1)
    within = np.clip(index, 0, np.array(GRID.shape) - 1).T
    wanted = [ndimage.map_coordinates(moved.displacement_mm[..., a].astype(float), within, order=1) for a in range(3)]
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(moved(points), points + np.where(inside, wanted, 0).T, atol=ROUNDING_MM)


def test_spline_against_itk():
    """ITK's own B-spline, made from a domain and not from our adapter: parameters x fastest, all x before all y."""
    control = BSplineField.control_grid(Grid((7, 9, 5), np.diag([1.3, 0.9, 2.1, 1.0])), 3.0)
    coefficients = np.random.default_rng(2).normal(size=(*control.shape, 3))
    ours = BSplineField(coefficients, control.affine)
    itk = sitk.BSplineTransform(3, 3)
    mesh = [n - 3 for n in control.shape]
    first = control.affine[:3, 3] + control.spacing_mm  # the domain begins one control point in
    lps = np.array([-1, -1, 1])
    itk.SetTransformDomainOrigin((first * lps).tolist())
    itk.SetTransformDomainDirection(np.diag(lps.astype(float)).ravel().tolist())
    itk.SetTransformDomainPhysicalDimensions((control.spacing_mm * mesh).tolist())
    itk.SetTransformDomainMeshSize(mesh)
    itk.SetParameters(np.concatenate([(coefficients[..., a] * lps[a]).ravel(order="F") for a in range(3)]).tolist())
    points = np.random.default_rng(3).uniform(-3, 14, (1500, 3))
    wanted = np.array([itk.TransformPoint(tuple(p)) for p in points * lps]) * lps
    moved = np.abs(wanted - points).max(axis=1) > 0
    assert 0.1 < moved.mean() < 0.9
    np.testing.assert_allclose(ours(points), wanted, atol=ROUNDING_MM)


def test_control_grid_defines_the_spline_on_every_voxel():
    for spacing in (1.0, 3.0, (2.0, 50.0, 7.0)):
        control = BSplineField.control_grid(GRID, spacing)
        ones = BSplineField(np.ones((*control.shape, 3)), control.affine)
        outer = grid_points(Grid((8, 10, 6), OBLIQUE @ np.array(Affine.translation((-0.5, -0.5, -0.5)).matrix)))
        np.testing.assert_allclose(ones(outer), outer + 1, atol=ROUNDING_MM)  # to the outer faces of the voxels
        assert (control.spacing_mm <= np.broadcast_to(spacing, 3) + ROUNDING_MM).all()


def test_refining_changes_nothing_but_the_control_grid():
    coarse = spline()
    fine = coarse.refined()
    assert fine.grid.shape == tuple(2 * n - 3 for n in coarse.grid.shape)
    points = points_around(GRID, 2000)
    np.testing.assert_allclose(fine(points), coarse(points), atol=ROUNDING_MM)


def test_sampling_keeps_the_samples_and_is_nothing_outside():
    sampled = to_displacement_field(SQUEEZE @ spline(), GRID)
    np.testing.assert_allclose(sampled(grid_points(GRID)), (SQUEEZE @ spline())(grid_points(GRID)), atol=1e-5)
    far = GRID.corners_mm + 100
    np.testing.assert_array_equal(sampled(far), far)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["field", "spline", "chain"]))
def test_inverse_takes_every_point_back(seed, kind):
    inner = Grid((40, 36, 20), OBLIQUE)
    made = {"field": field(inner, 0.5, seed), "spline": spline(inner, 9.0, 0.5, seed)}
    made["chain"] = SQUEEZE @ made["spline"] @ made["field"]
    transform = made[kind]
    index = np.random.default_rng(seed).uniform(
        6, np.array(inner.shape) - 7, (300, 3)
    )  # clear of the edge, where it jumps
    points = index @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    there = transform(points)
    assert np.abs(there - points).max() > 0.1
    np.testing.assert_allclose((~transform)(there), points, atol=20 * INVERSE_TOLERANCE_MM)
    back = (~transform)(points if kind != "chain" else there)
    np.testing.assert_allclose(transform(back), points if kind != "chain" else there, atol=4 * INVERSE_TOLERANCE_MM)


def test_the_inverse_of_an_inverse_is_the_transform_itself():
    bent = spline()
    assert isinstance(~bent, Inverse)
    assert ~~bent is bent
    assert [type(part) for part in (~(SQUEEZE @ bent)).transforms] == [Inverse, Affine]


def test_folding_is_said_in_the_log(caplog):
    index = np.indices((9, 9, 9)).transpose(1, 2, 3, 0).astype(float)
    folded = DisplacementField(-1.9 * (index - 4), np.diag([1.0, 1, 1, 1]))  # turns everything inside out, and jumps
    with caplog.at_level(logging.WARNING):
        (~folded)(np.full((3, 3), 30.0))
        assert not caplog.records  # outside nothing moves
        (~folded)(np.array([[8.4, 8.4, 8.4], [8.3, 0.1, 4.0]]))
    assert "did not converge at 2 of 2 points" in caplog.text


def test_slabs_cover_the_grid_whatever_their_size():
    for voxels in (1, 50, 10**6):
        parts = split_slabs(GRID, voxels)
        assert [n for start, stop in parts for n in range(start, stop)] == list(range(7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(np.eye(3)), "4x4"),
        (lambda: Affine(np.diag([1.0, 1, 0, 1])), "invertible"),
        (lambda: Affine(np.full((4, 4), np.nan)), "finite"),
        (lambda: Affine(np.diag([1.0, 1, 1, 2])), "0 0 0 1"),
        (lambda: DisplacementField(np.zeros((3, 4, 5)), np.eye(4)), r"\(I, J, K, 3\)"),
        (lambda: DisplacementField(np.full((3, 4, 5, 3), np.nan), np.eye(4)), "NaN"),
        (lambda: DisplacementField(np.zeros((3, 4, 5, 3)), np.zeros((4, 4))), "invertible"),
        (lambda: BSplineField(np.zeros((3, 4, 5, 3)), np.eye(4)), "at least 4"),
        (lambda: BSplineField(np.full((5, 4, 5, 3), np.inf), np.eye(4)), "infinite"),
        (lambda: SQUEEZE((1, 2)), r"\(\.\.\., 3\)"),
    ],
)
def test_what_is_no_transform_is_refused(make, message):
    with pytest.raises((InputError, GeometryError), match=message):
        make()
