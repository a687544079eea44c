"""Find the organ by a regression forest, learned from the atlases: every voxel votes for the organ's centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.localisation._neighbourhood import MOST_VOXELS, sample, with_edges
from atlasseg.localisation._settling import Search, prepare_search, settle
from atlasseg.localisation._views import View, rotation_about, thick_axis
from atlasseg.localisation.result import OrganLocation, Place
from atlasseg.methods import Data, method
from atlasseg.plausibility import coarsen
from atlasseg.transforms import grid_points
from atlasseg.volume import Atlas, Float32, Float64, Grid, Image, Mask

FEATURES = 60
"""Means of boxes around a voxel by which it is recognised."""

BOX_SIZES, FURTHEST = (0.1, 0.25, 0.5), 1.5
"""Sizes of the boxes, and how far from the voxel they may lie, as fractions of the organ's edge."""

PER_COPY, COPIES = 120, 6
"""Voxels near the organ, and as many far from it, that are learned of each copy of an atlas; a copy is turned and
resized."""

TURN_DEGREES, SIZES = 30.0, (0.82, 1.22)
"""Of the copies."""

NEAR_WEIGHT = 3.0
"""Weight of being near the organ beside the displacement to its centre, when a node of a tree is split."""

VOTE_SIGMA = 0.15
"""Standard deviation of the Gaussian that smooths the votes, as a fraction of the organ's edge."""


@method("localisation")
def localise(
    target: Image,
    atlases: Sequence[Atlas],
    *,
    target_mask: Data[Mask | None] = None,
    atlas_masks: Data[Sequence[Mask | None] | None] = None,
    margin: Annotated[float, Gt(0)] = 0.5,
    places: Annotated[int, Ge(1)] = 6,
    trees: Annotated[int, Ge(1)] = 60,
) -> OrganLocation:
    """Localise the organ that the atlases are labelled in.

    Voxels of the atlases, in random turns and sizes, teach a forest of extremely randomised trees [2]_ whether a voxel
    is near the organ, and its displacement to the organ's centre, by the means of boxes around it [1]_. In the scan
    every voxel votes for the centre. The maxima of the votes are the candidate places, at which the atlases are aligned
    and judged as in `template_search`. Quarter turns and mirror images are not searched.

    Parameters
    ----------
    target : Image
        The scan.
    atlases : sequence of Atlas
        Each on its own grid; every label above 0 belongs to the organ.
    target_mask, atlas_masks : Mask, optional
        Voxels with valid intensities.
    margin : float
        Width of the neighbourhood by which atlases are aligned, as a fraction of the organ's size.
    places : int
        Number of candidate places at which the atlases are aligned.
    trees : int
        Number of trees.

    Returns
    -------
    OrganLocation

    Raises
    ------
    InputError
        There is no atlas, an atlas has no label, or numbers of channels differ.

    References
    ----------
    .. [1] Criminisi, A., et al. (2013). Regression forests for efficient anatomy detection and localization in computed
       tomography scans. Medical Image Analysis 17(8), 1293-1303.
    .. [2] Geurts, P., Ernst, D., Wehenkel, L. (2006). Extremely randomized trees. Machine Learning 63, 3-42.
    """
    search = prepare_search(target, atlases, target_mask, atlas_masks, margin, most_voxels=MOST_VOXELS)
    found = find_places(search, atlases, places, trees=trees)
    return settle(prepare_search(target, atlases, target_mask, atlas_masks, margin), target, atlases, found)


def find_places(search: Search, atlases: Sequence[Atlas], count: int, *, trees: int) -> list[tuple[Place, View]]:
    """Find the places with the most votes of the voxels, each at least half an organ from the others.

    The score of a place is its share of all votes.
    """
    votes = vote_map(search, atlases, trees)
    total = max(float(votes.sum()), 1e-12)
    points = grid_points(search.target.grid).reshape(-1, 3)
    found = []
    for _ in range(count):
        x, y, z = (float(value) for value in points[int(votes.argmax())])
        near = np.linalg.norm(points - (x, y, z), axis=1) < 0.5 * search.edge_mm
        share = float(votes.reshape(-1)[near].clip(min=0).sum()) / total
        found.append((Place((x, y, z), 0, share), View()))
        votes.reshape(-1)[near] = -1
    return found


