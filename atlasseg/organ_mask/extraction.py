"""Mask of one organ, such as the brain in a whole-head scan, from a library of scans in which it is known.

Brain extraction by registration [1]_ [2]_, for any organ and species: every atlas is registered to the scan on coarse
voxels, first by an affine transform, then by a diffeomorphic one around the organ alone. The organs are carried over
and fused by joint label fusion on fine voxels, and the border is decided by the intensities of the scan itself.

References
----------
.. [1] Leung et al. (2011), Brain MAPS: an automated, accurate and robust brain extraction technique using a template
   library, NeuroImage 55(3):1091-1108.
.. [2] Doshi et al. (2013), Multi-atlas skull-stripping, Academic Radiology 20(12):1566-1576.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from atlasseg.atlases.organs import ORGAN, organ_probabilities, organ_volume_mm3, organs_of
from atlasseg.errors import GeometryError, InputError
from atlasseg.fusion import joint
from atlasseg.fusion.contrast import match_contrast
from atlasseg.organ_mask.border import refine_border
from atlasseg.plausibility import coarsen, linear_similarity
from atlasseg.propagation import propagate
from atlasseg.refinement import markov_field
from atlasseg.registration import affine, diffeomorphic
from atlasseg.registration.outliers import RegistrationQC, find_failures
from atlasseg.resampling import resample
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Bool, Float32, Grid, Image, LabelMap, Mask, ProbabilityMap

log = logging.getLogger(__name__)

COARSE_PER_ORGAN, FINE_PER_ORGAN = 28.0, 57.0
"""Voxels along the edge of a cube of the organ's volume: for the registration, and for the fusion at most. A human
brain is registered at 4 mm and fused at 2 mm."""

POSSIBLE_SHARE = 0.1
"""Share of the affinely registered atlases whose organ reaches a voxel that may be organ."""

MARGIN_PER_ORGAN = 0.11
"""The registration sees this much around the voxels that may be organ, as a fraction of the organ's edge."""

ITERATIONS = (40, 30)
"""Of the diffeomorphic registration, at twice the coarse voxel size and at the coarse one."""

SEARCH_VOXELS = 1
"""Search radius of the joint label fusion, in fine voxels."""

BORDER_SHARE = 0.01
"""Share of the organ's voxels on a face of the scan above which it is cut off there."""


@dataclass(frozen=True, eq=False)
class OrganMask:
    """Mask of the organ in one scan, on the grid of the scan.

    Parameters
    ----------
    mask : Mask
        Where the organ is: one connected part without holes.
    probabilities : ProbabilityMap
        Of labels 0 and 1 (the organ), before the largest part was taken and holes were filled.
    atlases : mapping of str to RegistrationQC
        What the registration of each atlas was worth, by its id.
    similarities : mapping of str to float
        Mean local correlation of the scan and each atlas around the organ, 0 to 1.
    cut_off : mapping of str to float
        Faces of the scan (``"inferior"``) at which the organ ends, with the share of its voxels that lie on them.
    seconds : mapping of str to float
        Duration of each step.
    """

    mask: Mask
    probabilities: ProbabilityMap
    atlases: Mapping[str, RegistrationQC]
    similarities: Mapping[str, float]
    cut_off: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def volume_ml(self) -> float:
        """Volume of the mask."""
        return float(self.mask.array.sum() * abs(np.linalg.det(self.mask.affine[:3, :3])) / 1000)


