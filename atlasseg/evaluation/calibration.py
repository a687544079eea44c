"""Calibration of label probabilities: reliability table and expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.volume import Bool, Float64, Int64, LabelMap, Mask, ProbabilityMap

__all__ = ["Reliability", "expected_calibration_error", "reliability"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability table: accuracy of the most probable label in bins of its probability.

    Probabilities are calibrated if accuracy and confidence are equal in every bin.

    Parameters
    ----------
    lower, upper : (B,) float64
        Limits of the confidence bins. A bin includes its upper limit and excludes its lower one.
    counts : (B,) int64
        Number of voxels in each bin.
    confidence : (B,) float64
        Mean probability of the most probable label in each bin; NaN in an empty bin.
    accuracy : (B,) float64
        Fraction of the voxels whose most probable label is that of the reference; NaN in an empty bin.
    """

    lower: Float64
    upper: Float64
    counts: Int64
    confidence: Float64
    accuracy: Float64

    @property
    def expected_calibration_error(self) -> float:
        """Mean absolute difference of accuracy and confidence over the voxels, 0 to 1; NaN without voxels."""
        if not self.counts.any():
            return float("nan")
        held = self.counts > 0
        apart = np.abs(self.accuracy - self.confidence)[held]
        return float((apart * self.counts[held]).sum() / self.counts.sum())

    @property
    def maximum_calibration_error(self) -> float:
        """Largest absolute difference of accuracy and confidence over the bins, 0 to 1; NaN if all bins are empty."""
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
    """Compute the reliability table of a probability map.

    Only voxels where the reference has a label other than 0, or where such a label has a probability above 0, are
    counted. Certain and correct background, which is most of a scan, would hide errors of calibration.

    Parameters
    ----------
    probabilities : ProbabilityMap
        Label probabilities to evaluate.
    reference : LabelMap
        Reference segmentation on the same grid.
    bins : int
        Number of bins of equal width over (0, 1].
    label : int, optional
        Evaluate the probability of this label instead of the most probable one, at voxels where it is above 0 or the
        reference has the label. A probability of 0 counts in the first bin.
    mask : Mask, optional
        Count only voxels inside this mask, on the same grid.

    Returns
    -------
    Reliability

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
        raise InputError(f"bins: expected at least 1, got {bins}")
    for volume, what in ((reference, "reference"), (mask, "mask")):
        if volume is not None and not probabilities.grid.matches(volume.grid):
            raise GeometryError(
                f"{what} {volume.name!r}: expected the grid of the probabilities {probabilities.name!r}, got shapes "
                f"{volume.shape} and {probabilities.shape}, affines {volume.affine.tolist()} and "
                f"{probabilities.affine.tolist()}"
            )
    if label is None:
        given = probabilities.confidence()
        right = probabilities.mode == reference.array
        counted = _possible_foreground(probabilities) | (reference.array != 0)
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
    """Compute the expected calibration error of a probability map ([1] eq. 3), see `reliability`.

    Parameters
    ----------
    probabilities, reference, bins, mask
        As for `reliability`.

    Returns
    -------
    float
        Mean absolute difference of accuracy and confidence, 0 (calibrated) to 1; NaN if no voxel is counted.

    Raises
    ------
    InputError, GeometryError
        See `reliability`.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML.
    """
    return reliability(probabilities, reference, bins=bins, mask=mask).expected_calibration_error


def _possible_foreground(probabilities: ProbabilityMap) -> Bool:
    """Voxels where background has a probability below 1, (I, J, K) bool."""
    out: Bool = np.asarray(probabilities.mode != 0)
    out.reshape(-1)[probabilities.voxels] = True
    return out
