"""Nearest patches: the k most similar patches of all atlases vote; tolerates imperfect registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from atlasseg.errors import InputError
from atlasseg.fusion._encoded_votes import EncodedVotes
from atlasseg.fusion._intensities import Standardised
from atlasseg.fusion._joint_numba import CHUNK
from atlasseg.fusion._joint_numba import _count_votes as count_patch_votes
from atlasseg.fusion._patch_match import run_patch_match
from atlasseg.fusion._patches import NearestPatches, dilate, find_nearest_patches
from atlasseg.fusion._votes import Votes
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.threads import map_in_threads
from atlasseg.volume import Atlas, Bool, Float32, Float64, Image, Int32, Int64, ProbabilityMap, take_entries

SMALLEST_DISTANCE = 1e-6
"""Minimum distance per voxel on standardised intensities: keeps the weights finite for identical patches."""


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    search: Literal["exact", "patch_match"] = "exact",
    count: int = 10,
    patch_radius_voxels: int = 2,
    search_radius_voxels: int = 3,
    whole_patch: bool = True,
    bandwidth: float = 1.0,
    iterations: int = 5,
    seed: int = 0,
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by the votes of the nearest patches.

    For each voxel :math:`x`, the `count` patches of all candidates inside the search window that are nearest to the
    target's patch vote. The weights are those of non-local means [1]_ [2]_:

    .. math::

        w = \exp\left( -\frac{d^2 - d_1^2}{h(x)^2} \right), \qquad
        h(x)^2 = \textit{bandwidth} \cdot (d_1^2 + \epsilon)

    :math:`d^2` is the sum of squared differences of a patch and the target's patch, and :math:`d_1^2` that of the
    nearest patch, whose weight is 1. A patch votes for the label of its centre [1]_ or, with `whole_patch`, for all
    its voxels ([2]_, multipoint). Intensities are standardised first, so scans may have any intensity scale.

    The search is exhaustive (``exact``) or by PatchMatch (``patch_match``, [3]_). PatchMatch makes `count`
    independent runs for each voxel. Each run starts from random patches, takes over good offsets from its neighbours
    and samples at random around them. The random numbers depend only on `seed`, the voxel, the run and the iteration.

    Parameters
    ----------
    target : Image
        The scan, of one or several channels.
    candidates : sequence of Atlas
        On the target's grid, with as many channels. Patches are centred inside a candidate's mask.
    search : str
        Search for the nearest patches: `exact` or `patch_match`.
    count : int
        Number k of patches that vote.
    patch_radius_voxels : int
        A patch has 2 r + 1 voxels along each axis.
    search_radius_voxels : int
        Largest offset of a patch along each axis.
    whole_patch : bool
        Patches vote for all their voxels; otherwise for their centre only.
    bandwidth : float
        Factor of h^2, above 0: the smaller, the more the nearest patches decide.
    iterations : int
        Number of sweeps of PatchMatch.
    seed : int
        Seed of PatchMatch, 0 or more.
    contrast : {"auto", "same", "different"}
        Whether the candidates have the contrast of the target. "auto": test it; "same": assume it; "different": assume
        another contrast. Candidates of another contrast are first mapped to that of the target, see
        `atlasseg.fusion.contrast.match_contrast`.

    Returns
    -------
    ProbabilityMap
        On the target's grid.

    Raises
    ------
    InputError
        There is no candidate, channels differ, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.

    References
    ----------
    .. [1] Coupe et al. (2011), Patch-based segmentation using expert priors: application to hippocampus and ventricle
       segmentation, NeuroImage 54(2):940-954.
    .. [2] Rousseau et al. (2011), A supervised patch-based approach for human brain labeling, IEEE TMI
       30(10):1852-1862.
    .. [3] Giraud et al. (2016), An optimized PatchMatch for multi-scale and multi-feature label fusion, NeuroImage
       124:770-782.
    """
    if search not in ("exact", "patch_match"):
        raise InputError(f"nearest_patches: search: expected exact or patch_match, got {search!r}")
    if count < 1 or patch_radius_voxels < 0 or search_radius_voxels < 0 or not bandwidth > 0:
        raise InputError(
            "nearest_patches: expected count of at least 1, radii of 0 or more and bandwidth above 0, got "
            f"{count}, {patch_radius_voxels}, {search_radius_voxels} and {bandwidth}"
        )
    if iterations < 1 or seed < 0:
        raise InputError(
            f"nearest_patches: expected iterations of at least 1 and seed of 0 or more, got {iterations}, {seed}"
        )
    candidates = in_contrast(target, candidates, contrast)
    votes = Votes.gather(target, candidates)
    if votes.voxels.size == 0:
        return votes.cast(name=target.name)
    reach = 2 * patch_radius_voxels + search_radius_voxels
    images = Standardised.around(target, candidates, votes.voxels, margin_voxels=reach)
    where = np.zeros(images.target.shape[:3], bool)
    where.reshape(-1)[images.inside] = True
    if whole_patch and patch_radius_voxels:
        where = dilate(where, np.full(3, patch_radius_voxels))
    pairs = list(images)
    arrays = [np.moveaxis(image, -1, 0) for image, _ in pairs]
    masks = [mask for _, mask in pairs]
    scan = np.moveaxis(images.target, -1, 0)
    find: Callable[..., NearestPatches] = (
        find_nearest_patches if search == "exact" else partial(run_patch_match, iterations=iterations, seed=seed)
    )
    found = find(
        scan, arrays, where, count=count, patch_radius_voxels=patch_radius_voxels,
        search_radius_voxels=search_radius_voxels, inside=masks,
    )  # fmt: skip
    weights = _weigh(found, bandwidth, SMALLEST_DISTANCE * (2 * patch_radius_voxels + 1) ** 3)
    radius = patch_radius_voxels if whole_patch else 0
    counts, labels, values = _vote(found, weights, where, images.box, candidates, votes, radius)
    voxels = np.repeat(votes.voxels, counts)
    silent = votes.voxels[counts == 0]
    if silent.size:  # no patch in the search window: the candidates vote without search
        there = np.isin(votes.voxels, silent)
        offsets, slots = take_entries(votes.slot_offsets, np.flatnonzero(there))
        voxels = np.concatenate((voxels, np.repeat(silent, np.diff(offsets))))
        labels = np.concatenate((labels, votes.label_values[votes.slot_labels[slots]]))
        values = np.concatenate((values, votes.tally()[slots]))
    return ProbabilityMap.from_entries(
        votes.certain, target.affine, voxels, labels, values, label_values=votes.label_values, name=target.name
    )


