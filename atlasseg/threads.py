"""Threads: compiled kernels over slices of a range, and tasks side by side, on as many cores as the caller may use.

A kernel is a function that is compiled with ``numba.njit(cache=True, nogil=True)``. Its first two arguments are the
start and the stop of the slice that it works on; what it writes for an index depends on that index alone, so the result
is the same for any number of threads. Numba's own ``prange`` compiles every kernel twice and keeps threads of its own,
which is why it is not used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numba

Item = TypeVar("Item")
Result = TypeVar("Result")

_local = threading.local()
_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def count_threads() -> int:
    """Count the threads that work of this thread may use: all cores, or NUMBA_NUM_THREADS, or what a limit says."""
    return int(getattr(_local, "threads", numba.config.NUMBA_NUM_THREADS))


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Let work that this thread starts use at most so many threads (1 or more)."""
    before = count_threads()
    _local.threads = threads
    try:
        yield
    finally:
        _local.threads = before


def run_slices(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)`` on slices that cover ``range(count)``, one on each thread.

    Parameters
    ----------
    kernel : callable
        Compiled, releases the interpreter's lock, writes into its arguments and returns nothing.
    count : int
        Length of the range.
    arguments
        Further arguments of the kernel.
    """
    threads = min(count_threads(), count)
    if threads < 2:
        kernel(0, count, *arguments)
        return
    bounds = [count * n // threads for n in range(threads + 1)]
    pool = _get_pool()
    others = [pool.submit(kernel, start, stop, *arguments) for start, stop in pairwise(bounds[1:])]
    try:
        kernel(0, bounds[1], *arguments)
    finally:
        wait(others)
    for each in others:
        each.result()


def map_in_threads(
    task: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> list[Result]:
    """Map a task over items on threads side by side; what a task starts runs on its own thread.

    Parameters
    ----------
    task : callable
        Releases the interpreter's lock for most of its time.
    items : iterable
        Arguments of the task.
    workers : int, optional
        Threads; by default `count_threads`.
    """

    def alone(item: Item) -> Result:
        with limit_threads(1):
            return task(item)

    with ThreadPoolExecutor(workers or count_threads(), thread_name_prefix="atlasseg") as pool:
        return list(pool.map(alone, items))


def _get_pool() -> ThreadPoolExecutor:
    """The threads that run slices beside their caller; they never wait for each other."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, thread_name_prefix="slices")
        return _pool


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
