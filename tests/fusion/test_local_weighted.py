from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from atlasseg.errors import InputError
from atlasseg.fusion.local_weighted import _WEIGHTS, fuse, select_top
from atlasseg.recipe import read_recipe
from atlasseg.similarity.local_correlation import local_correlation_map

ROUNDING = 2e-3  # float32 intensities in correlations of near-flat windows, raised to powers


def gaussian(values, sigma):
    return gaussian_filter(values, sigma, mode="constant", truncate=4)


def correlation(t, a, mask, sigma):
    """Windowed correlation, written out with weights G over the mask."""
    g = np.maximum(gaussian(mask.astype(float), sigma), 1e-9)
    mean = lambda v: gaussian(v * mask, sigma) / g  # noqa: E731
    cov = mean(t * a) - mean(t) * mean(a)
    vt, va = mean(t * t) - mean(t) ** 2, mean(a * a) - mean(a) ** 2
    return np.where((vt > 1e-5) & (va > 1e-5), cov / np.sqrt(np.maximum(vt * va, 1e-12)), 0)


def weights_by_hand(case, standardised, similarity):
    everywhere = np.ones(case.scan.shape, bool)
    t = standardised(case.scan[..., None], everywhere)[..., 0]
    out = []
    for image, mask in zip(case.images, case.masks, strict=True):
        a = standardised(image[..., None], mask)[..., 0]
        if similarity in ("local_correlation", "rank"):
            out.append(correlation(t, a, mask, 1.5))
        elif similarity == "inverse_difference":
            known = np.maximum(gaussian(mask.astype(float), 1.5), 1e-9)
            out.append(1 / (gaussian(np.abs(t - a) * mask, 1.5) / known + 1e-3))
        elif similarity == "block_correlation":
            out.append(local_correlation_map(t, a, radius_voxels=2, mask=mask))
        else:
            level = np.zeros(t.shape)
            for x in np.ndindex(t.shape):
                block = tuple(slice(max(n - 2, 0), n + 3) for n in x)
                d = ((t - a)[block] ** 2)[mask[block]]
                level[x] = d.mean() if d.size else 0
            out.append(1 / (level + 1e-3))
    return np.stack(out)


@pytest.mark.parametrize(
    "similarity", ["local_correlation", "rank", "inverse_difference", "block_mean_squares", "block_correlation"]
)
@pytest.mark.parametrize("masks", [False, True])
def test_weights(problem, standardised, similarity, masks):
    case = problem(4, masks=masks)
    w = weights_by_hand(case, standardised, similarity)
    if similarity == "rank":
        w = np.where(case.masks, w, -np.inf)
        w = (w >= np.sort(w, axis=0)[-2]).astype(float)
    else:
        w = np.maximum(w, 0) ** 2
    w = w * case.masks
    w = np.where(w.sum(0) > 0, w, case.masks)
    result = fuse(case.target, case.candidates, similarity=similarity, power=2.0, top=2)
    total = np.where(w.sum(0) > 0, w.sum(0), 1)
    for label in (2, 5):
        expected = ((case.labels == label) * w).sum(0) / total
        np.testing.assert_allclose(
            result.probability(label)[case.disagreement], expected[case.disagreement], atol=ROUNDING
        )


@pytest.mark.parametrize("similarity", ["inverse_difference", "block_mean_squares"])
@pytest.mark.parametrize("epsilon", [1e-3, 10.0])
def test_a_large_power_stays_in_range(problem, standardised, similarity, epsilon):
    """Weights of 2 to 10, and of 0.1, to the power of 100 are no numbers of float32; their ratios are."""
    case = problem(4, masks=True)
    w = 1 / (1 / weights_by_hand(case, standardised, similarity) - 1e-3 + epsilon) * case.masks
    w = (w / np.where(case.masks.any(0), w.max(0), 1)) ** 100
    result = fuse(case.target, case.candidates, similarity=similarity, power=100.0, epsilon=epsilon)
    for label in (2, 5):
        expected = ((case.labels == label) * w).sum(0)[case.disagreement] / w.sum(0)[case.disagreement]
        np.testing.assert_allclose(result.probability(label)[case.disagreement], expected, atol=1e-2)


