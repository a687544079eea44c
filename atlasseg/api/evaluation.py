"""``atlasseg.evaluate``: evaluate segmentations against references."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from atlasseg.api.coercion import LABELS, as_label_table, as_list, describe_value, refuse, repeat_or_check
from atlasseg.api.pairs import read_pair
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate as evaluate_label_map
from atlasseg.recipe.tables import Evaluation


def evaluate(
    segmentation: Any,
    reference: Any,
    *,
    table: Any = None,
    groups: Mapping[str, Collection[int]] | None = None,
    not_annotated: Collection[int] = (),
    surface_tolerance_mm: float = Evaluation.surface_tolerance_mm,
) -> Any:
    """Evaluate one or many segmentations against their references.

    Computes overlap (Dice, Jaccard, volume similarity, sensitivity, precision) and surface distances (Hausdorff
    distance, its 95th percentile, average symmetric surface distance, surface Dice) of every label in either label map,
    of groups of labels, and of all labels together ("foreground"). A label that is missing in one of the two gets the
    worst value of each metric, and a note. Where neither has any label, no metric is defined: the values are NaN, and a
    note says so. :doc:`/guide/measures` gives the definitions and relates them to other tools.

    Parameters
    ----------
    segmentation : label map or list of these
        A path, a `LabelMap`, an image of nibabel, SimpleITK or ANTs, or a result of `segment` or `fuse`.
    reference : label map or list of these
        On the same grid (the axes may be stored in another order), one per segmentation. An RTSTRUCT or DICOM-SEG is
        read on the grid of the segmentation, its structures matched by their names in `table`.
    table : LabelTable, path or AtlasLibrary, optional
        Names of labels, and groups.
    groups : mapping of name to labels, optional
        Additional groups of labels, each evaluated as one structure.
    not_annotated : collection of int
        Labels that were not annotated in the reference. They are not evaluated.
    surface_tolerance_mm : float
        Tolerance of surface Dice (by area, and of voxels) in mm, 0 or more.

    Returns
    -------
    EvaluationResult, or list of EvaluationResult
        ``result["dice"]``, ``result["dice", LABEL]``, ``result.mean()``, ``result.to_frame()``. Prints as a table.

    Raises
    ------
    InputError
        An argument is unsuitable.
    GeometryError
        The grids differ.

    References
    ----------
    .. [1] Taha and Hanbury (2015), Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool,
       BMC Medical Imaging 15:29.
    .. [2] Nikolov et al. (2021), Clinically applicable segmentation of head and neck anatomy for radiotherapy: deep
       learning algorithm development and validation study, JMIR 23(7):e26151 (surface Dice).

    Examples
    --------
    >>> import atlasseg, numpy as np
    >>> reference = atlasseg.LabelMap(np.array([[[1, 1, 0, 5]]]), np.eye(4))
    >>> segmentation = atlasseg.LabelMap(np.array([[[1, 0, 0, 5]]]), np.eye(4))
    >>> result = atlasseg.evaluate(segmentation, reference)
    >>> result["dice"].round(3).to_dict()
    {'label 1': 0.667, 'label 5': 1.0}
    """
    named = table.table if isinstance(table, AtlasLibrary) else None if table is None else as_label_table(table)
    found, many = as_list(segmentation, "segmentation", LABELS)
    known = repeat_or_check(reference, len(found), "reference") if many else [reference]
    if groups is not None and not isinstance(groups, Mapping):
        raise refuse(groups, "groups", 'a dictionary like {"cortex": [3, 42]}')
    if isinstance(surface_tolerance_mm, bool) or not isinstance(surface_tolerance_mm, int | float):
        raise InputError(f"surface_tolerance_mm: expected a number of mm, got {describe_value(surface_tolerance_mm)}.")
    pairs = (read_pair(s, r, table=named) for s, r in zip(found, known, strict=True))
    results = [
        evaluate_label_map(
            pair.segmentation,
            pair.reference,
            table=pair.table,
            groups=groups,
            not_annotated={*not_annotated, *pair.not_annotated},
            surface_tolerance_mm=surface_tolerance_mm,
        )
        for pair in pairs
    ]
    return results if many else results[0]
