"""Atlas selection: choose the atlases of a library that are most similar to a target.

Before registration, target and atlases are compared as thumbnails on a coarse grid over the target. The atlases are
aligned by a cheap transform (centres here, or an affine from the registration stage). After registration, the
propagated atlases are compared on the grid of the target. The selection takes the `count` most similar atlases, or
greedily avoids atlases that resemble those already chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.resampling import coverage, resample
from atlasseg.similarity import MetricName, metric_class
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Atlas, Bool, Float32, Float64, Grid, Image, Mask, check_channels

__all__ = ["Thumbnails", "choose", "exclude_scan", "likenesses", "select", "similarities", "thumbnails"]

log = logging.getLogger(__name__)

CLIP_PERCENTILES = (1.0, 99.0)
LEAST_COVERAGE = 0.25
"""Minimum fraction of the compared voxels that an atlas must cover; atlases that cover less are ranked last."""
SHIFTS_VOXELS = 2
"""Maximum shift of the centres along each axis, in voxels of the thumbnail."""
LEAST_VARIANCE = 1e-9
"""Minimum variance, for intensities with variance 1; below it a channel is constant."""


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails: target and atlases on one coarse grid, with standardised intensities.

    Parameters
    ----------
    grid : Grid
        The coarse grid.
    target : (i, j, k, C) float32
        The target.
    images : (N, i, j, k, C) float32
        The atlases.
    covered : (N, i, j, k) bool
        Voxels inside the field of view of each atlas and inside the mask of the target.
    """

    grid: Grid
    target: Float32
    images: Float32
    covered: Bool


def select(
    target: Image,
    atlases: Sequence[Atlas],
    *,
    count: int,
    transforms: Sequence[Transform] | None = None,
    metric: MetricName = "correlation",
    redundancy: float = 0.0,
    longest_voxels: int = 32,
    mask: Mask | None = None,
) -> tuple[int, ...]:
    """Choose the atlases to use for a target.

    Parameters
    ----------
    target : Image
        The scan.
    atlases : sequence of Atlas
        A library, or candidates that are on the target's grid already.
    count : int
        Number of atlases to choose; all if there are fewer.
    transforms : sequence of Transform, optional
        Transform of each atlas, from points of the target to points of the atlas. By default the identity for an atlas
        on the grid of the target, and otherwise the translation with the highest correlation of the thumbnails.
    metric : str
        Similarity metric for the ranking; see `atlasseg.similarity`.
    redundancy : float
        Weight of the redundancy, see `choose`. 0 takes the most similar atlases.
    longest_voxels : int
        Number of voxels along the longest side of a thumbnail, at least 4.
    mask : Mask, optional
        Compare only inside this mask, on the grid of the target.

    Returns
    -------
    tuple of int
        Indices of the chosen atlases, best first.

    Raises
    ------
    InputError
        There is no atlas, numbers do not match, or a parameter is out of its range.

    References
    ----------
    .. [1] Aljabar et al. (2009), Multi-atlas based segmentation of brain images: atlas selection and its effect on
       accuracy, NeuroImage 46(3):726-738.
    """
    seen = thumbnails(target, atlases, transforms=transforms, longest_voxels=longest_voxels, mask=mask)
    scores = similarities(seen, metric=metric)
    likeness = likenesses(seen) if redundancy > 0 else None
    return choose(scores, count=count, likeness=likeness, redundancy=redundancy)


def exclude_scan(id_: str, scan: Image, atlases: Sequence[Atlas]) -> list[Atlas]:
    """Exclude the atlases that are the scan itself, by id or by content: a scan never votes for itself.

    Parameters
    ----------
    id_ : str
        Id of the scan.
    scan : Image
        The scan.
    atlases : sequence of Atlas
        The library.

    Returns
    -------
    list of Atlas

    Raises
    ------
    InputError
        No atlas is left.
    """
    content = io.content_hash(scan)
    others = []
    for atlas in atlases:
        same = atlas.image.shape == scan.shape and io.content_hash(atlas.image) == content
        if atlas.id == id_ or same:
            log.info("%s: atlas %s is the scan itself and is left out", id_, atlas.id)
        else:
            others.append(atlas)
    if not others:
        raise InputError(f"{id_}: expected atlases other than the scan itself, got none")
    return others


