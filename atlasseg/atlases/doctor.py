"""Checks of a folder of scans and labels for problems, before a long computation.

:func:`examine` reads every volume of a library or of a folder of targets once and compares it with its own header, with
its labels and mask, and with the rest of the folder. A file that fails a check is a finding, never an exception.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from atlasseg import io
from atlasseg.atlases._structures import dicom_cases, goes_by_names
from atlasseg.atlases.library import grid_difference, read_library
from atlasseg.errors import InputError
from atlasseg.io import read_label_table
from atlasseg.itk import is_orthonormal
from atlasseg.labels import LabelTable
from atlasseg.volume import Grid, Image, LabelMap, Mask

__all__ = ["Finding", "examine"]

Severity = Literal["error", "warning", "note"]

SPACING_RATIO = 1.5
"""Ratio of a voxel size to the median of the folder from which it is reported."""

RANGE_RATIO = 10.0
"""Ratio of the intensity range (1st to 99th percentile) to the median of the folder from which it is reported."""

VOLUME_Z = 5.0
"""Robust z of the logarithm of a structure's volume, beyond which the volume is an outlier."""

LEAST_VOLUME_SD = 0.1
"""Minimum standard deviation of a structure's volume, as a fraction: the difference between two raters."""

FEWEST_FOR_OUTLIERS = 5
FRAGMENT_SHARE = 0.01  # fraction of a label's voxels below which a loose part is probably an annotation error
OUTSIDE_MASK_SHARE = 0.01


@dataclass(frozen=True)
class Finding:
    """Finding: a problem or a remark about a file.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        ``error`` for a problem that makes a run fail, ``warning`` for one that probably harms its results, ``note`` for
        other remarks.
    file : Path
        File or folder of the finding.
    message : str
        The problem.
    remedy : str
        What to do; may be empty.
    """

    severity: Severity
    file: Path
    message: str
    remedy: str = ""


@dataclass(frozen=True, eq=False)
class _Case:
    """Properties of one scan, so that only one scan is in memory."""

    id: str
    image: Path
    labels: Path | None
    mask: Path | None
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    left_handed: bool = False
    width: float = 0.0
    image_hash: str = ""
    labels_hash: str = ""
    labels_as_float: bool = False
    voxels: Mapping[int, int] = field(default_factory=dict)
    voxel_mm3: float = 0.0


def examine(folder: str | Path, *, progress: Callable[[str], None] | None = None) -> list[Finding]:
    """Check a library of atlases or a folder of targets for problems.

    Parameters
    ----------
    folder : path
        Folder with ``images/``, and optionally ``labels/``, ``masks/``, ``probabilities/`` and a label table.
    progress : callable, optional
        Called with each id when its files are read.

    Returns
    -------
    list of Finding
        Errors, then warnings, then notes, each sorted by file. Empty without problems.
    """
    root = Path(folder)
    findings: list[Finding] = []
    with _filtered("atlasseg.atlases.library", lambda record: record.levelno > logging.WARNING):
        try:
            for finding in _examine(root, progress or (lambda _: None)):
                findings.append(finding)
        except Exception as error:  # for example a folder that cannot be listed; earlier findings are kept
            findings.append(Finding("error", root, f"{type(error).__name__}: {error}", "the rest was not checked"))
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: (rank[finding.severity], str(finding.file)))


def _examine(root: Path, progress: Callable[[str], None]) -> Iterator[Finding]:
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
    if not images:
        yield Finding("error", root / "images", "expected images, got none", "put the scans into images/ID.nii.gz")
    table = LabelTable()
    for path in (root / name for name in ("labels.tsv", "labels.csv", "labels.txt")):
        if path.is_file():
            try:
                named: list[Finding] = []
                with _warnings_as_findings(path, named):
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
        case = _Case(id_, image, labels.get(id_), masks.get(id_))
        try:
            cases.append(_examine_case(case, table, found))
        except Exception as error:  # a broken file is a finding
            found.append(
                Finding("error", image, f"{type(error).__name__}: {error}", "see whether another program reads it")
            )
        yield from found
    yield from _spacings(cases)
    yield from _orientations(cases)
    yield from _ranges(cases)
    yield from _left_handed(root, cases)
    yield from _float_labels(root, cases)
    yield from _duplicates(cases)
    not_annotated: dict[str, frozenset[int]] = {}
    if labels or has_probabilities:
        try:
            library = read_library(root)
            not_annotated = {atlas.id: atlas.not_annotated for atlas in library.atlases}
            for atlas in library.atlases:
                if atlas.probabilities:
                    yield from _tried(atlas.probabilities[0], partial(library.read, atlas.id))
        except InputError as error:
            if not doubled and not also and not (images.keys() ^ labels.keys()):
                yield Finding("error", root, str(error), "correct the problem in the message")
    yield from _inventory(cases, not_annotated)
    yield from _unused_labels(root, cases, table)
    yield from _volume_outliers(cases, table)


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


