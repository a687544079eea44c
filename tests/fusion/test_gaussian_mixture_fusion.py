"""The mixture as a fusion: a dense version written out, its limits, and intensities that correct the votes."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.stats import multivariate_normal, norm

from atlasseg.errors import InputError
from atlasseg.fusion import gaussian_mixture, majority
from atlasseg.volume import Atlas, Image, LabelMap, ProbabilityMap

LABELS = np.array([0, 2, 5])


def by_hand(problem, standardised, *, power, bumps, margin, iterations):
    """Every label at every voxel, one Gaussian a label but for the background."""
    share = (problem.labels[..., None] == LABELS).mean(0)
    disagreement = share.max(-1) < 1
    near = distance_transform_edt(~disagreement) <= margin
    place = np.argwhere(disagreement)
    low, high = np.maximum(place.min(0) - margin, 0), place.max(0) + 1 + margin
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    share, disagreement, near = share[box], disagreement[box], near[box]
    scan = np.atleast_1d(problem.scan[box])
    scan = scan if scan.ndim == 4 else scan[..., None]
    x = standardised(scan, np.ones(scan.shape[:3], bool)).astype(np.float32).astype(float)[near]
    prior = share[near]
    of = [0] * bumps + [1, 2]

    def gaussian(w):
        mean = np.average(x, axis=0, weights=w)
        return mean, np.atleast_2d(np.cov(x.T, aweights=w, ddof=0))

    start = [gaussian(prior[:, k]) for k in range(3)]
    values, vectors = np.linalg.eigh(start[0][1])
    steps = norm.ppf((np.arange(bumps) + 0.5) / bumps)
    looks = [(start[0][0] + z * np.sqrt(values[-1]) * vectors[:, -1], start[0][1] / bumps) for z in steps] + start[1:]
    shares = np.array([1 / bumps] * bumps + [1, 1])
    for _ in range(iterations):
        density = np.stack([s * multivariate_normal(*g).pdf(x) for s, g in zip(shares, looks, strict=True)], 1)
        label = np.stack([density[:, np.array(of) == k].sum(1) for k in range(3)], 1)
        posterior = prior * label**power
        posterior /= posterior.sum(1, keepdims=True)
        r = posterior[:, of] * density / label[:, of]
        looks = [gaussian(w) for w in r.T]
        mass = r.sum(0)
        shares = np.array([m / mass[np.array(of) == k].sum() for m, k in zip(mass, of, strict=True)])
    out = share.copy()
    out[near] = posterior
    return np.where(disagreement[..., None], out, share), box


@pytest.mark.parametrize(("channels", "power", "bumps"), [(1, 1.0, 1), (1, 0.3, 2), (2, 0.6, 1)])
def test_written_out(problem, standardised, channels, power, bumps):
    made = problem(5, channels=channels, seed=3)
    expected, box = by_hand(made, standardised, power=power, bumps=bumps, margin=2, iterations=4)
    found = gaussian_mixture.fuse(
        made.target, made.candidates, power=power, merge_distance=0, background_gaussians=bumps, margin_voxels=2,
        max_iterations=4,
    )  # fmt: skip
    np.testing.assert_allclose(found.dense()[box], expected, atol=1e-4)


def test_without_power_it_is_the_majority(problem):
    made = problem(4)
    found = gaussian_mixture.fuse(made.target, made.candidates, power=0)
    np.testing.assert_allclose(found.dense(), majority.fuse(made.target, made.candidates).dense(), atol=1e-6)


def test_labels_that_look_alike_keep_their_votes():
    """Two halves of one tissue: intensities must not move the border between them."""
    rng = np.random.default_rng(0)
    shape, affine = (15, 12, 9), np.diag((1.0, 1.2, 1.5, 1))
    x = np.indices(shape)
    inside = (np.abs(x[1] - 5.5) < 3) & (np.abs(x[2] - 4) < 3)

    def said(shift, grow):
        wide = (np.abs(x[1] - 5.5) < 3 + grow) & (np.abs(x[2] - 4) < 3)
        return np.where(wide, np.where(x[0] < 7 + shift, 1, 2), 0)

    target = Image(np.where(inside, 100, 40) + rng.normal(0, 8, shape), affine)
    candidates = [
        Atlas(f"a{n}", target, LabelMap(said(shift, grow), affine))
        for n, (shift, grow) in enumerate([(-2, 1), (-1, 0), (0, 1), (1, -1), (2, 1)])
    ]
    votes = majority.fuse(target, candidates)
    tied = gaussian_mixture.fuse(target, candidates, power=1.0)
    free = gaussian_mixture.fuse(target, candidates, power=1.0, merge_distance=0)

    def odds(found):
        one, two = found.probability(1), found.probability(2)
        return (one / np.maximum(one + two, 1e-9))[inside]

    np.testing.assert_allclose(odds(tied), odds(votes), atol=1e-5)
    assert np.abs(odds(free) - odds(votes)).max() > 0.01
    truth = np.where(inside, np.where(x[0] < 7, 1, 2), 0)
    assert ((tied.mode > 0) == (truth > 0)).mean() > ((votes.mode > 0) == (truth > 0)).mean() + 0.05


def test_a_probabilistic_atlas_is_the_prior(problem):
    made = problem(6)
    mean = majority.fuse(made.target, made.candidates)
    alone = Atlas("mean", made.target, ProbabilityMap.from_dense(mean.dense(), mean.label_values, made.affine))
    one, many = (gaussian_mixture.fuse(made.target, c, power=0.7) for c in ([alone], made.candidates))
    np.testing.assert_allclose(one.dense(), many.dense(), atol=1e-3)


def test_many_labels_in_few_voxels():
    """139 labels: each voxel thinks of those that have a vote there."""
    rng = np.random.default_rng(1)
    shape, affine = (26, 24, 22), np.diag((1.1, 0.9, 1.3, 1))
    block = np.arange(shape[0])[:, None, None] // 5 * 25 + np.arange(shape[1])[None, :, None] // 5 * 5
    block = block + np.arange(shape[2])[None, None, :] // 5
    target = Image(rng.normal(block % 7 * 20.0, 3), affine)
    candidates = [Atlas(f"a{n}", target, LabelMap(np.roll(block, n - 1, n), affine)) for n in range(3)]
    found = gaussian_mixture.fuse(target, candidates, power=1.0)
    assert np.diff(found.offsets).max() <= 3 and found.label_values.size == np.unique(block).size
    assert (found.mode == block).mean() > (majority.fuse(target, candidates).mode == block).mean()


@pytest.mark.parametrize(
    "wrong",
    [{"power": -1}, {"merge_distance": -1}, {"background_gaussians": 0}, {"margin_voxels": -1}, {"max_iterations": 0}],
)
def test_parameters_out_of_range(problem, wrong):
    made = problem(3)
    with pytest.raises(InputError, match="gaussian_mixture: expected power"):
        gaussian_mixture.fuse(made.target, made.candidates, **wrong)


def test_a_gaussian_without_share_has_no_part_however_well_it_fits():
    """One voxel and label: of its two Gaussians the one of share 0 has its mean at the voxel, the other is far away."""
    posterior, out = np.empty(1), np.zeros((1, 2, 3))
    gaussian_mixture._sweep(
        0, 1, np.zeros((1, 1)), np.array([0, 1]), np.array([0]), np.ones(1), np.array([[0.0], [100.0]]),
        np.ones((2, 1, 1)),
        np.full(2, -0.5 * np.log(2 * np.pi)), np.array([0.0, 1.0]), np.array([0, 2]), 1.0, np.zeros(1), posterior, out,
    )  # fmt: skip
    np.testing.assert_array_equal(posterior, [1])
    np.testing.assert_allclose(out.sum(axis=0)[:, :2], [[norm.logpdf(0, 100), 0], [0, 1]])
