"""Comparisons of the cases of a folder by what was read of each: headers, intensities, labels, volumes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from atlasseg.doctor.files import Case
from atlasseg.doctor.finding import Finding, abbreviate, format_sizes
from atlasseg.labels import LabelTable

SPACING_RATIO = 1.5
"""Ratio of a voxel size to the median of the folder from which it is reported."""

RANGE_RATIO = 10.0
"""Ratio of the intensity range (1st to 99th percentile) to the median of the folder from which it is reported."""

VOLUME_Z = 5.0
"""Robust z of the logarithm of a structure's volume, beyond which the volume is an outlier."""

LEAST_VOLUME_SD = 0.1
"""Minimum standard deviation of a structure's volume, as a fraction: the difference between two raters."""

FEWEST_FOR_OUTLIERS = 5
"""With fewer cases that have a structure nothing is said of its volume."""


def compare_spacings(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find voxels that are much larger or smaller than usual."""
    known = [case for case in cases if case.spacing_mm]
    if len(known) < 3:
        return
    sizes = np.sort([case.spacing_mm for case in known], axis=1)  # whatever the order of the axes
    usual = np.median(sizes, axis=0)
    for case, size in zip(known, sizes, strict=True):
        if (np.maximum(size / usual, usual / size) > SPACING_RATIO).any():
            own = format_sizes(case.spacing_mm)
            message = f"expected voxels of {format_sizes(usual)} mm as in the other scans, got {own} mm"
            yield Finding("warning", case.image, message, "is the header right?")


def compare_orientations(cases: Sequence[Case]) -> Iterator[Finding]:
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


def find_left_handed(root: Path, cases: Sequence[Case]) -> Iterator[Finding]:
    """List scans whose axes are left-handed."""
    flipped = [case.id for case in cases if case.left_handed]
    if flipped:
        message = f"axes are left-handed in {len(flipped)} of {len(cases)}: {abbreviate(flipped)}"
        yield Finding("note", root / "images", message, "handled here; check left and right in other programs")


def find_float_labels(root: Path, cases: Sequence[Case]) -> Iterator[Finding]:
    """List label maps that are stored as floats."""
    stored = [case.id for case in cases if case.labels_as_float]
    if stored:
        message = (
            f"labels are stored as floats with integer values in {len(stored)} of {len(cases)}: {abbreviate(stored)}"
        )
        yield Finding("note", root / "labels", message, "written as integers here")


def compare_ranges(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find intensities whose range is far from the usual."""
    known = [case for case in cases if case.width > 0]
    if len(known) < 3:
        return
    usual = float(np.median([case.width for case in known]))
    for case in known:
        if max(case.width / usual, usual / case.width) > RANGE_RATIO:
            message = f"expected an intensity range near {usual:.4g} (1st to 99th percentile), got {case.width:.4g}"
            yield Finding("note", case.image, message, "intensities are scaled by default: do not disable it")


def find_duplicates(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find scans, and label maps, of the same content."""
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


def compare_labels(cases: Sequence[Case], not_annotated: Mapping[str, frozenset[int]]) -> Iterator[Finding]:
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
            message = f"expected labels that most other scans have, got none of {abbreviate(lacking)}"
            sidecar = case.labels.parent / f"{case.id}.json"
            remedy = f'if they are not annotated, list them in {sidecar}: {{"not_annotated": {lacking}}}'
            yield Finding("warning", case.labels, message, remedy)
        rare = sorted(value for value in case.voxels if 2 * holders[value] <= len(drawn) and len(drawn) > 2)
        if rare:
            yield Finding(
                "note",
                case.labels,
                f"labels that most other scans do not have: {abbreviate(rare)}",
                "are the values right?",
            )


def find_unused_labels(root: Path, cases: Sequence[Case], table: LabelTable) -> Iterator[Finding]:
    """List labels of the table that no label map has."""
    used = {value for case in cases for value in case.voxels}
    unused = [value for value in table.values if value != 0 and value not in used]
    if used and unused:
        yield Finding("note", root, f"labels of the label table that are in no label map: {abbreviate(unused)}")


def find_volume_outliers(cases: Sequence[Case], table: LabelTable) -> Iterator[Finding]:
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
            message = f"outlying volumes in mm^3: {abbreviate(odd[case.id])}"
            yield Finding("warning", case.labels, message, "look at these labels over the scan")
