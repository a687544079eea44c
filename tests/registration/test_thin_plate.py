"""Thin plate splines against SciPy's interpolator, and landmarks found against a known deformation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from atlasseg.errors import GeometryError, InputError
from atlasseg.registration import thin_plate
from atlasseg.registration._block_matching import match_blocks, select_textured_blocks
from atlasseg.registration.thin_plate import find_consistent, fit_landmarks
from atlasseg.resampling import resample
from atlasseg.transforms import Affine, DisplacementField, grid_points
from atlasseg.volume import Grid, Image, Mask

SOLVER_MM = 1e-8  # both solve a dense system of about 30 unknowns in float64, with coordinates of about 100 mm


def landmarks(count=30, seed=0, noise_mm=3.0):
    rng = np.random.default_rng(seed)
    fixed = rng.uniform((-40, -60, 200), (30, 50, 260), (count, 3))
    matrix = np.array([[1.1, 0.2, 0, 5], [-0.1, 0.9, 0.1, -300], [0, 0.2, 1.2, 40], [0, 0, 0, 1]])
    return fixed, Affine(matrix)(fixed) + rng.normal(0, noise_mm, (count, 3)), Affine(matrix), rng


@pytest.mark.parametrize("smoothing", [0.0, 0.7, 25.0])
def test_agrees_with_scipy(smoothing):
    fixed, moving, _, rng = landmarks()
    points = rng.uniform((-80, -90, 150), (80, 90, 300), (200, 3))
    expected = RBFInterpolator(fixed, moving, smoothing=smoothing, kernel="linear", degree=1)(points)
    np.testing.assert_allclose(
        fit_landmarks(fixed, moving, smoothing=smoothing)(points), expected, rtol=0, atol=SOLVER_MM
    )


def test_passes_through_every_landmark_without_smoothing():
    fixed, moving, _, _ = landmarks(60)
    np.testing.assert_allclose(fit_landmarks(fixed, moving)(fixed), moving, rtol=0, atol=SOLVER_MM)


@pytest.mark.parametrize("smoothing", [0.0, 100.0])
def test_affine_landmarks_give_the_affine_everywhere(smoothing):
    fixed, moving, affine, rng = landmarks(noise_mm=0)
    points = rng.uniform(-500, 500, (5, 7, 3))
    spline = fit_landmarks(fixed, moving, smoothing=smoothing)
    np.testing.assert_allclose(
        spline(points), affine(points), rtol=0, atol=1e-6
    )  # 500 mm away: rounding is carried out


def test_much_smoothing_is_the_least_squares_affine():
    fixed, moving, _, _ = landmarks()
    spline = fit_landmarks(fixed, moving, smoothing=1e9)
    ones = np.column_stack([fixed, np.ones(len(fixed))])
    expected = ones @ np.linalg.lstsq(ones, moving, rcond=None)[0]
    np.testing.assert_allclose(spline(fixed), expected, rtol=0, atol=1e-4)  # bent by about 30 * 60 mm / 1e9


def test_the_inverse_takes_every_point_back():
    fixed, moving, _, rng = landmarks(noise_mm=1.0)
    spline = fit_landmarks(fixed, moving, smoothing=2.0)
    points = rng.uniform((-80, -90, 150), (80, 90, 300), (3, 50, 3))
    np.testing.assert_allclose(spline((~spline)(points)), points, rtol=0, atol=2e-6)
    np.testing.assert_allclose((~spline)(spline(points)), points, rtol=0, atol=1e-5)
    assert ~~spline is spline
    chain = Affine.translation((1, 2, 3)) @ spline
    np.testing.assert_allclose((~chain)(chain(points)), points, rtol=0, atol=1e-5)


def test_where_it_folds_the_inverse_says_so(caplog):
    fixed, moving, _, _ = landmarks(8, noise_mm=0)
    mirrored = moving.copy()
    mirrored[:4] = moving[4:]  # half of the landmarks change places with the other half
    mirrored[4:] = moving[:4]
    spline = fit_landmarks(fixed, mirrored)
    corner = np.array([[-40.0, -60, 200], [30, 50, 260], [0, 0, 230]])
    found = (~spline)(spline(corner))
    missed = np.linalg.norm(spline(found) - spline(corner), axis=1)
    assert ("did not converge" in caplog.text) == bool((missed > thin_plate.INVERSE_TOLERANCE_MM).any())


def test_leaving_one_out_agrees_with_doing_it():
    fixed, moving, _, _ = landmarks(12)
    for smoothing in (0.0, 3.0):
        _, left_out_mm = thin_plate._fit(fixed, moving, smoothing)
        for i in range(len(fixed)):
            others = np.arange(len(fixed)) != i
            spline = fit_landmarks(fixed[others], moving[others], smoothing=smoothing)
            assert left_out_mm[i] == pytest.approx(np.linalg.norm(spline(fixed[i]) - moving[i]), rel=1e-6)


def test_trimming_drops_the_landmarks_that_lie():
    fixed, _, affine, rng = landmarks(150)
    moving = affine(fixed) + 4 * np.sin(fixed / 30)
    liars = rng.permutation(150)[:30]
    moving[liars] += rng.normal(0, 15, (30, 3))
    wrong_by_mm = np.linalg.norm(moving - affine(fixed) - 4 * np.sin(fixed / 30), axis=1)
    kept = find_consistent(fixed, moving, trim=0.25, smoothing=1.0)
    assert kept.sum() == 150 - 37
    assert wrong_by_mm[kept].max() < 5 < wrong_by_mm[~kept].max()


@pytest.mark.parametrize(
    ("fixed", "moving", "smoothing", "message"),
    [
        (np.eye(3), np.eye(3), 0, "at least 4"),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0, "at least 4"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [3, 2, 0]], np.ones((5, 3)), 0, "not in one plane"),
        (np.ones((5, 3)), np.ones((4, 3)), 0, "two arrays"),
        (np.ones((5, 2)), np.ones((5, 2)), 0, "two arrays"),
        (np.vstack([np.eye(3), [[0, 0, 0], [np.nan, 0, 0]]]), np.ones((5, 3)), 0, "landmark 4"),
        (np.vstack([np.eye(3), np.zeros((2, 3))]), np.ones((5, 3)), 0, "got two equal ones"),
        (np.vstack([np.eye(3), np.zeros((1, 3))]), np.ones((4, 3)), -1, "smoothing"),
    ],
)
def test_bad_landmarks_are_named(fixed, moving, smoothing, message):
    with pytest.raises(InputError, match=message):
        fit_landmarks(fixed, moving, smoothing=smoothing)


def test_blocks_are_matched_as_by_brute_force():
    rng = np.random.default_rng(4)
    fixed = rng.normal(size=(9, 11, 8)).astype(np.float32)
    moving = (3 * np.roll(fixed, (1, -2, 0), (0, 1, 2)) + rng.normal(0, 0.3, fixed.shape) + 7).astype(np.float32)
    known = np.ones(fixed.shape, bool)
    known[:, 9:] = False
    centres = np.array([[4, 5, 4], [2, 6, 3], [5, 3, 5]])
    offsets, correlations = match_blocks(fixed, moving, centres, known, radius_voxels=1, search_voxels=2)
    for centre, offset, correlation in zip(centres, offsets, correlations, strict=True):
        scores = {}
        for shift in np.ndindex(5, 5, 5):
            there = centre + np.array(shift) - 2
            if (there < 1).any() or (there + 1 >= fixed.shape).any() or there[1] + 1 >= 9:
                continue
            blocks = [a[tuple(slice(c - 1, c + 2) for c in at)] for a, at in ((fixed, centre), (moving, there))]
            scores[tuple(np.array(shift) - 2)] = np.corrcoef(blocks[0].ravel(), blocks[1].ravel())[0, 1]
        best = max(scores, key=scores.get)
        assert correlation == pytest.approx(scores[best], abs=1e-6)
        assert np.abs(offset - best).max() <= 0.5  # refined within half a voxel
    assert np.abs(offsets - (1, -2, 0)).max() <= 0.5


def test_blocks_have_texture_and_lie_where_they_may():
    rng = np.random.default_rng(1)
    image = np.zeros((20, 24, 18), np.float32)
    image[10:] = rng.normal(size=(10, 24, 18))
    allowed = np.zeros(image.shape, bool)
    allowed[:, :12] = True
    centres = select_textured_blocks(image, allowed, count=20, radius_voxels=2)
    assert 10 <= len(centres) <= 40
    assert (centres[:, 0] >= 8).all() and (centres[:, 1] < 12).all()
    assert (centres >= 2).all() and (centres < np.array(image.shape) - 2).all()
    assert len(select_textured_blocks(np.zeros_like(image), allowed, count=20, radius_voxels=2)) == 0


def texture(grid, seed=5):
    """A smooth random image of a known formula, so that no interpolation is needed to see it deformed."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(0, 0.35, (25, 3)), rng.uniform(0, 6, 25)
    return lambda points: np.sin(points @ waves.T + phases).sum(-1).astype(np.float32), grid_points(grid)


