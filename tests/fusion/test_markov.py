"""The fusions by field and chain: what they do without a model, and what they refuse."""

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion import majority, markov_chain, markov_field


def test_without_a_model_the_votes_come_back(problem):
    given = problem()
    votes = majority.fuse(given.target, given.candidates).dense()
    field = markov_field.fuse(given.target, given.candidates, beta=0, intensity_weight=0)
    chain = markov_chain.fuse(given.target, given.candidates, stays=1 / 3, intensity_weight=0)
    np.testing.assert_allclose(field.dense(), votes, atol=1e-6)
    np.testing.assert_allclose(chain.dense(), votes, atol=1e-6)


@pytest.mark.parametrize("options", [{"curve": "serpentine"}, {"stays": None}, {"intensity_weight": 1.0}])
def test_chains_stay_among_the_votes(problem, options):
    given = problem(masks=True, channels=2)
    votes = majority.fuse(given.target, given.candidates).dense()
    found = markov_chain.fuse(given.target, given.candidates, **options).dense()
    assert (found[votes == 0] == 0).all() and np.isfinite(found).all()
    assert np.abs(found - votes).max() > 0.01


def test_what_is_refused(problem):
    given = problem()
    for stays in (0.0, 1.0, -1.0):
        with pytest.raises(InputError, match="stays"):
            markov_chain.fuse(given.target, given.candidates, stays=stays)
    with pytest.raises(InputError, match="'spiral'"):
        markov_chain.fuse(given.target, given.candidates, curve="spiral")
    for fuse in (markov_chain.fuse, markov_field.fuse):
        with pytest.raises(InputError, match="intensity_weight"):
            fuse(given.target, given.candidates, intensity_weight=1.5)
        with pytest.raises(InputError, match="iterations"):
            fuse(given.target, given.candidates, iterations=0)
    with pytest.raises(InputError, match="beta"):
        markov_field.fuse(given.target, given.candidates, beta=-0.1)
