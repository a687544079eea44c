import logging

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.fusion.simple import fuse
from atlasseg.volume import Atlas, Image, LabelMap

ROUNDING = 1e-6  # float32 probabilities


def by_hand(said, seen, labels, alpha, power, threshold):
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
        dropped = kept & (f < threshold(f[kept], alpha) - 1e-9)
        kept &= ~dropped
        p = vote()
        if not dropped.any() and (np.array(labels)[p.argmax(-1)] == estimate).all():
            break
    return p, kept


def below_mean(f, alpha):
    return f.mean() - alpha * np.sqrt(((f - f.mean()) ** 2).mean())


def below_median(f, alpha):
    middle = np.sort(f)[len(f) // 2] if len(f) % 2 else np.sort(f)[len(f) // 2 - 1 : len(f) // 2 + 1].mean()
    return middle - max(1.4826022 * alpha * np.median(np.abs(f - middle)), 0.01)


RULES = {"mean": below_mean, "median": below_median}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize(("alpha", "power"), [(0.5, 1.0), (3.0, 1.0), (1.0, 0.0)])
def test_against_dense_arrays(problem, alpha, power, rule, masks):
    case = problem(7, masks=masks)
    expected, kept = by_hand(case.labels, case.masks, [0, 2, 5], alpha, power, RULES[rule])
    result = fuse(case.target, case.candidates, rule=rule, alpha=alpha, margin=0.01, power=power)
    assert alpha > {"mean": 1, "median": 0.5}[rule] or not kept.all()  # something is dropped
    np.testing.assert_allclose(result.dense()[case.disagreement], expected[case.disagreement], atol=ROUNDING)


def test_an_outlier_goes(problem):
    case = problem(1)
    wrong = LabelMap(np.roll(case.labels[0], 4, axis=1), case.affine)
    twins = [Atlas(f"twin{n}", case.candidates[0].image, case.candidates[0].labels) for n in range(6)]
    stray = Atlas("stray", case.candidates[0].image, wrong)
    np.testing.assert_array_equal(fuse(case.target, [*twins, stray]).confidence(), 1)  # 6 of 6, not 6 of 7


SHAPE = (22, 19, 15)


def library(number, misfits, kind, seed):
    """A scan's grid and `number` atlases of nested ellipsoids with errors of their own, of which the last are misfits.

    `apart` misfits are each displaced by 5 to 7 mm in a direction of its own, `alike` all in one, and of `wrong` the
    structures have other sizes as well.
    """
    rng = np.random.default_rng(seed)
    spacing = np.array([0.9, 1.1, 1.3])
    affine = np.diag([*spacing * [-1, 1, 1], 1])
    at = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1) * spacing
    middle = (np.array(SHAPE) - 1) / 2 * spacing
    common = rng.normal(size=3)
    atlases = []
    for n in range(number):
        centre, radii = middle + rng.normal(0, 0.35, 3), np.array([6.5, 6, 5.5]) * rng.normal(1, 0.04, 3)
        if n >= number - misfits:
            way = common if kind == "alike" else rng.normal(size=3)
            centre = centre + rng.uniform(5, 7) * way / np.linalg.norm(way)
            if kind == "wrong":
                radii = radii * rng.choice([0.6, 1.5], 3)
        r = np.sqrt((((at - centre) / radii) ** 2).sum(-1))
        said = np.array([5, 2, 0])[np.digitize(r, [0.6, 1.0])]
        image = Image(np.zeros(SHAPE, np.float32), affine)
        atlases.append(Atlas(f"a{n}", image, LabelMap(said, affine)))
    return atlases


def left(caplog, atlases, **parameters):
    """(N,) whether each atlas is kept, as the log has it."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "atlasseg.fusion.simple"):
        fuse(atlases[0].image, atlases, **parameters)
    dropped = {r.args[0] for r in caplog.records if r.levelno == logging.DEBUG}
    return np.array([a.id not in dropped for a in atlases])


@pytest.mark.parametrize("kind", ["apart", "alike", "wrong"])
@pytest.mark.parametrize(("number", "misfits"), [(5, 1), (5, 2), (7, 3), (10, 2), (10, 4), (20, 1), (20, 4)])
def test_misfits_go_and_the_others_stay(caplog, number, misfits, kind):
    """Of 5 libraries, all misfits are dropped, and at most 8 % of the good atlases."""
    kept = np.array([left(caplog, library(number, misfits, kind, seed)) for seed in range(5)])
    assert not kept[:, number - misfits :].any()
    assert (~kept[:, : number - misfits]).mean() <= 0.08


@pytest.mark.parametrize("number", [5, 10, 20])
def test_without_misfits_nearly_all_stay(caplog, number):
    kept = np.array([left(caplog, library(number, 0, "apart", seed)) for seed in range(5)])
    assert (~kept).mean() <= 0.04


def test_published_rule_drops_one_of_ten_and_not_two(caplog):
    """Two equal misfits of ten lie less than 2 standard deviations below the mean."""
    atlases = library(10, 1, "apart", 0)
    assert not left(caplog, atlases, rule="mean")[-1]
    twice = [*atlases[1:], Atlas("again", atlases[-1].image, atlases[-1].segmentation)]
    assert left(caplog, twice, rule="mean")[-2:].all()
    assert not left(caplog, twice)[-2:].any()


@pytest.mark.parametrize(
    "wrong", [{"alpha": -1.0}, {"margin": -0.5}, {"rule": "mode"}, {"power": -2.0}, {"max_iterations": 0}]
)
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
