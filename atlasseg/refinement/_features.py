"""Features of a voxel for the classifiers: intensities and probabilities around it, and its position in the structure.

Patches are read in the order of the patient's axes (right, anterior, superior), for any order and direction of
the array axes, so that scans stored in different orientations give the same features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numba import njit
from scipy import ndimage

from atlasseg.threads import run_slices
from atlasseg.volume import Bool, Float32, Float64, Image, Int64, ProbabilityMap

SMOOTHING_REACH = 4 / 3
"""Radius of the Gaussian filter (standard deviation: a third of a scale), in scales."""

CERTAIN = 0.999
"""Minimum probability of a certain voxel."""


@dataclass(frozen=True)
class Window:
    """Field of view of a classifier, and the region in which it is applied, in voxels.

    Beyond the patches, its features include smoothed values at distances `scales_voxels` on both sides along each axis.
    """

    intensity_radius_voxels: int = 2
    probability_radius_voxels: int = 1
    dilation_voxels: int = 2
    scales_voxels: tuple[int, ...] = (3, 6)

    def columns(self, channels: int) -> int:
        """Return the number of features of a scan with this number of channels."""
        probabilities = (2 * self.probability_radius_voxels + 1) ** 3
        coarse = 7 * (channels + 2) * len(self.scales_voxels)
        return int(channels * (2 * self.intensity_radius_voxels + 1) ** 3 + 2 * probabilities + coarse + 3)


@dataclass(frozen=True, eq=False)
class Region:
    """Region in which one label may be corrected.

    Parameters
    ----------
    label : int
    voxels : (n,) int64
        Flat (C order) indices, ascending.
    probability : (I, J, K) float32
        Fused probability of the label.
    centre_mm, extent_mm : (3,) float64
        Mean and standard deviation of the positions (RAS+ mm) of the label's voxels in the fused segmentation.
    """

    label: int
    voxels: Int64
    probability: Float32
    centre_mm: Float64
    extent_mm: Float64


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan, its fused segmentation on the same grid, and the field of view of the classifiers."""

    target: Image
    fused: ProbabilityMap
    window: Window

    @cached_property
    def background(self) -> Float32:
        """(I, J, K) probability of label 0."""
        return self.fused.probability(0)

    @cached_property
    def coarse(self) -> tuple[Float32, ...]:
        """For each scale (I, J, K, C + 1): the smoothed channels and background."""
        both = np.concatenate([self.target.channels, self.background[..., None]], axis=3)
        return tuple(_smooth(both, scale) for scale in self.window.scales_voxels)

    @cached_property
    def around_labels(self) -> Bool:
        """(I, J, K) the union of the regions of all labels except the background."""
        out = np.zeros(self.fused.shape, bool)
        for label in self.fused.label_values[self.fused.label_values != 0].tolist():
            region = self.region(label)
            if region is not None:
                out.reshape(-1)[region.voxels] = True
        return out

    def region(self, label: int) -> Region | None:
        """Region of a label: its dilation, without voxels in certain surroundings; None if the label does not occur.

        The region of the background is limited to the regions of the other labels.
        """
        fused, size = self.fused, 2 * self.window.dilation_voxels + 1
        own = fused.mode == label
        if label == 0:
            own &= _dilate(self.around_labels, size)
        if not own.any():
            return None
        box = _box_around(own, self.window.dilation_voxels)
        probability = fused.probability(label) if label else self.background
        settled = ndimage.minimum_filter((probability[box] >= CERTAIN).view(np.uint8), size, mode="nearest")
        asked = np.zeros(fused.shape, bool)
        asked[box] = _dilate(own[box], size) & (settled == 0)
        if label == 0:
            asked &= self.around_labels
        own_mm = np.argwhere(own) @ fused.affine[:3, :3].T + fused.affine[:3, 3]
        extent_mm = np.maximum(own_mm.std(axis=0), fused.grid.spacing_mm.min())
        return Region(label, np.flatnonzero(asked).astype(np.int64), probability, own_mm.mean(axis=0), extent_mm)

    def features(self, region: Region, voxels: Int64) -> Float32:
        """Compute the features (n, F) of voxels of a region, given by their flat indices.

        The features are a patch of intensities; patches of the probabilities of the label and of the background; for
        each scale intensities, background and label, smoothed by a Gaussian of a third of the scale, at the voxel and
        at the distance of the scale on both sides along each axis; and the position relative to the label's centre and
        extent. Intensities are scaled to mean 0 and standard deviation 1 over the region, channel by channel.
        """
        affine, window = self.target.affine, self.window
        if not voxels.size:
            return np.empty((0, window.columns(self.target.channels.shape[3])), np.float32)
        channels = np.ascontiguousarray(self.target.channels)
        there = channels.reshape(-1, channels.shape[3])[region.voxels].astype(np.float64)
        mean, spread = there.mean(axis=0), there.std(axis=0)
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        index = np.stack(np.unravel_index(voxels, self.target.shape), axis=1).astype(np.int64)
        out = np.empty((voxels.size, window.columns(channels.shape[3])), np.float32)
        filled = 0

        def gather(volume: Float32, at: Int64, offsets: Int64, mean: Float64, scale: Float64) -> None:
            nonlocal filled
            end = filled + offsets.shape[0] * volume.shape[3]
            run_slices(_gather, len(at), volume, at, offsets, mean, scale, out[:, filled:end])
            filled = end

        none, one = np.zeros(1), np.ones(1)
        narrow = list_oriented_offsets(affine, window.probability_radius_voxels)
        gather(channels, index, list_oriented_offsets(affine, window.intensity_radius_voxels), mean, scale)
        gather(np.ascontiguousarray(region.probability)[..., None], index, narrow, none, one)
        gather(self.background[..., None], index, narrow, none, one)
        for coarse, step in zip(self.coarse, window.scales_voxels, strict=True):
            cross = list_oriented_offsets(affine, 1)
            cross = step * cross[np.abs(cross).sum(axis=1) <= 1]
            gather(coarse, index, cross, np.append(mean, 0), np.append(scale, 1))
            # the label is needed near the region only, so it is smoothed in a box around it
            reach = step + int(SMOOTHING_REACH * step) + 1
            low = np.maximum(index.min(axis=0) - reach, 0)
            box = tuple(slice(a, b + reach + 1) for a, b in zip(low, index.max(axis=0), strict=True))
            own = _smooth(np.ascontiguousarray(region.probability[box])[..., None], step)
            gather(own, index - low, cross, none, one)
        out[:, -3:] = (index @ affine[:3, :3].T + affine[:3, 3] - region.centre_mm) / region.extent_mm
        return out


