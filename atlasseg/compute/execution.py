"""Execution of a task for many targets, in this process or on Dask workers. A failed target does not stop the others.

Each target is a chain of phases. A phase passes only its outcome to the next one; its results are in the cache or in
the folder of the target. The driver submits the chains in the order of the targets, at most one per worker at a time,
so the memory of the driver and of the scheduler does not grow with the number of targets. If a worker dies, another one
repeats its phase. If the process of a target dies repeatedly, the target is retried once after all others, then
reported as failed.
"""

from __future__ import annotations

import logging
import queue
import secrets
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atlasseg.atlases.library import Target
from atlasseg.compute.workers import Workers, are_local, connect, replace_lost, select_resources
from atlasseg.errors import AtlasSegError, ClusterError
from atlasseg.pipeline import Progress

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Outcome"]

log = logging.getLogger(__name__)

Listener = Callable[[str, str], None]
"""Callback (target, stage). The stages are "waiting", each stage when it starts, and "done" or "failed"."""

T = TypeVar("T")

Task = Callable[[Target, Progress], T]
"""Function that processes one target, writes its results and returns a summary. Task and summary must be picklable."""

TOPIC = "atlasseg"
"""Dask event topic under which workers report the stages that they start."""

POLL_INTERVAL_S = 1.0
"""Interval at which the driver checks the number of workers and the state of the scheduler."""

NO_WORKER_TIMEOUT_S = 120.0
"""Time without any worker after which the driver warns; if the workers are local processes, it stops with an error."""


@dataclass(frozen=True)
class Phase(Generic[T]):
    """One part of the work on a target, with its resource needs. Its results go into the cache for the next phase."""

    name: str
    task: Task[T]
    memory_bytes: float = 0.0
    gpu: bool = False


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """Outcome of one target.

    Parameters
    ----------
    target : str
        Id of the target.
    seconds : float
        Duration.
    error : str
        Reason of a failure; empty without one.
    result : optional
        Return value of the task.
    log : str
        Log messages, and the traceback of a failure.
    """

    target: str
    seconds: float
    error: str = ""
    result: T | None = None
    log: str = ""


def process_targets(
    task: Task[T],
    targets: Sequence[Target],
    *,
    before: Sequence[Phase[Any]] = (),
    memory_bytes: float = 0.0,
    gpu: bool = False,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
    on_abort: Callable[[Target], None] = lambda target: None,
    stop_on_failure: bool = False,
) -> list[Outcome[T]]:
    """Run a task for every target.

    Parameters
    ----------
    task : callable
        See `Task`. It must also work if no phase ran before it.
    targets : sequence of Target
    before : sequence of Phase
        Phases that workers run before `task`, each with its own resource needs; skipped in this process.
    memory_bytes, gpu
        Resource needs of `task`, as for a `Phase`.
    workers : Workers
        Where to run; by default in this process, one target after the other.
    listener : callable, optional
        See `Listener`.
    on_abort : callable
        Cleans up after a target whose process was killed. Called when no local worker runs any more.
    stop_on_failure : bool
        After the first failure, start no other target and cancel the running ones; all of these count as failed.

    Returns
    -------
    list of Outcome
        One per target, in the order of the targets.

    Raises
    ------
    InputError
        The workers cannot be used, see `connect`.
    ClusterError
        The connection to the scheduler was lost. Finished results are on disk.
    """
    report = listener or (lambda target, stage: None)
    for target in targets:
        report(target.id, "waiting")
    if workers.in_process or not targets:
        done: list[Outcome[T]] = []
        for n, target in enumerate(targets):
            done.append(_attempt(task, target, lambda stage, id_=target.id: report(id_, stage)))  # type: ignore[misc]
            report(target.id, "failed" if done[-1].error else "done")
            if stop_on_failure and done[-1].error:
                return [*done, *(_make_skipped(other, failed=target) for other in targets[n + 1 :])]
        return done
    phases = [*before, Phase("whole", task, memory_bytes, gpu)]
    max_bytes, any_gpu = max(phase.memory_bytes for phase in phases), any(phase.gpu for phase in phases)
    running: dict[str, Target] = {}
    try:
        with connect(workers, memory_bytes=max_bytes, gpu=any_gpu) as client:
            driver: _Driver[T] = _Driver(client, phases, targets, report, running, stop_on_failure)
            return driver.run()
    finally:
        for target in running.values():
            on_abort(target)


