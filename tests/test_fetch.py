"""Public datasets from a server on this machine: laid out, gone on with where it broke, refused where it is damaged."""

import hashlib
import io as bytes_io
import json
import re
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from atlasseg import io, phantoms
from atlasseg.atlases import fetching
from atlasseg.atlases.library import read_library, read_targets
from atlasseg.cli import app
from atlasseg.errors import InputError
from atlasseg.volume import Image, LabelMap


class Server(ThreadingHTTPServer):
    """Serves one file; breaks off after `breaks` bytes of an answer as often as that list is long."""

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.breaks, self.asked, self.ranges, self.missing = body, [], [], True, False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/Task04_Hippocampus.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.end_headers()
            return
        if server.missing:
            self.send_error(404)
            return
        part = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: server.breaks.pop(0)] if server.breaks else part)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Bytes of a tar file like the Decathlon's: two labelled scans, one without labels, what macOS leaves behind."""
    folder = tmp_path_factory.mktemp("decathlon")
    grid = phantoms.tilted_grid((7, 9, 5), spacing_mm=(1.0, 1.5, 2.0), angles_degrees=(5, -3, 8), axes="LAS")
    rng = np.random.default_rng(0)
    out = bytes_io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for place, name in (("Tr", "hippocampus_001"), ("Tr", "hippocampus_002"), ("Ts", "hippocampus_003")):
            scan = folder / f"{name}.nii.gz"
            io.write_image(Image(rng.normal(100, 20, grid.shape).astype(np.float32), grid.affine), scan)
            tar.add(scan, f"Task04_Hippocampus/images{place}/{name}.nii.gz")
            stray = tarfile.TarInfo(f"Task04_Hippocampus/images{place}/._{name}.nii.gz")
            tar.addfile(stray, bytes_io.BytesIO(b""))
            if place == "Tr":
                io.write_label_map(LabelMap(rng.integers(0, 3, grid.shape).astype(np.int32), grid.affine), scan)
                tar.add(scan, f"Task04_Hippocampus/labels{place}/{name}.nii.gz")
        description = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
        add(tar, "Task04_Hippocampus/dataset.json", json.dumps(description).encode())
    return out.getvalue()


def add(tar, name, content, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, bytes_io.BytesIO(content))


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setattr(fetching._Resuming, "BLOCK", 100)
    with Server(archive) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def dataset(server, body=None):
    md5 = hashlib.md5(server.body if body is None else body).hexdigest()
    return replace(fetching.DATASETS["hippocampus"], url=server.url, checksum=f"md5:{md5}")


def test_a_dataset_becomes_a_library_with_its_licence_and_nothing_else_remains(server, tmp_path):
    told = []
    fetching.fetch(dataset(server), tmp_path / "hc", told=lambda here, whole: told.append((here, whole)))
    assert [path.name for path in tmp_path.iterdir()] == ["hc"]
    library = read_library(tmp_path / "hc" / "atlases")
    assert library.ids == ("hippocampus_001", "hippocampus_002")
    assert [(label.value, label.name) for label in library.table] == [(1, "Anterior"), (2, "Posterior")]
    assert library.read("hippocampus_001").image.shape == (7, 9, 5)
    assert [target.id for target in read_targets(tmp_path / "hc" / "targets")] == ["hippocampus_003"]
    licence = (tmp_path / "hc" / "LICENSE.txt").read_text("utf-8")
    assert "CC BY-SA 4.0" in licence and server.url in licence and "Decathlon" in licence
    assert told[-1] == (len(server.body), len(server.body))


def test_a_broken_download_is_gone_on_with_by_itself(server, tmp_path):
    server.breaks = [1000, 700]
    fetching.fetch(dataset(server), tmp_path / "hc")
    assert server.asked == [None, "bytes=1000-", "bytes=1700-"]
    assert len(read_library(tmp_path / "hc" / "atlases")) == 2


