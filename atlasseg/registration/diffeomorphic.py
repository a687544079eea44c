"""Diffeomorphic registration by composed updates on local correlation, coarse to fine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from atlasseg.device import Device, resolved
from atlasseg.errors import InputError
from atlasseg.registration._engine import dense
from atlasseg.registration._engine.batch import Pair, each, field_transform, pairs, schedule_of
from atlasseg.registration._engine.linear import register_linear
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Float32, Float64, Image, Mask

logger = logging.getLogger(__name__)


def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Sequence[Transform] | None = None,
    fixed_mask: Mask | None = None,
    moving_masks: Sequence[Mask | None] | None = None,
    shrink_factors: tuple[int, ...] = (),
    iterations: tuple[int, ...] = (60, 60, 60, 50),
    radius_voxels: int = 2,
    update_sigma_voxels: float = 1.7,
    field_sigma_voxels: tuple[float, ...] = (0.7, 0.7, 0.5, 0.4),
    step_voxels: float = 1.0,
    tolerance: float = 1e-4,
    device: Device = "auto",
) -> list[Transform]:
    """Register each moving image to the fixed one by a smooth, invertible displacement.

    Each iteration takes the derivative of the mean squared local correlation for a small step before the present warp,
    smooths it by a Gaussian, scales its longest vector to `step_voxels`, composes it with the field, and smooths the
    field a little. Deterministic: the same bits for any number of threads and whatever other images are registered.

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
    shrink_factors : tuple of int
        Voxel size of each level as a multiple of the image's, coarse to fine; by default powers of two from 8 to 1,
        as far as the foreground keeps 16 voxels.
    iterations : tuple of int
        At most so many at each level, coarse to fine; with default levels the last ones count.
    radius_voxels : int
        The window of the local correlation has ``2 radius_voxels + 1`` voxels a side.
    update_sigma_voxels : float
        Standard deviation of the smoothing of each update, in voxels of the level.
    field_sigma_voxels : tuple of float
        Of the smoothing of the field after each update, in voxels of the level, coarse to fine; the last ones count.
    step_voxels : float
        Longest displacement of an update, in voxels of the level, above 0.
    tolerance : float
        A level ends when ten iterations gain less than this in the mean squared local correlation.

    device : {"auto", "cpu", "cuda"}
        "cuda": all images in one tensor, through torch. "auto": CUDA where there is one, else the compiled CPU kernels.

    Returns
    -------
    list of Transform
        Fixed to moving RAS+ mm points, `initial` included: an affine after a displacement field on the fixed grid.

    Raises
    ------
    InputError
        An image is constant, a mask empty, numbers of images, masks, transforms or channels differ, a parameter is
        out of its range, or CUDA is asked for and absent, or out of memory with one image.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.

    References
    ----------
    .. [1] Yushkevich, P. A., et al. (2016). Fast automatic segmentation of hippocampal subfields and medial temporal
       lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI. Alzheimer's & Dementia 12(7), P126-P127 (greedy).
    .. [2] Avants, B. B., Epstein, C. L., Grossman, M., Gee, J. C. (2008). Symmetric diffeomorphic image registration
       with cross-correlation. Medical Image Analysis 12(1), 26-41 (equations 7 and 8: the similarity).
    """
    if step_voxels <= 0 or min(update_sigma_voxels, *field_sigma_voxels) < 0 or radius_voxels < 1:
        raise InputError(
            "step_voxels must be above 0, the sigmas 0 or above and radius_voxels 1 or above; got "
            f"{step_voxels}, {update_sigma_voxels}, {field_sigma_voxels} and {radius_voxels}"
        )
    prepared = pairs(fixed, moving, initial, fixed_mask, moving_masks)
    if not prepared:
        return []
    shrinks, counts = schedule_of(prepared[0].fixed, shrink_factors, iterations)
    if len(field_sigma_voxels) < len(shrinks):
        raise InputError(f"{len(field_sigma_voxels)} field_sigma_voxels for {len(shrinks)} levels: one each is wanted")
    schedule = dense.Schedule(
        shrinks,
        counts,
        radius_voxels,
        update_sigma_voxels,
        field_sigma_voxels[len(field_sigma_voxels) - len(shrinks) :],
        step_voxels,
        tolerance,
    )

    machine = resolved(device)
    needed = dense.bytes_needed(prepared[0].fixed.counted.size, len(prepared[0].fixed.channels))

    def linear(pair: Pair) -> Float64:
        if pair.matrix_mm is not None:
            return pair.matrix_mm
        return register_linear(pair.fixed, pair.moving, "affine", None, known=pair.known)[0]

    matrices = each(prepared, linear, bytes_needed=needed)
    if machine == "cuda":
        from atlasseg.registration._engine import dense_torch

        solved = dense_torch.solve(
            prepared[0].fixed,
            [pair.moving for pair in prepared],
            matrices,
            [pair.displacement_voxels for pair in prepared],
            schedule,
            known=[pair.known for pair in prepared],
            device=machine,
        )
    else:

        def solve(pair: Pair) -> tuple[Float32, float]:
            matrix = matrices[prepared.index(pair)]
            return dense.solve(pair.fixed, pair.moving, matrix, pair.displacement_voxels, schedule, known=pair.known)

        solved = each(prepared, solve, bytes_needed=needed)
    out: list[Transform] = []
    for pair, matrix, (field, value) in zip(prepared, matrices, solved, strict=True):
        logger.info("%s: mean squared local correlation %.3f", pair.moving.name or "a moving image", value)
        out.append(Affine(matrix) @ field_transform(field, pair.fixed, fixed.grid))
    return out
