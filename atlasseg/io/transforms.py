"""Transform files: those of ITK, ANTs and 3D Slicer are read and written, those of other programs are read.

The format is recognised by file name and content. The conventions of each program are in
``_vector_fields.py``, ``_fsl.py`` and ``_lta.py`` of this folder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlasseg.errors import InputError, OutputError
from atlasseg.files import atomic_write, checked_content, checked_path
from atlasseg.io._fsl import Space, flirt_transform, parse_matrix
from atlasseg.io._guard import run_guarded
from atlasseg.io._guarded import unpack_transform
from atlasseg.io._lta import parse_lta
from atlasseg.io._promise import check_length
from atlasseg.io._source import log, name_file
from atlasseg.io._vector_fields import Convention, is_fsl_file, read_field
from atlasseg.itk import (
    array_to_sitk,
    flip_vectors,
    last_line,
    orthonormal_grid,
    quiet,
    transform_from_sitk,
    transform_to_sitk,
)
from atlasseg.transforms import Affine, Chain, DisplacementField, Transform, to_displacement_field
from atlasseg.volume import Float64, Grid

__all__ = ["read_ants_transforms", "read_transform", "write_transform"]

_TEXT_SUFFIXES, _MATLAB_SUFFIXES, _GUARDED_SUFFIXES = (".tfm", ".txt"), (".mat",), (".h5", ".hdf5", ".xfm")
_LTA_SUFFIX, _LARGEST_MATRIX = ".lta", 1 << 14
_PARAMETER_SUFFIXES = (*_TEXT_SUFFIXES, *_MATLAB_SUFFIXES, *_GUARDED_SUFFIXES)
_FIELD_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MATLAB_ITEM_SIZES = (8, 4, 4, 2, 2, 1)  # by the tens digit of the matrix type, MATLAB level 4


def read_transform(
    path: str | Path,
    *,
    convention: Convention | None = None,
    flirt_source: Space | None = None,
    flirt_reference: Space | None = None,
) -> Transform:
    """Read a transform of ITK, ANTs, Slicer, FSL, FreeSurfer, SPM or NiftyReg.

    Parameters
    ----------
    path : path
        ``.tfm .txt .mat .h5 .xfm``: parameters of ITK, or a 4x4 matrix of FLIRT as text. ``.lta``: FreeSurfer.
        ``.nii .nii.gz .nrrd .mha``: displacements of ITK and ANTs (LPS vectors in mm, in NIfTI with intent 1007),
        a deformation of SPM (``y_*.nii``: positions in RAS mm), a warp field or cubic spline coefficients of FNIRT, or
        a field of NiftyReg.
    convention : str, optional
        Convention of a field or a 4x4 matrix, if the file does not define it: "itk" (displacements in LPS
        mm), "ras-displacement", "spm" (positions in RAS mm), "fnirt-relative" or "fnirt-absolute"; for a matrix
        "flirt", or "ras" (RAS mm of the fixed to RAS mm of the moving image).
    flirt_source, flirt_reference : path or Grid, optional
        Source (``-in``) and reference (``-ref``) image of FLIRT or FNIRT. Its files cannot be read without them.

    Returns
    -------
    Transform
        Transform from points of the fixed (reference) to points of the moving (source) image in RAS+ mm, regardless of
        the direction in the file. Resampling needs this direction.

    Raises
    ------
    InputError
        The file does not exist, is damaged, holds an unsupported kind of transform, or is ambiguous; in the last case
        the message names the missing argument. The message names the file. ``.h5`` and ``.xfm`` are read in a child
        process, because damaged files can crash their reader.
    """
    path = checked_path(path)
    kind = _suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file")
    try:
        if kind in _FIELD_SUFFIXES:
            return read_field(path, convention, flirt_source, flirt_reference)
        if kind == _LTA_SUFFIX:
            return parse_lta(_read_text(path, "an LTA file"), path)
        matrix = _read_matrix(path)
        if matrix is not None and convention == "ras":
            return name_file(path, lambda: Affine(matrix))
        if matrix is not None:
            return flirt_transform(matrix, path, flirt_source, flirt_reference)
        if kind in _GUARDED_SUFFIXES:
            _check_hdf5(path, kind)
            return unpack_transform(run_guarded("transform", [path]))
        return _read_parameters(path, kind)
    except InputError as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        raise InputError(f"{path}: expected a transform of ITK, got: {last_line(error)}") from error


def _read_matrix(path: Path) -> Float64 | None:
    """4x4 matrix of a file with nothing else in it; None for other files."""
    if path.stat().st_size > _LARGEST_MATRIX:
        return None
    try:
        return parse_matrix(path.read_bytes().decode("ascii"))
    except UnicodeDecodeError:
        return None


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected {what} as text, got byte {error.start} that is not text. Copy it again."
        ) from error


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
        expected = [(len(part.GetParameters()), len(part.GetFixedParameters())) for part in _leaves(found)]
        if expected != blocks:
            raise InputError(
                f"{path}: the file is truncated or damaged: expected {expected} parameters and fixed parameters, "
                f"got {blocks}. Copy it again."
            )
    return transform_from_sitk(found)


def _leaves(transform: Any) -> list[Any]:
    """Parts of an ITK transform that have their own parameters."""
    import SimpleITK as sitk

    specific = transform.Downcast()
    if not isinstance(specific, sitk.CompositeTransform):
        return [transform]
    return [leaf for n in range(specific.GetNumberOfTransforms()) for leaf in _leaves(specific.GetNthTransform(n))]


def _read_blocks(path: Path) -> list[tuple[int, int]]:
    """Count the parameters and fixed parameters of each transform in a text file; ITK sets missing ones to 0."""
    text = _read_text(path, "a transform")
    if not text.endswith("\n"):
        log.warning("%s: the file does not end with a line break; its last number may be truncated", path)
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
    """Check that the matrices in a MATLAB level 4 file fill the file and have names."""
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


def read_ants_transforms(
    paths: Sequence[str | Path],
    *,
    convention: Convention | None = None,
    flirt_source: Space | Sequence[Space] | None = None,
    flirt_reference: Space | Sequence[Space] | None = None,
) -> Transform:
    """Read a list of transform files and compose them like ``antsApplyTransforms``, in the same order and notation.

    ``[warp, affine]``, the forward transforms of `antsRegistration`, map a point of the fixed image by the warp first
    and then by the affine.

    Parameters
    ----------
    paths : sequence of paths
        Files in the order of the ANTs command line. ``"[affine.mat,1]"`` is the inverse of a file, ``"[affine.mat,0]"``
        the file itself. The inverse of a displacement field is computed numerically at each point.
    convention : str, optional
        As for `read_transform`, for every file.
    flirt_source, flirt_reference : path or Grid, or a sequence of these, optional
        As for `read_transform`: one for all files of FSL, or one for each, in their order.

    Returns
    -------
    Transform

    Raises
    ------
    InputError
        The list is empty, or a file cannot be read.
    """
    entries = [split_ants_entry(path) for path in paths]
    if not entries:
        raise InputError("expected at least one transform file, got none")
    of_fsl = [n for n, (path, _) in enumerate(entries) if _needs_images(path, convention)]
    sources = _one_for_each(flirt_source, len(of_fsl), "flirt_source")
    references = _one_for_each(flirt_reference, len(of_fsl), "flirt_reference")
    composed: Transform | None = None
    for n, (path, inverted) in enumerate(entries):
        found = read_transform(
            path,
            convention=convention,
            flirt_source=sources[of_fsl.index(n)] if n in of_fsl else None,
            flirt_reference=references[of_fsl.index(n)] if n in of_fsl else None,
        )
        found = ~found if inverted else found
        composed = found if composed is None else found @ composed
    assert composed is not None
    return composed


def split_ants_entry(entry: str | Path) -> tuple[Path, bool]:
    """Split an entry of an ANTs command line into the file and whether to invert it.

    Examples
    --------
    >>> split_ants_entry("[affine.mat, 1]"), split_ants_entry("affine.mat")
    ((...Path('affine.mat'), True), (...Path('affine.mat'), False))
    """
    text = str(entry).strip()
    if not (text.startswith("[") and text.endswith("]")) or Path(text).is_file():
        return checked_path(entry), False
    name, comma, flag = text[1:-1].rpartition(",")
    if not comma or flag.strip() not in ("0", "1") or not name.strip():
        raise InputError(f"{text}: expected [FILE,1] for the inverse of a file or [FILE,0] for the file itself.")
    return checked_path(name.strip()), flag.strip() == "1"


def _needs_images(path: Path, convention: Convention | None) -> bool:
    """Whether a file is one of FSL, which needs the source and reference images."""
    if not path.is_file():
        return False  # reading it raises the error
    if _suffix(path) in _FIELD_SUFFIXES:
        return is_fsl_file(path, convention)
    return convention != "ras" and _read_matrix(path) is not None


def _one_for_each(given: Space | Sequence[Space] | None, count: int, what: str) -> list[Space | None]:
    """Expand the images to one for each file of FSL."""
    if given is None or isinstance(given, str | Path | Grid):
        return [given] * count
    if len(given) == 1:
        return [given[0]] * count
    if len(given) != count:
        raise InputError(f"{what}: expected one image, or one for each of {count} transforms of FSL, got {len(given)}.")
    return [*given]


def write_transform(transform: Transform, path: str | Path, *, grid: Grid | None = None) -> None:
    """Write a transform atomically to a file for ITK, ANTs and 3D Slicer.

    Parameters
    ----------
    transform : Transform
        The transform to write.
    path : path
        ``.mat``: one transform; ``.tfm .txt``: one transform or a chain; ``.h5``: any transform; ``.nii .nii.gz .nrrd
        .mha``: a displacement field, sampled from any transform on `grid`.
    grid : Grid, optional
        Grid of the displacement field; by default the domain of the transform. An image file cannot hold a sheared
        grid: the field is then sampled on the perpendicular grid that covers it.

    Raises
    ------
    InputError
        The suffix is unknown, its format cannot hold this transform, or a grid is needed and not given.
    OutputError
        The file cannot be written. The message names the file and the cause.
    """
    import SimpleITK as sitk

    path = checked_path(path)
    checked_content(transform, Transform, path)
    kind = _suffix(path, written=True)
    if kind == ".mat" and isinstance(transform, Chain):
        raise InputError(
            f"{path}: expected one transform for a .mat file, got a chain of {len(transform.transforms)}. Use .h5."
        )
    if kind in _PARAMETER_SUFFIXES:
        parameters = transform_to_sitk(transform, grid=grid)
        _write(path, lambda aside: sitk.WriteTransform(parameters, aside))
        return
    where = grid or transform.domain
    if where is None:
        raise InputError(f"{path}: expected a grid for the displacement field. Give grid=.")
    where = orthonormal_grid(where)
    if isinstance(transform, DisplacementField) and where.matches(transform.grid):
        field = transform
    else:
        field = to_displacement_field(transform, where)
    image = array_to_sitk(flip_vectors(field.displacement_mm), field.affine, vector=True)
    _write(path, lambda aside: sitk.WriteImage(image, aside))


def _write(path: Path, write: Callable[[str], None]) -> None:
    """Write a file with ITK atomically."""
    with atomic_write(path) as aside:
        try:
            write(str(aside))
        except RuntimeError as error:
            raise OutputError(f"{path}: cannot be written: {last_line(error)}") from error


def _suffix(path: Path, *, written: bool = False) -> str:
    known: tuple[str, ...] = (*_PARAMETER_SUFFIXES, *_FIELD_SUFFIXES[::-1], *(() if written else (_LTA_SUFFIX,)))
    for kind in known:
        if path.name.lower().endswith(kind):
            return kind
    raise InputError(f"{path}: expected a transform file with one of the suffixes {' '.join(known)}")
