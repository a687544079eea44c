"""DICOM scan that a segmentation refers to: headers of its slices in the order of the grid, without their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlasseg.errors import GeometryError, InputError
from atlasseg.io._dicom_geometry import order_planes
from atlasseg.io.dicom import plane_of_frame, plane_of_slice
from atlasseg.io.dicom_series import check_scan, choose_series, list_series, read_header, split_series
from atlasseg.volume import Grid

_MOST_SIBLINGS = 1000


@dataclass(frozen=True, eq=False)
class DicomReference:
    """DICOM scan, without its pixels.

    Parameters
    ----------
    path : Path
        Folder, ``FOLDER#2``, or multi-frame file.
    files : tuple of Path
        One file per slice, in the order of the third axis of the grid; or one multi-frame file.
    headers : tuple of pydicom.Dataset
        Their headers.
    frames : tuple of int
        Frame number of each slice in a multi-frame file, from 1; empty for one file per slice.
    grid : Grid
    """

    path: Path
    files: tuple[Path, ...]
    headers: tuple[Any, ...]
    frames: tuple[int, ...]
    grid: Grid

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""
        return str(self.headers[0].get("SeriesInstanceUID", ""))

    @property
    def frame_of_reference_uid(self) -> str:
        """FrameOfReferenceUID; may be empty."""
        return str(self.headers[0].get("FrameOfReferenceUID", ""))

    def instance(self, k: int) -> tuple[str, str, int | None]:
        """SOP class UID and SOP instance UID of slice `k`, and its frame number in a multi-frame file."""
        header = self.headers[0 if self.frames else k]
        return str(header.SOPClassUID), str(header.SOPInstanceUID), self.frames[k] if self.frames else None

    def require(self, *keywords: str) -> None:
        """Check that the series has attributes that a segmentation of it must repeat.

        Raises
        ------
        InputError
            One of them is missing or empty.
        """
        for keyword in keywords:
            if not self.headers[0].get(keyword):
                raise InputError(
                    f"{self.files[0]}: expected a {keyword}, which a DICOM segmentation of this series must repeat, "
                    "found none. Write the segmentation as NIfTI or .seg.nrrd."
                )


def is_dicom(path: Path) -> bool:
    """Whether a path (perhaps ``FOLDER#2``) is a DICOM file, or a folder with one in it or below it."""
    where, _ = split_series(path)
    if where.is_file():
        try:
            return read_header(where, tags=["SOPClassUID"]) is not None
        except InputError:
            return False
    return where.is_dir() and bool(list_series(where))


def read_reference(path: Path, series: str | int | None = None) -> DicomReference:
    """Read the headers of a DICOM scan.

    Parameters
    ----------
    path : Path
        Folder with a series in it or below it, ``FOLDER#2``, a multi-frame file, or a slice, which stands for its
        series.
    series : str or int, optional
        Number or SeriesInstanceUID, for a folder with several series.

    Raises
    ------
    InputError
        There is no scan, or several.
    GeometryError
        The slices do not form one volume.
    """
    where, named = split_series(path)
    if not where.exists():
        raise InputError(f"{path}: no such file or folder")
    chosen = named if series is None else series
    if where.is_file():
        header = read_header(where)
        if header is None:
            raise InputError(f"{path}: expected a DICOM scan, got another file.")
        check_scan(where, header)
        files: tuple[Path, ...] = (where,)
        if int(header.get("NumberOfFrames") or 1) == 1:
            files = choose_series(where.parent, str(header.get("SeriesInstanceUID", ""))).files
    else:
        files = choose_series(where, chosen).files
    return _reference(path, files)


def find_series(near: Path, uid: str) -> DicomReference | None:
    """Find a series by its UID: in the folder of a file or below it, or in a folder beside it.

    Parameters
    ----------
    near : Path
        File whose folder is searched.
    uid : str
        SeriesInstanceUID. If it is empty, the only scan in the folder is meant.
    """
    folder = near.parent
    scans = [series for series in list_series(folder) if series.is_scan]
    found = [series for series in scans if series.uid == uid]
    if found or (not uid and len(scans) == 1):
        return _reference(folder, (found or scans)[0].files)
    siblings = sorted(path for path in folder.absolute().parent.iterdir() if path.is_dir())[:_MOST_SIBLINGS]
    for sibling in siblings:
        header = _first_header(sibling)
        if uid and header is not None and str(header.get("SeriesInstanceUID", "")) == uid:
            return _reference(sibling, choose_series(sibling, uid).files)
    return None


def _first_header(folder: Path) -> Any | None:
    """Header of the first DICOM file in a folder, without the folders below it."""
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                header = read_header(path, tags=["SOPClassUID", "SeriesInstanceUID"])
                if header is not None:
                    return header
    except (InputError, OSError):  # a folder of something else
        pass
    return None


def _reference(path: Path, files: tuple[Path, ...]) -> DicomReference:
    headers = []
    for file in files:
        header = read_header(file)
        if header is None:
            raise InputError(f"{file}: expected a DICOM file, got something else.")
        check_scan(file, header)
        headers.append(header)
    first = headers[0]
    if int(first.get("NumberOfFrames") or 1) > 1:
        groups = first.get("PerFrameFunctionalGroupsSequence") or ()
        if len(groups) != int(first.NumberOfFrames):
            raise GeometryError(
                f"{files[0]}: expected the position of each of its {first.NumberOfFrames} frames, found {len(groups)}."
            )
        shared = (first.get("SharedFunctionalGroupsSequence") or [None])[0]
        planes = [plane_of_frame(f"frame {n}", group, shared) for n, group in enumerate(groups, start=1)]
        order, affine = order_planes(path, planes)
        grid = Grid((int(first.Columns), int(first.Rows), len(order)), affine)
        return DicomReference(path, files, (first,), tuple(n + 1 for n in order), grid)
    planes = [plane_of_slice(file, header) for file, header in zip(files, headers, strict=True)]
    order, affine = order_planes(path, planes)
    grid = Grid((int(first.Columns), int(first.Rows), len(order)), affine)
    return DicomReference(path, tuple(files[n] for n in order), tuple(headers[n] for n in order), (), grid)
