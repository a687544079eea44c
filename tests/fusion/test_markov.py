"""Fusions by field and chain: against all labellings of tiny scans, without a model, and what they refuse."""

import itertools
from functools import partial

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion import majority, markov_chain, markov_field
from atlasseg.recipe import parse_recipe
from atlasseg.statistics import belief_propagation
from atlasseg.statistics.curves import scan_order
from atlasseg.statistics.label_posteriors import FLOOR, UncertainVoxels
from atlasseg.volume import Atlas, Image, LabelMap

EDGES = np.diag([0.9, 1.4, 2.1]) @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
EXACT = {"rtol": 0, "atol": 1e-9}


class Tiny:
    """A few voxels that four candidates label at random, and all the labellings of them."""

    def __init__(self, shape, classes, *, channels=1, seed=0):
        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        affine[:3, :3] = EDGES
        said = rng.integers(0, classes, (4, *shape))
        said[:, 0, 0, 0] = np.arange(4) % classes  # every label occurs
        values = rng.integers(0, 9, (*shape, channels)) + 2 * said[0][..., None]
        image = Image(values if channels > 1 else values[..., 0], affine)
        self.shape, self.classes = shape, classes
        self.target = image
        self.candidates = [Atlas(f"a{n}", image, LabelMap(labels, affine)) for n, labels in enumerate(said)]
        self.votes = (said.reshape(4, -1, 1) == np.arange(classes)).mean(axis=0)
        self.values = values.reshape(-1, channels).astype(float)
        self.labellings = np.array(list(itertools.product(range(classes), repeat=len(self.values))))

    def log_densities(self, weights):
        """(N, K) by the weighted mean and covariance of each label, its variances no less than a floor."""
        out = np.empty((len(self.values), self.classes))
        spread = self.values.var(axis=0)
        for k in range(self.classes):
            w = weights[:, k] / weights[:, k].sum()
            mean = w @ self.values
            apart = self.values - mean
            covariance = (w[:, None] * apart).T @ apart
            assert np.linalg.eigvalsh(covariance).min() > FLOOR * spread.max()  # the floor plays no part here
            _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
            out[:, k] = -0.5 * (logdet + np.einsum("nc,cd,nd->n", apart, np.linalg.inv(covariance), apart))
        return out

    def marginals(self, log_p):
        """(N, K) from the log probability of each labelling but for a constant."""
        p = np.exp(log_p - log_p.max())
        return np.stack([p @ (self.labellings == k) for k in range(self.classes)], axis=1) / p.sum()

    def sites(self, unary):
        """Sum over the voxels of (N, K) terms, for each labelling."""
        return unary[np.arange(len(unary)), self.labellings].sum(axis=1)

    def differing_pairs(self, neighbours):
        """Sum over neighbours that differ of the shortest edge over their distance, for each labelling."""
        at = np.argwhere(np.ones(self.shape, bool))
        total = np.zeros(len(self.labellings))
        for n, m in itertools.combinations(range(len(at)), 2):
            step = at[n] - at[m]
            if np.abs(step).max() == 1 and (neighbours == 26 or np.abs(step).sum() == 1):
                weight = np.linalg.norm(EDGES, axis=0).min() / np.linalg.norm(EDGES @ step)
                total += weight * (self.labellings[:, n] != self.labellings[:, m])
        return total


@pytest.fixture
def exact(monkeypatch):
    """The last result as (N, K) float64, before a map rounds it to float32."""
    held = {}
    original = UncertainVoxels.map_of

    def keep(self, weights, prior, name):
        held["dense"] = np.zeros((self.voxels.size, self.label_values.size))
        held["dense"][self.prior.places, self.prior.labels] = weights
        return original(self, weights, prior, name)

    monkeypatch.setattr(UncertainVoxels, "map_of", keep)
    return held


def log_votes(tiny):
    with np.errstate(divide="ignore"):
        return np.log(tiny.votes)


@pytest.mark.parametrize(("shape", "classes"), [((3, 2, 2), 2), ((2, 2, 2), 3), ((8, 1, 1), 3)])
@pytest.mark.parametrize("curve", ["hilbert", "serpentine"])
@pytest.mark.parametrize(("odds", "weight", "channels"), [(1.0, 0.7, 1), (3.0, 0.4, 1), (20.0, 0.0, 1), (3.0, 0.6, 2)])
def test_chain_against_all_labellings(exact, shape, classes, curve, odds, weight, channels):
    tiny = Tiny(shape, classes, channels=channels)
    sites, starts = scan_order(np.ones(shape, bool), curve)
    q = tiny.votes
    for _ in range(3):  # expectation maximisation
        same = tiny.labellings[:, sites[1:]] == tiny.labellings[:, sites[:-1]]
        log_p = np.log(odds) * (same & ~starts[1:]).sum(axis=1)
        q = tiny.marginals(log_p + tiny.sites(log_votes(tiny) + weight * tiny.log_densities(q)))
    result = markov_chain.fuse(
        tiny.target, tiny.candidates, curve=curve, stay_odds=odds, intensity_weight=weight, iterations=3
    )
    np.testing.assert_allclose(exact["dense"], q, **EXACT)
    np.testing.assert_array_equal(result.mode.reshape(-1), q.argmax(axis=1))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_field_on_a_line_against_all_labellings(exact, monkeypatch, classes, channels):
    """Without loops, belief propagation is exact."""
    tight = partial(belief_propagation.solve, tolerance=1e-13, max_iterations=2000)
    monkeypatch.setattr(belief_propagation, "solve", tight)
    tiny = Tiny((1, 8, 1), classes, channels=channels)
    unary = log_votes(tiny) + 0.6 * tiny.log_densities(tiny.votes)
    q = tiny.marginals(tiny.sites(unary) - 0.8 * tiny.differing_pairs(6))
    result = markov_field.fuse(
        tiny.target, tiny.candidates, beta=0.8, neighbours=6, intensity_weight=0.6, solver="belief_propagation",
        iterations=1,
    )  # fmt: skip
    np.testing.assert_allclose(exact["dense"], q, **EXACT)
    np.testing.assert_array_equal(result.mode.reshape(-1), q.argmax(axis=1))


