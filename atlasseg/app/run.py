"""Run of a recipe over many targets: one output folder per target, and one table of metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.api.registrar import initial_file
from atlasseg.app import outputs, pages
from atlasseg.app.case import largest_voxels, read_case
from atlasseg.app.context import DEFAULT_LIMIT_BYTES, LOGS, RunContext, begin_run, load_inputs
from atlasseg.app.registrar import make_registrar
from atlasseg.atlases.library import Target
from atlasseg.compute import costs
from atlasseg.compute.execution import Listener, Outcome, Phase, capture_logs, process_targets
from atlasseg.compute.workers import Workers
from atlasseg.evaluation import evaluate
from atlasseg.files import atomic_directory, discard_partial
from atlasseg.labels import format_label_table
from atlasseg.pipeline import Progress, align, check_provenance, segment
from atlasseg.recipe import Recipe
from atlasseg.store.fingerprints import fingerprint_package
from atlasseg.store.serialisation import combine_digests, digest

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

__all__ = ["run"]

log = logging.getLogger(__name__)

After = Callable[[Target, Path, "TargetSummary"], None]
"""See `run`."""


def run(
    recipe: Recipe,
    *,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
    cache: Path | None = None,
    limit_bytes: int | None = DEFAULT_LIMIT_BYTES,
    after: After | None = None,
    stop_on_failure: bool = False,
    keep_others: bool = False,
) -> list[Outcome[TargetSummary]]:
    """Segment every target of a recipe and write the results into its output folder.

    Intermediate results are cached. A target whose results are up to date is skipped, so an interrupted run is resumed
    by the same call. Other results of earlier runs in the output folder are replaced, or moved into its folder
    ``earlier``.

    Parameters
    ----------
    recipe : Recipe
        Recipe with `data.atlases`, `data.targets` and `data.out`.
    workers : Workers
        Where to compute; by default in this process. Results do not depend on it.
    listener : callable, optional
        Called with (target, stage) when a stage starts.
    cache : path, optional
        Cache folder; by default ``.cache`` in the output folder.
    limit_bytes : int, optional
        Size limit of the cache. Beyond it the least recently used results are removed.
    after : callable, optional
        Called with (target, folder, summary) after the results of a target are written or found up to date. It runs
        where the target is computed, so it must be picklable. An exception makes the target fail.
    stop_on_failure : bool
        Start no further target after the first failure.
    keep_others : bool
        Keep earlier results of targets that are not in this run.

    Returns
    -------
    list of Outcome
        One per target, in the order of the targets. A failed target has its reason here and its log in ``logs``.

    Raises
    ------
    InputError
        The request is invalid: no library, no target, unusable workers.
    OutputError
        The output folder cannot be written.
    ClusterError
        The connection to the scheduler was lost; finished results are kept.
    """
    library, targets, out = load_inputs(recipe)
    context = begin_run(recipe, library, targets, cache=cache, limit_bytes=limit_bytes, keep_others=keep_others)
    needs = costs.estimate_memory(recipe, atlases=len(library), voxels=largest_voxels(library))
    most = max(needs.registering, needs.fusing)
    if workers.memory_bytes is not None and most > workers.memory_bytes:
        log.warning("a step needs about %.1f GB, and %.1f GB are available", most / 1e9, workers.memory_bytes / 1e9)
    done = process_targets(
        partial(segment_target, context=context) if after is None else partial(_then, context=context, after=after),
        targets,
        before=[Phase("register", partial(_register, context=context), needs.registering, needs.gpu)],
        memory_bytes=needs.fusing,
        gpu=needs.gpu,
        workers=workers,
        listener=listener,
        on_abort=lambda target: discard_partial(out / target.id),
        stop_on_failure=stop_on_failure,
    )
    write_logs(done, out)
    tables = [o.result.metrics for o in done if o.result is not None and o.result.metrics is not None]
    if tables:
        import pandas as pd

        outputs.write_table(pd.concat(tables), out / "metrics.tsv")
    elif not keep_others:
        context.earlier.set_aside("metrics.tsv")
    summaries = [o.result for o in done if o.result is not None]
    if summaries:
        outputs.write_table(outputs.quality_table(summaries), out / "quality.tsv")
        outputs.write_table(outputs.volumes_table(summaries), out / "volumes.tsv")
    elif not keep_others:
        context.earlier.set_aside("quality.tsv")
        context.earlier.set_aside("volumes.tsv")
    if recipe.output.report:
        pages.write_index(done, [o.result for o in done], library, recipe, out)
    elif not keep_others:
        context.earlier.set_aside("index.html")
    context.earlier.discard_replaced()
    return done


def write_logs(done: Sequence[Outcome[Any]], out: Path) -> None:
    """Write the log of every failed target to ``logs``, and remove logs of targets that succeed now."""
    for outcome in done:
        path = out / LOGS / f"{outcome.target}.log"
        if outcome.error:
            io.write_text(f"{outcome.log}\n", path)
        else:
            path.unlink(missing_ok=True)


def finished(target: Target, context: RunContext) -> tuple[str, TargetSummary | None]:
    """Key of the inputs of a target, and the summary of its results if these are complete and up to date."""
    placing = ("data", "name", "text", "base", "device")  # no stage; a step says itself what it was given
    made_by = {f.name: getattr(context.recipe, f.name) for f in fields(Recipe) if f.name not in placing}
    paths = [str(path) for path in (target.image, *(files.image for files in context.library.atlases))]
    labels = format_label_table(context.library.table)
    starts = initial_digests(target, context)
    content = digest((target, context.library.atlases, labels, made_by, context.recipe.text, paths, *starts))
    key = combine_digests(fingerprint_package(), content)
    known = context.kept.get("target", key)
    if known is None or known["files"] != file_digests(context.out / target.id):
        return key, None
    from atlasseg.report.cohort_page import TargetSummary

    return key, TargetSummary(**known["summary"])


def initial_digests(target: Target, context: RunContext) -> list[str]:
    """SHA-256 digests of the initial transforms of a target, in the order of the atlases."""
    pattern = context.recipe.registration.initial
    if pattern is None:
        return []
    files = [initial_file(pattern, target.id, id_) for id_ in context.library.ids if id_ != target.id]
    return [sha256(file.read_bytes()).hexdigest() for file in files]


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 digest of every file in a folder, by name."""
    if not folder.is_dir():
        return {}
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def register_target(target: Target, progress: Progress, *, context: RunContext, variants: Sequence[Recipe]) -> None:
    """Compute and cache the stages before fusion, which all `variants` share."""
    kept = context.kept
    if kept.writable:
        case = read_case(target, context.library, progress)
        for variant in variants:
            check_provenance(case.atlases, variant)
        registers = make_registrar(context.recipe, context.library, kept, target=target.id)
        align(
            case.scan,
            case.atlases,
            context.recipe,
            mask=case.mask,
            progress=progress,
            registrar=registers,
            executor=kept,
        )


