"""Intensity window for calibrated scans such as CT: clip to a range, and remove what is outside the body."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasseg.errors import InputError
from atlasseg.methods import Data, method
from atlasseg.volume import Bool, Image, Mask

__all__ = ["find_body"]

_OPENING_MM = 4.0  # a couch touches the body in sheets thinner than this


@method("preprocessing")
def preprocess(
    image: Image,
    *,
    low: float = -200.0,
    high: float = 300.0,
    body_above: float | None = -500.0,
    mask: Data[Mask | None] = None,
) -> Image:
    """Map the intensities from `low` to `high` to 0 to 1, clip the others, and set voxels outside the body to 0.

    Padding around the field of view (-1024, -2000 or -3024 in CT) becomes 0 like air.

    Parameters
    ----------
    image : Image
        Intensities on a fixed scale, such as Hounsfield units.
    low, high : float
        Window in the unit of the scan. The default shows soft tissue in CT; for lungs and airways take -1000 to 300.
    body_above : float, optional
        Threshold of the body, see `atlasseg.preprocessing.window.find_body`. None keeps what is outside the body.
    mask : Mask, optional
        Body, on the grid of the image, in place of the one that is found.

    Raises
    ------
    InputError
        `low` is not below `high`, or no intensity lies between them.
    """
    if not low < high:
        raise InputError(f"expected low below high, got {low:g} and {high:g}")
    values = np.clip((image.channels.astype(np.float64) - low) / (high - low), 0, 1)
    if body_above is not None or mask is not None:
        body = mask.array if mask is not None else find_body(image, above=float(body_above or 0.0)).array
        values[~body] = 0
    if not ((values > 0) & (values < 1)).any():
        found = f"{image.array.min():g} to {image.array.max():g}"
        raise InputError(
            f"image {image.name!r}: expected intensities between {low:g} and {high:g}, got {found}. Set low and high "
            "of the step window in the unit of the scan, or use the step intensity."
        )
    return image.with_array(values.reshape(image.array.shape).astype(np.float32))


def find_body(image: Image, *, above: float = -500.0) -> Mask:
    """Find the body in a CT scan: the largest part above a threshold without the couch, its cavities filled.

    The part is opened by a ball, so that a couch that touches the skin is cut off, and grows back within the threshold.
    Cavities are filled in every plane across the most anisotropic axis (the slices), so lungs count as inside even if
    the scan cuts the airways.

    Parameters
    ----------
    image : Image
        Intensities in Hounsfield units. With several channels, the first one counts.
    above : float
        Threshold, in the unit of the scan.

    Returns
    -------
    Mask

    Raises
    ------
    InputError
        No voxel is above the threshold.
    """
    dense = np.asarray(image.channels[..., 0] > above)
    if not dense.any():
        raise InputError(f"image {image.name!r}: expected a body above {above:g}, got {image.array.max():g} at most.")
    opened = ndimage.distance_transform_edt(np.pad(dense, 1, mode="edge"), sampling=image.spacing_mm)
    core = _largest(opened[1:-1, 1:-1, 1:-1] > _OPENING_MM / 2)
    if core.any():
        near = ndimage.distance_transform_edt(~core, sampling=image.spacing_mm) <= _OPENING_MM / 2
        dense = dense & near
    body = _largest(dense)
    across = int(np.argmax(image.spacing_mm))
    planes = np.moveaxis(body, across, 0)
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in planes])
    return Mask(np.moveaxis(filled, 0, across), image.affine, image.name)


def _largest(inside: Bool) -> Bool:
    """Largest connected part."""
    parts, _ = ndimage.label(inside)
    sizes: NDArray[np.int64] = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((parts == sizes.argmax()) & inside)
