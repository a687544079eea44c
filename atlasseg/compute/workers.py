"""Workers of a run: processes on this machine, a running Dask cluster, or jobs of a batch system."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasseg.errors import InputError, MissingLibraryError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Workers", "connect"]

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
"""Batch systems, and the dask-jobqueue class of each."""

CONNECT_TIMEOUT_S = 20.0
"""Timeout of a connection to a scheduler."""

LOOPBACK = "127.0.0.1"
"""Address on which local processes listen."""

RESTART_AFTER_S = 3.0
"""Time without a process after which a local worker is restarted."""

_UNWATCHED = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}

QUIET = {f"DASK_{name.replace('.', '__').upper()}": str(value) for name, value in _UNWATCHED.items()}
"""Environment variables that turn off Dask's profiler, which takes a tenth of the time, in workers and schedulers."""

CONFIGURATION = {
    **_UNWATCHED,
    "distributed.worker.memory.target": False,  # steps declare their memory; Dask would limit the whole process
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.deploy.lost-worker-timeout": "10 minutes",  # a restart on a busy machine takes time
    "distributed.admin.tick.limit": "30s",  # compiled kernels may block the event loop
}


@dataclass(frozen=True)
class Workers:
    """Workers that a run computes on: this process, local processes, a Dask cluster or a batch system.

    Parameters
    ----------
    jobs : int
        Number of worker processes, or of jobs of a batch system. 1 without scheduler and cluster computes in this
        process.
    scheduler : str, optional
        Address of a running Dask scheduler; all of its workers are used.
    cluster : str, optional
        Batch system, a key of `CLUSTERS`. It gets `jobs` jobs with one worker each.
    settings : path, optional
        TOML file with arguments for the dask-jobqueue cluster (queue, cores, memory, walltime, ...).
    memory_bytes : float, optional
        Total memory limit of the local worker processes, in bytes; by default the free memory.
    certificates : path, optional
        Folder with the certificates of a scheduler that uses TLS, see `atlasseg.compute.secure`.

    Raises
    ------
    InputError
        `jobs` is below 1, `memory_bytes` is not above 0, scheduler and cluster are both given, or the batch system is
        unknown.
    """

    jobs: int = 1
    scheduler: str | None = None
    cluster: str | None = None
    settings: Path | None = None
    memory_bytes: float | None = None
    certificates: Path | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"expected at least 1 job, got {self.jobs}")
        if self.memory_bytes is not None and not self.memory_bytes > 0:
            raise InputError(f"expected a memory limit above 0 GB, got {self.memory_bytes / 1e9:g} GB")
        if self.scheduler is not None and self.cluster is not None:
            raise InputError("expected a running scheduler or a batch system, got both. Give only one.")
        if self.cluster is not None and self.cluster not in CLUSTERS:
            raise InputError(f"there is no batch system {self.cluster!r}. Choose from: {', '.join(CLUSTERS)}.")
        if self.settings is not None and self.cluster is None:
            raise InputError("a settings file needs a batch system. Give --cluster.")
        if self.certificates is not None and self.scheduler is None:
            raise InputError("certificates need a running scheduler. Give --scheduler, or leave out --certificates.")

    @property
    def in_process(self) -> bool:
        """Whether all work is done in this process."""
        return self.jobs == 1 and self.scheduler is None and self.cluster is None

    def free_bytes(self) -> float:
        """Determine the memory that local workers may use.

        Returns
        -------
        float
            Bytes: the free memory, or the limit if that is lower.
        """
        return min(available_bytes(), self.memory_bytes or math.inf)


