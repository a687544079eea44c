import numpy as np

from atlasseg.fusion.majority import fuse
from atlasseg.volume import Atlas, Image, LabelMap, ProbabilityMap

ROUNDING = 1e-6  # float32 probabilities


def test_mean_of_the_votes(problem):
    case = problem(5)
    result = fuse(case.target, case.candidates)
    for label in (0, 2, 5):
        np.testing.assert_allclose(result.probability(label), (case.labels == label).mean(0), atol=ROUNDING)


def test_tie_goes_to_the_smallest_label_in_any_order():
    affine = np.diag([-1.0, 2, 3, 1])
    image = Image(np.zeros((2, 1, 1)), affine)
    votes = [[7, 7], [7, 3], [3, 3], [3, 9]]  # 7 7 3 3 and 7 3 3 9
    atlases = [Atlas(f"a{n}", image, LabelMap(np.reshape(v, (2, 1, 1)), affine)) for n, v in enumerate(votes)]
    for order in ((0, 1, 2, 3), (3, 1, 2, 0), (1, 0, 3, 2)):
        assert fuse(image, [atlases[n] for n in order]).mode.ravel().tolist() == [3, 3]


def test_soft_and_hard():
    affine = np.eye(4)
    image = Image(np.zeros((1, 1, 1)), affine)
    parts = [[0.9, 0.1], [0.4, 0.6], [0.45, 0.55]]
    atlases = [
        Atlas(f"a{n}", image, ProbabilityMap.from_dense(np.reshape(p, (1, 1, 1, 2)), [0, 1], affine))
        for n, p in enumerate(parts)
    ]
    soft, hard = fuse(image, atlases), fuse(image, atlases, soft=False)
    np.testing.assert_allclose(soft.probability(1).item(), np.mean([0.1, 0.6, 0.55]), atol=ROUNDING)
    np.testing.assert_allclose(hard.probability(1).item(), 2 / 3, atol=ROUNDING)
    assert soft.mode.item() == 0 and hard.mode.item() == 1
