"""Work on many targets, in one process or several; a target that fails does not stop the others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from atlasseg.atlases.library import Target
from atlasseg.errors import AtlasSegError
from atlasseg.pipeline import Progress

log = logging.getLogger(__name__)

Listener = Callable[[str, str], None]
"""Told (target, stage): "waiting" for every target first, then each stage as it begins, then "done" or "failed"."""

T = TypeVar("T")

Task = Callable[[Target, Progress], T]
"""Does one target, writes its results, and returns what is to be said of it. Task and result must be picklable."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How one target ended: `error` says why it failed, and is empty where it did not; `result` is the task's."""

    target: str
    seconds: float
    error: str = ""
    result: T | None = None


def over_targets(
    task: Task[T],
    targets: Sequence[Target],
    *,
    jobs: int = 1,
    listener: Listener | None = None,
    on_abort: Callable[[Target], None] = lambda target: None,
) -> list[Outcome[T]]:
    """Do `task` for every target, `jobs` at once.

    Parameters
    ----------
    task : callable
        See `Task`.
    targets : sequence of Target
    jobs : int
        Processes; 1 works in this one.
    listener : callable, optional
        See `Listener`.
    on_abort : callable
        Cleans up after a target whose process was ended from outside.

    Returns
    -------
    list of Outcome
        One a target, in the order of the targets.
    """
    tell = listener or (lambda target, stage: None)
    for target in targets:
        tell(target.id, "waiting")
    if jobs == 1 or len(targets) == 1:
        return [_attempt(task, target, tell) for target in targets]
    return _in_processes(task, targets, min(jobs, len(targets)), tell, on_abort)


def _attempt(task: Task[T], target: Target, tell: Listener) -> Outcome[T]:
    """Do one target, turning what goes wrong with it into an Outcome."""
    begun = time.perf_counter()
    try:
        result = task(target, lambda stage: tell(target.id, stage))
    except (AtlasSegError, OSError, MemoryError) as error:
        reason = str(error) or type(error).__name__
    except Exception as error:
        log.exception("target %s: unexpected failure", target.id)
        reason = f"{type(error).__name__}: {error}"
    else:
        tell(target.id, "done")
        return Outcome(target.id, time.perf_counter() - begun, result=result)
    log.error("target %s failed: %s", target.id, reason)
    tell(target.id, "failed")
    return Outcome(target.id, time.perf_counter() - begun, reason)


# -- several processes ------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(task: Task[Any], threads: int, events: Any, level: int) -> None:
    """Make a process ready: it leaves Ctrl-C to its parent, and keeps to its share of the processors."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    import numba

    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    _worker.update(task=task, events=events)


def _work(target: Target) -> Outcome[Any]:
    return _attempt(_worker["task"], target, lambda *event: _worker["events"].put(event))


def _in_processes(
    task: Task[T], targets: Sequence[Target], jobs: int, tell: Listener, on_abort: Callable[[Target], None]
) -> list[Outcome[T]]:
    """Share the targets out over `jobs` processes; a process that dies takes down its own target only."""
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    initial = (task, threads, events, logging.getLogger().getEffectiveLevel())
    done: dict[str, Outcome[T]] = {}
    stop = threading.Event()
    relay = threading.Thread(target=_relay, args=(events, tell, stop), daemon=True)
    relay.start()
    alone = False
    try:
        while pending := [target for target in targets if target.id not in done]:
            batch = pending[:1] if alone else pending
            futures: dict[Future[Outcome[T]], Target] = {}
            with ProcessPoolExecutor(
                1 if alone else jobs, context, initializer=_start_worker, initargs=initial
            ) as pool:
                try:
                    futures = {pool.submit(_work, target): target for target in batch}
                    for future in as_completed(futures):
                        done[futures[future].id] = future.result()
                except BrokenProcessPool:
                    # which of the targets in flight killed it cannot be known, so each gets a process of its own
                    for target in batch:
                        if target.id not in done:
                            on_abort(target)
                    if alone:
                        reason = "its process died (killed, or out of memory)"
                        log.error("target %s failed: %s", batch[0].id, reason)
                        done[batch[0].id] = Outcome(batch[0].id, 0.0, reason)
                        tell(batch[0].id, "failed")
                    alone = True
                except BaseException:
                    for child in multiprocessing.active_children():
                        child.terminate()
                    for child in multiprocessing.active_children():
                        child.join()
                    for target in batch:
                        on_abort(target)
                    raise
    finally:
        stop.set()
        relay.join()
    return [done[target.id] for target in targets]


def _relay(events: Any, tell: Listener, stop: threading.Event) -> None:
    """Pass on what the processes report until they are done and all is passed on."""
    while True:
        try:
            tell(*events.get(timeout=0.1))
        except queue.Empty:
            if stop.is_set():
                return
