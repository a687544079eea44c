"""A volume through a transform onto a grid, once: the type of the volume decides the interpolation.

The transform takes points of the wanted grid to points of the volume (`moving_from_fixed`, RAS+ mm). A volume
reaches half a voxel beyond the centres of its outermost voxels, within which the outermost values hold ("cubic":
within which the mirrored spline goes on), as in ITK.
Everything here gives the same bits for any number of threads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from atlasseg.errors import GeometryError, InputError
from atlasseg.threads import run_slices
from atlasseg.transforms import EDGE_VOXELS, Affine, Transform, invert_matrix, split_slabs
from atlasseg.volume import Float64, Grid, Image, Int32, LabelMap, Mask, ProbabilityMap

__all__ = ["coverage", "resample", "resample_fractions", "smooth", "stack_channels"]

log = logging.getLogger(__name__)

ImageInterpolation = Literal["linear", "cubic", "nearest"]
LabelInterpolation = Literal["linear", "gaussian", "nearest"]

TIE = 1e-9
"""Weights of two labels at a voxel that differ by less than this are a tie, which the smallest label wins."""

GAUSSIAN_CUTOFF = 2.0
"""The footprint of the "gaussian" interpolation ends at this many standard deviations."""

CHUNK = 1024
"""Points that one thread works through with one set of buffers."""

FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


@overload
def resample(
    volume: Image,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: ImageInterpolation = "linear",
    fill: float | None = None,
    antialias: bool = False,
) -> Image: ...
@overload
def resample(
    volume: LabelMap,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: LabelInterpolation = "linear",
    sigma_voxels: float = 1.0,
) -> LabelMap: ...
@overload
def resample(
    volume: Mask,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: LabelInterpolation = "linear",
    sigma_voxels: float = 1.0,
) -> Mask: ...
@overload
def resample(
    volume: ProbabilityMap,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: LabelInterpolation = "linear",
    sigma_voxels: float = 1.0,
) -> ProbabilityMap: ...
def resample(
    volume: Image | LabelMap | Mask | ProbabilityMap,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: str = "linear",
    sigma_voxels: float = 1.0,
    fill: float | None = None,
    antialias: bool = False,
) -> Image | LabelMap | Mask | ProbabilityMap:
    """Resample a volume onto a grid through a transform.

    Parameters
    ----------
    volume : Image, LabelMap, Mask or ProbabilityMap
        What is resampled; the result is of the same kind and keeps its name.
    grid : Grid
        Where it is wanted.
    transform : Transform, optional
        Takes points of `grid` to points of `volume`, RAS+ mm; by default they share one space.
    interpolation : str
        Image: "linear", "cubic" (B-spline of order 3) or "nearest".
        LabelMap, Mask: each label on its own, and the largest wins, the smallest label on a tie: "linear",
        "gaussian" (a Gaussian footprint), or "nearest". ProbabilityMap: likewise, and all fractions are kept.
    sigma_voxels : float
        Standard deviation of "gaussian", in the volume's own voxels.
    fill : float, optional
        Value of an Image where the volume does not reach; by default its smallest (in each channel).
        Labels are 0 there, a Mask False, a ProbabilityMap certain of 0.
    antialias : bool
        Smooth an Image first, where the voxels of `grid` are larger than its own, to the resolution of `grid`.

    Returns
    -------
    Image, LabelMap, Mask or ProbabilityMap
        Volume of the same kind on `grid`.

    Raises
    ------
    InputError
        There is no such interpolation for this kind of volume.

    References
    ----------
    Cardoso et al. 2015, Scale factor point spread function matching, MICCAI: the width of `antialias`.
    """
    through = Affine.identity() if transform is None else transform
    if isinstance(volume, Image):
        _check(interpolation, ("linear", "cubic", "nearest"), "an Image")
        return _resample_image(volume, grid, through, interpolation, fill, antialias)
    if fill is not None or antialias:
        raise InputError(f"fill and antialias are for an Image, not for a {type(volume).__name__}")
    if isinstance(volume, ProbabilityMap):
        return resample_fractions(volume, grid, through, interpolation=interpolation, sigma_voxels=sigma_voxels)
    _check(interpolation, ("linear", "gaussian", "nearest"), f"a {type(volume).__name__}")
    labels = np.ascontiguousarray(volume.array, np.int32)
    result = _resample_labels(labels, volume.affine, grid, through, interpolation, sigma_voxels)
    if isinstance(volume, Mask):
        return Mask(result.astype(bool), grid.affine, volume.name)
    return LabelMap(result, grid.affine, volume.name)


def resample_fractions(
    labels: LabelMap | ProbabilityMap,
    grid: Grid,
    transform: Transform | None = None,
    *,
    interpolation: str = "linear",
    sigma_voxels: float = 1.0,
) -> ProbabilityMap:
    """Each label's share at each voxel of `grid`, its one-hot volume interpolated.

    Only voxels on which more than one label falls are stored as fractions, so memory follows the surfaces of the
    structures and not their number.

    Parameters
    ----------
    labels : LabelMap or ProbabilityMap
        Labels to resample.
    grid : Grid
        Where they are wanted.
    transform : Transform, optional
        Takes points of `grid` to points of `labels`, RAS+ mm.
    interpolation : {"linear", "gaussian", "nearest"}
        As for `resample`.
    sigma_voxels : float
        As for `resample`.

    Returns
    -------
    ProbabilityMap
        On `grid`; certain of 0 where `labels` does not reach; it speaks of the same labels, whether they land or not.
    """
    through = Affine.identity() if transform is None else transform
    _check(interpolation, ("linear", "gaussian", "nearest"), "fractions of labels")
    if isinstance(labels, LabelMap):
        mode, row, source = (
            np.ascontiguousarray(labels.array),
            np.zeros((1, 1, 1), np.int32),
            ProbabilityMap.from_labels(labels),
        )
    else:
        mode, source = np.ascontiguousarray(labels.mode), labels
        row = np.full(mode.shape, -1, np.int32)
        row.reshape(-1)[labels.voxels] = np.arange(labels.voxels.size, dtype=np.int32)
    inverse = invert_matrix(labels.affine)
    size, sigma = _footprint(interpolation, sigma_voxels)
    widest = size**3 * max(1, int(np.diff(source.offsets).max(initial=1)))
    rows = (row, source.offsets, source.labels, source.values)
    out_mode = np.empty(grid.shape, np.int32)
    voxels, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    entry_labels, entry_values = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for start, stop, points in _slabs_of_points(grid, through):
        modes = out_mode[start:stop].reshape(-1)
        count = np.empty(len(points), np.int64)
        given = inverse, mode, *rows, size, sigma, widest
        run_slices(_count_fractions, _count_chunks(points), points, *given, modes, count)
        uncertain = np.flatnonzero(count > 1)
        offsets = np.concatenate(([0], np.cumsum(count[uncertain])))
        points = points[uncertain]
        found = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        run_slices(_fill_fractions, _count_chunks(points), points, *given, offsets, *found)
        voxels.append(uncertain + start * grid.shape[1] * grid.shape[2])
        counts.append(count[uncertain])
        entry_labels.append(found[0])
        entry_values.append(found[1])
    return ProbabilityMap(
        out_mode,
        np.concatenate(voxels),
        np.concatenate(([0], np.cumsum(np.concatenate(counts)))).astype(np.int64),
        np.concatenate(entry_labels),
        np.concatenate(entry_values),
        grid.affine,
        np.union1d(source.label_values, np.unique(out_mode)).astype(np.int32),
        labels.name,
    )


def coverage(volume_grid: Grid, grid: Grid, transform: Transform | None = None) -> Mask:
    """Compute the coverage of a volume: True at the voxels of `grid` that `transform` maps into `volume_grid`.

    Parameters
    ----------
    volume_grid : Grid
        Of the volume that is to be resampled; it reaches half a voxel beyond its outermost voxels' centres.
    grid : Grid
        Where it is wanted.
    transform : Transform, optional
        Takes points of `grid` to points of `volume_grid`, RAS+ mm.

    Returns
    -------
    Mask
        Mask on `grid`.
    """
    inside = np.empty(grid.shape, bool)
    inverse, last = invert_matrix(volume_grid.affine), np.array(volume_grid.shape) - 1
    for start, stop, points in _slabs_of_points(grid, Affine.identity() if transform is None else transform):
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        near = np.ones(len(index), bool)
        for along, end in zip(index.T, last, strict=True):  # four times as fast as `all` over a short axis
            near &= (along >= -EDGE_VOXELS) & (along <= end + EDGE_VOXELS)
        inside[start:stop] = near.reshape(stop - start, *grid.shape[1:])
    return Mask(inside, grid.affine)


def stack_channels(images: Sequence[Image]) -> tuple[Image, Mask]:
    """Images of one scene, such as modalities of a scan, as the channels of one image.

    Parameters
    ----------
    images : sequence of Image
        One or more. The others are resampled onto the grid of the first where theirs differs, lying where their headers
        say, with a warning.

    Returns
    -------
    Image
        (I, J, K, C), or the only image as it is.
    Mask
        Where all of them reach.

    Raises
    ------
    GeometryError
        One does not overlap the first in space.
    """
    first = images[0]
    known, channels = np.ones(first.shape, bool), [first.channels]
    names = [str(image.source_header.path or image.name or "image") for image in images]
    for name, other in zip(names[1:], images[1:], strict=True):
        if not other.grid.matches(first.grid):
            reached = coverage(other.grid, first.grid).array
            if not reached.any():
                raise GeometryError(f"{name}: it does not overlap {names[0]} in space")
            log.warning(
                "%s: on another grid than %s; it is resampled, lying where the header says, from voxels of %s to %s mm",
                name,
                Path(names[0]).name,
                _format_mm(other.spacing_mm),
                _format_mm(first.spacing_mm),
            )
            known = known & reached
            other = resample(other, first.grid)
        channels.append(other.channels)
    stacked = replace(first, array=np.concatenate(channels, axis=3)) if len(channels) > 1 else first
    return stacked, Mask(known, first.affine, first.name)


def _format_mm(sizes_mm: Float64) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes_mm)


def smooth(image: Image, sigma_mm: float | ArrayLike) -> Image:
    """Smooth an image by a Gaussian along its axes.

    Parameters
    ----------
    image : Image
        The image.
    sigma_mm : float or (3,)
        Standard deviation along each axis of the array; 0 leaves the axis as it is.

    Returns
    -------
    Image
    """
    sigma = np.broadcast_to(sigma_mm, 3) / image.spacing_mm
    per_axis = tuple(sigma) + (0.0,) * (image.array.ndim - 3)
    return image.with_array(ndimage.gaussian_filter(image.array, per_axis, mode="nearest", truncate=4.0))


def _check(interpolation: str, known: tuple[str, ...], what: str) -> None:
    if interpolation not in known:
        raise InputError(f"{what} can be interpolated as {', '.join(known)}; got {interpolation!r}")


def _slabs_of_points(grid: Grid, transform: Transform) -> Iterator[tuple[int, int, Float64]]:
    """``start, stop`` of the first axis, and the (N, 3) points that its voxels go to, slab by slab."""
    for start, stop in split_slabs(grid):
        part = grid.cropped((start, 0, 0), (stop, *grid.shape[1:]))
        yield start, stop, transform.on_grid(part).reshape(-1, 3)


def _footprint(interpolation: str, sigma_voxels: float) -> tuple[int, float]:
    """Voxels along each axis that bear on a point, and the standard deviation of a Gaussian footprint, else 0."""
    if interpolation == "gaussian":
        if not sigma_voxels > 0:
            raise InputError(f"sigma_voxels must be above 0, got {sigma_voxels}")
        return int(np.ceil(2 * GAUSSIAN_CUTOFF * sigma_voxels)) + 1, float(sigma_voxels)
    return (2 if interpolation == "linear" else 1), 0.0


def _resample_image(
    image: Image, grid: Grid, transform: Transform, interpolation: str, fill: float | None, antialias: bool
) -> Image:
    source = smooth(image, _antialias_sigma_mm(image, grid, transform)) if antialias else image
    channels = np.ascontiguousarray(source.channels)
    fills = channels.min(axis=(0, 1, 2)) if fill is None else np.full(channels.shape[3], fill, np.float32)
    inverse = invert_matrix(image.affine)
    out = np.empty((*grid.shape, channels.shape[3]), np.float32)
    if interpolation == "cubic":
        splines = [
            ndimage.spline_filter(channels[..., c].astype(np.float64), 3, mode="mirror") for c in range(len(fills))
        ]
    for start, stop, points in _slabs_of_points(grid, transform):
        part = out[start:stop].reshape(-1, len(fills))
        if interpolation == "cubic":
            _fill_cubic(part, points, inverse, splines, fills)
        else:
            nearest = interpolation == "nearest"
            run_slices(_fill_linear, _count_chunks(points), points, inverse, channels, fills, nearest, part)
    return Image(out if image.array.ndim == 4 else out[..., 0], grid.affine, image.name)


def _antialias_sigma_mm(image: Image, grid: Grid, transform: Transform) -> Float64:
    """(3,) what to smooth by along the image's axes, for voxels of `grid`: 0 where those are the smaller ones."""
    steps = np.vstack((grid.centre_mm, grid.centre_mm + grid.affine[:3, :3].T))
    moved = transform(steps)
    voxel = np.linalg.inv(image.affine[:3, :3]) @ (moved[1:] - moved[0]).T  # (3, 3) a voxel of `grid`, in own voxels
    wanted = np.linalg.norm(voxel, axis=1)
    return np.asarray(np.sqrt(np.maximum(wanted**2 - 1, 0)) / FWHM_PER_SIGMA * image.spacing_mm)


