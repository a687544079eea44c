"""The compiled inner loops against NumPy, SciPy and the plain measures; gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import expm

from atlasseg.registration._engine import bspline, fields, freeform, linear
from atlasseg.registration._engine.pyramid import SUPPORT, VALID, Level, resample_field
from atlasseg.similarity import create_metric
from atlasseg.similarity._local_correlation_numba import lncc_gradient
from atlasseg.similarity.local_correlation import LocalCorrelation
from atlasseg.threads import limit_threads, run_slices
from atlasseg.transforms import Affine
from atlasseg.volume import Grid

FLOAT32 = 2e-6
"""Relative to the largest value: a few dozen roundings of float32."""

CHAINED: tuple[str, ...] = ("local_correlation", "correlation", "mean_squares")
"""Those whose derivative in the warped image is the whole one: the bins of a histogram move with the image's range."""

EVERYWHERE = np.zeros((0, 0, 0), np.uint8)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def smooth_image(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.ascontiguousarray(ndimage.gaussian_filter(noise(shape, seed), 1.2) * 4, dtype=np.float32)


def whole(field: np.ndarray) -> np.ndarray:
    return fields.find_row_spans(np.ones(field.shape[:3], bool), (0, 0, 0))


def level(image: np.ndarray, affine: np.ndarray, valid: np.ndarray | None = None) -> Level:
    mask = np.full(image.shape, VALID, np.uint8)
    if valid is not None:
        near = ndimage.binary_dilation(valid, np.ones((3, 3, 3)))
        mask = np.where(valid, VALID, np.where(near, SUPPORT, 0)).astype(np.uint8)
    return Level((image,), affine, mask, (1.0,))


OBLIQUE = np.array([[0.9, 0.1, 0.05, -7.0], [-0.12, 1.1, 0.0, 3.0], [0.0, 0.1, 1.7, 20.0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("shape", [(7, 9, 5), (37, 50, 21)])
def test_fused_local_correlation_is_the_plain_one(radius: int, shape: tuple[int, int, int]) -> None:
    fixed, other = noise(shape), noise(shape, 1)
    warped = fixed + other
    mask = np.random.default_rng(2).random(shape) < 0.9
    mask[:, :, :2] = False
    value, gradient, curvature = lncc_gradient(fixed, warped, mask.astype(np.float32), radius_voxels=radius)
    wanted, slope = LocalCorrelation(radius).value_and_gradient(fixed, warped, mask=mask)
    assert value == pytest.approx(wanted, abs=FLOAT32)
    np.testing.assert_allclose(gradient / mask.sum(), slope, atol=10 * FLOAT32 * np.abs(slope).max())
    assert (curvature[mask] >= 0).all() and not curvature[~mask].any()


def test_no_voxel_no_similarity() -> None:
    image = noise((5, 6, 7))
    value, gradient, _ = lncc_gradient(image, image, np.zeros_like(image))
    assert value == 0 and not gradient.any()


def test_warp_is_scipys_linear_interpolation() -> None:
    moving, field = noise((9, 7, 8), 3), noise((6, 9, 7, 3), 4)
    matrix = np.array([[0.9, 0.2, 0, 0.4], [-0.1, 0.8, 0.1, 0.3], [0.1, 0, 1.1, -0.5]])
    warped, weight = np.empty((6, 9, 7), np.float32), np.empty((6, 9, 7), np.float32)
    everywhere = np.full(warped.shape, VALID, np.uint8)
    run_slices(fields.warp, len(warped), moving, EVERYWHERE, everywhere, matrix, field, warped, weight)
    x = np.moveaxis(np.indices(warped.shape), 0, -1) + field
    at = np.moveaxis(x @ matrix[:, :3].T + matrix[:, 3], -1, 0)
    np.testing.assert_allclose(warped, ndimage.map_coordinates(moving, at, order=1, mode="nearest"), atol=2e-5)
    last = np.array(moving.shape)[:, None, None, None] - 1
    margin = np.minimum(at + 0.5, last + 0.5 - at).min(axis=0)
    sure = np.abs(margin) > 1e-4  # on the very edge float32 decides
    np.testing.assert_array_equal(weight[sure], (margin > 0)[sure])
    assert 0 < weight.mean() < 1


def test_smoothing_is_scipys() -> None:
    field = noise((13, 11, 12, 3), 5)
    out, scratch = np.empty_like(field), np.empty_like(field)
    fields.smooth(field, (1.7, 0.7, 1.1), out, scratch, whole(field))
    for c in range(3):
        wanted = field[..., c].astype(float)
        for axis, sigma in enumerate((1.7, 0.7, 1.1)):
            wanted = ndimage.correlate1d(wanted, fields.make_gaussian_taps(sigma).astype(float), axis, mode="nearest")
        np.testing.assert_allclose(out[..., c], wanted, atol=1e-6)


def test_smoothing_within_the_reach_of_what_is_not_zero_changes_no_bit() -> None:
    inside = np.zeros((15, 14, 16), bool)
    inside[6:8, 5:9, 7] = inside[13, 2, 14] = True
    field = np.where(inside[..., None], noise((15, 14, 16, 3), 5), np.float32(0))
    sigma = (0.7, 1.1, 0.5)
    reach = [fields.make_gaussian_taps(s).size // 2 for s in sigma]
    spans = fields.find_row_spans(inside, reach)
    assert 0 < (spans[..., 1] - spans[..., 0]).sum() < 0.3 * inside.size
    wanted, found, scratch = np.empty_like(field), np.zeros_like(field), np.zeros_like(field)
    fields.smooth(field, sigma, wanted, np.empty_like(field), whole(field))
    fields.smooth(field, sigma, found, scratch, spans)
    np.testing.assert_array_equal(found, wanted)


def test_composition_applies_the_step_first() -> None:
    field, step = noise((8, 9, 7, 3), 6), noise((8, 9, 7, 3), 7)
    out = np.empty_like(field)
    run_slices(fields.compose, len(out), field, step, 0.3, out)
    at = np.moveaxis(np.moveaxis(np.indices((8, 9, 7)), 0, -1) + 0.3 * step, -1, 0)
    for c in range(3):
        wanted = ndimage.map_coordinates(field[..., c], at, order=1, mode="nearest") + 0.3 * step[..., c]
        np.testing.assert_allclose(out[..., c], wanted, atol=1e-5)


def test_force_is_the_derivative_for_a_step_before_the_warp() -> None:
    warped, gradient = noise((6, 5, 7), 8), noise((6, 5, 7), 9)
    out = np.empty((6, 5, 7, 3), np.float32)
    scale = np.array([1.0, 0.5, 2.0])
    run_slices(fields.metric_gradient, len(out), gradient, warped, scale, False, whole(out), out)
    padded = np.pad(warped, 1, mode="edge").astype(float)
    for axis in range(3):
        inner = [slice(1, -1)] * 3
        ends = []
        for sign in (1, -1):
            inner[axis] = slice(2, None) if sign == 1 else slice(0, -2)
            ends.append(padded[tuple(inner)])
        np.testing.assert_allclose(out[..., axis], scale[axis] * gradient * (ends[0] - ends[1]) / 2, atol=1e-5)
    twice = out.copy()
    run_slices(fields.metric_gradient, len(out), gradient, warped, scale, True, whole(out), twice)
    np.testing.assert_allclose(twice, 2 * out, rtol=1e-6)


@pytest.mark.parametrize("metric", CHAINED)
def test_similarity_gradient_in_the_displacement_is_exact(metric: str) -> None:
    inner = np.zeros((9, 11, 8), bool)
    inner[2:-2, 2:-2, 2:-2] = True  # no voxel leaves the field of view
    fixed = level(smooth_image((9, 11, 8), 1), OBLIQUE, inner)
    moving = level(smooth_image((10, 12, 11), 2), OBLIQUE)
    field = 0.3 * noise((9, 11, 8, 3), 3)

    def at(field: np.ndarray) -> tuple[float, np.ndarray]:
        return freeform.similarity(fixed, moving, np.eye(4), field, create_metric(metric), False)

    value, slope = at(field)
    # Small: linear interpolation has kinks. Not across the slope: values are float32 sums.
    direction = 1e-3 * (noise(field.shape, 4) + 3 * np.sign(slope))
    ends = [at(field + s * direction)[0] for s in (1, -1)]
    wanted = (ends[0] - ends[1]) / 2
    assert value > 0 if metric == "local_correlation" else value != 0
    # Kinks are crossed by a few voxels.
    assert float((slope * direction).sum()) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("metric", CHAINED)
def test_linear_fit_has_the_derivative_it_says(metric: str) -> None:
    i, j, k = np.indices((24, 22, 20), dtype=np.float64)
    blobs = np.zeros((24, 22, 20))
    for a, b, c, s in ((8, 9, 10, 4), (15, 12, 8, 5), (11, 15, 13, 3)):
        blobs += np.exp(-((i - a) ** 2 + (j - b) ** 2 + (k - c) ** 2) / (2 * s**2))
    inner = np.zeros(blobs.shape, bool)
    inner[4:-4, 4:-4, 4:-4] = True  # no voxel leaves the field of view
    fixed = level(blobs.astype(np.float32), OBLIQUE, inner)
    moving = level(np.roll(blobs, 1, 0).astype(np.float32) ** 2, OBLIQUE)
    inverse = np.linalg.inv(OBLIQUE)
    at = linear.fit(fixed, moving, np.eye(4), create_metric(metric), known=False)
    for row, column, step in ((0, 3, 0.05), (1, 0, 2e-3), (2, 2, 2e-3)):
        ends = []
        for sign in (1, -1):
            motion = np.eye(4)
            motion[row, column] += sign * step
            moved = linear.fit(fixed, moving, OBLIQUE @ motion @ inverse, create_metric(metric), known=False)
            ends.append(moved.value * inner.sum())
        # The slope of the image is a central difference, good to second order on these blobs.
        assert at.gradient[row, column] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05)


def test_exponential_is_scipys() -> None:
    for scale in (1e-3, 1.0, 10.0):
        matrix = scale * np.random.default_rng(0).normal(size=(4, 4))
        matrix[3] = 0
        np.testing.assert_allclose(linear.exponential(matrix), expm(matrix), rtol=1e-9, atol=1e-9)


def test_spline_products_are_the_transforms_and_adjoint() -> None:
    grid = Grid((11, 9, 14), OBLIQUE)
    lattice = freeform.Lattice(grid, (4, 3, 5))
    coefficients = noise((7, 6, 8, 3), 1)
    here = level(np.zeros(grid.shape, np.float32), OBLIQUE)
    field = bspline.apply_matrices(lattice.matrices(here), coefficients)
    moved = lattice.transform(coefficients).on_grid(grid) - Affine.identity().on_grid(grid)
    np.testing.assert_allclose(field @ OBLIQUE[:3, :3].T, moved, atol=1e-4)
    other = noise(field.shape, 2)
    back = bspline.apply_matrices(bspline.transpose_all(lattice.matrices(here)), other)
    assert float((field * other).sum()) == pytest.approx(float((coefficients * back).sum()), rel=1e-4)


def test_refined_lattice_holds_the_same_spline() -> None:
    at = np.linspace(0, 5, 41)
    coarse = noise((8,), 3)
    fine = bspline.make_refinement(5) @ coarse
    np.testing.assert_allclose(
        bspline.evaluate_basis(2 * at, 10) @ fine, bspline.evaluate_basis(at, 5) @ coarse, atol=1e-5
    )


def test_bending_energy_is_the_integral_of_squared_second_derivatives() -> None:
    intervals, spacing = (3, 4, 2), (2.0, 1.5, 3.0)
    coefficients = noise((6, 7, 5, 3), 4)
    gram = [bspline.compute_grams(n, s) for n, s in zip(intervals, spacing, strict=True)]
    energy, gradient = bspline.bending(coefficients, gram)
    points = 24  # midpoint rule: error falls with points^-2
    at = [(np.arange(n * points) + 0.5) / points for n in intervals]
    wanted = 0.0
    for a in range(3):
        for b in range(3):
            orders = np.bincount([a, b], minlength=3)
            scale = np.prod([s**o for s, o in zip(spacing, orders, strict=True)])
            matrices = [bspline.evaluate_basis(x, n, o) for x, n, o in zip(at, intervals, orders, strict=True)]
            wanted += float(np.mean(np.sum((bspline.apply_matrices(matrices, coefficients) / scale) ** 2, axis=-1)))
    assert energy == pytest.approx(wanted, rel=2e-3)
    direction = noise(coefficients.shape, 5)
    ends = [bspline.bending((coefficients + s * 0.5 * direction).astype(np.float32), gram)[0] for s in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx(ends[0] - ends[1], rel=1e-3)  # quadratic: exact


@pytest.mark.parametrize("size", [0.1, 0.8])  # 0.8 folds
def test_folding_penalty_has_the_derivative_it_says(size: float) -> None:
    coefficients, direction = size * noise((6, 7, 5, 3), 6), noise((6, 7, 5, 3), 7)
    _, gradient = bspline.folding(coefficients, (3, 4, 2))
    step = np.float32(1e-3)
    ends = [bspline.folding(coefficients + s * step * direction, (3, 4, 2))[0] for s in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * float(step)), rel=0.02)
    assert bspline.folding(np.zeros_like(coefficients), (3, 4, 2))[0] == 0


def test_fields_go_between_levels_and_keep_their_millimetres() -> None:
    coarse_affine = OBLIQUE @ np.diag([2, 2, 1, 1.0])
    coarse_affine[:3, 3] += OBLIQUE[:3, :3] @ [0.5, 0.5, 0]
    fine, coarse = (
        level(np.zeros((8, 10, 6), np.float32), OBLIQUE),
        level(np.zeros((4, 5, 6), np.float32), coarse_affine),
    )
    ramp = np.zeros((8, 10, 6, 3), np.float32)
    ramp[..., 1] = np.arange(10)[None, :, None]
    down = resample_field(ramp, fine, coarse)
    np.testing.assert_allclose(
        down[..., 1], (np.arange(5)[None, :, None] * 2 + 0.5) / 2 * np.ones((4, 1, 6)), rtol=1e-6
    )
    up = resample_field(down, coarse, fine)
    np.testing.assert_allclose(up[:, 1:9], ramp[:, 1:9], atol=1e-5)  # beyond the coarse centres the edge is repeated


def test_kernels_give_the_same_bits_for_any_number_of_threads() -> None:
    fixed, warped, weight = noise((40, 30, 20)), noise((40, 30, 20), 1), np.ones((40, 30, 20), np.float32)
    results = []
    for threads in (1, 3):
        with limit_threads(threads):
            value, gradient, _ = lncc_gradient(fixed, warped, weight)
        results.append((value, gradient.tobytes()))
    assert len(set(results)) == 1
