"""A finding of the checks, and the words that findings share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """A problem or a remark about a file.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        ``error`` for a problem that makes a run fail, ``warning`` for one that probably harms its results, ``note`` for
        other remarks.
    file : Path
        File or folder of the finding.
    message : str
        The problem.
    remedy : str
        What to do; may be empty.
    """

    severity: Severity
    file: Path
    message: str
    remedy: str = ""


def format_sizes(sizes: Iterable[float]) -> str:
    """Format sizes along the axes, as ``1 x 1.2 x 2.5``."""
    return " x ".join(f"{size:.4g}" for size in sizes)


def abbreviate(items: Iterable[object], most: int = 8) -> str:
    """List the first items, and count the others."""
    every = [str(item) for item in items]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
