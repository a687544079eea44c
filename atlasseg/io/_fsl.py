"""Transforms of FSL: matrices of FLIRT, warp fields and spline coefficients of FNIRT.

FSL's coordinates are voxel indices times the voxel size; the first axis is counted from the other end if the affine
has a positive determinant ("neurological" storage). A file therefore needs the two images between which it was found:
the source (``-in``) and the reference (``-ref``). FLIRT's matrix takes points of the source to points of the reference;
FNIRT's fields take points of the reference to points of the source. Everything returned here takes points of the
reference, our fixed image, to points of the source, RAS+ mm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.io._opening import open_volume
from atlasseg.io._source import log
from atlasseg.transforms import Affine, BSplineField, DisplacementField, Transform
from atlasseg.volume import Float64, Grid

DISPLACEMENTS, CUBIC = 2006, 2007
"""NIfTI intent codes of FNIRT that are read: a warp field, and coefficients of cubic splines."""

CODES = {
    2006: "a warp field of FNIRT",
    2007: "cubic spline coefficients of FNIRT",
    2008: "coefficients of cosines of FNIRT",
    2009: "quadratic spline coefficients of FNIRT",
    2016: "a field of TOPUP",
    2017: "cubic spline coefficients of TOPUP",
    2018: "coefficients of cosines of TOPUP",
    2019: "quadratic spline coefficients of TOPUP",
}
"""NIfTI intent codes of FSL, and what they say."""

Space = Grid | str | Path
"""One of the two images of a transform of FSL: its file, or where its voxels lie."""


def parse_matrix(text: str) -> Float64 | None:
    """The (4, 4) matrix of a text of four lines of four numbers; None where it is something else."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        matrix = np.array([[float(number) for number in line] for line in lines])
    except ValueError:
        return None
    return matrix if matrix.shape == (4, 4) else None


def flirt_transform(matrix: Float64, path: Path, source: Space | None, reference: Space | None) -> Affine:
    """FLIRT's matrix as a transform from points of the reference to points of the source.

    Parameters
    ----------
    matrix : (4, 4)
        As it stands in the file.
    path : Path
        Of the file, for messages.
    source, reference : Grid or path
        The images that FLIRT was given as ``-in`` and ``-ref``.
    """
    if source is None or reference is None:
        lacking = [name for name, given in (("source", source), ("reference", reference)) if given is None]
        raise InputError(
            f"{path}: a 4x4 matrix as FLIRT writes, which holds only for two images: expected both, got no "
            f"{' and no '.join(lacking)}. Add --flirt-source and --flirt-reference (FLIRT's -in and -ref), or "
            "--convention ras for a matrix that takes RAS mm of the fixed to RAS mm of the moving image."
        )
    from_source, from_reference = _fsl_from_ras(source), _fsl_from_ras(reference)
    pull = np.linalg.inv(from_source) @ np.linalg.inv(matrix) @ from_reference
    pull[3] = 0, 0, 0, 1
    return Affine(pull)


def warp_field(
    vectors: NDArray[Any], affine: Float64, path: Path, source: Space | None, *, absolute: bool | None
) -> Transform:
    """A warp field of FNIRT (``--fout``) or convertwarp.

    Parameters
    ----------
    vectors : (I, J, K, 3)
        In FSL's mm, on the grid of the reference.
    affine : (4, 4)
        Of the file, which is that of the reference.
    path : Path
        For messages.
    source : Grid or path
        The image that FNIRT was given as ``--in``.
    absolute : bool, optional
        Whether the vectors are positions in the source (``convertwarp --absout``) or displacements. FSL's files do not
        say, so by default the kind is taken whose standard deviation is smaller, which is FSL's own rule.
    """
    if source is None:
        raise InputError(
            f"{path}: {CODES[DISPLACEMENTS]}, which holds only for the image that was warped: expected it, got none. "
            "Add --flirt-source (FNIRT's --in)."
        )
    from_source = _fsl_from_ras(source)
    grid = Grid((vectors.shape[0], vectors.shape[1], vectors.shape[2]), affine)
    from_reference = _fsl_from_ras(grid)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    to_fsl = from_reference @ grid.affine
    positions = voxels @ to_fsl[:3, :3].T + to_fsl[:3, 3]
    field = np.asarray(vectors, np.float64)
    if absolute is None:
        absolute = bool(field.std(axis=(0, 1, 2)).sum() > (field - positions).std(axis=(0, 1, 2)).sum())
        log.info("%s: read as %s of FNIRT", path, "absolute positions" if absolute else "relative displacements")
    moved_mm = field - positions if absolute else field
    return _in_ras(from_source, from_reference) @ DisplacementField(
        (moved_mm @ np.linalg.inv(from_reference[:3, :3]).T).astype(np.float32), grid.affine
    )


