"""Fields of vectors in volume files: which program wrote them, and what their vectors mean.

The same (I, J, K, 3) numbers may be displacements or positions, in LPS, RAS or FSL's mm. A header says which by its
intent (FNIRT, NiftyReg, SPM) or not at all (ITK and ANTs write 1007, as do others). Therefore the vectors are compared
with the positions of their voxels as well: positions follow them, displacements do not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.io import _fsl
from atlasseg.io._opening import open_volume
from atlasseg.io._source import log
from atlasseg.io._suffixes import NIFTI_SUFFIXES, volume_suffix
from atlasseg.io.nifti import read_nifti_header, read_nifti_values
from atlasseg.itk import flip_vectors
from atlasseg.transforms import DisplacementField, Transform, grid_points
from atlasseg.volume import Float64, Grid

Convention = Literal["itk", "ras-displacement", "spm", "fnirt-relative", "fnirt-absolute", "flirt", "ras"]
"""What a file holds whose content does not say it.

Fields: ``itk`` displacements in LPS mm; ``ras-displacement`` the same in RAS mm; ``spm`` positions in RAS mm;
``fnirt-relative`` and ``fnirt-absolute`` displacements or positions in FSL's mm. Matrices of 4x4 numbers: ``flirt``,
and ``ras`` from RAS mm of the fixed to RAS mm of the moving image.
"""

FIELD_CONVENTIONS = ("itk", "ras-displacement", "spm", "fnirt-relative", "fnirt-absolute")
_VECTOR, _DISPLACEMENT = 1007, 1006
_SPM_NAME = re.compile(r"^i?w?y_", re.I)
_NIFTYREG = {0: "spm", 1: "ras-displacement"}  # intent_p1: deformation and displacement field
_FOLLOWS = 0.5  # how far the slope of vectors against positions may be from 1 (positions) or 0 (displacements)


def read_field(
    path: Path, convention: Convention | None, source: _fsl.Space | None, reference: _fsl.Space | None
) -> Transform:
    """A transform from a volume of vectors, or of coefficients of FNIRT.

    Raises
    ------
    InputError
        It is no such volume, or what its vectors mean cannot be known. The message says what to add.
    """
    header: Any = None
    if volume_suffix(path.name) in NIFTI_SUFFIXES:
        header = read_nifti_header(path)
        code = int(header["intent_code"])
        if code == _fsl.CUBIC:
            return _fsl.spline_field(_vectors(path, read_nifti_values(path)), header, path, source, reference)
        if code in _fsl.CODES and code != _fsl.DISPLACEMENTS:
            raise InputError(
                f"{path}: expected a warp field or cubic spline coefficients of FNIRT, got {_fsl.CODES[code]}. Make a "
                "warp field: fnirtfileutils --in=COEFFICIENTS --ref=REFERENCE --out=FIELD --withaff."
            )
    with open_volume(path) as opened:
        vectors, affine = _vectors(path, opened.array()), opened.affine
    chosen = convention if convention in FIELD_CONVENTIONS else _recognise(path, header, vectors, affine)
    if chosen == "itk":
        return DisplacementField(flip_vectors(vectors), affine)
    if chosen == "ras-displacement":
        return DisplacementField(vectors, affine)
    if chosen == "spm":
        return _from_positions(path, vectors, affine)
    absolute = None if chosen == "fnirt" else chosen == "fnirt-absolute"
    return _fsl.warp_field(vectors, affine, path, source, absolute=absolute)


def is_fsl_file(path: Path, convention: Convention | None) -> bool:
    """Whether a volume file holds a field or coefficients of FNIRT, which need images."""
    if convention in FIELD_CONVENTIONS:
        return str(convention).startswith("fnirt")
    return volume_suffix(path.name) in NIFTI_SUFFIXES and (int(read_nifti_header(path)["intent_code"]) in _fsl.CODES)


def _vectors(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    """(I, J, K, 3) float32 from what a file holds."""
    shape = values.shape
    if (len(shape), shape[3:]) not in ((4, (3,)), (5, (1, 3))):
        raise InputError(f"{path}: expected a field with 3 axes and 3 components, got shape {shape}")
    return np.asarray(values.reshape(*shape[:3], 3), np.float32)


def _recognise(path: Path, header: Any, vectors: NDArray[np.float32], affine: Float64) -> str:
    """The convention of a field, from header, name and vectors."""
    slope = _slope(vectors, affine)
    follows = bool(np.abs(slope - np.eye(3)).max() < _FOLLOWS)
    if header is None:
        said, why = "itk", ""
    else:
        code, name = int(header["intent_code"]), _text(header["intent_name"])
        description = _text(header["descrip"])
        if code == _fsl.DISPLACEMENTS:
            return "fnirt"
        if name == "NREG_TRANS":
            found = _NIFTYREG.get(round(float(header["intent_p1"])))
            if found is None:
                raise InputError(
                    f"{path}: expected a deformation or displacement field of NiftyReg, got one of splines or of "
                    "velocities. Make a field: reg_transform -ref REFERENCE -def TRANSFORM FIELD."
                )
            return found
        if name.lower() == "velocity" or re.match(r"^[uv]_rc", path.name, re.I):
            raise InputError(
                f"{path}: expected a deformation (y_*.nii) of SPM, got velocities. Make one by SPM's Deformations."
            )
        if name == "Mapping" or description.lower().startswith("deformation"):
            said, why = "spm", f"its header ({name or description}) is that of a deformation of SPM"
        elif _SPM_NAME.match(path.name):
            said, why = "spm", "its name is that of a deformation of SPM"
        elif code in (_VECTOR, _DISPLACEMENT):
            said, why = "itk", ""
        else:
            raise _unknown(path, f"NIfTI intent {code}, which says nothing of vectors")
    if said == "itk" and (follows or np.abs(slope - np.diag([-1, -1, 1])).max() < _FOLLOWS):
        raise _unknown(path, "vectors that follow the positions of their voxels, so that they may be positions")
    if said == "spm" and not follows and np.isfinite(vectors).any():
        raise _unknown(path, f"vectors that do not follow the positions of their voxels, although {why}")
    return said


def _unknown(path: Path, got: str) -> InputError:
    return InputError(
        f"{path}: expected vectors whose meaning is known, got {got}. Add --convention: itk (displacements, LPS mm), "
        "ras-displacement, spm (positions, RAS mm), fnirt-relative or fnirt-absolute."
    )


def _text(value: Any) -> str:
    return bytes(np.asarray(value).tobytes()).split(b"\0")[0].decode("latin-1").strip()


def _slope(vectors: NDArray[np.float32], affine: Float64) -> Float64:
    """Fit the (3, 3) slope of the vectors against the RAS positions of about 4000 of their voxels, by least squares."""
    steps = [max(1, n // 16) for n in vectors.shape[:3]]
    thinned = vectors[:: steps[0], :: steps[1], :: steps[2]].astype(np.float64)
    sparse = affine @ np.diag([*steps, 1.0])
    positions = grid_points(Grid((thinned.shape[0], thinned.shape[1], thinned.shape[2]), sparse)).reshape(-1, 3)
    values = thinned.reshape(-1, 3)
    known = np.isfinite(values).all(axis=1)
    if known.sum() < 4:
        return np.zeros((3, 3))
    x, y = positions[known] - positions[known].mean(axis=0), values[known] - values[known].mean(axis=0)
    solved: Float64 = np.linalg.lstsq(x, y, rcond=None)[0].T
    rank = int(np.linalg.matrix_rank(x))
    if rank in (1, 2):  # a single slice does not say how vectors change across it: as they change within it
        solved = solved + (np.eye(3) - np.linalg.pinv(x) @ x) * np.trace(solved) / rank
    return solved


def _from_positions(path: Path, positions: NDArray[np.float32], affine: Float64) -> DisplacementField:
    """Convert positions in RAS mm to displacements; a voxel with NaN gets the displacement of the nearest known one."""
    from scipy.ndimage import distance_transform_edt

    moved = positions - grid_points(Grid((positions.shape[0], positions.shape[1], positions.shape[2]), affine))
    unknown = ~np.isfinite(moved).all(axis=-1)
    if unknown.all():
        raise InputError(f"{path}: expected positions in mm, got NaN alone.")
    if unknown.any():
        log.warning(
            "%s: %d of %d positions are NaN; their voxels move as the nearest one whose position is known",
            path,
            int(unknown.sum()),
            unknown.size,
        )
        nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
        moved = moved[tuple(nearest)]
    return DisplacementField(moved.astype(np.float32), affine)