def vote_map(search: Search, atlases: Sequence[Atlas], trees: int) -> Float64:
    """Learn the forest, and count the votes of the scan's voxels for the centre at each voxel: (I, J, K)."""
    from sklearn.ensemble import ExtraTreesRegressor

    edge, rng = search.edge_mm, np.random.default_rng(0)
    small = search.target
    offsets_mm = rng.normal(size=(FEATURES, 3))
    lengths = edge * rng.uniform(0, FURTHEST, (FEATURES, 1))
    offsets_mm *= lengths / np.linalg.norm(offsets_mm, axis=1, keepdims=True)
    maps = rng.integers(0, len(BOX_SIZES) * small.channels.shape[-1], FEATURES)
    seen, wanted = [], []
    for atlas, known in zip(atlases, search.atlases, strict=True):
        image = with_edges(coarsen(atlas.image, float(small.spacing_mm.min())))
        means = box_means(image, edge)
        points = grid_points(image.grid).reshape(-1, 3)
        close = np.linalg.norm(points - known.centre_mm, axis=1) < edge
        for _ in range(COPIES):
            linear = draw_copy(rng, image.grid)
            chosen = np.concatenate([draw(rng, np.flatnonzero(part)) for part in (close, ~close)])
            seen.append(describe_voxels(means, image, points[chosen], offsets_mm @ linear.T, maps))
            away = (known.centre_mm - points[chosen]) @ np.linalg.inv(linear).T / edge
            near = close[chosen, None]
            wanted.append(np.hstack([np.where(near, away, 0), NEAR_WEIGHT * near]))
    forest = ExtraTreesRegressor(trees, min_samples_leaf=4, max_features=0.4, random_state=0, n_jobs=1)
    forest.fit(np.concatenate(seen), np.concatenate(wanted))
    points = grid_points(small.grid).reshape(-1, 3)[search.known.reshape(-1)]
    told = forest.predict(describe_voxels(box_means(small, edge), small, points, offsets_mm, maps))
    share = np.clip(told[:, 3] / NEAR_WEIGHT, 1e-3, 1)
    centres = points + edge * told[:, :3] / share[:, None]
    inverse = np.linalg.inv(small.affine)
    voxels = np.rint(centres @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    inside = ((voxels >= 0) & (voxels < small.shape)).all(axis=1)
    votes = np.zeros(small.shape)
    np.add.at(votes, tuple(voxels[inside].T), share[inside] ** 2)
    return np.asarray(ndimage.gaussian_filter(votes, VOTE_SIGMA * edge / small.spacing_mm))


def draw_copy(rng: np.random.Generator, grid: Grid) -> Float64:
    """Draw a turn and a size, (3, 3): a turn in the slice where slices are thick."""
    thick = thick_axis(grid)
    axis = rng.normal(size=3) if thick is None else grid.affine[:3, thick]
    turn = rotation_about(axis / np.linalg.norm(axis), rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    return turn * rng.uniform(*SIZES)


def draw(rng: np.random.Generator, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw voxels to learn."""
    return rng.choice(voxels, min(PER_COPY, len(voxels)), replace=False)


def box_means(image: Image, edge_mm: float) -> list[Float32]:
    """Means of each channel in boxes around each voxel, of each size."""
    sizes = [np.maximum(np.rint(size * edge_mm / image.spacing_mm), 1).astype(int) for size in BOX_SIZES]
    return [
        ndimage.uniform_filter(np.ascontiguousarray(channel), size=tuple(size), mode="nearest")
        for channel in np.moveaxis(image.channels, -1, 0)
        for size in sizes
    ]


def describe_voxels(
    means: Sequence[Float32], image: Image, points_mm: Float64, offsets_mm: Float64, maps: NDArray[np.int64]
) -> Float64:
    """Means of the boxes at each offset from points (N, 3): (N, FEATURES); -1 beyond the scan."""
    return np.stack(
        [
            sample(means[number], image.affine, points_mm + offset, outside=-1.0)
            for offset, number in zip(offsets_mm, maps, strict=True)
        ],
        axis=1,
    )
