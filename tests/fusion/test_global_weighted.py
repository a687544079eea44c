import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion.global_weighted import fuse
from atlasseg.similarity import create_metric

ROUNDING = 1e-4  # float32 intensities, weights raised to powers


@pytest.mark.parametrize("similarity", ["correlation", "mean_squares", "mutual_information"])
def test_weights(problem, standardised, similarity):
    case = problem(4)  # disagreement nearly to the border, so the box with its margin is the whole grid
    t = standardised(case.scan[..., None], np.ones(case.scan.shape, bool))
    weights = []
    for image in case.images:
        a = standardised(image[..., None], np.ones(case.scan.shape, bool))
        if similarity == "correlation":
            weights.append(max(np.corrcoef(t.ravel(), a.ravel())[0, 1], 0))
        elif similarity == "mean_squares":
            weights.append(1 / ((t - a) ** 2).mean())
        else:
            weights.append(create_metric("mutual_information").value(t, a))
    result = fuse(case.target, case.candidates, similarity=similarity, power=3.0)
    w = np.array(weights) ** 3
    expected = ((case.labels == 2) * w[:, None, None, None]).sum(0) / w.sum()
    assert w.min() < 0.9 * w.max()
    np.testing.assert_allclose(result.probability(2), expected, atol=ROUNDING)


def test_channels_differ(problem):
    with pytest.raises(InputError, match=r"'a0': expected 2 channels, as in the target 'scan', got 1"):
        fuse(problem(channels=2).target, problem().candidates)


@pytest.mark.parametrize("wrong", [{"similarity": "beauty"}, {"power": 0.0}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
