"""What the methods that search without a gradient share: where they start, and grids of larger voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.transforms import Transform
from atlasseg.volume import Float32, Grid, Image, Mask


def starts_and_masks(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
) -> tuple[list[Transform], list[Mask | None]]:
    """A start and a mask, or None, for each moving image; without `initial` the starts are affine registrations.

    Raises
    ------
    InputError
        The lists do not pair up, or a mask is empty.
    GeometryError
        A mask is not on its image's grid.
    """
    masks: list[Mask | None] = [None] * len(moving) if moving_masks is None else list(moving_masks)
    if len(masks) != len(moving) or (initial is not None and len(initial) != len(moving)):
        raise InputError(
            f"{len(moving)} moving images, {len(masks)} moving masks and "
            f"{'no' if initial is None else len(initial)} initial transforms: one for each is wanted"
        )
    for image, mask in ((fixed, fixed_mask), *zip(moving, masks, strict=True)):
        if mask is None:
            continue
        if not mask.grid.matches(image.grid):
            raise GeometryError(f"the mask of {image.name!r} has shape {mask.shape}, its image {image.shape}")
        if not mask.array.any():
            raise InputError(f"the mask of {image.name!r} is empty")
    if initial is not None:
        return list(initial), masks
    from atlasseg.registration.affine import register

    return register(fixed, moving, fixed_mask=fixed_mask, moving_masks=moving_masks), masks


def first_channel(image: Image) -> Float32:
    """(I, J, K) contiguous."""
    return np.ascontiguousarray(image.channels[..., 0])


def coarser(grid: Grid, spacing_mm: float) -> Grid:
    """A grid over the same box, of voxels at least `spacing_mm` a side where the grid's are smaller."""
    factors = np.maximum(spacing_mm / grid.spacing_mm, 1)
    shape = np.maximum(np.ceil(np.array(grid.shape) / factors - 1e-6), 1).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factors
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
