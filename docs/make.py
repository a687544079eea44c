"""Write the pages of the methods from their docstrings: ``python docs/make.py``. A test holds the pages to them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from atlasseg import learning, methods

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
    "refinement": (
        "What mends a fused segmentation. Corrective learning and the U-Net are trained on the library itself, every "
        "atlas segmented from the others as a target will be. Without a table [refinement] nothing is changed."
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


TRAINING = """
## Training `unet`

```sh
atlasseg train recipe.toml --out my_refiner --gpu-memory 8GB
```

fuses every atlas from the others (kept in `my_refiner.work` until the model is written), deals the atlases out to
folds, and trains a network for each fold on the others: no atlas votes for itself, and none that a network is
validated on teaches it. The plan of the network is printed; a training that was interrupted or killed goes on when
the same command is given again. The folder holds the weights (safetensors), the recipe, the label table, the curves
as a table and as a picture, and a card; reading it runs nothing. `--torchscript` adds the networks for other
programs.

To begin from another library or from scans without labels:

```sh
atlasseg pretrain recipe.toml --scans unlabelled --out pretrained
atlasseg train recipe.toml --init pretrained --out my_refiner
atlasseg train recipe.toml --init my_refiner --freeze encoder --lr 1e-4 --out tuned --atlases other_library
```

Three tables of the recipe say how. A network in a recipe that names no size is planned under the budget: on a GPU four
fifths of the memory, or what `--gpu-memory` and `--gflop` say; on a processor a step of about two seconds of a
core.
"""


def default(parameter: methods.Parameter) -> str:
    """What a parameter is where a recipe says nothing."""
    return "required" if parameter.required else f"`{parameter.default!r}`"


def settings(kind: type) -> str:
    """Markdown of a table of a recipe that trains."""
    described = methods.described_parameters(inspect.getdoc(kind) or "")
    rows = [f"| `{f.name}` | `{f.default!r}` | {described.get(f.name, '')} |" for f in dataclasses.fields(kind)]
    head = (inspect.getdoc(kind) or "").partition("\n")[0]
    name = kind.__name__.lower()
    return "\n".join([f"\n### [{name}]\n\n{head}\n", "| key | default | meaning |\n|---|---|---|", *rows])


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
                f"| `{p.name}` | {default(p)} | {p.description.replace('|', chr(92) + '|')} |"
                for p in method.parameters
            ]
        if method.references:
            out += ["", *(f"{n}. {reference}" for n, reference in enumerate(method.references, 1))]
    if stage == "refinement":
        out += [TRAINING, *map(settings, (learning.Refiner, learning.Training, learning.Augmentation))]
    return "\n".join(out).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Every page by its path."""
    return {Path(__file__).parent / f"{stage}.md": page(stage) for stage in methods.VERBS}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
