import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion._patch_match import run_patch_match
from atlasseg.fusion._patches import find_nearest_patches
from atlasseg.fusion.nearest_patches import fuse
from atlasseg.threads import limit_threads

ROUNDING = 1e-3  # float32 intensities in exponents
EPS = 1e-6 * 27


def by_hand(case, standardised, count, window, whole, bandwidth):
    """Every patch of radius 1 of every candidate, sorted; votes for centres or whole patches."""
    shape = case.scan.shape
    t = np.pad(standardised(case.scan[..., None], np.ones(shape, bool))[..., 0], 1, mode="edge")
    images = [
        np.pad(standardised(i[..., None], m)[..., 0], 1, mode="edge")
        for i, m in zip(case.images, case.masks, strict=True)
    ]
    votes = np.zeros((*shape, 3))
    labels = np.array([0, 2, 5])
    steps = [np.array(o) - window for o in np.ndindex(*[2 * window + 1] * 3)]
    near = [np.array(o) - 1 for o in np.ndindex(3, 3, 3)] if whole else [np.zeros(3, int)]
    wanted = np.zeros(shape, bool)
    for x in np.argwhere(case.disagreement):
        for p in near:
            if (x + p >= 0).all() and (x + p < shape).all():
                wanted[tuple(x + p)] = True
    for x in np.argwhere(wanted):
        patch = t[tuple(slice(a, a + 3) for a in x)]
        found = []
        for n, image in enumerate(images):
            for o in steps:
                y = x + o
                if (y >= 0).all() and (y < shape).all() and case.masks[n][tuple(y)]:
                    found.append((((image[tuple(slice(a, a + 3) for a in y)] - patch) ** 2).sum(), n, tuple(y)))
        found = sorted(found)[:count]
        h = bandwidth * (found[0][0] + EPS)
        for d, n, y in found:
            for p in near:
                here, there = x + p, np.array(y) + p
                if (here < 0).any() or (here >= shape).any() or (there < 0).any() or (there >= shape).any():
                    continue
                if case.masks[n][tuple(there)]:
                    votes[tuple(here)] += np.exp(-(d - found[0][0]) / h) * (case.labels[n][tuple(there)] == labels)
    return votes / np.maximum(votes.sum(-1, keepdims=True), 1e-30)


@pytest.mark.parametrize(("whole", "masks"), [(False, False), (True, False), (True, True)])
def test_exact(problem, standardised, whole, masks):
    case = problem(2, masks=masks)
    expected = by_hand(case, standardised, 6, 1, whole, 0.8)
    result = fuse(
        case.target, case.candidates, count=6, patch_radius_voxels=1, search_radius_voxels=1, whole_patch=whole,
        bandwidth=0.8,
    )  # fmt: skip
    np.testing.assert_allclose(result.dense()[case.disagreement], expected[case.disagreement], atol=ROUNDING)


@pytest.fixture
def searched(problem, standardised):
    case = problem(3, masks=True)
    arrays = [np.float32(standardised(i[..., None], np.ones(i.shape, bool)).transpose(3, 0, 1, 2)) for i in case.images]
    target = np.float32(standardised(case.scan[..., None], np.ones(case.scan.shape, bool)).transpose(3, 0, 1, 2))
    shared = {"count": 4, "patch_radius_voxels": 1, "search_radius_voxels": 2, "inside": list(case.masks)}
    return case, target, arrays, case.disagreement, shared


def test_patch_match_finds_nearly_the_nearest(searched):
    case, target, arrays, where, shared = searched
    exact = find_nearest_patches(target, arrays, where, measure="ssd", **shared)
    random = run_patch_match(target, arrays, where, iterations=1, seed=1, **shared)
    found = run_patch_match(target, arrays, where, iterations=8, seed=1, **shared)
    best = -exact.scores[:, 0]
    assert (-found.scores >= best[:, None] - 1e-4).all()  # nothing is nearer than the nearest
    assert (-found.scores[:, 0] <= best * 1.05).mean() > 0.9
    assert found.scores.mean() > random.scores.mean()
    place = np.stack(np.unravel_index(found.voxels, where.shape), 1)[:, None] + found.offsets[found.chosen]
    seen = case.masks[found.candidate, place[..., 0], place[..., 1], place[..., 2]]
    assert seen.all()
    n = 7
    x, y, i = np.unravel_index(found.voxels[n], where.shape), place[n, 0], found.candidate[n, 0]
    cut = [np.pad(v[0], 1, mode="edge")[tuple(slice(a, a + 3) for a in at)] for v, at in ((target, x), (arrays[i], y))]
    np.testing.assert_allclose(-found.scores[n, 0], ((cut[0] - cut[1]) ** 2).sum(), rtol=1e-5)


def test_patch_match_depends_on_its_seed_alone(searched):
    _, target, arrays, where, shared = searched
    first = run_patch_match(target, arrays, where, iterations=2, seed=5, **shared)
    with limit_threads(1):
        second = run_patch_match(target, arrays, where, iterations=2, seed=5, **shared)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.chosen, second.chosen)
    other = run_patch_match(target, arrays, where, iterations=2, seed=6, **shared)
    assert (first.chosen != other.chosen).any()


def test_both_searches_segment_alike(problem):
    case = problem(4)
    exact = fuse(case.target, case.candidates, patch_radius_voxels=1)
    quick = fuse(case.target, case.candidates, patch_radius_voxels=1, search="patch_match", iterations=6)
    assert (exact.mode == quick.mode).mean() > 0.93  # its runs may find one patch twice


@pytest.mark.parametrize("wrong", [{"search": "luck"}, {"count": 0}, {"bandwidth": 0.0}, {"seed": -1}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
