"""``atlasseg certificates``: make TLS certificates for a Dask cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("certificates")(certificates)


def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the certificates.")],
) -> None:
    """Make TLS certificates for a Dask cluster that you start yourself.

    Without certificates, any process that reaches the ports of a Dask cluster can run code as the user who started it.
    Writes `ca.pem`, `cert.pem` and `key.pem`, readable by you only, and prints the commands that start a scheduler, a
    worker and a run with them.

    **Examples**

    - `atlasseg certificates ~/dask-certificates`
    """
    from atlasseg.compute.secure import AUTHORITY, CERTIFICATE, KEY, WORKER_CLASS, write_certificates

    write_certificates(folder)
    tls = f"--tls-ca-file {folder / AUTHORITY} --tls-cert {folder / CERTIFICATE} --tls-key {folder / KEY}"
    typer.echo(f"dask scheduler --protocol tls {tls} --no-dashboard")
    typer.echo(f"dask worker tls://HOST:8786 {tls} --no-dashboard --worker-class {WORKER_CLASS} --nthreads 1")
    typer.echo(f"atlasseg run RECIPE.toml --scheduler tls://HOST:8786 --certificates {folder}")
