"""Run a recipe over many targets, in one process or several; a target that fails does not stop the others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.cohort import outputs
from atlasseg.errors import AtlasSegError, InputError
from atlasseg.evaluation import evaluate
from atlasseg.pipeline import segment
from atlasseg.recipe import Recipe
from atlasseg.volume import Atlas, Image

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Listener = Callable[[str, str], None]
"""Told (target, stage): "waiting" for every target first, then each stage as it begins, then "done" or "failed"."""


@dataclass(frozen=True)
class Outcome:
    """How one target ended: `error` says why it failed, and is empty where it did not."""

    target: str
    seconds: float
    error: str = ""
    metrics: pd.DataFrame | None = None
    summary: dict[str, Any] = field(default_factory=dict)


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
    if recipe.data.atlases is None or not recipe.data.targets or recipe.data.out is None:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases, targets and out (or give them as options)")
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    library = read_library(recipe.data.atlases)
    targets = read_targets(recipe.data.targets)
    for id_ in library.ids:
        _atlas(library, id_)  # a broken atlas is a wrong request, and is told before the work begins
    out = recipe.data.out
    _check_writable(out)
    io.write_json(outputs.dataset_description(recipe), out / "dataset_description.json")
    tell = listener or (lambda target, stage: None)
    for target in targets:
        tell(target.id, "waiting")
    if jobs == 1 or len(targets) == 1:
        done = [_attempt(target, library, recipe, tell) for target in targets]
    else:
        done = _in_processes(targets, library, recipe, min(jobs, len(targets)), tell)
    _write_summaries(out, done, recipe)
    return done


def _attempt(target: Target, library: AtlasLibrary, recipe: Recipe, tell: Listener) -> Outcome:
    """Do one target, turning what goes wrong with it into an Outcome."""
    begun = time.perf_counter()
    try:
        outcome = _one(target, library, recipe, lambda stage: tell(target.id, stage))
    except (AtlasSegError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
    except Exception as error:
        log.exception("target %s: unexpected failure", target.id)
        reason = f"{type(error).__name__}: {error}"
    else:
        tell(target.id, "done")
        return outcome
    log.error("target %s failed: %s", target.id, reason)
    tell(target.id, "failed")
    return Outcome(target.id, time.perf_counter() - begun, reason)


def _one(target: Target, library: AtlasLibrary, recipe: Recipe, progress: Callable[[str], None]) -> Outcome:
    """Read, segment, evaluate, report and write one target."""
    assert recipe.data.out is not None
    begun = time.perf_counter()
    with _warnings_of(target.id) as heard:
        progress("read")
        scan, mask = target.read()
        reference = target.read_labels(scan)
        voters = _without_itself(target, scan, [_atlas(library, id_) for id_ in library.ids])
        result = segment(scan, voters, recipe, mask=mask, progress=progress)
        table = library.table.completed(result.alignment.label_values)
        metrics = None
        if reference is not None:
            progress("evaluate")
            scores = evaluate(
                result.labels,
                reference,
                table=table,
                not_annotated=library.files(target.id).not_annotated if target.id in library.ids else (),
                surface_tolerance_mm=recipe.evaluation.surface_tolerance_mm,
            )
            metrics = outputs.metrics_table(scores, target=target.id, method=recipe.fusion.method.name)
        progress("write")
        volumes = outputs.volumes(result.labels, table)
        seconds = {**result.seconds, "total": time.perf_counter() - begun}
        with outputs.whole_folder(recipe.data.out / target.id) as folder:
            sources = [str(target.image), *(str(library.root / a.id) for a in voters)]
            outputs.write_segmentation(folder, target.id, scan, result, recipe, table, sources)
            if metrics is not None:
                outputs.write_table(metrics, folder / f"{target.id}_metrics.tsv")
            if recipe.output.report:
                from atlasseg.report.page import TargetReport, render

                report = TargetReport(
                    target=target.id,
                    image=scan,
                    labels=result.labels,
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
    return Outcome(target.id, time.perf_counter() - begun, metrics=metrics)


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


def _check_writable(out: Path) -> None:
    """Fail before hours are spent, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"output folder {out} cannot be written: {error.strerror or error}") from error


def _write_summaries(out: Path, done: Sequence[Outcome], recipe: Recipe) -> None:
    """Metrics of all targets in one table."""
    import pandas as pd

    tables = [outcome.metrics for outcome in done if outcome.metrics is not None]
    if tables:
        outputs.write_table(pd.concat(tables), out / "metrics.tsv")


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


# -- several processes ------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(library: AtlasLibrary, recipe: Recipe, threads: int, events: Any, level: int) -> None:
    """Make a process ready: it leaves Ctrl-C to its parent, and keeps to its share of the processors."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    import numba

    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    _worker.update(library=library, recipe=recipe, events=events)


def _work(target: Target) -> Outcome:
    return _attempt(target, _worker["library"], _worker["recipe"], lambda *event: _worker["events"].put(event))


def _in_processes(
    targets: Sequence[Target], library: AtlasLibrary, recipe: Recipe, jobs: int, tell: Listener
) -> list[Outcome]:
    """Share the targets out over `jobs` processes; a process that dies takes down its own target only."""
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    done: dict[str, Outcome] = {}
    stop = threading.Event()

    def relay() -> None:
        while not stop.is_set():
            try:
                tell(*events.get(timeout=0.1))
            except queue.Empty:
                continue

    listener = threading.Thread(target=relay, daemon=True)
    listener.start()
    initial = (library, recipe, threads, events, logging.getLogger().getEffectiveLevel())
    pending = list(targets)
    alone = False
    try:
        while pending:
            batch = pending[:1] if alone else pending
            pool = ProcessPoolExecutor(1 if alone else jobs, context, initializer=_start_worker, initargs=initial)
            futures: dict[Future[Outcome], Target] = {pool.submit(_work, target): target for target in batch}
            try:
                for future in as_completed(futures):
                    done[futures[future].id] = future.result()
                pool.shutdown()
            except BrokenProcessPool:
                # which of the targets in flight killed it cannot be known, so each gets a process of its own
                if alone:
                    reason = "its process died (killed, or out of memory)"
                    log.error("target %s failed: %s", batch[0].id, reason)
                    done[batch[0].id] = Outcome(batch[0].id, 0.0, reason)
                alone = True
            pending = [target for target in targets if target.id not in done]
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        for child in multiprocessing.active_children():
            child.join()
        for target in targets:
            outputs.discard_partial(recipe.data.out / target.id)  # type: ignore[operator]
        raise
    finally:
        stop.set()
        listener.join()
    while not events.empty():
        tell(*events.get())
    return [done[target.id] for target in targets]
