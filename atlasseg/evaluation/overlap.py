"""Overlap measures: Dice, Jaccard, volume similarity, sensitivity, precision.

All are computed from three voxel counts per label, which are taken for all labels in one pass. The definitions are
those of Taha and Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical Imaging 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError
from atlasseg.volume import Float64, Int32, Int64

__all__ = ["Counts", "count", "dice", "jaccard", "precision", "sensitivity", "volume_similarity"]


@dataclass(frozen=True, eq=False)
class Counts:
    """Voxel counts of L labels in a segmentation, in a reference, and in their intersection.

    Parameters
    ----------
    labels : (L,) int32
        All labels that occur in either volume, ascending, without background (0).
    segmentation, reference, both : (L,) int64
        Numbers of voxels.
    """

    labels: Int32
    segmentation: Int64
    reference: Int64
    both: Int64


def count(segmentation: NDArray[np.integer], reference: NDArray[np.integer]) -> Counts:
    """Count the voxels of every label that occurs in either of two arrays.

    Parameters
    ----------
    segmentation, reference : (I, J, K) int
        Labels; 0 is background.

    Returns
    -------
    Counts

    Raises
    ------
    GeometryError
        The shapes differ.

    Examples
    --------
    >>> counts = count(np.array([[[0, 1, 1, 7]]]), np.array([[[0, 1, 4, 7]]]))
    >>> counts.labels
    array([1, 4, 7], dtype=int32)
    >>> dice(counts).round(3)
    array([0.667, 0.   , 1.   ])
    """
    if segmentation.shape != reference.shape:
        raise GeometryError(
            f"expected two label arrays of the same shape, got {segmentation.shape} and {reference.shape}"
        )
    somewhere = (segmentation != 0) | (reference != 0)
    s, r = segmentation[somewhere], reference[somewhere]
    labels = np.union1d(np.unique(s), np.unique(r))
    labels = labels[labels != 0]

    def tally(values: NDArray[np.integer]) -> Int64:
        present = values[values != 0]
        return np.bincount(np.searchsorted(labels, present), minlength=labels.size).astype(np.int64)

    return Counts(labels.astype(np.int32), tally(s), tally(r), tally(s[s == r]))


def dice(counts: Counts) -> Float64:
    r"""Compute the Dice coefficient of each label.

    .. math::

        \frac{2 \, |S \cap R|}{|S| + |R|}

    :math:`S` are the voxels of the segmentation and :math:`R` those of the reference.

    Parameters
    ----------
    counts : Counts
        Voxel counts of L labels.

    Returns
    -------
    (L,) float64
        0 to 1.
    """
    return _ratio(2 * counts.both, counts.segmentation + counts.reference)


def jaccard(counts: Counts) -> Float64:
    """Compute the Jaccard index (intersection over union) of each label.

    Parameters
    ----------
    counts : Counts
        Voxel counts of L labels.

    Returns
    -------
    (L,) float64
        0 to 1.
    """
    return _ratio(counts.both, counts.segmentation + counts.reference - counts.both)


def volume_similarity(counts: Counts) -> Float64:
    r"""Compute the volume similarity of each label: the agreement of the volumes, regardless of position.

    .. math::

        1 - \frac{\big|\, |S| - |R| \,\big|}{|S| + |R|}

    `GetVolumeSimilarity` of SimpleITK is another quantity, :math:`2 (|S| - |R|) / (|S| + |R|)`, from -2 to 2.

    Parameters
    ----------
    counts : Counts
        Voxel counts of L labels.

    Returns
    -------
    (L,) float64
        0 to 1.
    """
    total = counts.segmentation + counts.reference
    return _ratio(total - np.abs(counts.segmentation - counts.reference), total)


def sensitivity(counts: Counts) -> Float64:
    """Compute the sensitivity (recall) of each label.

    Parameters
    ----------
    counts : Counts
        Voxel counts of L labels.

    Returns
    -------
    (L,) float64
        0 to 1; 0 for a label that is not in the reference.
    """
    return _ratio(counts.both, counts.reference)


def precision(counts: Counts) -> Float64:
    """Compute the precision of each label.

    Parameters
    ----------
    counts : Counts
        Voxel counts of L labels.

    Returns
    -------
    (L,) float64
        0 to 1; 0 for a label that is not in the segmentation.
    """
    return _ratio(counts.both, counts.segmentation)


METRICS: dict[str, Callable[[Counts], Float64]] = {
    f.__name__: f for f in (dice, jaccard, volume_similarity, sensitivity, precision)
}
"""Overlap measures by name. 1 is the best value; 0 is the worst, which a missed structure gets."""


def _ratio(part: Int64, whole: Int64) -> Float64:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