def _smooth(volumes: Float32, scale_voxels: int) -> Float32:
    """Smooth (I, J, K, C) volumes by a Gaussian whose standard deviation is a third of the scale."""
    out = np.empty_like(volumes)
    for c in range(volumes.shape[3]):
        ndimage.gaussian_filter(volumes[..., c], scale_voxels / 3, output=out[..., c], mode="nearest", truncate=4.0)
    return out


def list_oriented_offsets(affine: Float64, radius: int) -> Int64:
    """List the array offsets (n, 3) of the voxels of a cube, in the order of the patient's axes (R, A, S)."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    span = range(-radius, radius + 1)
    along_patient = np.array(list(product(span, span, span)), np.int64)
    return np.ascontiguousarray(along_patient[:, orientation[:, 0].astype(int)] * orientation[:, 1].astype(int))


def _dilate(mask: Bool, size: int) -> Bool:
    out: Bool = ndimage.maximum_filter(mask.view(np.uint8), size, mode="nearest").astype(bool)
    return out


def _box_around(mask: Bool, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, mask.shape, strict=True))


@njit(cache=True, nogil=True)
def _gather(
    start: int,
    stop: int,
    volume: Float32,
    index: Int64,
    offsets: Int64,
    mean: Float64,
    scale: Float64,
    out: Float32,
) -> None:
    """Write scaled values of (I, J, K, C) at all offsets from each voxel; the outermost voxels are repeated."""
    last_i, last_j, last_k = volume.shape[0] - 1, volume.shape[1] - 1, volume.shape[2] - 1
    count = volume.shape[3]
    for row in range(start, stop):
        for n in range(offsets.shape[0]):
            i = min(max(index[row, 0] + offsets[n, 0], 0), last_i)
            j = min(max(index[row, 1] + offsets[n, 1], 0), last_j)
            k = min(max(index[row, 2] + offsets[n, 2], 0), last_k)
            for c in range(count):
                out[row, n * count + c] = (volume[i, j, k, c] - mean[c]) * scale[c]
