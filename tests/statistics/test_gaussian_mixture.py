"""The mixture against scikit-learn and plain NumPy, on phantoms with known truth, and on what cannot be used."""

import numpy as np
import pytest
from scipy.stats import norm

from atlasseg import phantoms
from atlasseg.errors import InputError
from atlasseg.statistics import gaussian_mixture
from atlasseg.statistics.bias_field import Polynomials
from atlasseg.statistics.gaussians import Gaussians, estimate

SHAPE = (36, 44, 31)
FAST = {"tolerance": 1e-4, "max_iterations": 40}
PAIRS = ((0, 1), (1, 2))
LINE = np.ones((60, 1, 1), bool)
TWO = ((0.3, 0.7, 1.0), (1.0, 0.6, 0.4))


def draw(channels=2, number=9000, seed=0):
    """Voxels of three classes that overlap, and soft memberships to start from."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, number, p=(0.2, 0.5, 0.3))
    turn = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    values = (
        100 + (np.array([0, 4, 9])[truth, None] + rng.normal(size=(number, channels)) * (1 + truth)[:, None]) @ turn
    )
    return values, 0.1 + 0.7 * np.eye(3)[truth], truth


def dice(a, b):
    return np.array([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(3)])


def brain(**more):
    made = phantoms.tissue(SHAPE, seed=3, **more)
    inside = made.mask.array
    return made, inside, made.image.channels[inside].astype(float), made.truth.array[inside] - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_is_scikit_learns(channels):
    from sklearn.mixture import GaussianMixture

    values, start, _ = draw(channels)
    found = gaussian_mixture.fit(values, start=start, tolerance=0, max_iterations=60)
    first = estimate(values, start)
    peer = GaussianMixture(
        3, reg_covar=0, tol=0, max_iter=60, weights_init=start.mean(0) / start.mean(0).sum(),
        means_init=first.means, precisions_init=np.linalg.inv(first.covariances),
    )  # fmt: skip
    with pytest.warns(Warning, match="converge"):
        peer.fit(values)
    np.testing.assert_allclose(found.gaussians.means, peer.means_, rtol=1e-6)
    np.testing.assert_allclose(found.gaussians.covariances, peer.covariances_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.weights, peer.predict_proba(values).mean(0), atol=1e-6)
    np.testing.assert_allclose(found.fractions, peer.predict_proba(values), atol=1e-6)
    assert found.log_likelihoods[-1] == pytest.approx(peer.score(values) * len(values), rel=1e-9)


def by_hand(x, prior, counts, pairs, levels, mu, sigma, shares, mixed_share):
    """One expectation step with a prior, written out for one modality: posteriors of every component (N, G)."""
    of_class = np.repeat(np.arange(len(counts)), counts)
    columns = [
        prior[:, k] * s * norm.pdf(x, m, np.sqrt(v)) for k, s, m, v in zip(of_class, shares, mu, sigma, strict=True)
    ]
    total = sum(prior[:, a] * prior[:, b] for a, b in pairs) if pairs else np.zeros(len(x))
    can = total > 0
    columns = [c * np.where(can, 1 - mixed_share, 1) for c in columns]
    for a, b in pairs:
        share = np.where(can, prior[:, a] * prior[:, b] / np.where(can, total, 1), 0) * mixed_share / levels
        for t in (np.arange(levels) + 0.5) / levels:
            mean, spread = t * mu[a] + (1 - t) * mu[b], t * sigma[a] + (1 - t) * sigma[b]
            columns.append(share * norm.pdf(x, mean, np.sqrt(spread)))
    joint = np.stack(columns, axis=1)
    return joint / joint.sum(1, keepdims=True), np.log(joint.sum(1)).sum()


def test_prior_and_mixed_voxels_by_hand():
    """At the fixed point, one more step changes nothing; the hidden parts are drawn, not derived."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(10, 1, 900), rng.normal(20, 1.5, 900), rng.uniform(10, 20, 300)])
    prior = rng.dirichlet((2, 2), x.size)
    found = gaussian_mixture.fit(
        x[:, None], prior=prior, mixed=((0, 1),), mixed_levels=3, tolerance=0, max_iterations=300
    )
    mu, sigma = found.gaussians.means[:, 0], found.gaussians.covariances[:, 0, 0]
    mixed_share = found.weights[2]
    r, log_likelihood = by_hand(x, prior, [1, 1], [(0, 1)], 3, mu, sigma, [1, 1], mixed_share)
    assert found.log_likelihoods[-1] == pytest.approx(log_likelihood, rel=1e-9)
    parts = np.array([1 / 6, 1 / 2, 5 / 6])
    np.testing.assert_allclose(found.fractions[:, 0], r[:, 0] + r[:, 2:] @ parts, atol=1e-6)
    assert r[:, 2:].sum() / x.size == pytest.approx(mixed_share, abs=1e-6)
    # what comes from class 0: of a pure voxel all, of a mixed one its conditional draw
    n = np.repeat(np.arange(x.size), 400)
    u, w = [np.repeat(x, 400)], [np.repeat(r[:, 0] / 400, 400)]
    t_of = [np.ones(n.size)]
    for column, t in enumerate(parts, 2):
        mean, spread = t * mu[0] + (1 - t) * mu[1], t * sigma[0] + (1 - t) * sigma[1]
        gain = t * sigma[0] / spread
        left = t * sigma[0] - gain * t * sigma[0]
        u.append(t * mu[0] + gain * (x[n] - mean) + rng.normal(0, np.sqrt(left), n.size))
        w.append(r[n, column] / 400)
        t_of.append(np.full(n.size, t))
    u, w, t_of = np.concatenate(u), np.concatenate(w), np.concatenate(t_of)
    expected = (w * u).sum() / (w * t_of).sum()
    assert mu[0] == pytest.approx(expected, abs=0.01)
    assert sigma[0] == pytest.approx((w * (u - t_of * mu[0]) ** 2 / t_of).sum() / w.sum(), rel=0.02)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"gaussians_per_class": (1, 3, 2)},
        {"mixed": PAIRS},
        {"prior": True},
        {"prior": True, "gaussians_per_class": 2},
        {"prior": True, "mixed": PAIRS, "mixed_levels": 3},
        {"bias": "gain", "mixed": PAIRS},
    ],
)
def test_log_likelihood_never_falls(how):
    made, inside, values, _ = brain(noise_percent=6, bias_percent=30)
    rng = np.random.default_rng(0)
    if how.pop("prior", False):
        prior = made.fractions[inside] + rng.dirichlet(np.ones(3), len(values))
        how["prior"] = prior / prior.sum(1, keepdims=True)
    found = gaussian_mixture.fit(values, inside=inside, tolerance=0, max_iterations=15, **how)
    assert (np.diff(found.log_likelihoods) > -1e-9 * abs(found.log_likelihoods[0])).all()
    assert np.diff(found.log_likelihoods)[0] > 0
    np.testing.assert_allclose(found.fractions.sum(1), 1, atol=1e-9)
    assert found.weights.sum() == pytest.approx(1)


