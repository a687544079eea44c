"""A large cohort on many workers that fail, by simulation from measured step times: how long, and what is busy.

    python benchmarks/simulate_cohort.py [--scans 50000] [--workers 1000] [--register-s 118] [--fuse-s 60] ...

Events are simulated one by one. A worker takes a scan through two steps, registration and fusion. Each step first
passes the scheduler, which serves one message after the other, and then the shared file system, which serves all bytes
and all file operations one after the other at its whole bandwidth and rate; then it computes, a time drawn from a
log-normal distribution of the measured mean. A worker fails after a time drawn from an exponential distribution and
comes back later; the step it was at is lost, the one before it is kept. ``--without-cache`` keeps nothing: there is
nothing to write and to read, and the whole scan is lost.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Server:
    """Something shared that serves one request after the other."""

    free_s: float = 0.0
    busy_s: float = 0.0
    longest_wait_s: float = 0.0

    def serve(self, now_s: float, service_s: float) -> float:
        """When a request that comes now is done."""
        begun = max(now_s, self.free_s)
        self.longest_wait_s = max(self.longest_wait_s, begun - now_s)
        self.free_s = begun + service_s
        self.busy_s += service_s
        return self.free_s


@dataclass
class Cohort:
    """What came of a simulation."""

    makespan_s: float = 0.0
    computing_s: float = 0.0
    lost_s: float = 0.0
    failures: int = 0
    done: int = 0
    scheduler: Server = field(default_factory=Server)
    files: Server = field(default_factory=Server)


def simulate(given: argparse.Namespace) -> Cohort:
    """Run the events of a cohort in their order of time."""
    rng = np.random.default_rng(given.seed)
    means = (given.register_s, given.fuse_s)
    kept_mb = 0.0 if given.without_cache else given.cache_mb
    written = (kept_mb * 1e6, given.result_mb * 1e6)
    read = (given.scan_mb * 1e6, kept_mb * 1e6)
    spread = np.sqrt(np.log(1 + given.variation**2))
    found, waiting = Cohort(), given.scans
    unfinished: list[int] = []  # the step that a scan which was cut off goes on from
    events = [(float(n) * given.arrival_s, n) for n in range(given.workers)]
    heapq.heapify(events)
    fails_s = rng.exponential(given.mtbf_h * 3600, given.workers) + np.array([t for t, _ in sorted(events)])
    at: list[int | None] = [None] * given.workers
    fresh = [True] * given.workers
    while events:
        now, worker = heapq.heappop(events)
        step = at[worker]
        if step is None:
            if unfinished:
                step = unfinished.pop()
            elif waiting:
                waiting, step = waiting - 1, 0
            else:
                continue
        begun = found.scheduler.serve(now, given.messages * given.message_ms / 1e3)
        transferred = read[step] + written[step] + (given.library_mb * 1e6 if fresh[worker] else 0)
        service = transferred / (given.bandwidth_gb_s * 1e9) + given.operations / given.operations_s
        ready = found.files.serve(begun, service)
        seconds = float(np.exp(rng.normal(np.log(means[step]) - spread**2 / 2, spread)))
        end, fresh[worker] = ready + seconds, False
        if end > fails_s[worker]:
            found.failures += 1
            found.lost_s += max(0.0, fails_s[worker] - now)
            back = max(fails_s[worker], now) + given.restart_s
            unfinished.append(0 if given.without_cache else step)
            fails_s[worker] = back + rng.exponential(given.mtbf_h * 3600)
            at[worker], fresh[worker] = None, True
            heapq.heappush(events, (back, worker))
            continue
        found.computing_s += seconds
        found.makespan_s = max(found.makespan_s, end)
        found.done += step == len(means) - 1
        at[worker] = None if step == len(means) - 1 else step + 1
        heapq.heappush(events, (end, worker))
    return found


def parser() -> argparse.ArgumentParser:
    """The options, with what was measured as defaults."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--scans", type=int, default=50_000)
    made.add_argument("--workers", type=int, default=1_000)
    made.add_argument("--register-s", type=float, default=118.0, help="14 atlases at 8.4 s, 1 mm brains")
    made.add_argument("--fuse-s", type=float, default=75.0, help="carrying over, joint fusion, report")
    made.add_argument("--variation", type=float, default=0.25, help="standard deviation of a step over its mean")
    made.add_argument("--scan-mb", type=float, default=8.0)
    made.add_argument("--library-mb", type=float, default=120.0, help="read by every worker once")
    made.add_argument("--cache-mb", type=float, default=1_200.0, help="kept of a scan by registration, read by fusion")
    made.add_argument("--result-mb", type=float, default=10.0)
    made.add_argument("--bandwidth-gb-s", type=float, default=5.0, help="of the shared file system, all together")
    made.add_argument("--operations", type=float, default=70.0, help="files opened or renamed in a step")
    made.add_argument("--operations-s", type=float, default=5_000.0, help="file operations a second, all together")
    made.add_argument("--messages", type=float, default=12.0, help="of a step to and from the scheduler")
    made.add_argument("--message-ms", type=float, default=0.3)
    made.add_argument("--mtbf-h", type=float, default=24.0, help="hours until a worker fails, on average")
    made.add_argument("--restart-s", type=float, default=120.0)
    made.add_argument("--arrival-s", type=float, default=0.5, help="between the starts of two workers")
    made.add_argument("--without-cache", action="store_true")
    made.add_argument("--seed", type=int, default=0)
    return made


def main() -> None:
    given = parser().parse_args()
    found = simulate(given)
    ideal = given.scans * (given.register_s + given.fuse_s) / given.workers
    hours, share = found.makespan_s / 3600, found.lost_s / found.computing_s
    assert found.done == given.scans
    print(f"{found.done} scans on {given.workers} workers in {hours:.2f} h (ideal {ideal / 3600:.2f} h)")
    print(f"workers computing {found.computing_s / found.makespan_s / given.workers:.1%} of the time")
    print(f"{found.failures} failures, {found.lost_s / 3600:.1f} worker hours lost ({share:.2%})")
    for name, server in (("scheduler", found.scheduler), ("file system", found.files)):
        busy = server.busy_s / found.makespan_s
        print(f"{name} busy {busy:.1%}, longest wait {server.longest_wait_s:.1f} s")


if __name__ == "__main__":
    main()