def find_organ(scan: Image, atlases: Sequence[Atlas], *, progress: Callable[[str], None] | None = None) -> OrganMask:
    """Find an organ in a scan from atlases in which it is known.

    Parameters
    ----------
    scan : Image
        Of any size, contrast, axes and field of view; of several channels, all are used.
    atlases : sequence of Atlas
        One or more, of any labels or with masks: see `atlases.organs.organs_of`. Each on its own grid.
    progress : callable, optional
        Told the name of each step as it begins.

    Returns
    -------
    OrganMask

    Raises
    ------
    InputError
        There is no atlas, an atlas has no label above 0, or numbers of channels differ.
    GeometryError
        No organ of the atlases lands on the scan, or no voxel of the scan is probably organ.
    """
    if not atlases:
        raise InputError(f"{scan.name or 'scan'}: expected at least one atlas, got none")
    known = organs_of(atlases)
    edge_mm = float(np.median([organ_volume_mm3(atlas) for atlas in known])) ** (1 / 3)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        if progress is not None:
            progress(name)
        begun = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - begun

    fine_mm = edge_mm / FINE_PER_ORGAN
    with step("register"):
        registered = _register(scan, known, edge_mm)
    with step("propagate"):
        target = coarsen(scan.cropped(registered.start, registered.stop), fine_mm)
        carried = [
            propagate(_at_resolution(atlas, fine_mm), transform, target.grid)
            for atlas, transform, check in zip(known, registered.transforms, registered.checks, strict=True)
            if check.keep
        ]
    with step("fuse"):
        match = match_contrast(target, carried)
        if match.message:
            log.warning("%s: %s", scan.name or "scan", match.message)
        fused = joint.fuse(target, match.candidates, search_radius_voxels=SEARCH_VOXELS, contrast="same")
    with step("refine"):
        if match.changed:  # the atlases do not show what the border looks like in this contrast
            share = markov_field.refine(target, fused).probability(ORGAN)
        else:
            share = refine_border(target, match.candidates, fused)
        probability = resample(Image(share, target.affine), scan.grid, fill=0.0).array
    inside = largest_part(probability > 0.5)
    if not inside.any():
        raise GeometryError(
            f"{scan.name or 'scan'}: no voxel is probably organ (the highest probability is {probability.max():.2g}). "
            "Check that scan and atlases show the same part of the body (atlasseg doctor)."
        )
    cut_off = find_cut_off(inside, scan.grid)
    if cut_off:
        faces = ", ".join(f"{face} ({100 * share:.1f} % of its voxels)" for face, share in cut_off.items())
        log.warning(
            "%s: the organ reaches the border of the scan: %s. It is cut off there, and its volume is that of the part "
            "in the scan.",
            scan.name or "scan", faces,
        )  # fmt: skip
    return OrganMask(
        Mask(inside, scan.affine, scan.name),
        organ_probabilities(probability, scan.affine, scan.name),
        {atlas.id: check for atlas, check in zip(known, registered.checks, strict=True)},
        {atlas.id: value for atlas, value in zip(known, registered.similarities, strict=True)},
        cut_off,
        seconds,
    )


def extract_mask(scan: Image, atlases: Sequence[Atlas]) -> Mask:
    """Find an organ in a scan as `find_organ` does, and return its mask alone.

    Parameters
    ----------
    scan, atlases
        As for `find_organ`.

    Returns
    -------
    Mask
        On the grid of the scan.
    """
    return find_organ(scan, atlases).mask


def widen(mask: Mask, *, margin_mm: float) -> Mask:
    """Widen a mask by a margin.

    Parameters
    ----------
    mask : Mask
        Any mask, also an empty one, which stays empty.
    margin_mm : float
        Voxels whose centre is at most this far from that of a voxel of the mask are added.

    Returns
    -------
    Mask
        On the same grid.
    """
    if not mask.array.any():
        return mask
    spacing_mm = mask.grid.spacing_mm
    reach = np.ceil(margin_mm / spacing_mm).astype(int)
    where = np.argwhere(mask.array)
    first, last = np.maximum(where.min(axis=0) - reach, 0), where.max(axis=0) + reach + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    wide = mask.array.copy()
    wide[box] = ndimage.distance_transform_edt(~mask.array[box], sampling=spacing_mm) <= margin_mm
    return mask.with_array(wide)


@dataclass(frozen=True, eq=False)
class _Registered:
    """Transforms from points of the scan to points of each atlas, what they are worth, and the box around the organ."""

    transforms: list[Transform]
    similarities: list[float]
    checks: list[RegistrationQC]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]


