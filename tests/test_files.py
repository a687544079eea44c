"""Folders that are read again carry the digests of their files: no damage is taken for content."""

import shutil
import subprocess

import numpy as np
import pytest

from atlasseg.errors import InputError
from atlasseg.files import SEAL, check_seal, seal

NAMES = ("a/one.bin", "two.json")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "sealed"
    (root / "a").mkdir(parents=True)
    (root / "a/one.bin").write_bytes(bytes(range(200)))
    (root / "two.json").write_text('{"format": 1}')
    seal(root, NAMES)
    return root


def test_a_whole_folder_passes_and_sha256sum_agrees(folder):
    check_seal(folder, NAMES, remedy="make it again")
    (folder / "notes.txt").write_text("files of one's own do no harm")
    check_seal(folder, NAMES, remedy="make it again")
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", SEAL], cwd=folder, check=True)


def test_what_is_missing_or_was_never_sealed_is_named(folder):
    with pytest.raises(InputError, match=r"three.bin: not among the files named in SHA256SUMS: make it again"):
        check_seal(folder, [*NAMES, "three.bin"], remedy="make it again")
    (folder / "two.json").unlink()
    with pytest.raises(InputError, match=r"two.json: missing or unreadable: make it again"):
        check_seal(folder, NAMES, remedy="make it again")
    (folder / SEAL).unlink()
    with pytest.raises(InputError, match=r"SHA256SUMS: cannot be read"):
        check_seal(folder, NAMES, remedy="make it again")


def test_no_damage_passes(folder):
    """Flips, truncations and swaps in every file, the digests' own included."""
    rng = np.random.default_rng(3)
    paths = [folder / name for name in (*NAMES, SEAL)]
    whole = {path: path.read_bytes() for path in paths}
    for n in range(3000):
        path = paths[n % 3]
        content = bytearray(whole[path])
        start = int(rng.integers(len(content)))
        if n // 3 % 3 == 0:
            content[start] ^= 1 << rng.integers(8)
        elif n // 3 % 3 == 1:
            del content[start:]
        else:
            content = bytearray(whole[paths[(n + 1) % 3]])
        path.write_bytes(content)
        if content.strip() != whole[path].strip():
            with pytest.raises(InputError, match="make it again"):
                check_seal(folder, NAMES, remedy="make it again")
        path.write_bytes(whole[path])
    check_seal(folder, NAMES, remedy="make it again")
