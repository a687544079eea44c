"""Secure Dask processes: mutual TLS with certificates, and no HTTP server.

Anyone who can connect to a Dask worker or scheduler can run code as its user. Every process that atlasseg starts
therefore requires a certificate that only this run has, and none serves Dask's HTTP pages, which have no
authentication.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Scheduler, Worker
from distributed.security import Security

from atlasseg.errors import InputError

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
"""File names in a folder of certificates."""


class _WithoutPages:
    """Mixin without the HTTP server that Dask starts in each scheduler and worker, even without a dashboard."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing."""


class PagelessScheduler(_WithoutPages, Scheduler):
    """Dask scheduler without an HTTP server."""


class PagelessWorker(_WithoutPages, Worker):
    """Dask worker without an HTTP server."""


WORKER_CLASS = f"{PagelessWorker.__module__}.{PagelessWorker.__qualname__}"
"""Import path of the worker class, for ``dask worker --worker-class``."""


def read_certificates(folder: Path) -> Security:
    """Read the certificates of a Dask cluster from a folder.

    Parameters
    ----------
    folder : path
        Holds ``ca.pem``, ``cert.pem`` and ``key.pem``, as written by `write_certificates`.

    Raises
    ------
    InputError
        A file is missing or is not a PEM file.
    """
    texts = {}
    for name in (AUTHORITY, CERTIFICATE, KEY):
        path = folder / name
        try:
            texts[name] = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a PEM file of the cluster's certificates: {error}") from error
        if "-----BEGIN " not in texts[name]:
            raise InputError(f"{path}: expected a PEM file, got a text without '-----BEGIN'.")
    return _security(texts)


@contextmanager
def temporary_certificates(parent: Path) -> Iterator[Security]:
    """Write new certificates into a temporary folder, for processes that find them there; removed on exit.

    Parameters
    ----------
    parent : path
        Folder that every process of the cluster can read, such as the home directory. The certificates in it are
        readable by your user only.
    """
    with tempfile.TemporaryDirectory(prefix=".atlasseg-certificates-", dir=parent) as name:
        write_certificates(Path(name))
        yield _security({file: str(Path(name, file)) for file in (AUTHORITY, CERTIFICATE, KEY)})


def _security(parts: Mapping[str, str]) -> Security:
    """One certificate for all roles, from the texts or the paths of its three files."""
    roles = {f"tls_{role}_cert": parts[CERTIFICATE] for role in ("client", "scheduler", "worker")}
    keys = {f"tls_{role}_key": parts[KEY] for role in ("client", "scheduler", "worker")}
    return Security(require_encryption=True, tls_ca_file=parts[AUTHORITY], **roles, **keys)


def write_certificates(folder: Path) -> None:
    """Write new certificates for a Dask cluster: ``ca.pem``, ``cert.pem`` and ``key.pem``, readable by your user only.

    Parameters
    ----------
    folder : path
        Created if it does not exist.

    Raises
    ------
    InputError
        The folder holds certificates already.
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