def thumbnails(
    target: Image,
    atlases: Sequence[Atlas],
    *,
    transforms: Sequence[Transform] | None = None,
    longest_voxels: int = 32,
    mask: Mask | None = None,
) -> Thumbnails:
    """Make thumbnails: target and atlases on a coarse grid, smoothed to its resolution.

    Each channel is clipped to its 1st and 99th percentile and has mean 0 and standard deviation 1 where it is covered.

    Parameters
    ----------
    target, atlases, transforms, longest_voxels, mask
        As for `select`.

    Returns
    -------
    Thumbnails
    """
    if not atlases:
        raise InputError("expected at least one atlas to select from, got none")
    if transforms is not None and len(transforms) != len(atlases):
        raise InputError(f"expected one transform for each atlas, got {len(transforms)} for {len(atlases)} atlases")
    if longest_voxels < 4:
        raise InputError(f"a thumbnail needs at least 4 voxels along its longest side, got {longest_voxels}")
    check_channels(target, atlases)
    grid = _coarse(target.grid, longest_voxels)
    wanted = np.ones(grid.shape, bool)
    if mask is not None:
        wanted = resample(mask, grid).array
        if not wanted.any():
            raise InputError(f"the mask of the target {target.name!r} is empty on a grid of {grid.shape} voxels")
    scan = resample(target, grid, antialias=True).channels
    images = np.empty((len(atlases), *scan.shape), np.float32)
    covered = np.empty((len(atlases), *grid.shape), bool)
    for n, atlas in enumerate(atlases):
        if transforms is not None:
            images[n], covered[n] = _seen(atlas, grid, transforms[n], wanted)
        elif atlas.image.grid.matches(target.grid):
            images[n], covered[n] = _seen(atlas, grid, Affine.identity(), wanted)
        else:
            images[n], covered[n] = _centred(atlas, grid, scan, wanted)
    return Thumbnails(grid, _standardised(scan, wanted), images, covered)


def similarities(seen: Thumbnails, *, metric: MetricName = "correlation") -> Float64:
    """Compute the similarity of each atlas to the target.

    Parameters
    ----------
    seen : Thumbnails
        Thumbnails of target and atlases.
    metric : str
        Name of a similarity metric; distances are negated.

    Returns
    -------
    (N,) float64
        Higher is more similar; -inf for an atlas that covers less than `LEAST_COVERAGE`.
    """
    measured = metric_class(metric)()
    scores = np.full(len(seen.images), -np.inf)
    enough = seen.covered.sum(axis=(1, 2, 3)) >= LEAST_COVERAGE * seen.covered.any(axis=0).sum()
    for n in np.flatnonzero(enough & seen.covered.any(axis=(1, 2, 3))):
        scores[n] = measured.score(seen.target, seen.images[n], mask=seen.covered[n])
    return scores


def likenesses(seen: Thumbnails) -> Float64:
    """Compute the correlation of all pairs of atlases on their common voxels.

    Parameters
    ----------
    seen : Thumbnails
        Thumbnails of the atlases.

    Returns
    -------
    (N, N) float64
        Correlations; 0 without common voxels.
    """
    n = len(seen.images)
    out = np.eye(n)
    for i in range(n):
        for j in range(i):
            both = seen.covered[i] & seen.covered[j]
            if both.any():
                out[i, j] = out[j, i] = _correlation(seen.images[i][both], seen.images[j][both])
    return out


def choose(scores: Float64, *, count: int, likeness: Float64 | None = None, redundancy: float = 0.0) -> tuple[int, ...]:
    """Choose `count` of N atlases greedily by maximal marginal relevance [1].

    The next atlas has the largest ``score_i - redundancy * max over the chosen j of likeness_ij``. Without redundancy
    these are the most similar atlases. With redundancy the chosen atlases also differ from each other, so their errors
    are less correlated. Ties go to the first.

    Parameters
    ----------
    scores : (N,) float64
        Similarity to the target; -inf is chosen last.
    count : int
        Number of atlases to choose, at least 1; all N if there are fewer.
    likeness : (N, N) float64, optional
        Similarity of the atlases to one another.
    redundancy : float
        Weight of the likeness, 0 or more.

    Returns
    -------
    tuple of int
        Indices of the chosen atlases, in the order of choice.

    Raises
    ------
    InputError
        `count` or `redundancy` is out of its range, or the likeness is missing or of another shape.

    References
    ----------
    .. [1] Carbonell and Goldstein (1998), The use of MMR, diversity-based reranking for reordering documents and
       producing summaries, SIGIR, 335-336.
    """
    n = len(scores)
    if count < 1 or not redundancy >= 0:
        raise InputError(f"expected a count of at least 1 and a redundancy of at least 0, got {count} and {redundancy}")
    if redundancy > 0 and (likeness is None or likeness.shape != (n, n)):
        raise InputError(
            f"likeness: expected an ({n}, {n}) array of the similarity of the atlases for redundancy, got none"
        )
    chosen: list[int] = []
    penalty = np.zeros(n)
    left = np.ones(n, bool)
    while left.any() and len(chosen) < count:
        worth = np.where(left, scores - penalty, -np.inf)
        best = int(np.argmax(worth)) if np.isfinite(worth).any() else int(np.argmax(left))
        chosen.append(best)
        left[best] = False
        if likeness is not None and redundancy > 0:
            closest = redundancy * likeness[best]
            penalty = closest if len(chosen) == 1 else np.maximum(penalty, closest)
    return tuple(chosen)


