"""Transforms to and from the files that ITK, ANTs and Slicer use."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError, OutputError
from atlasseg.files import atomic_write, checked_content, checked_path
from atlasseg.io._guard import run_guarded
from atlasseg.io._guarded import unpack_transform
from atlasseg.io._opening import open_volume
from atlasseg.io._promise import check_length
from atlasseg.io._source import log
from atlasseg.itk import (
    array_to_sitk,
    flip_vectors,
    last_line,
    orthonormal_grid,
    quiet,
    transform_from_sitk,
    transform_to_sitk,
)
from atlasseg.transforms import Chain, DisplacementField, Transform, to_displacement_field
from atlasseg.volume import Grid

_TEXT_SUFFIXES, _MATLAB_SUFFIXES, _GUARDED_SUFFIXES = (".tfm", ".txt"), (".mat",), (".h5", ".hdf5", ".xfm")
_PARAMETER_SUFFIXES = (*_TEXT_SUFFIXES, *_MATLAB_SUFFIXES, *_GUARDED_SUFFIXES)
_FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MATLAB_ITEM_SIZES = (8, 4, 4, 2, 2, 1)  # by the tens of a matrix's type, MATLAB level 4


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
        No such file, or it is damaged, or it holds a kind of transform that has no counterpart here. The message names
        the file. ``.h5`` and ``.xfm`` are read in a process of their own, which a damaged file can crash alone.
    """
    path = checked_path(path)
    kind = _suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file")
    try:
        if kind in _FIELD_SUFFIXES:
            return _read_field(path)
        if kind in _GUARDED_SUFFIXES:
            _check_hdf5(path, kind)
            return unpack_transform(run_guarded("transform", [path]))
        return _read_parameters(path, kind)
    except InputError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        raise InputError(f"{path}: expected a transform of ITK, got: {last_line(error)}") from error


def _read_field(path: Path) -> DisplacementField:
    with open_volume(path) as source:
        shape = source.shape
        if (len(shape), shape[3:]) not in ((4, (3,)), (5, (1, 3))):
            raise InputError(f"a displacement field has 3 axes and 3 components, got shape {shape}")
        vectors = np.asarray(source.array().reshape(*shape[:3], 3), np.float32)
        return DisplacementField(flip_vectors(vectors), source.affine)


def _read_parameters(path: Path, kind: str) -> Transform:
    import SimpleITK as sitk

    blocks = None
    if kind in _MATLAB_SUFFIXES:
        _check_matlab(path)
    else:
        blocks = _read_blocks(path)
    with quiet():
        found = sitk.ReadTransform(str(path))
    if blocks is not None:
        wanted = [(len(part.GetParameters()), len(part.GetFixedParameters())) for part in _leaves(found)]
        if wanted != blocks:
            raise InputError(
                f"{path}: the file is truncated or damaged: expected {wanted} parameters and fixed parameters, "
                f"got {blocks}. Copy it again."
            )
    return transform_from_sitk(found)


def _leaves(transform: Any) -> list[Any]:
    """The parts of a transform of ITK that have parameters of their own."""
    import SimpleITK as sitk

    specific = transform.Downcast()
    if not isinstance(specific, sitk.CompositeTransform):
        return [transform]
    return [leaf for n in range(specific.GetNumberOfTransforms()) for leaf in _leaves(specific.GetNthTransform(n))]


def _read_blocks(path: Path) -> list[tuple[int, int]]:
    """How many parameters and fixed parameters each transform of a text file has: ITK leaves those that lack at 0."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected a transform as text, got bytes that are no text at {error.start}. Copy it again."
        ) from error
    if not text.endswith("\n"):
        log.warning("%s: the file does not end with a line break: its last number may be cut short", path)
    blocks: list[dict[str, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, value = line.partition(":")
        if key.strip() == "Transform" and not value.strip().startswith("Composite"):
            blocks.append({})
        elif key.strip() in ("Parameters", "FixedParameters"):
            try:
                numbers = [float(part) for part in value.split()]
            except ValueError as error:
                raise InputError(f"{path}, line {number}: expected numbers, {error}. Copy the file again.") from error
            if not np.isfinite(numbers).all():
                raise InputError(f"{path}, line {number}: expected finite numbers, got NaN or infinity.")
            if blocks:
                blocks[-1][key.strip()] = len(numbers)
    for block in blocks:
        for key in ("Parameters", "FixedParameters"):
            if key not in block:
                raise InputError(f"{path}: the file is truncated: expected {key} of each transform, found none.")
    return [(block["Parameters"], block["FixedParameters"]) for block in blocks]


def _check_hdf5(path: Path, kind: str) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    if kind != ".xfm" and start != b"\x89HDF\r\n\x1a\n":
        raise InputError(f"{path}: expected a transform of ITK in HDF5, got a file that begins {start!r}.")


def _check_matlab(path: Path) -> None:
    """Refuse a file of MATLAB, level 4, whose matrices do not fill it, or have no name."""
    content = path.read_bytes()
    at = 0
    while at < len(content):
        check_length(path, at + 20, len(content))
        kind, rows, columns, imaginary, name = struct.unpack_from("<5i", content, at)
        swapped = kind // 1000 == 1 or kind < 0 or kind > 4052
        if swapped:
            kind, rows, columns, imaginary, name = struct.unpack_from(">5i", content, at)
        item = kind % 100 // 10
        if kind < 0 or item > 5 or kind % 10 or min(rows, columns) < 0 or imaginary or not 1 <= name <= 256:
            raise InputError(f"{path}: expected a transform in a .mat file of level 4, as ITK writes. Write it again.")
        end = at + 20 + name + rows * columns * _MATLAB_ITEM_SIZES[item]
        check_length(path, end, len(content))
        label = content[at + 20 : at + 20 + name].rstrip(b"\0")
        if not label.decode("latin-1").isprintable() or not label.isascii():
            raise InputError(f"{path}: expected a matrix's name as text, got {label[:20]!r}. Write the file again.")
        at = end


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

    path = checked_path(path)
    checked_content(transform, Transform, path)
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
