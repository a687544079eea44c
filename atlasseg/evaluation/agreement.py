"""Agreement of two ways to measure the same quantity, such as automatic and manual volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from atlasseg.errors import InputError
from atlasseg.volume import Float64

__all__ = ["Agreement", "limits_of_agreement"]

FEWEST_PAIRS = 3
"""Minimum number of pairs for limits of agreement."""

LIMIT_SD = 1.96
"""Distance of the limits from the mean difference, in standard deviations."""


@dataclass(frozen=True)
class Agreement:
    """Limits of agreement of two measurements.

    Parameters
    ----------
    pairs : int
        Number of pairs of measurements.
    bias : float
        Mean difference (measured - reference).
    bias_interval : (float, float)
        Confidence interval of the bias.
    sd : float
        Standard deviation of the differences.
    lower, upper : float
        Limits of agreement, bias -/+ 1.96 sd: 95 % of the differences are expected between them.
    lower_interval, upper_interval : (float, float)
        Confidence intervals of the limits.
    concordance : float
        Concordance correlation coefficient (Lin 1989), -1 to 1; NaN if neither measurement varies.
    """

    pairs: int
    bias: float
    bias_interval: tuple[float, float]
    sd: float
    lower: float
    upper: float
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]
    concordance: float


def limits_of_agreement(
    measured: ArrayLike, reference: ArrayLike, *, percent: bool = False, level: float = 0.95
) -> Agreement:
    """Compute the limits of agreement of two measurements of the same subjects.

    Parameters
    ----------
    measured, reference : (N,)
        Two measurements of each subject, at least 3. Pairs with a NaN are left out.
    percent : bool
        Give differences as a percentage of the mean of the two, for errors that grow with the size.
    level : float
        Level of the confidence intervals, 0 to 1 (t distribution, approximate standard errors of [1]_).

    Returns
    -------
    Agreement

    Raises
    ------
    InputError
        The two differ in length, there are fewer than three pairs, or percentages of zero are asked for.

    References
    ----------
    .. [1] Bland and Altman (1999), Measuring agreement in method comparison studies, Statistical Methods in Medical
       Research 8(2):135-160.
    .. [2] Lin (1989), A concordance correlation coefficient to evaluate reproducibility, Biometrics 45(1):255-268.

    Examples
    --------
    >>> found = limits_of_agreement([10.5, 12.0, 9.0, 11.5], [10.0, 12.0, 9.5, 11.0])
    >>> round(found.bias, 3), round(found.lower, 3), round(found.upper, 3)
    (0.125, -0.813, 1.063)
    """
    from scipy.stats import t

    a, b = np.asarray(measured, float).ravel(), np.asarray(reference, float).ravel()
    if a.shape != b.shape:
        raise InputError(f"measured: expected {b.size} values, as in reference, got {a.size}")
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if a.size < FEWEST_PAIRS:
        raise InputError(f"measured: expected at least {FEWEST_PAIRS} pairs of measurements, got {a.size}")
    differences = difference(a, b, percent=percent)
    n, bias, sd = a.size, float(differences.mean()), float(differences.std(ddof=1))
    quantile = float(t.ppf((1 + level) / 2, n - 1))
    of_bias = quantile * sd / np.sqrt(n)
    of_limit = quantile * sd * np.sqrt(1 / n + LIMIT_SD**2 / (2 * (n - 1)))
    lower, upper = bias - LIMIT_SD * sd, bias + LIMIT_SD * sd
    scatter = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    together = ((a - a.mean()) * (b - b.mean())).mean()
    return Agreement(
        pairs=n,
        bias=bias,
        bias_interval=(bias - of_bias, bias + of_bias),
        sd=sd,
        lower=lower,
        upper=upper,
        lower_interval=(lower - of_limit, lower + of_limit),
        upper_interval=(upper - of_limit, upper + of_limit),
        concordance=float(2 * together / scatter) if scatter > 0 else float("nan"),
    )


def difference(measured: ArrayLike, reference: ArrayLike, *, percent: bool) -> Float64:
    """Differences of pairs, as they are or as percentages of the mean of each pair."""
    a: Float64 = np.asarray(measured, np.float64).ravel()
    b: Float64 = np.asarray(reference, np.float64).ravel()
    apart: Float64 = a - b
    if not percent:
        return apart
    middle: Float64 = (a + b) / 2
    if (middle == 0).any():
        raise InputError("measured: expected no pair of zeros for differences in percent, got one")
    ratio: Float64 = 100 * apart / middle
    return ratio
