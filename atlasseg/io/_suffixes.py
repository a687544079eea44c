"""File name suffixes of volumes."""

from __future__ import annotations

import re
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
DICOM_SUFFIXES = (".dcm", ".ima")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".hdr", ".hdr.gz", *MGH_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES)
"""File name suffixes of volume formats."""

_SERIES = re.compile(r"#([0-9.]+)$")
_VOLUMES = re.compile(r"#([0-9,]+)$")


def volume_id(path: str | Path) -> str:
    """File name of a volume without its suffixes: ``scan`` for ``folder/scan.nii.gz``, ``ct_series-2`` for ``ct#2``.

    Volumes of a 4-D file have the id ``scan_volumes-1-3`` for ``scan.nii.gz#1,3``. A 3D Slicer segmentation has the
    name of its scan: ``scan`` for ``scan.seg.nrrd``.
    """
    name = Path(path).name
    chosen = _VOLUMES.search(name)
    if chosen is not None and volume_suffix(name[: chosen.start()]):
        return f"{volume_id(name[: chosen.start()])}_volumes-{chosen[1].replace(',', '-')}"
    name = _SERIES.sub(r"_series-\1", name)
    suffix = volume_suffix(name)
    stem = name.removesuffix(name[-len(suffix) :]) if suffix else name
    return re.sub(r"(?i)\.seg$", "", stem) if suffix in (".nrrd", ".nhdr") else stem


def is_volume(path: str | Path) -> bool:
    """Whether a file name has the suffix of a volume format; False for hidden files."""
    name = Path(path).name
    return not name.startswith(".") and bool(volume_suffix(name)) and name.lower().endswith(VOLUME_SUFFIXES)


def is_dicom_name(path: str | Path) -> bool:
    """Whether a file name has a suffix of DICOM files."""
    return Path(path).name.lower().endswith(DICOM_SUFFIXES)


def volume_suffix(name: str) -> str:
    """Suffix of a file name that determines the volume format, or an empty string."""
    known = (*NIFTI_SUFFIXES, *PAIR_SUFFIXES, *MGH_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES)
    return max((suffix for suffix in known if name.lower().endswith(suffix)), key=len, default="")
