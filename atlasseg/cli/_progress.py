"""How far a cohort is: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

STAGES = (
    "waiting",
    "read",
    "preprocess",
    "select",
    "register",
    "propagate",
    "fuse",
    "refine",
    "regions",
    "classify",
    "evaluate",
    "write",
)
ENDS = ("done", "failed")


MOST_ROWS = 8
"""Beyond so many targets under way they have no bars of their own, and are counted by stage alone."""

EVERY_S = 60.0
"""Where there is no terminal, a line is written so often at most."""


class TargetProgress:
    """A bar over the targets with the time left, how many are at which stage, and a bar for each that is under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("[bold]targets", total=0, stage="")
        self._rows: dict[str, TaskID] = {}
        self._at: dict[str, str] = {}
        self._count = self._ended = self._failed = 0
        self._begun = self._told = time.monotonic()

    def __call__(self, target: str, stage: str) -> None:
        """Take in that `target` has come to `stage`."""
        if stage == "waiting":
            self._count += 1
            self._bars.update(self._all, total=self._count)
            return
        if stage in ENDS:
            self._ended += 1
            self._failed += stage == "failed"
            self._at.pop(target, None)
            self._bars.advance(self._all)
            row = self._rows.pop(target, None)
            if row is not None:
                self._bars.remove_task(row)
        else:
            self._at[target] = stage
            if target not in self._rows and len(self._rows) < MOST_ROWS:
                self._rows[target] = self._bars.add_task(target, total=len(STAGES) - 1, stage=stage)
            if target in self._rows:
                at = STAGES.index(stage.partition(" ")[0])
                self._bars.update(self._rows[target], completed=at, stage=stage)
        self._bars.update(self._all, stage=self.told())
        if not self._console.is_terminal and time.monotonic() - self._told > EVERY_S:
            self._told = time.monotonic()
            self._console.print(f"{self._ended} of {self._count} targets, {self.told()}", highlight=False)

    def told(self) -> str:
        """How many are at which stage, how many failed, and the time left."""
        stages = Counter(stage.partition(" ")[0] for stage in self._at.values())
        parts = [f"{count} {stage}" for stage, count in sorted(stages.items(), key=lambda item: STAGES.index(item[0]))]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._ended:
            left = (self._count - self._ended) * (time.monotonic() - self._begun) / self._ended
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
