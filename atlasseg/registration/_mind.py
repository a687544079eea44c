"""MIND-SSC: self-similarity descriptors of the neighbourhood of a voxel, independent of contrast.

References
----------
.. [1] Heinrich, M. P., et al. (2013). Towards realtime multimodal fusion for image-guided interventions using
   self-similarities. MICCAI, LNCS 8149, 187-194 (self-similarity context, section 2).
.. [2] Heinrich, M. P., et al. (2012). MIND: Modality independent neighbourhood descriptor for multi-modal deformable
   registration. Medical Image Analysis 16(7), 1423-1435 (equations 4 and 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from atlasseg.threads import run_slices

if TYPE_CHECKING:
    from atlasseg.volume import Float32, Float64, Int64

_NEIGHBOURS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]])

PAIRS: Int64 = np.array(
    [
        (first, second)
        for i, first in enumerate(_NEIGHBOURS.tolist())
        for second in _NEIGHBOURS[i + 1 :].tolist()
        if np.sum((np.array(first) - second) ** 2) == 2
    ],
    dtype=np.int64,
)
"""(12, 2, 3) pairs of patches that the channels compare: pairs of the six neighbours at a distance of sqrt(2)."""


def mind_ssc(image: Float32, *, radius_voxels: int = 1, dilation_voxels: int = 1) -> Float32:
    """Compute the self-similarity descriptor of every voxel.

    Each channel is ``exp(-D / V)``. D is the mean squared difference between two patches next to the voxel, minus the
    smallest of the 12 differences. V is the mean of the 12, limited to 0.001 to 1000 times its mean over the image.

    Parameters
    ----------
    image : (I, J, K) float32
        Intensities of any scale and contrast; the outermost voxels are repeated beyond the faces.
    radius_voxels : int
        Radius of the box-shaped patches.
    dilation_voxels : int
        Distance from the voxel to the centres of the patches.

    Returns
    -------
    (I, J, K, 12) float32
        Values from 0 to 1; all 1 where the image is constant.
    """
    image = np.ascontiguousarray(image, dtype=np.float32)
    different, in_plane = np.empty((*image.shape, len(PAIRS)), np.float32), np.empty_like(image)
    for channel, (first, second) in enumerate(PAIRS * dilation_voxels):
        run_slices(_sum_in_planes, len(image), image, first, second, radius_voxels, in_plane)
        run_slices(_average_over_planes, len(image), in_plane, radius_voxels, different, channel)
    variance, plane_sums = np.empty_like(image), np.zeros(len(image))
    run_slices(_subtract_least, len(image), different, variance, plane_sums)
    mean = plane_sums.sum() / variance.size
    limits = np.float32(max(0.001 * mean, 1e-30)), np.float32(max(1000 * mean, 1e-30))
    run_slices(_normalise, len(image), different, variance, *limits)
    return different


@njit(cache=True, nogil=True)
def _sum_in_planes(
    start: int, stop: int, image: Float32, first: Int64, second: Int64, radius: int, in_plane: Float32
) -> None:
    """Sum the squared difference between two shifted images over each square in a plane."""
    planes, rows, columns = image.shape
    for i in range(start, stop):
        i1 = min(max(i + first[0], 0), planes - 1)
        i2 = min(max(i + second[0], 0), planes - 1)
        square = np.empty((rows, columns), np.float32)
        for j in range(rows):
            j1 = min(max(j + first[1], 0), rows - 1)
            j2 = min(max(j + second[1], 0), rows - 1)
            for k in range(columns):
                k1 = min(max(k + first[2], 0), columns - 1)
                k2 = min(max(k + second[2], 0), columns - 1)
                square[j, k] = (image[i1, j1, k1] - image[i2, j2, k2]) ** 2
        along_rows = np.zeros((rows, columns), np.float32)
        for j in range(rows):
            for offset in range(-radius, radius + 1):
                jj = min(max(j + offset, 0), rows - 1)
                for k in range(columns):
                    along_rows[j, k] += square[jj, k]
        for j in range(rows):
            for k in range(columns):
                total = np.float32(0)
                for offset in range(-radius, radius + 1):
                    total += along_rows[j, min(max(k + offset, 0), columns - 1)]
                in_plane[i, j, k] = total


@njit(cache=True, nogil=True)
def _average_over_planes(start: int, stop: int, in_plane: Float32, radius: int, out: Float32, channel: int) -> None:
    """Average each box, from the sums over its squares, into one channel of `out`."""
    planes, rows, columns = in_plane.shape
    scale = np.float32(1 / (2 * radius + 1) ** 3)
    for i in range(start, stop):
        for j in range(rows):
            for k in range(columns):
                total = np.float32(0)
                for offset in range(-radius, radius + 1):
                    total += in_plane[min(max(i + offset, 0), planes - 1), j, k]
                out[i, j, k, channel] = total * scale


@njit(cache=True, nogil=True)
def _subtract_least(start: int, stop: int, different: Float32, variance: Float32, plane_sums: Float64) -> None:
    """Subtract the least difference of each voxel, in place; write the mean of the rest, and its sum over a plane."""
    _, rows, columns, channels = different.shape
    for i in range(start, stop):
        for j in range(rows):
            for k in range(columns):
                least = different[i, j, k, 0]
                for c in range(1, channels):
                    least = min(least, different[i, j, k, c])
                total = np.float32(0)
                for c in range(channels):
                    different[i, j, k, c] -= least
                    total += different[i, j, k, c]
                variance[i, j, k] = total / channels
                plane_sums[i] += variance[i, j, k]


@njit(cache=True, nogil=True)
def _normalise(start: int, stop: int, different: Float32, variance: Float32, low: float, high: float) -> None:
    """Convert differences to descriptors, in place."""
    _, rows, columns, channels = different.shape
    for i in range(start, stop):
        for j in range(rows):
            for k in range(columns):
                inverse = np.float32(1) / min(max(variance[i, j, k], low), high)
                for c in range(channels):
                    different[i, j, k, c] = np.exp(-different[i, j, k, c] * inverse)
