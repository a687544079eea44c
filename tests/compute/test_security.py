"""What a run starts listens on the loopback interface alone, and answers nobody without the run's certificate."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from distributed.comm import connect as connect_comm
from distributed.security import Security

from atlasseg.compute.secure import PagelessScheduler, read_certificates, write_certificates
from atlasseg.compute.workers import Workers, connect
from atlasseg.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

INTRUDER = """
import encodings.idna, json, os, socket, ssl, sys  # all now: nobody may not be able to read them
port = int(sys.argv[1])
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)  # nobody

def answer(wrap):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.settimeout(10)
            link = wrap(plain)
            link.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n" + bytes(64))
            return link.recv(4096)
    except OSError:  # refused; errors of TLS are among them
        return b""

def tls(plain):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)

print(json.dumps([os.getuid(), answer(lambda plain: plain).hex(), answer(tls).hex()]))
"""
"""Another user, who tries a port in the clear and by TLS without a certificate, and prints what comes back."""


def listening(process):
    """The sockets on which a process or one that it started listens: process name, address, port."""
    tree = [process, *process.children(recursive=True)]
    found = set()
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            for connection in each.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((each.pid, connection.laddr.ip, connection.laddr.port))
    return found


def intruder(port):
    done = subprocess.run(
        [sys.executable, "-I", "-c", INTRUDER, str(port)], capture_output=True, text=True, timeout=60, check=True
    )
    uid, plain, tls = json.loads(done.stdout)
    return uid, bytes.fromhex(plain), bytes.fromhex(tls)


@pytest.mark.posix
def test_every_socket_of_a_run_refuses_another_user(tmp_path, dataset):
    """The command itself, with two workers: at least three sockets, and none that answers."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[data]\natlases = "{dataset / "atlases"}"\ntargets = "{dataset / "targets"}"\nout = "out"\n'
        '[registration]\nsteps = ["rigid", "diffeomorphic"]\n[fusion]\nmethod = "majority"\n'
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "atlasseg", "run", str(recipe), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process, tried = psutil.Process(run.pid), {}
    try:
        deadline = time.monotonic() + 300
        while run.poll() is None and len(tried) < 5 and time.monotonic() < deadline:
            for pid, address, port in listening(process):
                assert address in ("127.0.0.1", "::1"), f"process {pid} listens on {address}:{port}"
                if port not in tried:
                    tried[port] = intruder(port)
            time.sleep(0.1)
        assert run.poll() is None, f"the run ended before its sockets were seen:\n{run.communicate()[0]}"
    finally:
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        run.communicate()
    assert len(tried) == 5, "a scheduler, two workers' nannies and two workers should listen"
    for port, (uid, plain, tls) in tried.items():
        assert uid == 65534 or os.getuid() != 0
        # in the clear a TLS server says at most that it wants TLS (an alert of 7 bytes), never HTTP or Dask's own words
        assert len(plain) <= 7 and tls == b"", (port, plain, tls)


def test_a_foreign_certificate_is_refused():
    with connect(Workers(jobs=2), memory_bytes=1e6, gpu=False) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(int, "7").result(timeout=60) == 7
        with pytest.raises(OSError, match=r"(?i)certificate|closed|reset|alert"):
            asyncio.run(asked(address, Security.temporary()))
        with pytest.raises(OSError):
            asyncio.run(asked(address.replace("tls://", "tcp://"), Security()))


async def asked(address, security):
    """What a scheduler answers, by Dask's own protocol, to who it is."""
    link = await connect_comm(
        address, timeout=5, **security.get_connection_args("client") if security.tls_ca_file else {}
    )
    try:
        await link.write({"op": "identity", "reply": True})
        return await link.read()
    finally:
        link.abort()


def test_a_cluster_of_ones_own_with_certificates(tmp_path):
    """`atlasseg certificates`, a scheduler started with them, and a run's client."""
    from distributed import SpecCluster

    folder = tmp_path / "certificates"
    write_certificates(folder)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    with pytest.raises(InputError, match=r"ca\.pem: exists already"):
        write_certificates(folder)
    security = read_certificates(folder)
    options = {"host": "127.0.0.1", "protocol": "tls", "security": security, "dashboard": False}
    with SpecCluster(scheduler={"cls": PagelessScheduler, "options": options}, security=security) as cluster:
        address = cluster.scheduler_address
        with connect(Workers(scheduler=address, certificates=folder), memory_bytes=1, gpu=False) as client:
            assert client.scheduler_info()["address"] == address
        with (
            pytest.raises(InputError, match=r"expected certificates, got none\. Give --certificates DIR"),
            connect(Workers(scheduler=address), memory_bytes=1, gpu=False),
        ):
            pass


def test_certificates_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"ca\.pem: expected a PEM file of the cluster's certificates"):
        read_certificates(tmp_path)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match="got a text without '-----BEGIN'"):
        read_certificates(tmp_path)
    with pytest.raises(InputError, match="certificates need a running scheduler"):
        Workers(certificates=tmp_path)
