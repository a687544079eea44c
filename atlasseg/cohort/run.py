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
from atlasseg.cohort.execution import Listener, Outcome, over_targets
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate
from atlasseg.pipeline import Progress, segment
from atlasseg.recipe import Recipe
from atlasseg.volume import Atlas, Image, LabelMap, Mask

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def run(recipe: Recipe, *, jobs: int = 1, listener: Listener | None = None) -> list[Outcome]:
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
        The request itself is wrong: no library, no target, an output folder that cannot be written.
    """
    library, targets, out = opened(recipe, jobs)
    task = partial(_segment, library=library, recipe=recipe, out=out)
    done = over_targets(
        task,
        targets,
        jobs=jobs,
        listener=listener,
        on_abort=lambda target: outputs.discard_partial(out / target.id),
    )
    tables = [outcome.metrics for outcome in done if outcome.metrics is not None]
    if tables:
        import pandas as pd

        outputs.write_table(pd.concat(tables), out / "metrics.tsv")
    return done


def opened(recipe: Recipe, jobs: int) -> tuple[AtlasLibrary, tuple[Target, ...], Path]:
    """Library, targets and output folder of a recipe, found sound before the work begins.

    Raises
    ------
    InputError
        As for `run`.
    """
    if recipe.data.atlases is None or not recipe.data.targets or recipe.data.out is None:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases, targets and out (or give them as options)")
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    library = read_library(recipe.data.atlases)
    targets = read_targets(recipe.data.targets)
    _atlas.cache_clear()  # files may have changed since an earlier run in this process
    for id_ in library.ids:
        _atlas(library, id_)  # a broken atlas is a wrong request, and is told before the work begins
    out = recipe.data.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"output folder {out} cannot be written: {error.strerror or error}") from error
    io.write_json(outputs.dataset_description(recipe), out / "dataset_description.json")
    return library, targets, out


def _segment(
    target: Target, progress: Progress, *, library: AtlasLibrary, recipe: Recipe, out: Path
) -> pd.DataFrame | None:
    """Read, segment, evaluate, report and write one target; returns its metrics, if it has a reference."""
    begun = time.perf_counter()
    with _warnings_of(target.id) as heard:
        case = read_case(target, library, progress)
        result = segment(case.scan, case.atlases, recipe, mask=case.mask, progress=progress)
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
        with outputs.whole_folder(out / target.id) as folder:
            outputs.write_segmentation(folder, target.id, case.scan, result, recipe, table, case.sources)
            if metrics is not None:
                outputs.write_table(metrics, folder / f"{target.id}_metrics.tsv")
            if recipe.output.report:
                from atlasseg.report.page import TargetReport, render

                report = TargetReport(
                    target=target.id,
                    image=case.scan,
                    labels=result.labels,
                    reference=case.reference,
                    entropy=result.probabilities.entropy(),
                    table=table,
                    fusion=recipe.fusion.method.name,
                    volumes=volumes,
                    metrics=metrics,
                    atlases=outputs.atlas_rows(result),
                    seconds=seconds,
                    recipe=recipe.text,
                    warnings=tuple(heard),
                    versions=outputs.software_versions(),
                )
                io.write_text(render(report), folder / f"{target.id}.html")
    return metrics


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


def summary(done: Sequence[Outcome]) -> pd.DataFrame:
    """One row a target: how it ended, how long it took, and its mean Dice and HD95 where it was evaluated."""
    import pandas as pd

    rows = []
    for outcome in done:
        row: dict[str, Any] = {"target": outcome.target, "seconds": round(outcome.seconds, 1)}
        if outcome.metrics is not None:
            of_labels = outcome.metrics[outcome.metrics["label"].notna()]
            means = of_labels.groupby("metric", sort=False)["value"].mean()
            row |= {"mean Dice": means.get("dice"), "mean HD95 (mm)": means.get("hausdorff_95_mm")}
        rows.append({**row, "result": "failed" if outcome.error else "done"})
    return pd.DataFrame(rows)
