"""Split and merge: split the scan into homogeneous blocks by an octree, then merge the most similar neighbours.

The classical scheme on volumes: `octree.split` splits, `merging.merge` merges along the region adjacency graph.
"""

from __future__ import annotations

import logging

import numpy as np
from numba import njit

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.regions.adjacency_graph import adjacency_graph
from atlasseg.regions.merging import Criterion, Merges, merge_packed, pack
from atlasseg.regions.noise import noise_sd as estimated_noise_sd
from atlasseg.regions.octree import Homogeneity, split
from atlasseg.volume import Float64, Image, Int32, LabelMap

__all__ = ["default_threshold", "hierarchy"]

log = logging.getLogger(__name__)


def hierarchy(
    image: Image,
    *,
    homogeneity: Homogeneity = "noise",
    split_threshold: float | None = None,
    significance: float = 0.001,
    criterion: Criterion = "ward",
    merge_threshold: float | None = None,
    regions: int | None = None,
    noise_sd: tuple[float, ...] | None = None,
) -> tuple[LabelMap, Merges]:
    """Compute the regions of `partition` with their merges. Row i of the merges is block i + 1 of the split.

    Parameters
    ----------
    image, homogeneity, split_threshold, significance, criterion, merge_threshold, regions, noise_sd
        As for `partition`.

    Returns
    -------
    regions : LabelMap
        Result of `partition`.
    merges : Merges
        The merges.
    """
    if regions is not None and regions > np.prod(image.shape):
        raise InputError(
            f"regions: expected at most the {np.prod(image.shape)} voxels of image {image.name!r}, got {regions}"
        )
    sd = None
    if homogeneity == "noise":
        sd = tuple(estimated_noise_sd(image).tolist()) if noise_sd is None else noise_sd
    blocks = split(image, homogeneity=homogeneity, threshold=split_threshold, significance=significance, noise_sd=sd)
    graph = adjacency_graph(image, blocks)
    if merge_threshold is None and regions is None:
        merge_threshold = default_threshold(criterion, image.affine) if homogeneity == "noise" else 0.0
    log.info("%s: %d blocks, %d adjacent pairs", image.name or "image", graph.labels.size, len(graph.edges))
    edges, sizes, means = graph.edges, graph.sizes, graph.means
    areas_mm2 = graph.areas_mm2 if criterion == "mumford_shah" else np.zeros(0)
    del graph  # free the memory that merging does not need
    scale = None if sd is None else tuple(value if value > 0 else 1.0 for value in sd)
    packed = pack(edges, areas_mm2, sizes, means, criterion=criterion, noise_sd=scale)
    del edges, sizes, means
    merges = merge_packed(packed, threshold=merge_threshold, regions=regions)
    del packed
    region_of = merges.cut(merges.count - merges.kept.size)
    _renumber(blocks.array.reshape(-1), region_of)  # in place: a second volume would be the memory peak
    return blocks, merges


def initial_blocks(
    image: Image,
    *,
    homogeneity: Homogeneity = "noise",
    split_threshold: float | None = None,
    significance: float = 0.001,
    **merging: object,
) -> LabelMap:
    """Split the volume into the blocks that `partition` merges. Parameters of the merging are ignored."""
    return split(image, homogeneity=homogeneity, threshold=split_threshold, significance=significance)


