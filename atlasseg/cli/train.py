"""``atlasseg train`` and ``atlasseg pretrain``: the network that refines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import (
    Atlases,
    Device,
    DeviceName,
    ModelOut,
    RecipeFile,
    Settings,
    TrainingCache,
    Without,
    load_recipe,
)

Memory = Annotated[
    str | None,
    typer.Option("--gpu-memory", metavar="8GB", help="Depth, width and patch are scaled to what a step may take."),
]

Flops = Annotated[
    float | None,
    typer.Option("--gflop", min=0.001, help="Likewise, to so many billion floating point operations a step."),
]


class Freeze(StrEnum):
    """What can be left as it is in --init."""

    encoder = "encoder"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("train")(train)
    app.command("pretrain")(pretrain)


def train(
    recipe: RecipeFile,
    out: ModelOut,
    atlases: Atlases = None,
    without: Without = None,
    memory: Memory = None,
    gflop: Flops = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="For each network; as training.minutes.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="MODEL", help="Begin from the weights of another model.")
    ] = None,
    freeze: Annotated[Freeze | None, typer.Option("--freeze", help="Leave the encoder of --init as it is.")] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="As training.learning_rate.")] = None,
    cache: TrainingCache = None,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="Also write the networks as TorchScript, checked to say the same.")
    ] = False,
    settings: Settings = None,
    device: Device = DeviceName.auto,
) -> None:
    """Train a 3-D U-Net on a library to correct what a recipe fuses.

    Segments every atlas from the others, and trains on scan and fused probabilities a network for each fold, which the
    other folds teach. A training that was interrupted goes on when the same command is given again. The tables
    [refiner], [training] and [augmentation] of the recipe say how.

    **Example**

    - `atlasseg train recipe.toml --out my_refiner --gpu-memory 8GB`

    and in the recipe, the path being relative to its own folder:

    - `[refinement]` `method = "unet"`
    - `[refinement.unet]` `model = "my_refiner"`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"train: read the recipe {recipe}")
    from atlasseg.app.train import train as train_on
    from atlasseg.training.budget import parse_bytes

    changed = [*(settings or ())]
    changed += [f"training.minutes={minutes}"] if minutes is not None else []
    changed += [f"training.learning_rate={rate}"] if rate is not None else []
    checked = load_recipe(recipe, changed, device, targets=None, atlases=atlases, out=None, prepared=None)
    with Progress("read the scans") as progress:
        model = train_on(
            checked,
            out,
            without=without or (),
            init=init,
            freeze_encoder=freeze is not None,
            memory_bytes=None if memory is None else parse_bytes(memory),
            step_flops=None if gflop is None else gflop * 1e9,
            cache=cache,
            device=device.value,
            progress=progress.note,
        )
    if torchscript:
        from atlasseg.refinement.network.export import write_torchscript

        write_torchscript(model, out)
    for number, member in enumerate(model.members, 1):
        fused, found = member.scores["fused_dice"], member.scores["validation_dice"]
        typer.echo(f"network {number}: validation Dice {fused:.4f} fused, {found:.4f} refined")
    typer.echo(f"wrote {out}: {len(model.members)} networks for {len(model.coding) - 1} labels")


def pretrain(
    recipe: RecipeFile,
    out: ModelOut,
    scans: Annotated[
        list[Path], typer.Option("--scans", help="A scan, or a folder of scans, labelled or not; repeatable.")
    ],
    memory: Memory = None,
    gflop: Flops = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="As training.minutes.")] = None,
    settings: Settings = None,
    device: Device = DeviceName.auto,
) -> None:
    """Train the network on scans without labels, to be begun from: it learns to fill in what is hidden from it.

    **Example**

    - `atlasseg pretrain recipe.toml --scans unlabelled --out pretrained`
    - `atlasseg train recipe.toml --init pretrained --out my_refiner`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"pretrain: read the recipe {recipe}")
    from atlasseg.app.train import pretrain as pretrain_on
    from atlasseg.training.budget import parse_bytes

    changed = [*(settings or ()), *([f"training.minutes={minutes}"] if minutes is not None else [])]
    checked = load_recipe(recipe, changed, device, targets=scans, atlases=None, out=None, prepared=None)
    with Progress("read the scans") as progress:
        model = pretrain_on(
            checked,
            out,
            memory_bytes=None if memory is None else parse_bytes(memory),
            step_flops=None if gflop is None else gflop * 1e9,
            device=device.value,
            progress=progress.note,
        )
    scores = model.members[0].scores
    typer.echo(f"wrote {out}: what is hidden is filled in with a squared error of {scores['validation_loss']:.4f}")
