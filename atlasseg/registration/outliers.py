"""Detection of failed registrations: similarities far below those of the other atlases.

A registration that ends in a wrong place still returns a transform. Its warped atlas looks much less like the target
than the other atlases do. This is measured by the modified z-score [1]_: the distance from the median in units of the
median absolute deviation, which one or several failures cannot inflate.

References
----------
.. [1] Iglewicz, B., Hoaglin, D. C. (1993). How to detect and handle outliers. ASQC Quality Press (modified z-score,
   threshold 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlasseg.errors import InputError

__all__ = ["RegistrationQC", "find_failures"]

NORMAL_SD_PER_MAD = 1.4826
"""Standard deviation of a normal distribution whose median absolute deviation is 1."""

SMALLEST_LIBRARY = 4
"""With fewer atlases the spread is not informative, and only `floor` is applied."""


@dataclass(frozen=True)
class RegistrationQC:
    """Quality control of one registration.

    Parameters
    ----------
    keep : bool
        False if the registration failed.
    weight : float
        Weight of the atlas, from 0 (failed) to 1 (as good as the others).
    reason : str
        Reason for excluding the atlas or reducing its weight, with figures; empty otherwise.
    z : float
        Robust z-score of the similarity in the library, negative below the median; NaN in a library that is too small.
    """

    keep: bool
    weight: float = 1.0
    reason: str = ""
    z: float = float("nan")


def find_failures(
    similarities: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    threshold: float = 3.5,
    doubt: float = 2.5,
    floor: float = 0.05,
    least_spread: float = 0.05,
) -> list[RegistrationQC]:
    """Find failed registrations of one target by the similarities of the atlases.

    A registration failed if its similarity is NaN or below `floor`, or if its robust z-score is below ``-threshold``.
    Between ``-doubt`` and ``-threshold`` the weight falls linearly from 1 to 0. If no atlas reaches `floor`, all are
    kept, and each reason states it.

    Parameters
    ----------
    similarities : (N,) sequence of float
        Similarity of each atlas, higher is better: for instance the mean local correlation in the mask, 0 to 1.
    names : (N,) sequence of str, optional
        Names of the atlases, for messages.
    threshold, doubt : float
        Numbers of robust standard deviations below the median; ``0 <= doubt <= threshold``.
    floor : float
        Minimum similarity of a successful registration. Unrelated noise has a mean squared local correlation of about
        0.01 in windows of 5 x 5 x 5 voxels.
    least_spread : float
        Lower limit of the robust standard deviation, as a fraction of the median, so that small differences are not
        failures in a library of very similar atlases.

    Returns
    -------
    list of RegistrationQC
        One per atlas, in the given order.

    Raises
    ------
    InputError
        The numbers of names and similarities differ, or `doubt` and `threshold` are not in order.

    Examples
    --------
    >>> checks = find_failures([0.52, 0.49, 0.55, 0.21, 0.51], names=list("abcde"))
    >>> [v.keep for v in checks]
    [True, True, True, False, True]
    >>> checks[3].reason
    'similarity 0.21 is 10.1 robust standard deviations below the median 0.51 of 5 atlases'
    """
    values = np.asarray(similarities, dtype=np.float64)
    named = [str(n) for n in range(values.size)] if names is None else list(names)
    if values.ndim != 1 or len(named) != values.size:
        raise InputError(f"names: expected one per similarity ({values.shape}), got {len(named)}")
    if not 0 <= doubt <= threshold:
        raise InputError(f"expected 0 <= doubt <= threshold, got doubt {doubt} and threshold {threshold}")
    known = values[np.isfinite(values)]
    if known.size == 0 or known.max() < floor:
        best = (
            f"the best, {named[int(np.nanargmax(values))]}, {known.max():.2g}"
            if known.size
            else "none overlaps the target"
        )
        reason = f"no atlas reaches the similarity {floor:g} ({best}): all are kept"
        return [RegistrationQC(keep=True, reason=reason) for _ in named]
    middle = float(np.median(known))
    spread = max(NORMAL_SD_PER_MAD * float(np.median(np.abs(known - middle))), least_spread * abs(middle), 1e-12)
    judged = known.size >= SMALLEST_LIBRARY
    return [_check_one(v, middle, spread, known.size, judged, threshold, doubt, floor) for v in values.tolist()]


def _check_one(
    value: float, middle: float, spread: float, count: int, judged: bool, threshold: float, doubt: float, floor: float
) -> RegistrationQC:
    z = (value - middle) / spread if judged else float("nan")
    if not np.isfinite(value):
        return RegistrationQC(False, 0.0, "no similarity: the atlas does not overlap the target", z)
    if value < floor:
        return RegistrationQC(False, 0.0, f"similarity {value:.2g} is below the floor {floor:g}", z)
    if not judged or z >= -doubt:
        return RegistrationQC(True, 1.0, "", z)
    below = f"{-z:.1f} robust standard deviations below the median {middle:.2g} of {count} atlases"
    if z < -threshold:
        return RegistrationQC(False, 0.0, f"similarity {value:.2g} is {below}", z)
    weight = (z + threshold) / (threshold - doubt) if threshold > doubt else 1.0
    return RegistrationQC(True, weight, f"similarity {value:.2g} is {below}: weight {weight:.2f}", z)