def test_a_certain_prior_decides_alone():
    values, _, truth = draw()
    other = (truth + 1) % 3
    found = gaussian_mixture.fit(values, prior=np.eye(3)[other])
    np.testing.assert_array_equal(found.classes, other)
    np.testing.assert_allclose(found.gaussians.means, estimate(values, np.eye(3)[other]).means, rtol=1e-9)


def test_flat_values_leave_the_prior():
    """Classes that look alike: the posterior is the prior."""
    rng = np.random.default_rng(2)
    prior = rng.dirichlet((1, 1, 1), 20_000)
    found = gaussian_mixture.fit(rng.normal(50, 3, (20_000, 1)), prior=prior, max_iterations=3)
    assert np.abs(found.fractions - prior).mean() < 0.01


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e4])
def test_scale_and_order_of_voxels_do_not_matter(gain):
    _, inside, values, _ = brain()
    plain = gaussian_mixture.fit(values, inside=inside, mixed=PAIRS, bias="gain", **FAST)
    scaled = gaussian_mixture.fit(gain * values, inside=inside, mixed=PAIRS, bias="gain", **FAST)
    np.testing.assert_allclose(scaled.fractions, plain.fractions, atol=1e-3)
    np.testing.assert_allclose(scaled.gaussians.means, gain * plain.gaussians.means, rtol=1e-4)
    start = np.eye(3)[plain.classes]
    order = np.random.default_rng(0).permutation(len(values))
    one, other = (gaussian_mixture.fit(values[o], start=start[o], mixed=PAIRS, **FAST) for o in (slice(None), order))
    np.testing.assert_allclose(one.fractions[order], other.fractions, atol=1e-6)


