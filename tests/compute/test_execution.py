"""Targets in several processes: what dies is begun again, what cannot be done is told, and nothing else is lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import dask
import pytest

from atlasseg.atlases.library import Target
from atlasseg.compute import workers
from atlasseg.compute.execution import Phase, process_targets
from atlasseg.compute.workers import Workers, connect
from atlasseg.errors import ClusterError, InputError

TARGETS = [Target(f"t{n}", Path(f"t{n}.nii.gz")) for n in range(4)]

# of distributed, which the collector finds only after the other side has closed them
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def task(target, progress):
    progress("work")
    if target.id == "t1":
        raise InputError("t1.nii.gz: is broken")
    if target.id == "t2":
        raise RuntimeError("a mistake in the program")
    return target.id.upper()


def mark(target, progress, *, folder):
    """Leave a trace of a first phase."""
    progress("first")
    (folder / f"{target.id}.{os.getpid()}").touch()


def deadly_task(target, progress):
    if target.id == "t1":
        os.kill(os.getpid(), signal.SIGKILL)


def killed_once(target, progress, *, folder):
    """Is killed with its process the first time that t2 is worked on."""
    trace = folder / f"{target.id}.begun"
    if target.id == "t2" and not trace.exists():
        trace.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{target.id}.done").write_text(target.id)


def breaks_while_another_is_done(target, progress):
    if target.id == "t1":
        raise InputError("t1.nii.gz: is broken")
    time.sleep(0 if target.id != "t0" else ONE_IS_AT_WORK_S)


ONE_IS_AT_WORK_S = 600
"""Far longer than the test takes."""


def environment_of(target, progress):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["NUMBA_NUM_THREADS"]


def test_in_this_process():
    told = []
    done = process_targets(task, TARGETS, listener=lambda *event: told.append(event))
    check(done, told, ["waiting", "work"])
    assert "a mistake in the program" in done[2].log and "Traceback" in done[2].log and "s  work" in done[2].log


@pytest.mark.posix
def test_on_local_workers(tmp_path):
    """Failures, phases, a worker that is killed: one cluster for all of it, since each takes seconds to start."""
    told = []
    first = Phase("first", partial(mark, folder=tmp_path), memory_bytes=1e6)
    done = process_targets(
        task, TARGETS, before=[first], workers=Workers(2), listener=lambda *event: told.append(event), memory_bytes=1e6
    )
    check(done, told, ["waiting", "first", "work"])
    assert len({p.suffix for p in tmp_path.iterdir()} - {f".{os.getpid()}"}) == 2  # processes, none of them this one
    assert "Traceback" in done[2].log

    aborted = []
    done = process_targets(
        partial(killed_once, folder=tmp_path), TARGETS, workers=Workers(2), on_abort=lambda t: aborted.append(t.id)
    )
    assert [o.error for o in done] == [""] * 4 and aborted == []
    assert len(list(tmp_path.glob("*.done"))) == 4


def check(done, told, stages):
    assert [(o.target, o.error, o.result) for o in done] == [
        ("t0", "", "T0"),
        ("t1", "t1.nii.gz: is broken", None),
        ("t2", "RuntimeError: a mistake in the program", None),
        ("t3", "", "T3"),
    ]
    assert told[:4] == [(t.id, "waiting") for t in TARGETS]
    for target, end in (("t0", "done"), ("t1", "failed"), ("t2", "failed"), ("t3", "done")):
        assert [stage for t, stage in told if t == target] == [*stages, end]


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_begun_after_a_failure_where_that_is_asked_for(jobs):
    aborted, told = [], []
    done = process_targets(
        task if jobs == 1 else breaks_while_another_is_done,
        TARGETS,
        workers=Workers(jobs),
        on_abort=lambda target: aborted.append(target.id),
        listener=lambda *event: told.append(event),
        stop_on_failure=True,
    )
    stopped = "not done: stopped after target t1 failed"
    assert [o.error for o in done] == ["" if jobs == 1 else stopped, "t1.nii.gz: is broken", stopped, stopped]
    assert aborted == ([] if jobs == 1 else ["t0"])
    assert ("t1", "failed") in told and not [event for event in told if event in (("t2", "done"), ("t3", "done"))]


@pytest.mark.posix
def test_a_target_that_kills_its_process_is_given_up_and_the_others_done():
    aborted = []
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        done = process_targets(
            deadly_task, TARGETS, workers=Workers(2), on_abort=lambda target: aborted.append(target.id)
        )
    assert [bool(o.error) for o in done] == [False, True, False, False]
    assert "its process died" in done[1].error
    assert aborted == ["t1"]


def test_each_worker_has_a_gpu_and_its_share_of_the_processors(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1a")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert workers.list_gpus() == ["3", "GPU-1a"]
    many = [Target(f"t{n}", Path("x")) for n in range(6)]
    done = process_targets(environment_of, many, workers=Workers(3), gpu=True)
    assert {o.result for o in done} <= {("3", "1"), ("GPU-1a", "1")}


def test_no_more_workers_than_there_is_memory_for(monkeypatch, caplog):
    monkeypatch.setattr(workers, "available_bytes", lambda: 5e9)
    assert (Workers(4, memory_bytes=3e9).free_bytes(), Workers(4, memory_bytes=9e9).free_bytes()) == (3e9, 5e9)
    cluster = workers._local(Workers(4), 2e9, False)
    try:
        assert len(cluster.worker_spec) == 2 and "2 workers instead of 4: a step needs 2.0 GB" in caplog.text
        assert cluster.worker_spec[0]["options"]["resources"] == {"memory": 2.5e9}
    finally:
        cluster.close()


# -- a scheduler of its own -------------------------------------------------------------------------------------------


def started(*arguments):
    return subprocess.Popen([sys.executable, "-m", *map(str, arguments)], stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each a process of its own; ended with the test."""
    file = tmp_path / "scheduler.json"
    scheduler = started(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file
    )
    processes = [scheduler]
    try:
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        for _ in range(2):
            processes.append(
                started(
                    "distributed.cli.dask_worker", address, "--nthreads", 1, "--no-dashboard", "--no-nanny",
                    "--resources", "memory=1e9", "--local-directory", tmp_path / "scratch", "--death-timeout", 60,
                )
            )  # fmt: skip
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def first_kills_the_other_workers(target, progress, *, folder, victims):
    """The first to be done kills the process in `victims`, whatever it is at."""
    trace = folder / "first"
    try:
        trace.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(0.2)
    else:
        os.kill(victims, signal.SIGKILL)
    (folder / f"{target.id}.done").write_text(target.id)


