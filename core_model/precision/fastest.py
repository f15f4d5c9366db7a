"""Which dtype products are fastest in where this process runs."""

from __future__ import annotations

import torch


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the processor multiplies it, else fp32.

    Without bf16 products (AVX2 alone, say) a CPU takes twelve times as long for a training step in bf16 as in fp32
    (LABBOOK.md).
    """
    if device.type == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.float32
    return torch.bfloat16
