"""Results of earlier runs in an output folder, kept separate from those of the current run.

Before a run replaces a result, it moves the old one to ``OUT/earlier/DATE``, and removes it there after the new one is
written. All results in `OUT` are therefore of the run that ``OUT/dataset_description.json`` describes, even if a target
fails, is no longer requested, or the run is killed; and no result is lost without a replacement.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

EARLIER = "earlier"
"""The folder of earlier results in an output folder."""

DESCRIPTION = "dataset_description.json"

SUMMARIES = (
    *("index.html", "metrics.tsv", "quality.tsv", "volumes.tsv", "comparison.html"),
    *("comparison.tsv", "comparison_tests.tsv", "comparison_ranks.tsv", "logs"),
)
"""Files and folders that a run writes for all targets together."""


@dataclass(frozen=True)
class EarlierResults:
    """Folder for the results of earlier runs.

    Parameters
    ----------
    out : path
        Output folder.
    date : str
        Start time of the current run; the name of the folder in ``earlier``.
    """

    out: Path
    date: str

    @classmethod
    def now(cls, out: Path) -> EarlierResults:
        """Create for a run that starts now."""
        return cls(out, datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S"))

    @property
    def folder(self) -> Path:
        """``OUT/earlier/DATE``."""
        return self.out / EARLIER / self.date

    def set_aside(self, name: str) -> None:
        """Move a file or folder of `out` into `folder`, if it exists; one with the same name there is replaced."""
        if (self.out / name).exists():
            self.discard(name, tidy=False)
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another run on this folder was faster
                (self.out / name).rename(self.folder / name)

    def discard(self, name: str, *, tidy: bool = True) -> None:
        """Remove a result that was set aside, after its replacement is written."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if tidy:
            for emptied in (self.folder, self.folder.parent):
                with suppress(OSError):  # not empty, or does not exist
                    emptied.rmdir()

    def discard_replaced(self) -> None:
        """Remove summary files that were set aside and written again, unless results of targets are still set aside."""
        for name in (*SUMMARIES, DESCRIPTION):
            if (self.out / name).exists() and not any(self._results()):
                self.discard(name)

    def _results(self) -> list[str]:
        """Targets whose results are set aside."""
        return [path.name for path in self.folder.iterdir() if _is_result(path)] if self.folder.is_dir() else []

    def begin(self, description: Mapping[str, Any], targets: Collection[str]) -> None:
        """Set aside all results that do not belong to the run that starts.

        Parameters
        ----------
        description : mapping
            New content of ``dataset_description.json``.
        targets : collection of str
            Targets of the run. Their results stay in place if the same recipe and version made them; whether the inputs
            are the same is checked later for each target.
        """
        same = _making(_read(self.out / DESCRIPTION)) == _making(description)
        found = [path.name for path in self.out.iterdir() if _is_result(path)]
        stale = [name for name in found if not same or name not in targets]
        for name in stale:
            self.set_aside(name)
        if stale or not same:
            for name in (*SUMMARIES, DESCRIPTION):
                self.set_aside(name)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _making(description: Mapping[str, Any]) -> Any:
    """Part of a description that determines the results: version and recipe, without paths of targets and output."""
    try:
        recipe = tomllib.loads(description["Recipe"])
        version = description["GeneratedBy"][0]["Version"]
    except (KeyError, IndexError, TypeError, tomllib.TOMLDecodeError):
        return None
    data = {key: value for key, value in recipe.pop("data", {}).items() if key not in ("targets", "out")}
    return version, recipe, data


def _is_result(path: Path) -> bool:
    """Whether a path is the folder of a target: its files begin with its name."""
    return path.is_dir() and any(
        entry.name == f"{path.name}.html" or entry.name.startswith(f"{path.name}_") for entry in path.iterdir()
    )
