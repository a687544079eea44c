"""Progress display of a command: bars on a terminal, a plain line every few seconds elsewhere.

It runs in a small process of its own, so that a library that holds the interpreter for minutes (ANTs) does not stop it:
the command starts this file as a script and writes one JSON message per line to its standard input. For this reason the
file imports nothing of atlasseg. Where standard error is not a system file, as in a notebook, a thread is used instead.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, TextIO

EVERY_S = 8.0
"""Seconds between two lines without a terminal."""

QUIET_S = 1.0
"""Minimum seconds between two texts; of several texts in that time only the last is printed."""

MOST_ROWS = 8
"""Maximum number of running targets that are named."""

ENOUGH_TARGETS = 3
"""Finished targets required to estimate the time left, without the first one of each process, which compiles."""

Z_80_PERCENT = 1.2816

ENDS = ("done", "failed")


class Board:
    """State of a command: its targets with their stages, or its current activity."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.text = ""
        self.text_since = now
        self.total = self.ended = self.failed = self.most_at_once = 0
        self.under_way: dict[str, tuple[float, float, str]] = {}
        self.seconds: list[float] = []

    def take(self, message: dict[str, Any], now: float) -> None:
        """Update the state by a message: ``{"text": ...}``, or ``{"target": ..., "stage": ...}``."""
        if "text" in message:
            self.text, self.text_since = message["text"], now
        elif "stage" in message:
            self._move(message["target"], message["stage"], now)

    def _move(self, target: str, stage: str, now: float) -> None:
        if stage == "waiting":
            self.total += 1
        elif stage in ENDS:
            self.ended += 1
            self.failed += stage == "failed"
            if target in self.under_way:  # else its results were in the cache: no estimate for the others
                self.seconds.append(now - self.under_way.pop(target)[0])
        else:
            begun = self.under_way[target][0] if target in self.under_way else now
            self.under_way[target] = begun, now, stage
            self.most_at_once = max(self.most_at_once, len(self.under_way))

    def counts(self) -> str:
        """Format the number of targets done, failed, and at each stage."""
        if not self.total:
            return ""
        stages = Counter(stage.partition(" ")[0] for _, _, stage in self.under_way.values())
        failed = [f"{self.failed} failed"] if self.failed else []
        at_stage = [f"{count} {stage}" for stage, count in stages.items()] if len(self.under_way) > MOST_ROWS else []
        return ", ".join([f"{self.ended} of {self.total} targets done", *failed, *at_stage])

    def rows(self, now: float) -> list[tuple[str, str, str]]:
        """List name, stage and time spent at it, for each running target."""
        shown = list(self.under_way.items())[:MOST_ROWS]
        return [(target, stage, format_clock(now - since)) for target, (_, since, stage) in shown]

    def waits(self) -> bool:
        """Return whether there are targets and none has started."""
        return self.total > self.ended == 0 and not self.under_way

    def seconds_left(self, now: float) -> tuple[float, float] | None:
        """Estimate an 80 percent interval for the time left; None with too few finished targets.

        The remaining targets are assumed to cost as much as the finished ones; the interval covers the variance of
        their sum and of the estimated mean.
        """
        first = max(self.most_at_once, 1)
        known = self.seconds[first:]
        left = self.total - self.ended
        if len(known) < ENOUGH_TARGETS or not left:
            return None
        mean, sd = statistics.fmean(known), statistics.stdev(known)
        at_once = min(first, left)
        spent = sum(min(now - begun, mean) for begun, _, _ in self.under_way.values())
        expected = max(left * mean - spent, 0.0) / at_once
        spread = Z_80_PERCENT * sd * (left + left**2 / len(known)) ** 0.5 / at_once
        return max(expected - spread, 0.0), expected + spread

    def time_left(self, now: float) -> str:
        """Format :meth:`seconds_left` in words; empty if there is no estimate."""
        interval = self.seconds_left(now)
        return "" if interval is None else f"{format_interval(*interval)} left"

    def line(self, now: float) -> str:
        """Format the whole state on one line."""
        told = [f"{target}: {stage} for {seconds}" for target, stage, seconds in self.rows(now)]
        more = len(self.under_way) - len(told)
        told += [f"and {more} more"] if more > 0 else []
        if not self.total and self.text:
            told = [f"{self.text} ({format_clock(now - self.text_since)})"]
        told = ["start"] if self.waits() else told
        parts = [self.counts(), ", ".join(told), self.time_left(now)]
        return f"{format_clock(now - self.started):>8}  " + ("; ".join(part for part in parts if part) or "working")


