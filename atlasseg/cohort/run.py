"""Run a recipe over many targets: each gets its folder, and all of them one table of metrics."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.cohort import outputs
from atlasseg.cohort.cache import Cache
from atlasseg.cohort.execution import Listener, Outcome, over_targets
from atlasseg.cohort.packing import digest, joined
from atlasseg.errors import InputError, OutputError
from atlasseg.evaluation import evaluate
from atlasseg.files import discard_partial, whole_folder
from atlasseg.pipeline import Call, Progress, Registered, Registrar, Scans, at_once, register, segment
from atlasseg.preparation import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.recipe import Recipe
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Image, LabelMap, Mask

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

log = logging.getLogger(__name__)


def run(recipe: Recipe, *, jobs: int = 1, listener: Listener | None = None) -> list[Outcome[TargetSummary]]:
    """Segment every target of `recipe` and write the results into its output folder.

    Parameters
    ----------
    recipe : Recipe
        With `data.atlases`, `data.targets` and `data.out` set.
    jobs : int
        Targets worked on at once, each in a process of its own; results do not depend on it.
    listener : callable, optional
        Told (target, stage) as the work goes on.

    Returns
    -------
    list of Outcome
        One a target, in the order of the targets. One that failed is named with its reason; the others are written.

    Raises
    ------
    InputError
        The request itself is wrong: no library, no target.
    OutputError
        The output folder cannot be written.
    """
    library, targets, out = opened(recipe, jobs)
    task = partial(_segment, library=library, recipe=recipe, out=out)
    done = over_targets(
        task,
        targets,
        jobs=jobs,
        listener=listener,
        on_abort=lambda target: discard_partial(out / target.id),
    )
    tables = [o.result.metrics for o in done if o.result is not None and o.result.metrics is not None]
    if tables:
        import pandas as pd

        outputs.write_table(pd.concat(tables), out / "metrics.tsv")
    if recipe.output.report:
        _write_index(done, library, recipe, out)
    return done


def _write_index(done: Sequence[Outcome[TargetSummary]], library: AtlasLibrary, recipe: Recipe, out: Path) -> None:
    """The page of the cohort, from which the targets' own are reached."""
    from atlasseg.report.cohort_page import CohortReport, TargetSummary, render_cohort

    summaries = [o.result or TargetSummary(o.target, seconds=o.seconds, error=o.error) for o in done]
    labels = {int(v) for s in summaries if s.volumes is not None for v in s.volumes["label"]}
    report = CohortReport(
        name=recipe.name,
        fusion=recipe.fusion.method.name,
        targets=summaries,
        table=library.table.completed(labels),
        atlases=len(library),
        recipe=recipe.text,
        versions=outputs.software_versions(),
    )
    io.write_text(render_cohort(report), out / "index.html")


def opened(recipe: Recipe, jobs: int) -> tuple[AtlasLibrary, tuple[Target, ...], Path]:
    """Library, targets and output folder of a recipe, found sound before the work begins.

    Raises
    ------
    InputError
        As for `run`.
    """
    if not recipe.data.atlases or not recipe.data.targets or recipe.data.out is None:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases, targets and out (or give them as options)")
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    library = read_library(*recipe.data.atlases)
    targets = read_targets(recipe.data.targets)
    _prepared.cache_clear()
    _atlas.cache_clear()  # files may have changed since an earlier run in this process
    for id_ in library.ids:
        _atlas(library, id_)  # a broken atlas is a wrong request, and is told before the work begins
    registrar(recipe, library)
    out = recipe.data.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"output folder {out} cannot be written: {error.strerror or error}") from error
    io.write_json(outputs.dataset_description(recipe), out / "dataset_description.json")
    return library, targets, out


