"""B-spline registration with SimpleITK, by mean squares, mutual information or correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlasseg.errors import InputError
from atlasseg.itk import transform_from_sitk, transform_to_sitk
from atlasseg.methods import Data, method
from atlasseg.registration._itk import (
    Metric,
    Side,
    Start,
    check_levels,
    execute,
    find_best_start,
    make_differentiable,
    make_level_method,
    register_pairs,
    require_overlap,
    shrink,
)
from atlasseg.transforms import BSplineField, Transform
from atlasseg.volume import Image, Mask

GRADIENT_TOLERANCE = 1e-7
"""Projected gradient below which L-BFGS-B stops."""


@method("registration", channels="one")
def register(
    fixed: Image,
    moving: Sequence[Image],
    *,
    initial: Data[Sequence[Transform] | None] = None,
    fixed_mask: Data[Mask | None] = None,
    moving_masks: Data[Sequence[Mask | None] | None] = None,
    metric: Metric = "correlation",
    starts: tuple[Start, ...] = ("geometry", "moments", "identity"),
    control_spacing_mm: float = 10.0,
    shrink_factors: tuple[int, ...] = (4, 2, 1),
    iterations: int = 30,
    samples: int = 10_000,
) -> list[Transform]:
    """Register each moving image to the fixed one by a cubic B-spline that is refined from level to level.

    The spline goes before `initial`, which an affine registration should provide; without it, the best of the starts
    alone does. There is no penalty on folding: the control spacing is what keeps the deformation smooth. The result is
    the same for any number of threads. Sheared axes are treated as in `itk_rigid`.

    Parameters
    ----------
    fixed : Image
        The target: one channel, not constant.
    moving : sequence of Image
        Images of the atlases, each on its own grid.
    initial : sequence of Transform, optional
        Initial transform of each moving image, from points of the fixed image to points of the moving image.
    fixed_mask, moving_masks : Mask, optional
        Regions in which similarity is measured, on the grids of the images.
    metric : {"correlation", "mean_squares", "mutual_information"}
        Similarity metric to maximise: squared global correlation, mean squares (for images on one intensity scale), or
        mutual information (Mattes; for different contrasts).
    starts : tuple of {"geometry", "moments", "identity"}
        Initial alignments to try where `initial` is not given: centres of the grids, centres of mass, or the headers.
    control_spacing_mm : float
        Maximum spacing of the control points at the last level in mm. It doubles at each level before.
    shrink_factors : tuple of int
        Shrink factor of each level, coarse to fine, in the finest spacing of each image. Short axes are shrunk less.
    iterations : int
        Maximum number of L-BFGS-B iterations at each level.
    samples : int
        Maximum number of voxels of the fixed image, evenly spread, on which the metric is computed.

    Returns
    -------
    list of Transform
        One per moving image, `initial` included: maps points of the fixed image to points of the moving image.

    Raises
    ------
    InputError
        An image is constant or has several channels, a mask is empty, a parameter is not one of those above.
    GeometryError
        A mask is not on its image's grid, or the images do not overlap.

    References
    ----------
    Rueckert et al. 1999, Nonrigid registration using free-form deformations, IEEE TMI 18(8).
    Avants et al. 2014, The Insight ToolKit image registration framework, Front Neuroinform 8:44.
    """
    check_levels(shrink_factors, iterations, samples)
    if not control_spacing_mm > 0:
        raise InputError(f"control_spacing_mm: expected more than 0, got {control_spacing_mm}")

    def one(target: Side, source: Side, start: Transform | None) -> Transform:
        if start is None:
            factor = max(shrink_factors)
            start = find_best_start(
                target, source, metric=metric, starts=starts, rotations_degrees=(), factor=factor, samples=samples
            )
        require_overlap(target, source, start)
        given = make_differentiable(start, target.image.grid)
        coarsest = 2.0 ** (len(shrink_factors) - 1) * control_spacing_mm
        control = BSplineField.control_grid(target.image.grid, coarsest)
        spline = BSplineField(np.zeros((*control.shape, 3)), control.affine)
        for level, factor in enumerate(shrink_factors):
            if level > 0:
                spline = spline.refined()
            f, m = shrink(target, factor), shrink(source, factor)
            method = make_level_method(f, m, metric, start=given, samples=samples)
            method.SetOptimizerAsLBFGSB(
                gradientConvergenceTolerance=GRADIENT_TOLERANCE,
                numberOfIterations=iterations,
                maximumNumberOfCorrections=5,
                maximumNumberOfFunctionEvaluations=2 * iterations,
            )
            optimised = transform_to_sitk(spline)
            method.SetInitialTransform(optimised, inPlace=True)
            execute(method, f, m, (target.name, source.name))
            refined = transform_from_sitk(optimised)
            assert isinstance(refined, BSplineField)
            spline = refined
        return start @ spline

    return register_pairs(fixed, moving, initial, fixed_mask, moving_masks, one)
