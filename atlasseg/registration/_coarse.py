"""Input checks, initial transforms and coarse grids of the methods that search without a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.transforms import Transform
from atlasseg.volume import Float32, Grid, Image, Mask


def check_starts_and_masks(
    fixed: Image,
    moving: Sequence[Image],
    initial: Sequence[Transform] | None,
    fixed_mask: Mask | None,
    moving_masks: Sequence[Mask | None] | None,
) -> tuple[list[Transform], list[Mask | None]]:
    """Check the masks, and compute an affine registration per moving image if `initial` is None.

    Raises
    ------
    InputError
        The lists differ in length, or a mask is empty.
    GeometryError
        A mask is not on its image's grid.
    """
    masks: list[Mask | None] = [None] * len(moving) if moving_masks is None else list(moving_masks)
    if len(masks) != len(moving) or (initial is not None and len(initial) != len(moving)):
        raise InputError(
            f"expected a moving mask and an initial transform per moving image ({len(moving)}), got {len(masks)} masks "
            f"and {'no' if initial is None else len(initial)} transforms"
        )
    for image, mask in ((fixed, fixed_mask), *zip(moving, masks, strict=True)):
        if mask is None:
            continue
        if not mask.grid.matches(image.grid):
            raise GeometryError(
                f"mask of {image.name!r}: expected the shape of its image, {image.shape}, got {mask.shape}"
            )
        if not mask.array.any():
            raise InputError(f"the mask of {image.name!r} is empty: expected voxels inside, got none")
    if initial is not None:
        return list(initial), masks
    from atlasseg.registration.affine import register

    return register(fixed, moving, fixed_mask=fixed_mask, moving_masks=moving_masks), masks


def get_first_channel(image: Image) -> Float32:
    """Return the first channel, (I, J, K), contiguous."""
    return np.ascontiguousarray(image.channels[..., 0])


def coarsen(grid: Grid, spacing_mm: float) -> Grid:
    """Coarsen a grid over the same box to voxels of at least `spacing_mm` along each axis."""
    factors = np.maximum(spacing_mm / grid.spacing_mm, 1)
    shape = np.maximum(np.ceil(np.array(grid.shape) / factors - 1e-6), 1).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * factors
    affine[:3, 3] = grid.centre_mm - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
