"""Plausibility of a segmentation's inputs and registrations, against what the library knows of itself.

Where all registrations of a target fail alike, none of them stands out among the others. These checks compare the
target with the library instead: voxel size, field of view and foreground with those of the atlases; the similarity that
each atlas reaches with the similarity that the atlases reach among themselves; the linear part of each transform with
what scans of one kind need; and the left-right order of the anatomy with that of the atlases.

Similarities are compared on coarse voxels and after the linear part of the transforms alone, so that one figure serves
any recipe, and a deformation that fits unlike anatomies to each other does not hide that they are unlike. It is the
mean squared local correlation in the foreground, so that contrast and background matter little.

How the limits were set, and how often they warn, is in `benchmarks/results/plausibility.md` and `partial_view.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.preprocessing.foreground import find_erased_background, foreground
from atlasseg.registration import affine
from atlasseg.resampling import coverage, resample
from atlasseg.similarity.local_correlation import LocalCorrelation
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Atlas, Bool, Float64, Grid, Image, Mask

__all__ = ["Finding", "Geometry", "LibraryReference", "check", "describe_library"]

COARSE_VOXELS = 28
"""Similarities are measured on voxels of which the library's scans have about this many along their longest side."""

LARGEST_VOXELS = 128
"""A field of view with more of them along a side is compared by its geometry alone."""

LEAST_VOXELS = 6
"""A coarse image with fewer of them along a side is compared by its geometry alone."""

PAIRS = 8
"""So many pairs of atlases are registered to find how similar atlases are."""

CHECKED_ATLASES = 8
"""So many registrations of a target are checked, spread over the library."""

MIRRORED_ATLASES = (2, 5)
"""Number of atlases that are compared with the mirrored target first, and in all where these leave it in doubt."""

CLEAR_SIDES = 0.99
"""Mean ratio of the similarities, mirrored to plain, below which left and right are in no doubt."""

LEAST_MIRRORED = 3
"""With fewer atlases nothing is said of left and right."""

FIT_POINTS = 2000
"""Voxels at which the linear part of a deformation is fitted."""

LEAST_SIMILARITY_SHARE = 0.65
"""A registration is doubtful whose similarity is below this share of the median among the atlases."""

MOST_TURN_DEGREES = 60.0
"""Scans of one orientation differ by less than this."""

MOST_SCALE = 1.6
"""Anatomies of one kind differ in size, along any axis, by less than this factor."""

MOST_STRETCH = 1.8
"""The largest scale of a transform along an axis is less than this factor of the smallest."""

LEAST_OVERLAP = 0.6
"""At least this share of the target's foreground lies in the field of view of an atlas."""

MOST_EXTENT = 2.0
"""Fields of view differ, along the longest side, by less than this factor from those of the library."""

MOST_FOREGROUND = 3.0
"""Foreground volumes differ by less than this factor from those of the library."""

MOST_VOXEL = 12.0
"""Volumes of a voxel differ by less than this factor from those of the library."""

CHANCE = 0.05
"""Probability by chance below which atlases that are less similar to mirrored ones show left and right."""

MIRROR_GAIN = 1.002
"""Mean ratio of the similarities, mirrored to plain, above which left and right are taken to be exchanged."""

Kind = Literal[
    "voxel size", "field of view", "foreground", "similarity", "orientation", "size", "overlap", "left-right"
]

Executor = Callable[..., Any]
"""Calls a function with its data; one that keeps results may take its place."""


@dataclass(frozen=True)
class Finding:
    """Something that is implausible about a target.

    Parameters
    ----------
    kind : str
        What was compared.
    message : str
        What was expected, what was found, and what to do.
    """

    kind: Kind
    message: str


@dataclass(frozen=True)
class Geometry:
    """Sizes of a scan.

    Parameters
    ----------
    voxel_mm3 : float
        Volume of a voxel.
    extent_mm : float
        Longest side of the field of view.
    foreground_mm3 : float
        Volume of the foreground.
    """

    voxel_mm3: float
    extent_mm: float
    foreground_mm3: float


@dataclass(frozen=True)
class LibraryReference:
    """What a library knows of itself.

    Parameters
    ----------
    geometries : tuple of Geometry
        One an atlas.
    spacing_mm : float
        Of the voxels on which similarities are measured.
    similarities : tuple of float
        Of pairs of atlases; empty for a single atlas.
    """

    geometries: tuple[Geometry, ...]
    spacing_mm: float
    similarities: tuple[float, ...]

    @property
    def similarity(self) -> float:
        """Median over the pairs; NaN where there is none."""
        return float(np.median(self.similarities)) if self.similarities else math.nan


