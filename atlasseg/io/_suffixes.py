"""Names of the files that hold a volume, and which library reads them."""

from __future__ import annotations

from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".dcm")
WRITTEN_BY_ITK = (".nrrd", ".mha")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".hdr", ".hdr.gz", *MGH_SUFFIXES, *ITK_SUFFIXES)
"""How the names of files that hold a volume end."""


def volume_id(path: str | Path) -> str:
    """Name of a volume's file without its suffixes: ``scan`` of ``folder/scan.nii.gz``."""
    name = Path(path).name
    suffix = volume_suffix(name)
    return name.removesuffix(name[-len(suffix) :]) if suffix else name


def is_volume(path: str | Path) -> bool:
    """Whether the name of a file is that of a volume; hidden files are not."""
    name = Path(path).name
    return not name.startswith(".") and bool(volume_suffix(name)) and name.lower().endswith(VOLUME_SUFFIXES)


def volume_suffix(name: str) -> str:
    known = (*NIFTI_SUFFIXES, *PAIR_SUFFIXES, *MGH_SUFFIXES, *ITK_SUFFIXES)
    return max((suffix for suffix in known if name.lower().endswith(suffix)), key=len, default="")
