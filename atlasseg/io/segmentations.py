"""3D Slicer segmentations, ``.seg.nrrd``: named and coloured segments, in one layer or in several that may overlap."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError
from atlasseg.io._source import log
from atlasseg.io.nrrd import read_nrrd_header
from atlasseg.labels import Color, Label, LabelTable
from atlasseg.terminology import ANATOMICAL_STRUCTURE, UNSPECIFIED, Code, Terminology
from atlasseg.volume import LabelMap

_SUFFIXES = (".seg.nrrd", ".seg.nhdr")
_MAX_SEGMENTS = 1 << 16
_TYPES = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Segment:
    """Segment of a file: its voxels have the value `stored` in layer `layer`, and become the label `value`."""

    name: str
    layer: int
    stored: int
    value: int
    color: Color | None
    terminology: Terminology | None = None


def is_segmentation(path: str | Path) -> bool:
    """Whether a file name is that of a 3D Slicer segmentation."""
    return Path(path).name.lower().endswith(_SUFFIXES)


def read_segments(path: Path) -> tuple[Segment, ...]:
    """Read the segments of a file.

    Segments keep their label values. If segments in different layers have the same value, all are numbered from 1 in
    the order of the file, with a warning.

    Raises
    ------
    InputError
        The header is damaged.
    """
    header, _ = read_nrrd_header(path)
    numbers = sorted({int(n) for key in header for n in re.findall(r"^Segment(\d{1,6})_", key)})
    if len(numbers) > _MAX_SEGMENTS:
        raise InputError(f"{path}: expected at most {_MAX_SEGMENTS} segments, got {len(numbers)}.")
    found = []
    for order, n in enumerate(numbers, start=1):
        name = _one_line(header.get(f"Segment{n}_Name") or header.get(f"Segment{n}_ID") or "") or f"segment {order}"
        # files of Slicer 4.10 and before have neither key: each segment is a separate layer
        layer = _whole(path, header, f"Segment{n}_Layer", n)
        stored = _whole(path, header, f"Segment{n}_LabelValue", 1)
        terms = parse_terminology(header.get(f"Segment{n}_Tags", ""))
        found.append(Segment(name, layer, stored, stored, _color(header.get(f"Segment{n}_Color", "")), terms))
    found = _present(path, header, found)
    if len({segment.stored for segment in found}) == len(found):
        return tuple(found)
    numbered = tuple(replace(segment, value=n) for n, segment in enumerate(found, start=1))
    log.warning(
        "%s: segments in different layers have the same label value; they are numbered %s",
        path,
        ", ".join(f"{segment.value} {segment.name!r}" for segment in numbered),
    )
    return numbered


def label_of_segment(segment: Segment) -> Label:
    """Row of a segment in a label table."""
    return Label(segment.value, segment.name, segment.color, terminology=segment.terminology)


def table_of_segments(path: Path) -> LabelTable:
    """Create a label table from the segments of a file.

    Raises
    ------
    InputError
        The header is damaged, or has no segment.
    """
    segments = read_segments(path)
    if not segments:
        raise InputError(f"{path}: expected a 3D Slicer segmentation, got a header without segments.")
    try:
        return LabelTable(tuple(label_of_segment(segment) for segment in segments))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def merge_layers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """Merge the layers of a file into one label map.

    Parameters
    ----------
    path : Path
    array : (I, J, K) or (I, J, K, layers)

    Returns
    -------
    (I, J, K) array

    Raises
    ------
    InputError
        Two segments overlap. The message names them and the number of common voxels.
    """
    segments = read_segments(path)
    if array.ndim == 3:
        return array
    merged = np.zeros(array.shape[:3], np.int32)
    named = np.zeros(array.shape, bool)
    for segment in segments:
        inside = array[..., segment.layer] == segment.stored
        named[..., segment.layer] |= inside
        shared = np.unique(merged[inside])
        shared = shared[shared != 0]
        if shared.size:
            other = next(one for one in segments if one.value == shared[0])
            count = int((merged[inside] == shared[0]).sum())
            raise InputError(
                f"{path}: expected one label per voxel, but the segments {other.name!r} and {segment.name!r} overlap "
                f"in {count} voxels, in layers {other.layer} and {segment.layer}. Choose the structures to read "
                "(structures=[...], --structures NAME), or let the one that is named first win (overlap='first', "
                "--overlap first)."
            )
        merged[inside] = segment.value
    left = int(np.count_nonzero(array[~named]))
    if left:
        log.warning("%s: %d voxels have values that belong to no segment; they become background", path, left)
    return merged


def _present(path: Path, header: dict[str, str], segments: list[Segment]) -> list[Segment]:
    """Segments whose layer is in the file; checks that they differ in layer or label value."""
    count = 1
    if header.get("dimension") == "4" and header.get("sizes"):
        count = _whole(path, {"sizes": header["sizes"].split()[0]}, "sizes", 1)
    absent = [segment.name for segment in segments if not 0 <= segment.layer < count]
    if absent:
        log.warning(
            "%s: the segments %s are in layers that the file does not have; they are ignored",
            path,
            ", ".join(map(repr, absent)),
        )
    present = [segment for segment in segments if 0 <= segment.layer < count]
    places: dict[tuple[int, int], str] = {}
    for segment in present:
        other = places.setdefault((segment.layer, segment.stored), segment.name)
        if other is not segment.name:
            raise InputError(
                f"{path}: expected a label value of its own for each segment of a layer, but {other!r} and "
                f"{segment.name!r} have {segment.stored} in layer {segment.layer}. Save the segmentation again."
            )
    return present


def _one_line(text: str) -> str:
    name = " ".join(text.replace("\\n", " ").split())
    return "" if name.lower() == "n/a" else name


def _whole(path: Path, header: dict[str, str], key: str, default: int) -> int:
    text = header.get(key, str(default)).strip()
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise InputError(f"{path}: expected a whole number as {key}, got {text[:40]!r}.")
    return int(text)


def _color(text: str) -> Color | None:
    """Convert three fractions of 1 to bytes."""
    try:
        parts = [float(part) for part in text.split()]
    except ValueError:
        return None
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        return None
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


_TERMINOLOGY_TAG = re.compile(r"TerminologyEntry:(.*?)(?:\||$)")


def parse_terminology(tags: str) -> Terminology | None:
    """Parse the terminology of a segment from its tags; None if it has none, or an invalid one.

    Parameters
    ----------
    tags : str
        ``TerminologyEntry:CONTEXT~CATEGORY~TYPE~TYPE_MODIFIER~REGION_CONTEXT~REGION~REGION_MODIFIER|``, each code
        ``SCHEME^VALUE^MEANING`` or empty (``^^``).
    """
    match = _TERMINOLOGY_TAG.search(tags)
    parts = match[1].split("~") if match else []
    if len(parts) < 3:
        return None
    category, kind, modifier, _, region, region_modifier = [*parts[1:7], *[""] * 6][:6]
    codes = [_code(part) for part in (category, kind, modifier, region, region_modifier)]
    if codes[1] is None:
        return None
    found = Terminology(codes[0] or ANATOMICAL_STRUCTURE, codes[1], codes[2], codes[3], codes[4])
    return None if found == UNSPECIFIED else found


def _code(text: str) -> Code | None:
    try:
        return Code.parse(text)
    except InputError:
        return None


def segment_fields(labels: LabelMap, table: LabelTable) -> dict[str, str]:
    """Header keys of a 3D Slicer segmentation with the labels as segments of one layer.

    Parameters
    ----------
    labels : LabelMap
    table : LabelTable
        Names, colours and codes; default ones for missing labels.

    Raises
    ------
    InputError
        A label is negative.
    """
    from scipy.ndimage import find_objects

    values = [int(value) for value in labels.values if value != 0]
    if values and values[0] < 0:
        raise InputError(f"expected labels above 0, as 3D Slicer numbers segments, got {values[0]}.")
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    _, numbers = np.unique(labels.array, return_inverse=True)
    first = 1 if 0 in labels.values else 0
    boxes = find_objects(numbers.reshape(labels.shape) + 1 - first)
    complete = table.completed(values)
    for n, (value, box) in enumerate(zip(values, boxes, strict=True)):
        label = complete[value]
        extent = " ".join(f"{part.start} {part.stop - 1}" for part in box)
        fields |= {
            f"Segment{n}_ID": f"Segment_{value}",
            f"Segment{n}_Name": label.name,
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{part / 255:.6g}" for part in complete.color(value)),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_LabelValue": str(value),
            f"Segment{n}_Layer": "0",
            f"Segment{n}_Extent": extent,
            f"Segment{n}_Tags": f"{_format_terminology(label.terminology)}|",
        }
    return fields


def _format_terminology(terms: Terminology | None) -> str:
    terms = terms or UNSPECIFIED
    codes = [
        str(code) if code is not None else "^^"
        for code in (terms.category, terms.type, terms.type_modifier, terms.region, terms.region_modifier)
    ]
    return "~".join([f"TerminologyEntry:{_TYPES}", *codes[:3], _REGIONS, *codes[3:]])
