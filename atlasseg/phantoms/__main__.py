"""``python -m atlasseg.phantoms FOLDER`` writes the sample data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from atlasseg.phantoms.samples import write_sample_data


def main(arguments: Sequence[str]) -> int:
    """``python -m atlasseg.phantoms FOLDER``; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m atlasseg.phantoms FOLDER\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    write_sample_data(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
