"""Web server for the reports of a run. Only this user on this machine can read them."""

from __future__ import annotations

import hmac
import secrets
import sys
from functools import partial
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import IO, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from atlasseg.errors import InputError

LOCALHOST = "127.0.0.1"
PAGES = ("index.html", "comparison.html")
"""Start pages of a run's folder. The first that exists is opened."""


def first_page(out: Path) -> str:
    """Find the start page: its address relative to `out`.

    Raises
    ------
    InputError
        The folder does not exist, or has no page.
    """
    if not out.is_dir():
        raise InputError(f"{out}: expected the output folder of a run, got no folder")
    pages = [name for name in PAGES if (out / name).is_file()] or sorted(p.name for p in out.glob("*.html"))
    if not pages:
        raise InputError(f"{out}: expected a report ({' or '.join(PAGES)}), got none. Give the output folder of a run.")
    return quote(pages[0])


class Server(ThreadingHTTPServer):
    """HTTP server of one folder, bound to 127.0.0.1. Every request needs the server's token.

    Other users of the machine can reach the port too. The token is given in the address, as
    ``?token=...`` (see :meth:`url`), or in the cookie that the first response sets.

    Files and folders whose name begins with a dot, such as the cache, are not served. Links that lead outside the
    folder are not followed. Requests under another host name are refused, so that no web page
    can reach the server through a name that resolves to 127.0.0.1.

    Parameters
    ----------
    out : path
        The folder.
    port : int
        Port; 0 takes a free port.

    Raises
    ------
    InputError
        The port is not available.
    """

    daemon_threads = True

    def __init__(self, out: Path, *, port: int = 0) -> None:
        self.token, self.session = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        try:
            super().__init__((LOCALHOST, port), partial(_Handler, directory=str(out.resolve())))
        except OSError as error:
            raise InputError(f"port {port}: expected a free port, got: {error.strerror or error}") from error

    def server_bind(self) -> None:
        """Bind without the DNS query that `HTTPServer` makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOCALHOST, self.socket.getsockname()[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections of browsers; report other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def url(self, page: str = "") -> str:
        """Address of a page, with the token."""
        return f"http://{LOCALHOST}:{self.server_port}/{page}?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie. It contains the port, since the ports of a host share their cookies."""
        return f"atlasseg-{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    """Request handler that reads files of one folder."""

    server: Server
    timeout = 60
    _welcome = False

    def send_head(self) -> Any:
        """Send the head of the requested file if the request is allowed."""
        if not self._is_addressed_rightly() or not self._is_allowed():
            self.send_error(HTTPStatus.FORBIDDEN, explain="Open the address that atlasseg view printed.")
            return None
        if not self._is_served():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def _is_addressed_rightly(self) -> bool:
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        return host in (LOCALHOST, "localhost")

    def _is_allowed(self) -> bool:
        """Whether the request has the token, or the cookie of an earlier one that had it."""
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if _same(given, self.server.token):
            self._welcome = True
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self.server.session)

    def _is_served(self) -> bool:
        """Whether the path is in the folder and no part of it is hidden."""
        asked = [part for part in unquote(urlsplit(self.path).path).split("/") if part]
        try:
            inside = Path(self.translate_path(self.path)).resolve().is_relative_to(Path(self.directory))
        except (OSError, ValueError):  # a NUL, or a name that is too long
            return False
        return inside and not any(part.startswith(".") for part in asked)

    def list_directory(self, path: Any) -> IO[bytes] | None:  # type: ignore[override]
        """Refuse to list a folder."""
        self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def end_headers(self) -> None:
        """Forbid caching, framing by other pages, and sending the address to other pages."""
        if self._welcome:
            self._welcome = False
            attributes = "HttpOnly; SameSite=Strict; Path=/"
            self.send_header("Set-Cookie", f"{self.server.cookie}={self.server.session}; {attributes}")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Do not log requests."""


def _same(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
