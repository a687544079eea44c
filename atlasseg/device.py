"""Compute devices: a CUDA GPU, or the processor."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import sys
from typing import Literal

from atlasseg.errors import InputError, MissingLibraryError

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """Resolve a device name: 'auto' becomes 'cuda' if torch finds a CUDA GPU, else 'cpu'.

    Raises
    ------
    InputError
        The device is unknown, or is 'cuda' and torch finds no CUDA GPU.
    MissingLibraryError
        The device is 'cuda', and torch is not installed.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"expected the device 'auto', 'cpu' or 'cuda', got {device!r}")
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
        raise InputError("device 'cuda': torch finds no CUDA GPU. Use 'auto' or 'cpu'.")
    return "cpu"


def _torch_present() -> bool:
    return importlib.util.find_spec("torch") is not None


def _driver_present() -> bool:
    """Whether NVIDIA's driver is installed. This check avoids the import of torch, which takes seconds."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