def _register(target: Target, progress: Progress, *, context: RunContext) -> None:
    """Compute and cache the stages before fusion of an unfinished target."""
    with suppress(OSError):
        if finished(target, context)[1] is not None:
            return
    register_target(target, progress, context=context, variants=[context.recipe])


def segment_target(target: Target, progress: Progress, *, context: RunContext) -> TargetSummary:
    """Read, segment, evaluate, report and write one target, unless its results are up to date."""
    library, recipe, out = context.library, context.recipe, context.out
    begun = time.perf_counter()
    key = ""
    with suppress(OSError):  # reading a missing file raises a clear error later
        key, summary = finished(target, context)
        if summary is not None:
            return summary
    context.earlier.set_aside(target.id)
    with capture_logs(logging.WARNING, "%(message)s") as heard:
        case = read_case(target, library, progress)
        result = segment(
            case.scan,
            case.atlases,
            recipe,
            mask=case.mask,
            progress=progress,
            registrar=make_registrar(recipe, library, context.kept, target=target.id),
            executor=context.kept,
        )
        table = library.table.completed(result.alignment.label_values)
        metrics = None
        if case.reference is not None:
            progress("evaluate")
            scores = evaluate(
                result.labels,
                case.reference,
                table=table,
                not_annotated=case.not_annotated,
                surface_tolerance_mm=recipe.evaluation.surface_tolerance_mm,
            )
            name = recipe.fusion.method.name
            metrics = outputs.metrics_table(scores, target=target.id, method=name)
            calibration = outputs.calibration_table(
                result.probabilities,
                case.reference,
                target=target.id,
                method=name,
                not_annotated=case.not_annotated,
            )
        progress("write")
        with atomic_directory(out / target.id) as folder:
            outputs.write_segmentation(
                folder,
                target.id,
                case.scan,
                result,
                recipe,
                table,
                case.sources,
                reference=case.reference,
                not_annotated=case.not_annotated,
            )
            if metrics is not None:
                outputs.write_table(metrics, folder / f"{target.id}_metrics.tsv")
                outputs.write_table(calibration, folder / f"{target.id}_calibration.tsv")
            summary = pages.summarise_target(target.id, case, result, recipe, table, metrics)
            if recipe.output.report:
                seconds = {**result.seconds, "total": time.perf_counter() - begun}
                page = pages.page(summary, case, result, recipe, table, seconds, heard)
                io.write_text(page, folder / f"{target.id}.html")
    context.earlier.discard(target.id)
    summary = replace(summary, seconds=time.perf_counter() - begun, warnings=len(heard))
    if key:
        told = {f.name: getattr(summary, f.name) for f in fields(summary)}
        context.kept.put("target", key, {"summary": told, "files": file_digests(out / target.id)})
    return summary


def _then(target: Target, progress: Progress, *, context: RunContext, after: After) -> TargetSummary:
    """Segment one target, then call `after`."""
    summary = segment_target(target, progress, context=context)
    after(target, context.out / target.id, summary)
    return summary


def summary(done: Sequence[Outcome[TargetSummary]]) -> pd.DataFrame:
    """Table with one row per target: outcome, seconds, mean Dice and HD95 if evaluated, and what to check."""
    import pandas as pd

    rows = []
    for outcome in done:
        row: dict[str, Any] = {"target": outcome.target, "seconds": round(outcome.seconds, 1)}
        metrics = outcome.result.metrics if outcome.result is not None else None
        if metrics is not None:
            of_labels = metrics[metrics["label"].notna()]
            means = of_labels.groupby("metric", sort=False)["value"].mean()
            row |= {"mean Dice": means.get("dice"), "mean HD95 (mm)": means.get("hausdorff_95_mm")}
        quality = outcome.result.quality if outcome.result is not None else ""
        rows.append({**row, "quality": quality, "result": "failed" if outcome.error else "done"})
    return pd.DataFrame(rows)
