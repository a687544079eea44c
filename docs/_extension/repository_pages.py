"""Pages that are kept elsewhere in the repository: results of the benchmarks, changelog, contributing."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pages() -> dict[Path, str]:
    """Every page by its path, its links turned to this site's."""
    benchmarks = ROOT / "benchmarks"
    made = {}
    for path in (benchmarks / "RESULTS.md", *sorted((benchmarks / "results").glob("*.md"))):
        text = path.read_text("utf-8")
        text = re.sub(r"\]\((?:\.\./)+docs/([^)]+)\)", r"](/\1)", text)
        text = re.sub(r"\]\((?:\.\./)?RESULTS\.md\)", "](index.md)", text)
        if text.startswith("## "):
            text = re.sub(r"(?m)^#(#+ )", r"\1", text)
        made[Path("results") / ("index.md" if path.name == "RESULTS.md" else path.name)] = re.sub(
            r"\]\(results/([^)]+)\)", r"](\1)", text
        )
    made[Path("contributing.md")] = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    names = "\n".join(path.stem for path in made if path.parent.name == "results" and path.stem != "index")
    made[Path("results/index.md")] += f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    return made
