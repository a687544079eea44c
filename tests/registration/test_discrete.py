"""The descriptor and the discrete search against plain NumPy, and a large known deformation found again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from atlasseg.errors import GeometryError, InputError
from atlasseg.registration import _discrete, coupled_convex
from atlasseg.registration._mind import PAIRS, mind_ssc
from atlasseg.threads import run_slices
from atlasseg.transforms import Affine, DisplacementField, grid_points
from atlasseg.volume import Grid, Image, Mask

FLOAT32 = 2e-5  # sums of some dozens of float32 numbers of order 1


def mind_in_numpy(image, radius, dilation):
    def shifted(offset):
        padded = np.pad(image.astype(float), dilation, mode="edge")
        return padded[
            tuple(
                slice(dilation + o * dilation, dilation + o * dilation + n)
                for o, n in zip(offset, image.shape, strict=True)
            )
        ]

    differences = np.stack(
        [
            ndimage.uniform_filter((shifted(a) - shifted(b)) ** 2, 2 * radius + 1, mode="nearest")
            for a, b in PAIRS.tolist()
        ],
        axis=-1,
    )
    differences -= differences.min(-1, keepdims=True)
    variance = differences.mean(-1, keepdims=True)
    return np.exp(-differences / np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean()))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_the_descriptor_is_that_of_plain_numpy(radius, dilation):
    image = np.random.default_rng(0).normal(size=(7, 9, 5)).astype(np.float32)
    found = mind_ssc(image, radius_voxels=radius, dilation_voxels=dilation)
    np.testing.assert_allclose(found, mind_in_numpy(image, radius, dilation), atol=FLOAT32)


def test_the_descriptor_compares_the_twelve_pairs_that_share_an_edge():
    assert PAIRS.shape == (12, 2, 3)
    assert len({frozenset(map(tuple, pair)) for pair in PAIRS.tolist()}) == 12
    assert (np.abs(PAIRS).sum(-1) == 1).all()
    assert (((PAIRS[:, 0] - PAIRS[:, 1]) ** 2).sum(-1) == 2).all()


def test_the_descriptor_does_not_see_scale_shift_or_inversion():
    image = np.random.default_rng(1).normal(size=(8, 6, 9)).astype(np.float32)
    np.testing.assert_allclose(mind_ssc(5 - 3 * image), mind_ssc(image), atol=1e-4)
    assert (mind_ssc(np.full((4, 5, 6), 7, np.float32)) == 1).all()


def costs_in_numpy(fixed, moving, fixed_known, moving_known, radius):
    shape, offsets = fixed.shape[:3], list(np.ndindex((2 * radius + 1,) * 3))
    raw = np.zeros((*shape, len(offsets)))
    for x in np.argwhere(fixed_known):
        there = [x + np.array(o) - radius for o in offsets]
        usable = [bool(((y >= 0) & (y < shape)).all() and moving_known[tuple(y)]) for y in there]
        values = np.array(
            [
                ((fixed[tuple(x)] - moving[tuple(y)]) ** 2).sum() if u else np.nan
                for y, u in zip(there, usable, strict=True)
            ]
        )
        raw[tuple(x)] = np.where(usable, values, np.nanmean(values) if any(usable) else 0)
    total = ndimage.uniform_filter(raw, (3, 3, 3, 1), mode="constant")
    weight = ndimage.uniform_filter(fixed_known.astype(float), 3, mode="constant")[..., None]
    return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), 0)


def test_the_costs_are_those_of_plain_numpy():
    rng = np.random.default_rng(2)
    fixed, moving = rng.random((2, 5, 6, 4, 3)).astype(np.float32)
    fixed_known, moving_known = rng.random((2, 5, 6, 4)) > 0.3
    fixed_known[:2, :2] = False
    found = _discrete.compute_costs(fixed, moving, fixed_known, moving_known, 2)
    np.testing.assert_allclose(found, costs_in_numpy(fixed, moving, fixed_known, moving_known, 2), atol=FLOAT32)


def test_a_node_takes_what_is_best_for_cost_and_pull():
    rng = np.random.default_rng(3)
    radius, shape = 1, (3, 4, 5)
    cost = rng.random((*shape, 27)).astype(np.float32)
    field = rng.normal(0, 0.5, (*shape, 3)).astype(np.float32)
    steps = np.array(list(np.ndindex(3, 3, 3))) - radius
    total = cost + 0.4 * ((steps - field[..., None, :]) ** 2).sum(-1)
    known = rng.random(shape) > 0.3
    expected = np.where(known[..., None], steps[total.argmin(-1)], field)
    best, ties = field.copy(), field.copy()
    run_slices(_discrete._find_best, len(cost), cost, field, known, 0.4, radius, best)
    np.testing.assert_array_equal(best, expected)
    run_slices(_discrete._find_best, len(cost), np.zeros_like(cost), field, np.ones_like(known), 0.0, radius, ties)
    assert not ties.any()  # they go to no displacement


def test_smoothing_runs_on_beyond_what_is_known():
    field = np.zeros((9, 4, 5, 3), np.float32)
    reached = np.zeros((9, 4, 5), bool)
    field[:3], reached[:3] = (1, -2, 0.5), True
    once, reached_now = _discrete.smooth_known(field, reached)
    assert reached_now[:4].all() and not reached_now[4:].any()
    np.testing.assert_allclose(once[:4], field[:1].repeat(4, 0), atol=1e-6)
    assert not once[4:].any()
    noise = np.random.default_rng(1).normal(size=field.shape).astype(np.float32)
    inner = (slice(1, -1),) * 3
    expected = ndimage.uniform_filter(noise, (3, 3, 3, 1))[inner]
    np.testing.assert_allclose(_discrete.smooth_known(noise, np.ones_like(reached))[0][inner], expected, atol=FLOAT32)


def test_opposite_fields_are_left_as_they_are_and_contradictions_are_halved_away():
    forward = np.zeros((7, 6, 8, 3), np.float32)
    forward[..., 1] = 0.75
    for backward, expected in ((-forward, forward), (forward, 0 * forward)):
        found = _discrete.make_inverse_consistent(forward, backward)
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_a_large_shift_is_found_whatever_the_contrast():
    rng = np.random.default_rng(6)
    scene = ndimage.gaussian_filter(rng.normal(size=(40, 44, 38)), 2).astype(np.float32)
    known = np.ones((32, 36, 30), bool)
    fixed, moving = scene[4:36, 4:40, 4:34], 1 - 5 * scene[1:33, 6:42, 4:34]
    found = _discrete.search(mind_ssc(fixed), mind_ssc(moving), fixed_known=known, moving_known=known, radius_nodes=4)
    inner = found[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(inner, np.broadcast_to((3, -2, 0), inner.shape), atol=0.1)


def scene(grid, truth=None):
    """A smooth random image of a known formula, seen through a transform."""
    rng = np.random.default_rng(8)
    waves, phases = rng.normal(0, 0.22, (40, 3)), rng.uniform(0, 6, 40)
    points = grid_points(grid) if truth is None else truth(grid_points(grid))
    return np.sin(points @ waves.T + phases).sum(-1)


def test_a_large_known_deformation_is_found_again_on_another_grid_through_a_start():
    affine = np.array([[-1.0, 0.1, 0, 20], [0.1, 1.2, 0, -12], [0, 0, 1.1, 90], [0, 0, 0, 1]])
    grid = Grid((40, 36, 34), affine)
    other = Grid((46, 54, 46), np.array([[1.1, 0, 0, -23], [0, -1.1, 0, 43], [0, 0, 1, 88], [0, 0, 0, 1]]))
    bend = np.zeros((*grid.shape, 3), np.float32)
    bend[..., 1] = 6 * np.sin(grid_points(grid)[..., 0] / 14)
    bend[..., 2] = 4
    truth = Affine.translation((0, 3, 0)) @ DisplacementField(bend, affine)
    fixed, moving = Image(scene(grid, truth), affine), Image(7 - scene(other), other.affine)
    (found,) = coupled_convex.register(
        fixed, [moving], initial=[Affine.translation((0, 3, 0))], node_voxels=(3.0, 3.0), radius_nodes=3
    )
    points = grid_points(grid)[5:-5, 5:-5, 5:-5]
    error_mm = np.linalg.norm(found(points) - truth(points), axis=-1)
    start_mm = np.linalg.norm(Affine.translation((0, 3, 0))(points) - truth(points), axis=-1)
    assert np.median(error_mm) < 0.8 < 5 < np.median(start_mm)  # nodes are 3 mm apart


def test_masks_outside_which_all_is_noise_do_no_harm():
    rng = np.random.default_rng(9)
    grid = Grid((36, 34, 32), np.diag([1, 1.1, 0.9, 1]))
    truth = Affine.translation((0, 4, -3))
    inside = np.zeros(grid.shape, bool)
    inside[:, :22] = True
    noisy = np.where(inside, scene(grid, truth), rng.normal(0, 9, grid.shape))
    (found,) = coupled_convex.register(
        Image(noisy, grid.affine),
        [Image(scene(grid), grid.affine)],
        initial=[Affine.identity()],
        fixed_mask=Mask(inside, grid.affine),
        moving_masks=[None],
        node_voxels=(3.0,),
    )
    points = grid_points(grid)[6:-6, 6:18, 6:-6]
    assert np.median(np.linalg.norm(found(points) - truth(points), axis=-1)) < 0.6  # nodes are 3 mm apart


def test_bad_requests_are_named_and_no_overlap_keeps_the_start(caplog):
    grid = Grid((12, 13, 11), np.diag([1, 1.5, 1, 1]))
    fixed, moving = Image(scene(grid), grid.affine), Image(scene(grid), grid.affine, name="far")
    away = Affine.translation((1000, 0, 0))
    assert coupled_convex.register(fixed, [moving], initial=[away]) == [away]
    assert "far: no overlap with the fixed image" in caplog.text
    with pytest.raises(InputError, match="radius_nodes"):
        coupled_convex.register(fixed, [moving], initial=[away], radius_nodes=0)
    with pytest.raises(InputError, match=r"per moving image \(1\)"):
        coupled_convex.register(fixed, [moving], initial=[away, away])
    mask = Mask(np.ones((3, 4, 5), bool), np.eye(4))
    with pytest.raises(GeometryError, match="far"):
        coupled_convex.register(fixed, [moving], initial=[away], moving_masks=[mask])
