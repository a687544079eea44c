"""Write the pages of the methods from their docstrings: ``python docs/make.py``. A test holds the pages to them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from atlasseg import methods

HEADS = {
    "preprocessing": "What is done to scans before they are registered. A recipe names the steps in order.",
    "registration": (
        "How points of a target find their counterparts in an atlas. A recipe names the steps in order; each starts "
        "from the last one's result."
    ),
    "fusion": (
        "How candidates, atlases carried onto the target's grid, become one segmentation. Notation: target T, "
        "candidates A_i with labels L_i, i = 1..N, voxel x. `atlasseg compare` tries them on the same registrations."
    ),
    "regions": (
        "How a volume is cut into homogeneous regions. With the table [regions] in a recipe they vote on the fused "
        "labels; how that goes, with pictures, is on [a page of its own](regions/README.md)."
    ),
    "tissue": (
        "Models of `atlasseg tissue --model NAME`: tissue classes of a scan from its intensities, with or without a "
        "prior. What the command writes, and where priors come from, is on [a page of its own](statistics.md)."
    ),
}


def page(stage: str) -> str:
    """Markdown of one stage."""
    names = methods.names(stage)
    found = [methods.get(stage, name) for name in names]
    out = [f"# Methods of {stage}\n", HEADS.get(stage, "") + "\n", "| method | in a word |\n|---|---|"]
    out += [f"| [`{m.name}`](#{m.name}) | {m.summary} |" for m in found]
    for method in found:
        doc = inspect.getdoc(method.function) or ""
        body = re.split(r"(?m)^\w[\w ]*\n-{3,}$", doc)[0].strip()
        out += [f"\n## {method.name}\n", method.summary + "\n", body + "\n"]
        if method.parameters:
            out += ["| parameter | default | meaning |\n|---|---|---|"]
            out += [
                f"| `{p.name}` | `{p.default!r}` | {p.description.replace('|', chr(92) + '|')} |"
                for p in method.parameters
            ]
        if method.references:
            out += ["", *(f"{n}. {reference}" for n, reference in enumerate(method.references, 1))]
    return "\n".join(out).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Every page by its path."""
    return {Path(__file__).parent / f"{stage}.md": page(stage) for stage in methods.VERBS}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