def _weigh(found: NearestPatches, bandwidth: float, floor: float) -> Float64:
    """Weight of each patch by its distance beyond the nearest one, relative to that one; `floor` keeps it finite."""
    distance = np.maximum(-found.scores, 0)
    nearest = np.where(np.isfinite(distance[:, :1]), distance[:, :1], 0)
    weights: Float64 = np.exp(-(distance - nearest) / (bandwidth * (nearest + floor)))
    weights[found.candidate < 0] = 0
    return weights


def _vote(
    found: NearestPatches,
    weights: Float64,
    where: Bool,
    box: tuple[slice, slice, slice],
    candidates: Sequence[Atlas],
    votes: Votes,
    radius: int,
) -> tuple[Int64, Int32, Float32]:
    """Labels with a vote at each active voxel (number, values, fractions); patches vote up to `radius`."""
    number = np.full(where.shape, -1, np.int32)
    number.reshape(-1)[found.voxels] = np.arange(found.voxels.size)
    number = np.pad(number, radius, constant_values=-1)
    strides = _strides(number)
    near = (np.argwhere(np.ones([2 * radius + 1] * 3, bool)) - radius) @ strides

    corner = np.array([part.start for part in box])
    window = found.offsets.max(axis=0)
    encoded = EncodedVotes.gather(candidates, corner - window, corner + where.shape + window)
    size = encoded.codes[0].size
    code_strides = _strides(encoded.codes[0])
    # one flat array of codes: a patch is at the first code of its candidate plus its offset
    moves = (np.arange(len(candidates))[:, None] * size + found.offsets @ code_strides).reshape(-1)
    patches = np.where(found.candidate >= 0, found.candidate * len(found.offsets) + found.chosen, 0)
    codes = np.broadcast_to(encoded.codes.reshape(1, -1), (patches.shape[1], encoded.codes.size))
    index = np.stack(np.unravel_index(votes.voxels, votes.grid.shape), axis=1) - corner
    at_number = (index + radius) @ strides
    at_code = (index + window) @ code_strides
    background = int(np.searchsorted(encoded.label_values, 0))

    def count(first: int) -> tuple[Int64, Int32, Float32]:
        part = slice(first, first + CHUNK)
        counted: tuple[Int64, Int32, Float32] = count_patch_votes(
            at_number[part], at_code[part], number.reshape(-1), near, moves, patches.astype(np.int32),
            weights.astype(np.float32), codes, encoded.lists.offsets, encoded.lists.labels, encoded.lists.values,
            encoded.unknown, background,
        )  # fmt: skip
        return counted

    parts = map_in_threads(count, range(0, votes.voxels.size, CHUNK))
    counts, labels, values = (np.concatenate([part[n] for part in parts]) for n in range(3))
    return counts, encoded.label_values[labels], values


def _strides(array: Int32) -> Int64:
    """Steps, in elements, along the three axes of a C-ordered array."""
    return np.array([array.shape[1] * array.shape[2], array.shape[2], 1])
