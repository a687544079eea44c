"""Cases in DICOM folders, and labels that are known by their names: RTSTRUCT and DICOM-SEG."""

from __future__ import annotations

import logging
from pathlib import Path

from atlasseg import io
from atlasseg.errors import InputError
from atlasseg.labels import LabelTable

log = logging.getLogger("atlasseg.atlases.library")


def dicom_cases(root: Path) -> dict[str, tuple[Path, Path]]:
    """Scan and labels of each subfolder with a DICOM scan and its structures, by id.

    Raises
    ------
    InputError
        A subfolder has a DICOM scan without structures, beside others that have them.
    """
    cases = {path.name: io.find_case(path) for path in _subfolders(root)}
    scans = {id_: case for id_, case in cases.items() if case is not None}
    found = {id_: (case.scan, case.labels) for id_, case in scans.items() if case.labels is not None}
    bare = sorted(scans.keys() - found.keys())
    if found and bare:
        raise InputError(
            f"{root}: expected an RTSTRUCT or DICOM-SEG beside each DICOM scan, found none for {', '.join(bare[:5])}. "
            "Add it, or take the folder out."
        )
    return found


def dicom_targets(folder: Path, *, nested: bool) -> dict[str, tuple[Path, Path | None]]:
    """Scan and labels of a folder, or (`nested`) of each subfolder if their DICOM scans are of different studies."""
    cases = {path: _find_case(path) for path in (_subfolders(folder) if nested else ())}
    studies = [case.study_uid for case in cases.values() if case is not None]
    if len(studies) > 1 and len(set(studies)) == len(studies) and all(studies):
        return {path.name: (case.scan, case.labels) for path, case in cases.items() if case is not None}
    case = _find_case(folder)
    name = folder.resolve().name
    return {name: (folder, None) if case is None else (case.scan, case.labels)}


def goes_by_names(path: Path | None) -> bool:
    """Whether a file is an RTSTRUCT or a DICOM-SEG, whose structures are known by their names."""
    return path is not None and not io.is_segmentation(path) and io.has_structures(path)


def missing_structures(path: Path | None, table: LabelTable, *, warn: bool = False) -> frozenset[int]:
    """Values of the structures of a table that an RTSTRUCT or DICOM-SEG lacks; none for other files."""
    if path is None or not len(table) or not goes_by_names(path):
        return frozenset()
    drawn = {name.casefold() for name in io.list_drawn(path)}
    missing = [label for label in table if label.name.casefold() not in drawn]
    if missing and warn:
        names = ", ".join(label.name for label in missing)
        log.warning("%s: structures of the label table that it lacks count as not annotated: %s", path, names)
    return frozenset(label.value for label in missing)


def _find_case(folder: Path) -> io.DicomCase | None:
    try:
        return io.find_case(folder)
    except InputError:  # a damaged file, or several scans: told when the scan is read
        return None


def _subfolders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
