"""Sample data: the small data set in `sample_data/`, generated from its seeds."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.phantoms.heads import STRUCTURES, Phantom, head
from atlasseg.phantoms.scanning import tilted_grid
from atlasseg.volume import Atlas, Float64


@dataclass(frozen=True)
class _Sample:
    """How one scan of `sample_data/` was made: shape, spacing, tilt, axes, intensity scale and type differ."""

    id: str
    seed: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    angles_degrees: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    axes: str
    white_matter: float
    dtype: str


SAMPLE_ATLASES: tuple[_Sample, ...] = (
    _Sample("atlas1", 11, (46, 52, 40), (1.0, 1.1, 1.15), (4, -3, 6), (2, -8, 11), "RAS", 160, "uint8"),
    _Sample("atlas2", 12, (48, 56, 36), (1.0, 1.0, 1.25), (-7, 2, 3), (-12, 20, -5), "LAS", 820, "int16"),
    _Sample("atlas3", 13, (44, 50, 44), (1.1, 1.15, 1.0), (0, 6, -8), (64, -31, 18), "RAS", 140, "uint8"),
    _Sample("atlas4", 14, (52, 40, 46), (1.1, 1.05, 1.05), (5, 5, -4), (0, 0, 0), "PSR", 95, "uint8"),
    _Sample("atlas5", 15, (45, 54, 30), (1.05, 1.05, 1.4), (-5, -6, 9), (-9, 4, 120), "RAS", 1500, "int16"),
    _Sample("atlas6", 16, (46, 54, 36), (1.0, 1.05, 1.15), (3, 8, 2), (15, 15, -40), "LPS", 180, "uint8"),
)
SAMPLE_TARGETS: tuple[_Sample, ...] = (
    _Sample("target1", 21, (48, 56, 42), (1.0, 1.0, 1.1), (-6, 4, 10), (7, -14, 22), "RAS", 130, "uint8"),
    _Sample("target2", 22, (46, 52, 34), (1.1, 1.1, 1.2), (8, -4, -5), (-30, 9, 3), "LAS", 610, "int16"),
)


def sample(id: str) -> Phantom:
    """Generate a scan of `sample_data/` from its seed, with its true transform.

    Parameters
    ----------
    id : str
        Id of the scan: ``atlas1`` or ``target1``, for example.

    Returns
    -------
    Phantom

    Raises
    ------
    InputError
        There is no sample of that name.
    """
    for spec in (*SAMPLE_ATLASES, *SAMPLE_TARGETS):
        if spec.id == id:
            grid = tilted_grid(
                spec.shape,
                spacing_mm=spec.spacing_mm,
                angles_degrees=spec.angles_degrees,
                centre_mm=spec.centre_mm,
                axes=spec.axes,
            )
            made = head(id, grid=grid, seed=spec.seed, white_matter=spec.white_matter)
            top = np.iinfo(spec.dtype).max
            whole = np.clip(np.rint(made.image.array), 0, top)
            return Phantom(Atlas(id, made.image.with_array(whole), made.labels), made.canonical_from_scan)
    names = ", ".join(s.id for s in (*SAMPLE_ATLASES, *SAMPLE_TARGETS))
    raise InputError(f"there is no sample {id!r}. Choose from {names}")


_ROWS = "".join(f"{s.value}\t{s.name}\t{s.abbreviation}\t{s.colour}\t{s.group}\n" for s in STRUCTURES)
LABEL_TABLE = f"index\tname\tabbreviation\tcolor\tgroup\n{_ROWS}"
"""The structures as a BIDS table (TSV)."""

_SAMPLE_README = """\
# Sample data

Six labelled scans (`atlases/`) and two to segment (`targets/`, with labels, so that the result can be judged): enough
to see the whole chain work in under a minute, and for tests. Nobody was scanned: everything here is made by

    python -m atlasseg.phantoms sample_data

which writes the same files again, byte for byte on the same machine and libraries. Each scan is a small head of closed
formulas (`atlasseg.phantoms.anatomy`: fluid, folded cortex, white matter, ventricles, thalamus, caudate, putamen and
hippocampus, {labels} labels in FreeSurfer's numbers), seen through a smooth random deformation and a random pose,
sampled with partial volume on a grid of its own (oblique, anisotropic, axes in several orders), under a bias field and
Rician noise, on an intensity scale of its own. The true transform between any two follows from the seeds:
`moving_from_fixed(sample("target1"), sample("atlas3"))`, both of `atlasseg.phantoms`.

| scan | voxels | mm | axes | white matter near | type |
|---|---|---|---|---|---|
{rows}

Same licence as the project.
"""


def sample_files() -> dict[str, bytes]:
    """Generate the files of `sample_data/`.

    Returns
    -------
    dict of str to bytes
        Content by path below the folder.
    """
    files: dict[str, bytes] = {}
    for group, specs in (("atlases", SAMPLE_ATLASES), ("targets", SAMPLE_TARGETS)):
        for spec in specs:
            made = sample(spec.id)
            files[f"{group}/images/{spec.id}.nii.gz"] = _nifti(made.image.array, made.image.affine, spec.dtype)
            files[f"{group}/labels/{spec.id}.nii.gz"] = _nifti(made.labels.array, made.labels.affine, "uint8")
    files["atlases/labels.tsv"] = LABEL_TABLE.encode()
    rows = "\n".join(
        f"| {s.id} | {' x '.join(map(str, s.shape))} | {' x '.join(map(str, s.spacing_mm))} | {s.axes} "
        f"| {s.white_matter:g} | {s.dtype} |"
        for s in (*SAMPLE_ATLASES, *SAMPLE_TARGETS)
    )
    files["README.md"] = _SAMPLE_README.format(labels=len(STRUCTURES), rows=rows).encode()
    return files


def _nifti(array: NDArray[Any], affine: Float64, dtype: str) -> bytes:
    """A gzipped NIfTI-1 file, scanner space in sform and qform, without a time stamp."""
    import nibabel

    volume = nibabel.Nifti1Image(array.astype(dtype), affine)
    volume.set_sform(affine, 1)
    volume.set_qform(affine, 1)
    volume.header.set_xyzt_units("mm")
    return gzip.compress(volume.to_bytes(), compresslevel=9, mtime=0)


def write_sample_data(folder: Path) -> None:
    """Write `sample_files` below `folder`, over what is there."""
    for name, content in sample_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
