"""Plan of a run: its stages, the number of cached results, and the cost of the others."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from atlasseg.app.case import largest_voxels, read_case
from atlasseg.app.context import CACHE, DEFAULT_LIMIT_BYTES, RunContext, load_inputs
from atlasseg.app.earlier import EarlierResults
from atlasseg.app.registrar import make_registrar
from atlasseg.app.run import finished
from atlasseg.atlases.library import Target
from atlasseg.compute import costs
from atlasseg.compute.workers import Workers
from atlasseg.errors import AtlasSegError, InputError
from atlasseg.pipeline import segment
from atlasseg.recipe import Recipe
from atlasseg.store.cache import SUFFIX, UNREADABLE, Cache, list_entries, read_entry

LOOKED_AT = 30
"""Number of cached results from which the cost of a stage is estimated."""


@dataclass(frozen=True)
class Planned:
    """Stage of a plan: its number of results, of cached and of missing ones, and its cost.

    `measured` is True if the seconds and bytes are those of cached results, and False if they are default rates.
    """

    stage: str
    kept: int
    to_do: int
    seconds: float
    kept_bytes: float
    measured: bool


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    `seconds` is the estimated time with the workers that fit into memory; `cache_bytes` and `result_bytes` are upper
    limits of the disk space that it needs; `broken` lists targets that cannot be read.
    """

    stages: tuple[Planned, ...]
    targets: int
    finished: int
    broken: Mapping[str, str]
    workers: int
    seconds: float
    memory: costs.Memory
    cache_bytes: float
    result_bytes: float
    free_bytes: float

    def check(self) -> None:
        """Check that the disk has enough free space.

        Raises
        ------
        InputError
            It has not. The message states the needed and the free space.
        """
        needed = self.cache_bytes + self.result_bytes
        if needed > self.free_bytes:
            raise InputError(
                f"the disk is too small for this run: {needed / 1e9:.3g} GB are needed ({self.cache_bytes / 1e9:.3g} "
                f"for "
                f"the cache, {self.result_bytes / 1e9:.3g} for results), {self.free_bytes / 1e9:.3g} GB are free. "
                f"Lower "
                "--cache-limit, or give another --cache folder."
            )


class _NotKept(Exception):  # noqa: N818 - no error
    def __init__(self, count: int) -> None:
        self.count = count


