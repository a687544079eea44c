"""Fields and their solvers against enumeration, trees, and what theory promises of energies."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from atlasseg.errors import InputError
from atlasseg.statistics import belief_propagation, graph_cut, icm, mean_field
from atlasseg.statistics._field import dense_field, directions, field_of_labels
from atlasseg.volume import LabelWeights

EDGES = np.diag([0.9, 1.4, 2.1]) @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def problem(shape=(2, 3, 2), classes=2, *, seed=0, beta=0.7, neighbours=6, interaction=None, holes=0.0):
    rng = np.random.default_rng(seed)
    inside = rng.random(shape) >= holes
    unary = rng.normal(0, 1, (int(inside.sum()), classes))
    return dense_field(unary, inside, EDGES, beta=beta, neighbours=neighbours, interaction=interaction), unary, inside


def energy_by_hand(unary, inside, labels, beta, neighbours, interaction=None):
    """Over all pairs of voxels, by their distance in mm."""
    at = np.argwhere(inside)
    V = 1 - np.eye(unary.shape[1]) if interaction is None else interaction
    total = unary[np.arange(len(at)), labels].sum()
    shortest = np.linalg.norm(EDGES, axis=0).min()
    for n, m in itertools.combinations(range(len(at)), 2):
        step = at[n] - at[m]
        if np.abs(step).max() == 1 and (neighbours == 26 or np.abs(step).sum() == 1):
            total += beta * shortest / np.linalg.norm(EDGES @ step) * V[labels[n], labels[m]]
    return total


def every(field):
    """All labellings as slots, and their energies."""
    ranges = [range(a, b) for a, b in itertools.pairwise(field.costs.offsets)]
    slots = np.array(list(itertools.product(*ranges)))
    return slots, np.array([field.energy(s) for s in slots])


@pytest.mark.parametrize("neighbours", [6, 26])
def test_energy_by_hand(neighbours):
    V = np.array([[0, 1.0, 3], [1, 0, 2], [3, 2, 0]])
    for interaction in (None, V):
        field, unary, inside = problem((3, 4, 2), 3, neighbours=neighbours, interaction=interaction, holes=0.3)
        labels = np.random.default_rng(1).integers(0, 3, len(unary))
        chosen = field.costs.offsets[:-1] + labels
        by_hand = energy_by_hand(unary, inside, labels, 0.7, neighbours, interaction)
        assert field.energy(chosen) == pytest.approx(by_hand, abs=1e-12)


def test_certain_neighbours_and_few_labels():
    """Voxels with their own labels, beside voxels whose label is known, pay as in the whole field."""
    shape = (3, 4, 3)
    rng = np.random.default_rng(5)
    certain = rng.integers(0, 3, shape).astype(np.int32)
    voxels = np.array([5, 6, 16, 17, 18, 30])
    certain.reshape(-1)[voxels] = -1
    sets = [(0, 1), (1, 2), (0, 1, 2), (0, 2), (2,), (0, 1)]
    labels = np.concatenate(sets).astype(np.int32)
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in sets])))
    unary = rng.normal(size=labels.size)
    field = field_of_labels(
        LabelWeights(offsets, labels, unary), voxels, shape, EDGES, beta=0.6, neighbours=26,
        number_of_labels=3, certain=certain.reshape(-1),
    )  # fmt: skip
    slots, energies = every(field)

    def whole(chosen):
        full = certain.reshape(-1).copy()
        full[voxels] = labels[chosen]
        costs = energy_by_hand(np.zeros((full.size, 3)), np.ones(shape, bool), full, 0.6, 26)
        return costs + unary[chosen].sum()

    by_hand = np.array([whole(s) for s in slots])
    np.testing.assert_allclose(energies - energies[0], by_hand - by_hand[0], atol=1e-10)


@pytest.mark.parametrize("neighbours", [6, 26])
def test_neighbours_of_one_colour_do_not_touch(neighbours):
    field, _, _ = problem((4, 5, 3), neighbours=neighbours)
    assert field.colours.size - 1 == (2 if neighbours == 6 else 8)
    np.testing.assert_array_equal(np.sort(field.order), np.arange(60))
    for first, last in itertools.pairwise(field.colours):
        assert not np.isin(field.neighbours[field.order[first:last]], field.order[first:last]).any()
    steps = directions(neighbours)
    np.testing.assert_array_equal(steps, -steps[::-1])


@pytest.mark.parametrize("neighbours", [6, 26])
@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_free_energy_never_rises(neighbours, damping):
    for seed in range(5):
        field, _, _ = problem((5, 6, 4), 4, seed=seed, beta=1.5, neighbours=neighbours, holes=0.2)
        found = mean_field.solve(field, damping=damping, max_iterations=15, tolerance=0)
        assert (np.diff(found.history) <= 1e-9).all() and found.history[-1] < found.history[0]
        np.testing.assert_allclose(np.add.reduceat(found.values, field.costs.offsets[:-1]), 1)


def test_mean_field_bounds_the_partition_function():
    field, _, _ = problem((2, 2, 3), 2, beta=0.5)
    _, energies = every(field)
    assert mean_field.solve(field, tolerance=1e-10, max_iterations=500).history[-1] >= -logsumexp(-energies)
    free, unary, _ = problem(beta=0.0)  # without neighbours it is exact
    assert mean_field.solve(free).history[-1] == pytest.approx(-logsumexp(-unary, axis=1).sum(), abs=1e-10)


@pytest.mark.parametrize("neighbours", [6, 26])
def test_modes_lower_the_energy_to_where_no_single_change_helps(neighbours):
    for seed in range(5):
        field, unary, _ = problem((5, 4, 3), 3, seed=seed, neighbours=neighbours, holes=0.2)
        found = icm.solve(field)
        assert found.converged and (np.diff(found.energies) <= 1e-9).all()
        labels = field.costs.labels[found.chosen]
        single = field.conditional(found.chosen).reshape(unary.shape)
        np.testing.assert_allclose(single[np.arange(len(labels)), labels], single.max(axis=1))


def test_conditionals_are_differences_of_energy():
    field, unary, _ = problem((2, 3, 2), 3, neighbours=26)
    chosen = field.costs.offsets[:-1] + np.random.default_rng(3).integers(0, 3, len(unary))
    conditional = field.conditional(chosen).reshape(unary.shape)
    for n in range(len(unary)):
        energies = []
        for s in range(3):
            other = chosen.copy()
            other[n] = field.costs.offsets[n] + s
            energies.append(field.energy(other))
        np.testing.assert_allclose(conditional[n], np.exp(-np.array(energies) - logsumexp(-np.array(energies))))


@pytest.mark.parametrize("product", ["sum", "max"])
def test_belief_propagation_is_exact_on_a_tree(product):
    """A chain that bends: (max-)marginals by enumeration."""
    inside = np.zeros((3, 3, 2), bool)
    for at in [(0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 2, 0), (1, 2, 1)]:
        inside[at] = True
    unary = np.random.default_rng(2).normal(size=(6, 3))
    V = np.array([[0, 1.0, 3], [1, 0, 2], [3, 2, 0]])
    field = dense_field(unary, inside, EDGES, beta=0.8, interaction=V)
    slots, energies = every(field)
    marginal = np.empty(field.costs.values.size)
    for s in range(marginal.size):
        own = -energies[(slots == s).any(axis=1)]
        marginal[s] = logsumexp(own) if product == "sum" else own.max()
    marginal = np.exp(marginal.reshape(6, 3))
    marginal /= marginal.sum(axis=1, keepdims=True)
    found = belief_propagation.solve(field, product=product, damping=0, tolerance=1e-12)
    assert found.converged
    np.testing.assert_allclose(found.values.reshape(6, 3), marginal, atol=1e-10)


def test_belief_propagation_with_loops_is_nearer_than_mean_field():
    field, _, _ = problem((2, 3, 2), 2, beta=0.4)
    slots, energies = every(field)
    p = np.exp(-energies - logsumexp(-energies))
    exact = np.array([p[(slots == s).any(axis=1)].sum() for s in range(field.costs.values.size)])
    loopy = belief_propagation.solve(field, max_iterations=200, tolerance=1e-9)
    assert loopy.converged
    near = np.abs(loopy.values - exact).max()
    assert near < 0.02 and near < np.abs(mean_field.solve(field).values - exact).max()


@pytest.mark.parametrize("neighbours", [6, 26])
def test_graph_cut_is_optimal_on_two_labels(neighbours):
    for seed in range(8):
        field, _, _ = problem((3, 2, 2), 2, seed=seed, beta=1.0, neighbours=neighbours, holes=0.1)
        slots, energies = every(field)
        found = graph_cut.solve(field)
        np.testing.assert_array_equal(found.chosen, slots[energies.argmin()])


def test_expansion_is_within_twice_the_best_and_no_move_helps():
    V = np.array([[0, 1.0, 1.5], [1, 0, 0.8], [1.5, 0.8, 0]])
    for seed in range(5):
        for interaction, bound in ((None, 2), (V, 2 * 1.5 / 0.8)):
            field, _, _ = problem((2, 2, 2), 3, seed=seed, interaction=interaction)
            field = field.with_unary(np.abs(field.costs.values))
            slots, energies = every(field)
            found = graph_cut.solve(field)
            assert found.converged and (np.diff(found.energies) <= 1e-9).all()
            assert energies.min() - 1e-9 <= found.energies[-1] <= bound * energies.min()
            of_slots = field.costs.labels[slots]
            now = field.costs.labels[found.chosen]
            for label in range(3):
                moves = ((of_slots == now) | (of_slots == label)).all(axis=1)
                assert energies[moves].min() >= found.energies[-1] - 1e-9


def test_solvers_of_lower_energy():
    """As a rule on noisy blocks: cut at most modes."""
    rng = np.random.default_rng(0)
    truth = (np.indices((9, 10, 7)).sum(axis=0) // 9).clip(0, 2)
    unary = (rng.normal(truth, 0.3)[..., None] - np.arange(3)).reshape(-1, 3) ** 2 / (2 * 0.3**2)
    field = dense_field(unary, np.ones(truth.shape, bool), EDGES, beta=0.5)
    cut, modes = graph_cut.solve(field), icm.solve(field)
    assert cut.energies[-1] <= modes.energies[-1] < modes.energies[0]
    for chosen in (cut.chosen, modes.chosen, field.best(mean_field.solve(field).values)):
        assert (field.costs.labels[chosen] == truth.reshape(-1)).mean() > 0.94


def test_what_is_refused():
    shape = (2, 3, 2)
    inside = np.ones(shape, bool)
    unary = np.zeros((12, 3))
    with pytest.raises(InputError, match="mask is empty"):
        dense_field(np.zeros((0, 3)), np.zeros(shape, bool), EDGES, beta=1)
    with pytest.raises(InputError, match="12 voxels"):
        dense_field(unary[:5], inside, EDGES, beta=1)
    with pytest.raises(InputError, match="beta"):
        dense_field(unary, inside, EDGES, beta=-1)
    with pytest.raises(InputError, match="6 or 26"):
        dense_field(unary, inside, EDGES, beta=1, neighbours=18)
    with pytest.raises(InputError, match="interaction of shape"):
        dense_field(unary, inside, EDGES, beta=1, interaction=np.zeros((2, 2)))
    with pytest.raises(InputError, match="symmetric"):
        dense_field(unary, inside, EDGES, beta=1, interaction=np.triu(np.ones((3, 3)), 1))
    squared = (np.arange(3.0)[:, None] - np.arange(3.0)) ** 2
    field = dense_field(unary, inside, EDGES, beta=1, interaction=squared)
    with pytest.raises(InputError, match=r"V\(0, 2\) = 4, more than V\(0, 1\)"):
        graph_cut.solve(field)
    icm.solve(field)  # which needs no metric
    for solve in (mean_field.solve, belief_propagation.solve):
        with pytest.raises(InputError, match="damping"):
            solve(field, damping=1.0)
    with pytest.raises(InputError, match="max_iterations"):
        icm.solve(field, max_iterations=0)
    with pytest.raises(InputError, match="max_cycles"):
        graph_cut.solve(field, max_cycles=0)
    with pytest.raises(InputError, match="product: expected sum or max"):
        belief_propagation.solve(field, product="min")
