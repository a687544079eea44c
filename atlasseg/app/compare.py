"""Comparison of variants of a recipe: register once, fuse with every variant, test the differences."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.app import outputs, pages
from atlasseg.app.case import Case, largest_voxels, read_case
from atlasseg.app.context import DEFAULT_LIMIT_BYTES, RunContext, begin_run, load_inputs, unusable_variants
from atlasseg.app.registrar import make_registrar
from atlasseg.app.run import register_target, write_logs
from atlasseg.atlases.library import Target
from atlasseg.compute import costs
from atlasseg.compute.execution import Listener, Outcome, Phase, process_targets
from atlasseg.compute.workers import Workers
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate
from atlasseg.evaluation.comparison import Comparison
from atlasseg.files import atomic_directory, discard_partial
from atlasseg.labels import LabelTable
from atlasseg.pipeline import Progress, Segmentation, align, check_provenance, fuse
from atlasseg.recipe import Recipe, with_methods

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

__all__ = ["CohortComparison", "compare"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Fused:
    """Results of one target in a comparison: measures of every variant, and its row on the cohort page."""

    metrics: pd.DataFrame
    summary: TargetSummary


@dataclass(frozen=True, eq=False, repr=False)
class CohortComparison(Comparison):
    """Comparison over the targets of a recipe, with the outcome of each target.

    Parameters
    ----------
    metrics, scores, tests, ranking
        As for `evaluation.comparison.Comparison`.
    outcomes : list of Outcome
        Outcome of each target, with its segmentation by every variant.
    """

    outcomes: list[Outcome[Fused]]


def compare(
    recipe: Recipe,
    names: Sequence[str],
    *,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
    cache: Path | None = None,
    limit_bytes: int | None = DEFAULT_LIMIT_BYTES,
) -> CohortComparison:
    """Segment the targets with several variants on the same registrations, and compare the results.

    Parameters
    ----------
    recipe : Recipe
        Its targets must have labels, or be the library itself (leave-one-out). Parameters of a method are taken from
        its table ``[fusion.NAME]`` or ``[refinement.NAME]``.
    names : sequence of str
        Two or more variants: ``"FUSION"``, or ``"FUSION+REFINEMENT"`` for a refined fusion. If the recipe has a
        [refinement] and its fusion is among the names, the recipe's own variant is compared too. A variant whose
        refinement model was trained for another fusion or library is left out; the log and the page report this.
    workers, listener, limit_bytes
        As for `run`.
    cache : path, optional
        Cache folder for the results before fusion; by default ``.cache`` in the output folder. Fusions are not cached,
        since their time and memory are measured.

    Returns
    -------
    CohortComparison
        It is also written to the output folder: ``comparison.tsv``, ``comparison_tests.tsv``, ``comparison_ranks.tsv``
        and ``comparison.html``, and the segmentations of each target. If the recipe has reports, also ``index.html``,
        the cohort page of the recipe's own variant (or of the first variant), and a page of each target whose viewer
        shows all variants.

    Raises
    ------
    InputError
        There are fewer than two usable variants; a method is unknown; a target has no labels; no target could be
        compared, or none has a Dice of every variant (``comparison.tsv`` is still written).
    """
    own = [recipe.variant] if recipe.fusion.method.name in names else []
    variants = [with_methods(recipe, name) for name in dict.fromkeys([*names, *own])]
    if len(variants) < 2:
        raise InputError(f"expected at least two different methods to compare, got {', '.join(names) or 'none'}")
    library, targets, out = load_inputs(recipe)
    bare = [target.id for target in targets if target.labels is None]
    if bare:
        raise InputError(f"expected labels of every target, got none for: {', '.join(bare)}")
    left_out = unusable_variants(variants, library, targets)
    for variant, reason in left_out.items():
        log.warning("%s is left out of the comparison: %s", variant, reason)
    variants = [each for each in variants if each.variant not in left_out]
    if len(variants) < 2:
        reasons = "; ".join(f"{variant}: {reason}" for variant, reason in left_out.items())
        raise InputError(f"expected at least two methods that can be used here, got fewer: {reasons}")
    context = begin_run(recipe, library, targets, cache=cache, limit_bytes=limit_bytes)
    shown = next((each for each in variants if each.variant == recipe.variant), variants[0])
    needs = costs.estimate_memory(recipe, atlases=len(library), voxels=largest_voxels(library))
    done = process_targets(
        partial(_fuse_every_variant, context=context, variants=variants, shown=shown),
        targets,
        before=[
            Phase(
                "register", partial(register_target, context=context, variants=variants), needs.registering, needs.gpu
            )
        ],
        memory_bytes=needs.fusing,
        gpu=any(costs.uses_gpu(step) for each in variants for step in costs.list_steps(each)),
        workers=workers,
        listener=listener,
        on_abort=lambda target: discard_partial(out / target.id),
    )
    write_logs(done, out)
    metrics = collect_metrics(done)
    outputs.write_table(metrics, out / "comparison.tsv")
    found = compare_metrics(metrics, done)
    outputs.write_table(found.tests, out / "comparison_tests.tsv")
    outputs.write_table(found.ranking.to_frame(), out / "comparison_ranks.tsv")
    from atlasseg.report.comparison import comparison_sections, render_comparison

    page = render_comparison(
        found.metrics,
        found.scores,
        found.tests,
        found.ranking,
        recipe=recipe.text,
        versions=outputs.software_versions(),
        left_out=left_out,
    )
    io.write_text(page, out / "comparison.html")
    context.earlier.set_aside("metrics.tsv")
    if recipe.output.report:
        sections = comparison_sections(found.metrics, found.scores, found.tests, found.ranking)
        pages.write_index(
            done, [o.result.summary if o.result else None for o in done], library, shown, out, comparison=sections
        )
    return found


def collect_metrics(done: Sequence[Outcome[Fused]]) -> pd.DataFrame:
    """Collect the metrics of all targets that did not fail.

    Raises
    ------
    InputError
        All targets failed.
    """
    import pandas as pd

    tables = [outcome.result.metrics for outcome in done if outcome.result is not None]
    if not tables:
        reasons = "; ".join(f"{outcome.target}: {outcome.error}" for outcome in done)
        raise InputError(f"no target could be compared: {reasons}")
    return pd.concat(tables, ignore_index=True)


def compare_metrics(metrics: pd.DataFrame, done: Sequence[Outcome[Fused]]) -> CohortComparison:
    """Compute scores, tests and ranks over the targets with a Dice of every method; see `Comparison.from_metrics`."""
    found = Comparison.from_metrics(metrics)
    return CohortComparison(metrics, found.scores, found.tests, found.ranking, list(done))


def _fuse_every_variant(
    target: Target, progress: Progress, *, context: RunContext, variants: Sequence[Recipe], shown: Recipe
) -> Fused:
    """Align one target, segment and measure it with every variant, and write its page with variant `shown` first."""
    import pandas as pd

    from atlasseg.report.viewer import Candidate

    start_all = time.perf_counter()
    library, recipe, out, executor = context.library, context.recipe, context.out, context.kept
    case = read_case(target, library, progress)
    assert case.reference is not None
    made = [check_provenance(case.atlases, each) for each in variants]
    alignment = align(
        case.scan,
        case.atlases,
        recipe,
        mask=case.mask,
        progress=progress,
        registrar=make_registrar(recipe, library, executor, target=target.id),
        executor=executor,
        check_plausibility=True,
    )
    table = library.table.completed(alignment.label_values)
    found: list[pd.DataFrame] = []
    others: list[Candidate] = []
    first: tuple[Segmentation, pd.DataFrame] | None = None
    context.earlier.set_aside(target.id)
    with atomic_directory(out / target.id) as results:
        for each, origin in zip(variants, made, strict=True):
            variant = each.variant
            gc.collect(1)  # what the variant before left; a whole collection takes seconds where much is loaded
            memory = outputs.PeakMemory()
            start = time.perf_counter()
            result = fuse(
                alignment,
                each.fusion.method,
                refinement=each.refinement.method,
                provenance=origin,
                regions=recipe.regions,
                progress=lambda stage, variant=variant: progress(f"{stage} {variant}"),  # type: ignore[misc]
            )
            cost = {"seconds": time.perf_counter() - start, "peak_memory_mb": memory.megabytes()}
            rows, bins = _measure(result, case, target.id, variant, table, recipe.evaluation.surface_tolerance_mm)
            cost["expected_calibration_error"] = float(bins["expected_calibration_error"].iloc[0])
            found.append(pd.concat([rows, _cost_rows(cost, target.id, variant)], ignore_index=True))
            outputs.write_segmentation(
                results,
                target.id,
                case.scan,
                result,
                each,
                table,
                case.sources,
                variant=variant,
                reference=case.reference,
                not_annotated=case.not_annotated,
            )
            stem = f"{target.id}_desc-{outputs.entity(variant)}"
            outputs.write_table(bins, results / f"{stem}_calibration.tsv")
            if each is shown:
                first = result, rows
            else:
                others.append(Candidate(variant.replace("_", " "), result.labels))
        assert first is not None
        summary = pages.summarise_target(target.id, case, first[0], shown, table, first[1])
        if recipe.output.report:
            progress("write")
            page = pages.page(
                summary, case, first[0], shown, table, first[0].seconds, [f.message for f in alignment.findings], others
            )
            io.write_text(page, results / f"{target.id}.html")
    context.earlier.discard(target.id)
    seconds = time.perf_counter() - start_all
    return Fused(pd.concat(found, ignore_index=True), replace(summary, seconds=seconds))


def _measure(
    result: Segmentation, case: Case, target: str, variant: str, table: LabelTable, surface_tolerance_mm: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics of a segmentation against the reference, and the calibration of its probabilities."""
    assert case.reference is not None
    scores = evaluate(
        result.labels,
        case.reference,
        table=table,
        not_annotated=case.not_annotated,
        surface_tolerance_mm=surface_tolerance_mm,
    )
    bins = outputs.calibration_table(
        result.probabilities, case.reference, target=target, method=variant, not_annotated=case.not_annotated
    )
    return outputs.metrics_table(scores, target=target, method=variant), bins


def _cost_rows(cost: Mapping[str, float], target: str, variant: str) -> pd.DataFrame:
    """Rows of the table of metrics about all structures together: time, memory, calibration."""
    import pandas as pd

    rows: list[dict[str, Any]] = [
        {"target": target, "method": variant, "name": "all", "metric": metric, "value": value, "note": ""}
        for metric, value in cost.items()
    ]
    return pd.DataFrame(rows).astype({"name": str})
