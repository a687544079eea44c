"""Scans of one person in a folder: crops of one scan, and scans of a person that was scanned more than once.

A scan must not help to segment, or to judge the segmentation of, another scan of the same person. Three traces are
looked for. Two crops of one scan share runs of identical intensities where they overlap; where they do not, as the
left and the right hippocampus, they can still share the step of intensities to six digits, if a program rescaled the
whole scan by a factor of its own. Two scans of one person at different times are far more alike, after an affine
registration, than scans of two persons.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.volume import Image

SAMPLED_VALUES = 200_000
"""Intensities from which the step is found."""
STEP_TOLERANCE = 0.02
"""Intensities lie on multiples of the step to within this share of it."""
LARGEST_CODE = 2**16
"""Scanners store whole numbers below this one; with a smaller step anything is a multiple of it."""
STEP_AGREEMENT = 1e-5
"""Relative difference of two steps that are the same: float32 rounds them."""
MOST_SHARING = 4
"""A step that more scans share comes from how they were all converted, and tells nothing."""

RUN = 24
"""Differences of neighbours in a run of intensities."""
BASE = 0x5851F42D4C957F2D
"""Odd number whose powers weigh the differences in the hash of a run."""
LEAST_CHANGES = 16
"""So many of them are not 0; runs through background are left out."""
SKETCH = 4000
"""Runs that are kept of a scan: those of the smallest hash, so that two scans keep the same ones."""
LEAST_SHARED = 20
"""Two scans that share fewer of the kept runs do not overlap."""

LEAST_SCANS = 5
"""With fewer scans nothing is said of which are unusually alike."""
REPEAT_Z = 6.0
"""Robust z of the similarity of a pair, as information, among those of a folder, above which both show one person."""
REPEAT_RATIO = 1.5
"""Its ratio to the median is at least this much as well."""

UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Trace:
    """What remains in the intensities of where a scan comes from.

    Parameters
    ----------
    step : float, optional
        Step of which all intensities are multiples, if it is neither a whole nor a short decimal number.
    runs : (R,) uint64
        Ascending; the smallest hashes of runs of intensities along the axes, at most `SKETCH`.
    """

    step: float | None
    runs: UInt64


@dataclass(frozen=True)
class SamePerson:
    """Two scans, by their positions, that seem to be of one person, and why."""

    first: int
    second: int
    reason: str


def trace_source(image: Image) -> Trace:
    """Read the traces of a scan's source from its intensities, whatever the order of its axes."""
    array = image.channels[..., 0]
    step = find_step(array)
    bits = np.ascontiguousarray(array, np.float32).view(np.int32)  # of two equal scans without a step they are equal
    codes = np.rint(array / step).astype(np.int64) if step else bits.astype(np.int64)
    return Trace(None if step is None or _is_plain(step) else step, _hash_runs(codes))


