"""Checks of each scan, its labels and its mask by themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from atlasseg import io
from atlasseg.atlases.channels import read_channels
from atlasseg.atlases.library import grid_difference
from atlasseg.atlases.structures import goes_by_names
from atlasseg.doctor.anatomy import shrink
from atlasseg.doctor.finding import Finding, Severity, abbreviate
from atlasseg.doctor.persons import Trace, trace_source
from atlasseg.errors import InputError
from atlasseg.itk import is_orthonormal
from atlasseg.labels import LabelTable
from atlasseg.volume import Grid, Image, LabelMap, Mask

FRAGMENT_SHARE = 0.01
"""Fraction of a label's voxels below which a loose part is probably an annotation error."""

OUTSIDE_MASK_SHARE = 0.01
"""Share of the labelled voxels that may lie outside the mask."""


@dataclass(frozen=True, eq=False)
class Case:
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
    trace: Trace | None = None
    small: Image | None = None
    channels: tuple[Path, ...] = ()


def examine_case(case: Case, table: LabelTable, found: list[Finding]) -> Case:
    """Read the properties of a case, and add its own problems to `found`."""
    image: Image | None = None
    try:
        with collect_warnings(case.image, found):
            image, finite = read_channels((case.image, *case.channels))
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
            trace=trace_source(image),
            small=shrink(replace(image, name=case.id)),
        )
    labels: LabelMap | None = None
    if case.labels is not None:
        try:
            with collect_warnings(case.labels, found):
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
            with collect_warnings(case.mask, found):
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
            "warning", path, f"negative labels: {abbreviate(values[values < 0])}", "other programs may refuse them"
        )
    unknown = sorted(set(values.tolist()) - set(table.values))
    if len(table) and unknown:
        yield Finding(
            "warning", path, f"labels that the label table lacks: {abbreviate(unknown)}", "add them to labels.tsv"
        )
    tiny, loose = _fragments(labels, values)
    if tiny:
        yield Finding("warning", path, f"labels of a single voxel: {abbreviate(tiny)}", "is it an annotation error?")
    if loose:
        parts = [f"{value} ({count} of at most {largest} voxels)" for value, count, largest in loose]
        message = f"labels with loose fragments below {FRAGMENT_SHARE:.0%} of their size: {abbreviate(parts)}"
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


def _orientation(grid: Grid) -> str:
    """Directions of the axes, for example RAS."""
    from nibabel.orientations import aff2axcodes

    return "".join(code or "?" for code in aff2axcodes(grid.affine))


@contextmanager
def collect_warnings(path: Path, found: list[Finding]) -> Iterator[None]:
    """Add the warnings of reading a file to `found` instead of the log."""

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(f"{path}: "):
            severity: Severity = getattr(record, "severity", "warning")
            found.append(Finding(severity, path, message.removeprefix(f"{path}: ")))
        return record.levelno > logging.WARNING

    with filter_log("atlasseg.io", keep):
        yield


@contextmanager
def filter_log(name: str, keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Let a logger pass only the records that `keep` keeps, within a block."""
    logger = logging.getLogger(name)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
