from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from atlasseg.errors import InputError
from atlasseg.fusion.generative import REACH, fuse
from atlasseg.volume import LabelMap, Mask

ROUNDING = 1e-4  # float32 intensities in exponents
LABELS = (0, 2, 5)


def log_odds(said, seen, spacing, rho):
    """(I, J, K, L) p(l | L_i) by exact distance transforms, cut at the reach."""
    unit = spacing / spacing.prod() ** (1 / 3)
    distance = np.full((*said.shape, len(LABELS)), -REACH)
    for k, label in enumerate(LABELS):
        there, elsewhere = (said == label) & seen, (said != label) & seen
        if there.any():
            distance[..., k] = -np.minimum(distance_transform_edt(~there, sampling=unit), REACH)
        inside = np.full(said.shape, REACH)
        if elsewhere.any():
            inside = np.minimum(distance_transform_edt(~elsewhere, sampling=unit), REACH)
        distance[..., k] = np.where(said == label, inside, distance[..., k])
    within = distance > -REACH
    p = np.exp(rho * distance)
    return p / (p * within).sum(-1, keepdims=True)


def parts(case, standardised, sigma, rho):
    everywhere = np.ones(case.scan.shape, bool)
    t = standardised(case.scan[..., None], everywhere)[..., 0]
    images = [standardised(i[..., None], m)[..., 0] for i, m in zip(case.images, case.masks, strict=True)]
    log_t = np.stack([-((t - a) ** 2) / (2 * sigma**2) for a in images])
    log_t = np.where(case.masks, log_t, -np.inf)
    p = np.stack([log_odds(s, m, case.target.spacing_mm, rho) for s, m in zip(case.labels, case.masks, strict=True)])
    voted = np.stack([((case.labels == v) & case.masks).any(0) for v in LABELS], -1)
    return log_t, p, voted


@pytest.mark.parametrize("masks", [False, True])
def test_local(problem, standardised, masks):
    case = problem(4, masks=masks)
    log_t, p, voted = parts(case, standardised, 0.4, 1.3)
    q = np.exp(log_t - np.where(case.masks.any(0), log_t.max(0), 0))
    expected = (q[..., None] * p).sum(0) * voted
    expected = expected / np.maximum(expected.sum(-1, keepdims=True), 1e-30)
    result = fuse(case.target, case.candidates, sigma=0.4, rho=1.3)
    np.testing.assert_allclose(result.dense()[case.disagreement], expected[case.disagreement], atol=ROUNDING)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("mode", ["semi_local", "global"])
def test_variational(problem, standardised, mode, masks):
    case = problem(4, masks=masks)
    beta = 0.6
    log_t, p, voted = parts(case, standardised, 0.5, 1.0)
    on = case.disagreement
    seen = case.masks & on
    q = np.exp(np.where(on, log_t, 0) - np.where(on, log_t.max(0), 0)) * on
    q /= np.where(on, q.sum(0), 1)
    colour = np.indices(on.shape).sum(0) % 2
    spacing_free = range(3)
    best = None
    for _ in range(20):
        evidence = np.where(voted, (q[..., None] * np.log(p)).sum(0), -np.inf)
        before, best = best, evidence.argmax(-1)
        held = q
        agreement = log_t + np.log(np.take_along_axis(p, best[None, ..., None], -1)[..., 0])
        if mode == "global":
            whole = np.reshape([values[there].mean() for values, there in zip(agreement, seen, strict=True)], (-1, 1))
            q = np.zeros_like(q)
            q[:, on] = np.where(seen[:, on], on.sum() * whole, -np.inf)
            q[:, on] = np.exp(q[:, on] - q[:, on].max(0))
            q[:, on] /= q[:, on].sum(0)
        else:
            for turn in (0, 1):
                field = np.zeros_like(q)
                for axis in spacing_free:
                    for step in (-1, 1):
                        moved = np.roll(q, step, axis=axis + 1)
                        edge = [slice(None)] * 4
                        edge[axis + 1] = 0 if step == 1 else -1
                        moved[tuple(edge)] = 0
                        field += moved
                new = np.where(on, agreement + beta * field, 0)
                new = np.exp(new - new.max(0))
                new /= new.sum(0)
                q = np.where((colour == turn) & on, new, q)
        if before is not None and (before == best)[on].all() and np.abs(q - held).max() < 1e-3:
            break
    expected = np.exp(evidence[on] - evidence[on].max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    result = fuse(case.target, case.candidates, mode=mode, sigma=0.5, beta=beta)
    np.testing.assert_allclose(result.dense()[on], expected, atol=ROUNDING)


def test_no_field_is_one_voxel_at_a_time(problem):
    """Without a field, a membership depends on its own voxel: another scan elsewhere changes nothing here."""
    case = problem(4)
    semi = fuse(case.target, case.candidates, mode="semi_local", beta=0.0)
    strong = fuse(case.target, case.candidates, mode="semi_local", beta=3.0)
    assert np.abs(semi.dense() - strong.dense()).max() > 0.05


def test_global_picks_one_atlas(problem):
    case = problem(4)
    result = fuse(problem(4).candidates[2].image, case.candidates, mode="global", sigma=0.2)
    np.testing.assert_array_equal(result.mode, case.labels[2])


def test_global_does_not_prefer_an_atlas_that_covers_little(problem):
    """An atlas that is seen at one voxel alone, where it is unlike the scan, loses to the one that shows the scan."""
    case = problem(4)
    image = case.images[2]
    unlike = np.abs(image - image.mean()) * (case.labels[0] != case.labels[2])
    little = unlike == unlike.max()
    poor = replace(case.candidates[0], mask=Mask(little, case.affine))
    result = fuse(case.candidates[2].image, [poor, *case.candidates[1:]], mode="global", rho=0.3)
    np.testing.assert_array_equal(result.mode, case.labels[2])


@pytest.mark.parametrize("mode", ["local", "semi_local"])
def test_only_those_that_see_a_voxel_say_what_is_not_annotated(problem, mode):
    """Two know label 5, one of them blind from x = 3 on: what its labels say there changes nothing."""
    case = problem(4)
    first, second, *others = case.candidates
    silent = [
        replace(
            each,
            labels=LabelMap(np.where(each.segmentation.array == 5, 0, each.segmentation.array), case.affine),
            not_annotated=frozenset({5}),
        )
        for each in others
    ]
    seen = np.ones(case.scan.shape, bool)
    seen[3:] = False
    answers = []
    for value in (0, 5):
        said = LabelMap(np.where(seen, case.labels[1], value), case.affine)
        blind = replace(second, labels=said, mask=Mask(seen, case.affine))
        answers.append(fuse(case.target, [first, blind, *silent], mode=mode).dense())
    np.testing.assert_allclose(answers[0], answers[1], atol=ROUNDING)


@pytest.mark.parametrize("wrong", [{"mode": "cosmic"}, {"rho": 0.0}, {"sigma": -1.0}, {"beta": -0.5}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
