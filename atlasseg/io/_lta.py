"""Linear transforms of FreeSurfer (``.lta``).

An LTA file takes points of a source volume to points of a destination volume, in one of three kinds of coordinates:
RAS mm of the scanner, voxels, or FreeSurfer's own RAS ("tkRAS", centred on the volume). The geometry of both volumes
stands in the file. FreeSurfer resamples the source on the grid of the destination, which is our fixed image: the
transform returned here is the inverse of the matrix, in scanner RAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlasseg.errors import InputError
from atlasseg.transforms import Affine
from atlasseg.volume import Float64

_VOXELS, _SCANNER_RAS, _TK_RAS = 0, 1, 21
_KINDS = {
    _VOXELS: "LINEAR_VOX_TO_VOX",
    _SCANNER_RAS: "LINEAR_RAS_TO_RAS",
    _TK_RAS: "LINEAR_COR_TO_COR",
    2: "LINEAR_PHYSVOX_TO_PHYSVOX",
    14: "REGISTER_DAT",
}
_NUMBER_OF = {"valid": 1, "volume": 3, "voxelsize": 3, "xras": 3, "yras": 3, "zras": 3, "cras": 3}


@dataclass(frozen=True, eq=False)
class _Geometry:
    """Where the voxels of one of the two volumes lie.

    `affine` takes voxels to scanner RAS mm, `tk_affine` to tkRAS mm.
    """

    affine: Float64
    tk_affine: Float64


def parse_lta(text: str, path: Path) -> Affine:
    """The transform from points of the destination to points of the source, RAS+ mm.

    Parameters
    ----------
    text : str
        Content of the file.
    path : Path
        For messages.

    Raises
    ------
    InputError
        The text is damaged, holds several transforms, or is of a kind without a geometry that it needs.

    References
    ----------
    FreeSurfer, utils/transform.cpp: ``LTAchangeType`` and ``vg_i_to_r``.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    fields = dict(_field(line) for line in lines if "=" in line and line.split("=")[0].strip() in ("type", "nxforms"))
    kind, count = (_whole(fields.get(key, ""), key, path) for key in ("type", "nxforms"))
    if count != 1:
        raise InputError(f"{path}: expected one transform, got {count}. Write each to a file of its own.")
    if kind not in (_VOXELS, _SCANNER_RAS, _TK_RAS):
        raise InputError(
            f"{path}: expected an LTA of type 0 (voxels), 1 (RAS) or 21 (tkRAS), got {kind} "
            f"({_KINDS.get(kind, 'unknown')}). Convert it: lta_convert --inlta {path.name} --outlta ras2ras.lta."
        )
    matrix = _matrix(lines, path)
    if kind != _SCANNER_RAS:
        source, destination = (_geometry(lines, which, path, _KINDS[kind]) for which in ("src", "dst"))
        if kind == _VOXELS:
            matrix = destination.affine @ matrix @ np.linalg.inv(source.affine)
        else:
            to_ras = [g.affine @ np.linalg.inv(g.tk_affine) for g in (source, destination)]
            matrix = to_ras[1] @ matrix @ np.linalg.inv(to_ras[0])
        matrix[3] = 0, 0, 0, 1
    return ~Affine(matrix)


def _field(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _whole(value: str, key: str, path: Path) -> int:
    try:
        return int(value.split()[0])
    except (IndexError, ValueError):
        raise InputError(f"{path}: expected a whole number as {key}, got {value!r}. Copy the file again.") from None


def _numbers(value: str, count: int, what: str, path: Path) -> Float64:
    """So many finite numbers from a line."""
    try:
        found = np.array([float(part) for part in value.split()])
    except ValueError:
        found = np.zeros(0)
    if found.size != count or not np.isfinite(found).all():
        raise InputError(f"{path}: expected {count} numbers as {what}, got {value!r}. Copy the file again.")
    return found


def _matrix(lines: list[str], path: Path) -> Float64:
    """The (4, 4) matrix, which follows the line ``1 4 4``."""
    starts = [n for n, line in enumerate(lines) if line.split() == ["1", "4", "4"]]
    if len(starts) != 1 or len(lines) < starts[0] + 5:
        raise InputError(f"{path}: expected a matrix of four lines after the line '1 4 4'. Copy the file again.")
    rows = [_numbers(line, 4, "a row of the matrix", path) for line in lines[starts[0] + 1 : starts[0] + 5]]
    return np.stack(rows)


def _geometry(lines: list[str], which: str, path: Path, kind: str) -> _Geometry:
    """The geometry of the source (``src``) or destination (``dst``)."""
    heading = [n for n, line in enumerate(lines) if line.lower() == f"{which} volume info"]
    if len(heading) != 1:
        raise InputError(f"{path}: expected one section '{which} volume info', got {len(heading)}.")
    values: dict[str, str] = {}
    for line in lines[heading[0] + 1 :]:
        if "=" not in line:
            break
        key, value = _field(line)
        values[key] = value
    found = {key: _numbers(values.get(key, ""), n, f"{key} of {which}", path) for key, n in _NUMBER_OF.items()}
    if found["valid"][0] != 1:
        raise InputError(
            f"{path}: expected the geometry of both volumes, which {kind} needs, got that of {which} as not valid. "
            f"Convert it: lta_convert --inlta {path.name} --outlta ras2ras.lta --src SRC.mgz --trg DST.mgz."
        )
    size, voxels = found["voxelsize"], found["volume"]
    axes = np.stack([found["xras"], found["yras"], found["zras"]], axis=1)
    tk_axes = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return _Geometry(_centred(axes * size, voxels, found["cras"]), _centred(tk_axes * size, voxels, np.zeros(3)))


def _centred(steps: Float64, voxels: Float64, centre: Float64) -> Float64:
    """Affine whose voxel ``voxels / 2``, which FreeSurfer takes for the middle, lies at `centre`."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, centre - steps @ (voxels / 2)
    return affine
