"""Cohorts: what cache and Dask cost, what is found again, what workers bring, what killed workers lose, and the pages.

    python benchmarks/cohort.py --data DIR [--parts overhead workers kills memory page prediction] [--targets N]

Every run has one thread a process (NUMBA_NUM_THREADS=1 and the like), so that CPU seconds can be compared; they count
this process, its children and the scheduler and workers that are started here. ``bare`` is a loop over the targets that
reads, segments, evaluates, reports and writes, and keeps nothing; ``cached`` is `atlasseg run --jobs 1`; ``dask`` a run
on a scheduler and workers of their own, started before and idle. ``--targets`` takes the first so many of hippocampus.
``page`` opens the report of a human brain, segmented from ``--atlases`` others, in headless Chromium that draws in
software; ``--page FILE`` one that is there. ``prediction`` sets what is predicted without a reference against
Dice, on ``--cases``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))

import pandas as pd  # noqa: E402 - after the threads are set
import psutil  # noqa: E402

from atlasseg import io, phantoms  # noqa: E402
from atlasseg.app.context import RunContext, load_inputs  # noqa: E402
from atlasseg.app.run import run, segment_target  # noqa: E402
from atlasseg.atlases.library import Target, read_targets  # noqa: E402
from atlasseg.compute.execution import process_targets  # noqa: E402
from atlasseg.compute.workers import QUIET, Workers  # noqa: E402
from atlasseg.pipeline import call_directly  # noqa: E402
from atlasseg.recipe import Data, Recipe, parse_recipe, read_recipe, with_methods  # noqa: E402
from atlasseg.store.cache import Cache  # noqa: E402

ROOT = Path(__file__).parents[1]
KILL_EVERY_S = 10.0


class KeepsNothing(Cache):
    """Takes the place of a cache in the bare loop."""

    def __call__(self, function: Callable[..., Any], /, *data: Any, **given: Any) -> Any:
        """Call it."""
        return call_directly(function, *data, **given)

    def get(self, stage: str, key: str) -> Any:
        """Nothing is kept."""
        return None

    def put(self, stage: str, key: str, value: Any, *, seconds: float = 0.0) -> None:
        """Keep nothing."""


class Bare(RunContext):
    """A run's context, without a cache."""

    @property
    def kept(self) -> Cache:
        """What keeps nothing."""
        return KeepsNothing(self.cache)