def _coarse(grid: Grid, longest_voxels: int) -> Grid:
    """Nearly isotropic voxels over the same box, `longest_voxels` along its longest side, never finer than `grid`."""
    extent = grid.spacing_mm * grid.shape
    shape = np.minimum(np.maximum(np.round(extent / extent.max() * longest_voxels), 1), grid.shape).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * (np.array(grid.shape) / shape)
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _seen(atlas: Atlas, grid: Grid, transform: Transform, wanted: Bool) -> tuple[Float32, Bool]:
    """Resample the standardised atlas by a transform, with its field of view inside the mask."""
    known = wanted & coverage(atlas.image.grid, grid, transform).array
    if atlas.mask is not None:
        known &= resample(atlas.mask, grid, transform).array
    return _standardised(resample(atlas.image, grid, transform, antialias=True).channels, known), known


def _centred(atlas: Atlas, grid: Grid, scan: Float32, wanted: Bool) -> tuple[Float32, Bool]:
    """Translate the atlas: centre on the target's centre, then to the highest correlation around it."""
    reach = np.minimum(SHIFTS_VOXELS, np.array(grid.shape) // 4)
    wide = grid.cropped(-reach, grid.shape + reach)
    onto = Affine.translation(atlas.image.grid.centre_mm - grid.centre_mm)
    image, known = _seen(atlas, wide, onto, np.ones(wide.shape, bool))
    scores = _correlations(_standardised(scan, wanted), wanted, image, known)
    step = np.unravel_index(scores.argmax(), scores.shape) if np.isfinite(scores).any() else reach
    box = tuple(slice(a, a + n) for a, n in zip(step, grid.shape, strict=True))
    inside = known[box] & wanted
    return _standardised(image[box], inside), inside


def _correlations(target: Float32, wanted: Bool, image: Float32, known: Bool) -> Float64:
    """Mean over the channels of the correlation of `target` with each window of `image` of the same size.

    Intensities (i, j, k, C) are 0 outside `wanted` and `known`, and compared inside both. A constant channel
    counts as 0, and a window that covers too little of `wanted` has -inf. All sums over windows are
    products of Fourier transforms.
    """
    x, y = np.moveaxis(target, -1, 0).astype(np.float64), np.moveaxis(image, -1, 0).astype(np.float64)
    shape, windows = known.shape, tuple(slice(m - n + 1) for m, n in zip(known.shape, wanted.shape, strict=True))
    of_window = [np.conj(fft.rfftn(part, shape, axes=(-3, -2, -1))) for part in (wanted.astype(np.float64), x, x * x)]
    of_image = [fft.rfftn(part, axes=(-3, -2, -1)) for part in (known.astype(np.float64), y, y * y)]

    def summed(n: int, m: int) -> Float64:
        found: Float64 = fft.irfftn(of_image[n] * of_window[m], shape, axes=(-3, -2, -1))[..., *windows]
        return found

    count = np.maximum(np.round(summed(0, 0)), 1)
    mean_x, mean_y = summed(0, 1) / count, summed(1, 0) / count
    spread_x, spread_y = summed(0, 2) / count - mean_x**2, summed(2, 0) / count - mean_y**2
    varies = (spread_x > LEAST_VARIANCE) & (spread_y > LEAST_VARIANCE)
    covariance = summed(1, 1) / count - mean_x * mean_y
    found = np.divide(covariance, np.sqrt(np.abs(spread_x * spread_y)), out=np.zeros_like(covariance), where=varies)
    scores: Float64 = np.where(count >= LEAST_COVERAGE * wanted.sum(), found.mean(axis=0), -np.inf)
    return scores


def _correlation(a: Float32, b: Float32) -> float:
    """Mean over the channels of the correlation of (V, C) intensities, 0 where one is constant."""
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return float(np.divide((x * y).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0).mean())


def _standardised(channels: Float32, known: Bool) -> Float32:
    out = np.zeros(channels.shape, np.float32)
    for c in range(channels.shape[-1] if known.any() else 0):
        inside = channels[..., c][known].astype(np.float64)
        clipped = np.clip(inside, *np.percentile(inside, CLIP_PERCENTILES))
        if clipped.std() > 0:
            out[..., c][known] = (clipped - clipped.mean()) / clipped.std()
    return out
