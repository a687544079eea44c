"""Free-form deformation: cubic B-splines that climb local correlation, on lattices refined from level to level."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from atlasseg.errors import InputError
from atlasseg.registration._engine import dense, freeform
from atlasseg.registration._engine.batch import Pair, carried, each, pairs, schedule_of
from atlasseg.registration._engine.linear import register_linear
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Image, Mask

logger = logging.getLogger(__name__)


def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Sequence[Transform] | None = None,
    fixed_mask: Mask | None = None,
    moving_masks: Sequence[Mask | None] | None = None,
    spacing_voxels: float = 4.0,
    shrink_factors: tuple[int, ...] = (),
    iterations: tuple[int, ...] = (60, 60, 60, 30),
    radius_voxels: int = 2,
    bending: float = 0.1,
    folding: float = 0.02,
    step_voxels: float = 0.25,
    tolerance: float = 1e-4,
) -> list[Transform]:
    """Register each moving image to the fixed one by a cubic B-spline free-form deformation.

    The mean squared local correlation less the energies is climbed by Adam, its step normalised by the second moment
    of each control point's whole gradient vector. All gradients are in closed form. Deterministic: the same bits for
    any number of threads and whatever other images are registered with it.

    Parameters
    ----------
    fixed : Image
        The target.
    moving : sequence of Image
        The atlases' images, each on its own grid, of as many channels.
    initial : sequence of Transform, optional
        Fixed to moving points, one for each image: where to start; by default an affine registration.
    fixed_mask, moving_masks : Mask, optional
        Outside them voxels do not count. Without one, empty space around the foreground does not.
    spacing_voxels : float
        Distance of the control points at each level, in its voxels, 1 or above.
    shrink_factors : tuple of int
        Voxel size of each level as a multiple of the image's, coarse to fine; by default powers of two from 8 to 1,
        as far as the foreground keeps 16 voxels.
    iterations : tuple of int
        At most so many at each level, coarse to fine; with default levels the last ones count.
    radius_voxels : int
        The window of the local correlation has ``2 radius_voxels + 1`` voxels a side.
    bending : float
        Weight, 0 or above, of the mean squared second derivatives of the displacement, lengths in the finest voxels.
    folding : float
        Weight, 0 or above, of the mean squared logarithm of the Jacobian determinant.
    step_voxels : float
        About the largest step of a control point in an iteration, in voxels of the level.
    tolerance : float
        A level ends when ten iterations gain less than this in the mean squared local correlation.

    Returns
    -------
    list of Transform
        Fixed to moving RAS+ mm points, `initial` included: an affine after a `BSplineField` over the fixed grid.

    Raises
    ------
    InputError
        An image is constant, a mask empty, numbers of images, masks, transforms or channels differ, a parameter is
        out of its range.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.

    References
    ----------
    .. [1] Rueckert, D., et al. (1999). Nonrigid registration using free-form deformations. IEEE TMI 18(8), 712-721
       (equations 3 and 4).
    .. [2] Modat, M., et al. (2010). Fast free-form deformation using graphics processing units. Comput Methods Programs
       Biomed 98(3), 278-284.
    """
    if spacing_voxels < 1 or step_voxels <= 0 or bending < 0 or folding < 0 or radius_voxels < 1:
        raise InputError(
            "spacing_voxels and radius_voxels must be 1 or above, step_voxels above 0, bending and folding 0 or above; "
            f"got {spacing_voxels}, {radius_voxels}, {step_voxels}, {bending} and {folding}"
        )
    prepared = pairs(fixed, moving, initial, fixed_mask, moving_masks)
    if not prepared:
        return []
    shrinks, counts = schedule_of(prepared[0].fixed, shrink_factors, iterations)
    schedule = freeform.Schedule(
        shrinks, counts, spacing_voxels, radius_voxels, bending, folding, step_voxels, tolerance
    )

    def solve(pair: Pair) -> Transform:
        pair = carried(pair)
        matrix = pair.matrix_mm
        if matrix is None:
            matrix, _ = register_linear(pair.fixed, pair.moving, "affine", None, known=pair.known)
        spline, value = freeform.solve(pair.fixed, pair.moving, matrix, schedule, fixed.grid, known=pair.known)
        logger.info("%s: mean squared local correlation %.3f", pair.moving.name or "a moving image", value)
        return (pair.initial or Affine(matrix)) @ spline

    needed = dense.bytes_needed(prepared[0].fixed.counted.size, len(prepared[0].fixed.channels))
    return each(prepared, solve, bytes_needed=needed)
