"""Where to compute: on a CUDA GPU, or on the processor."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import sys
from typing import Literal

from atlasseg.errors import InputError, MissingLibraryError

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


def resolved(device: Device) -> Literal["cpu", "cuda"]:
    """Where 'auto' leads; the others as they are.

    Raises
    ------
    InputError
        There is no such device, or no CUDA GPU where one is asked for by name.
    MissingLibraryError
        'cuda' is asked for by name, and torch is not installed.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cpu" or (device == "auto" and not (_driver_present() and _torch_present())):
        return "cpu"
    if not _torch_present():
        raise MissingLibraryError("device 'cuda' needs torch: pip install 'atlasseg[torch]'")
    import torch

    if torch.cuda.is_available():
        if device == "auto":
            log.info("computing on %s", torch.cuda.get_device_name())
        return "cuda"
    if device == "cuda":
        raise InputError("device 'cuda' was asked for, but torch finds no CUDA GPU; use 'auto' or 'cpu'")
    return "cpu"


def _torch_present() -> bool:
    return importlib.util.find_spec("torch") is not None


def _driver_present() -> bool:
    """Whether NVIDIA's driver is there: asked before torch is imported, which takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
