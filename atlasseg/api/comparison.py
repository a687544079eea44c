"""``atlasseg.compare``: several fusion methods on the same registrations, with tests of their differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from atlasseg.api.coercion import as_atlases, as_label_table, refuse
from atlasseg.api.recipes import as_recipe, as_variants, kind_of
from atlasseg.api.segmentation import as_cases, as_library, make_registrar, others
from atlasseg.atlases.library import AtlasLibrary
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
    """Register once, fuse in several ways, and test the differences.

    Everything stays in memory and in this process. For reports, workers and results on disk there is ``atlasseg
    compare``, which is `atlasseg.app.compare.compare`.

    Parameters
    ----------
    targets : library, path, or list of pairs (image, labels)
        Scans with reference labels: an `AtlasLibrary` or its folder, atlases, or pairs. The library itself will do: no
        atlas votes on itself (leave-one-out).
    library : AtlasLibrary, path or list of atlases
        The library or its folder; atlases or pairs (image, labels).
    methods : sequence of str
        Two fusion methods or more, each perhaps refined: ``"joint"``, ``"joint+markov_field"``.
    recipe : Recipe, path or str, optional
        How scans are preprocessed and registered, and parameters of the methods; see `segment`.
    table : LabelTable or path, optional
        Names the labels; by default the library's.
    overrides : sequence of str
        Changes to the recipe, as ``--set`` makes them: ``["fusion.joint.beta=3"]``.
    progress : callable, optional
        Called with the target and stage as each begins.

    Returns
    -------
    Comparison
        ``metrics`` (every measure, long), ``scores`` (mean Dice: a row a target, a column a method), ``tests``
        (Wilcoxon, corrected by Holm), ``ranking`` (Friedman, Nemenyi); a table when printed.

    Raises
    ------
    InputError
        An argument cannot be used, a target has no labels, or a method's model cannot be used here.

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
    checked = as_recipe(recipe, overrides=overrides, kind=kind_of(atlases))
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
    registrar = make_registrar(checked, source)
    named = source.table if isinstance(source, AtlasLibrary) and table is None else None
    named = as_label_table(table) if table is not None else named
    rows = []
    for case in cases:
        assert case.reference is not None
        voters = others(case, atlases)
        origins = [check_provenance(voters, variant) for variant in variants]
        tell = None if progress is None else lambda stage, id=case.id: progress(f"{id}: {stage}")
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
    return Comparison.of(metrics[["target", "method", "label", "name", "metric", "value", "note"]])
