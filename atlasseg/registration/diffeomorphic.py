"""Diffeomorphic registration by composed, smoothed updates that maximise a similarity metric, coarse to fine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from atlasseg.device import Device, resolve_device
from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.registration._engine import dense
from atlasseg.registration._engine.batch import (
    choose_schedule,
    is_mixed,
    make_field_transform,
    prepare_pairs,
    require,
    solve_each,
)
from atlasseg.registration._engine.linear import add_affine_start
from atlasseg.similarity import MetricName, windowed_metric
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Image, Mask

logger = logging.getLogger(__name__)


@method("registration", renamed={"field_sigma_voxels": "total_field_sigma_voxels"})
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    shrink_factors: tuple[int, ...] = (),
    iterations: tuple[int, ...] = (60, 60, 60, 50),
    metric: MetricName = "local_correlation",
    radius_voxels: int = 2,
    update_sigma_voxels: float = 1.7,
    total_field_sigma_voxels: tuple[float, ...] = (0.7, 0.7, 0.5, 0.4),
    step_voxels: float = 1.0,
    tolerance: float = 1e-4,
    channel_weights: tuple[float, ...] = (),
    device: Device = "auto",
    precision: Literal["single", "mixed"] = "single",
) -> list[Transform]:
    """Register each moving image to the fixed one by a smooth, invertible displacement.

    Each iteration takes the derivative of the similarity for a small step before the present warp,
    smooths it by a Gaussian, scales its longest vector to `step_voxels`, composes it with the field, and smooths the
    field a little. After every level the Jacobian determinant is checked at every corner of every voxel; where it is
    below 0.01 the field has folded, and is smoothed around the fold until it no longer does. Deterministic: the same
    bits for any number of threads and whatever other images are registered.

    Parameters
    ----------
    fixed : Image
        The target.
    moving : sequence of Image
        Images of the atlases, each on its own grid, with the same number of channels.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from fixed to moving points. Default: an affine registration.
    fixed_mask, moving_masks : Mask, optional
        Only voxels inside count. Default: all voxels except empty space around the foreground.
    shrink_factors : tuple of int
        Voxel size at each level, coarse to fine, as a multiple of that of the image. By default powers of two from 8 to
        1, as long as the foreground is at least 16 voxels wide.
    iterations : tuple of int
        Maximum number of iterations at each level, coarse to fine. With default levels, the last entries are used.
    metric : str
        Similarity metric to maximise. `local_correlation`: the mean squared correlation in small windows, for equal
        and inverted contrast; `correlation`: over the whole image, signed; `mean_squares`: for images of one contrast;
        `mutual_information` and `normalized_mutual_information`: for any two contrasts. Intensities are first scaled to
        0 to 1.
    radius_voxels : int
        Radius of the window of the local correlation: ``2 radius_voxels + 1`` voxels along each axis.
    update_sigma_voxels : float
        Standard deviation of the smoothing of each update, in voxels of the level.
    total_field_sigma_voxels : tuple of float
        Standard deviation of the smoothing of the field after each update, in voxels of the level, coarse to fine. With
        fewer levels, the last entries are used.
    step_voxels : float
        Longest displacement in one update, in voxels of the level, above 0.
    tolerance : float
        Stop a level when ten iterations raise the similarity by less than this.
    channel_weights : sequence of float
        Weight of each channel in the similarity; by default all weigh the same.
    device : {"auto", "cpu", "cuda"}
        "cuda": compute all images in one tensor with torch. "cpu": compiled CPU kernels. "auto": CUDA if there is a
        GPU, else CPU.
    precision : {"single", "mixed"}
        "mixed": on CUDA, hold the moving images in float16 and smooth the updates in float16. All sums stay in float32.

    Returns
    -------
    list of Transform
        Fixed to moving RAS+ mm points, `initial` included: an affine after a displacement field on the fixed grid.

    Raises
    ------
    InputError
        An image is constant, a mask empty, numbers of images, masks, transforms or channels differ, a parameter is
        out of its range, or CUDA is not available, or out of memory with one image.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.

    References
    ----------
    .. [1] Yushkevich, P. A., et al. (2016). Fast automatic segmentation of hippocampal subfields and medial temporal
       lobe subregions in 3 Tesla and 7 Tesla T2-weighted MRI. Alzheimer's & Dementia 12(7), P126-P127 (greedy).
    .. [2] Avants, B. B., Epstein, C. L., Grossman, M., Gee, J. C. (2008). Symmetric diffeomorphic image registration
       with cross-correlation. Medical Image Analysis 12(1), 26-41 (equations 7 and 8: the similarity).
    """
    similarity = windowed_metric(metric, radius_voxels)
    require({"step_voxels": step_voxels}, least=0, above=True)
    least_total = min(total_field_sigma_voxels)
    require({"update_sigma_voxels": update_sigma_voxels, "total_field_sigma_voxels": least_total}, least=0)
    mixed = is_mixed(precision)
    machine = resolve_device(device)
    prepared = prepare_pairs(fixed, moving, initial, fixed_mask, moving_masks, channel_weights)
    if not prepared:
        return []
    shrinks, counts = choose_schedule(prepared[0].fixed, shrink_factors, iterations)
    if len(total_field_sigma_voxels) < len(shrinks):
        raise InputError(
            f"expected a value of total_field_sigma_voxels for each of {len(shrinks)} levels, "
            f"got {len(total_field_sigma_voxels)}"
        )
    schedule = dense.Schedule(
        shrinks,
        counts,
        similarity,
        update_sigma_voxels,
        total_field_sigma_voxels[len(total_field_sigma_voxels) - len(shrinks) :],
        step_voxels,
        tolerance,
        mixed,
    )
    begun = add_affine_start(prepared, similarity, device=machine)
    if machine == "cuda":
        from atlasseg.registration._engine import dense_torch

        solved = dense_torch.solve(begun, schedule, device=machine)
    else:
        needed = dense.bytes_needed(prepared[0].fixed.valid.size, len(prepared[0].fixed.channels))
        solved = solve_each(begun, lambda pair: dense.solve(pair, schedule), bytes_needed=needed)
    out: list[Transform] = []
    for pair, solution in zip(begun, solved, strict=True):
        name = pair.moving.name or "a moving image"
        logger.info("%s: %s %.3f", name, similarity, solution.similarity)
        if solution.repaired:
            logger.info("%s: %d folded voxels repaired", name, solution.repaired)
        out.append(Affine(pair.start_mm) @ make_field_transform(solution.field, pair.fixed, fixed.grid))
    return out
