"""From candidate places to one: every atlas is aligned at each, from several starts, and judged there."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.localisation._neighbourhood import (
    Neighbourhood,
    coarse_spacing_mm,
    coarsen_mask,
    correlation_at,
    find_neighbourhood,
    organ_edge_mm,
    with_edges,
)
from atlasseg.localisation._views import View, list_linear_parts, thick_axis
from atlasseg.localisation.result import AtlasPose, OrganLocation, Place, describe_view
from atlasseg.organ_mask import widen
from atlasseg.plausibility import coarsen
from atlasseg.preprocessing.crop import box_around
from atlasseg.registration import similarity_transform
from atlasseg.registration.outliers import find_failures
from atlasseg.resampling import resample
from atlasseg.transforms import Affine
from atlasseg.volume import Atlas, Bool, Float64, Image, Mask

log = logging.getLogger(__name__)

STARTS = 3
"""Poses of an atlas that are optimised at a place."""

MISSED = 0.4
"""An atlas misses the place if its organ ends further from the others' than this fraction of the organ's edge."""

LEAST_SIMILARITY = 0.15
"""Median similarity of the atlases below which there is no organ at a place."""

LEAST_AGREEING = 0.5
"""Fraction of the atlases that must agree on the place."""

LEAST_VOTES = 0.25
"""Fraction of the atlases that must find the place by themselves, or a warning is given."""

LEAST_OF_USUAL = 0.6
"""Fraction of the similarity that the atlases have with each other below which a warning is given."""

UNUSUAL = 0.04
"""Advantage in correlation that a place needs to be believed in a turned or mirrored view."""

BOX_MARGIN, REGION_MARGIN = 0.5, 0.35
"""Margins around the organ, as fractions of its edge: of the box, and of the region in which similarity is measured."""

REGION_SHARE = 0.1
"""The region holds the voxels on which more than this share of the atlases puts a label."""


@dataclass(frozen=True, eq=False)
class Search:
    """A scan and the neighbourhoods of the atlases on coarse voxels."""

    target: Image
    known: Bool
    atlases: tuple[Neighbourhood, ...]
    edge_mm: float


@dataclass(frozen=True, eq=False)
class Pose:
    """Matrix (4, 4) from points of the scan to points of an atlas, and the correlation there."""

    matrix: Float64
    similarity: float

    def centre_mm(self, atlas: Neighbourhood) -> Float64:
        """Where it puts the centre of the atlas's organ in the scan."""
        return np.asarray(np.linalg.solve(self.matrix, [*atlas.centre_mm, 1.0])[:3])


def prepare_search(
    target: Image,
    atlases: Sequence[Atlas],
    target_mask: Mask | None,
    atlas_masks: Sequence[Mask | None] | None,
    margin: float,
    *,
    most_voxels: float = np.inf,
) -> Search:
    """Bring scan and atlases to coarse voxels.

    Parameters
    ----------
    margin : float
        Width of the neighbourhood of the labels, as a fraction of the organ's edge.
    most_voxels : float
        Voxels of the scan at most.

    Raises
    ------
    InputError
        There is no atlas, an atlas has no label, or numbers of channels differ.
    """
    name = target.name or "scan"
    if not atlases:
        raise InputError(f"{name}: expected at least one atlas to localise by, got none")
    for atlas in atlases:
        if atlas.image.channels.shape[-1] != target.channels.shape[-1]:
            raise InputError(
                f"{atlas.id}: expected {target.channels.shape[-1]} channels like {name}, "
                f"got {atlas.image.channels.shape[-1]}"
            )
    edge_mm = organ_edge_mm(atlases)
    spacing_mm = coarse_spacing_mm(target, edge_mm, most_voxels)
    small = with_edges(coarsen(target, spacing_mm))
    known = np.ones(small.shape, bool) if target_mask is None else coarsen_mask(target_mask, spacing_mm).array
    masks = [None] * len(atlases) if atlas_masks is None else list(atlas_masks)
    around = [
        find_neighbourhood(atlas, mask, spacing_mm, margin * edge_mm)
        for atlas, mask in zip(atlases, masks, strict=True)
    ]
    return Search(small, known if known.any() else np.ones(small.shape, bool), tuple(around), edge_mm)


