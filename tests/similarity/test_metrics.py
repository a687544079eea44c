"""Each measure against NumPy or SimpleITK, each derivative against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasseg.errors import InputError
from atlasseg.similarity import create_metric
from atlasseg.similarity.local_correlation import LocalCorrelation, local_correlation_map

SHAPE = (7, 9, 5)
GRADIENT_TOLERANCE = 2e-3
"""Relative: central differences of step 1e-3 leave O(step^2) of the third derivative, and the gradients are float32."""

MEASURES = ["mean_squares", "correlation", "local_correlation", "mutual_information", "normalized_mutual_information"]


def pair(seed: int = 0, channels: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (*SHAPE, channels) if channels else SHAPE
    fixed = rng.normal(size=shape).astype(np.float32)
    warped = (0.7 * fixed + 0.6 * rng.normal(size=shape)).astype(np.float32)
    return fixed, warped, rng.random(SHAPE) < 0.8


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("channels", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_what_finite_differences_say(name: str, channels: int, masked: bool) -> None:
    fixed, warped, mask = pair(channels=channels)
    inside = mask if masked else None
    value: Callable[..., float] = create_metric(name).value
    at, gradient = create_metric(name).value_and_gradient(fixed, warped, mask=inside)
    assert at == pytest.approx(value(fixed, warped, mask=inside), rel=1e-12)
    assert gradient.shape == warped.shape and gradient.dtype == np.float32
    scale = float(np.abs(gradient).max())
    assert scale > 0
    flat = warped.astype(np.float64).reshape(-1)
    kept = flat.reshape(mask.size, -1)[mask.reshape(-1) | (not masked)]
    extremes = {*kept.min(axis=0), *kept.max(axis=0)}
    step = 1e-3
    for index in range(0, flat.size, 17):
        if flat[index] in extremes:  # moving the range of the bins is not part of the derivative
            continue
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[index] += sign * step
            ends.append(value(fixed, moved.reshape(warped.shape), mask=inside))
        assert gradient.reshape(-1)[index] == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), abs=GRADIENT_TOLERANCE * scale
        )
    if masked:
        assert not gradient[~mask].any()


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_local_correlation_is_the_correlation_of_each_window(radius: int) -> None:
    fixed, warped, mask = pair(1)
    got = local_correlation_map(fixed, warped, radius_voxels=radius, mask=mask)
    for index in np.ndindex(SHAPE):
        box = tuple(slice(max(0, i - radius), i + radius + 1) for i in index)
        inside = mask[box]
        wanted = np.corrcoef(fixed[box][inside], warped[box][inside])[0, 1] if mask[index] else 0.0
        assert got[index] == pytest.approx(wanted, abs=1e-5)
    assert LocalCorrelation(radius).value(fixed, warped, mask=mask) == pytest.approx(
        np.mean(got[mask].astype(float) ** 2), rel=1e-5
    )


def test_global_values_are_numpys() -> None:
    fixed, warped, mask = pair(2)
    assert create_metric("correlation").value(fixed, warped, mask=mask) == pytest.approx(
        np.corrcoef(fixed[mask], warped[mask])[0, 1]
    )
    assert create_metric("mean_squares").value(fixed, warped, mask=mask) == pytest.approx(
        np.mean((fixed - warped)[mask] ** 2, dtype=float)
    )


def simpleitk_value(
    configure: Callable[[sitk.ImageRegistrationMethod], None], fixed: np.ndarray, warped: np.ndarray
) -> float:
    method = sitk.ImageRegistrationMethod()
    configure(method)
    method.SetInitialTransform(sitk.TranslationTransform(3))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricSamplingStrategy(method.NONE)
    images = [sitk.GetImageFromArray(x.astype(np.float64)) for x in (fixed, warped)]
    return float(method.MetricEvaluate(*images))


@pytest.mark.parametrize("bins", [16, 32])
def test_mutual_information_is_simpleitks(bins: int) -> None:
    rng = np.random.default_rng(3)
    fixed = rng.normal(size=(17, 14, 19)).astype(np.float32)
    warped = (np.abs(fixed) + 0.3 * rng.normal(size=fixed.shape)).astype(np.float32)
    wanted = -simpleitk_value(lambda m: m.SetMetricAsMattesMutualInformation(bins), fixed, warped)
    # ITK's own Parzen sums are cut into threads and its PDF is float: six digits.
    assert create_metric("mutual_information", bins=bins).value(fixed, warped) == pytest.approx(wanted, rel=1e-5)


def test_ssd_and_squared_correlation_are_simpleitks() -> None:
    fixed, warped, _ = pair(4)
    assert create_metric("mean_squares").value(fixed, warped) == pytest.approx(
        simpleitk_value(lambda m: m.SetMetricAsMeanSquares(), fixed, warped), rel=1e-6
    )
    assert -(create_metric("correlation").value(fixed, warped) ** 2) == pytest.approx(
        simpleitk_value(lambda m: m.SetMetricAsCorrelation(), fixed, warped), rel=1e-6
    )


def test_normalized_mutual_information_runs_from_one_to_two() -> None:
    fixed, _, _ = pair(5)
    other = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32)
    steps = np.floor(fixed * 3).astype(np.float32)
    assert 1 <= create_metric("normalized_mutual_information", bins=8).value(fixed, other) < 1.15
    metric = create_metric("normalized_mutual_information")
    assert metric.value(steps, steps) > metric.value(fixed, other)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-3, 1e6), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_linear_changes_of_intensity_do_not_matter(scale: float, shift: float, seed: int) -> None:
    fixed, warped, mask = pair(seed)
    changed = warped.astype(np.float64) * scale + shift * scale
    for name in MEASURES[1:]:
        measure = create_metric(name).value
        before, after = measure(fixed, warped.astype(np.float64), mask=mask), measure(fixed, changed, mask=mask)
        assert after == pytest.approx(before, abs=1e-5)


def test_channels_are_averaged() -> None:
    fixed, warped, mask = pair(7, channels=2)
    for name in MEASURES:
        measure = create_metric(name).value
        apart = [measure(fixed[..., c], warped[..., c], mask=mask) for c in range(2)]
        assert measure(fixed, warped, mask=mask) == pytest.approx(np.mean(apart), rel=1e-9)


def test_constant_images_have_no_correlation_and_no_gradient() -> None:
    fixed, _, _ = pair(8)
    flat = np.full(SHAPE, 1.7e6, np.float32)
    for name, nothing in (
        ("correlation", 0),
        ("local_correlation", 0),
        ("mutual_information", 0),
        ("normalized_mutual_information", 1),
    ):
        value, gradient = create_metric(name).value_and_gradient(fixed, flat)
        assert value == nothing and not gradient.any()


@pytest.mark.parametrize("name", MEASURES)
def test_bad_input_is_named(name: str) -> None:
    measure = create_metric(name).value
    fixed, warped, _ = pair(9)
    with pytest.raises(InputError, match=r"\(7, 9, 5\) and \(7, 9, 4\)"):
        measure(fixed, warped[..., :4])
    with pytest.raises(InputError, match="got an empty mask"):
        measure(fixed, warped, mask=np.zeros(SHAPE, bool))
    with pytest.raises(InputError, match=r"mask: expected the shape of the images"):
        measure(fixed, warped, mask=np.ones((3, 3, 3), bool))