@pytest.mark.posix
def test_a_running_cluster_loses_a_worker_and_then_its_scheduler(cluster, tmp_path):
    address, (scheduler, one, _) = cluster
    where = Workers(scheduler=address)
    with pytest.raises(InputError, match=r"a step needs memory=2e\+09, and no worker declares more than 1e\+09"):
        process_targets(task, TARGETS, workers=where, memory_bytes=2e9)

    doomed = partial(first_kills_the_other_workers, folder=tmp_path, victims=one.pid)
    done = process_targets(doomed, TARGETS, workers=where, memory_bytes=1e8)
    assert [o.error for o in done] == [""] * 4 and len(list(tmp_path.glob("*.done"))) == 4
    assert one.wait(timeout=60) == -signal.SIGKILL

    (tmp_path / "first").unlink()
    aborted = []
    with pytest.raises(ClusterError, match="the connection to the scheduler was lost; finished results are kept"):
        process_targets(
            partial(first_kills_the_other_workers, folder=tmp_path, victims=scheduler.pid),
            TARGETS,
            workers=where,
            on_abort=lambda target: aborted.append(target.id),
        )
    assert aborted


def test_a_scheduler_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(InputError, match=r"scheduler tcp://127\.0\.0\.1:9: cannot be reached"):
        process_targets(task, TARGETS, workers=Workers(scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(InputError, match="cannot be reached"):
        process_targets(task, TARGETS, workers=Workers(scheduler="no address at all"))


SBATCH = """#!/bin/sh
cp "$1" {folder}/job.sh  # the script is gone when this returns
setsid sh {folder}/job.sh > /dev/null 2>&1 < /dev/null &
echo "Submitted batch job $!"
"""


@pytest.mark.posix
def test_jobs_of_a_batch_system(tmp_path, monkeypatch):
    """SLURM's two commands, played by scripts that run a job where they are."""
    pytest.importorskip("dask_jobqueue")
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("scancel", '#!/bin/sh\nkill -9 -- "-$1"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'queue = "short"\ncores = 3\nmemory = "1GB"\nlocal_directory = "{tmp_path}"\n'
        f'shared_temp_directory = "{tmp_path}"\nscheduler_options = {{host = "127.0.0.1", dashboard = false}}\n'
    )
    done = process_targets(task, TARGETS, workers=Workers(1, cluster="slurm", settings=settings), memory_bytes=1e8)
    assert [o.result for o in done] == ["T0", None, None, "T3"]
    script = (tmp_path / "job.sh").read_text()
    assert "#SBATCH -p short" in script and "#SBATCH --cpus-per-task=3" in script and "memory=1000000000" in script
    assert "export NUMBA_NUM_THREADS=3" in script and script.index("--nthreads 3") < script.index("--nthreads 1")
    assert f"--tls-ca-file {tmp_path}" in script
    assert not list(tmp_path.glob(".*")), "the certificates go with the cluster"
    settings.write_text("quue = 'normal'\n")
    with pytest.raises(InputError, match=r"settings.toml: dask-jobqueue refuses the settings: .*quue"):
        process_targets(task, TARGETS, workers=Workers(2, cluster="slurm", settings=settings))
    settings.write_text(f"shared_temp_directory = '{tmp_path}/nowhere'\n")
    with pytest.raises(InputError, match=r"settings.toml: shared_temp_directory: no folder .*nowhere"):
        process_targets(task, TARGETS, workers=Workers(2, cluster="slurm", settings=settings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "expected at least 1 job, got 0"),
        ({"scheduler": "tcp://x:1", "cluster": "slurm"}, "got both"),
        ({"cluster": "slrm"}, "no batch system 'slrm'. Choose from: slurm, pbs"),
        ({"settings": Path("x")}, "needs a batch system"),
    ],
)
def test_wrong_requests(options, message):
    with pytest.raises(InputError, match=message):
        Workers(**options)


def test_two_runs_on_one_machine_do_not_want_the_same_port():
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # another process has it
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        with connect(Workers(jobs=2), memory_bytes=1e6, gpu=False) as client:
            assert client.submit(int, "7").result(timeout=60) == 7