def align_at(search: Search, atlas: Neighbourhood, centre_mm: Float64, view: View, *, reach_mm: float) -> Pose:
    """Align an atlas at a place: the best poses of a discrete search near it, each optimised by a similarity transform.

    Parameters
    ----------
    centre_mm : (3,)
        Centre of the organ in the scan.
    reach_mm : float
        It is searched this far around along each axis of the scan.
    """
    search = crop_around(search, centre_mm, reach_mm)
    directions = search.target.affine[:3, :3] / search.target.spacing_mm
    steps = [(-reach_mm, 0.0, reach_mm) if reach_mm >= 0.5 * step else (0.0,) for step in search.target.spacing_mm]
    offsets = [directions @ np.array(step) for step in itertools.product(*steps)]

    def pose(linear: Float64, offset: Float64) -> Pose:
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = atlas.centre_mm - linear @ (centre_mm + offset)
        return Pose(matrix, correlation_at(search.target, search.known, atlas, matrix))

    parts = list_linear_parts(search.target.grid, atlas.image.grid, view)
    tried = sorted((pose(linear, np.zeros(3)) for linear in parts), key=lambda pose: -pose.similarity)
    near = [
        max((pose(each.matrix[:3, :3], offset) for offset in offsets), key=lambda pose: pose.similarity)
        for each in tried[: 2 * STARTS]
    ]
    tried = sorted(near, key=lambda pose: -pose.similarity)
    starts = [pose for pose in tried[:STARTS] if pose.similarity > -1]
    if not starts:
        return tried[0]
    return max([tried[0], *optimise(search, atlas, starts)], key=lambda pose: pose.similarity)


