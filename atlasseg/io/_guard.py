"""Run file parsers written in C in a child process, because damaged files can crash them.

The child returns its arrays in a NumPy file (nothing is unpickled), and an error as a line of text. Its time is
limited, and its memory too on systems that support it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasseg.errors import InputError

TIMEOUT_S = 120.0
_REFUSED = 3  # exit status of a child that says why
_MEMORY_PER_BYTE = 200  # of its files; what a transform or slices take in memory
_MEMORY_FREE = 2 << 30
_MEMORY_BLOWN = ("MemoryError", "bad_alloc", "Cannot allocate", "Failed to allocate")


def run_guarded(task: str, paths: Sequence[Path], *, timeout_s: float = TIMEOUT_S) -> dict[str, NDArray[Any]]:
    """Run a task of :mod:`atlasseg.io._guarded` on files in a child process.

    Parameters
    ----------
    task : {"transform", "image", "dicom"}
    paths : sequence of Path
    timeout_s : float
        Seconds after which the child is killed.

    Returns
    -------
    dict of str to array

    Raises
    ------
    InputError
        The child refused the files, crashed, or took too long. The message names the first file.
    """
    first = paths[0]
    with tempfile.TemporaryDirectory(prefix="atlasseg-") as folder:
        out = Path(folder) / "arrays.npz"
        memory = _MEMORY_FREE + _MEMORY_PER_BYTE * sum(path.stat().st_size for path in paths)
        command = [sys.executable, "-m", "atlasseg.io._guarded", task, str(memory), str(out)]
        roots = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        try:
            done = subprocess.run(
                command,
                input="\0".join(str(path) for path in paths).encode(errors="surrogateescape"),
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots)), "OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{first}: reading it took more than {timeout_s:g} seconds: the file is damaged. "
                "Copy or write it again."
            ) from error
        message = done.stdout.decode(errors="replace").strip()
        if done.returncode == _REFUSED and message:
            raise InputError(message if str(first) in message else f"{first}: {message}")
        if done.returncode != 0:
            trouble = done.stderr.decode(errors="replace")
            raise InputError(f"{first}: {_describe_crash(done.returncode, trouble)} Copy or write it again.")
        with np.load(out, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _describe_crash(status: int, trouble: str) -> str:
    if any(word in trouble for word in _MEMORY_BLOWN):
        return "the file is damaged: reading it needs more memory than its size allows."
    if status < 0:
        with_name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"the file is damaged: its reader crashed ({with_name})."
    lines = [line.strip() for line in trouble.splitlines() if line.strip()]
    return f"the file cannot be read: {lines[-1] if lines else f'its reader ended with status {status}'}."
