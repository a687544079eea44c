"""What registration maximises, of every metric: against the float64 sides, finite differences, and torch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.similarity import create_metric, metric_names, windowed_metric
from atlasseg.threads import limit_threads

METRICS = metric_names()

SHAPE = (13, 17, 11)

FLOAT32 = 1e-5
"""Relative to the largest value: sums of some hundred float32."""


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images from 0 to 1, alike but not linearly, and a mask with a hole, as weights."""
    rng = np.random.default_rng(seed)
    fixed = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    warped = np.sin(25 * fixed) + 0.2 * rng.normal(size=SHAPE)
    scaled = [((x - x.min()) / np.ptp(x)).astype(np.float32) for x in (fixed, warped)]
    weight = (rng.random(SHAPE) < 0.9).astype(np.float32)
    weight[:, :3] = 0
    return scaled[0], scaled[1], weight


def oracle(metric: str, fixed: np.ndarray, warped: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and derivative of the plain measure, as the engine defines its own."""
    chosen = create_metric(metric)
    value, gradient = chosen.value_and_gradient(fixed, warped, mask=mask)
    if metric == "mean_squares":
        scale = -1 / fixed[mask].astype(float).var()
        return value * scale, gradient * scale
    sign = 1 if chosen.greater_is_better else -1
    return sign * (value - chosen.unrelated), sign * gradient


@pytest.mark.parametrize("metric", METRICS)
def test_value_and_gradient_are_the_plain_ones(metric: str) -> None:
    fixed, warped, weight = pair()
    value, gradient, curvature = create_metric(metric).derivatives(fixed, warped, weight)
    wanted, slope = oracle(metric, fixed, warped, weight > 0)
    assert value == pytest.approx(wanted, rel=FLOAT32)
    np.testing.assert_allclose(gradient / weight.sum(), slope, atol=10 * FLOAT32 * np.abs(slope).max())
    assert not gradient[weight == 0].any() and not curvature[weight == 0].any()
    assert (curvature[weight > 0] >= 0).all() and curvature.max() > 0


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_is_the_finite_difference(metric: str) -> None:
    fixed, warped, weight = pair(1)
    _, gradient, _ = create_metric(metric).derivatives(fixed, warped, weight)
    direction = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    inner = (warped > 0.05) & (warped < 0.95)  # the range of the bins stays as it is
    direction[~inner] = 0
    step = np.float32(2e-3)
    ends = [create_metric(metric).derivatives(fixed, warped + s * step * direction, weight)[0] for s in (1, -1)]
    slope = float((gradient.astype(float) * direction).sum()) / weight.sum()
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * float(step)), rel=0.02)


def test_curvature_of_mean_squares_is_exact_and_of_correlation_an_upper_bound() -> None:
    fixed, warped, weight = pair(3)
    direction = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    step = np.float32(0.02)

    def second(metric: str) -> tuple[float, float]:
        value, _, curvature = create_metric(metric).derivatives(fixed, warped, weight)
        ends = [create_metric(metric).derivatives(fixed, warped + s * step * direction, weight)[0] for s in (1, -1)]
        wanted = -(ends[0] + ends[1] - 2 * value) / float(step) ** 2 * weight.sum()
        return float((curvature * direction.astype(float) ** 2).sum()), float(wanted)

    found, wanted = second("mean_squares")
    assert found == pytest.approx(wanted, rel=1e-3)
    found, wanted = second("correlation")
    assert found > wanted


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_to_compare_is_no_similarity_and_no_slope(metric: str) -> None:
    fixed, warped, weight = pair()
    for images in ((fixed, warped, np.zeros_like(weight)), (fixed, np.full_like(warped, 0.5), weight)):
        value, gradient, _ = create_metric(metric).derivatives(*images)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert not create_metric(metric).greater_is_better or (value == 0 and not gradient.any())


@pytest.mark.parametrize("metric", METRICS)
def test_threads_change_no_bit(metric: str) -> None:
    results = set()
    for threads in (1, 3):
        with limit_threads(threads):
            value, gradient, curvature = create_metric(metric).derivatives(*pair())
        results.add((value, gradient.tobytes(), curvature.tobytes()))
    assert len(results) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_torch_measures_the_same(metric: str) -> None:
    torch = pytest.importorskip("torch")
    fixed, warped, weight = pair()
    others = [warped, 1 - pair(5)[1], np.full_like(warped, 0.25)]
    stacked = [torch.from_numpy(np.stack(x)[:, None]) for x in (others, [weight] * 3)]
    found = create_metric(metric).derivatives_torch(torch.from_numpy(fixed)[None, None], *stacked)
    for n, other in enumerate(others):
        wanted = create_metric(metric).derivatives(fixed, other, weight)
        assert float(found[0][n]) == pytest.approx(wanted[0], rel=FLOAT32, abs=FLOAT32)
        for here, there in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(here[n, 0].numpy(), there, atol=10 * FLOAT32 * max(np.abs(there).max(), 1))


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"expected one of correlation, local_correlation, .*got 'ncc'"):
        create_metric("ncc")
    with pytest.raises(InputError, match=r"expected 'mean_squares', the new name of 'ssd', got 'ssd'"):
        create_metric("ssd")
    with pytest.raises(InputError, match="at least 1, got 0"):
        windowed_metric("correlation", 0)
    with pytest.raises(InputError, match=r"'correlation': expected parameters among none, got 'bins'"):
        create_metric("correlation", bins=32)
    with pytest.raises(InputError, match=r"bins: expected at least 6 .*got 5"):
        create_metric("mutual_information", bins=5)
