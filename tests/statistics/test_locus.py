"""The tissue model of LOCUS: its objective written out, and what its updates must do."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from atlasseg.errors import InputError
from atlasseg.statistics import locus, markov_field
from atlasseg.statistics._field import dense_field
from atlasseg.statistics.gaussians import Gaussians, estimate

EDGES = np.diag([0.9, 1.4, 2.1]) @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
SPACING = np.linalg.norm(EDGES, axis=0)
SHAPE = (17, 15, 12)


def scan(noise=0.4, *, shade=0.0, seed=0, channels=1):
    """Three layers in a region, with a shade along the first axis."""
    rng = np.random.default_rng(seed)
    index = np.indices(SHAPE)
    truth = ((index[1] + 0.5 * index[2]) // 7).astype(int).clip(0, 2)
    inside = (index[0] + index[1]) > 3
    bright = truth + shade * (index[0] / SHAPE[0] - 0.5)
    values = np.stack([(1 - 1.5 * c) * bright + rng.normal(0, noise, SHAPE) for c in range(channels)], -1)
    return values[inside], inside, truth[inside]


def objective(values, posterior, log_prior, inside, centres, means, covariances, whole, strength, beta):
    """Free energy minus the log prior of the parameters, term by term."""
    at = np.argwhere(inside)
    flat_centres = centres.reshape(-1, 3)
    side = 2 * (centres[0, 0, 0] - (at.min(0) + at.max(0)) / 2) / (1 - np.array(centres.shape[:3]))
    cube = np.array([np.flatnonzero((np.abs(x - flat_centres) <= side / 2 + 1e-9).all(axis=1))[-1] for x in at])
    classes = posterior.shape[1]
    mu, sigma = means.reshape(-1, *means.shape[3:]), covariances.reshape(-1, *covariances.shape[3:])
    total = 0.0
    for c, k in itertools.product(range(len(mu)), range(classes)):
        rows = cube == c
        if rows.any():
            logs = np.atleast_1d(multivariate_normal(mu[c, k], sigma[c, k]).logpdf(values[rows]))
            total -= (posterior[rows, k] * (logs + log_prior[rows, k])).sum()
        precision = np.linalg.inv(sigma[c, k])
        total += 0.5 * strength * (np.linalg.slogdet(sigma[c, k])[1] + np.trace(whole.covariances[k] @ precision))
    for one, other in itertools.combinations(np.ndindex(means.shape[:3]), 2):
        if np.abs(np.subtract(one, other)).sum() == 1:
            for k in range(classes):
                step = means[one][k] - means[other][k]
                total += 0.5 * strength / 6 * step @ np.linalg.inv(whole.covariances[k]) @ step
    field = dense_field(np.zeros_like(posterior), inside, EDGES, beta=beta, neighbours=26)
    return total + field.free_energy(np.ascontiguousarray(posterior).reshape(-1))


@pytest.mark.parametrize("channels", [1, 2])
def test_updates_maximise_the_posterior(channels):
    """Given the labels, no other mean or covariance of any cube has a better objective; all terms written out."""
    values, inside, truth = scan(shade=0.8, channels=channels)
    rng = np.random.default_rng(1)
    q = rng.dirichlet(np.ones(3), len(values)) * 0.3 + 0.7 * np.eye(3)[truth]
    whole = estimate(values, q)
    cubes = locus.partition(inside, np.array([7.0, 8.0, 6.0]))
    assert cubes.shape == (3, 2, 2)
    strength = 40.0
    local = locus._LocalGaussians(values, cubes, whole, strength)
    for _ in range(60):
        local.update(q)
    log_prior = rng.normal(size=q.shape)

    def at(means, covariances):
        return objective(
            values, q, log_prior, inside, cubes.centres_voxels, means, covariances, whole, strength, beta=0.3
        )

    means = local.offsets + local.centre
    best = at(means, local.covariances)
    field = dense_field(-local.log_density("constant") - log_prior, inside, EDGES, beta=0.3, neighbours=26)
    flat = np.ascontiguousarray(q).reshape(-1)
    assert field.free_energy(flat) + local.penalty() == pytest.approx(best, rel=1e-10)
    for cube, k in [((0, 0, 0), 1), ((1, 1, 0), 0), ((2, 0, 1), 2)]:
        for c, sign in itertools.product(range(channels), (-1, 1)):
            moved = means.copy()
            moved[cube][k, c] += sign * 1e-3
            assert at(moved, local.covariances) > best
            wider = local.covariances.copy()
            wider[cube][k, c, c] *= 1 + sign * 1e-3
            assert at(means, wider) > best


def test_objective_never_rises():
    values, inside, _ = scan(0.6, shade=1.0)
    found = locus.fit(
        values, inside, EDGES, side_mm=10, interpolation="constant", tolerance=0, max_iterations=15, beta=0.3
    )
    assert (np.diff(found.objective) <= 1e-7).all() and found.objective[-1] < found.objective[0]
    assert len(found.objective) == 15


def test_without_a_prior_cubes_have_the_moments_of_their_voxels():
    values, inside, truth = scan(shade=0.5, channels=2)
    q = np.eye(3)[truth] * 0.9 + 0.1 / 3
    cubes = locus.partition(inside, np.array([9.0, 8.0, 6.0]))
    whole = estimate(values, q)
    local = locus._LocalGaussians(values, cubes, whole, 1e-9)
    local.update(q)
    for c in range(int(np.prod(cubes.shape))):
        rows = cubes.of_voxel == c
        by_hand = estimate(values[rows], q[rows])
        place = np.unravel_index(c, cubes.shape)
        np.testing.assert_allclose(local.offsets[place] + local.centre, by_hand.means, atol=1e-7)
        np.testing.assert_allclose(local.covariances[place], by_hand.covariances, atol=1e-7)


def test_empty_cubes_take_the_mean_of_those_around():
    inside = np.zeros((12, 4, 4), bool)
    inside[:4], inside[8:] = True, True
    values = np.where(np.argwhere(inside)[:, :1] < 4, 1.0, 3.0) + np.random.default_rng(0).normal(0, 0.1, (128, 1))
    cubes = locus.partition(inside, np.array([4.0, 4.0, 4.0]))
    assert cubes.shape == (3, 1, 1)
    local = locus._LocalGaussians(values, cubes, Gaussians(np.array([[2.0]]), np.array([[[1.0]]])), 0.01)
    for _ in range(20):
        local.update(np.ones((128, 1)))
    means = (local.offsets + local.centre).ravel()
    assert means[1] == pytest.approx((means[0] + means[2]) / 2) and means[2] - means[0] > 1.9
    assert local.covariances[1, 0, 0, 0, 0, 0] == pytest.approx(1.0)  # that of the whole region


def test_cubes_partition_the_box():
    _, inside, _ = scan()
    side = np.array([8.0, 6.0, 5.0])
    cubes = locus.partition(inside, side)
    assert cubes.shape == (3, 3, 3)
    centre = cubes.centres_voxels.reshape(-1, 3)[cubes.of_voxel]
    at = np.argwhere(inside)
    assert (np.abs(at - centre) <= side / 2 + 1e-9).all()
    np.testing.assert_allclose(cubes.centres_voxels[0, 0, 0] + cubes.place * side, at, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
def test_interpolated_parameters_are_those_of_the_cubes_at_their_centres(channels):
    inside = np.ones((15, 9, 9), bool)
    rng = np.random.default_rng(3)
    values = rng.normal(size=(inside.sum(), channels))
    cubes = locus.partition(inside, np.array([3.0, 3.0, 3.0]))
    whole = estimate(values, np.ones((len(values), 1)))
    local = locus._LocalGaussians(values, cubes, whole, 5.0)
    local.update(np.ones((len(values), 1)))
    central = (np.argwhere(inside) % 3 == 1).all(axis=1)
    cubic, constant = local.log_density("cubic"), local.log_density("constant")
    np.testing.assert_allclose(cubic[central], constant[central], atol=1e-5)
    assert np.abs(cubic - constant)[~central].max() > 0.01
    for row in (0, 400, 900):
        place = np.unravel_index(cubes.of_voxel[row], cubes.shape)
        by_hand = multivariate_normal((local.offsets + local.centre)[place][0], local.covariances[place][0])
        assert constant[row, 0] == pytest.approx(by_hand.logpdf(values[row]))


def test_local_gaussians_follow_the_shade():
    values, inside, truth = scan(0.2, shade=1.2)
    local = locus.fit(values, inside, EDGES, side_mm=6, tie=0.2)
    one = markov_field.fit(values, inside, EDGES)
    np.testing.assert_allclose(local.posterior.sum(axis=1), 1)
    assert (local.classes == truth).mean() > max((one.classes == truth).mean() + 0.05, 0.9)
    middle = local.means[..., 1, 0]
    assert np.corrcoef(middle.ravel(), local.centres_voxels[..., 0].ravel())[0, 1] > 0.7


def test_tied_firmly_cubes_are_one_field():
    values, inside, _ = scan()
    tied = locus.fit(values, inside, EDGES, side_mm=12, tie=1e5)
    one = markov_field.fit(values, inside, EDGES)
    spread = np.ptp(tied.means.reshape(-1, 3), axis=0)
    assert spread.max() < 0.02 and (tied.classes == one.classes).mean() > 0.95


def test_what_is_refused():
    values, inside, _ = scan()
    with pytest.raises(InputError, match="mask is empty"):
        locus.fit(values[:0], np.zeros(SHAPE, bool), EDGES)
    for wrong in (
        {"side_mm": 1.0}, {"side_mm": np.inf}, {"tie": 0.0}, {"tie": np.inf}, {"interpolation": "linear"},
        {"beta": -0.1}, {"solver": "annealing"}, {"max_iterations": 0},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            locus.fit(values, inside, EDGES, **wrong)
