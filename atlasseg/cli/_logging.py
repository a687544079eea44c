"""The log on the terminal: one line for one cause, with the number of files and their names."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from pathlib import PurePath

from atlasseg.cli._progress import print_line

HOLD_S = 1.5
"""A warning waits so long for others of the same cause."""

MOST_NAMES = 20
"""Files that are named of those that share a cause."""

MOST_ALIKE = 3
"""Texts of one message that are printed; of further ones the files alone are named."""

OF_DASK = ("asyncio", "bokeh", "dask", "distributed", "tornado")
"""Loggers of Dask and what it is built on; atlasseg tells in its own words what matters of it."""

_SUBJECT = re.compile(r"((?:atlas|scan|target) )?(\S+): (.+)", re.DOTALL)


def set_up_logging(*, verbose: bool, quiet: bool) -> GroupedLog:
    """Let the log go to standard error, and return the handler, to be flushed at the end of the command."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    handler = GroupedLog(grouped=not verbose)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    return handler


def flush_log() -> None:
    """Print what waits in the log."""
    for handler in logging.getLogger().handlers:
        handler.flush()


@dataclass
class _Cause:
    level: str
    text: str
    subjects: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)


class GroupedLog(logging.Handler):
    """Print each record once for its cause: records that differ in their subject (a file, a target) alone are one.

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
        """Keep a warning for a moment, so that others of its cause join it; print all else at once."""
        if record.name.partition(".")[0] in OF_DASK:
            return
        try:
            subject, text = split_subject(record)
            if record.exc_info:
                text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            if not self.grouped or record.levelno < logging.WARNING:
                print_line(f"{record.levelname}: {described([subject], text)}")
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
        """Print the causes that were not told yet."""
        with self._locked():
            self.timer = None
            alike: dict[str, list[_Cause]] = {}
            for (_, message, _), cause in self.causes.items():
                if len(cause.known) == len(cause.subjects):
                    alike.setdefault(message, []).append(cause)
            for causes in alike.values():
                for cause in causes[:MOST_ALIKE]:
                    print_line(f"{cause.level}: {described(cause.subjects, cause.text)}")
                rest = [subject for cause in causes[MOST_ALIKE:] for subject in cause.subjects]
                if rest:
                    print_line(f"{causes[0].level}: {len(rest)} more like this: {listed(rest)}")
                for cause in causes:
                    cause.subjects = []

    def flush(self) -> None:
        """Print what waits, and how often what was told before came again."""
        if self.timer is not None:
            self.timer.cancel()
        self._print_new()
        with self._locked():
            for cause in self.causes.values():
                if cause.subjects:
                    print_line(f"{cause.level}: {described(cause.subjects, cause.text, noun='more')}")
            self.causes.clear()

    def _locked(self) -> threading.RLock:
        assert self.lock is not None
        return self.lock


def split_subject(record: logging.LogRecord) -> tuple[str, str]:
    """What a record speaks of, a file mostly, and what it says of it; the former is empty where it has none."""
    message = record.getMessage()
    subject = getattr(record, "subject", "")
    if isinstance(record.args, tuple) and record.args and str(record.msg).startswith("%s: "):
        subject = str(record.args[0])
    if subject:
        return subject, message[len(subject) + 2 :]
    found = _SUBJECT.fullmatch(message)
    return ((found[1] or "") + found[2], found[3]) if found else ("", message)


def described(subjects: list[str], text: str, *, noun: str = "") -> str:
    """A cause on one line, or on two where several files share it."""
    if len(subjects) == 1:
        return f"{subjects[0]}: {text}" if subjects[0] else text
    noun = noun or ("files" if all(PurePath(subject).suffix for subject in subjects) else "cases")
    return f"{len(subjects)} {noun}: {text}\n  {listed(subjects)}"


def listed(subjects: list[str]) -> str:
    """Names, shortened by the folder that all of them are in."""
    folders = {str(PurePath(subject).parent) for subject in subjects}
    if len(subjects) > 1 and len(folders) == 1 and folders != {"."}:
        return f"in {folders.pop()}: {_some([PurePath(subject).name for subject in subjects])}"
    return _some(subjects)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
