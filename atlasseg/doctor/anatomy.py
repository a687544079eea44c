"""Comparisons of the scans of a folder with each other after affine registrations on coarse voxels.

Each scan is compared with the others by the checks that a run makes of its targets (:mod:`atlasseg.plausibility`):
sizes, field of view, foreground, similarity, orientation, left and right. Then all scans are brought onto the grid of
one of them, where their contrasts are compared, and pairs that are unusually alike are found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from atlasseg.doctor.persons import LEAST_SCANS, SamePerson, find_repeats
from atlasseg.fusion.contrast import pool_correlations
from atlasseg.plausibility import (
    CLEAR_SIDES,
    MIRRORED_ATLASES,
    Geometry,
    LibraryReference,
    align_coarse,
    check_geometry,
    check_sides,
    check_similarity,
    check_transforms,
    coarse_spacing_mm,
    coarsen,
    extent_mm,
    linear_similarity,
    measure_geometry,
    mirror_gain,
    mirror_similarities,
    overlap,
    pair_similarity,
    spread,
)
from atlasseg.preprocessing.foreground import foreground
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine
from atlasseg.volume import Bool, Float32, Image

FINE_VOXELS = 64
"""Scans of one person are told apart on voxels of which the longest side has about this many."""
COMPARED = 5
"""So many of the other scans each scan is registered with."""
CONTROLS = 20
"""So many pairs, drawn at random, show how alike two scans of the folder are usually."""
MIRROR_Z = 3.0
"""Robust z of the ratio of similarities, mirrored to plain, above which left and right may be exchanged."""
REFERENCES = 16
"""So many scans, spread over the folder, are those that contrasts are compared with."""
WINDOW = 5
"""In voxels: the side of the windows in which contrasts are compared."""
SAME_CONTRAST, OTHER_CONTRAST = 0.7, 0.3
"""Agreement, from -1 (inverted) to 1, above which two contrasts are the same, and below which they differ."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Oddity:
    """What is odd about a scan, by its position, beside the others."""

    scan: int
    message: str