def find_step(array: np.ndarray) -> float | None:
    """Step of which all differences between intensities are multiples; None if there is none."""
    flat = array.reshape(-1)
    values = np.unique(flat[:: max(1, flat.size // SAMPLED_VALUES)]).astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size < 16:
        return None
    differences = np.diff(values)
    guess = float(differences[differences > 1e-6 * np.ptp(values)].min(initial=np.inf))
    if not np.isfinite(guess):
        return None
    for _ in range(2):  # a first estimate from the smallest difference, then from all
        numbers = np.rint((values - values[0]) / guess)
        if numbers[-1] > LARGEST_CODE:
            return None
        guess = float((numbers @ (values - values[0])) / (numbers @ numbers))
    misfit = np.abs((values - values[0]) / guess - numbers)
    return guess if misfit.max() < STEP_TOLERANCE + 2e-7 * numbers[-1] else None


def _is_plain(step: float) -> bool:
    """Whether a step is a number of at most three digits, as 0.5 or 12, or one over such a number, as 1/255."""
    return any(abs(value / float(f"{value:.3g}") - 1) < STEP_AGREEMENT for value in (step, 1 / step))


def _hash_runs(codes: NDArray[np.int64]) -> UInt64:
    """The `SKETCH` smallest hashes of all runs along the three axes; a run and its reverse have the same hash.

    With d the differences of neighbours in a run of R, the hash is the sum over k of d_k (B^k - B^(R-1-k)) modulo 2^64.
    Reversing a run reverses the order and the sign of d, which leaves it. All sums come from cumulative ones.
    """
    kept = np.zeros(0, np.uint64)
    for axis in range(3):
        differences = np.moveaxis(np.diff(codes, axis=axis), axis, 0).astype(np.uint64)
        count = len(differences) - RUN + 1
        if count < 1:
            continue
        ahead, back = (_powers(base, len(differences) + RUN)[:, None, None] for base in (BASE, pow(BASE, -1, 2**64)))
        forward = _window_sums(differences * ahead[: len(differences)]) * back[:count]
        reverse = _window_sums(differences * back[: len(differences)]) * ahead[RUN - 1 :][:count]
        changes = _window_sums((differences != 0).astype(np.int32))
        found = (forward - reverse)[changes >= LEAST_CHANGES]
        found ^= found >> np.uint64(31)
        found *= np.uint64(0x9E3779B97F4A7C15)  # so that the smallest are a random sample
        if found.size > 16 * SKETCH:
            found = np.partition(found, 16 * SKETCH)[: 16 * SKETCH]
        kept = np.unique(np.concatenate([kept, found]))[:SKETCH]
    return kept


def _powers(base: int, count: int) -> UInt64:
    """Powers 0 to `count` - 1 of an odd number, modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _window_sums(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of `RUN` neighbours along the first axis."""
    total = np.cumsum(values, axis=0, dtype=values.dtype)
    total[RUN:] -= total[:-RUN].copy()
    return total[RUN - 1 :]


def find_crops(traces: Sequence[Trace]) -> list[SamePerson]:
    """Find pairs of scans that share runs of identical intensities."""
    holders: dict[int, list[int]] = defaultdict(list)
    for n, trace in enumerate(traces):
        for run in trace.runs.tolist():
            holders[run].append(n)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for owners in holders.values():
        if 1 < len(owners) <= MOST_SHARING:
            for pair in itertools.combinations(owners, 2):
                shared[pair] += 1
    return [
        SamePerson(*pair, "they overlap, with identical intensities")
        for pair, count in sorted(shared.items())
        if count >= LEAST_SHARED
    ]


def find_shared_steps(traces: Sequence[Trace]) -> list[SamePerson]:
    """Find groups of scans whose intensities have the same step, which no rescaling of another scan gives."""
    stepped = sorted((trace.step, n) for n, trace in enumerate(traces) if trace.step is not None)
    groups: list[list[tuple[float, int]]] = []
    for step, n in stepped:
        if groups and step / groups[-1][-1][0] - 1 < STEP_AGREEMENT:
            groups[-1].append((step, n))
        else:
            groups.append([(step, n)])
    found = []
    for group in groups:
        if 1 < len(group) <= MOST_SHARING and len(groups) > 2:
            for first, second in itertools.combinations(sorted(n for _, n in group), 2):
                found.append(
                    SamePerson(first, second, f"their intensities are multiples of the same {group[0][0]:.6g}")
                )
    return found


def find_repeats(
    pairs: Sequence[tuple[int, int]], similarities: Sequence[float], usual: Sequence[float]
) -> list[SamePerson]:
    """Find pairs that are far more similar than the pairs of a folder are.

    Similarities s, mean squared correlations, are compared as the information -log(1 - s), which has no upper bound.

    Parameters
    ----------
    pairs : sequence of (int, int)
        Pairs that may be of one person.
    similarities : sequence of float
        Of each of them, from 0 to 1.
    usual : sequence of float
        Of pairs of the folder, these among them or not.
    """
    information = -np.log1p(-np.clip(usual, 0, 1 - 1e-6))
    centre = float(np.median(information))
    spread = 1.4826 * float(np.median(np.abs(information - centre)))
    least = max(centre + REPEAT_Z * spread, REPEAT_RATIO * centre)
    found = []
    for (first, second), value in zip(pairs, similarities, strict=True):
        if -np.log1p(-min(max(value, 0), 1 - 1e-6)) > least:
            reason = f"they are more alike than others ({value:.2f}, where {np.median(usual):.2f} is usual here)"
            found.append(SamePerson(first, second, reason))
    return found
