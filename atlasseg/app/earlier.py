"""Results of earlier runs in an output folder, kept apart from those of the present one.

A run that replaces a result first moves the old one into ``OUT/earlier/DATE``, and removes it there once the new one is
written. So whatever stands in `OUT` is of the run that `OUT` describes, also where a target fails, is not asked for any
more, or the run is killed; and nothing is lost that has no successor.
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
    *("index.html", "metrics.tsv", "quality.tsv", "comparison.html"),
    *("comparison.tsv", "comparison_tests.tsv", "comparison_ranks.tsv", "logs"),
)
"""What a run writes over all targets."""


@dataclass(frozen=True)
class EarlierResults:
    """Where the results of earlier runs go.

    Parameters
    ----------
    out : path
        The output folder.
    date : str
        When the present run began: the folder in ``earlier``.
    """

    out: Path
    date: str

    @classmethod
    def now(cls, out: Path) -> EarlierResults:
        """For a run that begins now."""
        return cls(out, datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S"))

    @property
    def folder(self) -> Path:
        """``OUT/earlier/DATE``."""
        return self.out / EARLIER / self.date

    def set_aside(self, name: str) -> None:
        """Move a file or folder of `out` there, if it exists; one of that name that is there already is replaced."""
        if (self.out / name).exists():
            self.discard(name, tidy=False)
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another run on this folder was faster
                (self.out / name).rename(self.folder / name)

    def discard(self, name: str, *, tidy: bool = True) -> None:
        """Remove a result that was set aside, since its successor is written."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if tidy:
            for emptied in (self.folder, self.folder.parent):
                with suppress(OSError):  # not empty, or not there
                    emptied.rmdir()

    def discard_replaced(self) -> None:
        """Remove the files over all targets that were set aside and written anew, unless targets remain beside them."""
        for name in (*SUMMARIES, DESCRIPTION):
            if (self.out / name).exists() and not any(self._results()):
                self.discard(name)

    def _results(self) -> list[str]:
        """The targets whose results are there."""
        return [path.name for path in self.folder.iterdir() if _is_result(path)] if self.folder.is_dir() else []

    def begin(self, description: Mapping[str, Any], targets: Collection[str]) -> None:
        """Set aside what is not of the run that begins.

        Parameters
        ----------
        description : mapping
            What the run will write to ``dataset_description.json``.
        targets : collection of str
            Its targets. Their results stay for now where the same recipe and version made them: whoever works on a
            target sees whether its inputs are the same, too.
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
    """What of a description tells how results were made: version and recipe, without the names of scans and folders."""
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
