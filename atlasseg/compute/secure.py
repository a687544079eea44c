"""Dask without open doors: TLS with certificates on both sides, and no HTTP server.

Whoever may speak to a Dask worker or scheduler may run code as its user. So every process that atlasseg starts asks for
a certificate that only this run has, and none serves Dask's HTTP pages, which have no authentication.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import Scheduler, Worker
from distributed.security import Security

from atlasseg.errors import InputError

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
"""Names of the files in a folder of certificates."""


class _WithoutPages:
    """Dask starts an HTTP server in each scheduler and worker, also without a dashboard; here it starts none."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing."""


class PagelessScheduler(_WithoutPages, Scheduler):
    """A scheduler without an HTTP server."""


class PagelessWorker(_WithoutPages, Worker):
    """A worker without an HTTP server."""


WORKER_CLASS = f"{PagelessWorker.__module__}.{PagelessWorker.__qualname__}"
"""What ``dask worker --worker-class`` takes."""


def read_certificates(folder: Path) -> Security:
    """The security of a Dask cluster whose certificates are in a folder.

    Parameters
    ----------
    folder : path
        Holds ``ca.pem``, ``cert.pem`` and ``key.pem``, as `write_certificates` makes them.

    Raises
    ------
    InputError
        A file is missing or no PEM file.
    """
    texts = {}
    for name in (AUTHORITY, CERTIFICATE, KEY):
        path = folder / name
        try:
            texts[name] = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a PEM file of the cluster's certificates: {error}") from error
        if "-----BEGIN " not in texts[name]:
            raise InputError(f"{path}: expected a PEM file, found no '-----BEGIN' in it")
    roles = {f"tls_{role}_cert": texts[CERTIFICATE] for role in ("client", "scheduler", "worker")}
    keys = {f"tls_{role}_key": texts[KEY] for role in ("client", "scheduler", "worker")}
    return Security(require_encryption=True, tls_ca_file=texts[AUTHORITY], **roles, **keys)


def write_certificates(folder: Path) -> None:
    """Make new certificates for a Dask cluster: ``ca.pem``, ``cert.pem`` and ``key.pem``, for your user alone to read.

    Parameters
    ----------
    folder : path
        Made if it does not exist.

    Raises
    ------
    InputError
        There are certificates in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    security = Security.temporary()
    parts = {
        AUTHORITY: security.tls_ca_file,
        CERTIFICATE: security.tls_client_cert,
        KEY: security.tls_client_key,
    }
    for name in parts:
        if (folder / name).exists():
            raise InputError(f"{folder / name}: exists already. Give another folder, or remove it first.")
    for name, text in parts.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="ascii")
