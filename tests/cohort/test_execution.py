"""Targets in several processes: one that dies takes down its own target only."""

import os
import signal
from pathlib import Path

import pytest

from atlasseg.atlases.library import Target
from atlasseg.cohort.execution import over_targets
from atlasseg.errors import InputError

TARGETS = [Target(f"t{n}", Path(f"t{n}.nii.gz")) for n in range(4)]


def task(target, progress):
    progress("work")
    if target.id == "t1":
        raise InputError("t1.nii.gz: is broken")
    if target.id == "t2":
        raise RuntimeError("a mistake in the program")


def deadly_task(target, progress):
    if target.id == "t1":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_are_told_and_the_others_done(jobs):
    told = []
    done = over_targets(task, TARGETS, jobs=jobs, listener=lambda target, stage: told.append((target, stage)))
    assert [(o.target, o.error) for o in done] == [
        ("t0", ""),
        ("t1", "t1.nii.gz: is broken"),
        ("t2", "RuntimeError: a mistake in the program"),
        ("t3", ""),
    ]
    assert told[:4] == [(t.id, "waiting") for t in TARGETS]
    for target, end in (("t0", "done"), ("t1", "failed"), ("t2", "failed"), ("t3", "done")):
        assert [stage for t, stage in told if t == target] == ["waiting", "work", end]


def test_a_killed_process_costs_one_target():
    aborted = []
    done = over_targets(deadly_task, TARGETS, jobs=2, on_abort=lambda target: aborted.append(target.id))
    assert [bool(o.error) for o in done] == [False, True, False, False]
    assert "its process died" in done[1].error
    assert "t1" in aborted
