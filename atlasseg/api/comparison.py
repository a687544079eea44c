"""``atlasseg.compare``: compare fusion methods on the same registrations, with paired tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from atlasseg.api.coercion import as_atlases, as_label_table, refuse
from atlasseg.api.recipes import as_recipe, as_variants, get_kind
from atlasseg.api.registrar import load_prepared, make_registrar
from atlasseg.api.segmentation import as_cases, as_library
from atlasseg.atlases.library import AtlasLibrary
from atlasseg.atlases.selection import exclude_scan
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate
from atlasseg.evaluation.comparison import Comparison
from atlasseg.pipeline import align, check_provenance, fuse


def compare(
    targets: Any,
    library: Any,
    methods: Sequence[str] = ("majority", "local_weighted", "joint"),
    recipe: Any = None,
    *,
    table: Any = None,
    overrides: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare fusion methods on the same registrations, with paired tests.

    Computes in memory and in this process. For reports, worker processes and results on disk use ``atlasseg compare``
    or `atlasseg.app.compare.compare`.

    Parameters
    ----------
    targets : library, path, or list of pairs (image, labels)
        Scans with reference labels: an `AtlasLibrary` or its folder, atlases, or pairs. It may be the library itself:
        each atlas is then segmented from the others (leave-one-out).
    library : AtlasLibrary, path or list of atlases
        The library or its folder; atlases or pairs (image, labels).
    methods : sequence of str
        At least two fusion methods, with or without a refinement: ``"joint"``, ``"joint+markov_field"``.
    recipe : Recipe, path or str, optional
        Preprocessing, registration, and parameters of the methods; see `segment`.
    table : LabelTable or path, optional
        Names of the labels. Default: the table of the library.
    overrides : sequence of str
        Values of the recipe to set, as by ``--set``: ``["fusion.joint.beta=3"]``.
    progress : callable, optional
        Called with the target and the stage when a stage starts.

    Returns
    -------
    Comparison
        ``metrics`` (all metrics, long format), ``scores`` (mean Dice: one row per target, one column per method),
        ``tests`` (Wilcoxon, corrected by Holm), ``ranking`` (Friedman, Nemenyi). Prints as a table.

    Raises
    ------
    InputError
        An argument is unsuitable, a target has no labels, or the model of a method does not fit.

    References
    ----------
    .. [1] Demsar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7:1-30.

    Examples
    --------
    >>> import atlasseg
    >>> sample = atlasseg.sample_data()
    >>> library = atlasseg.read_library(sample / "atlases").only(["atlas1", "atlas2", "atlas6"])
    >>> found = atlasseg.compare(sample / "targets", library, ["majority", "staple"],
    ...                          overrides=['registration.steps=["affine"]'])
    >>> list(found.scores.columns), len(found.tests)
    (['majority', 'staple'], 1)
    """
    import pandas as pd

    source = as_library(library)
    atlases = as_atlases(source, what="library")
    checked = as_recipe(recipe, overrides=overrides, kind=get_kind(atlases))
    variants = as_variants(methods, checked)
    if progress is not None and not callable(progress):
        raise refuse(progress, "progress", "a function that takes the name of a stage")
    cases, _ = as_cases(targets, what="targets")
    bare = [case.id for case in cases if case.reference is None]
    if bare:
        raise InputError(
            f"targets: expected reference labels with every target, got none with {', '.join(bare)}. Give pairs "
            "(image, labels), or a folder with images/ and labels/."
        )
    named = source.table if isinstance(source, AtlasLibrary) and table is None else None
    named = as_label_table(table) if table is not None else named
    prepared, rows = load_prepared(checked, source), []
    for case in cases:
        assert case.reference is not None
        voters = exclude_scan(case.id, case.scan, atlases)
        origins = [check_provenance(voters, variant) for variant in variants]
        tell = None if progress is None else lambda stage, id=case.id: progress(f"{id}: {stage}")
        registrar = make_registrar(checked, target=case.id, prepared=prepared)
        alignment = align(case.scan, voters, checked, mask=case.mask, progress=tell, registrar=registrar)
        labels = None if named is None else named.completed(alignment.label_values)
        for variant, origin in zip(variants, origins, strict=True):
            begun = time.perf_counter()
            result = fuse(
                alignment,
                variant.fusion.method,
                refinement=variant.refinement.method,
                provenance=origin,
                regions=checked.regions,
                progress=tell,
            )
            seconds = time.perf_counter() - begun
            scores = evaluate(
                result.labels,
                case.reference,
                table=labels,
                not_annotated=case.not_annotated,
                surface_tolerance_mm=checked.evaluation.surface_tolerance_mm,
            ).to_frame()
            scores.loc[len(scores)] = [pd.NA, "all", "seconds", seconds, ""]
            rows.append(scores.assign(target=case.id, method=variant.variant))
    metrics = pd.concat(rows, ignore_index=True)
    return Comparison.from_metrics(metrics[["target", "method", "label", "name", "metric", "value", "note"]])