def test_partial_volume_is_found():
    made, inside, values, truth = brain(bias_percent=0)
    plain, mixed = gaussian_mixture.fit(values), gaussian_mixture.fit(values, mixed=PAIRS)
    wrong = [np.abs(found.fractions - made.fractions[inside]).mean() for found in (plain, mixed)]
    assert wrong[1] < 0.03 and wrong[1] < 0.7 * wrong[0]
    assert (dice(mixed.classes, truth) > 0.96).all()
    np.testing.assert_allclose(mixed.gaussians.means[:, 0], (300, 700, 1000), rtol=0.02)


@pytest.mark.parametrize("kind", ["gain", "offset"])
def test_bias_is_found(kind):
    made, inside, values, truth = brain(bias_percent=40)
    seen = np.log(np.maximum(values, 1)) if kind == "offset" else values
    without = gaussian_mixture.fit(seen, mixed=PAIRS, **FAST)
    found = gaussian_mixture.fit(seen, mixed=PAIRS, bias=kind, inside=inside, **FAST)
    logarithm = (np.log(found.bias) if kind == "gain" else found.bias)[:, 0]
    assert logarithm.mean() == pytest.approx(0, abs=1e-9)
    true = np.log(made.gain[inside])
    assert (logarithm - true).std() < 0.35 * true.std()
    assert (dice(found.classes, truth) > dice(without.classes, truth)).all()
    corrected = values / found.bias if kind == "gain" else seen - found.bias
    np.testing.assert_allclose(found.corrected, corrected)
    if kind == "gain":
        assert (dice(found.classes, truth) > 0.95).all()


def test_bias_with_a_class_between_the_planes():
    """The bias is estimated on every second plane, unless that would lose a class of the prior."""
    made, inside, values, _ = brain()
    assert inside[::2, ::2, ::2].sum() > 1000
    odd = np.zeros(SHAPE, bool)
    odd[1::2] = made.truth.array[1::2] == 1
    prior = np.stack([odd, ~odd & (made.truth.array < 3), made.truth.array == 3], -1)[inside] * 0.9 + 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian_mixture, "LEAST", 1000)
        found = gaussian_mixture.fit(values, prior=prior, bias="gain", inside=inside, **FAST)
    np.testing.assert_array_equal(found.classes, prior.argmax(1))


def test_no_bias_where_there_is_none():
    _, inside, values, truth = brain(noise_percent=9, bias_percent=0)
    found = gaussian_mixture.fit(values, mixed=PAIRS, bias="gain", inside=inside, **FAST)
    assert np.log(found.bias).std() < 0.08
    assert (dice(found.classes, truth) > 0.8).all()


def test_least_squares_of_polynomials():
    """The fit is NumPy's weighted least squares, where blocks are voxels and nothing is stiff."""
    rng = np.random.default_rng(4)
    inside = rng.random((13, 9, 11)) > 0.3
    basis = Polynomials.over(inside, 3)
    assert basis.exponents.shape == (19, 3)
    columns = np.stack([basis.evaluate(c[:, None])[:, 0] for c in np.eye(19)], axis=1)
    np.testing.assert_allclose(columns, basis.at_blocks[basis.block], atol=1e-9)
    weights, target = rng.random((len(columns), 1)), rng.normal(size=(len(columns), 1))
    found = basis.fit_coefficients(weights, weights * target, np.zeros(1), np.zeros((19, 1)))
    root = np.sqrt(weights)
    np.testing.assert_allclose(found, np.linalg.lstsq(columns * root, target * root)[0], rtol=1e-6)
    stiff = basis.fit_coefficients(weights, weights * target, np.full(1, 1e9), np.zeros((19, 1)))
    assert np.abs(stiff).max() < 1e-6
    two = np.column_stack([weights, np.zeros_like(weights), 2 * weights])
    both = basis.fit_coefficients(
        two, np.column_stack([weights * target, -2 * weights * target]), np.zeros(2), np.zeros((19, 2))
    )
    np.testing.assert_allclose(both, np.column_stack([found, -found]), rtol=1e-6, atol=1e-9)
    assert Polynomials.over(np.ones((9, 1, 7), bool), 2).exponents[:, 1].max() == 0  # a slice has no depth


