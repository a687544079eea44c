"""Scans on coarse voxels, and the neighbourhood of each atlas's labels, by which the organ is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.localisation._correlation import LEAST_VARIANCE
from atlasseg.organ_mask import widen
from atlasseg.plausibility import coarsen
from atlasseg.volume import Atlas, Bool, Float32, Float64, Image, Mask

VOXELS_PER_ORGAN = 12.0
"""Voxels along the edge of a cube of the size of the organ's box, at most."""

MOST_VOXELS = 40_000
"""Voxels of a scan that is searched, at most."""

SURROUNDINGS = 0.6
"""An atlas is registered up to this far around its labels, as a fraction of the organ's size."""

EDGE_SIGMA = 1.0
"""Standard deviation, in voxels, of the Gaussian under which the gradient is taken."""

CLIP_PERCENTILES = (1.0, 99.0)

LEAST_OVERLAP = 0.55
"""Fraction of an atlas's neighbourhood that must lie in the scan."""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """One atlas on coarse voxels, cropped to the neighbourhood of its labels.

    Parameters
    ----------
    id : str
        Of the atlas.
    image : Image
        Cropped, its intensities clipped.
    near : Mask
        Voxels near the labels.
    centre_mm : (3,) float64
        Centre of mass of the labels.
    points_mm, values
        Points (N, 3) of the voxels in `near`, and the intensities (N, C) there.
    """

    id: str
    image: Image
    near: Mask
    centre_mm: Float64
    points_mm: Float64
    values: Float64


def organ_edge_mm(atlases: Sequence[Atlas]) -> float:
    """Edge of a cube of the volume of the labels' box, the median of the atlases."""
    edges = []
    for atlas in atlases:
        where = np.argwhere(atlas.segmentation.array != 0)
        if not len(where):
            raise InputError(
                f"{atlas.segmentation.source_header.path or atlas.id}: expected a label above 0 in atlas {atlas.id!r} "
                "to localise, got background alone. Add its labels, or remove the atlas."
            )
        edges.append(np.prod((np.ptp(where, axis=0) + 1) * atlas.image.spacing_mm) ** (1 / 3))
    return float(np.median(edges))


def surroundings(atlas: Atlas) -> Mask:
    """Mask of an atlas around its labels, in which it is registered where the organ was localised.

    Parameters
    ----------
    atlas : Atlas
        With a label above 0.

    Returns
    -------
    Mask
        Voxels of labels above 0 and those up to `SURROUNDINGS` of the organ's size away.
    """
    labels = atlas.segmentation
    return widen(Mask(labels.array != 0, atlas.image.affine, atlas.id), margin_mm=SURROUNDINGS * organ_edge_mm([atlas]))


def coarse_spacing_mm(image: Image, edge_mm: float, most_voxels: float) -> float:
    """Voxel size that is fine enough for the organ, and with which a scan has at most so many voxels."""
    spacing = edge_mm / VOXELS_PER_ORGAN
    while _voxels(image, spacing) > most_voxels:
        spacing *= 1.05
    return spacing