def _attempt(task: Task[T], target: Target, report: Progress) -> Outcome[T]:
    """Run a task for one target; exceptions become an Outcome."""
    start = time.perf_counter()
    with capture_logs(logging.NOTSET, "%(levelname)s: %(message)s") as lines:

        def report_and_log(stage: str) -> None:
            lines.append(f"{time.perf_counter() - start:9.2f} s  {stage}")
            report(stage)

        try:
            result = task(target, report_and_log)
            return Outcome(target.id, time.perf_counter() - start, result=result)
        except (AtlasSegError, OSError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            lines.append(traceback.format_exc())
        except Exception as error:
            log.exception("target %s: unexpected failure", target.id)
            reason = f"{type(error).__name__}: {error}"
    log.error("target %s failed: %s", target.id, reason)
    return Outcome(target.id, time.perf_counter() - start, reason, log="\n".join(lines))


def _make_skipped(target: Target, *, failed: Target) -> Outcome[Any]:
    """Make the outcome of a target that was skipped because another one failed."""
    reason = f"not done: stopped after target {failed.id} failed"
    return Outcome(target.id, 0.0, reason, log=reason)


@contextmanager
def capture_logs(level: int, form: str) -> Iterator[list[str]]:
    """Collect the log messages of the package at or above a level, in a :mod:`logging` format string `form`."""
    lines: list[str] = []
    handler = logging.Handler(level)
    handler.setFormatter(logging.Formatter(form))
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    package = logging.getLogger("atlasseg")
    package.addHandler(handler)
    try:
        yield lines
    finally:
        package.removeHandler(handler)


# -- on Dask ----------------------------------------------------------------------------------------------------------


def _on_worker(task: Task[Any], target: Target, before: Outcome[Any] | None, level: int) -> Outcome[Any]:
    """Run a phase in a worker, unless the phase before it failed."""
    from distributed import get_worker

    if before is not None and before.error:
        return before
    root = logging.getLogger()
    root.setLevel(level)
    if not any(isinstance(handler, _Forwarding) for handler in root.handlers):
        root.addHandler(_Forwarding())
    worker = get_worker()
    outcome = _attempt(task, target, lambda stage: worker.log_event(TOPIC, (target.id, stage)))
    return outcome if before is None else _add_seconds(before, outcome)


class _Forwarding(logging.Handler):
    """Log handler that forwards log messages of atlasseg and Python warnings from a worker to the driver."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record as plain values, with its template and first argument, which the driver groups by."""
        from distributed import get_worker

        if record.name.partition(".")[0] not in ("atlasseg", "py"):
            return
        about_first = isinstance(record.args, tuple) and record.args and str(record.msg).startswith("%s: ")
        sent = {
            "name": record.name,
            "levelno": record.levelno,
            "levelname": record.levelname,
            "msg": record.getMessage(),
            "template": str(record.msg),
            "subject": str(record.args[0]) if about_first else "",  # type: ignore[index]
        }
        with suppress(Exception):  # the connection may be gone while the worker shuts down
            get_worker().log_event(TOPIC, sent)


def _add_seconds(before: Outcome[Any], outcome: Outcome[T]) -> Outcome[T]:
    return Outcome(outcome.target, before.seconds + outcome.seconds, outcome.error, outcome.result, outcome.log)


class _Driver(Generic[T]):
    """Submits the chains of phases to the workers of a Dask client and collects their outcomes."""

    def __init__(
        self,
        client: Client,
        phases: Sequence[Phase[Any]],
        targets: Sequence[Target],
        report: Listener,
        running: dict[str, Target],
        stop_on_failure: bool,
    ) -> None:
        self.client, self.phases, self.targets, self.report = client, phases, targets, report
        self.level = logging.getLogger().getEffectiveLevel()
        self.news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.done: dict[str, Outcome[T]] = {}
        self.running, self.chains = running, dict[str, "list[Future[Any]]"]()
        self.workers, self.looked, self.seen = 0, 0.0, time.monotonic()
        self.resources: list[dict[str, float]] = []
        self.waiting, self.suspects = deque(targets), set[str]()
        self.lost_since: dict[Any, float] = {}
        self.stop_on_failure = stop_on_failure

    def run(self) -> list[Outcome[T]]:
        """Run all targets and return their outcomes in the order of the targets."""
        self.client.subscribe_topic(TOPIC, self._on_event)
        try:
            while len(self.done) < len(self.targets):
                self._look()
                while self.waiting and len(self.chains) < self.workers:
                    self._submit(self.waiting.popleft())
                with suppress(queue.Empty):
                    self.news.get(timeout=POLL_INTERVAL_S)()
        except BaseException:
            self.client.cancel([future for chain in self.chains.values() for future in chain])
            raise
        finally:
            self.client.unsubscribe_topic(TOPIC)
        return [self.done[target.id] for target in self.targets]

    def _look(self) -> None:
        """Count the workers and check the connection to the scheduler, at most once per `POLL_INTERVAL_S`."""
        if self.client.status != "running":
            raise ClusterError(
                "the connection to the scheduler was lost; finished results are kept. Run the same command again."
            )
        now = time.monotonic()
        if now - self.looked < POLL_INTERVAL_S and self.workers:
            return
        replace_lost(self.client, self.lost_since)
        threads = self.client.nthreads()
        self.workers, self.looked = sum(threads.values()), now
        if self.workers:
            self.seen = now
            if not self.resources:
                self.resources = [
                    select_resources(self.client, {"memory": phase.memory_bytes, "GPU": float(phase.gpu)})
                    for phase in self.phases
                ]
        elif now - self.seen > NO_WORKER_TIMEOUT_S:
            if are_local(self.client):
                raise ClusterError(
                    f"no worker process started within {NO_WORKER_TIMEOUT_S:.0f} s; finished results are kept. Run the "
                    f"same command again."
                )
            self.seen = now
            log.warning("waiting: the scheduler has no worker")

    def _submit(self, target: Target) -> None:
        futures: list[Future[Any]] = []
        for phase, resources in zip(self.phases, self.resources, strict=True):
            futures.append(
                self.client.submit(
                    _on_worker,
                    phase.task,
                    target,
                    futures[-1] if futures else None,
                    self.level,
                    key=f"{phase.name}-{target.id}-{secrets.token_hex(8)}",
                    resources=resources or None,
                    pure=False,
                )
            )
        self.running[target.id], self.chains[target.id] = target, futures
        futures[-1].add_done_callback(lambda future: self.news.put(lambda: self._on_end(target, future)))

    def _on_event(self, event: tuple[float, Any]) -> None:
        if isinstance(event[1], Mapping):
            record = logging.makeLogRecord(dict(event[1]))
            logging.getLogger(record.name).handle(record)
            return
        target, stage = event[1]
        self.news.put(lambda: self.report(target, stage) if target in self.chains else None)

    def _on_end(self, target: Target, future: Future[Any]) -> None:
        """Record the outcome of a chain, or retry it later if its process died repeatedly."""
        if future.status == "cancelled":
            self.workers = 0  # check at once: the scheduler may be gone
            return
        error = future.exception()
        del self.chains[target.id]
        if error is None:
            outcome = future.result()
            del self.running[target.id]
        elif target.id not in self.suspects:
            log.warning("target %s: its process died repeatedly; retrying after the other targets", target.id)
            self.suspects.add(target.id)
            self.waiting.append(target)
            return
        else:
            reason = f"its process died repeatedly (killed, or out of memory): {error}"
            log.error("target %s failed: %s", target.id, reason)
            outcome = Outcome(target.id, 0.0, reason, log=reason)
        self.done[target.id] = outcome
        self.report(target.id, "failed" if outcome.error else "done")
        if outcome.error and self.stop_on_failure:
            self._stop(target)

    def _stop(self, failed: Target) -> None:
        """Cancel the running chains and report every unfinished target as failed."""
        self.client.cancel([future for chain in self.chains.values() for future in chain])
        self.chains.clear()
        self.waiting.clear()
        for target in self.targets:
            if target.id not in self.done:
                self.done[target.id] = _make_skipped(target, failed=failed)