@method("regions", companions={"hierarchy": hierarchy, "blocks": initial_blocks})
def partition(
    image: Image,
    *,
    homogeneity: Homogeneity = "noise",
    split_threshold: float | None = None,
    significance: float = 0.001,
    criterion: Criterion = "ward",
    merge_threshold: float | None = None,
    regions: int | None = None,
    noise_sd: Data[tuple[float, ...] | None] = None,
) -> LabelMap:
    """Partition a volume into homogeneous regions by splitting and merging.

    Parameters
    ----------
    image : Image
        Volume of any size and spacing, with one or several channels.
    homogeneity : {"noise", "range", "variance"}
        Criterion for a homogeneous block; see `octree.split`.
    split_threshold : float, optional
        Threshold of the criterion: for "range" in units of the image, for "variance" in their square.
    significance : float
        For "noise": the probability that a block of pure noise is split.
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge; see `merging.merge`.
    merge_threshold : float, optional
        Largest cost of a merge. With "noise" in units of the noise: means are first divided by its standard deviation.
        If neither this nor `regions` is given: `default_threshold` with "noise", otherwise 0.
    regions : int, optional
        Number of regions at which merging ends.
    noise_sd : tuple of float, optional
        Noise of each channel, for "noise". Default: estimated.

    Returns
    -------
    LabelMap
        Regions 1..R, connected by faces, numbered by their first voxels in C order.

    Raises
    ------
    InputError
        A parameter is missing or out of range, or `regions` exceeds the number of blocks.

    References
    ----------
    .. [1] Horowitz, Pavlidis, Picture segmentation by a tree traversal algorithm, J. ACM 23, 1976.

    Examples
    --------
    An 8 x 8 slice split and merged with a range of 0: its upper right quadrant is not split, and in the
    result the sevens are one region of 26 pixels.

    >>> rows = ["01007777", "10227777", "02227777", "44227777", "00113377", "11223777", "24305777", "23355077"]
    >>> pixels = np.array([[float(digit) for digit in row] for row in rows])
    >>> image = Image(pixels[..., None], np.eye(4))
    >>> split(image, homogeneity="range", threshold=0).array[..., 0]
    array([[ 1,  2,  3,  4,  5,  5,  5,  5],
           [ 6,  7,  8,  9,  5,  5,  5,  5],
           [10, 11, 12, 12,  5,  5,  5,  5],
           [13, 14, 12, 12,  5,  5,  5,  5],
           [15, 16, 17, 18, 19, 20, 21, 21],
           [22, 23, 24, 25, 26, 27, 21, 21],
           [28, 29, 30, 31, 32, 33, 34, 34],
           [35, 36, 37, 38, 39, 40, 34, 34]], dtype=int32)
    >>> merged = partition(image, homogeneity="range", split_threshold=0, merge_threshold=0).array[..., 0]
    >>> merged
    array([[ 1,  2,  3,  3,  4,  4,  4,  4],
           [ 5,  6,  7,  7,  4,  4,  4,  4],
           [ 8,  7,  7,  7,  4,  4,  4,  4],
           [ 9,  9,  7,  7,  4,  4,  4,  4],
           [10, 10, 11, 11, 12, 12,  4,  4],
           [13, 13, 14, 14, 12,  4,  4,  4],
           [15, 16, 17, 18, 19,  4,  4,  4],
           [15, 17, 17, 19, 19, 20,  4,  4]], dtype=int32)
    >>> int((merged == merged[0, 7]).sum())
    26
    """
    return hierarchy(
        image,
        homogeneity=homogeneity,
        split_threshold=split_threshold,
        significance=significance,
        criterion=criterion,
        merge_threshold=merge_threshold,
        regions=regions,
        noise_sd=noise_sd,
    )[0]


@njit(cache=True)
def _renumber(flat: Int32, region_of: Int32) -> None:
    for v in range(flat.size):
        flat[v] = region_of[flat[v] - 1]


def default_threshold(criterion: Criterion, affine: Float64) -> float:
    """Choose the default threshold of a criterion in units of the noise, for voxels of the given affine.

    "mean_difference": 3 standard deviations. "ward": 400 variances, for example 16 voxels that differ by 5 standard
    deviations. This is far above the chi-square of a pair of equal regions, since the cheapest of many merges is
    always chosen, which selects random differences.
    "mumford_shah": 30 variances per voxel face (of mean area), so that a single voxel must differ by 13 standard
    deviations, and a voxel of a plane between two large regions by 6.

    Parameters
    ----------
    criterion : {"ward", "mean_difference", "mumford_shah"}
        Cost of a merge.
    affine : (4, 4) float64
        Affine of the volume.

    Returns
    -------
    float
    """
    face_mm2 = float(np.cbrt(np.linalg.det(affine[:3, :3])) ** 2)
    defaults: dict[Criterion, float] = {"mean_difference": 3.0, "ward": 400.0, "mumford_shah": 30.0 / face_mm2}
    return defaults[criterion]