class _CountingCache(Cache):
    """Cache that counts its entries, and stops when a result would have to be computed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.found: Counter[str] = Counter()

    def each(self, stage: str, keys: Sequence[str], compute: Callable[[Sequence[int]], Sequence[Any]]) -> list[Any]:
        """Return the cached results if all are cached, and raise `_NotKept` otherwise."""
        there = [key for key in keys if self._path(stage, key).is_file()]
        self.found[stage] += len(there)
        if len(there) < len(keys):
            raise _NotKept(len(keys) - len(there))
        return super().each(stage, keys, compute)

    def put(self, stage: str, key: str, value: Any, *, seconds: float = 0.0) -> None:
        """Do nothing: a plan writes no results."""


def estimate(
    recipe: Recipe,
    *,
    workers: Workers,
    cache: Path | None = None,
    limit_bytes: int | None = DEFAULT_LIMIT_BYTES,
) -> Plan:
    """Estimate a run: count its cached results, and estimate the cost of the others. Parameters as for `run`.

    All results that depend on a missing one count as missing.
    """
    library, targets, out = load_inputs(recipe)
    context = RunContext(library, recipe, out, cache or out / CACHE, limit_bytes, EarlierResults.now(out))
    wanted, found, done, broken = Counter[str](), Counter[str](), 0, dict[str, str]()
    voxels = largest_voxels(library)
    for target in targets:
        try:
            if finished(target, context)[1] is not None:
                done += 1
                continue
            atlases, kept = _kept(target, context)
        except (AtlasSegError, OSError) as error:
            broken[target.id] = str(error)
            continue
        wanted.update(_count_results(recipe, atlases))
        found.update(kept)
    known = _measured(context.cache)
    stages = []
    for stage, count in wanted.items():
        rough_s = costs.look_up_stage(costs.SECONDS, stage, 0.5) * voxels / 1e6
        rough_bytes = costs.look_up_stage(costs.CACHED_BYTES, stage, 20.0) * voxels
        seconds, size = known.get(stage, (rough_s, rough_bytes))
        to_do = max(count - found[stage], 0)
        stages.append(Planned(stage, found[stage], to_do, to_do * seconds, to_do * size, stage in known))
    memory = costs.estimate_memory(recipe, atlases=len(library), voxels=voxels)
    fitting = workers.jobs
    if workers.scheduler is None and workers.cluster is None:
        fitting = max(1, min(workers.jobs, int(workers.free_bytes() // max(memory.registering, memory.fusing))))
    open_ = len(targets) - done - len(broken)
    new = sum(stage.kept_bytes for stage in stages)
    if limit_bytes is not None:
        new = min(new, max(0.0, 1.1 * limit_bytes - sum(entry.size for entry in list_entries(context.cache))))
    share = min(fitting, max(open_, 1))
    return Plan(
        tuple(stages),
        len(targets),
        done,
        broken,
        fitting,
        sum(stage.seconds for stage in stages) / share,
        memory,
        new,
        open_ * (costs.RESULT_BYTES * voxels + (costs.REPORT_BYTES if recipe.output.report else 0)),
        shutil.disk_usage(out).free,
    )


def _kept(target: Target, context: RunContext) -> tuple[int, Counter[str]]:
    """Number of atlases of a target, and number of its cached results by stage."""
    case = read_case(target, context.library, lambda stage: None)
    executor = _CountingCache(context.cache)
    with suppress(_NotKept):
        registers = make_registrar(context.recipe, context.library, executor, target=target.id)
        segment(case.scan, case.atlases, context.recipe, mask=case.mask, registrar=registers, executor=executor)
    return len(case.atlases), executor.found


def _count_results(recipe: Recipe, atlases: int) -> Counter[str]:
    """Number of results of each stage for one target, in the order of the pipeline."""
    used = min(atlases, recipe.selection.before or atlases)
    wanted: Counter[str] = Counter()
    if recipe.preprocessing.mask == "brain":
        wanted["extract_mask"] += 1
        wanted["widen"] += atlases + 1
    for step in recipe.preprocessing.steps:
        wanted[f"preprocessing.{step.name}"] += atlases + (not step.method.takes("reference"))
    first = atlases if recipe.selection.before and recipe.selection.by == "first_step" else used
    if recipe.registration.prepared is not None:
        wanted["registration.prepared"] += used
    else:
        for n, step in enumerate(recipe.registration.steps):
            wanted[f"registration.{step.name}"] += used if n else first
    wanted["propagate"] += used
    wanted["measure_fit"] += used
    wanted[f"fusion.{recipe.fusion.method.name}"] += 1
    if recipe.refinement.method is not None:
        wanted[f"refinement.{recipe.refinement.method.name}"] += 1
    if recipe.regions is not None:
        wanted["make_consistent"] += 1
    return wanted


def _measured(folder: Path) -> dict[str, tuple[float, float]]:
    """Median seconds and bytes of some cached results, by stage."""
    found: dict[str, tuple[float, float]] = {}
    for stage in sorted({entry.parent for entry in folder.glob(f"*/*{SUFFIX}")}):
        costs_of_one = []
        for path in islice(stage.glob(f"*{SUFFIX}"), LOOKED_AT):
            with suppress(*UNREADABLE):
                costs_of_one.append((float(read_entry(path)[0]["seconds"]), float(path.stat().st_size)))
        if costs_of_one:
            seconds, sizes = zip(*costs_of_one, strict=True)
            found[stage.name] = statistics.median(seconds), statistics.median(sizes)
    return found
