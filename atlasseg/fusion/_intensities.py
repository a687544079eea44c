"""Standardised intensities of target and candidates around the voxels where the candidates disagree.

Scans may have any intensity scale (0 to 112, 0 to 1.7e6). Every fusion that compares intensities uses these: each
channel is clipped to its 1st and 99th percentile, then shifted and scaled to mean 0 and standard deviation 1, over the
part of the box that the candidate covers. A constant channel becomes 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from atlasseg.volume import Atlas, Bool, Float32, Float64, Image, Int64, check_channels

CLIP_PERCENTILES = (1.0, 99.0)
FLAT_WINDOW = 1e-5
"""A window whose variance is below this fraction of the variance of the box is flat: its correlation is 0."""
WINDOW_REACH = 4.0
"""Radius of a Gaussian window, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Standardised:
    """Comparable intensities in a box around given voxels.

    Parameters
    ----------
    target : (I', J', K', C) float32
        The target in the box.
    candidates : sequence of Atlas
        The candidates, not cropped.
    box : tuple of 3 slices
        Position of the box in the target's grid.
    inside : (M,) int64
        Flat indices, in the box, of the given voxels.
    """

    target: Float32
    candidates: Sequence[Atlas]
    box: tuple[slice, slice, slice]
    inside: Int64

    @classmethod
    def around(cls, target: Image, candidates: Sequence[Atlas], voxels: Int64, *, margin_voxels: float) -> Standardised:
        """Make the box that contains `voxels` (flat indices, at least one) and `margin_voxels` around them.

        Raises
        ------
        InputError
            A candidate has another number of channels than the target.
        """
        check_channels(target, candidates)
        index = np.stack(np.unravel_index(voxels, target.shape))
        margin = int(np.ceil(margin_voxels))
        start = np.maximum(index.min(axis=1) - margin, 0)
        stop = np.minimum(index.max(axis=1) + 1 + margin, target.shape)
        box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        inside = np.ravel_multi_index(tuple(index - start[:, None]), tuple(stop - start))
        return cls(standardise(target.channels[box], None), candidates, box, inside)

    @property
    def covered(self) -> Bool:
        """(N, M) bool: whether a candidate's field of view reaches a given voxel."""
        return np.stack(
            [
                np.ones(self.inside.size, bool) if a.mask is None else a.mask.array[self.box].reshape(-1)[self.inside]
                for a in self.candidates
            ]
        )

    def __iter__(self) -> Iterator[tuple[Float32, Bool | None]]:
        """Each candidate's intensities, like `target`, and where it covers the box (None: everywhere)."""
        for atlas in self.candidates:
            mask = None if atlas.mask is None else atlas.mask.array[self.box]
            if mask is not None and mask.all():
                mask = None
            yield standardise(atlas.image.channels[self.box], mask), mask


def standardise(channels: Float32, mask: Bool | None) -> Float32:
    """Clip and scale channels (..., C) to mean 0 and standard deviation 1 over `mask`; 0 outside it."""
    out = np.zeros(channels.shape, np.float32)
    for c in range(channels.shape[-1]):
        chosen = channels[..., c] if mask is None else channels[..., c][mask]
        if chosen.size == 0:
            continue
        low, high = np.percentile(chosen, CLIP_PERCENTILES)
        if high <= low:
            low, high = chosen.min(), chosen.max()
        clipped = np.clip(channels[..., c].astype(np.float64), low, high)
        known = clipped if mask is None else clipped[mask]
        mean, deviation = known.mean(), known.std()
        if deviation > 1e-12 * max(abs(mean), 1e-300):
            out[..., c] = (clipped - mean) / deviation
    if mask is not None:
        out[~mask] = 0
    return out


def gaussian_mean(values: Float64, sigma_voxels: float) -> Float64:
    """Compute Gaussian means over the first three axes. Values beyond the border count as 0."""
    for axis in range(3):
        if sigma_voxels > 0:
            values = gaussian_filter1d(values, sigma_voxels, axis=axis, mode="constant", truncate=WINDOW_REACH)
    return values


def box_mean(values: Float64, radius_voxels: int) -> Float64:
    """Compute box means over the first three axes. Values beyond the border count as 0."""
    for axis in range(3):
        values = uniform_filter1d(values, 2 * radius_voxels + 1, axis=axis, mode="constant")
    return values


def correlate_locally(images: Standardised, *, sigma_voxels: float) -> Float32:
    """Compute the correlation of target and candidate in a Gaussian window around each of the given voxels.

    Windows are cut at the border of the box and of the candidate's mask. The correlation of a flat window is 0.

    Parameters
    ----------
    images : Standardised
        Target, candidates and voxels. For several channels, the result is the mean of their correlations.
    sigma_voxels : float
        Standard deviation of the window, in voxels along each axis.

    Returns
    -------
    (N, M) float32
        In [-1, 1].

    References
    ----------
    .. [1] Cachier et al. (2003), Iconic feature based nonrigid registration: the PASHA algorithm, CVIU 89:272-298.
    """
    target = images.target.astype(np.float64)
    everywhere = _statistics(target, None, sigma_voxels)
    out = np.zeros((len(images.candidates), images.inside.size), np.float32)
    for i, (candidate, mask) in enumerate(images):
        moving = candidate.astype(np.float64)
        weight, mean_t, var_t = everywhere if mask is None else _statistics(target, mask, sigma_voxels)
        _, mean_a, var_a = _statistics(moving, mask, sigma_voxels, weight)
        inside = target * moving if mask is None else target * moving * mask[..., None]
        covariance = gaussian_mean(inside, sigma_voxels) / weight - mean_t * mean_a
        varied = (var_t > FLAT_WINDOW) & (var_a > FLAT_WINDOW)
        r = np.where(varied, covariance / np.sqrt(np.where(varied, var_t * var_a, 1)), 0).mean(axis=-1)
        out[i] = np.clip(r.reshape(-1)[images.inside], -1, 1)
    return out


def _statistics(
    values: Float64, mask: Bool | None, sigma: float, weight: Float64 | None = None
) -> tuple[Float64, Float64, Float64]:
    """Weight of the window inside the mask, mean and variance in the window."""
    known = np.ones((*values.shape[:3], 1)) if mask is None else mask[..., None].astype(np.float64)
    if weight is None:
        weight = np.maximum(gaussian_mean(known, sigma), 1e-9)
    mean = gaussian_mean(values * known, sigma) / weight
    return weight, mean, gaussian_mean(values**2 * known, sigma) / weight - mean**2
