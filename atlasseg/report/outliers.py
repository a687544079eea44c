"""Outlying targets of a run, by robust z-scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Side = Literal["low", "high", "both"]

FEWEST = 5
"""Minimum number of targets for the detection of outliers."""
LEAST_SCORE = 3.5
"""Minimum score of an outlier (Iglewicz and Hoaglin 1993). `limits` raises it for large numbers of values."""
CHANCE = 0.05
"""Probability that any of the values is called an outlier if all are normally distributed."""


@dataclass(frozen=True)
class Measured:
    """Values of one measurement for all targets.

    Parameters
    ----------
    what : str
        Name of the measurement, for example ``volume of Left Hippocampus``.
    values : mapping of str to float
        Value of each target. Targets without a value are absent or NaN.
    side : str
        Side on which a value can be an outlier: "low", "high" or "both".
    kind : str
        Measurements of one kind share one limit.
    """

    what: str
    values: Mapping[str, float]
    side: Side = "both"
    kind: str = ""


@dataclass(frozen=True)
class Standout:
    """An outlying value: `score` is its distance from the median in robust standard deviations."""

    what: str
    value: float
    median: float
    score: float


def modified_scores(values: ArrayLike) -> NDArray[np.float64]:
    """Compute distances from the median in robust standard deviations.

    ``0.6745 (x - median) / MAD`` with the median absolute deviation (MAD). If more than half of the values are equal,
    the MAD is 0, and the score is ``0.7979 (x - median) / (mean absolute deviation)``; 0 if all are equal (Iglewicz
    and Hoaglin, How to Detect and Handle Outliers, 1993).

    Parameters
    ----------
    values : (N,) float
        Finite.

    Examples
    --------
    >>> modified_scores([1, 2, 3, 4, 13]).round(3).tolist()
    [-1.349, -0.674, 0.0, 0.674, 6.745]
    """
    x = np.asarray(values, float)
    away = x - np.median(x)
    spread = np.median(np.abs(away))
    if spread > 0:
        return np.asarray(0.6745 * away / spread)
    mean = np.abs(away).mean()
    return np.asarray(0.7979 * away / mean if mean > 0 else np.zeros_like(x))


def limits(measured: Sequence[Measured]) -> dict[str, float]:
    """Compute the minimum score of an outlier for each kind of measurement.

    The maximum of `LEAST_SCORE` and the score that the largest of as many normal values exceeds with probability
    `CHANCE` (Bonferroni): in 20 targets with 139 structures, a volume with a score of 3.5 is no outlier.
    """
    from scipy.stats import norm

    counts: dict[str, int] = {}
    for each in measured:
        counts[each.kind] = counts.get(each.kind, 0) + int(np.isfinite([*each.values.values()]).sum())
    return {kind: max(LEAST_SCORE, float(norm.isf(CHANCE / max(2 * n, 1)))) for kind, n in counts.items()}


def standouts(measured: Sequence[Measured]) -> dict[str, list[Standout]]:
    """Find the outlying values of each target, largest score first. Targets without outliers are absent.

    Measurements with fewer than `FEWEST` values are left out.
    """
    found: dict[str, list[Standout]] = {}
    least = limits(measured)
    for each in measured:
        known = {target: value for target, value in each.values.items() if np.isfinite(value)}
        if len(known) < FEWEST:
            continue
        values: NDArray[Any] = np.array(list(known.values()))
        middle = float(np.median(values))
        for target, value, score in zip(known, values, modified_scores(values), strict=True):
            far = {"low": -score, "high": score, "both": abs(score)}[each.side]
            if far >= least[each.kind]:
                found.setdefault(target, []).append(Standout(each.what, float(value), middle, float(score)))
    for told in found.values():
        told.sort(key=lambda s: -abs(s.score))
    return found
