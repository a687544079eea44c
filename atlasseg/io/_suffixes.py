"""Names of the files that hold a volume, and which library reads them."""

from __future__ import annotations

import re
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
DICOM_SUFFIXES = (".dcm", ".ima")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".hdr", ".hdr.gz", *MGH_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES)
"""How the names of files that hold a volume end."""

_SERIES = re.compile(r"#([0-9.]+)$")


def volume_id(path: str | Path) -> str:
    """Name of a volume's file without its suffixes: ``scan`` of ``folder/scan.nii.gz``, ``ct_series-2`` of ``ct#2``.

    A segmentation of Slicer has the name of its scan: ``scan`` of ``scan.seg.nrrd``.
    """
    name = _SERIES.sub(r"_series-\1", Path(path).name)
    suffix = volume_suffix(name)
    stem = name.removesuffix(name[-len(suffix) :]) if suffix else name
    return re.sub(r"(?i)\.seg$", "", stem) if suffix in (".nrrd", ".nhdr") else stem


def is_volume(path: str | Path) -> bool:
    """Whether the name of a file is that of a volume; hidden files are not."""
    name = Path(path).name
    return not name.startswith(".") and bool(volume_suffix(name)) and name.lower().endswith(VOLUME_SUFFIXES)


def is_dicom_name(path: str | Path) -> bool:
    """Whether the name of a file ends as those of DICOM files do."""
    return Path(path).name.lower().endswith(DICOM_SUFFIXES)


def volume_suffix(name: str) -> str:
    """How the name of a file ends, as far as that tells its format; empty where it does not."""
    known = (*NIFTI_SUFFIXES, *PAIR_SUFFIXES, *MGH_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES)
    return max((suffix for suffix in known if name.lower().endswith(suffix)), key=len, default="")
