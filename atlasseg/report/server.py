"""A web server for the reports of a run, for this machine alone."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from atlasseg.errors import InputError

LOCALHOST = "127.0.0.1"
PAGES = ("index.html", "comparison.html")
"""What a run's folder begins with, the first that is there."""


def first_page(out: Path) -> str:
    """Address, within `out`, of the page to begin with.

    Raises
    ------
    InputError
        There is no such folder, or no page in it.
    """
    if not out.is_dir():
        raise InputError(f"{out}: there is no such folder")
    pages = [name for name in PAGES if (out / name).is_file()] or sorted(p.name for p in out.glob("*.html"))
    if not pages:
        raise InputError(f"{out}: there is no report in it; is it the output folder of a run?")
    return quote(pages[0])


class Server(ThreadingHTTPServer):
    """Serves what is in a folder, bound to 127.0.0.1.

    Files and folders whose name begins with a dot, such as the cache, are not served, nor is anything outside the
    folder, to which a link may lead. Requests under another name than this machine's are refused, so that no web page
    can reach the server by a name of its own that leads here.

    Parameters
    ----------
    out : path
        The folder.
    port : int
        0 takes a free one.

    Raises
    ------
    InputError
        The port cannot be had.
    """

    def __init__(self, out: Path, *, port: int = 0) -> None:
        try:
            super().__init__((LOCALHOST, port), partial(_Handler, directory=str(out.resolve())))
        except OSError as error:
            raise InputError(f"port {port} cannot be had: {error.strerror or error}") from error

    def server_bind(self) -> None:
        """Bind without asking a name server who this is, as `HTTPServer` does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOCALHOST, self.socket.getsockname()[1]

    @property
    def address(self) -> str:
        """Where it is reached."""
        return f"http://{LOCALHOST}:{self.server_port}/"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, read alone."""

    def send_head(self) -> Any:
        """What is asked for, where it may be had."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in (LOCALHOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        root = Path(self.directory)
        asked = [part for part in unquote(urlsplit(self.path).path).split("/") if part]
        hidden = any(part.startswith(".") for part in asked)
        if hidden or not Path(self.translate_path(self.path)).resolve().is_relative_to(root):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> IO[bytes] | None:  # type: ignore[override]
        """No folder is listed."""
        self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def end_headers(self) -> None:
        """Pages change from run to run."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing of every file."""