def shrink(image: Image) -> Image:
    """A scan on the voxels on which it is compared: its first channel, about `FINE_VOXELS` along the longest side."""
    first = Image(image.channels[..., 0], image.affine, image.name)
    return coarsen(first, extent_mm(image.grid) / FINE_VOXELS)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Registration of one coarse scan onto another; the transform is None where it failed."""

    fixed: int
    moving: int
    transform: Affine | None
    similarity: float


def check_each(scans: Sequence[Image], progress: Progress) -> list[Oddity]:
    """Check each scan against the others as a run checks a target against its library.

    Parameters
    ----------
    scans : sequence of Image
        From `shrink`.
    progress : callable
        Told the number of each scan.
    """
    if len(scans) < LEAST_SCANS:
        return []
    spacing_mm = coarse_spacing_mm(scans)
    small = [coarsen(scan, spacing_mm) for scan in scans]
    geometries = [Geometry(*measure_geometry(scan)) for scan in scans]
    pairs: list[list[_Pair]] = []
    for n in range(len(scans)):
        progress(f"compare {n + 1} of {len(scans)}")
        others = [m for m in range(len(scans)) if m != n]
        pairs.append([_register(small, n, others[k]) for k in spread(len(others), COMPARED)])
    gains = [_mirror(small, own) for own in pairs]
    found = []
    for n, (scan, own) in enumerate(zip(scans, pairs, strict=True)):
        among = tuple(p.similarity for row in pairs for p in row if p.transform and n not in (p.fixed, p.moving))
        known = tuple(geometry for m, geometry in enumerate(geometries) if m != n)
        findings = check_geometry(scan.name, geometries[n], LibraryReference(known, spacing_mm, among))
        good = [pair for pair in own if pair.transform is not None]
        if 2 * len(good) < len(own):
            found.append(Oddity(n, "expected a scan that can be registered with the others, got one that cannot"))
        else:
            affines = [pair.transform for pair in good if pair.transform]
            overlaps = [overlap(small[n], small[p.moving].grid, p.transform) for p in good if p.transform]
            findings += check_similarity(
                scan.name, [pair.similarity for pair in good], LibraryReference(known, spacing_mm, among)
            )
            findings += check_transforms(scan.name, affines, overlaps)
            if _is_exchanged([mirror_gain(row) for row in gains], n):
                findings += check_sides(scan.name, gains[n])
        found += [Oddity(n, _reword(finding.message, scan.name)) for finding in findings]
    return found


def _is_exchanged(gains: Sequence[float], n: int) -> bool:
    """Whether a scan's mirror image fits the others as no other scan's does, in a folder that shows its sides."""
    others = np.array([gain for m, gain in enumerate(gains) if m != n and np.isfinite(gain)])
    if others.size < LEAST_SCANS - 1 or np.median(others) > CLEAR_SIDES:
        return False
    deviation = 1.4826 * float(np.median(np.abs(others - np.median(others))))
    return bool(gains[n] > np.median(others) + MIRROR_Z * deviation)


def _reword(message: str, name: str) -> str:
    """The first sentence of a message about a target and its atlases, for a scan among others."""
    first = message.removeprefix(f"{name}: ").partition(". ")[0]
    return first.replace("the atlases", "the other scans").replace("the library", "the other scans")


def _register(small: Sequence[Image], fixed: int, moving: int) -> _Pair:
    found = align_coarse(small[fixed], small[moving], None, None)
    similarity = np.nan if found is None else linear_similarity(small[fixed], small[moving], found)
    return _Pair(fixed, moving, found, float(similarity))


def _mirror(small: Sequence[Image], pairs: Sequence[_Pair]) -> list[tuple[float, float]]:
    """Similarities of a scan to others, as it is and mirrored; to few where these leave no doubt."""
    first, most = MIRRORED_ATLASES
    found: list[tuple[float, float]] = []
    for pair in pairs[:most]:
        if len(found) == first and mirror_gain(found) < CLEAR_SIDES:
            break
        if pair.transform is not None:
            found.append(mirror_similarities(small[pair.fixed], small[pair.moving], pair.transform))
    return found


@dataclass(frozen=True, eq=False)
class Likeness:
    """How scans resemble each other.

    Parameters
    ----------
    contrasts : list of Oddity
        Scans of another contrast than most.
    persons : list of SamePerson
        Pairs that are unusually alike.
    """

    contrasts: list[Oddity]
    persons: list[SamePerson]


def compare_all(scans: Sequence[Image], progress: Progress) -> Likeness:
    """Compare all pairs of scans on the grid of one of them, and register those that are most alike.

    Parameters
    ----------
    scans : sequence of Image
        From `shrink`.
    progress : callable
        Told what is done.
    """
    if len(scans) < LEAST_SCANS:
        return Likeness([], [])
    progress("bring all scans onto one grid")
    spacing_mm = coarse_spacing_mm(scans)
    small = [coarsen(scan, spacing_mm) for scan in scans]
    size = [extent_mm(scan.grid) for scan in scans]
    middle = int(np.argsort(size)[len(size) // 2])
    reference = small[middle]
    found = [align_coarse(reference, image, None, None) for image in small]
    placed = [n for n, transform in enumerate(found) if transform is not None]
    warped = [resample(small[n], reference.grid, found[n]) for n in placed]
    known = [coverage(small[n].grid, reference.grid, found[n]).array for n in placed]
    region = foreground(reference).array
    standard = [_standardise(image.array, inside & region) for image, inside in zip(warped, known, strict=True)]
    contrasts = [Oddity(placed[n], message) for n, message in _compare_contrasts(standard)]
    pairs = list(itertools.combinations(range(len(placed)), 2))
    vectors = np.stack([each.reshape(-1) for each in standard])
    likeness = np.abs(vectors @ vectors.T)
    order = sorted(pairs, key=lambda pair: -likeness[pair])
    chosen, rest = order[: len(placed)], order[len(placed) :]
    drawn = np.random.default_rng(0).permutation(len(rest))[:CONTROLS]
    controls = [rest[n] for n in drawn]
    values = []
    progress(f"look for scans of one person in {len(chosen) + len(controls)} pairs")
    for a, b in chosen + controls:
        values.append(pair_similarity(scans[placed[a]], scans[placed[b]], None, None))
    usual = [value for value in values if np.isfinite(value)]
    if len(usual) < LEAST_SCANS:
        return Likeness(contrasts, [])
    named = [(placed[a], placed[b]) for a, b in chosen]
    return Likeness(contrasts, find_repeats(named, np.nan_to_num(values[: len(chosen)]).tolist(), usual))


def _standardise(array: Float32, region: Bool) -> Float32:
    """Intensities less their mean in a window, over their standard deviation there; 0 outside the region."""
    share = np.maximum(ndimage.uniform_filter(region.astype(np.float64), WINDOW), 1e-9)
    inside = np.where(region, array, 0).astype(np.float64)
    mean = ndimage.uniform_filter(inside, WINDOW) / share
    variance = ndimage.uniform_filter(inside**2, WINDOW) / share - mean**2
    flat = variance < 1e-3 * variance[region].mean() if region.any() else np.ones(region.shape, bool)
    out = np.where(region & ~flat, (array - mean) / np.sqrt(np.maximum(variance, 1e-12)), 0)
    return out.astype(np.float32)


def _compare_contrasts(standard: Sequence[Float32]) -> Iterator[tuple[int, str]]:
    """Scans whose contrast differs from that of the scan that agrees with most."""
    count = len(standard)
    shown = spread(count, REFERENCES)
    agreement = np.array(
        [[pool_correlations(ndimage.uniform_filter(each * standard[m], WINDOW)) for m in shown] for each in standard]
    )
    typical = int(np.argmax(np.nan_to_num(np.nanmedian(agreement, axis=0))))
    same = [k for k, m in enumerate(shown) if agreement[m, typical] > SAME_CONTRAST]
    if 2 * len(same) <= len(shown):
        return
    for n in range(count):
        value = float(np.nanmedian(agreement[n, same]))
        if value < OTHER_CONTRAST:
            yield (
                n,
                f"expected the contrast of most scans here, got another one (agreement {value:.2f}; 1 is the same, -1 "
                "is inverted)",
            )
