"""Where a cohort is worked on: worker processes on this machine, a running Dask cluster, or a batch system's jobs."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg.errors import InputError, MissingLibraryError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "htcondor": "HTCondorCluster",
}
"""Batch systems that dask-jobqueue knows, and its class for each."""

CONNECT_S = 20.0
"""A scheduler that has not answered by then cannot be reached."""

LOOPBACK = "127.0.0.1"
"""Where the processes of this machine listen."""

REPLACED_AFTER_S = 3.0
"""A local worker without a process for so long is started anew."""

_UNWATCHED = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}

QUIET = {f"DASK_{name.replace('.', '__').upper()}": str(value) for name, value in _UNWATCHED.items()}
"""Environment of workers and schedulers in which Dask watches itself less: that takes a tenth of the time."""

CONFIGURATION = {
    **_UNWATCHED,
    "distributed.worker.memory.target": False,  # what a step takes is declared; Dask sees only what the process has
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.deploy.lost-worker-timeout": "10 minutes",  # on a busy machine it takes time to be back
    "distributed.admin.tick.limit": "30s",  # kernels that hold the interpreter are no fault of the event loop's
}


@dataclass(frozen=True)
class Workers:
    """What to compute on.

    Parameters
    ----------
    jobs : int
        Worker processes, or jobs of a batch system; 1 without scheduler and cluster is this process itself.
    scheduler : str, optional
        Address of a running Dask scheduler; its workers are used, however many there are.
    cluster : str, optional
        A batch system of `CLUSTERS`, which is asked for `jobs` jobs of one worker each.
    settings : path, optional
        TOML file of the arguments that dask-jobqueue's cluster takes (queue, cores, memory, walltime, ...).
    memory_bytes : float, optional
        What the worker processes of this machine may take together; what is free where None.
    certificates : path, optional
        Folder with the certificates of a scheduler that asks for them; see `atlasseg.compute.secure`.

    Raises
    ------
    InputError
        `jobs` is below 1, `memory_bytes` is not above 0, scheduler and cluster are both given, or there is no such
        batch system.
    """

    jobs: int = 1
    scheduler: str | None = None
    cluster: str | None = None
    settings: Path | None = None
    memory_bytes: float | None = None
    certificates: Path | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"jobs must be at least 1, got {self.jobs}")
        if self.memory_bytes is not None and not self.memory_bytes > 0:
            raise InputError(f"the memory that may be taken must be above 0, got {self.memory_bytes / 1e9:g} GB")
        if self.scheduler is not None and self.cluster is not None:
            raise InputError("give a running scheduler or a batch system, not both")
        if self.cluster is not None and self.cluster not in CLUSTERS:
            raise InputError(f"there is no batch system {self.cluster!r}; there are: {', '.join(CLUSTERS)}")
        if self.settings is not None and self.cluster is None:
            raise InputError("a settings file goes with a batch system (--cluster)")
        if self.certificates is not None and self.scheduler is None:
            raise InputError("certificates go with a running scheduler (--scheduler); all others have their own")

    @property
    def in_process(self) -> bool:
        """Whether all work is done in this process."""
        return self.jobs == 1 and self.scheduler is None and self.cluster is None

    def free_bytes(self) -> float:
        """Memory of this machine that they may take."""
        return min(available_bytes(), self.memory_bytes or math.inf)


@contextmanager
def connected(workers: Workers, *, memory_bytes: float, gpu: bool) -> Iterator[Client]:
    """A client of the workers, which are started where they are not running, and ended on leaving.

    Parameters
    ----------
    workers : Workers
        Of more than this process.
    memory_bytes : float
        What the step that takes most needs: no more local workers are started than this machine has memory for.
    gpu : bool
        Whether steps compute on a GPU: each local worker then gets one of its own.

    Raises
    ------
    InputError
        The scheduler cannot be reached, or the settings cannot be used.
    MissingLibraryError
        dask-jobqueue is not installed.
    """
    import dask
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)  # what matters of it is told in our own words
    with dask.config.set(CONFIGURATION):
        if workers.scheduler is not None:
            try:
                client = Client(
                    workers.scheduler, timeout=CONNECT_S, set_as_default=False, security=_security_of(workers)
                )
            except (OSError, ValueError) as error:
                raise InputError(f"scheduler {workers.scheduler}: cannot be reached: {error}") from error
            with client:
                yield client
            return
        with (
            _batch_jobs(workers) if workers.cluster is not None else _local(workers, memory_bytes, gpu) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client


def _security_of(workers: Workers) -> Any:
    """Certificates for a running scheduler: of the folder given, or else of Dask's own configuration."""
    from distributed.security import Security

    if workers.certificates is not None:
        from atlasseg.compute.secure import read_certificates

        return read_certificates(workers.certificates)
    assert workers.scheduler is not None
    security = Security()
    if not workers.scheduler.startswith("tls://"):
        log.warning(
            "scheduler %s: without TLS, any process that reaches its port runs code as you. Start it with certificates "
            "(atlasseg certificates DIR) and give --scheduler tls://... --certificates DIR",
            workers.scheduler,
        )
    elif security.tls_client_cert is None or security.tls_ca_file is None:
        raise InputError(
            f"scheduler {workers.scheduler}: expected certificates, got none. Give --certificates DIR, or name them in "
            "Dask's configuration (distributed.comm.tls)"
        )
    return security