def crop_around(search: Search, centre_mm: Float64, reach_mm: float) -> Search:
    """Crop the scan to what an atlas can reach at a place."""
    widest = max(float(np.linalg.norm(a.points_mm - a.centre_mm, axis=1).max()) for a in search.atlases)
    reach = (1.3 * widest + MISSED * search.edge_mm + reach_mm) / search.target.spacing_mm
    inverse = np.linalg.inv(search.target.affine)
    middle = inverse[:3, :3] @ centre_mm + inverse[:3, 3]
    start = np.clip(np.floor(middle - reach), 0, np.array(search.target.shape) - 1).astype(int)
    stop = np.clip(np.ceil(middle + reach) + 1, start + 1, search.target.shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return replace(search, target=search.target.cropped(start, stop), known=search.known[box])


def optimise(search: Search, atlas: Neighbourhood, starts: Sequence[Pose]) -> list[Pose]:
    """Optimise poses of an atlas by similarity transforms, measured in its neighbourhood."""
    known = None if search.known.all() else Mask(search.known, search.target.affine)
    try:
        found = similarity_transform.register(
            atlas.image,
            [search.target] * len(starts),
            initial=[~Affine(pose.matrix) for pose in starts],
            fixed_mask=atlas.near,
            moving_masks=[known] * len(starts),
            metric="correlation",
            finest_shrink=1,
            device="cpu",
        )
    except (GeometryError, InputError):  # constant there, or outside the scan
        return list(starts)
    matrices = [np.linalg.inv(transform.matrix) for transform in found]  # type: ignore[attr-defined]
    return [Pose(matrix, correlation_at(search.target, search.known, atlas, matrix)) for matrix in matrices]


def settle(
    search: Search,
    target: Image,
    atlases: Sequence[Atlas],
    places: Sequence[tuple[Place, View]],
    own_places_mm: Sequence[Float64] | None = None,
) -> OrganLocation:
    """Choose among candidate places by aligning all atlases at each, judge the atlases there, and make the box.

    Parameters
    ----------
    search : Search
    target, atlases
        At full resolution.
    places : sequence of (Place, View)
        Candidates, by descending score.
    own_places_mm : sequence of (3,)
        The place that each atlas by itself finds best; by default that where it can be aligned best.
    """
    name = target.name or "scan"
    if not places:
        message = (
            "the organ was not localised: nowhere does enough of the atlases' neighbourhood of the organ lie in the "
            "scan and its mask. The whole view is registered instead"
        )
        return OrganLocation(False, message, (), (), (), (0, 0, 0), target.shape, None)
    tried: list[tuple[float, Place, View, list[Pose]]] = []
    reach_mm = float(np.min(search.target.spacing_mm))
    for place, view in places:
        centre = np.array(place.centre_mm)
        poses = [align_at(search, atlas, centre, view, reach_mm=reach_mm) for atlas in search.atlases]
        worth = [pose.similarity for pose in poses]
        similarity = float(np.median(worth))
        here = replace(place, similarity=similarity, turned_degrees=view.turned_degrees, mirrored=view.mirrored)
        log.debug("%s: place %s: similarity %.3f", name, here, similarity)
        tried.append((similarity, here, view, poses))
    tried.sort(key=lambda each: -(each[0] - (0 if each[2].as_usual else UNUSUAL)))
    similarity, place, view, poses = tried[0]
    centre, poses, checks = judge(search, poses, view)
    x, y, z = (float(value) for value in centre)
    place = replace(place, centre_mm=(x, y, z))
    if own_places_mm is None:
        own_places_mm = [
            max((each[3][n] for each in tried), key=lambda pose: pose.similarity).centre_mm(atlas)
            for n, atlas in enumerate(search.atlases)
        ]
    votes = sum(distance(search, own - centre) <= tolerance(search) for own in own_places_mm)
    place = replace(place, votes=int(votes))
    ordered = (place, *(each[1] for each in tried[1:]))
    kept = [n for n, check in enumerate(checks) if check.keep]
    trusted = float(np.median([poses[n].similarity for n in kept])) if kept else -1.0
    if len(kept) < LEAST_AGREEING * len(checks) or trusted < LEAST_SIMILARITY:
        message = (
            f"the organ was not localised: {len(kept)} of {len(checks)} atlases agree on a place, with a median "
            f"similarity of {trusted:.2f} around the organ (expected at least {LEAST_AGREEING:.0%} and "
            f"{LEAST_SIMILARITY}). The whole view is registered instead"
        )
        return OrganLocation(False, message, ordered, checks, (), (0, 0, 0), target.shape, None)
    transforms = tuple(Affine(pose.matrix) for pose in poses)
    start, stop, region = make_box(target, atlases, transforms, kept, search.edge_mm)
    doubts = []
    if place.votes < LEAST_VOTES * len(checks):
        doubts.append(
            f"{place.votes} of {len(checks)} atlases find the organ at this place by themselves, the others elsewhere. "
            "Check the place in the report"
        )
    usual = usual_similarity(search)
    if trusted < LEAST_OF_USUAL * usual:
        doubts.append(
            f"around the organ the atlases are less similar to the scan ({trusted:.2f}) than to each other "
            f"({usual:.2f}), as with another contrast or at a wrong place. Check the place in the report"
        )
    if not view.as_usual:
        seen = describe_view(view.turned_degrees, view.mirrored)
        doubts.append(
            f"the organ was found in a view that is {seen} relative to that of the atlases. "
            "Check left and right, and the header of the scan"
        )
    return OrganLocation(True, "; ".join(doubts), ordered, checks, transforms, start, stop, region)


def usual_similarity(search: Search) -> float:
    """Median similarity of each atlas with the next one by id around the organ, its place known; 0 for one atlas."""
    if len(search.atlases) < 2:
        return 0.0
    ring = sorted(search.atlases, key=lambda atlas: atlas.id)
    found = []
    for known, atlas in itertools.pairwise((*ring, ring[0])):
        alone = replace(search, target=known.image, known=np.ones(known.image.shape, bool))
        found.append(align_at(alone, atlas, known.centre_mm, View(), reach_mm=0.0).similarity)
    return float(np.median(found))


def judge(search: Search, given: Sequence[Pose], view: View) -> tuple[Float64, list[Pose], tuple[AtlasPose, ...]]:
    """Find the place on which the atlases agree; align those that miss it anew, and drop those that miss it again.

    Returns
    -------
    centre : (3,)
        The place, RAS+ mm.
    poses : list of Pose
        One for each atlas.
    checks : tuple of AtlasPose
    """
    poses = list(given)
    centres = np.array([pose.centre_mm(atlas) for pose, atlas in zip(poses, search.atlases, strict=True)])
    centre = weighted_median(centres, np.array([max(pose.similarity, 1e-3) for pose in poses]))
    tolerance_mm = tolerance(search)
    middle = float(np.median([pose.similarity for pose in poses]))
    for n, atlas in enumerate(search.atlases):
        apart = distance(search, centres[n] - centre)
        if apart > tolerance_mm or poses[n].similarity < 0.6 * middle:
            again = align_at(search, atlas, centre, view, reach_mm=0.0)
            if distance(search, again.centre_mm(atlas) - centre) <= tolerance_mm:
                poses[n] = again
    centres = np.array([pose.centre_mm(atlas) for pose, atlas in zip(poses, search.atlases, strict=True)])
    names = [atlas.id for atlas in search.atlases]
    failures = find_failures([pose.similarity for pose in poses], names=names, floor=0.05)
    checks = []
    for n, (atlas, pose, failure) in enumerate(zip(search.atlases, poses, failures, strict=True)):
        apart = distance(search, centres[n] - centre)
        reason = "" if failure.keep else f"{failure.reason}, around the organ"
        if apart > tolerance_mm:
            reason = f"its organ lies {apart:.0f} mm from where the other atlases put it"
        linear = pose.matrix[:3, :3]
        left, sizes, right = np.linalg.svd(linear)
        turn = left @ right
        cosine = (np.trace(turn if np.linalg.det(turn) > 0 else -turn) - 1) / 2
        checks.append(
            AtlasPose(
                atlas.id,
                not reason,
                pose.similarity,
                apart,
                float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
                float(1 / np.prod(sizes) ** (1 / 3)),
                reason,
            )
        )
    return centre, poses, tuple(checks)


def tolerance(search: Search) -> float:
    """Distance up to which two places are the same."""
    return MISSED * search.edge_mm


def distance(search: Search, offset_mm: Float64) -> float:
    """Length of an offset; along thick slices, the length beyond one slice counts."""
    axis = thick_axis(search.target.grid)
    if axis is None:
        return float(np.linalg.norm(offset_mm))
    normal = search.target.affine[:3, axis] / search.target.spacing_mm[axis]
    along = float(offset_mm @ normal)
    beyond = max(0.0, abs(along) - float(search.target.spacing_mm[axis]))
    return float(np.hypot(np.linalg.norm(offset_mm - along * normal), beyond))


def weighted_median(points: Float64, weights: Float64) -> Float64:
    """Geometric median of points (N, 3), by the algorithm of Weiszfeld."""
    middle = np.median(points, axis=0)
    for _ in range(50):
        share = weights / np.maximum(np.linalg.norm(points - middle, axis=1), 1e-3)
        moved = (points * share[:, None]).sum(axis=0) / share.sum()
        if np.linalg.norm(moved - middle) < 1e-3:
            break
        middle = moved
    return np.asarray(middle)


def make_box(
    target: Image, atlases: Sequence[Atlas], transforms: Sequence[Affine], kept: Sequence[int], edge_mm: float
) -> tuple[tuple[int, int, int], tuple[int, int, int], Mask]:
    """Box of the scan around the labels of the kept atlases, and the region in it where similarity is measured."""
    labels = [atlases[n].segmentation for n in kept]
    through = [transforms[n] for n in kept]
    first, last = box_around(labels, through, target.grid, margin_mm=BOX_MARGIN * edge_mm)
    start, stop = (tuple(int(n) for n in corner) for corner in (first, last))
    grid = target.grid.cropped(start, stop)
    share = np.zeros(grid.shape, np.float32)
    for volume, transform in zip(labels, through, strict=True):
        share += resample(volume, grid, transform, interpolation="nearest").array != 0
    possible = share > REGION_SHARE * len(kept)
    if not possible.any():
        possible = share > 0
    region = widen(Mask(possible, grid.affine, target.name), margin_mm=REGION_MARGIN * edge_mm)
    return start, stop, region  # type: ignore[return-value]
