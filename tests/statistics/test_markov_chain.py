"""Chains against a dense recursion in logarithms, enumeration, and what theory promises of likelihoods."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from atlasseg.errors import InputError
from atlasseg.statistics import markov_chain
from atlasseg.statistics._forward_backward import emissions, sample, smooth
from atlasseg.statistics.gaussians import Gaussians

TRANSITIONS = np.array([[0.9, 0.06, 0.04], [0.1, 0.8, 0.1], [0.02, 0.08, 0.9]])
INITIAL = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.0, 5], [2, 3], [4, 4]])


def chain(number, *, seed=0, noise=0.8, transitions=TRANSITIONS):
    """Classes and values of two modalities."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(transitions, axis=1)
    classes = np.empty(number, int)
    classes[0] = np.searchsorted(np.cumsum(INITIAL), rng.random())
    for n, u in enumerate(rng.random(number - 1)):
        classes[n + 1] = np.searchsorted(steps[classes[n]], u)
    return classes, rng.normal(MEANS[classes], noise)


def in_logarithms(log_f, initial, transitions, prior, starts):
    """Gamma, pairs and log-likelihood by dense forward and backward recursions."""
    with np.errstate(divide="ignore"):
        e, log_t, log_i = log_f + np.log(prior), np.log(transitions), np.log(initial)
    count = len(e)
    alpha, beta = np.empty_like(e), np.zeros_like(e)
    for n in range(count):
        before = log_i if starts[n] else logsumexp(alpha[n - 1][:, None] + log_t, axis=0)
        alpha[n] = e[n] + before
        if starts[n] and n:
            alpha[n] += logsumexp(alpha[n - 1])
    total = logsumexp(alpha[-1])
    for n in range(count - 2, -1, -1):
        after = e[n + 1] + beta[n + 1]
        beta[n] = logsumexp(log_i + after) if starts[n + 1] else logsumexp(log_t + after, axis=1)
    pairs = sum(
        np.exp(alpha[n][:, None] + log_t + (e[n + 1] + beta[n + 1]) - total)
        for n in range(count - 1)
        if not starts[n + 1]
    )
    return np.exp(alpha + beta - total), pairs, total


@pytest.mark.parametrize("weighted", [False, True])
def test_forward_backward_against_logarithms(weighted):
    rng = np.random.default_rng(1)
    log_f = rng.normal(0, 30, (60, 3)) - 500  # densities that no float64 holds
    prior = rng.dirichlet(np.ones(3), 60)
    prior[10:15, 0] = 0
    starts = np.zeros(60, bool)
    starts[[0, 20, 21, 59]] = True
    given = {"prior": prior, "starts": starts} if weighted else {}
    found = markov_chain.posterior(log_f, initial=INITIAL, transitions=TRANSITIONS, **given)
    if not weighted:
        prior, starts = np.ones((60, 3)), np.arange(60) == 0
    gamma, pairs, total = in_logarithms(log_f, INITIAL, TRANSITIONS, prior, starts)
    np.testing.assert_allclose(found.gamma.reshape(60, 3), gamma, atol=1e-10)
    np.testing.assert_allclose(found.pairs, pairs, atol=1e-10)
    np.testing.assert_allclose(found.first, gamma[starts].sum(axis=0), atol=1e-10)
    assert found.log_likelihood == pytest.approx(total, rel=1e-12)


def test_sites_with_lists_of_their_own():
    """A state that is not listed is one of prior 0."""
    rng = np.random.default_rng(2)
    possible = rng.random((30, 3)) < 0.6
    possible[~possible.any(axis=1), 1] = True
    log_f = rng.normal(0, 2, (30, 3))
    starts = np.isin(np.arange(30), [0, 11, 12, 29])
    offsets = np.concatenate(([0], np.cumsum(possible.sum(axis=1))))
    labels = np.nonzero(possible)[1].astype(np.int32)
    e, scale = emissions(log_f[possible], np.ones(labels.size), offsets)
    found = smooth(e, scale, offsets, labels, starts, INITIAL, TRANSITIONS)
    gamma, pairs, total = in_logarithms(log_f, INITIAL, TRANSITIONS, possible.astype(float), starts)
    np.testing.assert_allclose(found.gamma, gamma[possible], atol=1e-10)
    np.testing.assert_allclose(found.pairs, pairs, atol=1e-10)
    assert found.log_likelihood == pytest.approx(total, rel=1e-12)