def test_a_known_deformation_is_found_again():
    affine = np.array([[-1.0, 0.1, 0, 20], [0.1, 1.2, 0, -12], [0, 0, 1.1, 90], [0, 0, 0, 1]])
    grid = Grid((26, 30, 22), affine)
    image, points = texture(grid)
    bend = np.zeros((*grid.shape, 3), np.float32)
    bend[..., 1] = 2.5 * np.sin(points[..., 0] / 8)
    bend[..., 2] = 1.5
    truth = DisplacementField(bend, affine)
    fixed, moving = Image(image(truth(points)), affine), Image(image(points) * 4 + 100, affine)
    (found,) = thin_plate.register(
        fixed, [moving], initial=[Affine.identity()], levels=(1.0, 1.0), landmarks=250, smoothing=2.0
    )
    inner = (slice(4, -4),) * 3
    error_mm = np.linalg.norm(found(points) - truth(points), axis=-1)[inner]
    before_mm = np.linalg.norm(points - truth(points), axis=-1)[inner]
    assert np.median(error_mm) < 0.25 < 2 < np.median(before_mm)
    assert np.corrcoef(resample(moving, grid, found).array[inner].ravel(), fixed.array[inner].ravel())[0, 1] > 0.95


def test_a_constant_image_keeps_its_start_and_bad_requests_are_named(caplog):
    grid = Grid((12, 13, 11), np.diag([1, 1.5, 1, 1]))
    fixed = Image(texture(grid)[0](grid_points(grid)), grid.affine)
    flat = Image(np.ones(grid.shape), grid.affine, name="flat")
    start = Affine.translation((1, 0, 0))
    assert thin_plate.register(fixed, [flat], initial=[start], levels=(1.0,)) == [start]
    assert "flat: only 0 blocks" in caplog.text
    with pytest.raises(InputError, match="trim"):
        thin_plate.register(fixed, [flat], initial=[start], trim=1.0)
    with pytest.raises(InputError, match=r"per moving image \(1\)"):
        thin_plate.register(fixed, [flat], initial=[start, start])
    with pytest.raises(InputError, match="empty"):
        thin_plate.register(fixed, [flat], initial=[start], fixed_mask=Mask(np.zeros(grid.shape, bool), grid.affine))
    with pytest.raises(GeometryError, match="flat"):
        thin_plate.register(
            fixed, [flat], initial=[start], moving_masks=[Mask(np.ones((3, 4, 5), bool), np.eye(4), "flat")]
        )
