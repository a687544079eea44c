"""Label probabilities: 4-D volumes, or one volume per label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.files import checked_content, checked_path
from atlasseg.io._nifti_header import SpacingSource
from atlasseg.io._opening import open_volume
from atlasseg.io._source import Like, Source, log
from atlasseg.io._suffixes import NIFTI_SUFFIXES, volume_id, volume_suffix
from atlasseg.io._writing import write_volume
from atlasseg.io.tables import read_json
from atlasseg.volume import Float64, Grid, ProbabilityMap

_PROBABILITY_TOLERANCE = 0.01  # tolerance for scaled 8-bit fractions: 1/255
_SUM_ROUNDING = 1e-5  # rounding error of a sum of some hundred float32 fractions


def read_probability_map(
    path: str | Path | Sequence[str | Path],
    *,
    labels: Sequence[int] | Literal["numbered"] | None = None,
    spacing_from: SpacingSource = "sform",
) -> ProbabilityMap:
    """Read label probabilities from a 4-D volume (I, J, K, L), or from L 3-D volumes.

    Parameters
    ----------
    path : path, or sequence of L paths
        Volumes are read one at a time, so memory grows only with the number of uncertain voxels.
    labels : sequence of L int, or "numbered", optional
        Labels of the volumes in their order; "numbered" is 1 to L. Labels stored with a 4-D file take precedence: those
        in its header, written by :func:`write_probability_map`, or the numbers in ``LabelMap`` of its JSON sidecar
        (BIDS). If label 0 has no volume, background gets the remainder to 1.
    spacing_from : {"sform", "pixdim"}
        As for :func:`read_image`.

    Returns
    -------
    ProbabilityMap
        Probabilities scaled to sum 1, with a warning if the sum deviates by more than 0.01. Voxels where all are 0
        become background with probability 1, with a warning if background has its own volume.

    Raises
    ------
    InputError
        As for :func:`read_image`; also if the labels are unknown, repeated, or not one per volume; or if a value is not
        finite, is negative, or is above 1 (100 for percentages, 255 for bytes).
    GeometryError
        Several volumes are not on one grid.
    """
    paths = [checked_path(one) for one in (path if isinstance(path, list | tuple) else [path])]
    if not paths:
        raise InputError("path: expected a path or a list of paths, got an empty list.")
    first = paths[0]
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    values: list[int] = []
    grid: Grid | None = None
    for index, one in enumerate(paths):
        with open_volume(one, spacing_from=spacing_from) as source:
            shape = source.shape if len(source.shape) != 3 else (*source.shape, 1)
            if len(shape) != 4 or 0 in shape or (len(paths) > 1 and shape[3] != 1):
                expected = "(I, J, K, labels)" if len(paths) == 1 else "(I, J, K)"
                raise InputError(f"{one}: expected a volume of shape {expected}, got shape {source.shape}")
            found = Grid((shape[0], shape[1], shape[2]), source.affine)
            if grid is not None and not found.matches(grid):
                raise GeometryError(f"{one}: expected the grid of {first}, got shapes {found.shape} and {grid.shape}")
            grid = grid or found
            given = range(1, max(len(paths), shape[3]) + 1) if labels == "numbered" else labels
            if len(paths) > 1 and given is not None:
                own = list(given[index : index + 1])
            else:
                own = _labels_of(one, source, given, shape[3])
            parts += [_fractions(one, source.volume(at), label) for at, label in enumerate(own)]
            values += own
    if len(set(values)) != len(values) or len(values) != len(parts):
        raise InputError(f"{first}: expected a different label for each of {len(parts)} volumes, got {values}")
    assert grid is not None
    return _probabilities(first, grid, values, parts)


def write_probability_map(probabilities: ProbabilityMap, path: str | Path, *, like: Like = None) -> None:
    """Write probabilities as float32 (I, J, K, L), in the order of ``probabilities.label_values``.

    The labels are stored in the NIfTI header (a comment extension), where :func:`read_probability_map` reads them. One
    label is expanded at a time.

    Parameters
    ----------
    probabilities : ProbabilityMap
        The probabilities to write.
    path : path
        As for :func:`write_image`; the suffix must be ``.nii.gz`` or ``.nii``.
    like : volume or SourceHeader, optional
        As for :func:`write_image`.

    Raises
    ------
    OutputError, GeometryError, InputError
        As for :func:`write_image`.
    """
    path = checked_path(path)
    checked_content(probabilities, ProbabilityMap, path)
    if volume_suffix(path.name) not in NIFTI_SUFFIXES:
        raise InputError(f"{path}: expected the suffix .nii.gz or .nii for probabilities")
    values = [int(value) for value in probabilities.label_values]
    volumes = (probabilities.probability(value) for value in values)
    write_volume(path, volumes, np.dtype(np.float32), probabilities, like, labels=values)


def _labels_of(path: Path, source: Source, given: Sequence[int] | None, count: int) -> list[int]:
    values = source.labels or _sidecar_labels(path) or (None if given is None else [int(value) for value in given])
    if values is None:
        sidecar = path.with_name(volume_id(path) + ".json").name
        raise InputError(
            f"{path}: expected the label of each of its {count} volumes. Give a label table, or the list "
            f"'LabelMap' in {sidecar}."
        )
    if len(values) == count + 1 and 0 in values:
        values = [value for value in values if value != 0]  # a table with a row for background, which has no volume
    if len(values) != count or len(set(values)) != count:
        raise InputError(f"{path}: expected a different label for each of {count} volumes, got {values}")
    return values


def _probabilities(
    path: Path, grid: Grid, values: Sequence[int], parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> ProbabilityMap:
    """Create a probability map from the voxels and probabilities of each label."""
    voxels = np.concatenate([where for where, _ in parts])
    weights = np.concatenate([weights for _, weights in parts]).astype(np.float64)
    weights *= _unit_of_probability(
        path, np.bincount(voxels, weights).astype(np.float64), float(weights.max(initial=0))
    )
    entries = np.repeat(np.array(values, np.int64), [where.size for where, _ in parts])
    total = np.bincount(voxels, weights, minlength=math.prod(grid.shape))
    if 0 not in values:
        short = np.flatnonzero((total > 0) & (total < 1 - _SUM_ROUNDING))
        voxels = np.concatenate([voxels, short])
        weights = np.concatenate([weights, 1 - total[short]])
        entries = np.concatenate([entries, np.zeros(short.size, np.int64)])
        total[short] = 1
    elif (nothing := int((total == 0).sum())) > 0:
        log.warning("%s: all probabilities are 0 at %d voxels; they are background", path, nothing)
    off = np.abs(total[total > 0] - 1)
    if off.size and off.max() > _PROBABILITY_TOLERANCE:
        count = int((off > _PROBABILITY_TOLERANCE).sum())
        log.warning(
            "%s: the sum of the probabilities differs from 1 by up to %.3g, at %d voxels; they are scaled",
            path,
            off.max(),
            count,
        )
    return ProbabilityMap.from_entries(
        np.zeros(grid.shape, np.int32),
        grid.affine,
        voxels,
        entries,
        weights,
        label_values=np.union1d(np.asarray(values, np.int64), 0),
        name=volume_id(path),
    )


def _unit_of_probability(path: Path, total: Float64, largest: float) -> float:
    """Factor that scales probabilities to 0..1: they may be fractions, percentages, or bytes (0 to 255)."""
    if largest <= 1 + _PROBABILITY_TOLERANCE:
        return 1.0
    of_this_scale = (total > 1 + _PROBABILITY_TOLERANCE).sum() > (total > 0).sum() / 2
    for highest, name in ((100, "percent"), (255, "bytes, parts of 255")):
        if of_this_scale and 2 <= largest <= highest * (1 + _PROBABILITY_TOLERANCE):
            log.warning("%s: the largest value is %g, so the values are read as %s", path, largest, name)
            return 1 / highest
    raise InputError(
        f"{path}: expected probabilities in 0..1, percentages in 0..100 or bytes in 0..255, got values up to "
        f"{largest:g}"
    )


def _sidecar_labels(path: Path) -> list[int] | None:
    sidecar = path.with_name(volume_id(path) + ".json")
    if not sidecar.is_file():
        return None
    values = read_json(sidecar).get("LabelMap")
    return values if isinstance(values, list) and all(isinstance(value, int) for value in values) else None


def _fractions(path: Path, array: NDArray[Any], label: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices (C order) of the voxels with a nonzero probability of a label, and these probabilities."""
    flat = np.asarray(array, dtype=np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise InputError(f"{path}: expected finite probabilities of label {label}, got NaN or infinity")
    if flat.min() < -_PROBABILITY_TOLERANCE:
        raise InputError(f"{path}: expected probabilities of label {label} of at least 0, got {flat.min():g}")
    voxels = np.flatnonzero(flat > 0)
    return voxels, flat[voxels]