def test_nothing_underflows_on_many_sites():
    number = 10_000_000
    log_f = np.zeros((number, 2))
    log_f[1::2, 0] = -900
    log_f[::3, 1] = -900
    found = markov_chain.posterior(
        log_f, initial=np.array([0.5, 0.5]), transitions=np.array([[1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]])
    )
    assert np.isfinite(found.log_likelihood) and np.isfinite(found.gamma).all()
    assert found.pairs.sum() == pytest.approx(number - 1, rel=1e-9)


def test_missing_observations_are_summed_over():
    rng = np.random.default_rng(3)
    log_f = rng.normal(0, 2, (7, 3))
    log_f[[2, 3, 6]] = 0
    found = markov_chain.posterior(log_f, initial=INITIAL, transitions=TRANSITIONS)
    total = []
    for path in itertools.product(range(3), repeat=7):
        p = np.log(INITIAL[path[0]]) + sum(np.log(TRANSITIONS[a, b]) for a, b in itertools.pairwise(path))
        total.append(p + log_f[np.arange(7), path].sum())
    assert found.log_likelihood == pytest.approx(logsumexp(total))
    classes, values = chain(4000)
    known = rng.random(4000) < 0.7
    broken = np.where(known[:, None], values, np.nan)
    fitted = markov_chain.fit(broken, classes=3, known=known)
    np.testing.assert_allclose(fitted.gaussians.means, MEANS, atol=0.15)
    assert (fitted.classes == classes)[~known].mean() > 0.75  # by its neighbours alone


def test_drawn_chains_are_of_the_posterior():
    log_f = np.random.default_rng(4).normal(0, 1.5, (5, 3))
    found = markov_chain.posterior(log_f, initial=INITIAL, transitions=TRANSITIONS)
    offsets = np.arange(6) * 3
    labels = np.tile(np.arange(3, dtype=np.int32), 5)
    e, _ = emissions(log_f.reshape(-1), np.ones(15), offsets)
    rng = np.random.default_rng(5)
    starts = np.arange(5) == 0
    draws = [sample(e, offsets, labels, starts, INITIAL, TRANSITIONS, rng.random(5)) % 3 for _ in range(4000)]
    share = np.stack([(np.array(draws) == k).mean(axis=0) for k in range(3)], axis=1)
    np.testing.assert_allclose(share, found.gamma.reshape(5, 3), atol=0.04)  # five standard errors
    pairs = np.zeros((3, 3))
    for draw in draws:
        np.add.at(pairs, (draw[:-1], draw[1:]), 1 / 4000)
    np.testing.assert_allclose(pairs, found.pairs, atol=0.08)


def test_likelihood_never_falls():
    for seed in range(3):
        _, values = chain(1500, seed=seed, noise=1.5)
        prior = np.random.default_rng(seed).dirichlet(np.ones(3), 1500) if seed else None
        found = markov_chain.fit(values, prior=prior, classes=3, tolerance=0, max_iterations=25)
        assert (np.diff(found.log_likelihoods) >= -1e-7).all() and len(found.log_likelihoods) == 26


@pytest.mark.parametrize("estimation", ["em", "sem", "ice"])
def test_parameters_are_found(estimation):
    classes, values = chain(6000)
    found = markov_chain.fit(values, classes=3, estimation=estimation, max_iterations=30, draws=2)
    np.testing.assert_allclose(found.gaussians.means, MEANS, atol=0.1)
    np.testing.assert_allclose(np.sqrt(np.einsum("kcc->kc", found.gaussians.covariances)), 0.8, atol=0.06)
    np.testing.assert_allclose(found.transitions, TRANSITIONS, atol=0.03)
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    alone = ((values[:, None] - MEANS) ** 2).sum(axis=-1).argmin(axis=1)
    assert (found.classes == classes).mean() > (alone == classes).mean() + 0.02
    again = markov_chain.fit(values, classes=3, estimation=estimation, max_iterations=30, draws=2)
    np.testing.assert_array_equal(again.posterior, found.posterior)