def _segment(target: Target, progress: Progress, *, library: AtlasLibrary, recipe: Recipe, out: Path) -> TargetSummary:
    """Read, segment, evaluate, report and write one target."""
    from atlasseg.report.cohort_page import TargetSummary

    begun = time.perf_counter()
    with _warnings_of(target.id) as heard:
        case = read_case(target, library, progress)
        result = segment(
            case.scan,
            case.atlases,
            recipe,
            mask=case.mask,
            progress=progress,
            registrar=registrar(recipe, library),
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
            metrics = outputs.metrics_table(scores, target=target.id, method=recipe.fusion.method.name)
        progress("write")
        volumes = outputs.volumes(result.labels, table)
        seconds = {**result.seconds, "total": time.perf_counter() - begun}
        with whole_folder(out / target.id) as folder:
            outputs.write_segmentation(folder, target.id, case.scan, result, recipe, table, case.sources)
            if metrics is not None:
                outputs.write_table(metrics, folder / f"{target.id}_metrics.tsv")
            thumbnail = ""
            if recipe.output.report:
                from atlasseg.report.figures import thumbnail as picture
                from atlasseg.report.page import TargetReport, render

                report = TargetReport(
                    target=target.id,
                    image=case.scan,
                    labels=result.labels,
                    table=table,
                    fusion=recipe.fusion.method.name,
                    entropy=result.probabilities.entropy(),
                    reference=case.reference,
                    volumes=volumes,
                    metrics=metrics,
                    atlases=outputs.atlas_rows(result),
                    seconds=seconds,
                    recipe=recipe.text,
                    warnings=tuple(heard),
                    versions=outputs.software_versions(),
                    home="../index.html",
                )
                io.write_text(render(report), folder / f"{target.id}.html")
                thumbnail = picture(case.scan, result.labels, table=table).svg
    return TargetSummary(
        target=target.id,
        href=f"{target.id}/{target.id}.html" if recipe.output.report else "",
        seconds=time.perf_counter() - begun,
        warnings=len(heard),
        thumbnail=thumbnail,
        volumes=volumes,
        metrics=metrics,
    )


@dataclass(frozen=True, eq=False)
class Case:
    """A target as read, with the atlases that vote on it and what it is measured by."""

    scan: Image
    mask: Mask | None
    reference: LabelMap | None
    atlases: list[Atlas]
    not_annotated: frozenset[int]
    sources: list[str]


def read_case(target: Target, library: AtlasLibrary, progress: Progress) -> Case:
    """Read a target and the atlases of the library that are not the target itself."""
    progress("read")
    scan, mask = target.read()
    reference = target.read_labels(scan)
    atlases = _without_itself(target, scan, [_atlas(library, id_) for id_ in library.ids])
    not_annotated = library.files(target.id).not_annotated if target.id in library.ids else frozenset()
    sources = [str(target.image), *(str(library.files(atlas.id).image) for atlas in atlases)]
    return Case(scan, mask, reference, atlases, not_annotated, sources)


def registrar(recipe: Recipe, library: AtlasLibrary, call: Call = at_once) -> Registrar:
    """How the recipe registers: by its steps, or by way of the prepared library's template."""
    folder = recipe.registration.prepared
    if folder is None:
        return partial(register, recipe=recipe, call=call)
    prepared = _prepared(folder, library)
    engine = engine_of(recipe.registration.steps)

    def by_template(scans: Scans) -> Registered:
        ids = [atlas.id for atlas in scans.atlases]

        def found(chosen: Sequence[int]) -> list[Transform]:
            return register_prepared(
                scans.target,
                prepared,
                [scans.images[n] for n in chosen],
                ids=[ids[n] for n in chosen],
                fixed_mask=scans.target_mask,
                moving_masks=[scans.atlas_masks[n] for n in chosen],
                engine=engine,
            )

        if isinstance(call, Cache):
            whole = digest(
                (register_prepared, engine, scans.target, scans.target_mask, prepared.template, prepared.mask)
            )
            ways = [prepared.transforms[id_] for id_ in ids]
            keys = [joined(whole, digest(parts)) for parts in zip(scans.images, scans.atlas_masks, ways, strict=True)]
            transforms = call.each("registration.prepared", keys, found)
        else:
            transforms = found(range(len(ids)))
        return Registered(tuple(transforms), (0, 0, 0), scans.target.shape)

    return by_template


@cache
def _prepared(folder: Path, library: AtlasLibrary) -> PreparedLibrary:
    """A prepared library, read and checked once a process."""
    prepared = read_prepared(folder)
    prepared.check(library)
    return prepared


@cache
def _atlas(library: AtlasLibrary, id_: str) -> Atlas:
    """An atlas, read once a process."""
    return library.read(id_)


def _without_itself(target: Target, scan: Image, atlases: Sequence[Atlas]) -> list[Atlas]:
    """The atlases that are not the target itself, by id or by content: a scan never votes on itself."""
    others = []
    content = io.content_hash(scan)
    for atlas in atlases:
        if atlas.id == target.id or (atlas.image.shape == scan.shape and io.content_hash(atlas.image) == content):
            log.info("target %s is atlas %s of the library: left out of its own fusion", target.id, atlas.id)
        else:
            others.append(atlas)
    if not others:
        raise InputError(f"target {target.id}: the library holds no atlas beside the target itself")
    return others


@contextmanager
def _warnings_of(target: str) -> Iterator[list[str]]:
    """Collect what the package warns of while one target is worked on."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    package = logging.getLogger("atlasseg")
    package.addHandler(handler)
    try:
        yield heard
    finally:
        package.removeHandler(handler)


def summary(done: Sequence[Outcome[TargetSummary]]) -> pd.DataFrame:
    """One row a target: how it ended, how long it took, and its mean Dice and HD95 where it was evaluated."""
    import pandas as pd

    rows = []
    for outcome in done:
        row: dict[str, Any] = {"target": outcome.target, "seconds": round(outcome.seconds, 1)}
        metrics = outcome.result.metrics if outcome.result is not None else None
        if metrics is not None:
            of_labels = metrics[metrics["label"].notna()]
            means = of_labels.groupby("metric", sort=False)["value"].mean()
            row |= {"mean Dice": means.get("dice"), "mean HD95 (mm)": means.get("hausdorff_95_mm")}
        rows.append({**row, "result": "failed" if outcome.error else "done"})
    return pd.DataFrame(rows)
