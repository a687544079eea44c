"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DeviceName(StrEnum):
    """Where methods that can use a GPU run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to do, stage by stage; see pipelines/.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change one value of the recipe; may be given again."),
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="auto takes a CUDA GPU where there is one; cuda insists on it.")
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=0, help="Targets at once, a process each; 0 takes one a processor.")
]
Prepared = Annotated[
    Path | None,
    typer.Option("--prepared", help="Library prepared by atlasseg atlases prepare; takes the place of the steps."),
]
