import http.client
import threading
from contextlib import contextmanager

import pytest

from atlasseg.errors import InputError
from atlasseg.report.server import Server, first_page


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    (folder / "t 1").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / "index.html").write_text("<p>all</p>")
    (folder / "t 1" / "t 1.html").write_text("<p>one</p>")
    (folder / ".cache" / "kept").write_text("kept")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@contextmanager
def running(out):
    with Server(out) as server:
        served = threading.Thread(target=server.serve_forever, args=[0.01])
        served.start()
        assert server.socket.getsockname()[0] == "127.0.0.1"
        try:
            yield server.socket.getsockname()
        finally:
            server.shutdown()
            served.join()


def answer(where, path, method="GET", **headers):
    connection = http.client.HTTPConnection(*where, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    found = connection.getresponse()
    return found.status, found.read().decode("utf-8", "replace")


def test_pages_are_served(out):
    with running(out) as where:
        assert answer(where, "/index.html") == (200, "<p>all</p>")
        assert answer(where, "/") == (200, "<p>all</p>")
        assert answer(where, "/t%201/t%201.html?x=1#y") == (200, "<p>one</p>")
        assert answer(where, "/index.html", Host="localhost:1") == (200, "<p>all</p>")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/t%201/../../secret.txt",
        "/%2e%2e/secret.txt",
        "//secret.txt",
        "/link.txt",
        "/.cache/kept",
        "/t%201/",
        "/t%201",
        "/none.html",
    ],
)
def test_nothing_else_is(out, path):
    with running(out) as where:
        status, text = answer(where, path)
        assert status in (301, 404)
        assert "secret" not in text and "kept" not in text and "one" not in text


def test_only_this_machine_by_its_own_name_may_ask(out):
    with running(out) as where:
        assert answer(where, "/index.html", Host="evil.example")[0] == 403
        assert answer(where, "/index.html", method="POST")[0] == 501


def test_where_to_begin(out, tmp_path):
    assert first_page(out) == "index.html"
    assert first_page(out / "t 1") == "t%201.html"
    with pytest.raises(InputError, match="no report"):
        first_page(out / ".cache")
    with pytest.raises(InputError, match="no such folder"):
        first_page(tmp_path / "none")


def test_a_port_that_is_taken(out):
    with running(out) as (_, port), pytest.raises(InputError, match=f"port {port} cannot be had"):
        Server(out, port=port)
