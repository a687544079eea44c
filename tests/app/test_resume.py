"""Runs that are cut off, and runs that meet: nothing half-written, and in the end the bytes of a run in one process."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from atlasseg.app import run as run_module
from atlasseg.app.run import run
from atlasseg.compute import execution
from atlasseg.compute.workers import Workers
from atlasseg.errors import ClusterError
from atlasseg.files import atomic_directory, discard_partial
from atlasseg.recipe import parse_recipe

from ..compute.test_execution import cluster  # noqa: F401 - a fixture
from .test_run import files

TABLES = {
    "data": {"atlases": "atlases", "targets": "targets"},
    "preprocessing": {"steps": ["intensity"]},
    "registration": {"steps": ["affine"]},
    "fusion": {"method": "majority"},
    "output": {"report": False},
}

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # see test_execution


def recipe(dataset, out):
    return parse_recipe({**TABLES, "data": {**TABLES["data"], "out": out}}, base=dataset)


def results(folder):
    """All but the recipe's record, which names its own folder."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".json")}


def kills(target, progress, *, task, victim, trace):
    """The task, after whose end for the first target `victim` is killed."""
    result = task(target, progress)
    if not trace.exists():
        trace.touch()
        os.kill(victim, signal.SIGKILL)
    return result


@pytest.mark.posix
def test_the_scheduler_is_lost_and_the_run_resumed(dataset, cluster, monkeypatch):  # noqa: F811
    address, (scheduler, worker, _) = cluster
    assert [o.error for o in run(recipe(dataset, "serial"))] == ["", ""]

    process_targets = execution.process_targets

    def deadly(victim, trace):
        def patched(task, *given, **options):
            wrapped = partial(kills, task=task, victim=victim.pid, trace=dataset / trace)
            return process_targets(wrapped, *given, **options)

        monkeypatch.setattr(run_module, "process_targets", patched)

    deadly(worker, "first")
    assert [o.error for o in run(recipe(dataset, "killed"), workers=Workers(scheduler=address))] == ["", ""]
    assert worker.wait(timeout=60) == -signal.SIGKILL
    assert results(dataset / "killed") == results(dataset / "serial")

    deadly(scheduler, "second")
    out = dataset / "lost"
    with pytest.raises(ClusterError, match="Run the same command again"):
        run(recipe(dataset, "lost"), workers=Workers(scheduler=address))
    assert not (out / "metrics.tsv").exists()
    monkeypatch.setattr(run_module, "process_targets", process_targets)
    assert [o.error for o in run(recipe(dataset, "lost"))] == ["", ""]
    assert results(out) == results(dataset / "serial")


def test_two_runs_at_once_on_one_folder(dataset):
    import tomli_w

    path = dataset / "recipe.toml"
    path.write_text(tomli_w.dumps({**TABLES, "data": {**TABLES["data"], "out": "both"}}))
    command = [sys.executable, "-m", "atlasseg", "run", str(path), "--jobs", "1"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    for each in runs:
        _, errors = each.communicate(timeout=240)
        assert each.returncode == 0, errors
    run(recipe(dataset, "one"))
    assert results(dataset / "both") == results(dataset / "one")
    assert not list((dataset / "both").glob(".*.partial"))


def test_a_target_that_vanishes_in_mid_run(dataset):
    def listener(target, stage):
        if (target, stage) == ("head3", "read"):
            (dataset / "targets/images/head4.nii.gz").unlink()

    done = run(recipe(dataset, "out"), listener=listener)
    assert done[0].error == "" and "head4.nii.gz" in done[1].error
    assert "head4.nii.gz" in (dataset / "out/logs/head4.log").read_text()
    assert not (dataset / "out/head4").exists() and (dataset / "out/metrics.tsv").exists()


HOLDER = """
import os, sys, time
from pathlib import Path
from atlasseg.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print("holding", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_another_is_writing_is_not(tmp_path):
    final = tmp_path / "a.b [1]"
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, final], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for holder in holders:
            assert holder.stdout.readline() == "holding\n"
        holders[0].kill()
        holders[0].wait()
        with atomic_directory(final) as folder:
            (folder / "whole").touch()
        left = list(tmp_path.glob(".*.partial"))
        assert len(left) == 1 and f"-{holders[1].pid}-" in left[0].name
        assert [path.name for path in final.iterdir()] == ["whole"]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    discard_partial(final)
    assert [path.name for path in tmp_path.iterdir()] == [final.name]
