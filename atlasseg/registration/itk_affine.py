"""Affine registration with SimpleITK, by mean squares, mutual information or correlation."""

from __future__ import annotations

from collections.abc import Sequence

from atlasseg.methods import Data, method
from atlasseg.registration._itk import Metric, Start, register_linear
from atlasseg.transforms import Transform
from atlasseg.volume import Image, Mask


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
    rotations_degrees: tuple[tuple[float, float, float], ...] = (),
    shrink_factors: tuple[int, ...] = (4, 2, 1),
    iterations: int = 100,
    samples: int = 20_000,
) -> list[Transform]:
    """Register each moving image to the fixed one by an affine transform (12 parameters).

    Without `initial` it is registered rigidly first, at the coarsest level. The result is the same for any number of
    threads. An image whose axes are sheared, which ITK's metrics cannot take, is first resampled onto perpendicular
    axes over the same space, so that the transform holds for the original.

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
        The best at the coarsest level is kept, among those with enough overlap.
    rotations_degrees : tuple of (x, y, z)
        Rotations about the fixed axes to try with each start, in degrees, besides none.
    shrink_factors : tuple of int
        Shrink factor of each level, coarse to fine, in the finest spacing of each image. Short axes are shrunk less.
    iterations : int
        Maximum number of iterations at each level.
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
    Avants et al. 2014, The Insight ToolKit image registration framework, Front Neuroinform 8:44.
    Mattes et al. 2003, PET-CT image registration in the chest using free-form deformations, IEEE TMI 22(1).
    """
    return register_linear(
        fixed,
        moving,
        initial,
        fixed_mask,
        moving_masks,
        transform_model="affine",
        metric=metric,
        starts=starts,
        rotations_degrees=rotations_degrees,
        shrink_factors=shrink_factors,
        iterations=iterations,
        samples=samples,
    )
