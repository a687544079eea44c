"""Evaluation of a segmentation against a reference: every measure of every label and group of labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import GeometryError, InputError
from atlasseg.evaluation import overlap, surface, surfels
from atlasseg.evaluation.result import FOREGROUND, EvaluationResult, Note, Score
from atlasseg.labels import LabelTable
from atlasseg.recipe.tables import Evaluation
from atlasseg.volume import Grid, Int64, LabelMap

__all__ = ["evaluate"]


def evaluate(
    segmentation: LabelMap,
    reference: LabelMap,
    *,
    table: LabelTable | None = None,
    groups: Mapping[str, Collection[int]] | None = None,
    not_annotated: Collection[int] = (),
    surface_tolerance_mm: float = Evaluation.surface_tolerance_mm,
    surfaces: bool = True,
) -> EvaluationResult:
    """Evaluate a segmentation against a reference.

    Every label that occurs in either volume is evaluated. A label that occurs in only one of them gets the worst value
    of each measure (0 for overlaps, `surface.worst_distance_mm` for distances) and a note. If neither volume has any
    label, the measures are undefined: the foreground gets the note ``empty in both`` and NaN values.
    :doc:`/guide/measures` gives the definitions.

    Parameters
    ----------
    segmentation, reference : LabelMap
        Label maps on the same grid. Their axes may be stored in different order or direction.
    table : LabelTable, optional
        Names and groups of the labels.
    groups : mapping of name to labels, optional
        Further groups. The union of the labels of a group is evaluated as one structure. The group `FOREGROUND` of all
        labels is always included.
    not_annotated : collection of int
        Labels that are not annotated in the reference. They are not evaluated, and are removed from the groups.
    surface_tolerance_mm : float
        Tolerance of the surface Dice (by area, and of voxels) in mm, 0 or above.
    surfaces : bool
        Compute the surface measures too; they take most of the time.

    Returns
    -------
    EvaluationResult
        Scores of the labels (ascending), then of the groups in their order, then of the foreground.

    Raises
    ------
    GeometryError
        The grids differ. The segmentation is not resampled, because resampling would change the result.
    InputError
        The tolerance is negative, or a group has the name of the foreground.

    Examples
    --------
    >>> reference = LabelMap(np.array([[[1, 1, 0, 5]]]), np.eye(4))
    >>> segmentation = LabelMap(np.array([[[1, 0, 0, 0]]]), np.eye(4))
    >>> [(s.name, s.value, s.note) for s in evaluate(segmentation, reference) if s.metric == "hausdorff_mm"]
    [('label 1', 1.0, ''), ('label 5', 3.0, 'missed'), ('foreground', 3.0, '')]
    """
    notes = []
    if not segmentation.grid.matches(reference.grid):
        try:
            segmentation = segmentation.reoriented_to(reference.grid)
        except GeometryError:
            raise GeometryError(
                f"segmentation {segmentation.name!r} and reference {reference.name!r}: expected one grid, got "
                f"{segmentation.grid.describe()} and {reference.grid.describe()}, with corners up to "
                f"{_apart_mm(segmentation, reference):.4g} mm apart. Resample the segmentation to the other grid."
            ) from None
        notes.append("the axes of the segmentation were reoriented to those of the reference")
    if not surface_tolerance_mm >= 0:
        raise InputError(f"surface_tolerance_mm: expected 0 or more, got {surface_tolerance_mm}")
    known = table if table is not None else LabelTable()
    unions = {**known.groups, **(groups or {})}
    if FOREGROUND in unions:
        raise InputError(f"group {FOREGROUND!r}: this name is reserved for the group of all labels. Rename the group.")

    s, r = segmentation.array, reference.array
    if not_annotated:
        ignored = np.array(sorted(not_annotated), np.int32)
        s, r = np.where(np.isin(s, ignored), 0, s), np.where(np.isin(r, ignored), 0, r)
    grid = reference.grid
    counts = overlap.count(s, r)

    scores: list[Score] = []
    layers = _Surfaces.find(s, r, grid) if surfaces else None
    for n, label in enumerate(counts.labels.tolist()):
        of_label = {} if layers is None else layers.measure(label, surface_tolerance_mm)
        scores += _scores(label, known.name(label), _one(counts, n), of_label)
    for name, labels in (*unions.items(), (FOREGROUND, counts.labels)):
        members = np.intersect1d(np.fromiter(labels, np.int64), counts.labels)
        if members.size:
            in_s, in_r = (np.isin(array, members).astype(np.uint8) for array in (s, r))
            union = overlap.count(in_s, in_r)
            of_union = _Surfaces.find(in_s, in_r, grid).measure(1, surface_tolerance_mm) if surfaces else {}
            scores += _scores(None, name, union, of_union)
    if not counts.labels.size:
        notes.append("neither the segmentation nor the reference has a label: all measures are undefined (NaN)")
        names = (*overlap.METRICS, *(_surface_measures(surface_tolerance_mm) if surfaces else ()))
        scores += [Score(None, FOREGROUND, metric, math.nan, "empty in both") for metric in names]
    title = f"{segmentation.name or 'segmentation'} against {reference.name or 'reference'}"
    return EvaluationResult(scores, notes=notes, title=title)


def _apart_mm(segmentation: LabelMap, reference: LabelMap) -> float:
    """Largest distance between a corner of one grid and the nearest corner of the other."""
    apart = np.linalg.norm(segmentation.grid.corners_mm[:, None] - reference.grid.corners_mm[None], axis=-1)
    return float(apart.min(axis=1).max())


@dataclass(frozen=True, eq=False)
class _Surfaces:
    """Surface voxels and surfels of all labels of a segmentation and of a reference."""

    voxels: tuple[dict[int, Int64], dict[int, Int64]]
    surfels: tuple[dict[int, surfels.Surfels], dict[int, surfels.Surfels]]
    grid: Grid

    @classmethod
    def find(cls, s: NDArray[np.integer], r: NDArray[np.integer], grid: Grid) -> _Surfaces:
        """Find the surfaces in two label arrays."""
        return cls((surface.surfaces(s), surface.surfaces(r)), (surfels.find_surfels(s), surfels.find_surfels(r)), grid)

    def measure(self, label: int, tolerance_mm: float) -> dict[str, float]:
        """Compute the surface measures of one label, by name."""
        nowhere: Int64 = np.zeros(0, np.int64)
        (s_voxels, r_voxels), (s_surfels, r_surfels) = self.voxels, self.surfels
        voxels = surface.distances(s_voxels.get(label, nowhere), r_voxels.get(label, nowhere), self.grid)
        nothing = surfels.NO_SURFELS
        areas = surfels.surfel_distances(s_surfels.get(label, nothing), r_surfels.get(label, nothing), self.grid)
        values = (
            voxels.hausdorff_mm(),
            voxels.hausdorff_mm(95),
            voxels.average_mm(),
            areas.surface_dice(tolerance_mm),
            voxels.surface_dice_voxels(tolerance_mm),
        )
        return dict(zip(_surface_measures(tolerance_mm), values, strict=True))


def _surface_measures(tolerance_mm: float) -> list[str]:
    """Names of the surface measures, in their order."""
    dice = [f"{kind}_{tolerance_mm:g}mm" for kind in ("surface_dice", "surface_dice_voxels")]
    return ["hausdorff_mm", "hausdorff_95_mm", "average_surface_distance_mm", *dice]


def _one(counts: overlap.Counts, n: int) -> overlap.Counts:
    here = slice(n, n + 1)
    return overlap.Counts(counts.labels[here], counts.segmentation[here], counts.reference[here], counts.both[here])


def _scores(label: int | None, name: str, counts: overlap.Counts, surfaces: dict[str, float]) -> list[Score]:
    note: Note = "missed" if counts.segmentation[0] == 0 else "not in reference" if counts.reference[0] == 0 else ""
    overlaps = {metric: float(of(counts)[0]) for metric, of in overlap.METRICS.items()}
    return [Score(label, name, metric, value, note) for metric, value in (overlaps | surfaces).items()]
