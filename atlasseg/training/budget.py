"""Limits of memory and computation for a training step."""

from __future__ import annotations

import re

from atlasseg.errors import InputError

CPU_BYTES, CPU_STEP_FLOPS = 4 * 2**30, 6e10
GPU_SHARE, GPU_STEP_FLOPS = 0.8, 4e12


def budget(device: str, memory_bytes: float | None = None, step_flops: float | None = None) -> tuple[float, float]:
    """Limits of a training step: bytes and floating-point operations. Default: about two seconds of one core."""
    if device != "cuda":
        return memory_bytes or CPU_BYTES, step_flops or CPU_STEP_FLOPS
    import torch

    whole = torch.cuda.get_device_properties(
        0
    ).total_memory  # not the free memory, so that a resumed training has the same plan
    return memory_bytes or GPU_SHARE * whole, step_flops or GPU_STEP_FLOPS


def parse_bytes(text: str) -> float:
    """Convert ``"8GB"``, ``"500 MB"`` or ``"7.5GiB"`` to bytes; 1 KB is 1024 bytes.

    Raises
    ------
    InputError
        The text is no amount of memory.

    Examples
    --------
    >>> parse_bytes("8GB") == 8 * 2**30
    True
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"memory: expected an amount such as 8GB, got {text!r}")
    return float(match[1]) * 1024.0 ** ("KMGT".index(match[2].upper()) + 1)