def _fill_cubic(
    out: NDArray[np.float32], points: Float64, inverse: Float64, splines: list[Float64], fills: NDArray[np.float32]
) -> None:
    index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
    last = np.array(splines[0].shape)[:, None] - 1
    inside = ((index >= -EDGE_VOXELS) & (index <= last + EDGE_VOXELS)).all(axis=0)
    for c, spline in enumerate(splines):
        values = ndimage.map_coordinates(spline, index, order=3, mode="mirror", prefilter=False)
        out[:, c] = np.where(inside, values, fills[c])


def _resample_labels(
    labels: Int32, affine: Float64, grid: Grid, transform: Transform, interpolation: str, sigma_voxels: float
) -> Int32:
    inverse = invert_matrix(affine)
    size, sigma = _footprint(interpolation, sigma_voxels)
    nothing = (np.zeros((1, 1, 1), np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    out = np.empty(grid.shape, np.int32)
    for start, stop, points in _slabs_of_points(grid, transform):
        modes = out[start:stop].reshape(-1)
        given = inverse, labels, *nothing, size, sigma, size**3
        run_slices(_count_fractions, _count_chunks(points), points, *given, modes, np.empty(len(points), np.int64))
    return out


def _count_chunks(points: Float64) -> int:
    return -(-len(points) // CHUNK)


@numba.njit(cache=True)
def _locate(points, n, inverse, shape, x):  # type: ignore[no-untyped-def]
    """Fill the (3,) voxel index x of point n, snapped to whole indices next to them; whether it is inside."""
    for a in range(3):
        value = inverse[a, 3]
        for b in range(3):
            value += inverse[a, b] * points[n, b]
        if not (value >= -EDGE_VOXELS and value <= shape[a] - 1 + EDGE_VOXELS):
            return False
        value = min(max(value, 0.0), shape[a] - 1.0)
        whole = np.floor(value + 0.5)
        x[a] = whole if abs(value - whole) < 1e-6 else value
    return True


@numba.njit(cache=True)
def _taps(x, shape, size, sigma, first, weights):  # type: ignore[no-untyped-def]
    """Fill, for each axis, the first of `size` voxels that bear on index x, and their weights: 0 beyond the volume."""
    for a in range(3):
        if size == 1:  # nearest: the lower one at half way
            first[a] = int(np.ceil(x[a] - 0.5))
            weights[a, 0] = 1.0
        elif sigma == 0:  # linear
            first[a] = int(x[a])
            weights[a, 1] = x[a] - first[a]
            weights[a, 0] = 1.0 - weights[a, 1]
        else:  # the integral of a Gaussian over each voxel that it reaches
            begin = int(np.floor(x[a] + 0.5 - GAUSSIAN_CUTOFF * sigma))
            end = int(np.ceil(x[a] + 0.5 + GAUSSIAN_CUTOFF * sigma))
            first[a] = begin
            for tap in range(size):
                i = begin + tap
                if i < max(begin, 0) or i >= min(end, shape[a]):
                    weights[a, tap] = 0.0
                else:
                    scale = np.sqrt(0.5) / sigma
                    weights[a, tap] = math.erf((i + 0.5 - x[a]) * scale) - math.erf((i - 0.5 - x[a]) * scale)


@numba.njit(cache=True)
def _alike(mode, row, plain, x):  # type: ignore[no-untyped-def]
    """Whether the 8 voxels around index x are certain of one and the same label."""
    i, j, k = int(x[0]), int(x[1]), int(x[2])
    label = mode[i, j, k]
    for a in range(i, min(i + 2, mode.shape[0])):
        for b in range(j, min(j + 2, mode.shape[1])):
            for c in range(k, min(k + 2, mode.shape[2])):
                if mode[a, b, c] != label or not (plain or row[a, b, c] < 0):
                    return False
    return True


@numba.njit(cache=True)
def _add(label, weight, n, labels, weights):  # type: ignore[no-untyped-def]
    """Add to the weight of `label` among the first n, which stay ascending; how many there are now."""
    at = n
    while at > 0 and labels[at - 1] >= label:
        at -= 1
    if at < n and labels[at] == label:
        weights[at] += weight
        return n
    for m in range(n, at, -1):
        labels[m], weights[m] = labels[m - 1], weights[m - 1]
    labels[at], weights[at] = label, weight
    return n + 1


@numba.njit(cache=True)
def _gather(mode, row, offsets, entry_labels, entry_values, size, first, taps, labels, weights):  # type: ignore[no-untyped-def]
    """Fill the labels (ascending) and weights that fall on a point; how many there are."""
    n = 0
    plain = entry_labels.size == 0
    for i in range(size):
        if taps[0, i] == 0:
            continue
        for j in range(size):
            if taps[1, j] == 0:
                continue
            for k in range(size):
                weight = taps[0, i] * taps[1, j] * taps[2, k]
                if weight == 0:
                    continue
                a, b, c = first[0] + i, first[1] + j, first[2] + k
                r = -1 if plain else row[a, b, c]
                if r < 0:
                    n = _add(mode[a, b, c], weight, n, labels, weights)
                else:
                    for entry in range(offsets[r], offsets[r + 1]):
                        n = _add(entry_labels[entry], weight * entry_values[entry], n, labels, weights)
    return n


@numba.njit(cache=True, nogil=True)
def _count_fractions(  # type: ignore[no-untyped-def]
    start, stop, points, inverse, mode, row, offsets, entry_labels, entry_values, size, sigma, widest, modes, count
):
    """Put the number of labels on each point into `count`, the heaviest, the smallest on a tie, into `modes`."""
    plain = entry_labels.size == 0
    for chunk in range(start, stop):
        x, first, taps = np.empty(3), np.empty(3, np.int64), np.empty((3, size))
        labels, weights = np.empty(widest + 1, np.int32), np.empty(widest + 1)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, points.shape[0])):
            modes[n] = count[n] = 0
            if not _locate(points, n, inverse, mode.shape, x):
                continue
            if size == 2 and _alike(mode, row, plain, x):  # most voxels, by far
                count[n] = 1
                modes[n] = mode[int(x[0]), int(x[1]), int(x[2])]
                continue
            _taps(x, mode.shape, size, sigma, first, taps)
            count[n] = _gather(mode, row, offsets, entry_labels, entry_values, size, first, taps, labels, weights)
            heaviest = weights[: count[n]].max()
            m = 0
            while weights[m] < heaviest - TIE:
                m += 1
            modes[n] = labels[m]


@numba.njit(cache=True, nogil=True)
def _fill_fractions(  # type: ignore[no-untyped-def]
    start,
    stop,
    points,
    inverse,
    mode,
    row,
    offsets,
    entry_labels,
    entry_values,
    size,
    sigma,
    widest,
    starts,
    out_labels,
    out_values,
):
    """Labels and fractions, summing to 1, of points known to have several; of point n from ``starts[n]`` on."""
    for chunk in range(start, stop):
        x, first, taps = np.empty(3), np.empty(3, np.int64), np.empty((3, size))
        labels, weights = np.empty(widest + 1, np.int32), np.empty(widest + 1)
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, points.shape[0])):
            _locate(points, n, inverse, mode.shape, x)
            _taps(x, mode.shape, size, sigma, first, taps)
            count = _gather(mode, row, offsets, entry_labels, entry_values, size, first, taps, labels, weights)
            total = 0.0
            for m in range(count):
                total += weights[m]
            for m in range(count):
                out_labels[starts[n] + m] = labels[m]
                out_values[starts[n] + m] = weights[m] / total


@numba.njit(cache=True, nogil=True)
def _fill_linear(start, stop, points, inverse, channels, fills, nearest, out):  # type: ignore[no-untyped-def]
    size = 1 if nearest else 2
    shape = channels.shape[:3]
    for chunk in range(start, stop):
        x, first, taps = np.empty(3), np.empty(3, np.int64), np.empty((3, 2))
        for n in range(chunk * CHUNK, min((chunk + 1) * CHUNK, points.shape[0])):
            if not _locate(points, n, inverse, shape, x):
                for c in range(fills.size):
                    out[n, c] = fills[c]
                continue
            _taps(x, shape, size, 0.0, first, taps)
            for c in range(channels.shape[3]):
                value = 0.0
                for i in range(size):
                    for j in range(size):
                        for k in range(size):
                            weight = taps[0, i] * taps[1, j] * taps[2, k]
                            if weight != 0:
                                value += weight * channels[first[0] + i, first[1] + j, first[2] + k, c]
                out[n, c] = value
