"""Examination of a folder of scans and labels for problems, before a long computation.

Every volume of a library, or of a folder of targets, is read once and compared with its own header, with its labels and
mask, and with the rest of the folder. A file that fails a check is a finding, never an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from atlasseg import io
from atlasseg.atlases.channels import check_names, format_hint, group_channels, suggest_channels
from atlasseg.atlases.library import read_library
from atlasseg.atlases.structures import dicom_cases
from atlasseg.doctor.anatomy import check_each, compare_all
from atlasseg.doctor.files import Case, collect_warnings, examine_case, filter_log
from atlasseg.doctor.finding import Finding, Severity
from atlasseg.doctor.folder import (
    compare_labels,
    compare_orientations,
    compare_ranges,
    compare_spacings,
    find_duplicates,
    find_float_labels,
    find_left_handed,
    find_unused_labels,
    find_volume_outliers,
)
from atlasseg.doctor.persons import LEAST_SCANS, SamePerson, find_crops, find_shared_steps
from atlasseg.doctor.subjects import SUBJECTS, find_subjects, read_subjects
from atlasseg.errors import InputError
from atlasseg.io import read_label_table
from atlasseg.labels import LabelTable


@dataclass(frozen=True)
class Examination:
    """Result of an examination.

    Parameters
    ----------
    findings : tuple of Finding
        Errors, then warnings, then notes, each sorted by file. Empty without problems.
    checked : tuple of str
        What was checked, and what was not and why, a line each.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]


def examine(
    folder: str | Path,
    *,
    register: bool = True,
    progress: Callable[[str], None] | None = None,
    channels: Sequence[str] = (),
) -> Examination:
    """Check a library of atlases or a folder of targets for problems.

    Parameters
    ----------
    folder : path
        Folder with ``images/``, and optionally ``labels/``, ``masks/``, ``probabilities/``, a label table and
        ``subjects.tsv``.
    register : bool
        Whether to compare the anatomies, contrasts and persons too, by affine registrations on coarse voxels: a few
        seconds a scan.
    progress : callable, optional
        Called with each id when its files are read, and with each later step.
    channels : sequence of str
        As of :func:`atlasseg.atlases.library.read_library`. The anatomies are compared by the first channel.

    Returns
    -------
    Examination
    """
    root = Path(folder)
    findings: list[Finding] = []
    checked: list[str] = []
    with filter_log("atlasseg.atlases.library", lambda record: record.levelno > logging.WARNING):
        try:
            for finding in _examine(root, register, progress or (lambda _: None), checked, check_names(channels)):
                findings.append(finding)
        except Exception as error:  # for example a folder that cannot be listed; earlier findings are kept
            findings.append(Finding("error", root, f"{type(error).__name__}: {error}", "the rest was not checked"))
    rank = {"error": 0, "warning": 1, "note": 2}
    ordered = sorted(findings, key=lambda finding: (rank[finding.severity], str(finding.file)))
    return Examination(tuple(ordered), tuple(checked))


def _examine(
    root: Path, register: bool, progress: Callable[[str], None], checked: list[str], channels: Sequence[str]
) -> Iterator[Finding]:
    cases_in_dicom = dicom_cases(root) if root.is_dir() and not (root / "images").is_dir() else {}
    if not (root / "images").is_dir() and not cases_in_dicom:
        yield Finding("error", root, "expected a folder images/, got none", "put the scans into images/ID.nii.gz")
        return
    images, doubled = _volumes(root / "images")
    labels, also = _volumes(root / "labels")
    masks, third = _volumes(root / "masks")
    if cases_in_dicom:
        images = {id_: scan for id_, (scan, _) in cases_in_dicom.items()}
        labels = {id_: file for id_, (_, file) in cases_in_dicom.items()}
    yield from (*doubled, *also, *third)
    scans: dict[str, tuple[Path, ...]] = {}
    if channels and images:
        try:
            scans = group_channels(images, channels, folder=root / "images")
            images = {id_: files[0] for id_, files in scans.items()}
        except InputError as error:
            yield Finding("error", root / "images", str(error), "the scans were checked one file at a time")
    elif alike := suggest_channels(images):
        yield Finding("note", root / "images", format_hint(alike), f"check them so: --channels {','.join(alike)}")
    if not images:
        yield Finding("error", root / "images", "expected images, got none", "put the scans into images/ID.nii.gz")
    table = LabelTable()
    for path in (root / name for name in ("labels.tsv", "labels.csv", "labels.txt")):
        if path.is_file():
            try:
                named: list[Finding] = []
                with collect_warnings(path, named):
                    table = read_label_table(path)
                yield from named
            except InputError as error:
                yield Finding("error", path, str(error), "correct this line")
    has_probabilities = (root / "probabilities").is_dir()
    yield from _unpaired(root, images, labels, masks, has_probabilities)
    cases = []
    for id_, image in sorted(images.items()):
        progress(id_)
        found: list[Finding] = []
        case = Case(id_, image, labels.get(id_), masks.get(id_), channels=scans.get(id_, ())[1:])
        try:
            cases.append(examine_case(case, table, found))
        except Exception as error:  # a broken file is a finding
            found.append(
                Finding("error", image, f"{type(error).__name__}: {error}", "see whether another program reads it")
            )
        yield from found
    checked.append(
        f"{len(images)} scans, {len(labels)} label maps, {len(masks)} masks: each file and its header, grids, values, "
        "loose fragments, labels outside the mask"
    )
    yield from compare_spacings(cases)
    yield from compare_orientations(cases)
    yield from compare_ranges(cases)
    yield from find_left_handed(root, cases)
    yield from find_float_labels(root, cases)
    yield from find_duplicates(cases)
    not_annotated: dict[str, frozenset[int]] = {}
    if labels or has_probabilities:
        try:
            library = read_library(root, channels=channels)
            not_annotated = {atlas.id: atlas.not_annotated for atlas in library.atlases}
            for atlas in library.atlases:
                if atlas.probabilities:
                    yield from _tried(atlas.probabilities[0], partial(library.read, atlas.id))
        except InputError as error:
            if not doubled and not also and not (images.keys() ^ labels.keys()):
                yield Finding("error", root, str(error), "correct the problem in the message")
    yield from compare_labels(cases, not_annotated)
    yield from find_unused_labels(root, cases, table)
    yield from find_volume_outliers(cases, table)
    checked.append(
        "among the scans: voxel sizes, orientations, ranges of intensities, copies, label values and names, volumes of "
        "the labels"
    )
    yield from _compare_anatomies(root, cases, register, progress, checked)


