"""Slices cover a range once, limits belong to a thread, and what fails in a thread is raised."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atlasseg import threads


def mark(start, stop, out):
    out[start:stop] += 1
    where.append((threading.get_ident(), stop - start))


where: list[tuple[int, int]] = []


@pytest.mark.parametrize(("count", "limit", "slices"), [(0, 3, 1), (1, 3, 1), (2, 3, 2), (10, 1, 1), (10, 4, 4)])
def test_slices_cover_the_range_once(count, limit, slices):
    out = np.zeros(count)
    where.clear()
    with threads.limit_threads(limit):
        threads.run_slices(mark, count, out)
    assert (out == 1).all() and len(where) == slices
    sizes = [size for _, size in where]
    assert max(sizes) - min(sizes) <= 1


def test_a_limit_is_of_one_thread_and_ends():
    usual = threads.count_threads()
    with threads.limit_threads(5), ThreadPoolExecutor(1) as pool:
        assert threads.count_threads() == 5
        assert pool.submit(threads.count_threads).result() == usual
        with pytest.raises(ZeroDivisionError), threads.limit_threads(2):
            raise ZeroDivisionError
        assert threads.count_threads() == 5
    assert threads.count_threads() == usual


@pytest.mark.parametrize("failing", [0, 5])
def test_what_fails_in_a_slice_is_raised_after_all_have_ended(failing):
    done = []

    def kernel(start, stop):
        if start == failing:
            raise FloatingPointError(str(start))
        done.append(stop)

    with threads.limit_threads(2), pytest.raises(FloatingPointError, match=str(failing)):
        threads.run_slices(kernel, 10)
    assert len(done) == 1


def test_tasks_side_by_side_use_one_thread_each_in_order():
    meeting = threading.Barrier(2, timeout=30)

    def task(n):
        meeting.wait()
        return n, threads.count_threads()

    assert threads.map_in_threads(task, range(4), workers=2) == [(n, 1) for n in range(4)]


def _in_child(queue):
    out = np.zeros(7)
    with threads.limit_threads(2):
        threads.run_slices(mark, 7, out)
    queue.put(out.tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_fork_has_threads_of_its_own():
    with threads.limit_threads(2):
        threads.run_slices(mark, 7, np.zeros(7))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and queue.get() == [1.0] * 7