def _examine_case(case: _Case, table: LabelTable, found: list[Finding]) -> _Case:
    """Read the properties of a case, and add its own problems to `found`."""
    image: Image | None = None
    try:
        with _warnings_as_findings(case.image, found):
            image, finite = io.read_scan(case.image)
    except InputError as error:
        found.append(Finding("error", case.image, str(error), "replace the file, or take it out of the folder"))
    else:
        found += _image_flaws(case.image, image, finite)
        low, high = np.percentile(image.array, (1, 99))
        case = replace(
            case,
            spacing_mm=tuple(image.spacing_mm.tolist()),
            orientation=_orientation(image.grid),
            left_handed=bool(np.linalg.det(image.affine[:3, :3]) < 0),
            width=float(high - low),
            image_hash=io.content_hash(image, place=False),
            voxel_mm3=float(abs(np.linalg.det(image.affine[:3, :3]))),
        )
    labels: LabelMap | None = None
    if case.labels is not None:
        try:
            with _warnings_as_findings(case.labels, found):
                labels = _read_labels(case.labels, image, table)
        except InputError as error:
            found.append(
                Finding("error", case.labels, str(error), "write the labels as whole numbers on the grid of the scan")
            )
        else:
            found += _apart(case.labels, labels, case.image, image)
            found += _label_flaws(case.labels, labels, table)
            values, counts = np.unique(labels.array, return_counts=True)
            voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
            voxels.pop(0, None)
            case = replace(
                case,
                voxels=voxels,
                labels_hash=io.content_hash(labels, place=False) if voxels else "",
                labels_as_float=np.dtype(labels.source_header.dtype or "uint8").kind == "f",
            )
    if case.mask is not None:
        try:
            with _warnings_as_findings(case.mask, found):
                mask = io.read_mask(case.mask)
        except InputError as error:
            found.append(Finding("error", case.mask, str(error), "replace the file, or take it out of the folder"))
        else:
            found += _apart(case.mask, mask, case.image, image)
            found += _outside_mask(case.mask, mask, labels)
    return case


def _read_labels(path: Path, image: Image | None, table: LabelTable) -> LabelMap:
    if goes_by_names(path):
        return io.read_label_map(path, reference=image, structures=table if len(table) else None)
    return io.read_label_map(path)


def _apart(path: Path, volume: LabelMap | Mask, image_path: Path, image: Image | None) -> Iterator[Finding]:
    difference = None if image is None else grid_difference(volume, image)
    if difference is not None:
        message = f"not on the grid of {image_path.name}: {difference}"
        yield Finding("error", path, message, "resample it onto the grid of the scan, or copy the right header")


