"""NIfTI headers: read affine, voxel size and unit, and write headers with the same geometry.

Lengths are in millimetres. A header in metres or micrometres is converted when it is read, and written in its own unit
again, as in ITK. The affine is the sform; without sform the qform; without both it is built from the voxel sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlasseg.errors import GeometryError
from atlasseg.interop import SPACING_TOLERANCE, UNIT_MM
from atlasseg.io._source import format_sizes, log, name_file
from atlasseg.volume import Float64, Grid, SourceHeader

SpacingSource = Literal["sform", "pixdim"]
"""Source of the voxel size in a NIfTI header whose sform and pixdim differ."""

_LARGEST_NIFTI1_AXIS = 32767


def read_geometry(path: Path, header: Any, spacing_from: SpacingSource = "sform") -> tuple[Float64, SourceHeader]:
    """Read the affine and the source header of a NIfTI file.

    Parameters
    ----------
    path : Path
        For messages.
    header : nibabel.Nifti1Header or Nifti2Header
    spacing_from : {"sform", "pixdim"}
        Source of the voxel sizes if both differ by more than 1 %. With "pixdim", directions and origin are still those
        of the sform.

    Returns
    -------
    affine : (4, 4) float64
        Voxel to RAS+ mm.
    source : SourceHeader
        Header fields for writing results like this file; `pixdim_mm` is set if the sizes differ.

    Raises
    ------
    GeometryError
        The header has no valid affine.
    """
    unit, dtype = _unit(header), np.dtype(header.get_data_dtype()).name
    to_mm = np.diag([UNIT_MM[unit]] * 3 + [1.0])
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    sform, sform_flaw = _form(header.get_sform) if sform_code > 0 else (None, "")
    qform, qform_flaw = _form(header.get_qform) if qform_code > 0 else (None, "")
    pixdim_mm = None
    if sform is not None:
        affine, pixdim_mm = _check_spacing(path, header, to_mm, sform, spacing_from)
        if qform_flaw:
            log.warning("%s: the qform is faulty (%s); the sform is used", path, qform_flaw)
        elif qform is not None and pixdim_mm is None:
            _check_forms(path, header.get_data_shape(), to_mm @ sform, to_mm @ qform, sform_code)
    elif qform is not None:
        affine = to_mm @ qform
        if sform_flaw:
            log.warning(
                "%s: the sform (code %d) is faulty (%s); the qform (code %d) is used",
                path,
                sform_code,
                sform_flaw,
                qform_code,
            )
    elif sform_flaw or qform_flaw:
        found = [
            f"the {name} is faulty ({flaw})" if flaw else f"there is no {name}"
            for name, flaw in (("sform", sform_flaw), ("qform", qform_flaw))
        ]
        raise GeometryError(
            f"{path}: expected an invertible sform or qform, but {', and '.join(found)}. "
            "Copy the header of the scan that the file was made from, or convert the scan again."
        )
    else:
        affine = to_mm @ header.get_base_affine()
        log.warning(
            "%s: neither sform nor qform is set; orientation and origin are guessed from the voxel sizes %s mm. "
            "Convert the scan again from its DICOM files.",
            path,
            format_sizes(np.abs(np.diagonal(affine)[:3])),
        )
    if UNIT_MM[unit] != 1:
        log.warning(
            "%s: the lengths in the header are in %s; they are converted to mm: voxels of %s mm",
            path,
            unit,
            format_sizes(np.linalg.norm(affine[:3, :3], axis=0)),
        )
    kept = None if qform is None else tuple(tuple(row) for row in (to_mm @ qform).tolist())
    version = 2 if int(header["sizeof_hdr"]) == 540 else 1
    codes = (sform_code if sform is not None else 0, qform_code if kept is not None else 0)
    return affine, SourceHeader(path, dtype, *codes, kept, version, unit, pixdim_mm)


def make_header(shape: tuple[int, ...], dtype: np.dtype[Any], affine: Float64, source: SourceHeader) -> Any:
    """Make a NIfTI header with an affine in mm; sform, qform and unit are set as in `source`."""
    import nibabel

    version = 2 if source.version == 2 or max(shape) > _LARGEST_NIFTI1_AXIS else 1
    header = nibabel.Nifti2Header() if version == 2 else nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units(source.unit)
    header.set_slope_inter(1, 0)
    from_mm = np.diag([1 / UNIT_MM[source.unit]] * 3 + [1.0])
    affine = from_mm @ affine
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    header.set_zooms((*grid.spacing_mm, *(1.0 for _ in shape[3:])))
    if source.qform_code > 0:
        qform = affine if source.qform is None else from_mm @ np.array(source.qform)
        header.set_qform(qform, source.qform_code, strip_shears=True)
    if source.sform_code > 0:
        header.set_sform(affine, source.sform_code)
        if source.qform is None and not _same_place(grid, header.get_qform()):
            header["qform_code"] = 0  # a qform cannot hold a sheared affine
    elif not _same_place(grid, header.get_best_affine()):
        header.set_sform(affine, max(source.qform_code, 1))
    return header


def _form(read: Any) -> tuple[Float64 | None, str]:
    """Affine of the header, or None and the reason why it is invalid."""
    try:
        affine = np.asarray(read(), np.float64)
    except ValueError as error:
        return None, f"its quaternion is not of length 1: {error}"
    if not np.isfinite(affine).all():
        return None, "it is not finite"
    if not affine[:3, :3].any():
        return None, "it is zero"
    try:
        Grid((1, 1, 1), affine)
    except GeometryError:
        return None, "it is not invertible"
    return affine, ""


def _unit(header: Any) -> str:
    try:
        unit = str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"
    return unit if unit in UNIT_MM else "unknown"


def _check_spacing(
    path: Path, header: Any, to_mm: Float64, sform: Float64, spacing_from: SpacingSource
) -> tuple[Float64, tuple[float, float, float] | None]:
    """Affine in mm with the chosen voxel sizes, and the pixdim sizes if they differ from those of the sform."""
    with np.errstate(invalid="ignore"):
        pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * to_mm[0, 0]
    affine = to_mm @ sform
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(pixdim).all() and pixdim.all()):
        if spacing_from == "pixdim":
            raise GeometryError(
                f"{path}: expected voxel sizes above 0 in pixdim, got {format_sizes(pixdim)}. "
                "Read the file with --spacing-from sform."
            )
        return affine, None
    if (np.abs(sizes / pixdim - 1) <= SPACING_TOLERANCE).all():
        return affine, None
    used, other = ("pixdim", "sform") if spacing_from == "pixdim" else ("sform", "pixdim")
    log.warning(
        "%s: the header gives two voxel sizes: %s mm in its sform and %s mm in its pixdim. The %s is used. "
        "If that is wrong, read the file with --spacing-from %s.",
        path,
        format_sizes(sizes),
        format_sizes(pixdim),
        used,
        other,
        extra={"severity": "error"},
    )
    if spacing_from == "pixdim":
        affine = affine.copy()
        affine[:3, :3] *= pixdim / sizes
    return affine, (float(pixdim[0]), float(pixdim[1]), float(pixdim[2]))


def _check_forms(path: Path, shape: tuple[int, ...], sform: Float64, qform: Float64, code: int) -> None:
    """Warn if sform and qform place the corners of the grid differently."""
    padded = (*shape, 1, 1, 1)
    box = (padded[0], padded[1], padded[2])
    first, second = name_file(path, lambda: Grid(box, sform)), Grid(box, qform)
    if not first.matches(second):
        log.warning(
            "%s: sform and qform differ by up to %.3g mm; the sform (code %d) is used, as the NIfTI standard says. "
            "Other "
            "programs may use the qform. Find out which is right, and copy it over the other.",
            path,
            float(np.linalg.norm(first.corners_mm - second.corners_mm, axis=1).max()),
            code,
        )


def _same_place(grid: Grid, affine: Float64) -> bool:
    return np.linalg.det(affine[:3, :3]) != 0 and grid.matches(Grid(grid.shape, affine))