def test_several_modalities_tell_more():
    _, inside, values, truth = brain(noise_percent=9, brightness=TWO)
    one = gaussian_mixture.fit(values[:, :1], mixed=PAIRS, bias="gain", inside=inside, **FAST)
    two = gaussian_mixture.fit(values, mixed=PAIRS, bias="gain", inside=inside, **FAST)
    assert (dice(two.classes, truth) > dice(one.classes, truth) + 0.01).all()
    assert (dice(two.classes, truth) > 0.9).all()
    assert two.bias.shape == values.shape


def test_several_gaussians_a_class():
    """Class 1 is two bumps on either side of class 0: one Gaussian cannot say that."""
    rng = np.random.default_rng(5)
    truth = rng.choice(2, 6000)
    side = rng.choice((-1, 1), 6000)
    values = np.where(truth == 0, rng.normal(50, 2, 6000), rng.normal(50 + 12 * side, 2))[:, None]
    prior = np.clip(np.eye(2)[truth] * 0.2 + 0.4, 0, 1)
    found = gaussian_mixture.fit(values, prior=prior, gaussians_per_class=(1, 2))
    assert (found.classes == truth).mean() > 0.98
    np.testing.assert_array_equal(found.of_class, (0, 1, 1))
    np.testing.assert_allclose(np.sort(found.gaussians.means[1:, 0]), (38, 62), atol=0.5)
    np.testing.assert_allclose([found.shares[0], found.shares[1:].sum()], 1)


def test_outliers_do_not_count():
    rng = np.random.default_rng(7)
    truth = rng.choice(3, 6000)
    values, start = rng.normal(100 + 12 * truth, 1 + truth)[:, None], 0.1 + 0.7 * np.eye(3)[truth]
    clean = gaussian_mixture.fit(values, start=start)
    spoilt = values.copy()
    spoilt[::50] = 400
    blind = gaussian_mixture.fit(spoilt, start=start)
    robust = gaussian_mixture.fit(spoilt, start=start, outlier_distance=3.0)
    assert robust.typicality[::50].max() < 1e-3 and np.delete(robust.typicality, np.s_[::50]).mean() > 0.97
    np.testing.assert_allclose(robust.gaussians.means, clean.gaussians.means, atol=0.5)
    assert np.abs(blind.gaussians.means - clean.gaussians.means).max() > 5
    assert (clean.typicality == 1).all()


def test_relaxation_leaves_a_wrong_prior():
    made, inside, values, truth = brain(bias_percent=0, noise_percent=6)
    shifted = np.roll(made.fractions, 4, axis=0)
    prior = np.clip(shifted[inside], 0.02, 1)
    prior /= prior.sum(1, keepdims=True)
    as_given = gaussian_mixture.fit(values, prior=prior)
    relaxed = gaussian_mixture.fit(values, prior=prior, relaxation=0.7, inside=inside)
    assert (dice(relaxed.classes, truth) > dice(as_given.classes, truth)).all()
    same = gaussian_mixture.fit(values, prior=prior, relaxation=0.0)
    np.testing.assert_array_equal(same.fractions, as_given.fractions)


def test_a_little_relaxation_leaves_the_prior_and_all_of_it_leaves_nothing():
    """The prior becomes 1 - r of what was given and r of the smoothed fractions: not the other way round."""
    _, inside, values, _ = brain(bias_percent=0, noise_percent=6)
    prior = np.random.default_rng(8).dirichlet(np.ones(3), len(values))  # far from smooth
    given = gaussian_mixture.fit(values, prior=prior)
    little = gaussian_mixture.fit(values, prior=prior, relaxation=1e-6, inside=inside)
    whole = gaussian_mixture.fit(values, prior=prior, relaxation=1 - 1e-6, inside=inside)
    assert np.abs(little.fractions - given.fractions).mean() < 0.01
    assert np.abs(whole.fractions - given.fractions).mean() > 0.05


