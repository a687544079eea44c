"""Work on many targets, in this process or on Dask workers; a target that fails does not stop the others.

A cohort is one graph: a chain of phases for each target. Phases hand on nothing but how they ended: what they computed
lies in the cache, or is in the target's folder. So neither the driver nor the scheduler holds more for a large cohort
than for a small one: of the chains, given out in the targets' order, there are as many under way as there are workers.
A worker that dies takes down only what it was at, which another one begins again. A target whose process died time and
again waits for the others to be done, has one more chance, and is then given up.
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
from atlasseg.compute.workers import Workers, are_local, connected, fitting_resources, replace_lost
from atlasseg.errors import AtlasSegError, ClusterError
from atlasseg.pipeline import Progress

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

Listener = Callable[[str, str], None]
"""Told (target, stage): "waiting" for every target first, then each stage as it begins, then "done" or "failed"."""

T = TypeVar("T")

Task = Callable[[Target, Progress], T]
"""Does one target, writes its results, and returns what is to be said of it. Task and result must be picklable."""

TOPIC = "atlasseg"
"""Under which workers tell the stages that they come to."""

LOOK_S = 1.0
"""How often the driver looks whether workers came or went, and whether the scheduler is still there."""

PATIENCE_S = 120.0
"""After so long without any worker it is said that none is there; and given up, where they are this machine's own."""


@dataclass(frozen=True)
class Phase(Generic[T]):
    """A part of the work on a target, with what it takes; its results lie where the next phase finds them again."""

    name: str
    task: Task[T]
    memory_bytes: float = 0.0
    gpu: bool = False


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How one target ended.

    `error` says why it failed, and is empty where it did not; `result` is the task's; `log` is what was said meanwhile,
    with the traceback of a failure.
    """

    target: str
    seconds: float
    error: str = ""
    result: T | None = None
    log: str = ""


def over_targets(
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
    """Do `task` for every target.

    Parameters
    ----------
    task : callable
        See `Task`. It must be able to do without the phases before it.
    targets : sequence of Target
    before : sequence of Phase
        Parts of the work that workers do first, each with its own demands; left out in this process.
    memory_bytes, gpu
        What `task` takes, as of a `Phase`.
    workers : Workers
        Where; by default in this process, one target after the other.
    listener : callable, optional
        See `Listener`.
    on_abort : callable
        Cleans up, when no local worker is there any more, after a target whose process was ended from outside.
    stop_on_failure : bool
        Once a target failed, begin no other, and end those under way; each of them is then said to have failed, too.

    Returns
    -------
    list of Outcome
        One a target, in the order of the targets.

    Raises
    ------
    InputError
        The workers cannot be used: see `connected`.
    ClusterError
        The scheduler was lost. What was finished is written.
    """
    tell = listener or (lambda target, stage: None)
    for target in targets:
        tell(target.id, "waiting")
    if workers.in_process or not targets:
        done: list[Outcome[T]] = []
        for n, target in enumerate(targets):
            done.append(_attempt(task, target, lambda stage, id_=target.id: tell(id_, stage)))  # type: ignore[misc]
            tell(target.id, "failed" if done[-1].error else "done")
            if stop_on_failure and done[-1].error:
                return [*done, *(_stopped(other, after=target) for other in targets[n + 1 :])]
        return done
    phases = [*before, Phase("whole", task, memory_bytes, gpu)]
    most, on_gpu = max(phase.memory_bytes for phase in phases), any(phase.gpu for phase in phases)
    under_way: dict[str, Target] = {}
    try:
        with connected(workers, memory_bytes=most, gpu=on_gpu) as client:
            driver: _Driver[T] = _Driver(client, phases, targets, tell, under_way, stop_on_failure)
            return driver.run()
    finally:
        for target in under_way.values():
            on_abort(target)


def _attempt(task: Task[T], target: Target, tell: Progress) -> Outcome[T]:
    """Do one target, turning what goes wrong with it into an Outcome."""
    begun = time.perf_counter()
    with capture_logs(logging.NOTSET, "%(levelname)s: %(message)s") as lines:

        def told(stage: str) -> None:
            lines.append(f"{time.perf_counter() - begun:9.2f} s  {stage}")
            tell(stage)

        try:
            result = task(target, told)
            return Outcome(target.id, time.perf_counter() - begun, result=result)
        except (AtlasSegError, OSError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            lines.append(traceback.format_exc())
        except Exception as error:
            log.exception("target %s: unexpected failure", target.id)
            reason = f"{type(error).__name__}: {error}"
    log.error("target %s failed: %s", target.id, reason)
    return Outcome(target.id, time.perf_counter() - begun, reason, log="\n".join(lines))


def _stopped(target: Target, *, after: Target) -> Outcome[Any]:
    """The outcome of a target that was not done because another one failed."""
    reason = f"not done: stopped after target {after.id} failed"
    return Outcome(target.id, 0.0, reason, log=reason)


@contextmanager
def capture_logs(level: int, form: str) -> Iterator[list[str]]:
    """Collect what the package logs at a level and above, each as `form` of :mod:`logging` says."""
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
    """Do a phase in a worker, unless the one before it failed."""
    from distributed import get_worker

    if before is not None and before.error:
        return before
    root = logging.getLogger()
    root.setLevel(level)
    if not any(isinstance(handler, _Forwarding) for handler in root.handlers):
        root.addHandler(_Forwarding())
    worker = get_worker()
    outcome = _attempt(task, target, lambda stage: worker.log_event(TOPIC, (target.id, stage)))
    return outcome if before is None else _added(before, outcome)


class _Forwarding(logging.Handler):
    """Hands what atlasseg logs in a worker, and Python's warnings, to the driver, which logs it as its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record as plain values, with its template and its first argument, by which records are grouped."""
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
        with suppress(Exception):  # a worker that is being ended has nobody to tell
            get_worker().log_event(TOPIC, sent)