def cpu_s(*others: subprocess.Popen[bytes]) -> float:
    """CPU seconds of this process, of its children that ended, and of some that run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [psutil.Process(process.pid).cpu_times() for process in others]
    return sum(u.ru_utime + u.ru_stime for u in used) + sum(t.user + t.system for t in running)


def timed(what: str, work: Callable[[], Any], *others: subprocess.Popen[bytes]) -> dict[str, object]:
    wall, cpu = time.perf_counter(), cpu_s(*others)
    work()
    row = {"run": what, "seconds": time.perf_counter() - wall, "CPU s": cpu_s(*others) - cpu}
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers, each a process; the address, and the processes."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        where = {**os.environ, **QUIET}
        started = [subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *options], env=where)]
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", scratch]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, *options]
        started += [subprocess.Popen(command, env=where) for _ in range(workers)]
        try:
            yield address, started
        finally:
            for process in started:
                process.kill()
                process.wait()


def hippocampus(data: Path, targets: int, out: Path, cases: str = "targets") -> Recipe:
    recipe = read_recipe(ROOT / "pipelines" / "hippocampus.toml")
    chosen = [target.image for target in read_targets([data / "hippocampus" / cases])[:targets]]
    linked = out / "targets"
    for path in chosen:
        for kind in ("images", "labels"):
            (linked / kind).mkdir(parents=True, exist_ok=True)
            (linked / kind / path.name).symlink_to((path.parents[1] / kind / path.name).resolve())
    given = replace(recipe.data, atlases=(data / "hippocampus" / "atlases",), targets=(linked,))
    return replace(recipe, data=given)


def into(recipe: Recipe, out: Path) -> Recipe:
    return replace(recipe, data=replace(recipe.data, out=out))


def warm(recipe: Recipe, out: Path, **where: Any) -> None:
    """Compile, import and read what every run needs: the first target alone."""
    first = read_targets(recipe.data.targets)[0]
    alone = replace(recipe, data=replace(recipe.data, targets=(first.image,), out=out))
    run(alone, **where)


def overhead(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    recipe = hippocampus(given.data, given.targets, folder)
    warm(recipe, folder / "warm")

    def bare() -> None:
        own = into(recipe, folder / "bare")
        library, targets, out = load_inputs(own)
        for target in targets:
            segment_target(target, lambda stage: None, context=Bare(library, own, out, out, None))

    rows = [timed("bare loop", bare)]
    cached = into(recipe, folder / "cached")
    rows.append(timed("cached", lambda: run(cached)))
    rows.append(timed("the same again", lambda: run(cached)))
    other = with_methods(into(recipe, folder / "majority"), "majority")
    kept = folder / "cached" / ".cache"
    rows.append(timed("majority after it", lambda: run(other, cache=kept)))
    with cluster(1) as (address, processes):
        warm(recipe, folder / "warm dask", workers=Workers(scheduler=address))
        where = Workers(scheduler=address)
        rows.append(timed("dask, 1 worker", lambda: run(into(recipe, folder / "dask"), workers=where), *processes))
    same(folder / "bare", folder / "cached", folder / "dask")
    return rows


def same(*folders: Path) -> None:
    """Every segmentation has the same bytes in all folders."""
    first, *others = ({p.name: p.read_bytes() for p in folder.rglob("*_dseg.nii.gz")} for folder in folders)
    assert first and all(first == other for other in others)
    print(f"{len(first)} segmentations, the same bytes in {len(folders)} runs")


def workers(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    recipe = hippocampus(given.data, given.targets, folder)
    rows = []
    for count in given.workers:
        with cluster(count) as (address, processes):
            where = Workers(scheduler=address)
            for n in range(count):
                warm(recipe, folder / f"warm {count} {n}", workers=where)
            own = into(recipe, folder / f"{count}")
            rows.append(timed(f"{count} workers", lambda own=own, where=where: run(own, workers=where), *processes))
    return rows


def heads(folder: Path, targets: int) -> Recipe:
    """A recipe over so many phantoms of 18 voxels, with three atlases."""
    for n in range(targets + 3):
        root = folder / ("atlases" if n < 3 else "targets")
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "labels").mkdir(parents=True, exist_ok=True)
        grid = phantoms.tilted_grid((17, 19, 13), spacing_mm=(3.2, 3.5, 3.7), angles_degrees=(4, -3, n % 20))
        head = phantoms.head(f"head{n:04d}", grid=grid, seed=n, largest_mm=1.5, subsamples=1)
        io.write_image(head.image, root / "images" / f"{head.id}.nii.gz")
        io.write_label_map(head.labels, root / "labels" / f"{head.id}.nii.gz")
    tables = {
        "data": {"atlases": "atlases", "targets": "targets", "out": "out"},
        "preprocessing": {"steps": ["intensity"]},
        "registration": {"steps": ["affine", "diffeomorphic"]},
        "fusion": {"method": "local_weighted"},
    }
    return parse_recipe(tables, base=folder)


def kills(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    recipe = heads(folder, given.phantoms)
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(KILL_EVERY_S):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                children = psutil.Process().children(recursive=True)
                workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
                if workers:
                    victim = random.choice(workers)
                    victim.send_signal(signal.SIGKILL)
                    killed.append(victim.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        row = timed("a worker killed every 10 s", lambda: run(recipe, workers=Workers(2)))
    finally:
        over.set()
        killer.join()
    ids = sorted(target.id for target in read_targets(recipe.data.targets))
    out = folder / "out"
    metrics = pd.read_csv(out / "metrics.tsv", sep="\t")
    assert sorted(p.name for p in out.glob("head*")) == ids == sorted(metrics.target.unique())
    assert not metrics.duplicated(["target", "label", "name", "metric"]).any()
    print(f"{len(ids)} targets done, none lost, none twice; {len(killed)} workers killed")
    return [{**row, "killed": len(killed)}]


def pretend(target: Target, progress: Callable[[str], None]) -> Any:
    """What a real target returns, without its work."""
    from atlasseg.report.cohort_page import TargetSummary

    for stage in ("read", "register", "fuse", "write"):
        progress(stage)
    volumes = pd.DataFrame({"label": range(3), "name": list("abc"), "voxels": range(3), "volume_mm3": 0.5})
    metrics = pd.DataFrame({"target": target.id, "label": range(40), "metric": "dice", "value": 0.5})
    return TargetSummary(
        target.id, seconds=1.0, picture="<svg>" + "x" * 40_000 + "</svg>", volumes=volumes, metrics=metrics
    )


def memory(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    rows = []
    for count in (10, 100, 1000):
        targets = [Target(f"t{n}", Path("none")) for n in range(count)]
        process_targets(pretend, targets, workers=Workers(2))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        rows.append({"run": f"{count} simulated targets", "driver's peak, MB": peak})
        print(rows[-1], flush=True)
    return rows


def page(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    from playwright.sync_api import sync_playwright

    path = given.page
    if path is None:
        brains = given.data / "human_brain" / "atlases"
        first, *others = sorted((brains / "images").glob("*.nii.gz"))[: 1 + given.atlases]
        for kind, scans in (("targets", [first]), ("atlases", others)):
            for scan, part in ((scan, part) for scan in scans for part in ("images", "labels")):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
                (folder / kind / part / scan.name).symlink_to((brains / part / scan.name).resolve())
        recipe = read_recipe(ROOT / "pipelines" / "human_brain_t1.toml")
        run(replace(recipe, data=Data((folder / "atlases",), (folder / "targets",), folder / "out")))
        path = next((folder / "out").glob("*/*.html"))
    rows: list[dict[str, object]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=DRAWS_IN_SOFTWARE)
        for n in range(4):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            begun, cpu = time.perf_counter(), browser_cpu_s()
            tab.goto(path.resolve().as_uri())
            tab.wait_for_selector("#viewer[data-state=ready]", timeout=600_000)
            row = {
                "visit": "first in this browser" if n == 0 else "again",
                "page, MB": path.stat().st_size / 1e6,
                "drawn after, s": time.perf_counter() - begun,
                "CPU s of the browser": browser_cpu_s() - cpu,
                "labels": tab.locator(".list li").count(),
            }
            rows.append(row)
            print(row, flush=True)
            tab.close()
        browser.close()
    return rows


DRAWS_IN_SOFTWARE = ["--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
DRAWS_IN_SOFTWARE += ["--enable-unsafe-swiftshader", "--disable-gpu-rasterization"]


def browser_cpu_s() -> float:
    """CPU seconds of the browser's processes so far."""
    times = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times.append(child.cpu_times())
    return sum(t.user + t.system for t in times)


