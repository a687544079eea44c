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


TOKENS = {}
"""Servers by address."""


@contextmanager
def running(out):
    with Server(out) as server:
        served = threading.Thread(target=server.serve_forever, args=[0.01])
        served.start()
        assert server.socket.getsockname()[0] == "127.0.0.1"
        TOKENS[server.socket.getsockname()] = server
        try:
            yield server.socket.getsockname()
        finally:
            server.shutdown()
            served.join()


def answer(where, path, method="GET", *, token=True, **headers):
    if token:
        place, mark, anchor = path.partition("#")
        path = f"{place}{'&' if '?' in place else '?'}token={TOKENS[where].token}{mark}{anchor}"
    return asked(where, path, method, **headers)[:2]


def asked(where, path, method="GET", **headers):
    """Status, text and headers."""
    connection = http.client.HTTPConnection(*where, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    found = connection.getresponse()
    return found.status, found.read().decode("utf-8", "replace"), found.headers


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
        for host in ("", "[", "127.0.0.1.evil.example", "evil.example:80", "0.0.0.0", "[::1]", "user@evil.example"):
            assert answer(where, "/index.html", Host=host)[0] == 403
        assert answer(where, "/index.html", Host="evil.example")[0] == 403
        assert answer(where, "/index.html", method="POST")[0] == 501


def test_where_to_begin(out, tmp_path):
    assert first_page(out) == "index.html"
    assert first_page(out / "t 1") == "t%201.html"
    with pytest.raises(InputError, match="got none"):
        first_page(out / ".cache")
    with pytest.raises(InputError, match="expected the output folder of a run, got no folder"):
        first_page(tmp_path / "none")


def test_a_port_that_is_taken(out):
    with running(out) as (_, port), pytest.raises(InputError, match=f"port {port}: expected a free port"):
        Server(out, port=port)


# ------------------------------------------------------------------------------------------------- who may read them


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/",
        "/none.html",
        "/index.html?token=",
        "/index.html?token=wrong",
        "/index.html?token=%00%ff",
        "/t%201/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_without_the_token_nothing_is_told(out, path, method):
    with running(out) as where:
        status, text, headers = asked(where, path, method)
        assert status == 403 and "<p>all" not in text
        assert headers["Set-Cookie"] is None


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "atlasseg-1=x", "{name}=", "{name}=wrong", "{name}={token}", "{name}=\xff", ";;;=;", '{name}="'],
)
def test_a_wrong_cookie_is_none(out, cookie):
    with running(out) as where:
        server = TOKENS[where]
        given = cookie.format(name=server.cookie, token=server.token)
        assert asked(where, "/index.html", Cookie=given.encode("latin-1"))[0] == 403


def test_the_first_answer_sets_a_cookie_that_opens_the_rest(out):
    with running(out) as where:
        server = TOKENS[where]
        status, text, headers = asked(where, server.url("index.html").removeprefix(f"http://127.0.0.1:{where[1]}"))
        assert (status, text) == (200, "<p>all</p>")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and server.token not in cookie
        assert headers["Referrer-Policy"] == "no-referrer"
        held = cookie.split(";")[0]
        status, text, headers = asked(where, "/t%201/t%201.html", Cookie=held)
        assert (status, text) == (200, "<p>one</p>") and headers["Set-Cookie"] is None
        assert asked(where, "/index.html", Cookie=f"a=b; {held}; c=d")[0] == 200
    with running(out) as other:
        name = TOKENS[other].cookie
        assert asked(other, "/index.html", Cookie=f"{name}={held.split('=')[1]}")[0] == 403


def test_every_server_has_a_token_of_its_own(out):
    with Server(out) as first, Server(out) as second:
        assert len({first.token, second.token, first.session, second.session}) == 4
        assert len(first.token) >= 32


@pytest.mark.parametrize(
    "path", ["/a%00b.html", "/%00", "/" + "a" * 5000, "/%ff%fe", "/%2e%2e%00", "/index.html%00.txt"]
)
def test_odd_paths_are_not_found_and_leave_the_server_in_peace(out, path, capfd):
    with running(out) as where:
        assert answer(where, path)[0] in (404, 414)
        assert answer(where, "/index.html") == (200, "<p>all</p>")
    assert not capfd.readouterr().err


def test_it_listens_on_this_machine_alone(out):
    import psutil

    with running(out) as where:
        mine = [one for one in psutil.Process().net_connections(kind="inet") if one.laddr.port == where[1]]
        assert mine and {one.laddr.ip for one in mine} == {"127.0.0.1"}