def coarse_spacing_mm(images: Sequence[Image]) -> float:
    """Spacing, in mm, of which the images' longest sides have about `COARSE_VOXELS`: a power of the square root of 2.

    In steps, so that leaving out an atlas does not change it.
    """
    wanted = float(np.median([extent_mm(image.grid) for image in images])) / COARSE_VOXELS
    return float(2 ** (round(2 * math.log2(wanted)) / 2))


def extent_mm(grid: Grid) -> float:
    """Longest side of a field of view, in mm."""
    return float((np.array(grid.shape) * grid.spacing_mm).max())


def coarsen(image: Image, spacing_mm: float) -> Image:
    """The image by the means of blocks of whole voxels, near `spacing_mm` a side; voxels beyond the last block go."""
    factors = np.maximum(np.rint(spacing_mm / image.spacing_mm), 1).astype(int)
    factors = np.minimum(factors, image.shape)
    i, j, k = (int(n) for n in np.array(image.shape) // factors)
    a, b, c = (int(n) for n in factors)
    kept = image.channels[: i * a, : j * b, : k * c]
    means = kept.reshape(i, a, j, b, k, c, -1).mean(axis=(1, 3, 5), dtype=np.float64)
    wide = image.affine.copy()
    wide[:3, :3] = image.affine[:3, :3] * factors
    wide[:3, 3] += image.affine[:3, :3] @ ((factors - 1) / 2)
    return Image(means.astype(np.float32) if image.array.ndim == 4 else means[..., 0], wide, image.name)


def measure_geometry(image: Image) -> tuple[float, float, float]:
    """Measure the values of a scan's `Geometry`.

    Where the background was erased the foreground is all else; otherwise it is found on coarse voxels.
    """
    voxel_mm3 = float(abs(np.linalg.det(image.affine[:3, :3])))
    erased = [find_erased_background(channel) for channel in np.moveaxis(image.channels, 3, 0)]
    if all(each is not None for each in erased):
        count = int(np.any([~each for each in erased if each is not None], axis=0).sum())
        return voxel_mm3, extent_mm(image.grid), count * voxel_mm3
    small = coarsen(image, extent_mm(image.grid) / COARSE_VOXELS)
    count = int(foreground(small).array.sum())
    return voxel_mm3, extent_mm(image.grid), count * float(abs(np.linalg.det(small.affine[:3, :3])))


def linear_part(transform: Transform, points_mm: Float64) -> Affine:
    """The affine map nearest to a transform at (N, 3) points, in least squares."""
    if isinstance(transform, Affine):
        return transform
    x = np.c_[points_mm, np.ones(len(points_mm))]
    solution, *_ = np.linalg.lstsq(x, transform(points_mm), rcond=None)
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return Affine(matrix)


def linear_similarity(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    fixed_mask: Mask | None = None,
    moving_mask: Mask | None = None,
) -> float:
    """Mean squared local correlation of two coarse images in the first one's mask or foreground, from 0 to 1.

    0 where the moving image, or its mask, does not reach there. Masks may be on finer grids than their images.
    """
    region = _region(fixed, fixed_mask) & coverage(moving.grid, fixed.grid, transform).array
    if moving_mask is not None:
        region &= resample(moving_mask, fixed.grid, transform, interpolation="nearest").array
    if not region.any():
        return 0.0
    warped = resample(moving, fixed.grid, transform)
    pairs = zip(np.moveaxis(fixed.channels, 3, 0), np.moveaxis(warped.channels, 3, 0), strict=True)
    return float(np.mean([LocalCorrelation().value(f, w, mask=region) for f, w in pairs]))


def _region(image: Image, mask: Mask | None) -> Bool:
    """Where a coarse image is compared."""
    if mask is None:
        return foreground(image).array
    return resample(mask, image.grid, interpolation="nearest").array


def _small_mask(image: Image, mask: Mask | None) -> Mask | None:
    """A mask on the grid of a coarse image; None where nothing would be left of it."""
    small = None if mask is None else resample(mask, image.grid, interpolation="nearest")
    return small if small is not None and small.array.any() else None


def align_coarse(
    fixed: Image, moving: Image, fixed_mask: Mask | None, moving_mask: Mask | None, *, start: Affine | None = None
) -> Affine | None:
    """Register two coarse scans by an affine map, from `start` if given; None where they cannot be registered."""
    try:
        (found,) = affine.register(
            fixed,
            [moving],
            initial=None if start is None else [start],
            fixed_mask=_small_mask(fixed, fixed_mask),
            moving_masks=[_small_mask(moving, moving_mask)],
            finest_shrink=1,
            device="cpu",
        )
    except (GeometryError, InputError):
        return None
    return as_affine(found)


def pair_similarity(fixed: Image, moving: Image, fixed_mask: Mask | None, moving_mask: Mask | None) -> float:
    """`linear_similarity` of two coarse scans after an affine registration; NaN where they cannot be registered."""
    found = align_coarse(fixed, moving, fixed_mask, moving_mask)
    if found is None:
        return math.nan
    return linear_similarity(fixed, moving, found, fixed_mask=fixed_mask, moving_mask=moving_mask)


def pair_mirror_similarities(
    fixed: Image, moving: Image, fixed_mask: Mask | None, moving_mask: Mask | None
) -> tuple[float, float]:
    """`mirror_similarities` of two coarse scans after an affine registration; NaN where they cannot be registered."""
    found = align_coarse(fixed, moving, fixed_mask, moving_mask)
    if found is None:
        return math.nan, math.nan
    return mirror_similarities(fixed, moving, found, target_mask=fixed_mask, atlas_mask=moving_mask)


def as_affine(transform: Transform) -> Affine:
    """The transform of a linear registration."""
    assert isinstance(transform, Affine)
    return transform


def overlap(fixed: Image, moving: Grid, transform: Affine, *, fixed_mask: Mask | None = None) -> float:
    """Share of a coarse image's mask or foreground that lies in the field of view of an atlas."""
    region = _region(fixed, fixed_mask)
    return float(coverage(moving, fixed.grid, transform).array[region].mean()) if region.any() else 0.0


def mirrored(point_mm: Float64) -> Affine:
    """The reflection from left to right that leaves a point where it is."""
    matrix = np.diag([-1.0, 1.0, 1.0, 1.0])
    matrix[0, 3] = 2 * point_mm[0]
    return Affine(matrix)


def mirror_similarities(
    target: Image,
    atlas: Image,
    transform: Affine,
    *,
    target_mask: Mask | None = None,
    atlas_mask: Mask | None = None,
) -> tuple[float, float]:
    """`linear_similarity` of a coarse target and atlas as they are, and with left and right of the atlas exchanged.

    The atlas is reflected about the middle of the target's mask or foreground. Both are optimised anew from
    `transform`, so that neither has an advantage. NaN where they cannot be registered.
    """
    out = []
    middle = np.argwhere(_region(target, target_mask)).mean(axis=0) @ target.affine[:3, :3].T + target.affine[:3, 3]
    for start in (transform, as_affine(mirrored(transform(middle[None])[0]) @ transform)):
        found = align_coarse(target, atlas, target_mask, atlas_mask, start=start)
        out.append(
            math.nan
            if found is None
            else linear_similarity(target, atlas, found, fixed_mask=target_mask, moving_mask=atlas_mask)
        )
    return out[0], out[1]


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Indices of the pairs of atlases that are compared: each with the next, at most `PAIRS`, spread over all."""
    if count < 2:
        return []
    chosen = sorted({round(n) for n in np.linspace(0, count - 1, min(PAIRS, count))})
    return [(n, (n + 1) % count) for n in chosen]


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices, spread evenly over `count`."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, most))})


def describe_library(atlases: Sequence[Atlas], executor: Executor) -> LibraryReference:
    """Measure the properties of a library with which scans are compared.

    Parameters
    ----------
    atlases : sequence of Atlas
        Atlases of the library.
    executor : callable
        Function that calls a function with its arguments, such as `pipeline.call_directly`.

    Returns
    -------
    LibraryReference
    """
    spacing_mm = coarse_spacing_mm([atlas.image for atlas in atlases])
    geometries = tuple(Geometry(*executor(measure_geometry, atlas.image)) for atlas in atlases)
    found = _compare_pairs(pair_similarity, atlases, spacing_mm, executor)
    return LibraryReference(geometries, spacing_mm, tuple(v for v in found if np.isfinite(v)))


def check(
    scan: Image,
    atlases: Sequence[Atlas],
    transforms: Sequence[Transform],
    *,
    mask: Mask | None = None,
    library: Sequence[Atlas] | None = None,
    executor: Executor = lambda function, /, *data, **given: function(*data, **given),
) -> tuple[Finding, ...]:
    """Check a target and its registrations against the library.

    Parameters
    ----------
    scan : Image
        The target, as read.
    atlases : sequence of Atlas
        Those that were registered to it, as read.
    transforms : sequence of Transform
        Of each atlas: takes points of the target to points of the atlas.
    mask : Mask, optional
        Where the target is compared, on its grid; by default its foreground. Atlases with a mask are compared in it.
    library : sequence of Atlas, optional
        All atlases, where only some were registered.
    executor : callable
        Calls the functions of the checks; one that keeps their results may take its place.

    Returns
    -------
    tuple of Finding
        Empty where nothing is implausible.
    """
    name = scan.name or "scan"
    every = atlases if library is None else library
    reference = describe_library(every, executor)
    findings = check_geometry(name, Geometry(*measure_geometry(scan)), reference)
    if extent_mm(scan.grid) / reference.spacing_mm > LARGEST_VOXELS:
        return tuple(findings)
    small = coarsen(scan, reference.spacing_mm)
    chosen = spread(len(atlases), CHECKED_ATLASES)
    images = {n: executor(coarsen, atlases[n].image, spacing_mm=reference.spacing_mm) for n in chosen}
    if not all(_comparable(image) for image in (small, *images.values())):
        return tuple(findings)
    points_mm = np.argwhere(_region(small, mask)) @ small.affine[:3, :3].T + small.affine[:3, 3]
    if len(points_mm) < LEAST_VOXELS**2:
        return tuple(findings)
    points_mm = points_mm[:: max(1, len(points_mm) // FIT_POINTS)]
    linear = {n: linear_part(transforms[n], points_mm) for n in chosen}
    masks = {n: atlases[n].mask for n in chosen}
    similarities = [
        linear_similarity(small, images[n], linear[n], fixed_mask=mask, moving_mask=masks[n]) for n in chosen
    ]
    overlaps = [overlap(small, images[n].grid, linear[n], fixed_mask=mask) for n in chosen]
    failed = check_similarity(name, similarities, reference)
    failed += check_transforms(name, list(linear.values()), overlaps)
    if failed:
        return (*findings, *failed)
    first, most = MIRRORED_ATLASES
    pairs: list[tuple[float, float]] = []
    for number, n in enumerate(chosen[k] for k in spread(len(chosen), most)):
        if number == first and mirror_gain(pairs) < CLEAR_SIDES:
            break
        pairs.append(executor(mirror_similarities, small, images[n], linear[n], target_mask=mask, atlas_mask=masks[n]))
    exchanged = check_sides(name, pairs)
    if exchanged:
        among = _compare_pairs(pair_mirror_similarities, every, reference.spacing_mm, executor)
        if not shows_sides(among):
            exchanged = []
    return (*findings, *exchanged)


def _compare_pairs(
    compare: Callable[..., Any], atlases: Sequence[Atlas], spacing_mm: float, executor: Executor
) -> list[Any]:
    """Call `compare` with the coarse images and the masks of the pairs of atlases."""
    found = []
    for one, other in pairs_of(len(atlases)):
        a, b = atlases[one], atlases[other]
        small = [executor(coarsen, atlas.image, spacing_mm=spacing_mm) for atlas in (a, b)]
        if all(_comparable(each) for each in small):
            found.append(executor(compare, *small, a.mask, b.mask))
    return found


def _comparable(image: Image) -> bool:
    """Whether a coarse image can be registered."""
    constant = (np.ptp(image.channels, axis=(0, 1, 2)) == 0).any()
    return min(image.shape) >= LEAST_VOXELS and not constant


def check_geometry(name: str, target: Geometry, library: LibraryReference) -> list[Finding]:
    """Compare the sizes of a target with those of the library."""
    found: list[Finding] = []
    checks: tuple[tuple[Kind, str, str, float, str], ...] = (
        ("voxel size", "voxel_mm3", "mm^3 a voxel", MOST_VOXEL, "the voxel size in its header"),
        ("field of view", "extent_mm", "mm for the longest side of the field of view", MOST_EXTENT, "its header"),
        ("foreground", "foreground_mm3", "mm^3 of foreground", MOST_FOREGROUND, "that it shows what the atlases show"),
    )
    for kind, attribute, unit, factor, what in checks:
        known = [getattr(each, attribute) for each in library.geometries]
        value, low, high = getattr(target, attribute), min(known), max(known)
        if not low / factor <= value <= high * factor:
            found.append(
                Finding(
                    kind,
                    f"{name}: expected {low:.3g} to {high:.3g} {unit}, as in the library, got {value:.3g}. "
                    f"Check {what}.",
                )
            )
    return found


def check_similarity(name: str, similarities: Sequence[float], library: LibraryReference) -> list[Finding]:
    """Compare the similarity of a target to each atlas with that among the atlases."""
    if not library.similarities or not similarities:
        return []
    least = LEAST_SIMILARITY_SHARE * library.similarity
    low = [value for value in similarities if not value >= least]
    if len(low) * 2 < len(similarities):
        return []
    return [
        Finding(
            "similarity",
            f"{name}: expected a similarity of about {library.similarity:.2f} to the atlases, as they have among "
            f"themselves, got {np.median(similarities):.2f} ({len(low)} of {len(similarities)} below {least:.2f}). "
            "Look at the report: the registrations may have failed, or the scan shows something else, or in another "
            "contrast.",
        )
    ]


def check_transforms(name: str, transforms: Sequence[Affine], overlaps: Sequence[float]) -> list[Finding]:
    """Look for turns, sizes and overlaps that scans of one kind do not have, of half of the atlases or more."""
    turns, sizes, stretches = [], [], []
    for transform in transforms:
        left, scales, right = np.linalg.svd(transform.matrix[:3, :3])
        cosine = (np.trace(left @ right) - 1) / 2
        turns.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))))
        sizes.append(max(scales[0], 1 / max(scales[2], 1e-9)))
        stretches.append(scales[0] / max(scales[2], 1e-9))
    found = []
    if np.median(turns) > MOST_TURN_DEGREES:
        found.append(
            Finding(
                "orientation",
                f"{name}: expected the orientation of the atlases, got a turn by {np.median(turns):.0f} degrees. Look "
                "at the report: the registrations may have failed, or the scan's header gives a wrong orientation.",
            )
        )
    if np.median(sizes) > MOST_SCALE or np.median(stretches) > MOST_STRETCH:
        found.append(
            Finding(
                "size",
                f"{name}: expected an anatomy of the atlases' size, got one that is scaled by up to a factor of "
                f"{np.median(sizes):.2f} ({np.median(stretches):.2f} between axes). Check the voxel size in its header "
                "and look at the report.",
            )
        )
    if np.median(overlaps) < LEAST_OVERLAP:
        found.append(
            Finding(
                "overlap",
                f"{name}: expected the atlases to cover the scan's foreground, got {np.median(overlaps):.0%}. Look at "
                "the report: what no atlas covers has no labels.",
            )
        )
    return found


def mirror_gain(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean ratio of the similarities, mirrored to plain; NaN where one is not known, or there is none."""
    return float(np.mean([math.nan] if not pairs else [mirror / max(plain, 1e-9) for plain, mirror in pairs]))


def shows_sides(among: Sequence[tuple[float, float]]) -> bool:
    """Whether an anatomy shows which side is which: by its atlases, beyond chance.

    Parameters
    ----------
    among : sequence of pairs
        Similarities of pairs of atlases, as they are and mirrored; pairs that are not finite do not count.

    Returns
    -------
    bool
        The atlases are more similar as they are: the mean logarithm of the ratios, mirrored to plain, is below 0 by a
        t-test, p below `CHANCE`. A limit of the mean alone let four of six masked mouse brains be reported.
    """
    from scipy import stats

    gains = [
        math.log(max(mirror, 1e-9) / max(plain, 1e-9)) for plain, mirror in among if np.isfinite([plain, mirror]).all()
    ]
    if len(gains) < LEAST_MIRRORED:
        return False
    return bool(stats.ttest_1samp(gains, 0, alternative="less").pvalue < CHANCE)


def check_sides(name: str, pairs: Sequence[tuple[float, float]]) -> list[Finding]:
    """Compare similarities as the scan is with those of the mirrored scan, `mirror_similarities` of several atlases."""
    if len(pairs) < LEAST_MIRRORED:
        return []
    if not mirror_gain(pairs) > MIRROR_GAIN:
        return []
    plain, mirror = np.array(pairs).T
    return [
        Finding(
            "left-right",
            f"{name}: expected left and right as in the atlases, got a scan whose mirror image is more similar to them "
            f"({mirror.mean():.3f} against {plain.mean():.3f}). Check the orientation in its header.",
        )
    ]
