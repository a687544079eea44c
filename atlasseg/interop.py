"""Arrays to the image objects of nibabel, SimpleITK and ANTs, and back.

The one place, beside the file formats, where RAS becomes LPS and ITK's ``(k, j, i)`` becomes ``(i, j, k)``.
Everything here is arrays and affines: the data types (:mod:`atlasseg.volume`, :mod:`atlasseg.transforms`) call these
functions from their ``to_*`` and ``from_*`` methods. A library is imported when it is first needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError, MissingLibraryError

if TYPE_CHECKING:
    import SimpleITK as sitk

log = logging.getLogger(__name__)

Float64 = NDArray[np.float64]
Library = Literal["nibabel", "SimpleITK", "ANTs"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ mm to LPS+ mm, and back."""

UNIT_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
"""Length of each unit of a NIfTI header, in mm."""
SPACING_TOLERANCE = 0.01
"""Relative difference of two voxel sizes that are the same: headers round, and store rotations as float32."""

_WHOLE_IN_FLOAT32 = 2**24
_LARGEST_NIFTI1_AXIS = 32767
_ORTHONORMAL = 1e-4
_CLASSES: dict[tuple[str, str], Library] = {
    ("nibabel", "SpatialImage"): "nibabel",
    ("SimpleITK", "Image"): "SimpleITK",
    ("ants", "ANTsImage"): "ANTs",
}


def image_library(value: object) -> Library | None:
    """Which library's image `value` is, found without importing one; None where it is of none of them.

    Examples
    --------
    >>> import nibabel
    >>> image_library(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4)))
    'nibabel'
    >>> image_library(np.zeros((2, 3, 4))) is None
    True
    """
    for kind in type(value).__mro__:
        found = _CLASSES.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def is_sitk_transform(value: object) -> bool:
    """Whether `value` is a transform of SimpleITK."""
    return any(
        kind.__name__ == "Transform" and kind.__module__.partition(".")[0] == "SimpleITK"
        for kind in type(value).__mro__
    )


def flip_vectors(vectors: NDArray[Any]) -> NDArray[Any]:
    """(..., 3) RAS vectors as LPS, or back."""
    return np.asarray(vectors * np.array([-1, -1, 1], vectors.dtype))


def place_from_lps(direction: Any, spacing_mm: Any, origin_mm: Any) -> Float64:
    """(4, 4) voxel to RAS+ mm, of ITK's (3, 3) direction, spacing and origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(np.asarray(direction, np.float64), (3, 3)) * np.asarray(spacing_mm, np.float64)
    affine[:3, 3] = origin_mm
    placed: Float64 = LPS @ affine
    return placed


def place_in_lps(affine: Float64) -> tuple[Float64, Float64, Float64]:
    """ITK's (3, 3) direction, (3,) spacing in mm and (3,) origin in LPS+ mm, of an affine from voxel to RAS+ mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lps = LPS @ affine
    return lps[:3, :3] / spacing, spacing, lps[:3, 3]


# ------------------------------------------------------------------------------------------------------- SimpleITK


