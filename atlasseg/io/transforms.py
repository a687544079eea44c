"""Transforms to and from the files that ITK, ANTs and Slicer use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atlasseg.errors import InputError, OutputError
from atlasseg.files import atomic_write
from atlasseg.itk import (
    array_from_sitk,
    array_to_sitk,
    flip_vectors,
    grid_from_sitk,
    last_line,
    orthonormal_grid,
    transform_from_sitk,
    transform_to_sitk,
)
from atlasseg.transforms import Chain, DisplacementField, Transform, to_displacement_field
from atlasseg.volume import Grid

_PARAMETER_SUFFIXES = (".tfm", ".txt", ".mat", ".h5", ".hdf5", ".xfm")
_FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_transform(path: str | Path) -> Transform:
    """A transform from a file of ITK, ANTs or Slicer.

    Parameters
    ----------
    path : path
        ``.tfm .txt .mat .h5 .xfm``: parameters; ``.nii .nii.gz .nrrd .mha``: a displacement field, LPS vectors in mm
        (in NIfTI with intent 1007, as ANTs writes).

    Raises
    ------
    InputError
        No such file, or ITK cannot read it, or it holds a kind of transform that has no counterpart here.
    """
    import SimpleITK as sitk

    path = Path(path)
    kind = _suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file")
    try:
        if kind in _PARAMETER_SUFFIXES:
            return transform_from_sitk(sitk.ReadTransform(str(path)))
        field = sitk.ReadImage(str(path), sitk.sitkVectorFloat32)
        if field.GetDimension() != 3 or field.GetNumberOfComponentsPerPixel() != 3:
            raise InputError(
                f"a displacement field has 3 axes and 3 components, got {field.GetDimension()} axes and "
                f"{field.GetNumberOfComponentsPerPixel()} components"
            )
        return DisplacementField(flip_vectors(array_from_sitk(field)), grid_from_sitk(field).affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"{path}: ITK cannot read a transform from it: {last_line(error)}") from error


def read_ants_transforms(paths: list[str] | list[Path]) -> Transform:
    """The transform that ``antsApplyTransforms`` makes of the files, in the order in which they are given to it.

    ``[warp, affine]``, which is what `antsRegistration` leaves as its forward transforms, moves a point of the fixed
    image by the warp first and then by the affine.
    """
    if not paths:
        raise InputError("no transform files were given")
    composed = read_transform(paths[0])
    for path in paths[1:]:
        composed = read_transform(path) @ composed
    return composed


def write_transform(transform: Transform, path: str | Path, *, grid: Grid | None = None) -> None:
    """The transform to a file that ITK, ANTs and Slicer read; the file appears whole or not at all.

    Parameters
    ----------
    transform : Transform
    path : path
        ``.tfm .txt .mat``: one transform (``.tfm .txt`` hold chains too); ``.h5``: any; ``.nii .nii.gz .nrrd .mha``:
        a displacement field, into which any transform is sampled on `grid`.
    grid : Grid, optional
        Where to sample; by default where a displacement field, or what an `Inverse` inverts, is defined. An image
        file cannot hold a sheared grid, so there the field is sampled on the perpendicular grid that covers it.

    Raises
    ------
    InputError
        The file name says no known kind, the kind cannot hold this transform, or a grid is wanted.
    OutputError
        It cannot be written; the message names the file and the cause.
    """
    import SimpleITK as sitk

    path = Path(path)
    kind = _suffix(path)
    if kind == ".mat" and isinstance(transform, Chain):
        raise InputError(
            f"{path}: a .mat file holds one transform, not a chain of {len(transform.transforms)}: use .h5"
        )
    if kind in _PARAMETER_SUFFIXES:
        parameters = transform_to_sitk(transform, grid=grid)
        _write(path, lambda aside: sitk.WriteTransform(parameters, aside))
        return
    where = grid or transform.domain
    if where is None:
        raise InputError(f"{path}: a grid is wanted, on which to sample the displacement field")
    where = orthonormal_grid(where)
    if isinstance(transform, DisplacementField) and where.matches(transform.grid):
        field = transform
    else:
        field = to_displacement_field(transform, where)
    image = array_to_sitk(flip_vectors(field.displacement_mm), field.affine, vector=True)
    _write(path, lambda aside: sitk.WriteImage(image, aside))


def _write(path: Path, write: Callable[[str], None]) -> None:
    """Let ITK write a file that appears whole or not at all."""
    with atomic_write(path) as aside:
        try:
            write(str(aside))
        except RuntimeError as error:
            raise OutputError(f"{path}: cannot be written: {last_line(error)}") from error


def _suffix(path: Path) -> str:
    for kind in (*_PARAMETER_SUFFIXES, *_FIELD_SUFFIXES[::-1]):
        if path.name.lower().endswith(kind):
            return kind
    raise InputError(
        f"{path}: a transform is read from or written to {' '.join(_PARAMETER_SUFFIXES + _FIELD_SUFFIXES)}"
    )
