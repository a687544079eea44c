import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from atlasseg.errors import InputError
from atlasseg.fusion.generative import REACH, fuse

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
    np.testing.assert_allclose(result.dense()[case.disputed], expected[case.disputed], atol=ROUNDING)


@pytest.mark.parametrize("mode", ["semi_local", "global"])
def test_variational(problem, standardised, mode):
    case = problem(4)
    beta = 0.6
    log_t, p, voted = parts(case, standardised, 0.5, 1.0)
    on = case.disputed
    q = np.exp(log_t - log_t.max(0)) * on
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
            whole = (agreement * on).sum((1, 2, 3))
            q = np.broadcast_to(np.exp(whole - whole.max())[:, None, None, None], q.shape) * on
            q = q / np.where(on, q.sum(0), 1)
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
                new = agreement + beta * field
                new = np.exp(new - new.max(0))
                new /= new.sum(0)
                q = np.where((colour == turn) & on, new, q)
        if before is not None and (before == best)[on].all() and np.abs(q - held).max() < 1e-3:
            break
    expected = np.where(voted, np.exp(evidence - evidence.max(-1, keepdims=True)), 0)
    expected /= expected.sum(-1, keepdims=True)
    result = fuse(case.target, case.candidates, mode=mode, sigma=0.5, beta=beta)
    np.testing.assert_allclose(result.dense()[on], expected[on], atol=ROUNDING)


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


@pytest.mark.parametrize("wrong", [{"mode": "cosmic"}, {"rho": 0.0}, {"sigma": -1.0}, {"beta": -0.5}])
def test_parameters(problem, wrong):
    case = problem()
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        fuse(case.target, case.candidates, **wrong)
