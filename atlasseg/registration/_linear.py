"""Rigid, similarity and affine registration: the factory of the three methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atlasseg.device import Device
from atlasseg.methods import Data
from atlasseg.registration._engine.linear import TransformModel, register_all
from atlasseg.similarity import MetricName, windowed_metric
from atlasseg.transforms import Transform
from atlasseg.volume import Image, Mask


def linear_registration(model: TransformModel, transform: str, *, module: str) -> Callable[..., list[Transform]]:
    """Make the registration method of one linear transform model.

    Parameters
    ----------
    model : {"rigid", "similarity", "affine"}
        Transform model.
    transform : str
        Model in words, with its number of parameters, for the docstring.
    module : str
        Module of the method.
    """

    def register(
        fixed: Image,
        moving: Sequence[Image],
        *,
        initial: Data[Sequence[Transform] | None] = None,
        fixed_mask: Data[Mask | None] = None,
        moving_masks: Data[Sequence[Mask | None] | None] = None,
        metric: MetricName = "local_correlation",
        radius_voxels: int = 2,
        finest_shrink: int = 2,
        iterations: int = 30,
        channel_weights: tuple[float, ...] = (),
        device: Device = "auto",
    ) -> list[Transform]:
        """Register each moving image to the fixed one by TRANSFORM.

        Without `initial` the start is the best of world coordinates, centres of mass and middles of the foreground,
        each with several rotations, and principal axes, compared at a coarse level; intensities may be of any scale.
        Deterministic: the same bits for any number of threads and, on the CPU, whatever images are registered with it.

        Parameters
        ----------
        fixed : Image
            The target.
        moving : sequence of Image
            Images of the atlases, each on its own grid, with the same number of channels.
        initial : sequence of Transform, optional
            Initial transform of each moving image, from fixed to moving points. A transform that is not linear is
            replaced by the nearest linear one on the fixed grid.
        fixed_mask, moving_masks : Mask, optional
            Only voxels inside count. Default: all voxels except empty space around the foreground.
        metric : str
            Similarity metric to maximise. `local_correlation`: the mean squared correlation in small windows, for
            equal and inverted contrast; `correlation`: over the whole image, signed; `mean_squares`: for images of one
            contrast; `mutual_information` and `normalized_mutual_information`: for any two contrasts. Intensities are
            first scaled to 0 to 1.
        radius_voxels : int
            Radius of the window of the local correlation: ``2 radius_voxels + 1`` voxels along each axis, at every
            level.
        finest_shrink : int
            Voxel size of the finest level, as a multiple of that of the fixed image.
        iterations : int
            Maximum number of iterations per level.
        channel_weights : sequence of float
            Weight of each channel in the similarity; by default all weigh the same.
        device : {"auto", "cpu", "cuda"}
            "cuda": compute all images in one tensor with torch. "cpu": compiled CPU kernels. "auto": CUDA if there is a
            GPU, else CPU.

        Returns
        -------
        list of Affine
            Fixed to moving RAS+ mm points.

        Raises
        ------
        InputError
            An image is constant, a mask empty, numbers of images, masks, transforms or channels differ, a parameter is
            out of its range, or CUDA is not available, or out of memory with one image.
        GeometryError
            A mask is not on its image's grid, or the fields of view do not overlap.

        References
        ----------
        .. [1] Avants, B. B., Epstein, C. L., Grossman, M., Gee, J. C. (2008). Symmetric diffeomorphic image
           registration with cross-correlation. Medical Image Analysis 12(1), 26-41 (equations 7 and 8: the similarity).
        .. [2] Mattes, D., et al. (2003). PET-CT image registration in the chest using free-form deformations. IEEE
           Trans Med Imaging 22(1), 120-128 (equations 4 to 12: the mutual information).
        .. [3] Marquardt, D. W. (1963). An algorithm for least-squares estimation of nonlinear parameters. SIAM J 11(2).
        """
        return register_all(
            fixed,
            moving,
            model,
            initial=initial,
            fixed_mask=fixed_mask,
            moving_masks=moving_masks,
            similarity=windowed_metric(metric, radius_voxels),
            finest=finest_shrink,
            iterations=iterations,
            device=device,
            channel_weights=channel_weights,
        )

    register.__doc__ = (register.__doc__ or "").replace("TRANSFORM", transform)
    register.__module__, register.__qualname__ = module, "register"
    return register
