"""Run a recipe over many targets: each gets its folder, and all of them one table of metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg import io
from atlasseg.app import outputs, pages
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.atlases.prepared import PreparedLibrary, engine_of, read_prepared, register_prepared
from atlasseg.compute import costs
from atlasseg.compute.execution import Listener, Outcome, Phase, heard_of, over_targets
from atlasseg.compute.workers import Workers
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate
from atlasseg.files import discard_partial, whole_folder
from atlasseg.labels import format_label_table
from atlasseg.pipeline import (
    Call,
    Progress,
    Registered,
    Registrar,
    Scans,
    align,
    at_once,
    checked_provenance,
    register,
    segment,
)
from atlasseg.recipe import Recipe
from atlasseg.store.cache import Cache, kept_in
from atlasseg.store.fingerprints import package_version
from atlasseg.store.serialisation import digest, joined
from atlasseg.transforms import Transform
from atlasseg.volume import Atlas, Image, LabelMap, Mask

if TYPE_CHECKING:
    import pandas as pd

    from atlasseg.report.cohort_page import TargetSummary

log = logging.getLogger(__name__)

CACHE, LOGS = ".cache", "logs"
"""In the output folder: what is kept, where no other place is named; and what was said of targets that failed."""


DEFAULT_LIMIT_BYTES = 50_000_000_000
"""What is kept by a run takes no more than this, unless told otherwise."""

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
) -> list[Outcome[TargetSummary]]:
    """Segment every target of `recipe` and write the results into its output folder.

    What is computed on the way is kept, and a target whose results are there and whose making has not changed is not
    done again: a run that was interrupted goes on where it was.

    Parameters
    ----------
    recipe : Recipe
        With `data.atlases`, `data.targets` and `data.out` set.
    workers : Workers
        Where; by default in this process. Results do not depend on it.
    listener : callable, optional
        Told (target, stage) as the work goes on.
    cache : path, optional
        Folder for what is computed on the way, found again by its content; by default ``.cache`` in the output folder.
    limit_bytes : int, optional
        What that folder may hold; beyond it goes what was used longest ago.
    after : callable, optional
        Told (target, its folder, what was said of it) once its results are written, or found to be there already; where
        the work is done, so it must be picklable. What it raises is the target's failure.
    stop_on_failure : bool
        Begin no further target once one failed.

    Returns
    -------
    list of Outcome
        One a target, in the order of the targets. One that failed is named with its reason, its log is in ``logs``; the
        others are written.

    Raises
    ------
    InputError
        The request itself is wrong: no library, no target, no such workers.
    OutputError
        The output folder cannot be written.
    ClusterError
        The scheduler was lost; what was finished is written and kept.
    """
    library, targets, out = opened(recipe)
    given = Given(library, recipe, out, cache or out / CACHE, limit_bytes)
    needs = costs.memory(recipe, atlases=len(library), voxels=largest(library))
    most = max(needs.registering, needs.fusing)
    if workers.memory_bytes is not None and most > workers.memory_bytes:
        log.warning("a step takes about %.1f GB, and it may take %.1f GB", most / 1e9, workers.memory_bytes / 1e9)
    done = over_targets(
        partial(_segment, given=given) if after is None else partial(_then, given=given, after=after),
        targets,
        before=[Phase("register", partial(_register, given=given), needs.registering, needs.gpu)],
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
    if recipe.output.report:
        pages.write_index(done, [o.result for o in done], library, recipe, out)
    return done


def write_logs(done: Sequence[Outcome[Any]], out: Path) -> None:
    """The log of every target that failed, in ``logs``; that of an earlier failure goes where it is mended."""
    for outcome in done:
        path = out / LOGS / f"{outcome.target}.log"
        if outcome.error:
            io.write_text(f"{outcome.log}\n", path)
        else:
            path.unlink(missing_ok=True)


def learned_from(recipe: Recipe, without: Collection[str] = ()) -> AtlasLibrary:
    """The recipe's library, but for some atlases: what a refinement is trained on.

    Raises
    ------
    InputError
        There is no library, or no atlas of a name in `without`.
    """
    if not recipe.data.atlases:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases (or give them as an option)")
    library = read_library(*recipe.data.atlases)
    return library.only([id_ for id_ in library.ids if id_ not in {library.files(left).id for left in without}])


def opened(recipe: Recipe) -> tuple[AtlasLibrary, tuple[Target, ...], Path]:
    """Library, targets and output folder of a recipe, found sound before the work begins.

    Raises
    ------
    InputError
        As for `run`.
    """
    if recipe.tissue is not None:
        raise InputError(f"recipe {recipe.name}: its table [tissue] is of atlasseg tissue; give it to that command")
    if not recipe.data.atlases or not recipe.data.targets or recipe.data.out is None:
        raise InputError(f"recipe {recipe.name}: [data] must name atlases, targets and out (or give them as options)")
    library = read_library(*recipe.data.atlases)
    targets = read_targets(recipe.data.targets)
    _prepared.cache_clear()
    _atlas.cache_clear()  # files may have changed since an earlier run in this process
    for id_ in library.ids:
        _atlas(library, id_)  # a broken atlas is a wrong request, and is told before the work begins
    registrar(recipe, library)
    out = recipe.data.out
    outputs.ready_folder(out, recipe)
    return library, targets, out


@dataclass(frozen=True, eq=False)
class Given:
    """What the work on every target of a run needs, and where results go and are kept."""

    library: AtlasLibrary
    recipe: Recipe
    out: Path
    cache: Path
    limit_bytes: int | None

    @property
    def kept(self) -> Cache:
        """What this process keeps results with."""
        return kept_in(self.cache, self.limit_bytes)


def finished(target: Target, given: Given) -> tuple[str, TargetSummary | None]:
    """The key of all that a target's results depend on, and what was said of them, where they are there and whole."""
    placing = ("data", "name", "text", "base", "device")  # no stage; a step says itself what it was given
    made_by = {f.name: getattr(given.recipe, f.name) for f in fields(Recipe) if f.name not in placing}
    paths = [str(path) for path in (target.image, *(files.image for files in given.library.atlases))]
    labels = format_label_table(given.library.table)
    content = digest((target, given.library.atlases, labels, made_by, given.recipe.text, paths))
    key = joined(package_version(), content)
    known = given.kept.get("target", key)
    if known is None or known["files"] != file_digests(given.out / target.id):
        return key, None
    return key, known["summary"]


