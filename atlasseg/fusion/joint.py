"""Joint label fusion: weights that account for errors that candidates share; the most accurate general choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from atlasseg.device import Device, resolve_device
from atlasseg.errors import InputError
from atlasseg.fusion import _joint_numba
from atlasseg.fusion._encoded_votes import EncodedVotes, find_disagreement
from atlasseg.fusion._patches import PatchSearch, as_radius, dilate, expand_masks
from atlasseg.fusion.contrast import Contrast, in_contrast
from atlasseg.methods import method
from atlasseg.volume import Atlas, Float32, Image, Int32, Int64, LabelMap, ProbabilityMap


@method("fusion")
def fuse(
    target: Image,
    candidates: Sequence[Atlas],
    *,
    alpha: float = 0.1,
    beta: float = 2.0,
    patch_radius_voxels: int | tuple[int, int, int] = 2,
    search_radius_voxels: int | tuple[int, int, int] = 3,
    nonnegative: bool = True,
    device: Device = "auto",
    contrast: Contrast = "auto",
) -> ProbabilityMap:
    r"""Fuse by weights that minimise the expected error of the vote, including errors that candidates share.

    **Patch search.** For each voxel :math:`x` and candidate :math:`i`, all patches of the search window around
    :math:`x` are compared with the target's patch :math:`N(x)` by correlation (the squared difference of patches
    scaled to mean 0 and standard deviation 1). The most similar patch is used; of equally similar ones, the one with
    the smallest offset.

    **Error model** [1]_. The differences of these patches estimate how likely two candidates are to be wrong
    together:

    .. math::

        M_x(i, j) = \left[ \frac{1}{P - 1} \sum_{y \in N(x)} |T(y) - A_i(y)| \, |T(y) - A_j(y)| \right]^{\beta}

    :math:`P` is the number of voxels of a patch times the number of channels.

    **Weights** [1]_. The weights that sum to 1 and have the least expected error are

    .. math::

        w_x = \frac{(M_x + \alpha I)^{-1} \mathbf{1}}{\mathbf{1}^{\top} (M_x + \alpha I)^{-1} \mathbf{1}}

    **Vote** [2]_. Each candidate casts its weighted votes for its whole patch, so that a voxel is decided by all
    patches that contain it. Only voxels on which the candidates disagree are fused; the others keep their label.

    Parameters
    ----------
    target : Image
        The scan, with one or several channels. Its intensities need no normalisation: patches are normalised.
    candidates : sequence of Atlas
        On the target's grid, with as many channels, their labels hard or fractions. A candidate's patches stay in its
        mask (its field of view), and it does not vote outside.
    alpha : float
        Regularisation, above 0: the larger, the more equal the weights. It is added to the diagonal of M.
    beta : float
        Exponent, above 0: the larger, the more similar patches are preferred.
    patch_radius_voxels : int or three ints
        Radius of a patch: it has ``2 r + 1`` voxels along each axis. Beyond the grid, the outermost voxels are
        repeated.
    search_radius_voxels : int or three ints
        Largest offset of a patch along each axis.
    nonnegative : bool
        Minimise under the constraint that weights are 0 or more. Otherwise negative weights of the closed form are set
        to 0 and the others are scaled to sum to 1.
    device : {'auto', 'cpu', 'cuda'}
        "auto": CUDA if there is a GPU, else CPU.
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
        There is no candidate, numbers of channels differ, or a parameter is out of range.
    GeometryError
        A candidate is not on the target's grid.
    MissingLibraryError
        A GPU is asked for by name, and torch is not installed.

    References
    ----------
    .. [1] Wang et al. (2013), Multi-atlas segmentation with joint label fusion, IEEE TPAMI 35(3):611-623.
    .. [2] Wang and Yushkevich (2013), Multi-atlas segmentation with joint label fusion and corrective learning: an
       open source implementation, Frontiers in Neuroinformatics 7:27.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}: expected a number above 0, got {value!r}")

    candidates = in_contrast(target, candidates, contrast)
    place = resolve_device(device)
    images = [_move_channels_first(atlas.image) for atlas in candidates]
    patch = as_radius(patch_radius_voxels, "patch_radius_voxels")
    window = as_radius(search_radius_voxels, "search_radius_voxels")
    certain, disagreement = find_disagreement(candidates)
    labels = np.unique(np.concatenate([atlas.label_values for atlas in candidates]))
    if not disagreement.any():
        return ProbabilityMap.from_labels(LabelMap(certain, target.affine), label_values=labels, name=target.name)
    masks = [None if atlas.mask is None else atlas.mask.array for atlas in candidates]
    inside = expand_masks(masks, len(candidates), target.shape)
    # a voxel is decided by every patch that holds it, so weights are needed a patch's radius around the disagreement
    around = dilate(disagreement, patch)
    search = PatchSearch(_move_channels_first(target), around, patch_radius_voxels, search_radius_voxels)
    weights_of, votes_of = _choose_engine(place)
    chosen, weights = weights_of(search, images, inside, alpha=alpha, beta=beta, nonnegative=nonnegative)
    voxels = np.flatnonzero(disagreement)
    index = np.stack(np.unravel_index(voxels, target.shape))
    encoded = EncodedVotes.gather(candidates, index.min(axis=1) - window, index.max(axis=1) + window + 1)
    counts, slots, values = votes_of(search, chosen, weights, encoded, voxels)
    return ProbabilityMap.from_entries(
        certain,
        target.affine,
        np.repeat(voxels, counts),
        encoded.label_values[slots],
        values,
        label_values=labels,
        name=target.name,
    )


def _choose_engine(
    place: Literal["cpu", "cuda"],
) -> tuple[Callable[..., tuple[Int32, Float32]], Callable[..., tuple[Int64, Int32, Float32]]]:
    """The two halves of the computation: weights, then votes."""
    if place == "cuda":
        from atlasseg.fusion import _joint_torch

        return _joint_torch.joint_weights, _joint_torch.count_votes
    return _joint_numba.joint_weights, _joint_numba.count_votes


def _move_channels_first(image: Image) -> Float32:
    return np.ascontiguousarray(np.moveaxis(image.channels, -1, 0))
