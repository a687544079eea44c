"""``atlasseg train`` and ``atlasseg pretrain``: train the network of the refinement."""

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
    typer.Option(
        "--gpu-memory", metavar="8GB", help="Memory for a training step; the network and its patches are sized to fit."
    ),
]

Flops = Annotated[
    float | None,
    typer.Option(
        "--gflop",
        min=0.001,
        help="Billions of floating-point operations for a training step; sizes the network likewise.",
    ),
]


class Freeze(StrEnum):
    """Part of the network to freeze."""

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
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Training time of each network; sets training.minutes.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="MODEL", help="Start from the weights of another model.")
    ] = None,
    freeze: Annotated[
        Freeze | None, typer.Option("--freeze", help="Part of --init whose weights are not trained.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="Learning rate; sets training.learning_rate.")] = None,
    cache: TrainingCache = None,
    torchscript: Annotated[
        bool,
        typer.Option(
            "--torchscript", help="Also write the networks as TorchScript, and check that their output is the same."
        ),
    ] = False,
    settings: Settings = None,
    device: Device = DeviceName.auto,
) -> None:
    """Train a 3-D U-Net that corrects the output of a recipe.

    Segments every atlas from the others. The atlases are divided into folds, and one network is trained for each fold
    on the atlases of the other folds. Its input is the scan and the fused probabilities. If the training was
    interrupted, the same command continues it. The tables [refiner], [training] and [augmentation] of the recipe set
    the network and its training.

    **Example**

    - `atlasseg train recipe.toml --out my_refiner --gpu-memory 8GB`

    Then use the model in the recipe. The path is relative to the folder of the recipe:

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
        list[Path], typer.Option("--scans", help="Scan, or folder of scans, labelled or not; repeatable.")
    ],
    memory: Memory = None,
    gflop: Flops = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Training time; sets training.minutes.")] = None,
    settings: Settings = None,
    device: Device = DeviceName.auto,
) -> None:
    """Pre-train the encoder on unlabelled scans by masked reconstruction.

    Parts of each scan are masked, and the network learns to reconstruct them. Use the result with `train --init`.

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
    typer.echo(f"wrote {out}: mean squared error of the reconstruction {scores['validation_loss']:.4f}")
