"""``atlasseg fuse``: fuse candidate segmentations that are already on the grid of the target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import Device, DeviceName, FormatName, MethodSettings, SpacingFrom, spacing_source
from atlasseg.methods.stages import STAGES


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("fuse")(fuse)


def fuse(
    target: Annotated[Path, typer.Argument(help="Scan to segment.")],
    candidates: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with images/ and labels/ on the grid of TARGET.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the segmentation.")],
    method: Annotated[str, typer.Option("--method", help="Fusion method; see `atlasseg methods fusion`.")] = STAGES[
        "fusion"
    ].main_default,
    settings: MethodSettings = None,
    entropy: Annotated[Path | None, typer.Option(help="Also write the uncertainty: entropy in bits.")] = None,
    probabilities: Annotated[
        Path | None, typer.Option(help="Also write the probabilities, 4-D, one volume for each label.")
    ] = None,
    spacing_from: SpacingFrom = None,
    format: Annotated[
        FormatName | None,
        typer.Option("--format", help="Format of the segmentation. [default: by the suffix]", show_default=False),
    ] = None,
    device: Device = DeviceName.auto,
) -> None:
    """Fuse atlases that another program has registered to the target.

    **Example**

    - `atlasseg fuse target.nii.gz warped/ --method joint --set beta=2 --out target_dseg.nii.gz`
    """
    from atlasseg import io
    from atlasseg.app.stages import fuse_files
    from atlasseg.volume import Image

    sizes = spacing_source(spacing_from)
    fused = fuse_files(
        target,
        candidates,
        out,
        method=method,
        settings=settings or (),
        device=device.value,
        spacing_from=sizes,
        format=None if format is None else format.value,
    )
    scan = io.read_image(target, spacing_from=sizes)
    typer.echo(f"wrote {out}")
    if entropy is not None:
        io.write_image(Image(fused.entropy(), scan.affine), entropy, like=scan)
        typer.echo(f"wrote {entropy}")
    if probabilities is not None:
        io.write_probability_map(fused, probabilities, like=scan)
        typer.echo(f"wrote {probabilities}")
