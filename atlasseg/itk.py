"""The ITK adapter: volumes and transforms to and from SimpleITK, grids that ITK can hold, and its threads.

Arrays and axes are converted in :mod:`atlasseg.interop`; the files are read and written in :mod:`atlasseg.io`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from atlasseg.errors import InputError
from atlasseg.interop import LPS as LPS
from atlasseg.interop import affine_from_sitk
from atlasseg.interop import array_from_sitk as array_from_sitk
from atlasseg.interop import array_to_sitk as array_to_sitk
from atlasseg.interop import flip_vectors as flip_vectors
from atlasseg.transforms import Affine, BSplineField, DisplacementField, Transform
from atlasseg.volume import Float64, Grid, Image, LabelMap, Mask

if TYPE_CHECKING:
    import SimpleITK as sitk

ORTHONORMAL_TOLERANCE = 1e-4
"""Axes whose directions' products differ from 0 by less than this are perpendicular."""


def is_orthonormal(grid: Grid) -> bool:
    """Whether the axes of the grid are perpendicular, so that a NIfTI qform, DICOM or a metric of ITK can hold it."""
    direction = grid.affine[:3, :3] / grid.spacing_mm
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() < ORTHONORMAL_TOLERANCE)


def shear_degrees(grid: Grid) -> float:
    """Measure by how many degrees the angle between two axes of the grid differs most from a right one."""
    direction = grid.affine[:3, :3] / grid.spacing_mm
    cosines = np.abs(direction.T @ direction)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(min(cosines.max(), 1.0))))


def orthonormal_grid(grid: Grid) -> Grid:
    """A grid with perpendicular axes over the same space: `grid` itself where it has no shear.

    Its axes are the nearest perpendicular ones (polar decomposition), its voxels no larger than those of `grid`, and
    it holds all the corners of `grid`.
    """
    if is_orthonormal(grid):
        return grid
    u, _, vt = np.linalg.svd(grid.affine[:3, :3] / grid.spacing_mm)
    direction = u @ vt
    ahead = np.abs(direction.T @ grid.affine[:3, :3])  # how far a voxel's steps go along the new axes
    spacing = np.minimum(np.diagonal(ahead), grid.spacing_mm)
    corners = grid.corners_mm @ direction
    first, last = corners.min(axis=0), corners.max(axis=0)
    steps = np.ceil((last - first) / spacing - 1e-6).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = direction @ ((first + last - steps * spacing) / 2)
    return Grid((int(steps[0]) + 1, int(steps[1]) + 1, int(steps[2]) + 1), affine)


def image_to_sitk(volume: Image | LabelMap | Mask) -> sitk.Image:
    """The volume as ITK's: float32 (a vector where there are several channels), int32, or uint8 for a Mask."""
    return volume.to_sitk()


def grid_from_sitk(image: sitk.Image) -> Grid:
    """Where the voxels of an ITK image lie."""
    i, j, k = image.GetSize()
    return Grid((i, j, k), affine_from_sitk(image))


def image_from_sitk(image: sitk.Image, name: str = "") -> Image:
    """An ITK image as float32 intensities."""
    return Image.from_sitk(image, name=name)


def transform_to_sitk(transform: Transform, *, grid: Grid | None = None) -> sitk.Transform:
    """The transform as ITK's, on LPS points: see :meth:`.Transform.to_sitk`."""
    return transform.to_sitk(grid=grid)


def transform_from_sitk(transform: sitk.Transform) -> Transform:
    """ITK's transform as ours, on RAS points.

    Raises
    ------
    InputError
        The transform is of a kind that has no counterpart here.
    """
    import SimpleITK as sitk

    specific = transform.Downcast()
    if isinstance(specific, sitk.CompositeTransform):
        parts = [transform_from_sitk(specific.GetNthTransform(n)) for n in range(specific.GetNumberOfTransforms())]
        if not parts:
            return Affine.identity()
        composed = parts[0]
        for part in parts[1:]:
            composed = composed @ part
        return composed
    if transform.GetDimension() != 3:
        raise InputError(f"expected a transform in 3 dimensions, got {transform.GetDimension()}")
    if isinstance(specific, sitk.DisplacementFieldTransform):
        field = specific.GetDisplacementField()
        return DisplacementField(flip_vectors(array_from_sitk(field)).astype(np.float32), grid_from_sitk(field).affine)
    if isinstance(specific, sitk.BSplineTransform):
        if specific.GetOrder() != 3:
            raise InputError(f"expected a B-spline transform of order 3, got order {specific.GetOrder()}")
        images = specific.GetCoefficientImages()
        coefficients = np.stack([array_from_sitk(image) for image in images], axis=-1)
        return BSplineField(flip_vectors(coefficients), grid_from_sitk(images[0]).affine)
    if transform.IsLinear():
        return Affine(LPS @ _linear_matrix(specific) @ LPS)
    raise InputError(f"a transform of the kind {transform.GetName()} has no counterpart here")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back ITK's warnings, which go straight to standard error; they are its process's, as is their switch."""
    import SimpleITK as sitk

    global _hushed, _warned_before
    with _lock:
        if _hushed == 0:
            _warned_before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.GlobalWarningDisplayOff()
        _hushed += 1
    try:
        yield
    finally:
        with _lock:
            _hushed -= 1
            if _hushed == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_warned_before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let ITK use one thread within, so that its sums, and with them every result, do not depend on their number.

    ITK keeps that number for the whole process: it is put back when the last one who asked for this has left. Its
    warnings are held back meanwhile.
    """
    import SimpleITK as sitk

    global _asking, _threads_before
    with quiet():
        with _lock:
            if _asking == 0:
                _threads_before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
            _asking += 1
        try:
            yield
        finally:
            with _lock:
                _asking -= 1
                if _asking == 0:
                    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(_threads_before)


_lock = threading.Lock()
_asking, _threads_before = 0, 1
_hushed, _warned_before = 0, True


def last_line(error: Exception) -> str:
    """Return the last line of an error of ITK, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _linear_matrix(transform: sitk.Transform) -> Float64:
    """(4, 4) matrix, in LPS, of a linear transform of ITK."""
    matrix = np.eye(4)
    if all(hasattr(transform, name) for name in ("GetMatrix", "GetCenter", "GetTranslation")):
        centre = np.array(transform.GetCenter())
        matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
        matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
        return matrix
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix[:3, :3] = np.stack([np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)], axis=1)
    matrix[:3, 3] = origin
    return matrix
