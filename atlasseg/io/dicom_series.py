"""DICOM series of a folder: list them, and choose one by its number or UID.

``FOLDER#2`` is the second series in the list of :func:`list_series`. ``FOLDER`` alone is its only scan. A multi-frame
file counts as a separate series, since it holds a whole volume.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasseg.errors import InputError
from atlasseg.io._source import log

__all__ = ["DicomSeries", "list_series"]

SEGMENTATION, STRUCTURES = "DICOM segmentation (SEG)", "contours of radiotherapy (RTSTRUCT)"
_OTHER_KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": SEGMENTATION,
    "1.2.840.10008.5.1.4.1.1.481.3": STRUCTURES,
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.1.3.10": "directory of a medium (DICOMDIR)",
}
"""SOP classes that are not scans, but hold pixels or are often found beside scans."""

_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
]
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
_SERIES_OF = re.compile(r"(?P<folder>.+)#(?P<series>[0-9.,]+)$")


@dataclass(frozen=True)
class DicomSeries:
    """DICOM series.

    Parameters
    ----------
    number : int
        Number in the list, from 1; used after ``#`` in a path.
    uid : str
        SeriesInstanceUID.
    description : str
        SeriesDescription; may be empty.
    modality : str
        ``CT``, ``MR``, ...
    kind : str
        ``scan``, or another kind by its SOP class, such as ``DICOM segmentation (SEG)``.
    files : tuple of Path
        Files sorted by path.
    shape : (columns, rows, slices)
        Shape by the headers; zeros without pixels.
    """

    number: int
    uid: str
    description: str
    modality: str
    kind: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]

    @property
    def is_scan(self) -> bool:
        """Whether the series is a scan."""
        return self.kind == "scan"

    def __str__(self) -> str:
        """Describe the series in one line."""
        size = " x ".join(map(str, self.shape)) if all(self.shape) else f"{len(self.files)} files"
        what = self.modality if self.is_scan else self.kind
        return f"#{self.number}: {self.description or 'without description'} ({what}, {size}, {self.files[0].name})"


def split_series(path: Path) -> tuple[Path, str | None]:
    """Split ``FOLDER#2`` into folder and series, ``FILE#1,3`` into file and volumes; an existing path is not split."""
    match = None if path.exists() else _SERIES_OF.fullmatch(str(path))
    return (path, None) if match is None else (Path(match["folder"]), match["series"])


def list_series(folder: str | Path) -> tuple[DicomSeries, ...]:
    """List the DICOM series in a folder and in the folders below it.

    Parameters
    ----------
    folder : path
        Folder to search.

    Returns
    -------
    tuple of DicomSeries
        Sorted by SeriesNumber, description and UID; numbered from 1.

    Raises
    ------
    InputError
        The folder does not exist, or a DICOM file in it cannot be read. The message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of DICOM files, got a path that does not exist.")
    groups: dict[tuple[str, str], list[tuple[Path, Any]]] = {}
    for path in _dicom_files(folder):
        header = read_header(path, tags=_TAGS)
        if header is None:
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        alone = int(header.get("NumberOfFrames") or 1) > 1 or kind_of(header) != "scan"
        groups.setdefault((uid, str(path) if alone else ""), []).append((path, header))

    def order(key: tuple[str, str]) -> tuple[int, str, str, str]:
        header = groups[key][0][1]
        number = header.get("SeriesNumber")
        return int(number) if number is not None else 1 << 31, str(header.get("SeriesDescription", "")), *key

    return tuple(_series(n, key[0], groups[key]) for n, key in enumerate(sorted(groups, key=order), start=1))


def choose_series(folder: Path, chosen: str | int | None) -> DicomSeries:
    """Choose a series of a folder.

    Parameters
    ----------
    folder : Path
    chosen : str or int, optional
        Number in the list, or SeriesInstanceUID; by default the only scan.

    Raises
    ------
    InputError
        There is no such series, or there are several and none is chosen. The message lists them.
    """
    found = list_series(folder)
    if not found:
        raise InputError(f"{folder}: expected a folder with a DICOM series, found no DICOM file in it.")
    listed = "; ".join(map(str, found))
    if chosen is not None:
        meant = [series for series in found if str(chosen) in (str(series.number), series.uid)]
        if len(meant) != 1:
            raise InputError(f"{folder}: expected one of its series, got {str(chosen)!r}. It has {listed}.")
        return meant[0]
    scans = [series for series in found if series.is_scan]
    if len(scans) > 1:
        example = f"{folder}#{scans[0].number}"
        raise InputError(
            f"{folder}: expected one DICOM series, found {len(scans)}: {listed}. "
            f"Choose one by its number, as {example}."
        )
    if not scans:
        raise InputError(f"{folder}: expected a DICOM series of a scan, found {listed}. {_refusal(found[0].kind)}")
    for series in found:
        if series is not scans[0]:
            log.info("%s: only the scan is read; the folder also has %s", folder, series)
    return scans[0]


def check_scan(path: Path, header: Any) -> None:
    """Check that a header belongs to a scan.

    Raises
    ------
    InputError
    """
    kind = kind_of(header)
    if kind != "scan":
        raise InputError(f"{path}: expected a scan, found {kind}. {_refusal(kind)}")


def read_header(path: Path, *, tags: list[str] | None = None) -> Any | None:
    """Read the data set of a DICOM file without its pixels; None for other files.

    Raises
    ------
    InputError
        The DICOM file is damaged.
    """
    import pydicom

    with path.open("rb") as file:
        file.seek(128)
        marked = file.read(4) == b"DICM"
    if not marked and path.suffix.lower() not in _DICOM_SUFFIXES:
        return None
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            complete = "SOPClassUID" in header and bool(str(header.SOPClassUID))  # converted here, where it may fail
    except Exception as error:  # a parser may raise anything on bytes that it was not made for
        raise InputError(f"{path}: the DICOM file is damaged ({error}). Copy it again.") from error
    if not complete and marked:
        raise InputError(f"{path}: the DICOM file is damaged: expected a SOP class, found none. Copy it again.")
    return header if complete else None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings about values that violate the standard."""
    from pydicom.config import disable_value_validation

    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dicom_files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _series(number: int, uid: str, held: list[tuple[Path, Any]]) -> DicomSeries:
    header = held[0][1]
    frames = int(header.get("NumberOfFrames") or 1) if len(held) == 1 else len(held)
    return DicomSeries(
        number,
        uid,
        str(header.get("SeriesDescription") or "").strip(),
        str(header.get("Modality") or ""),
        kind_of(header),
        tuple(sorted(path for path, _ in held)),
        (int(header.get("Columns") or 0), int(header.get("Rows") or 0), frames if header.get("Rows") else 0),
    )


def kind_of(header: Any) -> str:
    """Kind of a DICOM file by its SOP class: ``scan``, or as in `DicomSeries`."""
    uid = header.SOPClassUID
    if str(uid) in _OTHER_KINDS:
        return _OTHER_KINDS[str(uid)]
    return "scan" if header.get("Rows") and header.get("Columns") else str(getattr(uid, "name", uid))


def _refusal(kind: str) -> str:
    if kind in (SEGMENTATION, STRUCTURES):
        return "It holds labels. Read it with atlasseg.read_label_map, or: atlasseg convert FILE OUT.nii.gz --labels"
    return "Give the folder of the scan's own series."
