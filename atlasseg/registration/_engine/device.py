"""Which machine the inner loops run on."""

from __future__ import annotations

import importlib.util
import logging
from typing import Literal

from atlasseg.errors import InputError, MissingLibraryError

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]


def chosen(device: str) -> Literal["cpu", "cuda"]:
    """Say "cuda" where it is asked for or where "auto" finds one that torch can use; else "cpu", the compiled kernels.

    Raises
    ------
    InputError
        CUDA is asked for and there is none, or the name is unknown.
    MissingLibraryError
        CUDA is asked for and torch is not installed.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cpu":
        return "cpu"
    if importlib.util.find_spec("torch") is None:
        if device == "cuda":
            raise MissingLibraryError("device='cuda' needs torch: pip install 'atlasseg[torch]'")
        return "cpu"
    import torch

    if torch.cuda.is_available():
        if device == "auto":
            logger.info("registering on %s", torch.cuda.get_device_name())
        return "cuda"
    if device == "cuda":
        raise InputError(f"device='cuda' was asked for, but torch {torch.__version__} finds no CUDA device")
    return "cpu"
