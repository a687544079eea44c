"""k-means: classes of similar intensity, from the scan alone. The other models use it for initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.volume import Float64, Int64

__all__ = ["Clusters", "cluster"]

SAMPLE = 100_000
"""Approximate maximum number of clustered voxels, evenly spaced. All voxels are then assigned to a centre."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of k-means: K classes, ascending in the mean of the first modality.

    Parameters
    ----------
    centres : (K, C) float64
        Centres, in the units of the values.
    assigned : (N,) int64
        Class of each voxel, 0 to K - 1. No class is empty.
    """

    centres: Float64
    assigned: Int64


def cluster(values: NDArray[np.floating[Any]], *, classes: int = 3, starts: int = 4, seed: int = 0) -> Clusters:
    """Cluster by k-means (Lloyd's iterations from k-means++ starts [1]_), each modality scaled to unit variance.

    Parameters
    ----------
    values : (N, C) float
        Intensities, finite.
    classes : int
        Number of classes K, at least 1.
    starts : int
        Number of random starts; the best result is kept.
    seed : int
        Seed of the random starts.

    Returns
    -------
    Clusters

    Raises
    ------
    InputError
        There are no voxels, or more classes than distinct values.

    References
    ----------
    .. [1] Arthur, Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA, 1027-1035.

    Examples
    --------
    >>> import numpy as np
    >>> cluster(np.array([[9.0], [1.0], [8.0], [2.0]]), classes=2).centres
    array([[1.5],
           [8.5]])
    """
    from sklearn.cluster import KMeans

    if values.ndim != 2 or not len(values):
        raise InputError(f"values: expected shape (N, C) with at least one voxel, got {values.shape}")
    if classes < 1:
        raise InputError(f"classes: expected at least 1, got {classes}")
    step = max(1, len(values) // SAMPLE)
    if step > 1 and len(np.unique(values[::step], axis=0)) < classes:
        step = 1
    sample = values[::step]
    if step == 1 and (distinct := len(np.unique(sample, axis=0))) < classes:
        raise InputError(f"classes: expected at most {distinct}, the number of distinct values, got {classes}")
    centre, scale = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)
    model = KMeans(classes, n_init=starts, random_state=seed).fit((sample - centre) / scale)
    order = np.argsort(model.cluster_centers_[:, 0], kind="stable")
    assigned = np.argsort(order)[model.predict((values - centre) / scale)]
    return Clusters(model.cluster_centers_[order] * scale + centre, assigned.astype(np.int64))
