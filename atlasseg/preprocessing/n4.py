"""N4 bias field correction: estimate the smooth multiplicative bias field and divide by it (SimpleITK)."""

from __future__ import annotations

import numpy as np

from atlasseg.errors import InputError
from atlasseg.itk import image_to_sitk, one_thread
from atlasseg.methods import Data, method
from atlasseg.preprocessing.foreground import foreground
from atlasseg.volume import Image, Mask


@method("preprocessing")
def preprocess(
    image: Image,
    *,
    mask: Data[Mask | None] = None,
    shrink_factor: int = 4,
    iterations: tuple[int, ...] = (50, 50, 50, 50),
    convergence: float = 1e-3,
    field_fwhm: float = 0.15,
    control_points: int = 4,
) -> Image:
    """Divide each channel by its bias field; the mean intensity in the mask stays as it was.

    Parameters
    ----------
    image : Image
        Intensities of any scale. Where some are negative, all are first shifted so that the smallest is 0 (the field
        is multiplicative, and so is defined for a scale that begins at 0), and shifted back.
    mask : Mask, optional
        Where the field is estimated, on the image's grid; by default the foreground.
    shrink_factor : int
        Estimate the field on every n-th voxel. At least 4 voxels are left along each axis.
    iterations : tuple of int
        Maximum number of iterations at each level. The control grid doubles from one level to the next.
    convergence : float
        Stop a level when the field changes by less than this (coefficient of variation).
    field_fwhm : float
        Width of the Gaussian by which the log intensity histogram is sharpened.
    control_points : int
        Number of control points along each axis at the first level, at least 4.

    Raises
    ------
    InputError
        The image is constant, or the mask is empty or of another shape.

    References
    ----------
    Tustison et al. 2010, N4ITK: improved N3 bias correction, IEEE TMI 29(6).
    """
    import SimpleITK as sitk

    inside = foreground(image) if mask is None else mask
    if inside.shape != image.shape or not inside.array.any():
        raise InputError(
            f"image {image.name!r} of shape {image.shape}: its mask of shape {inside.shape} is empty or does not fit"
        )
    corrected = np.empty_like(image.channels)
    for c in range(corrected.shape[3]):
        channel = image.channels[..., c].astype(np.float64)
        offset = min(0.0, float(channel.min()))
        shifted = channel - offset
        unit = float(shifted[inside.array].mean())
        if unit == 0:
            raise InputError(f"image {image.name!r}: it is constant within its mask")
        plane = image_to_sitk(Image((shifted / unit).astype(np.float32), image.affine))
        counted = image_to_sitk(Mask(inside.array & (shifted > 0), image.affine))
        factors = [min(shrink_factor, max(1, n // 4)) for n in image.shape]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations(list(iterations))
        corrector.SetConvergenceThreshold(convergence)
        corrector.SetBiasFieldFullWidthAtHalfMaximum(field_fwhm)
        corrector.SetNumberOfControlPoints([control_points] * 3)
        with one_thread():
            corrector.Execute(sitk.Shrink(plane, factors), sitk.Shrink(counted, factors))
        log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(plane)).transpose(2, 1, 0)
        flat = shifted / np.exp(log_field.astype(np.float64))
        flat *= shifted[inside.array].mean() / flat[inside.array].mean()
        corrected[..., c] = flat + offset
    return image.with_array(corrected.reshape(image.array.shape))