@contextmanager
def connect(workers: Workers, *, memory_bytes: float, gpu: bool) -> Iterator[Client]:
    """Connect a Dask client to the workers. Local workers and jobs are started, and stopped on leaving.

    Parameters
    ----------
    workers : Workers
        Workers other than this process alone.
    memory_bytes : float
        Memory of the most demanding step, in bytes. It limits the number of local workers.
    gpu : bool
        Whether steps compute on a GPU. Each local worker then gets its own GPU.

    Raises
    ------
    InputError
        The scheduler cannot be reached, or the settings are invalid.
    MissingLibraryError
        dask-jobqueue is not installed.
    """
    import dask
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)  # atlasseg reports the failures itself
    with dask.config.set(CONFIGURATION):
        if workers.scheduler is not None:
            try:
                client = Client(
                    workers.scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False, security=_security_of(workers)
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
    """Certificates for a running scheduler, from the given folder or from Dask's configuration."""
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
    """Start a scheduler in this process and local worker processes with one Dask thread each.

    All listen on the loopback interface only and accept only the certificate of this run. Processes that die are
    replaced.
    """
    from distributed import Nanny, SpecCluster
    from distributed.security import Security

    from atlasseg.compute.secure import PagelessScheduler, PagelessWorker

    jobs, free = workers.jobs, workers.free_bytes()
    fitting = max(1, int(free // max(memory_bytes, 1)))
    if fitting < jobs:
        log.warning(
            "starting %d workers instead of %d: a step needs %.1f GB, and %.1f GB are free",
            *(fitting, jobs, memory_bytes / 1e9, free / 1e9),
        )
    gpus = list_gpus() if gpu else []
    count = min(jobs, fitting, len(gpus) or jobs)
    threads = max(1, count_processors() // count)
    security = Security.temporary()
    inside = {"host": LOOPBACK, "protocol": "tls", "security": security, "dashboard": False}
    specification = {}
    for n in range(count):
        environment = {name: str(_limit_threads(name, threads)) for name in THREADS}
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
    cluster.scale(count)  # does not wait; `replace_lost` restarts a worker that does not come up
    return cluster


def are_local(client: Client) -> bool:
    """Whether this process started the workers."""
    from distributed import Nanny

    specification = getattr(client.cluster, "worker_spec", {})
    return bool(specification) and all(worker["cls"] is Nanny for worker in specification.values())


def replace_lost(client: Client, lost_since: dict[Any, float]) -> None:
    """Restart local workers that died during their start, which Dask's nannies do not do.

    Parameters
    ----------
    client : Client
    lost_since : dict
        Time at which each worker was first found lost, by its name. Pass the same dictionary in every call.
    """
    from distributed import Status

    if not are_local(client):
        return
    cluster = client.cluster
    for name, nanny in list(cluster.workers.items()):
        process = nanny.process
        if process is not None and process.status in (Status.starting, Status.running):
            lost_since.pop(name, None)
        elif time.monotonic() - lost_since.setdefault(name, time.monotonic()) > RESTART_AFTER_S:
            del lost_since[name]
            cluster.workers.pop(name, None)
            cluster.loop.add_callback(nanny.close)
    if len(cluster.workers) < len(cluster.worker_spec):
        cluster.scale(len(cluster.worker_spec))


THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
"""Environment variables that set the number of threads of libraries."""


def _limit_threads(name: str, threads: int) -> int:
    given = os.environ.get(name, "")
    return min(threads, int(given)) if given.isdecimal() and int(given) > 0 else threads


@contextmanager
def _batch_jobs(workers: Workers) -> Iterator[Any]:
    """Start jobs of a batch system, each with one worker of one Dask thread that declares its memory as a resource."""
    assert workers.cluster is not None
    try:
        import dask_jobqueue
    except ImportError as error:
        raise MissingLibraryError("--cluster needs dask-jobqueue: pip install 'atlasseg[cluster]'") from error
    from dask.utils import parse_bytes

    from atlasseg.compute.secure import WORKER_CLASS, PagelessScheduler, temporary_certificates

    settings = _settings(workers.settings)
    certificates: Any = nullcontext()
    if settings.pop("security", True):
        shared = Path(os.path.expandvars(settings.get("shared_temp_directory", "~"))).expanduser()
        if not shared.is_dir():
            raise InputError(f"{workers.settings}: shared_temp_directory: no folder {shared}. Create it.")
        certificates = temporary_certificates(shared)
        settings.setdefault("protocol", "tls://")
    else:
        log.warning("%s: without TLS, any process that reaches a port runs code as you", workers.settings)
    settings.setdefault("scheduler_cls", PagelessScheduler)
    cores, memory = settings.setdefault("cores", 1), settings.setdefault("memory", "4GB")
    extra = [*settings.pop("worker_extra_args", ()), "--nthreads", "1", "--resources", f"memory={parse_bytes(memory)}"]
    extra += ["--no-dashboard", "--worker-class", WORKER_CLASS]
    prologue = [f"export {name}={cores}" for name in THREADS] + [f"export {n}={v}" for n, v in QUIET.items()]
    settings["job_script_prologue"] = [*prologue, *settings.get("job_script_prologue", ())]
    with ExitStack() as stack:
        settings["security"] = stack.enter_context(certificates)
        try:
            cluster = getattr(dask_jobqueue, CLUSTERS[workers.cluster])(
                **{"processes": 1, **settings}, worker_extra_args=extra
            )
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{workers.settings or workers.cluster}: dask-jobqueue refuses the settings: {error}"
            ) from error
        stack.enter_context(cluster)
        cluster.scale(jobs=workers.jobs)
        yield cluster


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file with cluster settings: {error}") from error


def count_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> float:
    """Free memory of this machine in bytes, as the operating system reports it."""
    import psutil

    return float(psutil.virtual_memory().available)


def list_gpus() -> list[str]:
    """List the CUDA GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES, without starting CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    found = Path("/proc/driver/nvidia/gpus")
    if found.is_dir():
        return [str(n) for n in range(len(list(found.iterdir())))]
    try:  # Windows
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(n) for n in range(len(listing.stdout.splitlines()))]


def select_resources(client: Client, needed: Mapping[str, float]) -> dict[str, float]:
    """Select the resources of a step that at least one worker declares; Dask would wait forever for the others.

    Raises
    ------
    InputError
        All workers declare a resource, and none has enough of it.
    """
    declared = [worker.get("resources") or {} for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    selected = {}
    for name, amount in needed.items():
        have = [resources[name] for resources in declared if name in resources]
        if not have or amount <= 0:
            continue
        if len(have) == len(declared) and max(have) < amount:
            raise InputError(f"a step needs {name}={amount:.3g}, and no worker declares more than {max(have):.3g}.")
        selected[name] = amount
    return selected
