"""Training examples of a refinement: an atlas segmented from the others, with its own labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from atlasseg.errors import InputError
from atlasseg.volume import Float64, Image, LabelMap, ProbabilityMap

__all__ = ["Example"]


class Example(NamedTuple):
    """Training example of a refinement: an atlas segmented from the others.

    Parameters
    ----------
    id : str
        Id of the atlas.
    target : Image
        Its preprocessed scan.
    fused : ProbabilityMap
        Its segmentation from the others.
    truth : LabelMap
        Its own labels.
    not_annotated : frozenset of int
        Labels that are not annotated in it.
    """

    id: str
    target: Image
    fused: ProbabilityMap
    truth: LabelMap
    not_annotated: frozenset[int] = frozenset()


def differences(trained: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """List the differences between two records of provenance as text: see `pipeline.provenance`."""
    found = []
    for part in sorted({*trained, *used}):
        was, now = trained.get(part, {}), used.get(part, {})
        for name in sorted({*was, *now}):
            if name not in now:
                found.append(f"{part} {name} is missing here")
            elif name not in was:
                found.append(f"{part} {name} was not there in training")
            elif was[name] != now[name]:
                contents = part == "atlases"
                found.append(
                    f"{part} {name} has other content"
                    if contents
                    else f"{part} {name}: trained with {was[name]!r}, used with {now[name]!r}"
                )
    return found


def scan_digests(made: Mapping[str, Any]) -> dict[str, str]:
    """Digest of the scan of each atlas, by id, from a record of provenance."""
    return {id_: content[0] for id_, content in made.get("atlases", {}).items()}


def patient_spacing_mm(affine: Float64) -> tuple[float, float, float]:
    """Compute the voxel size along the axes nearest to right, anterior and superior."""
    from nibabel.orientations import io_orientation

    out = np.empty(3)
    out[io_orientation(affine)[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return float(out[0]), float(out[1]), float(out[2])


def mean_spacing_mm(affines: Iterable[Float64]) -> tuple[float, float, float]:
    """Compute the mean of `patient_spacing_mm` over affines."""
    mean = np.mean([patient_spacing_mm(affine) for affine in affines], axis=0)
    return float(mean[0]), float(mean[1]), float(mean[2])


def count_channels(scans: Mapping[str, Image]) -> int:
    """Count the channels of scans, given by id.

    Raises
    ------
    InputError
        The numbers differ.
    """
    counts = {id_: int(scan.channels.shape[3]) for id_, scan in scans.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"expected scans with the same channels, got {counts}")
    return next(iter(counts.values()))