def prediction(given: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    recipe = hippocampus(given.data, given.targets, folder, given.cases)
    rows: list[dict[str, object]] = []
    for fusion in ("local_weighted", "joint", "majority"):
        own = with_methods(into(recipe, folder / fusion), fusion)
        run(own, cache=folder / "kept")
        measured = []
        for file in (folder / fusion).glob("*/*_prediction.tsv"):
            metrics = pd.read_csv(file.with_name(file.name.replace("prediction", "metrics")), sep="\t")
            dice = metrics[(metrics.metric == "dice") & metrics.label.notna()].set_index("label")["value"]
            measured.append(pd.read_csv(file, sep="\t").set_index("label").join(dice).assign(target=file.parent.name))
        means = pd.concat(measured).groupby("target")[["value", "predicted_dice", "atlas_agreement"]].mean()
        for what in ("predicted_dice", "atlas_agreement"):
            rows.append(
                {
                    "fusion": fusion,
                    "of": what.replace("_", " "),
                    "targets": len(means),
                    "mean": means[what].mean(),
                    "mean Dice": means.value.mean(),
                    "mean difference, absolute": (means[what] - means.value).abs().mean(),
                    "rank correlation": means[what].corr(means.value, method="spearman"),
                }
            )
    return rows


PARTS = {part.__name__: part for part in (overhead, workers, kills, memory, page, prediction)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--phantoms", type=int, default=300)
    parser.add_argument("--atlases", type=int, default=3)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--cases", choices=["targets", "more_atlases"], default="targets")
    given = parser.parse_args(arguments)
    for part in given.parts:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{part}\n")
            table = pd.DataFrame(PARTS[part](given, Path(folder)))
        print("\n| " + " | ".join(table.columns) + " |\n" + "|---" * len(table.columns) + "|")
        for row in table.itertuples(index=False):
            print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |", flush=True)


if __name__ == "__main__":
    main()
