"""Discrete search for large deformations on self-similarity descriptors, by coupled convex optimisation.

It serves as the start of a deformable registration rather than as one in itself. The two images need not have the
same contrast, because they are compared by self-similarity descriptors [3]_. All displacements of a search window are
tried at coarse nodes, so that it needs no good start. A smooth field of coarse nodes is found by coupled convex
optimisation [1]_, in both directions [2]_.

References
----------
.. [1] Heinrich, M. P., Papiez, B. W., Schnabel, J. A., Handels, H. (2014). Non-parametric discrete registration with
   convex optimisation. WBIR, LNCS 8545, 51-61.
.. [2] Siebert, H., Hansen, L., Heinrich, M. P. (2021). Fast 3D registration with accurate optimisation and little
   learning for Learn2Reg 2021. arXiv:2112.03053.
.. [3] Heinrich, M. P., et al. (2013). Towards realtime multimodal fusion for image-guided interventions using
   self-similarities. MICCAI, LNCS 8149, 187-194.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.registration._coarse import check_starts_and_masks, coarsen
from atlasseg.registration._discrete import search
from atlasseg.registration._engine.pyramid import normalise_weights
from atlasseg.registration._mind import mind_ssc
from atlasseg.resampling import coverage, resample
from atlasseg.transforms import Affine, DisplacementField, Transform
from atlasseg.volume import Bool, Float32, Grid, Image, Mask

logger = logging.getLogger(__name__)

CELL_VOXELS = 3
"""Voxels along each axis over which descriptors are averaged at a node."""


@method("registration")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    node_voxels: tuple[float, ...] = (6.0,),
    radius_nodes: int = 3,
    smoothness: float = 1.0,
    symmetric: bool = True,
    channel_weights: tuple[float, ...] = (),
) -> list[Transform]:
    """Register by trying every displacement of a window at coarse nodes, and smoothing what is best.

    Parameters
    ----------
    fixed : Image
        The target.
    moving : sequence of Image
        The atlases; each is registered on its own.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from fixed to moving points. Default: an affine registration.
    fixed_mask : Mask, optional
        Nodes outside it have no cost of their own; on the fixed image's grid.
    moving_masks : sequence of Mask or None, optional
        Where each moving image is known.
    node_voxels : sequence of float
        Spacing of the nodes, coarse to fine, in units of the smallest spacing of the fixed image. One search is done
        for each entry.
    radius_nodes : int
        Largest displacement to search along each axis, in nodes.
    smoothness : float
        Weight of the coupling to the smoothed field; 1 as published.
    symmetric : bool
        Search in both directions and keep the consistent part; takes twice the time.
    channel_weights : sequence of float
        Weight of each channel in the squared distance of the descriptors; by default all weigh the same.

    Returns
    -------
    list of Transform
        moving_from_fixed, one per moving image: the initial transform after a displacement field of coarse nodes.

    Raises
    ------
    InputError
        A parameter is out of range, the lists differ in length, numbers of channels differ, or a mask is empty.
    GeometryError
        A mask is not on its image's grid.
    """
    if radius_nodes < 1 or smoothness < 0 or not node_voxels or min(node_voxels) < 1:
        raise InputError(
            f"expected node_voxels of at least 1, radius_nodes of at least 1 and smoothness of at least 0, got "
            f"{node_voxels}, {radius_nodes} and {smoothness}"
        )
    channels = fixed.channels.shape[3]
    weights = normalise_weights(channel_weights, channels)
    for image in moving:
        count = image.channels.shape[3]
        if count != channels:
            raise InputError(f"image {image.name!r}: expected {channels} channels, as in {fixed.name!r}, got {count}")
    found, masks = check_starts_and_masks(fixed, moving, initial, fixed_mask, moving_masks)
    for apart in node_voxels:
        grid = _make_descriptor_grid(fixed.grid, apart, radius_nodes)
        nodes = _make_node_grid(grid)
        target, target_known = _compute_descriptors(fixed, fixed_mask, grid, Affine.identity(), weights)
        for n, (image, mask) in enumerate(zip(moving, masks, strict=True)):
            source, source_known = _compute_descriptors(image, mask, grid, found[n], weights)
            if not source_known.any():
                logger.warning("%s: no overlap with the fixed image: the initial transform is kept", image.name)
                continue
            field = search(
                target,
                source,
                fixed_known=target_known,
                moving_known=source_known,
                radius_nodes=radius_nodes,
                smoothness=smoothness,
                symmetric=symmetric,
            )
            field_mm = (field @ nodes.affine[:3, :3].T).astype(np.float32)
            found[n] = found[n] @ DisplacementField(field_mm, nodes.affine)
    return found


def _make_descriptor_grid(fixed: Grid, node_voxels: float, radius_nodes: int) -> Grid:
    """Make the grid of the descriptors: whole cells, with `radius_nodes` more cells on every side."""
    grid = coarsen(fixed, node_voxels / CELL_VOXELS * float(fixed.spacing_mm.min()))
    nodes = -(-np.array(grid.shape) // CELL_VOXELS) + 2 * radius_nodes
    added = nodes * CELL_VOXELS - np.array(grid.shape)
    return grid.cropped(-(added // 2), np.array(grid.shape) + added - added // 2)


def _make_node_grid(grid: Grid) -> Grid:
    """Make the grid of the cell centres of a grid of whole cells."""
    affine = grid.affine.copy()
    affine[:3, :3] *= CELL_VOXELS
    affine[:3, 3] += grid.affine[:3, :3] @ np.full(3, (CELL_VOXELS - 1) / 2)
    a, b, c = (n // CELL_VOXELS for n in grid.shape)
    return Grid((a, b, c), affine)


def _compute_descriptors(
    image: Image, mask: Mask | None, grid: Grid, transform: Transform, weights: Sequence[float]
) -> tuple[Float32, Bool]:
    """Compute the descriptors of the nodes, (A, B, C, 12 N), and whether half of each cell is known, (A, B, C).

    The descriptors of N channels are scaled so that squared distances are weighted means over the channels.
    """
    seen = resample(image, grid, transform, antialias=True).channels
    described = [
        mind_ssc(np.ascontiguousarray(seen[..., c])) * np.float32(np.sqrt(weight / len(weights)))
        for c, weight in enumerate(weights)
    ]
    known = coverage(image.grid, grid, transform).array
    if mask is not None:
        known = known & resample(mask, grid, transform).array
    share = _average_cells(known[..., None].astype(np.float32))[..., 0]
    return _average_cells(np.concatenate(described, axis=3)), share >= 0.5


def _average_cells(values: Float32) -> Float32:
    """Average (I, J, K, N) over each cell, to (A, B, C, N)."""
    a, b, c = (n // CELL_VOXELS for n in values.shape[:3])
    cells = values.reshape(a, CELL_VOXELS, b, CELL_VOXELS, c, CELL_VOXELS, values.shape[3])
    return np.ascontiguousarray(cells.mean(axis=(1, 3, 5), dtype=np.float32))
