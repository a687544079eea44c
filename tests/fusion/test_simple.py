import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion.simple import fuse
from atlasseg.volume import Atlas, LabelMap

ROUNDING = 1e-6  # float32 probabilities


def by_hand(said, seen, labels, alpha, power):
    kept, f = np.ones(len(said), bool), np.ones(len(said))

    def vote():
        w = (kept * f**power)[:, None, None, None] * seen
        w = np.where(w.sum(0) > 0, w, seen)
        p = np.stack([((said == v) * w).sum(0) for v in labels], -1)
        p[~seen.any(0)] = [1, 0, 0]
        return p / p.sum(-1, keepdims=True)

    def overlap(s, e, m):
        counted = [v for v in labels if v and (((s == v) | (e == v)) & m).any()]
        both = [((s == v) & (e == v) & m).sum() for v in counted]
        return np.mean(
            [2 * b / (((s == v) & m).sum() + ((e == v) & m).sum()) for b, v in zip(both, counted, strict=True)]
        )

    p = vote()
    for _ in range(20):
        estimate = np.array(labels)[p.argmax(-1)]
        f = np.array([overlap(s, estimate, m) for s, m in zip(said, seen, strict=True)])
        dropped = kept & (f < f[kept].mean() - alpha * f[kept].std() - 1e-9)
        kept &= ~dropped
        p = vote()
        if not dropped.any() and (np.array(labels)[p.argmax(-1)] == estimate).all():
            break
    return p, kept


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(("alpha", "power"), [(0.5, 1.0), (2.0, 1.0), (1.0, 0.0)])
def test_against_dense_arrays(problem, alpha, power, masks):
    case = problem(7, masks=masks)
    expected, kept = by_hand(case.labels, case.masks, [0, 2, 5], alpha, power)
    result = fuse(case.target, case.candidates, alpha=alpha, power=power)
    assert alpha > 1 or not kept.all()
    np.testing.assert_allclose(result.dense()[case.disagreement], expected[case.disagreement], atol=ROUNDING)


def test_an_outlier_goes(problem):
    case = problem(1)
    wrong = LabelMap(np.roll(case.labels[0], 4, axis=1), case.affine)
    twins = [Atlas(f"twin{n}", case.candidates[0].image, case.candidates[0].labels) for n in range(6)]
    stray = Atlas("stray", case.candidates[0].image, wrong)
    np.testing.assert_array_equal(fuse(case.target, [*twins, stray]).confidence(), 1)  # 6 of 6, not 6 of 7


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"power": -2.0}, {"max_iterations": 0}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
