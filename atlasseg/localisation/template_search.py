"""Find the organ by its neighbourhood in each atlas: correlation at every place, turn and size, and a vote of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from scipy import ndimage

from atlasseg.localisation._correlation import CorrelationMap
from atlasseg.localisation._neighbourhood import LEAST_OVERLAP, MOST_VOXELS, Neighbourhood, sample
from atlasseg.localisation._settling import UNUSUAL, Search, distance, prepare_search, settle, tolerance
from atlasseg.localisation._views import View, list_linear_parts, list_views, thick_axis
from atlasseg.localisation.result import OrganLocation, Place
from atlasseg.methods import Data, method
from atlasseg.volume import Atlas, Float32, Float64, Image, Mask

UNANIMOUS = 0.75
"""Quarter turns are searched where less than this fraction of the atlases votes for one place in the usual view."""


@method("localisation")
def localise(
    target: Image,
    atlases: Sequence[Atlas],
    *,
    target_mask: Data[Mask | None] = None,
    atlas_masks: Data[Sequence[Mask | None] | None] = None,
    margin: Annotated[float, Gt(0)] = 0.5,
    places: Annotated[int, Ge(1)] = 6,
    quarter_turns: bool = True,
    mirrored: bool = False,
) -> OrganLocation:
    """Localise the organ that the atlases are labelled in.

    The neighbourhood of each atlas's labels is a template, which is compared with the scan at every place, in several
    turns and sizes, on coarse voxels: intensities and the magnitude of their gradient, by the mean of correlation and
    concordance. The best correlation of each atlas at each place is its vote, and the mean of all
    votes has its maxima at the candidate places. At each of them all atlases are aligned by similarity transforms from
    their best poses, and the place with the highest median correlation is chosen. Atlases whose organ ends elsewhere
    start again from there, and are dropped if they miss it again or resemble the scan much less than the others.

    Parameters
    ----------
    target : Image
        The scan.
    atlases : sequence of Atlas
        Each on its own grid; every label above 0 belongs to the organ.
    target_mask, atlas_masks : Mask, optional
        Voxels with valid intensities.
    margin : float
        Width of the neighbourhood around the labels, as a fraction of the organ's size.
    places : int
        Number of candidate places at which the atlases are aligned.
    quarter_turns : bool
        Also search views that are turned by 90, 180 and 270 degrees in the slice, in scans with thick slices.
    mirrored : bool
        Also search mirror images of the atlases' views.

    Returns
    -------
    OrganLocation

    Raises
    ------
    InputError
        There is no atlas, an atlas has no label, or numbers of channels differ.

    References
    ----------
    .. [1] Padfield, D. (2012). Masked object registration in the Fourier domain. IEEE Trans Image Process 21(5),
       2706-2718.
    .. [2] Isgum, I., et al. (2009). Multi-atlas-based segmentation with local decision fusion: application to cardiac
       and aortic segmentation in CT scans. IEEE Trans Med Imaging 28(7), 1000-1010.
    .. [3] Lin, L. I.-K. (1989). A concordance correlation coefficient to evaluate reproducibility. Biometrics 45(1),
       255-268.
    """
    search = prepare_search(target, atlases, target_mask, atlas_masks, margin, most_voxels=MOST_VOXELS)
    found, own_mm = search_places(search, places, quarter_turns=quarter_turns, mirrored=mirrored)
    return settle(prepare_search(target, atlases, target_mask, atlas_masks, margin), target, atlases, found, own_mm)


def search_places(
    search: Search, count: int, *, quarter_turns: bool, mirrored: bool
) -> tuple[list[tuple[Place, View]], list[Float64]]:
    """Find candidate places in all views that are asked for, and the place that each atlas by itself finds best."""
    usual, *others = list_views(search.target.grid, quarter_turns=quarter_turns, mirrored=mirrored)
    maps = {usual: vote_maps(search, usual)}
    found = find_places(search, maps, count)
    if others and (mirrored or not found or found[0][0].votes < UNANIMOUS * len(search.atlases)):
        maps |= {view: vote_maps(search, view) for view in others}
        found = find_places(search, maps, count)
    return found, _best_of_atlases(search, maps)


def localise_at(
    target: Image,
    atlases: Sequence[Atlas],
    centre_mm: Sequence[float],
    *,
    target_mask: Mask | None = None,
    atlas_masks: Sequence[Mask | None] | None = None,
    margin: float = 0.5,
) -> OrganLocation:
    """Align and judge the atlases at a place that is known, as `localise` does at the places that it finds.

    Parameters
    ----------
    target, atlases, target_mask, atlas_masks, margin
        As for `localise`.
    centre_mm : (3,) float
        Centre of the organ in the scan, RAS+ mm.

    Returns
    -------
    OrganLocation
    """
    search = prepare_search(target, atlases, target_mask, atlas_masks, margin)
    x, y, z = (float(value) for value in centre_mm)
    return settle(search, target, atlases, [(Place((x, y, z), len(atlases), 1.0), View())])


def vote_maps(search: Search, view: View) -> Float32:
    """Correlate the neighbourhood of each atlas with the scan at each voxel, the best of all poses: (N, I, J, K)."""
    grid = search.target.grid
    parts = [list_linear_parts(grid, atlas.image.grid, view) for atlas in search.atlases]
    templates = [
        [make_template(search, atlas, linear) for linear in each]
        for atlas, each in zip(search.atlases, parts, strict=True)
    ]
    shapes = np.array([weight.shape for each in templates for _, weight in each])
    i, j, k = (int(n) for n in shapes.max(axis=0))
    images = []
    for c in range(search.target.channels.shape[-1]):
        channel = search.target.channels[..., c].astype(np.float32)
        images.append(CorrelationMap(channel, search.known, (i, j, k)))
    out = np.full((len(search.atlases), *grid.shape), -1, np.float32)
    for n, each in enumerate(templates):
        for channels, weight in each:
            found = [
                image.correlate(channel, weight, least_overlap=LEAST_OVERLAP)
                for image, channel in zip(images, channels, strict=True)
            ]
            out[n] = np.maximum(out[n], np.mean(found, axis=0))
    return out


def make_template(search: Search, atlas: Neighbourhood, linear: Float64) -> tuple[list[Float32], Float32]:
    """Sample the neighbourhood of an atlas on the voxels of the scan, the organ's centre in the middle voxel.

    Returns
    -------
    channels : list of (A, B, C) float32
    weight : (A, B, C) float32
    """
    edges = search.target.affine[:3, :3]
    to_voxels = np.linalg.inv(linear @ edges)
    reach = np.abs((atlas.points_mm - atlas.centre_mm) @ to_voxels.T).max(axis=0)
    half = np.minimum(np.ceil(reach).astype(int), search.target.shape)
    offsets = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in half], indexing="ij"), -1)
    points = offsets.reshape(-1, 3) @ (linear @ edges).T + atlas.centre_mm
    shape = offsets.shape[:3]
    near = np.asarray(atlas.near.array, np.float32)
    weight = sample(near, atlas.near.affine, points, outside=0.0).astype(np.float32).reshape(shape)
    channels = [
        sample(np.ascontiguousarray(atlas.image.channels[..., c]), atlas.image.affine, points, outside=0.0)
        .astype(np.float32)
        .reshape(shape)
        for c in range(atlas.image.channels.shape[-1])
    ]
    return channels, weight


def find_places(search: Search, maps: dict[View, Float32], count: int) -> list[tuple[Place, View]]:
    """Find the places with the highest mean vote of the atlases, each at least half an organ from the others."""
    grid = search.target.grid
    thick = thick_axis(grid)
    window = [1 if axis == thick else 3 for axis in range(3)]
    tolerant = {
        view: np.stack([ndimage.maximum_filter(each, size=window) for each in votes]) for view, votes in maps.items()
    }
    mean = {view: votes.mean(axis=0) for view, votes in tolerant.items()}
    best_of_atlases = _best_of_atlases(search, maps)
    left = {view: score - (0.0 if view.as_usual else UNUSUAL) for view, score in mean.items()}
    voxels = np.indices(grid.shape).reshape(3, -1).T
    points = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    found: list[tuple[Place, View]] = []
    while len(found) < count:
        view = max(left, key=lambda each: float(left[each].max()))
        score = float(left[view].max())
        if score <= -1:
            break
        centre = points[int(left[view].argmax())]
        votes = sum(distance(search, best - centre) <= tolerance(search) for best in best_of_atlases)
        found.append((Place((float(centre[0]), float(centre[1]), float(centre[2])), int(votes), score), view))
        near = (np.linalg.norm(points - centre, axis=1) < 0.5 * search.edge_mm).reshape(grid.shape)
        left[view] = np.where(near, np.float32(-2), left[view])
    return found


def _best_of_atlases(search: Search, maps: dict[View, Float32]) -> list[Float64]:
    """The place that each atlas by itself finds best."""
    grid = search.target.grid
    found = []
    for n in range(len(search.atlases)):
        view = max(maps, key=lambda each: float(maps[each][n].max()) - (0.0 if each.as_usual else UNUSUAL))
        voxel = np.array(np.unravel_index(int(maps[view][n].argmax()), grid.shape))
        found.append(grid.affine[:3, :3] @ voxel + grid.affine[:3, 3])
    return found