def test_a_download_that_was_given_up_is_gone_on_with_by_the_next_call(server, tmp_path):
    server.breaks = [1000, 0]
    with pytest.raises(InputError, match=r"0\.0 MB are kept\. Run the same command to resume"):
        fetching.fetch(dataset(server), tmp_path / "hc")
    assert not (tmp_path / "hc").exists()
    server.asked.clear()
    fetching.fetch(dataset(server), tmp_path / "hc")
    assert server.asked == ["bytes=1000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["hc"]


def test_all_that_was_kept_is_used_though_the_server_has_no_more_of_it(server, tmp_path):
    (tmp_path / ".hc.tar.begun").write_bytes(server.body)
    fetching.fetch(dataset(server), tmp_path / "hc")
    assert server.asked == [f"bytes={len(server.body)}-"] and (tmp_path / "hc").is_dir()


def test_a_server_that_does_not_go_on_sends_it_all_again(server, tmp_path):
    server.breaks, server.ranges = [1000], False
    fetching.fetch(dataset(server), tmp_path / "hc")
    assert len(server.asked) == 2 and len(read_library(tmp_path / "hc" / "atlases")) == 2


def test_a_damaged_archive_is_refused_and_nothing_remains(server, tmp_path):
    wanted = dataset(server)
    server.body = server.body[:2000] + bytes([server.body[2000] ^ 1]) + server.body[2001:]
    with pytest.raises(InputError, match=rf"{server.url}: expected .*{wanted.checksum}.*, got another file"):
        fetching.fetch(wanted, tmp_path / "hc")
    assert not list(tmp_path.iterdir())


def test_a_server_that_has_no_such_file_or_is_not_there_is_named(server, tmp_path):
    wanted = dataset(server)
    server.missing = True
    with pytest.raises(InputError, match=rf"{server.url}: expected a download, got: 404"):
        fetching.fetch(wanted, tmp_path / "hc")
    nobody = replace(wanted, url="http://127.0.0.1:9/none.tar")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/none.tar: expected a download"):
        fetching.fetch(nobody, tmp_path / "hc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["escape", "link", "no tar", "empty"])
def test_an_archive_of_other_content_leaves_nothing(server, tmp_path, kind):
    out = bytes_io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        if kind == "escape":
            add(tar, "../../imagesTr/../../../escaped.nii.gz", b"x")
            add(tar, "/imagesTr/..nii.gz", b"x")
        elif kind == "link":
            add(tar, "T/imagesTr/a.nii.gz", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
            add(tar, "T/dataset.json", b'{"labels": {"1": "a"}}')
    server.body = b"no tar at all" * 50 if kind == "no tar" else out.getvalue()
    with pytest.raises(InputError, match=r"expected a readable archive|expected an archive of"):
        fetching.fetch(dataset(server), tmp_path / "deep" / "hc")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "hc").mkdir()
    with pytest.raises(InputError, match="hc: expected a new folder"):
        fetching.fetch(fetching.DATASETS["hippocampus"], tmp_path / "hc")


def test_what_there_is_has_a_licence_and_a_published_checksum():
    for each in fetching.DATASETS.values():
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", each.checksum)
        assert (
            each.url.startswith("https://") and each.licence and each.licence_url and each.cite and each.checksum_from
        )


def test_the_command_lists_and_fetches(server, tmp_path, monkeypatch):
    listed = CliRunner().invoke(app, ["fetch"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0 and "hippocampus" in listed.output and "CC BY-SA 4.0" in listed.output
    unknown = CliRunner().invoke(app, ["fetch", "hipocampus"])
    assert unknown.exit_code == 2 and "did you mean 'hippocampus'?" in unknown.output
    monkeypatch.setitem(fetching.DATASETS, "hippocampus", dataset(server))
    done = CliRunner().invoke(app, ["fetch", "hippocampus", "--out", str(tmp_path / "hc")])
    assert done.exit_code == 0, done.output
    assert "licence: CC BY-SA 4.0" in done.output and (tmp_path / "hc" / "LICENSE.txt").is_file()