def test_stochastic_estimates_are_means_over_the_second_half():
    """Of 2 iterations the last one counts, of 3 the last two."""
    values = np.array([[0.0], [1], [3], [4], [1], [0], [4], [3], [2], [1], [4], [2]])

    def fit(iterations, seed):
        return markov_chain.fit(values, classes=2, estimation="sem", max_iterations=iterations, seed=seed)

    moved = 0.0
    for seed in range(8):
        second, both = fit(2, seed), fit(3, seed)
        # What is left of the third is that of one draw: means over whole numbers of sites, shares of its transitions.
        means = (2 * both.gaussians.means - second.gaussians.means).ravel()
        shares = (2 * both.transitions - second.transitions).ravel()
        for found in (means, shares):
            whole = found[:, None] * np.arange(1, values.size + 1)
            assert np.abs(whole - np.rint(whole)).min(axis=1).max() < 1e-6
        assert shares.min() > -1e-6
        moved += np.abs(means - second.gaussians.means.ravel()).max()
    assert moved > 0


def test_prior_has_its_say():
    """Two classes that look alike differ by where they are."""
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 500)
    values = rng.normal([0, 0, 5], 1, (1500, 3)).mean(axis=1, keepdims=True) * 0
    values = values + np.array([0.0, 0, 5])[classes][:, None] + rng.normal(0, 1, (1500, 1))
    prior = np.full((1500, 3), 0.1)
    prior[np.arange(1500), classes] = 0.8
    assert (markov_chain.fit(values, prior=prior).classes == classes).mean() > 0.95


def test_chain_of_length_one():
    one = markov_chain.fit(np.array([[3.0]]), classes=1)
    np.testing.assert_array_equal(one.posterior, [[1]])
    assert one.gaussians.means[0, 0] == 3 and isinstance(one.gaussians, Gaussians)
    found = markov_chain.posterior(np.array([[0.0, -1, -2]]), initial=INITIAL, transitions=TRANSITIONS)
    expected = INITIAL * np.exp([0, -1, -2])
    np.testing.assert_allclose(found.gamma, expected / expected.sum())
    with pytest.raises(InputError, match="distinct"):
        markov_chain.fit(np.array([[3.0]]), classes=2)
    short = markov_chain.fit(np.array([[3.0], [9.0], [3.1]]), classes=2, starts=np.ones(3, bool))
    np.testing.assert_array_equal(short.classes, [0, 1, 0])  # three chains of length 1


def test_what_is_refused():
    _, values = chain(50)
    with pytest.raises(InputError, match="mask is empty"):
        markov_chain.fit(np.zeros((0, 1)))
    with pytest.raises(InputError, match="known: expected at least one of 50 sites"):
        markov_chain.fit(values, known=np.zeros(50, bool))
    with pytest.raises(InputError, match="NaN"):
        markov_chain.fit(np.where(np.arange(50)[:, None] == 3, np.nan, values))
    with pytest.raises(InputError, match="distinct"):
        markov_chain.fit(np.full((50, 1), 7.0), classes=3)
    with pytest.raises(InputError, match="distinct"):
        markov_chain.fit(np.full((50, 1), 7.0), prior=np.full((50, 3), 1 / 3))
    with pytest.raises(InputError, match="prior: expected sums of at most 1"):
        markov_chain.fit(values, prior=np.full((50, 3), 0.5))
    with pytest.raises(InputError, match="class 2 of 3 is empty"):
        markov_chain.fit(values, prior=np.tile([0.5, 0, 0.5], (50, 1)))
    with pytest.raises(InputError, match="estimation: expected em, sem or ice"):
        markov_chain.fit(values, estimation="mcmc")
    with pytest.raises(InputError, match="prior: expected 2 classes like start, got 3"):
        markov_chain.fit(values, prior=np.full((50, 3), 1 / 3), start=np.full((50, 2), 0.5))
    with pytest.raises(InputError, match="expected starts of 50"):
        markov_chain.fit(values, starts=np.zeros(3, bool))
    with pytest.raises(InputError, match="max_iterations"):
        markov_chain.fit(values, max_iterations=0)
    with pytest.raises(InputError, match="above 0 for some class"):
        markov_chain.posterior(np.zeros((3, 3)), initial=INITIAL, transitions=TRANSITIONS, prior=np.zeros((3, 3)))
    some = np.tile([0.3, 0.3, 0.4], (50, 1))
    some[:5] = 0  # a voxel without prior takes the mean
    assert np.isfinite(markov_chain.fit(values, prior=some).posterior).all()
