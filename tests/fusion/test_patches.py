"""Patch search against brute force, one patch at a time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from atlasseg.errors import InputError
from atlasseg.fusion._patches import MAX_TILE, find_nearest_patches, list_offsets, split_into_tiles
from atlasseg.threads import limit_threads

SHAPE = (7, 9, 5)
ROUNDING = 1e-9
"""Scores are sums of at most 125 products in double precision, of numbers up to 1e3."""


def patches(channels, radius):
    """(I, J, K, C, P) every patch, the outermost voxels repeated beyond the edge."""
    padded = np.pad(channels.astype(float), [(0, 0)] + [(r, r) for r in radius], mode="edge")
    windows = sliding_window_view(padded, tuple(2 * r + 1 for r in radius), axis=(1, 2, 3))
    return np.moveaxis(windows, 0, 3).reshape(*channels.shape[1:], channels.shape[0], -1)


def score(t, a, measure):
    if measure == "ssd":
        return -((t - a) ** 2).sum()
    pairs = [(u, v) for u, v in zip(t, a, strict=True) if np.ptp(u) > 0 and np.ptp(v) > 0]
    return sum(np.corrcoef(u, v)[0, 1] for u, v in pairs)


def best_patches(target, candidates, where, *, measure="correlation", inside=None, **radii):
    """The best patch of each candidate, a column each, as joint label fusion looks for it."""
    inside = inside or [None] * len(candidates)
    found = [
        find_nearest_patches(target, [candidate], where, count=1, measure=measure, inside=[seen], **radii)
        for candidate, seen in zip(candidates, inside, strict=True)
    ]
    chosen, scores = (np.hstack([getattr(each, name) for each in found]) for name in ("chosen", "scores"))
    return replace(found[0], chosen=chosen, scores=scores)


def ranked(target, candidates, where, patch, window, measure, inside):
    """For each voxel, all (score, candidate, offset), best first, earlier ones first among equals."""
    t = patches(target, patch)
    a = [patches(candidate, patch) for candidate in candidates]
    offsets = list_offsets(window)
    out = []
    for x in np.argwhere(where):
        found = []
        for n in range(len(candidates)):
            for o, offset in enumerate(offsets):
                y = tuple(x + offset)
                if min(y) >= 0 and all(y < np.array(where.shape)) and (inside[n] is None or inside[n][y]):
                    found.append((score(t[tuple(x)], a[n][y], measure), n, o))
        out.append(sorted(found, key=lambda each: (-round(each[0], 9), each[1], each[2])))
    return out


def scene(channels=1, count=2, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.normal(500, 100, (channels, *shape)).astype(np.float32)
    target[:, :4, :4, :4] = 700  # a corner without contrast
    candidates = [rng.normal(3, 1, (channels, *shape)).astype(np.float32) * 200 for _ in range(count)]
    where = rng.random(shape) < 0.4
    where[1, 1, 1] = True
    inside = [None] + [rng.random(shape) < 0.7 for _ in range(count - 1)]
    return target, candidates, where, inside


@pytest.mark.parametrize("measure", ["correlation", "ssd"])
@pytest.mark.parametrize(
    ("channels", "patch", "window"), [(1, (2, 2, 2), (1, 1, 1)), (2, (1, 1, 1), (1, 1, 1)), (2, (0, 2, 1), (2, 1, 0))]
)
def test_best_patches_are_those_of_brute_force(measure, channels, patch, window):
    target, candidates, where, inside = scene(channels)
    got = best_patches(
        target,
        candidates,
        where,
        patch_radius_voxels=patch,
        search_radius_voxels=window,
        measure=measure,
        inside=inside,
    )
    assert (got.voxels == np.flatnonzero(where)).all()
    for n in range(2):
        wanted = ranked(target, candidates[n : n + 1], where, patch, window, measure, inside[n : n + 1])
        assert [each[0][2] if each else -1 for each in wanted] == got.chosen[:, n].tolist()
        best = np.array([each[0][0] if each else -np.inf for each in wanted])
        np.testing.assert_allclose(got.scores[:, n], best, rtol=ROUNDING, atol=ROUNDING * np.abs(best[0]))


@pytest.mark.parametrize("measure", ["correlation", "ssd"])
def test_nearest_patches_are_those_of_brute_force(measure):
    target, candidates, where, inside = scene(count=3)
    got = find_nearest_patches(
        target,
        candidates,
        where,
        count=5,
        patch_radius_voxels=1,
        search_radius_voxels=1,
        measure=measure,
        inside=inside,
    )
    wanted = ranked(target, candidates, where, (1, 1, 1), (1, 1, 1), measure, inside)
    flat = got.scores[:, 0] == got.scores[:, -1]  # without contrast all are equal, in the order of candidate and offset
    for row, each in enumerate(wanted):
        assert got.candidate[row].tolist() == [n for _, n, _ in each[:5]]
        assert got.chosen[row].tolist() == [o for _, _, o in each[:5]]
        np.testing.assert_allclose(got.scores[row], [s for s, _, _ in each[:5]], rtol=ROUNDING, atol=ROUNDING)
    assert flat.any() == (measure == "correlation")


def test_fewer_patches_than_asked_for_are_marked():
    target, candidates, where, _ = scene(count=1)
    got = find_nearest_patches(target, candidates, where, count=3, patch_radius_voxels=1, search_radius_voxels=0)
    assert (got.candidate == [0, -1, -1]).all() and (got.chosen == [0, -1, -1]).all()
    assert np.isneginf(got.scores[:, 1:]).all() and np.isfinite(got.scores[:, 0]).all()


def test_a_candidate_out_of_reach_has_no_patch():
    target, candidates, where, _ = scene(count=2)
    nowhere = np.zeros(SHAPE, bool)
    got = best_patches(target, candidates, where, inside=[nowhere, None])
    assert (got.chosen[:, 0] == -1).all() and np.isneginf(got.scores[:, 0]).all()
    assert (got.chosen[:, 1] >= 0).all()


def test_of_equal_patches_the_nearest_wins():
    i, j, k = np.indices((12, 9, 10))
    stripes = ((i % 2) * 3 + (j % 2) + (k % 2) * 7.0).astype(np.float32)[None]
    same = best_patches(stripes, [stripes], np.ones(stripes.shape[1:], bool), patch_radius_voxels=1)
    assert (same.chosen == 0).all()
    moved = np.roll(stripes, 1, axis=2)
    where = np.zeros(stripes.shape[1:], bool)
    where[4:8, 4:6, 4:6] = True
    found = best_patches(stripes, [moved], where, patch_radius_voxels=1)
    assert (found.offsets[found.chosen[:, 0]] == [0, -1, 0]).all()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_large_offset_of_the_intensities_does_not_hide_the_best_patch(offset):
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 64, (13, 11, 12))  # whole numbers: float32 keeps them beside the offset
    target = (texture + offset).astype(np.float32)[None]
    candidate = (3 * np.roll(texture, (1, -2, 0), axis=(0, 1, 2)) + offset).astype(np.float32)[None]
    where = np.zeros(texture.shape, bool)
    where[5:8, 5:6, 5:7] = True
    found = best_patches(target, [candidate], where)
    assert (found.offsets[found.chosen[:, 0]] == [1, -2, 0]).all()
    np.testing.assert_allclose(found.scores, 1, atol=1e-4)  # 12 of double's 16 digits go with the square of the offset


def test_an_outlier_disturbs_only_the_patches_that_hold_it():
    target, candidates, _, _ = scene(count=1, shape=(9, 8, 17))
    spoiled = candidates[0].copy()
    spoiled[0, 0, 0, 0] = 1e15
    where = np.zeros(target.shape[1:], bool)
    where[2:, :, 5:] = True  # patches and window of radius 1 and 2 do not reach the outlier
    clean, other = (
        best_patches(target, [each], where, patch_radius_voxels=1, search_radius_voxels=(2, 2, 3))
        for each in (candidates[0], spoiled)
    )
    assert (clean.chosen == other.chosen).all()
    np.testing.assert_allclose(clean.scores, other.scores, rtol=ROUNDING)


def test_the_number_of_threads_changes_nothing():
    target, candidates, where, inside = scene(shape=(31, 29, 27), seed=5)
    answers = []
    for threads in (1, 3):
        with limit_threads(threads):
            answers.append(best_patches(target, candidates, where, inside=inside))
    for answer in answers[1:]:
        assert answer.scores.tobytes() == answers[0].scores.tobytes()
        assert answer.chosen.tobytes() == answers[0].chosen.tobytes()


def test_offsets_grow():
    offsets = list_offsets((1, 2, 0))
    assert offsets.shape == (15, 3)
    assert offsets[0].tolist() == [0, 0, 0]
    lengths = (offsets**2).sum(axis=1)
    assert (np.diff(lengths) >= 0).all()
    assert len(set(map(tuple, offsets))) == 15


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 70)),
    st.floats(0.0, 1.0),
    st.integers(0, 1000),
)
def test_tiles_hold_every_voxel_once(shape, share, seed):
    rng = np.random.default_rng(seed)
    where = rng.random(shape) < share**4  # often sparse
    held = np.zeros(shape, int)
    for start, stop in split_into_tiles(where):
        assert (stop > start).all() and (stop - start <= MAX_TILE).all()
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        assert where[box].any()
        held[box] += 1
    assert (held[where] == 1).all() and held.max(initial=0) <= 1


@pytest.mark.parametrize("radius", [-1, 1.5, (1, 2), True, "2"])
def test_a_radius_is_one_or_three_whole_numbers(radius):
    target, candidates, where, _ = scene()
    with pytest.raises(InputError, match="patch_radius_voxels"):
        best_patches(target, candidates, where, patch_radius_voxels=radius)


def test_other_wrong_requests_are_refused():
    target, candidates, where, _ = scene()
    with pytest.raises(InputError, match="measure"):
        best_patches(target, candidates, where, measure="cosine")
    with pytest.raises(InputError, match="at least 1"):
        find_nearest_patches(target, candidates, where, count=0)