def file_digests(folder: Path) -> dict[str, str]:
    """Name of every file in a folder to the SHA-256 of what it holds."""
    if not folder.is_dir():
        return {}
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def register_target(target: Target, progress: Progress, *, given: Given, ways: Sequence[Recipe]) -> None:
    """Do what comes before fusion in each of the `ways` alike, so that it is found kept."""
    kept = given.kept
    if kept.writable:
        case = read_case(target, given.library, progress)
        for way in ways:
            checked_provenance(case.atlases, way)
        registers = registrar(given.recipe, given.library, kept)
        align(case.scan, case.atlases, given.recipe, mask=case.mask, progress=progress, registrar=registers, call=kept)


def unusable(ways: Sequence[Recipe], library: AtlasLibrary, targets: Sequence[Target]) -> dict[str, str]:
    """Of those `ways` whose refinement cannot be used on every target, why not: found before anything is computed.

    A model may have been trained for another fusion, or with other atlases than those that vote on a target.
    """
    voters = dict.fromkeys(tuple(id_ for id_ in library.ids if id_ != target.id) for target in targets)
    found: dict[str, str] = {}
    for each in ways:
        try:
            for ids in voters:
                checked_provenance([_atlas(library, id_) for id_ in ids], each)
        except InputError as error:
            found[each.way] = str(error)
    return found


def _register(target: Target, progress: Progress, *, given: Given) -> None:
    """The same for a target that is not finished."""
    with suppress(OSError):
        if finished(target, given)[1] is not None:
            return
    register_target(target, progress, given=given, ways=[given.recipe])


def _segment(target: Target, progress: Progress, *, given: Given) -> TargetSummary:
    """Read, segment, evaluate, report and write one target, unless that is done already."""
    library, recipe, out = given.library, given.recipe, given.out
    begun = time.perf_counter()
    key = ""
    with suppress(OSError):  # a file that vanished is told by name where it is read
        key, summary = finished(target, given)
        if summary is not None:
            return summary
    with heard_of(logging.WARNING, "%(message)s") as heard:
        case = read_case(target, library, progress)
        result = segment(
            case.scan,
            case.atlases,
            recipe,
            mask=case.mask,
            progress=progress,
            registrar=registrar(recipe, library, given.kept),
            call=given.kept,
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
        with whole_folder(out / target.id) as folder:
            outputs.write_segmentation(folder, target.id, case.scan, result, recipe, table, case.sources)
            if metrics is not None:
                outputs.write_table(metrics, folder / f"{target.id}_metrics.tsv")
                outputs.write_table(calibration, folder / f"{target.id}_calibration.tsv")
            summary = pages.summarised(target.id, case, result, recipe, table, metrics)
            if recipe.output.report:
                seconds = {**result.seconds, "total": time.perf_counter() - begun}
                page = pages.page(summary, case, result, recipe, table, seconds, heard)
                io.write_text(page, folder / f"{target.id}.html")
    summary = replace(summary, seconds=time.perf_counter() - begun, warnings=len(heard))
    if key:
        given.kept.put("target", key, {"summary": summary, "files": file_digests(out / target.id)})
    return summary


def _then(target: Target, progress: Progress, *, given: Given, after: After) -> TargetSummary:
    """Segment one target, and do what comes after it."""
    summary = _segment(target, progress, given=given)
    after(target, given.out / target.id, summary)
    return summary


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
    engine, refine = engine_of(recipe.registration.steps), recipe.registration.refine_iterations

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
                refine_iterations=refine,
            )

        if isinstance(call, Cache):
            whole = digest(
                (register_prepared, engine, refine, scans.target, scans.target_mask, prepared.template, prepared.mask)
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


def largest(library: AtlasLibrary) -> int:
    """Voxels of the largest scan of a library."""
    return max(math.prod(_atlas(library, id_).image.shape) for id_ in library.ids)


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