def array_to_sitk(array: NDArray[Any], affine: Float64, *, vector: bool = False) -> sitk.Image:
    """(I, J, K) values, or with `vector` (I, J, K, C), as an image of SimpleITK."""
    import SimpleITK as sitk

    axes = (2, 1, 0, 3)[: array.ndim]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    direction, spacing, origin = place_in_lps(affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def array_from_sitk(image: sitk.Image) -> NDArray[Any]:
    """(I, J, K) or, of a vector image, (I, J, K, C) values of a 3-D image of SimpleITK.

    Raises
    ------
    InputError
        The image has not three axes.
    """
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(f"SimpleITK image: expected 3 axes, got {image.GetDimension()} (size {image.GetSize()})")
    array = sitk.GetArrayFromImage(image)
    return np.ascontiguousarray(array.transpose((2, 1, 0, 3)[: array.ndim]))


def affine_from_sitk(image: sitk.Image) -> Float64:
    """(4, 4) voxel to RAS+ mm of a 3-D image of SimpleITK."""
    return place_from_lps(image.GetDirection(), image.GetSpacing(), image.GetOrigin())


def affine_to_sitk(matrix: Float64) -> sitk.Transform:
    """(4, 4) matrix on RAS+ mm points as SimpleITK's AffineTransform on LPS+ mm points."""
    import SimpleITK as sitk

    lps = LPS @ matrix @ LPS
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    return affine


def field_to_sitk(displacement_mm: NDArray[Any], affine: Float64) -> sitk.Transform:
    """(I, J, K, 3) RAS+ mm displacements as SimpleITK's DisplacementFieldTransform."""
    import SimpleITK as sitk

    vectors = flip_vectors(displacement_mm.astype(np.float64))
    return sitk.DisplacementFieldTransform(array_to_sitk(vectors, affine, vector=True))


def spline_to_sitk(coefficients_mm: Float64, affine: Float64) -> sitk.Transform:
    """(A, B, C, 3) RAS+ mm cubic B-spline coefficients as SimpleITK's BSplineTransform."""
    import SimpleITK as sitk

    flipped = flip_vectors(coefficients_mm)
    return sitk.BSplineTransform([array_to_sitk(flipped[..., c], affine) for c in range(3)], 3)


def chain_to_sitk(parts: Sequence[sitk.Transform]) -> sitk.Transform:
    """Transforms of SimpleITK as one, the last applied first."""
    import SimpleITK as sitk

    return sitk.CompositeTransform(list(parts))


# ------------------------------------------------------------------------------------------------------------ ANTs


def array_to_ants(array: NDArray[Any], affine: Float64) -> Any:
    """(I, J, K) values, or (I, J, K, C), as an image of ANTs.

    ANTs holds uint8, uint32 and float32: whole numbers become the one of these that keeps them exactly.

    Raises
    ------
    MissingLibraryError
        antspyx is not installed.
    InputError
        The array holds negative whole numbers together with ones beyond 2^24, for which ANTs has no exact type.
    """
    try:
        import ants
    except ImportError as error:
        raise MissingLibraryError("to_ants needs antspyx: pip install 'atlasseg[syn]'") from error
    direction, spacing, origin = place_in_lps(affine)
    return ants.from_numpy(
        _for_ants(array),
        origin=origin.tolist(),
        spacing=spacing.tolist(),
        direction=direction,
        has_components=array.ndim == 4,
    )


def _for_ants(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.dtype == np.uint8:
        return array
    if array.size and array.min() < 0:
        if max(abs(int(array.min())), int(array.max())) > _WHOLE_IN_FLOAT32:
            raise InputError(
                "ANTs has no type for negative labels beside labels beyond 2^24 "
                f"(found {array.min()} to {array.max()}). Renumber the labels."
            )
        return array.astype(np.float32)
    return array.astype(np.uint32)


def array_from_ants(image: Any) -> NDArray[Any]:
    """(I, J, K) or, of an image with components, (I, J, K, C) values of a 3-D image of ANTs.

    Raises
    ------
    InputError
        The image has not three axes.
    """
    if image.dimension != 3:
        raise InputError(f"ANTs image: expected 3 axes, got {image.dimension} (shape {image.shape})")
    return np.ascontiguousarray(image.numpy())


def affine_from_ants(image: Any) -> Float64:
    """(4, 4) voxel to RAS+ mm of a 3-D image of ANTs."""
    return place_from_lps(image.direction, image.spacing, image.origin)


# --------------------------------------------------------------------------------------------------------- nibabel


def array_to_nibabel(
    array: NDArray[Any], affine: Float64, *, sform_code: int = 1, qform_code: int = 1, labels: Sequence[int] = ()
) -> Any:
    """(I, J, K, ...) values as a NIfTI image of nibabel, in mm; `labels` are noted in its header.

    An axis of more than 32767 voxels makes it NIfTI-2. A qform, which holds no shear, is set where it can say the same
    as the sform.
    """
    import nibabel

    kind = nibabel.Nifti2Image if max(array.shape) > _LARGEST_NIFTI1_AXIS else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, max(sform_code, 1))
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(direction.T @ direction - np.eye(3)).max() < _ORTHONORMAL:
        header.set_qform(affine, qform_code)
    if labels:
        embed_labels(header, labels)
    return kind(array, affine, header)  # which keeps the affine in float64, where the header has float32


def array_from_nibabel(image: Any) -> NDArray[Any]:
    """(I, J, K) or (I, J, K, C) values of an image of nibabel, scaled as its header says.

    Raises
    ------
    InputError
        Its values are not plain numbers, or it has not three or four axes longer than 1.
    """
    shape = tuple(image.shape)
    longer = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or len(longer) > 1:
        raise InputError(f"nibabel image: expected a volume (I, J, K) or (I, J, K, C), got shape {shape}")
    array = np.asanyarray(image.dataobj)
    if array.dtype.kind not in "biuf":
        raise InputError(f"nibabel image: expected plain numbers, got {array.dtype} (colours or complex numbers)")
    return np.ascontiguousarray(array.reshape(*shape[:3], *longer))


def affine_from_nibabel(image: Any) -> Float64:
    """(4, 4) voxel to RAS+ mm of an image of nibabel, converted from the unit of its header.

    A warning tells of another unit than mm, and of a header whose two voxel sizes, of affine and pixdim, differ.

    Raises
    ------
    InputError
        It has none.
    """
    if image.affine is None:
        raise InputError("nibabel image: expected an affine, got None. Give the image its affine.")
    affine = np.array(image.affine, np.float64)
    header: Any = getattr(image, "header", None)
    if not hasattr(header, "get_xyzt_units"):
        return affine
    name = name_from_nibabel(image) or "nibabel image"
    sizes, pixdim = np.linalg.norm(affine[:3, :3], axis=0), np.array(header.get_zooms()[:3], np.float64)
    if pixdim.all() and (np.abs(sizes / pixdim - 1) > SPACING_TOLERANCE).any():
        log.warning(
            "%s: the image has two voxel sizes: %s in its affine and %s in its pixdim. The affine is used.",
            *(name, sizes.round(4).tolist(), pixdim.round(4).tolist()),
        )
    with suppress(KeyError):  # a code that nibabel does not know
        unit = header.get_xyzt_units()[0]
        if UNIT_MM.get(unit, 1) != 1:
            log.warning("%s: lengths in %s are converted to mm", name, unit)
            affine[:3] *= UNIT_MM[unit]
    return affine


def name_from_nibabel(image: Any) -> str:
    """Name of the file that an image was loaded from, without its suffixes; empty where there is none."""
    path = image.get_filename() if hasattr(image, "get_filename") else None
    if not path:
        return ""
    name = Path(path).name
    for suffix in (".gz", ".nii", ".img", ".hdr", ".mgz", ".mgh"):
        name = name.removesuffix(suffix)
    return name


def embed_labels(header: Any, labels: Sequence[int]) -> None:
    """Note in a NIfTI header, as a comment, which label each volume of a 4-D image of probabilities is for."""
    import nibabel

    text = json.dumps({"LabelMap": [int(label) for label in labels]})
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))


def embedded_labels(header: Any) -> list[int] | None:
    """The labels that `embed_labels` noted in a header; None where there are none."""
    for extension in getattr(header, "extensions", ()):
        if extension.get_code() == 6:  # comment
            with suppress(ValueError, AttributeError):
                content = extension.get_content()
                text = content.decode() if isinstance(content, bytes) else str(content)
                values = json.loads(text.rstrip("\0")).get("LabelMap")
                if isinstance(values, list) and all(isinstance(value, int) for value in values):
                    return values
    return None
