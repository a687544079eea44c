"""Against a loop over voxels and candidates, fractions, fields of view and labels that nobody drew included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import GeometryError
from atlasseg.evaluation.disagreement import disagreement
from atlasseg.volume import Atlas, Image, LabelMap, Mask, ProbabilityMap

AFFINE = np.array([[-0.8, 0.3, 0, 5], [0.2, 1.1, 0, 7], [0, 0, 2, -3], [0, 0, 0, 1.0]])
SHAPE = (4, 5, 3)
LABELS = (0, 3, 9)


def candidates(rng):
    image = Image(rng.normal(size=SHAPE), AFFINE)
    soft = rng.dirichlet([0.5, 0.3, 0.3], SHAPE)
    soft[:2] = [0, 1, 0]
    seen = np.ones(SHAPE, bool)
    seen[:, 3:] = False
    return [
        Atlas("hard", image, LabelMap(rng.choice(LABELS, SHAPE), AFFINE)),
        Atlas("soft", image, ProbabilityMap.from_dense(soft, LABELS, AFFINE), Mask(seen, AFFINE)),
        Atlas("silent", image, LabelMap(rng.choice([0, 3], SHAPE), AFFINE), not_annotated=frozenset({9})),
    ]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    given_, fused = candidates(rng), LabelMap(rng.choice(LABELS, SHAPE), AFFINE)
    found = disagreement(given_, fused)
    for x in np.ndindex(SHAPE):
        label, votes = fused.array[x], []
        for atlas in given_:
            if label in atlas.not_annotated or (atlas.mask is not None and not atlas.mask.array[x]):
                continue
            hard = isinstance(atlas.labels, LabelMap)
            votes.append(atlas.labels.array[x] != label if hard else 1 - atlas.labels.probability(label)[x])
        np.testing.assert_allclose(found[x], np.mean(votes), atol=1e-6)


def test_nobody_votes_and_other_grids():
    blind = Atlas(
        "blind",
        Image(np.zeros(SHAPE), AFFINE),
        LabelMap(np.full(SHAPE, 3), AFFINE),
        Mask(np.zeros(SHAPE, bool), AFFINE),
    )
    fused = LabelMap(np.full(SHAPE, 9), AFFINE)
    assert (disagreement([blind], fused) == 0).all()
    moved = AFFINE.copy()
    moved[0, 3] += 1
    with pytest.raises(GeometryError, match="'blind': expected the grid"):
        disagreement([blind], LabelMap(fused.array, moved))