def _local(workers: Workers, memory_bytes: float, gpu: bool) -> Any:
    """A scheduler in this process and workers of one thread each, in processes that are replaced when they die.

    All of them listen on the loopback interface alone, and to holders of this run's certificate alone.
    """
    from distributed import Nanny, SpecCluster
    from distributed.security import Security

    from atlasseg.compute.secure import PagelessScheduler, PagelessWorker

    jobs, free = workers.jobs, workers.free_bytes()
    fitting = max(1, int(free // max(memory_bytes, 1)))
    if fitting < jobs:
        log.warning(
            "%d workers instead of %d: a step takes %.1f GB, and %.1f GB are free",
            *(fitting, jobs, memory_bytes / 1e9, free / 1e9),
        )
    gpus = gpu_names() if gpu else []
    count = min(jobs, fitting, len(gpus) or jobs)
    threads = max(1, processors() // count)
    security = Security.temporary()
    inside = {"host": LOOPBACK, "protocol": "tls", "security": security, "dashboard": False}
    specification = {}
    for n in range(count):
        environment = {name: str(_at_most(name, threads)) for name in THREADS}
        resources = {"memory": max(free / count, memory_bytes)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[n]
            resources["GPU"] = 1
        options = {"nthreads": 1, "resources": resources, "env": environment, "memory_limit": 0, **inside}
        options |= {"worker_class": PagelessWorker, "silence_logs": logging.CRITICAL}
        specification[n] = {"cls": Nanny, "options": options}
    scheduler = {"cls": PagelessScheduler, "options": inside}
    cluster = SpecCluster(scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
    cluster.worker_spec.update(specification)
    cluster.scale(count)  # goes on without waiting: one that does not come up is seen to by `replace_lost`
    return cluster


def are_local(client: Client) -> bool:
    """Whether the workers are processes that this one started."""
    from distributed import Nanny

    specification = getattr(client.cluster, "worker_spec", {})
    return bool(specification) and all(worker["cls"] is Nanny for worker in specification.values())


def replace_lost(client: Client, lost_since: dict[Any, float]) -> None:
    """Start those local workers anew that ended while they started: their nannies leave it at that.

    Parameters
    ----------
    client : Client
    lost_since : dict
        Name of each worker to when it was first found lost; kept from call to call.
    """
    from distributed import Status

    if not are_local(client):
        return
    cluster = client.cluster
    for name, nanny in list(cluster.workers.items()):
        process = nanny.process
        if process is not None and process.status in (Status.starting, Status.running):
            lost_since.pop(name, None)
        elif time.monotonic() - lost_since.setdefault(name, time.monotonic()) > REPLACED_AFTER_S:
            del lost_since[name]
            cluster.workers.pop(name, None)
            cluster.loop.add_callback(nanny.close)
    if len(cluster.workers) < len(cluster.worker_spec):
        cluster.scale(len(cluster.worker_spec))


THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
"""Variables by which libraries are told how many threads to use."""


def _at_most(name: str, threads: int) -> int:
    given = os.environ.get(name, "")
    return min(threads, int(given)) if given.isdecimal() and int(given) > 0 else threads


def _batch_jobs(workers: Workers) -> Any:
    """Jobs of a batch system, each with one worker of one thread that declares the memory it asked for."""
    assert workers.cluster is not None
    try:
        import dask_jobqueue
    except ImportError as error:
        raise MissingLibraryError("--cluster needs dask-jobqueue: pip install 'atlasseg[cluster]'") from error
    from dask.utils import parse_bytes

    from atlasseg.compute.secure import WORKER_CLASS, PagelessScheduler

    settings = _settings(workers.settings)
    if settings.setdefault("security", True):
        settings.setdefault("shared_temp_directory", "~")  # of the files for the jobs: readable by the user alone
        settings.setdefault("protocol", "tls://")
    else:
        settings["security"] = None
        log.warning("%s: without TLS, any process that reaches a port runs code as you", workers.settings)
    settings.setdefault("scheduler_cls", PagelessScheduler)
    cores, memory = settings.setdefault("cores", 1), settings.setdefault("memory", "4GB")
    extra = [*settings.pop("worker_extra_args", ()), "--nthreads", "1", "--resources", f"memory={parse_bytes(memory)}"]
    extra += ["--no-dashboard", "--worker-class", WORKER_CLASS]
    prologue = [f"export {name}={cores}" for name in THREADS] + [f"export {n}={v}" for n, v in QUIET.items()]
    settings["job_script_prologue"] = [*prologue, *settings.get("job_script_prologue", ())]
    try:
        cluster = getattr(dask_jobqueue, CLUSTERS[workers.cluster])(
            **{"processes": 1, **settings}, worker_extra_args=extra
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{workers.settings or workers.cluster}: dask-jobqueue cannot use it: {error}") from error
    cluster.scale(jobs=workers.jobs)
    return cluster


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a TOML file of cluster settings: {error}") from error


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> float:
    """Memory of this machine that is free, as far as it tells."""
    import psutil

    return float(psutil.virtual_memory().available)


def gpu_names() -> list[str]:
    """The CUDA GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; asked without starting CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    found = Path("/proc/driver/nvidia/gpus")
    if found.is_dir():
        return [str(n) for n in range(len(list(found.iterdir())))]
    try:  # Windows
        told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(n) for n in range(len(told.stdout.splitlines()))]


def fitting_resources(client: Client, wanted: Mapping[str, float]) -> dict[str, float]:
    """Of the resources that a step wants, those that the workers declare.

    Raises
    ------
    InputError
        No worker has enough of one that all workers declare.
    """
    declared = [worker.get("resources") or {} for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    asked = {}
    for name, amount in wanted.items():
        have = [resources[name] for resources in declared if name in resources]
        if not have or amount <= 0:
            continue
        if len(have) == len(declared) and max(have) < amount:
            raise InputError(f"a step wants {name}={amount:.3g}, and no worker declares more than {max(have):.3g}")
        asked[name] = amount
    return asked
