"""In how many bits a network is computed."""

from __future__ import annotations

import torch


def fast_half(device: str) -> torch.dtype | None:
    """The 16 bits in which a device multiplies faster than in 32, if there are such."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
