"""Progress bars."""

from __future__ import annotations

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


class TargetProgress:
    """A bar over the targets and, below it, one for each that is under way; silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
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
        self._count = 0

    def __call__(self, target: str, stage: str) -> None:
        """Take in that `target` has come to `stage`."""
        if stage == "waiting":
            self._count += 1
            self._bars.update(self._all, total=self._count)
        elif stage in ENDS:
            self._bars.advance(self._all)
            row = self._rows.pop(target, None)
            if row is not None:
                self._bars.remove_task(row)
        else:
            if target not in self._rows:
                self._rows[target] = self._bars.add_task(target, total=len(STAGES) - 1, stage=stage)
            self._bars.update(self._rows[target], completed=STAGES.index(stage.partition(" ")[0]), stage=stage)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
