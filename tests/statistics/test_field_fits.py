"""Fields whose Gaussians are estimated; what such a field and LOCUS refuse."""

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.statistics import gaussian_mixture, locus, markov_field

EDGES = np.diag([0.9, 1.4, 2.1]) @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
SHAPE = (17, 15, 12)


def scan(noise=0.4, *, shade=0.0, seed=0):
    """Three layers in a region, with a shade along the first axis."""
    rng = np.random.default_rng(seed)
    index = np.indices(SHAPE)
    truth = ((index[1] + 0.5 * index[2]) // 7).astype(int).clip(0, 2)
    inside = (index[0] + index[1]) > 3
    values = truth + shade * (index[0] / SHAPE[0] - 0.5) + rng.normal(0, noise, SHAPE)
    return values[inside][:, None], inside, truth[inside]


@pytest.mark.parametrize("solver", markov_field.SOLVERS)
def test_neighbours_help(solver):
    values, inside, truth = scan()
    found = markov_field.fit(values, inside, EDGES, solver=solver)
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1)
    np.testing.assert_allclose(found.gaussians.means.ravel(), [0, 1, 2], atol=0.15)
    alone = gaussian_mixture.fit(values, classes=3).classes
    assert (found.classes == truth).mean() > max((alone == truth).mean() + 0.07, 0.92)


def test_free_energy_never_rises():
    values, inside, _ = scan(0.7)
    found = markov_field.fit(values, inside, EDGES, tolerance=0, max_iterations=20)
    assert (np.diff(found.free_energies) <= 1e-7).all() and len(found.free_energies) == 20


def test_prior_keeps_its_order():
    values, inside, truth = scan()
    prior = np.full((truth.size, 3), 0.2)
    prior[np.arange(truth.size), 2 - truth] = 0.6
    found = markov_field.fit(values, inside, EDGES, prior=prior)
    assert (found.classes == 2 - truth).mean() > 0.97


@pytest.mark.parametrize("fit", [markov_field.fit, locus.fit])
def test_what_is_refused(fit):
    values, inside, truth = scan()
    with pytest.raises(InputError, match="mask is empty"):
        fit(values[:0], np.zeros(SHAPE, bool), EDGES)
    with pytest.raises(InputError, match="region's"):
        fit(values[1:], inside, EDGES)
    with pytest.raises(InputError, match="distinct"):
        fit(np.full(values.shape, 4.0), inside, EDGES)
    with pytest.raises(InputError, match="distinct"):
        fit(np.full(values.shape, 4.0), inside, EDGES, prior=np.full((truth.size, 3), 1 / 3))
    with pytest.raises(InputError, match="NaN"):
        fit(values * np.nan, inside, EDGES)
    with pytest.raises(InputError, match="class 1 of 2 is empty"):
        fit(values, inside, EDGES, prior=np.tile([0.0, 1.0], (truth.size, 1)))
    with pytest.raises(InputError, match="beta"):
        fit(values, inside, EDGES, beta=-0.1)
    with pytest.raises(InputError, match="solver"):
        fit(values, inside, EDGES, solver="annealing")
    with pytest.raises(InputError, match="max_iterations"):
        fit(values, inside, EDGES, max_iterations=0)
