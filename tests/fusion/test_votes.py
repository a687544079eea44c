import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.fusion._votes import Votes
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

ROUNDING = 1e-6  # float32 probabilities


def by_hand(fractions, seen, weights, unknown, labels):
    """Weighted votes of (N, V, L) fractions, with the rule for labels that were not annotated, voxel by voxel."""
    n, voxels, _ = fractions.shape
    background = labels.index(0)
    out = np.zeros(fractions.shape[1:])
    for x in range(voxels):
        w = [weights[i, x] if seen[i, x] else 0 for i in range(n)]
        if not sum(w) > 0:
            w = [float(s) for s in seen[:, x]]
        for i in range(n):
            for k in range(len(labels)):
                vote = w[i] * fractions[i, x, k]
                ambiguous = {background} | {labels.index(u) for u in unknown[i] if u in labels}
                if k != background or len(ambiguous) == 1:
                    out[x, k] += vote
                    continue
                known = dict.fromkeys(ambiguous, 0.0)
                for j in range(n):
                    if not (set(unknown[j]) & set(unknown[i])):
                        for a in ambiguous:
                            known[a] += w[j] * fractions[j, x, a]
                total = sum(known.values())
                for a in ambiguous:
                    out[x, a] += vote * (known[a] / total if total > 0 else a == background)
        if not seen[:, x].any():
            out[x, background] = 1
    return out / out.sum(1, keepdims=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 6), hard=st.booleans())
def test_against_votes_by_hand(seed, number, hard):
    rng = np.random.default_rng(seed)
    shape, labels = (3, 2, 2), [0, 4, 9]
    affine = np.diag([1.0, 2, 3, 1])
    fractions = rng.integers(0, 3, (number, 12, 3)).astype(float)
    fractions[fractions.sum(-1) == 0] = [1, 0, 0]
    if hard:
        fractions = np.eye(3)[fractions.argmax(-1)]
    fractions /= fractions.sum(-1, keepdims=True)
    seen = rng.random((number, 12)) < 0.8
    unknown = [frozenset(np.array([4, 9])[rng.random(2) < 0.3].tolist()) for _ in range(number)]
    weights = rng.choice([0.0, 0.5, 2.0], (number, 12))
    candidates = []
    for i in range(number):
        dense = fractions[i].reshape(*shape, 3)
        given_labels = (
            LabelMap(np.array(labels)[dense.argmax(-1)], affine)
            if hard
            else ProbabilityMap.from_dense(dense, labels, affine)
        )
        mask = Mask(seen[i].reshape(shape), affine)
        candidates.append(Atlas(f"a{i}", Image(np.zeros(shape), affine), given_labels, mask, unknown[i]))
    votes = Votes.gather(Image(np.zeros(shape), affine), candidates)
    result = votes.cast(weights[:, votes.voxels])
    expected = by_hand(fractions, seen, weights, unknown, labels)
    for k, label in enumerate(labels):
        np.testing.assert_allclose(result.probability(label).reshape(-1), expected[:, k], atol=ROUNDING)


def test_weights_that_do_not_fit(problem):
    case = problem()
    votes = Votes.gather(case.target, case.candidates)
    with pytest.raises(InputError, match=r"weights: expected shape .*got \(4, 3\)"):
        votes.cast(np.ones((4, 3)))


def test_only_some(problem):
    case = problem(masks=True)
    votes = Votes.gather(case.target, case.candidates)
    chosen = np.random.default_rng(0).random((4, votes.voxels.size)) < 0.7
    chosen[:, ~(chosen & case.masks.reshape(4, -1)[:, votes.voxels]).any(0)] = True
    a, b = votes.restrict(chosen).cast(), votes.cast(chosen.astype(float))
    np.testing.assert_allclose(a.dense(), b.dense(), atol=ROUNDING)


def test_memory_follows_the_active_voxels(problem):
    case = problem()
    votes = Votes.gather(case.target, case.candidates)
    assert votes.voxels.size == case.disagreement.sum()
    assert votes.entry_candidates.size == 4 * votes.voxels.size
    assert votes.slot_labels.size < 3 * votes.voxels.size