def spline_field(
    coefficients: NDArray[Any], header: Any, path: Path, source: Space | None, reference: Space | None
) -> Transform:
    """Coefficients of FNIRT (``--cout``).

    The displacement of a point of the reference is the cubic spline, and to it FNIRT adds the inverse of the matrix of
    FLIRT (``--aff``) from which it started. That matrix stands in the file in position of the sform, the distance of
    control points in voxels of the reference in position of the voxel size, and the voxel size in position of the
    parameters of the intent.
    """
    if source is None or reference is None:
        raise InputError(
            f"{path}: {CODES[CUBIC]}, which hold only for two images: expected both. Add --flirt-source and "
            "--flirt-reference (FNIRT's --in and --ref)."
        )
    from_source, from_reference = _fsl_from_ras(source), _fsl_from_ras(reference)
    if _fsl_flips(reference):
        raise InputError(
            f"{path}: expected a reference whose first axis runs to the left (a negative determinant, as of MNI "
            "templates), since FSL does not say from which end it counts control points else. Make a warp field: "
            "fnirtfileutils --in=COEFFICIENTS --ref=REFERENCE --out=FIELD --withaff."
        )
    knots_mm = np.array([float(header["pixdim"][n + 1]) * float(header[f"intent_p{n + 1}"]) for n in range(3)])
    if not (np.isfinite(knots_mm).all() and (knots_mm > 0).all()):
        raise InputError(f"{path}: expected distances of control points above 0, got {knots_mm.tolist()} mm.")
    start = np.linalg.inv(np.asarray(header.get_sform(), np.float64))
    index_to_fsl = np.diag([*knots_mm, 1.0])
    # the first control point lies one step before the first voxel; beyond the last ones FSL takes coefficients of 0,
    # which are added so that rounding cannot put an outermost voxel out of the spline
    index_to_fsl[:3, 3] = -2 * knots_mm
    padded = np.pad(np.asarray(coefficients, np.float64), ((1, 1), (1, 1), (1, 1), (0, 0)))
    pull = np.linalg.inv(from_source) @ start @ from_reference
    pull[3] = 0, 0, 0, 1
    # source = start(reference) + spline: moved before `pull` by what comes to the spline after it
    before = np.linalg.inv((start @ from_reference)[:3, :3])
    return Affine(pull) @ BSplineField(padded @ before.T, np.linalg.inv(from_reference) @ index_to_fsl)


def _in_ras(from_source: Float64, from_reference: Float64) -> Affine:
    """Points of the reference to those with the same FSL coordinates in the source, both in RAS mm."""
    matrix = np.linalg.inv(from_source) @ from_reference
    matrix[3] = 0, 0, 0, 1
    return Affine(matrix)


def _fsl_from_ras(space: Space) -> Float64:
    """(4, 4) RAS+ mm to the coordinates of FSL of one image."""
    grid = _grid(space)
    scaled = np.diag([*grid.spacing_mm, 1.0])
    if _fsl_flips(grid):
        scaled[0, 0], scaled[0, 3] = -grid.spacing_mm[0], (grid.shape[0] - 1) * grid.spacing_mm[0]
    matrix: Float64 = scaled @ np.linalg.inv(grid.affine)
    return matrix


def _fsl_flips(space: Space) -> bool:
    """Whether FSL counts the first axis of an image from its other end."""
    return bool(np.linalg.det(_grid(space).affine[:3, :3]) > 0)


def _grid(space: Space) -> Grid:
    """Where the voxels of an image lie; its header must give one voxel size, in mm, which is what FSL uses."""
    if isinstance(space, Grid):
        return space
    path = Path(space)
    with open_volume(path) as source:
        header, shape = source.source_header, source.shape
        if header.pixdim_mm is not None:
            raise InputError(
                f"{path}: expected one voxel size, since FSL takes it from pixdim and the position from the sform; got "
                "two. Correct the header."
            )
        if header.unit not in ("mm", "unknown"):
            raise InputError(f"{path}: expected a header in mm, which FSL takes for granted, got {header.unit}.")
        if len(shape) < 3:
            raise InputError(f"{path}: expected a 3-D image, got shape {shape}.")
        return Grid((shape[0], shape[1], shape[2]), source.affine)