def _added(before: Outcome[Any], outcome: Outcome[T]) -> Outcome[T]:
    return Outcome(outcome.target, before.seconds + outcome.seconds, outcome.error, outcome.result, outcome.log)


class _Driver(Generic[T]):
    """Gives the targets' chains out to a client's workers and takes in what comes of them."""

    def __init__(
        self,
        client: Client,
        phases: Sequence[Phase[Any]],
        targets: Sequence[Target],
        tell: Listener,
        under_way: dict[str, Target],
        stop_on_failure: bool,
    ) -> None:
        self.client, self.phases, self.targets, self.tell = client, phases, targets, tell
        self.level = logging.getLogger().getEffectiveLevel()
        self.news: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.done: dict[str, Outcome[T]] = {}
        self.under_way, self.chains = under_way, dict[str, "list[Future[Any]]"]()
        self.workers, self.looked, self.seen = 0, 0.0, time.monotonic()
        self.resources: list[dict[str, float]] = []
        self.waiting, self.suspects = deque(targets), set[str]()
        self.lost_since: dict[Any, float] = {}
        self.stop_on_failure = stop_on_failure

    def run(self) -> list[Outcome[T]]:
        """Every target's outcome, in their order."""
        self.client.subscribe_topic(TOPIC, self._on_event)
        try:
            while len(self.done) < len(self.targets):
                self._look()
                while self.waiting and len(self.chains) < self.workers:
                    self._submit(self.waiting.popleft())
                with suppress(queue.Empty):
                    self.news.get(timeout=LOOK_S)()
        except BaseException:
            self.client.cancel([future for chain in self.chains.values() for future in chain])
            raise
        finally:
            self.client.unsubscribe_topic(TOPIC)
        return [self.done[target.id] for target in self.targets]

    def _look(self) -> None:
        """See, once in a while, how many workers there are, and that the scheduler is."""
        if self.client.status != "running":
            raise ClusterError(
                "the scheduler was lost; what was finished is written and kept: the same command goes on from there"
            )
        now = time.monotonic()
        if now - self.looked < LOOK_S and self.workers:
            return
        replace_lost(self.client, self.lost_since)
        threads = self.client.nthreads()
        self.workers, self.looked = sum(threads.values()), now
        if self.workers:
            self.seen = now
            if not self.resources:
                self.resources = [
                    fitting_resources(self.client, {"memory": phase.memory_bytes, "GPU": float(phase.gpu)})
                    for phase in self.phases
                ]
        elif now - self.seen > PATIENCE_S:
            if are_local(self.client):
                raise ClusterError(f"no worker process came up in {PATIENCE_S:.0f} s; what was finished is kept")
            self.seen = now
            log.warning("no worker is there: waiting")

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
        self.under_way[target.id], self.chains[target.id] = target, futures
        futures[-1].add_done_callback(lambda future: self.news.put(lambda: self._on_end(target, future)))

    def _on_event(self, event: tuple[float, Any]) -> None:
        if isinstance(event[1], Mapping):
            record = logging.makeLogRecord(dict(event[1]))
            logging.getLogger(record.name).handle(record)
            return
        target, stage = event[1]
        self.news.put(lambda: self.tell(target, stage) if target in self.chains else None)

    def _on_end(self, target: Target, future: Future[Any]) -> None:
        """Take in the end of a chain: its outcome, or that its process died time and again."""
        if future.status == "cancelled":
            self.workers = 0  # look at once: the scheduler may be gone
            return
        error = future.exception()
        del self.chains[target.id]
        if error is None:
            outcome = future.result()
            del self.under_way[target.id]
        elif target.id not in self.suspects:
            log.warning("target %s: its process died time and again; once more when the others are done", target.id)
            self.suspects.add(target.id)
            self.waiting.append(target)
            return
        else:
            reason = f"its process died, time and again (killed, or out of memory): {error}"
            log.error("target %s failed: %s", target.id, reason)
            outcome = Outcome(target.id, 0.0, reason, log=reason)
        self.done[target.id] = outcome
        self.tell(target.id, "failed" if outcome.error else "done")
        if outcome.error and self.stop_on_failure:
            self._stop(target)

    def _stop(self, failed: Target) -> None:
        """End what is under way, and take every target that is not done for failed."""
        self.client.cancel([future for chain in self.chains.values() for future in chain])
        self.chains.clear()
        self.waiting.clear()
        for target in self.targets:
            if target.id not in self.done:
                self.done[target.id] = _stopped(target, after=failed)
