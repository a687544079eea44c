"""Which targets of a cohort stand out, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Side = Literal["low", "high", "both"]

FEWEST = 5
"""Of fewer targets none can stand out."""
LEAST_SCORE = 3.5
"""A score of at least this stands out (Iglewicz and Hoaglin 1993); of very many values it takes more."""
CHANCE = 0.05
"""How likely, of normal values alone, any stands out."""


@dataclass(frozen=True)
class Measured:
    """Values of the targets that are judged together.

    Parameters
    ----------
    what : str
        What is measured, as ``volume of Left Hippocampus``.
    values : mapping of str to float
        Target to value; targets of which it is not known are absent or NaN.
    side : str
        Which values are suspicious: "low", "high" or "both".
    kind : str
        Measurements of a kind share one limit.
    """

    what: str
    values: Mapping[str, float]
    side: Side = "both"
    kind: str = ""


@dataclass(frozen=True)
class Standout:
    """A value that stands out: `score` is how many robust standard deviations it lies from the median."""

    what: str
    value: float
    median: float
    score: float


def modified_scores(values: ArrayLike) -> NDArray[np.float64]:
    """Distances from the median in robust standard deviations.

    ``0.6745 (x - median) / MAD`` with the median absolute deviation; where more than half of the values are the same
    and it is 0, ``0.7979 (x - median) / (mean absolute deviation)``; 0 where all are the same (Iglewicz and Hoaglin,
    How to Detect and Handle Outliers, 1993).

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
    """Of each kind, the score from which a value stands out.

    At least `LEAST_SCORE`, and no less than what the largest of as many normal values exceeds with probability `CHANCE`
    (Bonferroni): among 20 targets with 139 structures a volume 3.5 away is nothing to remark on.
    """
    from scipy.stats import norm

    counts: dict[str, int] = {}
    for each in measured:
        counts[each.kind] = counts.get(each.kind, 0) + int(np.isfinite([*each.values.values()]).sum())
    return {kind: max(LEAST_SCORE, float(norm.isf(CHANCE / max(2 * n, 1)))) for kind, n in counts.items()}


def standouts(measured: Sequence[Measured]) -> dict[str, list[Standout]]:
    """What stands out of every target, the farthest first; targets of which nothing does are absent.

    A measurement with fewer than `FEWEST` values is not judged.
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