def _voxels(image: Image, spacing_mm: float) -> float:
    factors = np.maximum(np.rint(spacing_mm / image.spacing_mm), 1)
    return float(np.prod(np.maximum(np.array(image.shape) // factors, 1)))


def clip(image: Image) -> Image:
    """Clip each channel to its percentiles."""
    channels = image.channels
    low, high = np.percentile(channels.reshape(-1, channels.shape[-1]), CLIP_PERCENTILES, axis=0)
    high = np.where(high > low, high, channels.reshape(-1, channels.shape[-1]).max(axis=0))
    clipped = np.clip(channels, low, high).astype(np.float32)
    return image.with_array(clipped if image.array.ndim == 4 else clipped[..., 0])


def with_edges(image: Image) -> Image:
    """Clip an image, add the magnitude of its gradient for each channel, and scale all channels to mean 0 and sd 1."""
    clipped = clip(image).channels
    sigma = np.minimum(EDGE_SIGMA * image.spacing_mm.min() / image.spacing_mm, EDGE_SIGMA)
    edges = [
        ndimage.gaussian_gradient_magnitude(clipped[..., c].astype(np.float32), sigma, mode="nearest")
        for c in range(clipped.shape[-1])
    ]
    channels = np.concatenate([clipped, np.stack(edges, axis=-1)], axis=-1)
    flat = channels.reshape(-1, channels.shape[-1])
    spread = flat.std(axis=0)
    return image.with_array(((channels - flat.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32))


def coarsen_mask(mask: Mask, spacing_mm: float) -> Mask:
    """Mask on coarse voxels of which at least half lies inside."""
    share = coarsen(Image(mask.array.astype(np.float32), mask.affine), spacing_mm)
    return Mask(share.array >= 0.5, share.affine, mask.name)


def find_neighbourhood(atlas: Atlas, mask: Mask | None, spacing_mm: float, margin_mm: float) -> Neighbourhood:
    """Crop an atlas to the neighbourhood of its labels on coarse voxels."""
    image = with_edges(coarsen(atlas.image, spacing_mm))
    labels = atlas.segmentation
    organ = coarsen(Image((labels.array != 0).astype(np.float32), labels.affine), spacing_mm)
    inside: Bool = organ.array > min(0.25, 0.99 * float(organ.array.max()))
    near = widen(Mask(inside, image.affine, atlas.id), margin_mm=margin_mm).array
    if mask is not None:
        near = near & coarsen_mask(mask, spacing_mm).array
    if not near.any():
        near = inside
    where = np.argwhere(near)
    start, stop = np.maximum(where.min(axis=0) - 1, 0), np.minimum(where.max(axis=0) + 2, image.shape)
    centre = np.array(ndimage.center_of_mass(labels.array != 0))
    points = np.argwhere(near) @ image.affine[:3, :3].T + image.affine[:3, 3]
    return Neighbourhood(
        atlas.id,
        image.cropped(start, stop),
        Mask(near, image.affine, atlas.id).cropped(start, stop),
        centre @ labels.affine[:3, :3].T + labels.affine[:3, 3],
        points,
        image.channels[near].astype(np.float64),
    )


def sample(channel: Float32, affine: Float64, points_mm: Float64, *, outside: float) -> Float64:
    """Interpolate an image (I, J, K) linearly at points (N, 3); `outside` beyond its voxels' edges."""
    inverse = np.linalg.inv(affine)
    voxels = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    last = np.array(channel.shape) - 1
    inside = ((voxels >= -0.5) & (voxels <= last + 0.5)).all(axis=1)
    found = ndimage.map_coordinates(channel, np.clip(voxels, 0, last).T, order=1, mode="nearest", output=np.float64)
    return np.where(inside, found, outside)


def correlation_at(target: Image, known: Bool, atlas: Neighbourhood, atlas_from_target: Float64) -> float:
    """Mean of correlation and concordance of scan and neighbourhood of an atlas under a matrix (4, 4), over channels.

    It is reduced by the share of the neighbourhood that lies outside the scan; -1 where that is most of it.
    """
    to_voxels = np.linalg.inv(atlas_from_target @ target.affine)[:3]
    return float(_correlate(target.channels, known, atlas.points_mm, atlas.values, to_voxels, LEAST_OVERLAP))


@njit(cache=True)
def _correlate(channels, known, points, values, to_voxels, least):  # type: ignore[no-untyped-def]
    ni, nj, nk, count = channels.shape
    sums = np.zeros((count, 5))
    seen = 0
    for n in range(len(points)):
        x, y, z = points[n]
        i = to_voxels[0, 0] * x + to_voxels[0, 1] * y + to_voxels[0, 2] * z + to_voxels[0, 3]
        j = to_voxels[1, 0] * x + to_voxels[1, 1] * y + to_voxels[1, 2] * z + to_voxels[1, 3]
        k = to_voxels[2, 0] * x + to_voxels[2, 1] * y + to_voxels[2, 2] * z + to_voxels[2, 3]
        if i < -0.5 or j < -0.5 or k < -0.5 or i > ni - 0.5 or j > nj - 0.5 or k > nk - 0.5:
            continue
        i, j, k = min(max(i, 0.0), ni - 1.0), min(max(j, 0.0), nj - 1.0), min(max(k, 0.0), nk - 1.0)
        if not known[int(i + 0.5), int(j + 0.5), int(k + 0.5)]:
            continue
        seen += 1
        a, b, c = min(int(i), max(ni - 2, 0)), min(int(j), max(nj - 2, 0)), min(int(k), max(nk - 2, 0))
        d, e, f = min(a + 1, ni - 1), min(b + 1, nj - 1), min(c + 1, nk - 1)
        u, v, w = i - a, j - b, k - c
        for m in range(count):
            near = (channels[a, b, c, m] * (1 - w) + channels[a, b, f, m] * w) * (1 - v)
            near += (channels[a, e, c, m] * (1 - w) + channels[a, e, f, m] * w) * v
            far = (channels[d, b, c, m] * (1 - w) + channels[d, b, f, m] * w) * (1 - v)
            far += (channels[d, e, c, m] * (1 - w) + channels[d, e, f, m] * w) * v
            ours, theirs = near * (1 - u) + far * u, values[n, m]
            sums[m, 0] += ours
            sums[m, 1] += theirs
            sums[m, 2] += ours * ours
            sums[m, 3] += theirs * theirs
            sums[m, 4] += ours * theirs
    if seen < least * len(points):
        return -1.0
    total = 0.0
    for m in range(count):
        a, b = sums[m, 0] / seen, sums[m, 1] / seen
        ours, theirs = sums[m, 2] / seen - a * a, sums[m, 3] / seen - b * b
        if ours > LEAST_VARIANCE and theirs > LEAST_VARIANCE:
            both = sums[m, 4] / seen - a * b
            total += (both / np.sqrt(ours * theirs) / 2 + both / (ours + theirs + (a - b) ** 2)) / count
    return total * (0.75 + 0.25 * seen / len(points))