def _image_flaws(path: Path, image: Image, finite: Mask | None) -> Iterator[Finding]:
    if not is_orthonormal(image.grid):
        message = "the axes are not perpendicular (sheared): handled here, but ITK, ANTs and Slicer cannot open it"
        yield Finding("note", path, message, f"for them: atlasseg convert {path} OUT.nii.gz --orthogonal")
    known = image.array if finite is None else image.array[finite.array]
    low, high = float(known.min()), float(known.max())
    if low == high:
        yield Finding("error", path, f"every intensity is {low:g}", "a constant image cannot be registered: replace it")
    elif np.unique(known.ravel()[:: max(known.size // 100_000, 1)]).size < 10:
        yield Finding("warning", path, "fewer than ten different intensities", "is this a label map among the images?")


def _label_flaws(path: Path, labels: LabelMap, table: LabelTable) -> Iterator[Finding]:
    values = labels.values[labels.values != 0]
    if not values.size:
        yield Finding(
            "warning", path, "the label map has only background", "remove it, or list the labels not annotated in it"
        )
        return
    if values.min() < 0:
        yield Finding(
            "warning", path, f"negative labels: {_some(values[values < 0])}", "other programs may refuse them"
        )
    unknown = sorted(set(values.tolist()) - set(table.values))
    if len(table) and unknown:
        yield Finding("warning", path, f"labels that the label table lacks: {_some(unknown)}", "add them to labels.tsv")
    tiny, loose = _fragments(labels, values)
    if tiny:
        yield Finding("warning", path, f"labels of a single voxel: {_some(tiny)}", "is it an annotation error?")
    if loose:
        parts = [f"{value} ({count} of at most {largest} voxels)" for value, count, largest in loose]
        message = f"labels with loose fragments below {FRAGMENT_SHARE:.0%} of their size: {_some(parts)}"
        yield Finding("note", path, message, "are they annotation errors?")


def _fragments(labels: LabelMap, values: np.ndarray) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Labels of one voxel; and of the others (label, number of small loose parts, voxels of the largest of them)."""
    from scipy import ndimage

    ranks = np.searchsorted(values, labels.array).clip(max=values.size - 1)
    ranks = np.where(values[ranks] == labels.array, ranks + 1, 0)
    tiny, loose = [], []
    for rank, box in enumerate(ndimage.find_objects(ranks), start=1):
        value = int(values[rank - 1])
        parts, count = ndimage.label(ranks[box] == rank, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        if sizes.sum() == 1:
            tiny.append(value)
        elif count > 1:
            small = sizes[sizes < max(FRAGMENT_SHARE * sizes.sum(), 2)]
            if small.size:
                loose.append((value, int(small.size), int(small.max())))
    return tiny, loose


def _outside_mask(path: Path, mask: Mask, labels: LabelMap | None) -> Iterator[Finding]:
    if labels is None or labels.shape != mask.shape:
        return
    drawn = labels.array != 0
    share = float((drawn & ~mask.array).sum() / max(drawn.sum(), 1))
    if share > OUTSIDE_MASK_SHARE:
        message = f"{share:.1%} of the labelled voxels lie outside the mask"
        yield Finding("warning", path, message, "extend the mask: voxels outside are ignored")


def _spacings(cases: Sequence[_Case]) -> Iterator[Finding]:
    known = [case for case in cases if case.spacing_mm]
    if len(known) < 3:
        return
    sizes = np.sort([case.spacing_mm for case in known], axis=1)  # whatever the order of the axes
    usual = np.median(sizes, axis=0)
    for case, size in zip(known, sizes, strict=True):
        if (np.maximum(size / usual, usual / size) > SPACING_RATIO).any():
            message = f"expected voxels of {_times(usual)} mm as in the other scans, got {_times(case.spacing_mm)} mm"
            yield Finding("warning", case.image, message, "is the header right?")


def _orientations(cases: Sequence[_Case]) -> Iterator[Finding]:
    """Axes with other directions than in most scans; handedness is ignored here."""
    known = [case for case in cases if case.orientation]
    counts = Counter(case.orientation for case in known)
    usual, count = counts.most_common(1)[0] if known else ("", 0)
    for case in known if 2 * count > len(known) else []:
        if case.orientation != usual:
            message = (
                f"expected axes {usual} as in the other scans, got {case.orientation}: handled, if the header is right"
            )
            yield Finding("note", case.image, message, "look at it beside another scan")


def _left_handed(root: Path, cases: Sequence[_Case]) -> Iterator[Finding]:
    flipped = [case.id for case in cases if case.left_handed]
    if flipped:
        message = f"axes are left-handed in {len(flipped)} of {len(cases)}: {_some(flipped)}"
        yield Finding("note", root / "images", message, "handled here; check left and right in other programs")


def _float_labels(root: Path, cases: Sequence[_Case]) -> Iterator[Finding]:
    stored = [case.id for case in cases if case.labels_as_float]
    if stored:
        message = f"labels are stored as floats with integer values in {len(stored)} of {len(cases)}: {_some(stored)}"
        yield Finding("note", root / "labels", message, "written as integers here")


def _ranges(cases: Sequence[_Case]) -> Iterator[Finding]:
    known = [case for case in cases if case.width > 0]
    if len(known) < 3:
        return
    usual = float(np.median([case.width for case in known]))
    for case in known:
        if max(case.width / usual, usual / case.width) > RANGE_RATIO:
            message = f"expected an intensity range near {usual:.4g} (1st to 99th percentile), got {case.width:.4g}"
            yield Finding("note", case.image, message, "intensities are scaled by default: do not disable it")


def _duplicates(cases: Sequence[_Case]) -> Iterator[Finding]:
    same_image, same_labels = defaultdict(list), defaultdict(list)
    for case in cases:
        if case.image_hash:
            same_image[case.image_hash].append(case)
        if case.labels_hash:
            same_labels[case.labels_hash].append(case)
    for group in same_image.values():
        for case in group[1:]:
            message = f"the same intensities as {group[0].image.name}"
            yield Finding("warning", case.image, message, "keep one: a duplicate votes twice, or for itself")
    for group in same_labels.values():
        for case in group[1:]:
            if case.labels is not None and case.image_hash != group[0].image_hash and group[0].labels is not None:
                message = f"the same labels as {group[0].labels.name}, though the images differ"
                yield Finding("warning", case.labels, message, "one of them belongs to another scan")


def _inventory(cases: Sequence[_Case], not_annotated: Mapping[str, frozenset[int]]) -> Iterator[Finding]:
    """Labels that some label maps have and others lack."""
    drawn = [case for case in cases if case.voxels and case.labels is not None]
    holders = Counter(value for case in drawn for value in case.voxels)
    for case in drawn:
        assert case.labels is not None
        silent = not_annotated.get(case.id, frozenset())
        lacking = sorted(
            v for v, n in holders.items() if 2 * n > len(drawn) and v not in case.voxels and v not in silent
        )
        if lacking:
            message = f"expected labels that most other scans have, got none of {_some(lacking)}"
            sidecar = case.labels.parent / f"{case.id}.json"
            remedy = f'if they are not annotated, list them in {sidecar}: {{"not_annotated": {lacking}}}'
            yield Finding("warning", case.labels, message, remedy)
        rare = sorted(value for value in case.voxels if 2 * holders[value] <= len(drawn) and len(drawn) > 2)
        if rare:
            yield Finding(
                "note", case.labels, f"labels that most other scans do not have: {_some(rare)}", "are the values right?"
            )


def _unused_labels(root: Path, cases: Sequence[_Case], table: LabelTable) -> Iterator[Finding]:
    used = {value for case in cases for value in case.voxels}
    unused = [value for value in table.values if value != 0 and value not in used]
    if used and unused:
        yield Finding("note", root, f"labels of the label table that are in no label map: {_some(unused)}")


def _volume_outliers(cases: Sequence[_Case], table: LabelTable) -> Iterator[Finding]:
    """Structures with outlying volume: robust z-score of its logarithm (median and MAD)."""
    drawn = [case for case in cases if case.voxels and case.voxel_mm3]
    odd: dict[str, list[str]] = defaultdict(list)
    for value in sorted({value for case in drawn for value in case.voxels}):
        holders = [case for case in drawn if value in case.voxels]
        if len(holders) < FEWEST_FOR_OUTLIERS:
            continue
        volumes_mm3 = np.array([case.voxels[value] * case.voxel_mm3 for case in holders])
        logs = np.log(volumes_mm3)
        centre = np.median(logs)
        sd = max(1.4826 * float(np.median(np.abs(logs - centre))), LEAST_VOLUME_SD)
        for case, volume_mm3, z in zip(holders, volumes_mm3, (logs - centre) / sd, strict=True):
            if abs(z) > VOLUME_Z:
                odd[case.id].append(f"{table.name(value)} {volume_mm3:.4g} (median {np.exp(centre):.4g}, z {z:+.1f})")
    for case in drawn:
        if case.id in odd and case.labels is not None:
            message = f"outlying volumes in mm^3: {_some(odd[case.id])}"
            yield Finding("warning", case.labels, message, "look at these labels over the scan")


def _tried(path: Path, read: Callable[[], object]) -> Iterator[Finding]:
    found: list[Finding] = []
    try:
        with _warnings_as_findings(path, found):
            read()
        yield from found
    except Exception as error:  # a broken file is a finding
        yield Finding("error", path, str(error), "replace the file, or take it out of the folder")


def _orientation(grid: Grid) -> str:
    """Directions of the axes, for example RAS."""
    from nibabel.orientations import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(grid.affine))


def _times(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _some(items: Iterable[object], most: int = 8) -> str:
    every = [str(item) for item in items]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


@contextmanager
def _warnings_as_findings(path: Path, found: list[Finding]) -> Iterator[None]:
    """Add the warnings of reading a file to `found` instead of the log."""

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(f"{path}: "):
            severity: Severity = getattr(record, "severity", "warning")
            found.append(Finding(severity, path, message.removeprefix(f"{path}: ")))
        return record.levelno > logging.WARNING

    with _filtered("atlasseg.io", keep):
        yield


@contextmanager
def _filtered(name: str, keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger = logging.getLogger(name)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
