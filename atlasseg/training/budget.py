"""What a training may take, where nothing else is said."""

from __future__ import annotations

import re

from atlasseg.errors import InputError

CPU_BYTES, CPU_STEP_FLOPS = 4 * 2**30, 6e10
GPU_SHARE, GPU_STEP_FLOPS = 0.8, 4e12


def budget(device: str, memory_bytes: float | None = None, step_flops: float | None = None) -> tuple[float, float]:
    """Bytes and operations that a step may take; by default what a core does in about two seconds, a GPU in less."""
    if device != "cuda":
        return memory_bytes or CPU_BYTES, step_flops or CPU_STEP_FLOPS
    import torch

    whole = torch.cuda.get_device_properties(0).total_memory  # not what is free, so that a resumed training plans alike
    return memory_bytes or GPU_SHARE * whole, step_flops or GPU_STEP_FLOPS


def parse_bytes(text: str) -> float:
    """Bytes of ``"8GB"``, ``"500 MB"`` or ``"7.5GiB"`` (of 1024 each).

    Raises
    ------
    InputError
        It is not written so.

    Examples
    --------
    >>> parse_bytes("8GB") == 8 * 2**30
    True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"expected an amount of memory such as 8GB, got {text!r}")
    return float(match[1]) * 1024.0 ** ("KMGT".index(match[2].upper()) + 1)
