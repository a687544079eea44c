"""5,000 damaged files of every format: each is read rightly or refused by an InputError, within a bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILES, PARTS = 5000, 4
PEAK_MB = 700
"""Most that a process may take, libraries included; what is 300 MB beyond them is refused by the system."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded by /proc and setrlimit")
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_are_read_rightly_or_refused(tmp_path, part):
    first, last = part * FILES // PARTS, (part + 1) * FILES // PARTS
    folder = tmp_path / "files"
    folder.mkdir()
    script = Path(__file__).with_name("_fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(first), str(last)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["read"] > (last - first) // 5 and found["refused"] > (last - first) // 2
    assert found["peak_mb"] < PEAK_MB
