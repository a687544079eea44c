"""Whether probabilities mean what they say: of all voxels given a label with 80 %, 80 % should have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Bool, Float64, Int64, LabelMap, Mask, ProbabilityMap


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the most probable label is right, by the probability it was given.

    Parameters
    ----------
    lower, upper : (B,) float64
        Bins of confidence; a bin holds its upper limit and not its lower one.
    counts : (B,) int64
        Voxels in each bin.
    confidence : (B,) float64
        Mean probability of the most probable label in each bin; NaN in an empty one.
    accuracy : (B,) float64
        Share of the voxels whose most probable label is the reference's; NaN in an empty bin.
    """

    lower: Float64
    upper: Float64
    counts: Int64
    confidence: Float64
    accuracy: Float64

    @property
    def expected_calibration_error(self) -> float:
        """Mean absolute difference of accuracy and confidence over the voxels, 0 to 1; NaN where there is none."""
        if not self.counts.any():
            return float("nan")
        held = self.counts > 0
        apart = np.abs(self.accuracy - self.confidence)[held]
        return float((apart * self.counts[held]).sum() / self.counts.sum())

    @property
    def maximum_calibration_error(self) -> float:
        """Largest absolute difference of accuracy and confidence of a bin; NaN where all bins are empty."""
        held = self.counts > 0
        return float(np.abs(self.accuracy - self.confidence)[held].max()) if held.any() else float("nan")


def reliability(
    probabilities: ProbabilityMap,
    reference: LabelMap,
    *,
    bins: int = 10,
    label: int | None = None,
    mask: Mask | None = None,
) -> Reliability:
    """The reliability table of a probability map.

    Counted are the voxels that are in question: those where the reference has a label other than 0, or the map gives
    one any probability. Background that is certain and right, most of a scan, would only dilute the table.

    Parameters
    ----------
    probabilities : ProbabilityMap
        What is judged.
    reference : LabelMap
        The truth, on the same grid.
    bins : int
        Number of bins of equal width over (0, 1].
    label : int, optional
        Judge this label's probability, wherever it is above 0 or the reference has it, instead of the most probable's.
        A probability of 0 counts in the first bin.
    mask : Mask, optional
        Count only inside it, on the same grid.

    Raises
    ------
    InputError
        `bins` is below 1.
    GeometryError
        The grids differ.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML, eqs. 2, 3 and 5.
    """
    if bins < 1:
        raise InputError(f"a reliability table needs at least 1 bin, got {bins}")
    for volume, what in ((reference, "reference"), (mask, "mask")):
        if volume is not None and not probabilities.grid.matches(volume.grid):
            raise GeometryError(
                f"the {what} {volume.name!r} is not on the grid of the probabilities {probabilities.name!r}: shapes "
                f"{volume.shape} and {probabilities.shape}, affines {volume.affine.tolist()} and "
                f"{probabilities.affine.tolist()}"
            )
    if label is None:
        given = probabilities.confidence()
        right = probabilities.mode == reference.array
        counted = _in_question(probabilities) | (reference.array != 0)
    else:
        given = probabilities.probability(label)
        right = reference.array == label
        counted = (given > 0) | right
    if mask is not None:
        counted = counted & mask.array
    confidence, correct = given[counted].astype(np.float64), right[counted]
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    edges = np.linspace(0, 1, bins + 1)
    held = counts > 0
    nothing = np.full(bins, np.nan)
    return Reliability(
        edges[:-1],
        edges[1:],
        counts,
        np.divide(np.bincount(which, confidence, bins), counts, out=nothing.copy(), where=held),
        np.divide(np.bincount(which, correct, bins), counts, out=nothing.copy(), where=held),
    )


def expected_calibration_error(
    probabilities: ProbabilityMap, reference: LabelMap, *, bins: int = 10, mask: Mask | None = None
) -> float:
    """Mean over the voxels in question of how far accuracy and confidence are apart, see `reliability` ([1] eq. 3).

    Returns
    -------
    float
        0 (probabilities are right as often as they say) to 1; NaN where no voxel is in question.

    Raises
    ------
    InputError, GeometryError
        See `reliability`.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML.
    """
    return reliability(probabilities, reference, bins=bins, mask=mask).expected_calibration_error


def _in_question(probabilities: ProbabilityMap) -> Bool:
    """(I, J, K) bool: not certain of background."""
    out: Bool = np.asarray(probabilities.mode != 0)
    out.reshape(-1)[probabilities.voxels] = True
    return out
