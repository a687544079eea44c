"""Free-form deformation: cubic B-splines that maximise a similarity metric, on control lattices refined per level."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from atlasseg.device import Device, resolve_device
from atlasseg.methods import Data, method
from atlasseg.registration._engine import dense, freeform
from atlasseg.registration._engine.batch import (
    choose_schedule,
    is_mixed,
    prepare_pairs,
    require,
    resample_moving,
    solve_each,
)
from atlasseg.registration._engine.linear import add_affine_start
from atlasseg.similarity import MetricName, windowed_metric
from atlasseg.transforms import Affine, Transform
from atlasseg.volume import Image, Mask

logger = logging.getLogger(__name__)


@method("registration")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    spacing_voxels: float = 4.0,
    shrink_factors: tuple[int, ...] = (),
    iterations: tuple[int, ...] = (60, 60, 60, 30),
    metric: MetricName = "local_correlation",
    radius_voxels: int = 2,
    bending: float = 0.1,
    folding: float = 0.02,
    step_voxels: float = 0.25,
    tolerance: float = 1e-4,
    channel_weights: tuple[float, ...] = (),
    device: Device = "auto",
    precision: Literal["single", "mixed"] = "single",
) -> list[Transform]:
    """Register each moving image to the fixed one by a cubic B-spline free-form deformation.

    The similarity less the energies is maximised by Adam, its step normalised by the second moment
    of each control point's whole gradient vector. All gradients are in closed form. Deterministic: the same bits for
    any number of threads and whatever other images are registered with it.

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
    spacing_voxels : float
        Spacing of the control points at each level, in voxels of the level, at least 1.
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
    bending : float
        Weight of the bending energy (mean squared second derivatives of the displacement, with lengths in the finest
        voxels), 0 or more.
    folding : float
        Weight of the mean squared logarithm of the Jacobian determinant, 0 or more.
    step_voxels : float
        Approximate largest step of a control point in one iteration, in voxels of the level.
    tolerance : float
        Stop a level when ten iterations raise the similarity by less than this.
    channel_weights : sequence of float
        Weight of each channel in the similarity; by default all weigh the same.
    device : {"auto", "cpu", "cuda"}
        "cuda": compute all images in one tensor with torch. "cpu": compiled CPU kernels. "auto": CUDA if there is a
        GPU, else CPU.
    precision : {"single", "mixed"}
        "mixed": on CUDA, hold the moving images in float16. All sums stay in float32.

    Returns
    -------
    list of Transform
        Fixed to moving RAS+ mm points, `initial` included: an affine after a `BSplineField` over the fixed grid.

    Raises
    ------
    InputError
        An image is constant, a mask empty, numbers of images, masks, transforms or channels differ, a parameter is
        out of its range, or CUDA is not available, or out of memory with one image.
    GeometryError
        A mask is not on its image's grid, or the fields of view do not overlap.

    References
    ----------
    .. [1] Rueckert, D., et al. (1999). Nonrigid registration using free-form deformations. IEEE TMI 18(8), 712-721
       (equations 3 and 4).
    .. [2] Modat, M., et al. (2010). Fast free-form deformation using graphics processing units. Comput Methods Programs
       Biomed 98(3), 278-284.
    """
    similarity = windowed_metric(metric, radius_voxels)
    require({"spacing_voxels": spacing_voxels}, least=1)
    require({"step_voxels": step_voxels}, least=0, above=True)
    require({"bending": bending, "folding": folding}, least=0)
    mixed = is_mixed(precision)
    machine = resolve_device(device)
    prepared = prepare_pairs(fixed, moving, initial, fixed_mask, moving_masks, channel_weights)
    if not prepared:
        return []
    shrinks, counts = choose_schedule(prepared[0].fixed, shrink_factors, iterations)
    schedule = freeform.Schedule(
        shrinks, counts, spacing_voxels, similarity, bending, folding, step_voxels, tolerance, mixed
    )
    begun = add_affine_start([resample_moving(pair) for pair in prepared], similarity, device=machine)
    if machine == "cuda":
        from atlasseg.registration._engine import freeform_torch

        solved = freeform_torch.solve(begun, schedule, fixed.grid, device=machine)
    else:
        needed = dense.bytes_needed(prepared[0].fixed.valid.size, len(prepared[0].fixed.channels))
        solved = solve_each(begun, lambda pair: freeform.solve(pair, schedule, fixed.grid), bytes_needed=needed)
    out: list[Transform] = []
    for pair, (spline, value) in zip(begun, solved, strict=True):
        logger.info("%s: %s %.3f", pair.moving.name or "a moving image", similarity, value)
        out.append((pair.initial or Affine(pair.start_mm)) @ spline)
    return out