def format_clock(seconds: float) -> str:
    """Format a time as seconds, minutes and seconds, or hours and minutes."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def format_interval(low: float, high: float) -> str:
    """Format an interval of time in words, rounded to the precision of the estimate."""
    unit, name = (1.0, "s") if high < 100 else (60.0, "min") if high < 6000 else (3600.0, "h")
    step = 10.0 if name == "s" else 0.5 if name == "h" and high < 36000 else 1.0
    from_, to = (max(round(value / unit / step) * step, 0) for value in (low, high))
    to = max(to, step)
    return f"about {to:g} {name}" if from_ == to else f"about {from_:g} to {to:g} {name}"


class View(Protocol):
    """Output to which a board is drawn."""

    def tick(self, board: Board, now: float, *, news: bool) -> None:
        """Draw the board; `news` is True when a text has arrived."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Remove everything but the printed lines."""


class Lines:
    """Display by plain lines, without control codes, for a file or a pipe."""

    def __init__(self, stream: TextIO, now: float, every_s: float = EVERY_S) -> None:
        self.stream, self.every_s = stream, every_s
        self.told = now

    def tick(self, board: Board, now: float, *, news: bool) -> None:
        """Print a line when one is due, or earlier when a text has arrived."""
        if now - self.told >= (min(QUIET_S, self.every_s) if news else self.every_s):
            self.told = now
            self.say(board.line(now))

    def say(self, text: str) -> None:
        """Print a line at once."""
        with suppress(OSError, ValueError):
            self.stream.write(f"{text}\n")
            self.stream.flush()

    def close(self) -> None:
        """Do nothing: plain lines stay."""


class Bars:
    """Display by rows on a terminal, redrawn in place and removed at the end."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self.console = Console(file=stream, highlight=False)
        self.spinner = Spinner("dots")
        self.live = Live(console=self.console, transient=True, auto_refresh=False, redirect_stdout=False)
        self.live.start()

    def tick(self, board: Board, now: float, *, news: bool) -> None:
        """Draw the board."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head = "; ".join(part for part in (board.counts() or board.text, board.time_left(now)) if part) or "working"
        self.spinner.update(text=Text(f"{head}  {format_clock(now - board.started)}", overflow="fold"))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(overflow="fold")
        rows.add_column(overflow="fold")
        rows.add_column(justify="right", no_wrap=True)
        for row in board.rows(now):
            rows.add_row(f"  {row[0]}", *row[1:])
        self.live.update(Group(self.spinner, rows), refresh=True)

    def say(self, text: str) -> None:
        """Print a line above the rows."""
        from rich.text import Text

        self.console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Remove the rows."""
        self.live.stop()


def show(messages: queue.SimpleQueue[dict[str, Any] | None], view: View, *, tick_s: float) -> None:
    """Process messages and draw, until a None arrives."""
    board = Board(time.monotonic())
    waiting = False
    while True:
        message: dict[str, Any] | None = {}
        with suppress(queue.Empty):
            message = messages.get(timeout=tick_s)
        if message is None:
            break
        if "say" in message:
            view.say(message["say"])
        board.take(message, time.monotonic())
        waiting = waiting or ("text" in message and message["text"] != "")
        before = getattr(view, "told", None)
        if messages.empty():
            view.tick(board, time.monotonic(), news=waiting)
        waiting = waiting and getattr(view, "told", None) == before
    view.close()


def read(stream: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the incoming messages until the command closes its end or exits."""
    for line in stream:
        with suppress(ValueError):
            yield json.loads(line)


def main() -> None:
    """Display the messages from standard input until it is closed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl+C and then closes this process
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        for message in read(sys.stdin):
            messages.put(message)
        messages.put(None)

    threading.Thread(target=listen, daemon=True).start()
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if terminal:
        show(messages, Bars(sys.stderr), tick_s=0.125)
    else:
        every_s = float(os.environ.get("ATLASSEG_PROGRESS_S", EVERY_S))
        show(messages, Lines(sys.stderr, time.monotonic(), every_s), tick_s=min(0.25, every_s))


if __name__ == "__main__":
    main()
