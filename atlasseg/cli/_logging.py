"""Log on the terminal: one line per cause, with the number of files and their names."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from pathlib import PurePath

from atlasseg.cli._progress import print_line

HOLD_S = 1.5
"""Seconds that a warning is held back to be grouped with others of the same cause."""

MOST_NAMES = 20
"""Maximum number of files that are named per cause."""

MOST_TEXTS = 3
"""Maximum number of texts printed for one message; for further ones only the files are named."""

OF_DASK = ("asyncio", "bokeh", "dask", "distributed", "tornado")
"""Loggers of Dask and its dependencies. They are muted: atlasseg reports failures of workers itself."""

_SUBJECT = re.compile(r"((?:atlas|scan|target) )?(\S+): (.+)", re.DOTALL)


def set_up_logging(*, verbose: bool, quiet: bool) -> GroupedLog:
    """Send the log to standard error and return the handler, which must be flushed at the end of the command."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    handler = GroupedLog(grouped=not verbose)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    return handler


def flush_log() -> None:
    """Print the warnings that are held back."""
    for handler in logging.getLogger().handlers:
        handler.flush()


@dataclass
class _Cause:
    level: str
    text: str
    subjects: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)


class GroupedLog(logging.Handler):
    """Log handler that prints one line per cause: records that differ only in their subject (file, target) are grouped.

    Parameters
    ----------
    grouped : bool
        False prints every record as it comes.
    """

    def __init__(self, *, grouped: bool = True) -> None:
        super().__init__()
        self.grouped = grouped
        self.causes: dict[tuple[str, str, str], _Cause] = {}
        self.timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hold a warning for a moment to group it with others of its cause; print all other records at once."""
        if record.name.partition(".")[0] in OF_DASK:
            return
        try:
            subject, text = split_subject(record)
            if record.exc_info:
                text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            if not self.grouped or record.levelno < logging.WARNING:
                print_line(f"{record.levelname}: {format_cause([subject], text)}")
                return
            template = getattr(record, "template", str(record.msg)) if subject else text
            key = (record.levelname, f"{record.name} {template}", text)
            cause = self.causes.setdefault(key, _Cause(record.levelname, text))
            told = len(cause.known) > len(cause.subjects)
            if subject not in cause.known:
                cause.known.add(subject)
                cause.subjects.append(subject)
            if not told and self.timer is None:
                self.timer = threading.Timer(HOLD_S, self._print_new)
                self.timer.daemon = True
                self.timer.start()
        except Exception:
            self.handleError(record)

    def _print_new(self) -> None:
        """Print the causes that have not been printed yet."""
        with self._locked():
            self.timer = None
            by_message: dict[str, list[_Cause]] = {}
            for (_, message, _), cause in self.causes.items():
                if len(cause.known) == len(cause.subjects):
                    by_message.setdefault(message, []).append(cause)
            for causes in by_message.values():
                for cause in causes[:MOST_TEXTS]:
                    print_line(f"{cause.level}: {format_cause(cause.subjects, cause.text)}")
                rest = [subject for cause in causes[MOST_TEXTS:] for subject in cause.subjects]
                if rest:
                    print_line(f"{causes[0].level}: {len(rest)} more like this: {format_names(rest)}")
                for cause in causes:
                    cause.subjects = []

    def flush(self) -> None:
        """Print the warnings held back, and the number of repetitions of those already printed."""
        if self.timer is not None:
            self.timer.cancel()
        self._print_new()
        with self._locked():
            for cause in self.causes.values():
                if cause.subjects:
                    print_line(f"{cause.level}: {format_cause(cause.subjects, cause.text, noun='more')}")
            self.causes.clear()

    def _locked(self) -> threading.RLock:
        assert self.lock is not None
        return self.lock


def split_subject(record: logging.LogRecord) -> tuple[str, str]:
    """Split a log record into its subject (usually a file; empty if it has none) and its text."""
    message = record.getMessage()
    subject = getattr(record, "subject", "")
    if isinstance(record.args, tuple) and record.args and str(record.msg).startswith("%s: "):
        subject = str(record.args[0])
    if subject:
        return subject, message[len(subject) + 2 :]
    found = _SUBJECT.fullmatch(message)
    return ((found[1] or "") + found[2], found[3]) if found else ("", message)


def format_cause(subjects: list[str], text: str, *, noun: str = "") -> str:
    """Format a cause on one line, or on two if several files share it."""
    if len(subjects) == 1:
        return f"{subjects[0]}: {text}" if subjects[0] else text
    noun = noun or ("files" if all(PurePath(subject).suffix for subject in subjects) else "cases")
    return f"{len(subjects)} {noun}: {text}\n  {format_names(subjects)}"


def format_names(subjects: list[str]) -> str:
    """Format a list of names, with the folder given once if it is the same for all."""
    folders = {str(PurePath(subject).parent) for subject in subjects}
    if len(subjects) > 1 and len(folders) == 1 and folders != {"."}:
        return f"in {folders.pop()}: {_shorten([PurePath(subject).name for subject in subjects])}"
    return _shorten(subjects)


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
