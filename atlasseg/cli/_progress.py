"""Progress of a command, from its first line to its end."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atlasseg.cli import _display

CLOSE_S = 5.0
"""Seconds that the display process has to remove its rows before it is terminated."""


def announce(text: str) -> None:
    """Print the first line of a command to standard error, before anything large is imported."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def is_quiet() -> bool:
    """Return whether only errors are printed (``--quiet``)."""
    return logging.getLogger().level >= logging.ERROR


class Progress:
    """Progress of a command, shown at least every ten seconds until the ``with`` block ends.

    Call it with (target, stage) to report work on several targets, or call `text` to report the current activity.

    Parameters
    ----------
    text : str
        First activity of the command.

    Examples
    --------
    >>> with Progress("read the library") as progress:
    ...     progress.text("register")
    """

    def __init__(self, text: str = "") -> None:
        self._first = text
        self._child: subprocess.Popen[bytes] | None = None
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, target: str, stage: str) -> None:
        """Report that `target` has reached `stage`; see `compute.execution.Listener`."""
        self._send({"target": target, "stage": stage})

    def text(self, text: str) -> None:
        """Show the current activity."""
        self._send({"text": text})

    def note(self, text: str) -> None:
        """Show the current activity and keep the line; a text that ends in ``...`` is replaced by the next one."""
        if not text.endswith("..."):
            self.say(text)
        self.text(text.removesuffix("...").rstrip())

    def say(self, text: str) -> bool:
        """Print a permanent line. Return False if no display is running."""
        return self._send({"say": text})

    def _send(self, message: dict[str, Any]) -> bool:
        if self._child is not None and self._child.stdin is not None:
            with suppress(OSError, ValueError):
                self._child.stdin.write(json.dumps(message).encode() + b"\n")
                self._child.stdin.flush()
                return True
        elif self._thread is not None:
            self._messages.put(message)
            return True
        return False

    def __enter__(self) -> Self:
        global _shown
        if is_quiet():
            return self
        try:
            stream = sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):
            view = _display.Lines(sys.stderr, time.monotonic())
            self._thread = threading.Thread(
                target=_display.show, args=(self._messages, view), kwargs={"tick_s": 0.25}, daemon=True
            )
            self._thread.start()
        else:
            # -P: do not import the modules beside the script
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(Path(_display.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        _shown = self
        if self._first:
            self.text(self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _shown
        _shown = None
        if self._child is not None:
            with suppress(OSError, ValueError):
                if self._child.stdin is not None:
                    self._child.stdin.close()
            try:
                self._child.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        elif self._thread is not None:
            self._messages.put(None)
            self._thread.join(CLOSE_S)
        self._child = self._thread = None


_shown: Progress | None = None
"""The progress on the screen."""


def print_line(text: str) -> None:
    """Print a line to standard error, above the rows of a progress on the screen."""
    if _shown is None or not _shown.say(text):
        print(text, file=sys.stderr, flush=True)
