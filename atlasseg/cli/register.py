"""``atlasseg register``: register one scan to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import Device, DeviceName, SpacingFrom, spacing_source
from atlasseg.methods.stages import STAGES


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("register")(register)


def register(
    fixed: Annotated[Path, typer.Argument(help="The scan whose grid the result is on (the target).")],
    moving: Annotated[Path, typer.Argument(help="The scan that is aligned to it (the atlas).")],
    out: Annotated[
        Path, typer.Option("--out", help="File for the transform: .h5, .tfm, .mat (affine) or .nii.gz (field).")
    ],
    steps: Annotated[
        str, typer.Option("--steps", help="Comma-separated registration methods in order; see `atlasseg methods`.")
    ] = ",".join(STAGES["registration"].default),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Set a parameter of a step; repeatable."),
    ] = None,
    fixed_mask: Annotated[
        Path | None, typer.Option(help="Region of the fixed scan in which the similarity is measured.")
    ] = None,
    moving_mask: Annotated[
        Path | None, typer.Option(help="Region of the moving scan in which the similarity is measured.")
    ] = None,
    warped: Annotated[Path | None, typer.Option(help="Also write the moving scan on the fixed scan's grid.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Label map of the moving scan, to warp to the fixed scan.")
    ] = None,
    warped_labels: Annotated[Path | None, typer.Option(help="File for the warped --labels.")] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Initial transform, from points of FIXED to points of MOVING: .h5, .tfm, .txt, .mat or a "
            "displacement field."
        ),
    ] = None,
    spacing_from: SpacingFrom = None,
    device: Device = DeviceName.auto,
) -> None:
    """Register MOVING to FIXED and write the transform in ITK's format.

    ANTs, Slicer and SimpleITK can apply the transform.

    **Example**

    - `atlasseg register target.nii.gz atlas.nii.gz --out atlas_to_target.h5 --warped atlas_on_target.nii.gz`
    """
    from atlasseg.app.stages import register_files
    from atlasseg.errors import InputError

    if (labels is None) != (warped_labels is None):
        raise InputError("expected both --labels and --warped-labels, got one of them")
    quality, similarity = register_files(
        fixed,
        moving,
        out,
        steps=[step.strip() for step in steps.split(",")],
        settings=settings or (),
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        warped=warped,
        labels=labels,
        warped_labels=warped_labels,
        initial=initial,
        device=device.value,
        spacing_from=spacing_source(spacing_from),
    )
    typer.echo(f"local correlation {similarity:.4f}; {quality}")
    typer.echo(f"wrote {out}")
