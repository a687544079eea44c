"""A segmentation judged against a reference: every measure, for every label and group of labels, in long form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation import overlap, surface
from atlasseg.labels import LabelTable
from atlasseg.volume import Int64, LabelMap

FOREGROUND = "foreground"
"""Name of the group of all labels."""

Note = Literal["", "missed", "not in reference"]


@dataclass(frozen=True)
class Score:
    """One figure.

    Parameters
    ----------
    label : int, optional
        The label it is of; None for a group of labels.
    name : str
        Of the label or the group.
    metric : str
        ``dice``, ``jaccard``, ``volume_similarity``, ``sensitivity``, ``precision``, ``hausdorff_mm``,
        ``hausdorff_95_mm``, ``average_surface_distance_mm`` or ``surface_dice_1mm`` (with the tolerance in its name).
    value : float
        Always finite.
    note : str
        ``missed`` where the segmentation lacks what the reference has, ``not in reference`` where it has what the
        reference lacks: the figure is then the worst there is. Else empty.
    """

    label: int | None
    name: str
    metric: str
    value: float
    note: Note = ""


def evaluate(
    segmentation: LabelMap,
    reference: LabelMap,
    *,
    table: LabelTable | None = None,
    groups: Mapping[str, Collection[int]] | None = None,
    not_annotated: Collection[int] = (),
    surface_tolerance_mm: float = 1.0,
) -> list[Score]:
    """Judge a segmentation against a reference.

    A label in either volume is judged; one in neither is left out. A label that the segmentation misses, or that the
    reference lacks, gets the worst value of each measure (overlaps 0, distances `surface.worst_distance_mm`) and a
    note.

    Parameters
    ----------
    segmentation, reference : LabelMap
        On the same grid.
    table : LabelTable, optional
        Names the labels, and gives the groups.
    groups : mapping of name to labels, optional
        Further groups: the union of the labels of a group is judged as one structure. The group `FOREGROUND`, of
        all labels, is always there.
    not_annotated : collection of int
        Labels that nobody drew in the reference: not judged, and left out of the groups.
    surface_tolerance_mm : float
        Of surface Dice, in mm, 0 or more.

    Returns
    -------
    list of Score
        Labels ascending, then groups in the order given, then the foreground; all measures of one together.

    Raises
    ------
    GeometryError
        The grids differ: a reference is not resampled, since what is then judged is partly the resampling.
    InputError
        The tolerance is negative, or a group has the name of the foreground.

    Examples
    --------
    >>> reference = LabelMap(np.array([[[1, 1, 0, 5]]]), np.eye(4))
    >>> segmentation = LabelMap(np.array([[[1, 0, 0, 0]]]), np.eye(4))
    >>> [(s.name, s.value, s.note) for s in evaluate(segmentation, reference) if s.metric == "hausdorff_mm"]
    [('label 1', 1.0, ''), ('label 5', 3.0, 'missed'), ('foreground', 3.0, '')]
    """
    if not segmentation.grid.matches(reference.grid):
        raise GeometryError(
            f"segmentation {segmentation.name!r} and reference {reference.name!r} must lie on one grid: shapes "
            f"{segmentation.shape} and {reference.shape}, affines {segmentation.affine.tolist()} and "
            f"{reference.affine.tolist()}; a reference is never resampled"
        )
    if surface_tolerance_mm < 0:
        raise InputError(f"a surface tolerance of 0 mm or more is wanted, got {surface_tolerance_mm}")
    names = table if table is not None else LabelTable()
    unions = {**names.groups, **(groups or {})}
    if FOREGROUND in unions:
        raise InputError(f"a group of labels may not be called {FOREGROUND!r}: that is the group of all labels")

    s, r = segmentation.array, reference.array
    if not_annotated:
        ignored = np.array(sorted(not_annotated), np.int32)
        s, r = np.where(np.isin(s, ignored), 0, s), np.where(np.isin(r, ignored), 0, r)
    grid = reference.grid
    counts = overlap.count(s, r)
    segmentation_surfaces, reference_surfaces = surface.surfaces(s), surface.surfaces(r)
    nowhere: Int64 = np.zeros(0, np.int64)

    scores: list[Score] = []
    for n, label in enumerate(counts.labels.tolist()):
        apart = surface.distances(
            segmentation_surfaces.get(label, nowhere), reference_surfaces.get(label, nowhere), grid
        )
        scores += _scores(label, names.name(label), _one(counts, n), apart, surface_tolerance_mm)
    for name, labels in (*unions.items(), (FOREGROUND, counts.labels)):
        members = np.intersect1d(np.fromiter(labels, np.int64), counts.labels)
        if members.size:
            in_s, in_r = np.isin(s, members), np.isin(r, members)
            union = overlap.count(in_s.astype(np.uint8), in_r.astype(np.uint8))
            scores += _scores(None, name, union, surface.surface_distances(in_s, in_r, grid), surface_tolerance_mm)
    return scores


def mean_over_labels(scores: Iterable[Score]) -> dict[str, float]:
    """Mean of each measure over the labels judged, each with the same weight; groups are left out."""
    values: dict[str, list[float]] = {}
    for score in scores:
        if score.label is not None:
            values.setdefault(score.metric, []).append(score.value)
    return {metric: float(np.mean(found)) for metric, found in values.items()}


def _one(counts: overlap.Counts, n: int) -> overlap.Counts:
    here = slice(n, n + 1)
    return overlap.Counts(counts.labels[here], counts.segmentation[here], counts.reference[here], counts.both[here])


def _scores(
    label: int | None, name: str, counts: overlap.Counts, apart: surface.SurfaceDistances, tolerance_mm: float
) -> list[Score]:
    note: Note = "missed" if counts.segmentation[0] == 0 else "not in reference" if counts.reference[0] == 0 else ""
    values = {metric: float(of(counts)[0]) for metric, of in overlap.METRICS.items()}
    values["hausdorff_mm"] = apart.hausdorff_mm()
    values["hausdorff_95_mm"] = apart.hausdorff_mm(95)
    values["average_surface_distance_mm"] = apart.average_mm()
    values[f"surface_dice_{tolerance_mm:g}mm"] = apart.surface_dice(tolerance_mm)
    return [Score(label, name, metric, value, note) for metric, value in values.items()]