def test_field_is_added_to_the_prior():
    values, start, _ = draw()
    toward = np.array([0.0, 2.0, -1.0])
    seen = []

    def field(fractions):
        seen.append(fractions)
        return np.tile(toward, (len(fractions), 1))

    found = gaussian_mixture.fit(
        values, prior=np.full((len(values), 3), 1 / 3), start=start, field=field, tolerance=1e-9
    )
    shifted = np.exp(toward) / np.exp(toward).sum()
    plain = gaussian_mixture.fit(values, prior=np.tile(shifted, (len(values), 1)), start=start, tolerance=1e-9)
    np.testing.assert_allclose(found.fractions, plain.fractions, atol=1e-3)
    assert len(seen) == len(found.log_likelihoods) - 1
    np.testing.assert_allclose(seen[0].sum(1), 1)


def test_prior_of_sum_zero_takes_the_mean():
    values, _, truth = draw()
    prior = 0.05 + 0.85 * np.eye(3)[truth]
    holed = prior.copy()
    holed[::10] = 0
    checked = gaussian_mixture.check_prior(holed, len(values))
    np.testing.assert_allclose(checked.sum(1), 1)
    np.testing.assert_allclose(checked[0], checked[1::10].shape[0] and np.delete(checked, np.s_[::10], 0).mean(0))
    assert (gaussian_mixture.fit(values, prior=holed).classes == truth).mean() > 0.9


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p * 1.5, "prior: expected sums of at most 1, got up to 1.5 at 60 of 60"),
        (lambda p: p - 0.5, "got negative, NaN or infinite"),
        (lambda p: p * np.nan, "finite"),
        (lambda p: p * 0, "overlap"),
        (lambda p: p * (1, 0, 1), "class 2 of 3 is empty"),
        (lambda p: p[:7], "shape"),
    ],
)
def test_priors_that_cannot_be(spoil, message):
    values, _, truth = draw(number=60)
    with pytest.raises(InputError, match=message):
        gaussian_mixture.fit(values, prior=spoil(np.eye(3)[truth]))


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        (np.zeros((0, 1)), {}, "mask is empty"),
        (np.full((40, 1), 5.0), {}, "expected different intensities"),
        (np.tile([[1.0], [2.0]], (20, 1)), {}, "classes: expected at most 2, the number of distinct values, got 3"),
        (
            np.tile([[1.0], [2.0]], (20, 1)),
            {"prior": np.full((40, 3), 1 / 3)},
            "classes: expected at most 2, the number of distinct values, got 3",
        ),
        (np.full((40, 1), np.nan), {}, "NaN"),
    ],
)
def test_values_that_cannot_be(values, how, message):
    with pytest.raises(InputError, match=message):
        gaussian_mixture.fit(values, **how)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_iterations": 0}, {"tolerance": -1}, {"outlier_distance": 0}, {"relaxation": 2}, {"classes": 0},
        {"relaxation": 0.5, "inside": LINE}, {"bias": "gain"}, {"bias": "both"},
        {"mixed": [(0, 3)]}, {"mixed": [(1, 1)]}, {"mixed": [(0, 1), (1, 0)]}, {"mixed_levels": 0},
        {"mixed": [(0, 1)], "gaussians_per_class": 2}, {"gaussians_per_class": (1, 1)}, {"gaussians_per_class": 0},
        {"classes": 2, "start": np.full((60, 3), 1 / 3)}, {"bias": "gain", "inside": LINE, "bias_order": 0},
        {"bias": "gain", "inside": LINE, "bias_every": 0},
    ],
)  # fmt: skip
def test_requests_that_cannot_be(wrong):
    with pytest.raises(InputError):
        gaussian_mixture.fit(draw(number=60)[0], **wrong)


def test_class_of_one_value():
    """A class without variance stands on the floor, and does not take over."""
    rng = np.random.default_rng(6)
    truth = rng.choice(2, 3000)
    values = np.where(truth == 0, 7.0, rng.normal(30, 4, 3000))[:, None]
    found = gaussian_mixture.fit(values, classes=2)
    np.testing.assert_array_equal(found.classes, truth)
    assert found.gaussians.means[0, 0] == pytest.approx(7) and found.gaussians.covariances[0, 0, 0] > 0
    assert isinstance(found.gaussians, Gaussians) and np.isfinite(found.log_likelihoods).all()