def _register(scan: Image, atlases: Sequence[Atlas], edge_mm: float) -> _Registered:
    """Register all atlases to the scan on coarse voxels."""
    coarse_mm = edge_mm / COARSE_PER_ORGAN
    small = coarsen(scan, coarse_mm)
    images = [coarsen(atlas.image, coarse_mm) for atlas in atlases]
    starts = affine.register(small, images, finest_shrink=2)
    near = _reach(atlases, starts, small.grid, MARGIN_PER_ORGAN * edge_mm)
    if not near.any():
        raise GeometryError(
            f"{scan.name or 'scan'}: no organ of the {len(atlases)} atlases lands on the scan. Check that scan and "
            "atlases show the same part of the body (atlasseg doctor)."
        )
    around = Mask(near, small.affine)
    transforms = diffeomorphic.register(
        small,
        images,
        initial=starts,
        fixed_mask=around,
        shrink_factors=(2, 1),
        iterations=ITERATIONS,
    )
    similarities = [
        linear_similarity(small, image, transform, fixed_mask=around)
        for image, transform in zip(images, transforms, strict=True)
    ]
    checks = find_failures(similarities, names=[atlas.id for atlas in atlases])
    for atlas, check in zip(atlases, checks, strict=True):
        if not check.keep:
            log.warning("%s: atlas %s left out of the mask: %s", scan.name or "scan", atlas.id, check.reason)
    factor = np.rint(small.spacing_mm / scan.spacing_mm).astype(int)
    where = np.argwhere(near)
    start = np.maximum((where.min(axis=0) - 1) * factor, 0)
    stop = np.minimum((where.max(axis=0) + 2) * factor, scan.shape)
    stop = np.where(where.max(axis=0) + 2 >= small.shape, scan.shape, stop)  # voxels beyond the last block
    first, last = (tuple(int(n) for n in corner) for corner in (start, stop))
    return _Registered(transforms, similarities, checks, first, last)  # type: ignore[arg-type]


def _reach(atlases: Sequence[Atlas], transforms: Sequence[Transform], grid: Grid, margin_mm: float) -> Bool:
    """Voxels near to which the organ of some atlases lands."""
    share: Float32 = np.zeros(grid.shape, np.float32)
    for atlas, transform in zip(atlases, transforms, strict=True):
        share += resample(atlas.segmentation, grid, transform, interpolation="nearest").array != 0
    possible = share > POSSIBLE_SHARE * len(atlases)
    if not possible.any():
        return possible
    apart_mm = ndimage.distance_transform_edt(~possible, sampling=grid.spacing_mm)
    return np.asarray(apart_mm <= margin_mm)


def _at_resolution(atlas: Atlas, spacing_mm: float) -> Atlas:
    """The atlas on voxels near `spacing_mm`, where its own are finer; its organ as a fraction of each."""
    image = coarsen(atlas.image, spacing_mm)
    if image.shape == atlas.image.shape:
        return atlas
    inside = atlas.labels.array if isinstance(atlas.labels, LabelMap) else atlas.labels.probability(ORGAN)
    share = coarsen(Image(inside.astype(np.float32), atlas.image.affine), spacing_mm)
    return replace(atlas, image=image, labels=organ_probabilities(share.array, image.affine, atlas.id))


def largest_part(inside: Bool) -> Bool:
    """The largest connected part (neighbours by faces), its holes filled."""
    parts, count = ndimage.label(inside)
    if count == 0:
        return inside
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(parts == sizes.argmax()))


def find_cut_off(inside: Bool, grid: Grid) -> dict[str, float]:
    """Find the faces of a scan at which the organ is cut off.

    Returns
    -------
    dict of str to float
        Name of the face (``"superior"``) and the share of the organ's voxels on it, where that is above 1 %.
    """
    names = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
    total = max(int(inside.sum()), 1)
    found = {}
    for axis, (world, ahead) in enumerate(grid.nearest_axes):
        for end in (0, -1):
            share = float(np.take(inside, end, axis=axis).sum() / total)
            if share > BORDER_SHARE and inside.shape[axis] > 1:
                found[names[world][int((end == -1) == ahead)]] = share
    return found
