"""Numerical precision of a network."""

from __future__ import annotations

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """Choose bfloat16 if the device multiplies faster in 16 bits than in 32, otherwise None."""
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if fast else None