def test_mutual_information_of_one_block(problem, standardised):
    """A block that holds the whole grid: the histogram is the whole image's."""
    case = problem(3)
    everywhere = np.ones(case.scan.shape, bool)
    edges = np.concatenate(([-np.inf], np.linspace(-2, 2, 9)[1:-1], [np.inf]))
    t = standardised(case.scan[..., None], everywhere).ravel()
    w = []
    for image in case.images:
        p = np.histogram2d(t, standardised(image[..., None], everywhere).ravel(), bins=(edges, edges))[0] / t.size
        outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
        w.append((p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum() ** 2)
    result = fuse(case.target, case.candidates, similarity="block_mutual_information", radius_voxels=5, power=2.0)
    expected = ((case.labels == 2) * np.reshape(w, (-1, 1, 1, 1))).sum(0) / np.sum(w)
    np.testing.assert_allclose(result.probability(2), expected, atol=ROUNDING)


def test_mutual_information_lies_at_the_centres_of_its_blocks(problem, standardised):
    """Each tile's value stands at its middle voxel, the second of three; between these it is interpolated."""
    case = problem(3)
    everywhere = np.ones(case.scan.shape, bool)
    edges = np.concatenate(([-np.inf], np.linspace(-2, 2, 5)[1:-1], [np.inf]))
    t = standardised(case.scan[..., None], everywhere)[..., 0]
    side = 3
    starts = [np.arange(0, n, side) for n in t.shape]
    w = []
    for image in case.images:
        a = standardised(image[..., None], everywhere)[..., 0]
        tiles = np.zeros([len(s) for s in starts])
        for at in np.ndindex(tiles.shape):
            tile = tuple(slice(s[n], s[n] + side) for s, n in zip(starts, at, strict=True))
            p = np.histogram2d(t[tile].ravel(), a[tile].ravel(), bins=(edges, edges))[0] / t[tile].size
            outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
            tiles[at] = (p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum()
        for axis, (n, start) in enumerate(zip(t.shape, starts, strict=True)):
            tiles = np.apply_along_axis(lambda v, n=n, start=start: np.interp(np.arange(n), start + 1, v), axis, tiles)
        w.append(tiles**2)
    result = fuse(
        case.target, case.candidates, similarity="block_mutual_information", radius_voxels=1, bins=4, power=2.0
    )
    total = np.where(np.sum(w, axis=0) > 0, np.sum(w, axis=0), 1)
    expected = ((case.labels == 2) * w).sum(0) / total
    np.testing.assert_allclose(result.probability(2)[case.disagreement], expected[case.disagreement], atol=ROUNDING)


def test_better_than_majority_where_images_tell(problem):
    """The candidate that shows the target itself decides."""
    case = problem(5)
    twin = problem(5).candidates[0]
    result = fuse(twin.image, case.candidates, power=40.0)
    agree = result.mode == case.labels[0]
    assert agree.mean() > 0.97 and agree.mean() > (np.median(case.labels, axis=0) == case.labels[0]).mean()


def test_ranked_ties_share():
    scores = np.array([[3.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, -np.inf]], np.float32)
    np.testing.assert_allclose(select_top(scores, 2), [[1, 2 / 3], [0.5, 2 / 3], [0.5, 2 / 3], [0, 0]])
    np.testing.assert_array_equal(select_top(scores, 4), [[1, 1], [1, 1], [1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("similarity", "power"),
    [("local_correlation", 6.0), ("inverse_difference", 1.0), ("block_mean_squares", 6.0), ("block_correlation", 6.0),
     ("block_mutual_information", 6.0)],
)  # fmt: skip
def test_default_power_of_each_weight(problem, similarity, power):
    """The published weight of Isgum is the reciprocal of the difference."""
    case = problem(4)
    default = fuse(case.target, case.candidates, similarity=similarity).dense()
    np.testing.assert_array_equal(
        default, fuse(case.target, case.candidates, similarity=similarity, power=power).dense()
    )
    other = fuse(case.target, case.candidates, similarity=similarity, power=7.0 - power if power == 1 else 1.0).dense()
    assert np.abs(default - other).max() > 1e-3


@pytest.mark.parametrize("name", ["quickstart", "hippocampus"])
def test_recipes_state_their_power(name):
    """Another default changes no result of the recipes."""
    assert read_recipe(Path(__file__).parents[2] / "pipelines" / f"{name}.toml").fusion.method.arguments["power"] == 6


@pytest.mark.parametrize("similarity", list(_WEIGHTS))
def test_several_channels_are_averaged(problem, similarity):
    case = problem(3, channels=2)
    assert np.isfinite(fuse(case.target, case.candidates, similarity=similarity).values).all()


OUT_OF_RANGE = (("sigma_voxels", 0.0), ("radius_voxels", 0), ("top", 0), ("power", 0.0), ("epsilon", 0.0), ("bins", 1))


@pytest.mark.parametrize("wrong", [{"similarity": "charm"}, {"power": -1.0}, *({n: v} for n, v in OUT_OF_RANGE)])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