def _compare_anatomies(
    root: Path, cases: Sequence[Case], register: bool, progress: Callable[[str], None], checked: list[str]
) -> Iterator[Finding]:
    """Compare the scans by their contents: what they show, in which contrast, and of whom."""
    known = [case for case in cases if case.small is not None and case.trace is not None]
    scans = [case.small for case in known if case.small is not None]
    traces = [case.trace for case in known if case.trace is not None]
    pairs = [*find_crops(traces), *find_shared_steps(traces)]
    if not register or len(scans) < LEAST_SCANS:
        why = "not asked for" if not register else f"fewer than {LEAST_SCANS} scans"
        checked.append(f"scans of one person: by their intensities; anatomy, left and right, contrast: not ({why})")
    else:
        odd = check_each(scans, progress)
        likeness = compare_all(scans, progress)
        for each in (*odd, *likeness.contrasts):
            remedy = "look at it beside another scan: is its header right, is it another anatomy or contrast?"
            yield Finding("warning", known[each.scan].image, each.message, remedy)
        pairs += likeness.persons
        checked.append(
            "after affine registrations on coarse voxels: fields of view, foreground, similarity, orientation, left "
            "and right, contrast, scans of one person"
        )
    subjects: dict[str, str] = {}
    path = find_subjects(root)
    if path is not None:
        try:
            subjects = read_subjects(path)
        except InputError as error:
            yield Finding("error", path, str(error), "correct the table, or remove it")
    yield from _same_person(known, pairs, subjects)


def _same_person(cases: Sequence[Case], pairs: Sequence[SamePerson], subjects: Mapping[str, str]) -> Iterator[Finding]:
    """Pairs of scans of one person that the table of subjects does not list."""
    told = set()
    for pair in pairs:
        first, second = cases[pair.first], cases[pair.second]
        listed = first.id in subjects and subjects[first.id] == subjects.get(second.id)
        if not listed and first.image_hash != second.image_hash and (pair.first, pair.second) not in told:
            told.add((pair.first, pair.second))
            yield Finding(
                "warning",
                second.image,
                f"seems to be of the same person as {first.image.name}: {pair.reason}",
                f"do not segment one by the other; if it is so, list both in {SUBJECTS} (columns id, subject)",
            )


def _volumes(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Volumes by id; a second one with an id is a finding."""
    found: dict[str, Path] = {}
    doubled = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not (path.is_dir() or io.is_volume(path)):
            continue
        id_ = path.name if path.is_dir() else io.volume_id(path)
        if id_ in found:
            message = f"expected unique ids, got {id_!r}, which {found[id_].name} has too"
            doubled.append(Finding("error", path, message, "keep one of the two files"))
        found.setdefault(id_, path)
    return found, doubled


def _unpaired(
    root: Path,
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    masks: Mapping[str, Path],
    has_probabilities: bool,
) -> Iterator[Finding]:
    if not labels and not has_probabilities:
        yield Finding("note", root, "no labels found: the scans can be targets, but not atlases")
    elif labels:
        for id_ in sorted(images.keys() - labels.keys()):
            wanted = root / "labels" / f"{id_}.nii.gz"
            yield Finding(
                "error", images[id_], f"expected a label file ({wanted}), got none", "add it, or remove the image"
            )
    for kind, others in (("labels", labels), ("a mask", masks)):
        for id_ in sorted(others.keys() - images.keys()):
            severity: Severity = "error" if kind == "labels" else "warning"
            yield Finding(
                severity, others[id_], f"{kind} without an image of the same id", "add the image, or remove this file"
            )


def _tried(path: Path, read: Callable[[], object]) -> Iterator[Finding]:
    found: list[Finding] = []
    try:
        with collect_warnings(path, found):
            read()
        yield from found
    except Exception as error:  # a broken file is a finding
        yield Finding("error", path, str(error), "replace the file, or take it out of the folder")