@pytest.mark.parametrize("neighbours", [6, 26])
@pytest.mark.parametrize(("shape", "classes"), [((3, 2, 2), 2), ((2, 2, 2), 3), ((4, 2, 1), 3)])
@pytest.mark.parametrize("seed", range(3))
def test_best_labelling_of_a_field_against_all(exact, shape, classes, neighbours, seed):
    """Graph cut finds the least energy; the result is each voxel's probability given its neighbours in it."""
    tiny = Tiny(shape, classes, seed=seed)
    unary = log_votes(tiny) + 0.5 * tiny.log_densities(tiny.votes)
    log_p = tiny.sites(unary) - 0.4 * tiny.differing_pairs(neighbours)
    best = tiny.labellings[log_p.argmax()]
    expected = np.zeros_like(unary)
    for n, k in itertools.product(range(len(unary)), range(classes)):
        changed = (np.delete(tiny.labellings == best, n, axis=1)).all(axis=1) & (tiny.labellings[:, n] == k)
        expected[n, k] = np.exp(log_p[changed] - log_p.max())[0]
    expected /= expected.sum(axis=1, keepdims=True)
    result = markov_field.fuse(
        tiny.target, tiny.candidates, beta=0.4, neighbours=neighbours, intensity_weight=0.5, solver="graph_cut",
        iterations=1,
    )  # fmt: skip
    np.testing.assert_allclose(exact["dense"], expected, **EXACT)
    np.testing.assert_array_equal(result.mode.reshape(-1), best)


def test_coupling_does_not_depend_on_the_number_of_labels():
    """Further labels that occur far away change nothing here."""
    shape = (9, 2, 2)
    rng = np.random.default_rng(2)
    said = np.zeros((4, *shape), int)
    said[:, :3] = rng.integers(0, 2, (4, 3, 2, 2))
    more = said.copy()
    more[:, 8] = rng.integers(2, 40, (4, 2, 2))
    image = Image(rng.normal(size=shape), np.eye(4))
    few, many = (
        markov_chain.fuse(
            image, [Atlas(f"a{n}", image, LabelMap(labels, np.eye(4))) for n, labels in enumerate(each)],
            stay_odds=5, intensity_weight=0, curve="serpentine",
        )
        for each in (said, more)
    )  # fmt: skip
    assert (few.probability(1)[:3] > 0).any()
    np.testing.assert_allclose(many.probability(1)[:3], few.probability(1)[:3], atol=1e-7)


def test_former_coupling_is_told():
    with pytest.raises(InputError, match=r"\[fusion.markov_chain\] stays is now called stay_odds\. Rename the key"):
        parse_recipe({"fusion": {"method": "markov_chain", "markov_chain": {"stays": 0.5}}})


def test_without_a_model_the_votes_come_back(problem):
    given = problem()
    votes = majority.fuse(given.target, given.candidates).dense()
    field = markov_field.fuse(given.target, given.candidates, beta=0, intensity_weight=0)
    chain = markov_chain.fuse(given.target, given.candidates, stay_odds=1, intensity_weight=0)
    np.testing.assert_allclose(field.dense(), votes, atol=1e-6)
    np.testing.assert_allclose(chain.dense(), votes, atol=1e-6)


@pytest.mark.parametrize("options", [{"curve": "serpentine"}, {"stay_odds": None}, {"intensity_weight": 1.0}])
def test_chains_stay_among_the_votes(problem, options):
    given = problem(masks=True, channels=2)
    votes = majority.fuse(given.target, given.candidates).dense()
    found = markov_chain.fuse(given.target, given.candidates, **options).dense()
    assert (found[votes == 0] == 0).all() and np.isfinite(found).all()
    assert np.abs(found - votes).max() > 0.01


def test_what_is_refused(problem):
    given = problem()
    for odds in (0.0, 0.5, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="stay_odds"):
            markov_chain.fuse(given.target, given.candidates, stay_odds=odds)
    with pytest.raises(InputError, match="'spiral'"):
        markov_chain.fuse(given.target, given.candidates, curve="spiral")
    for fuse in (markov_chain.fuse, markov_field.fuse):
        with pytest.raises(InputError, match="intensity_weight"):
            fuse(given.target, given.candidates, intensity_weight=1.5)
        with pytest.raises(InputError, match="iterations"):
            fuse(given.target, given.candidates, iterations=0)
    with pytest.raises(InputError, match="beta"):
        markov_field.fuse(given.target, given.candidates, beta=-0.1)
