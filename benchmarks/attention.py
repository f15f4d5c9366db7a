"""MLA's unequal widths on this device: our seam against SDPA on the values as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import BenchmarkRow, compare
from core_model.attention_kernels import scaled_dot_product
from core_model.parallel.device import training_device

CASES = ((32, 256, 2, 48, 32), (8, 1024, 4, 48, 32), (1, 2048, 8, 192, 128))  # batch, length, heads, qk, v


def run() -> Iterator[BenchmarkRow]:
    """Forward and backward, causal, bf16; rates in thousands of tokens a second."""
    for batch, length, heads, width, value in CASES:
        yield _case(batch, length, heads, width, value)


def _case(batch: int, length: int, heads: int, width: int, value: int) -> BenchmarkRow:
    device = training_device()

    def draw(size: int) -> Tensor:
        return torch.randn(batch, length, heads, size, dtype=torch.bfloat16, device=device, requires_grad=True)

    q, k, v = draw(width), draw(width), draw(value)
    grad = torch.randn(batch, length, heads, value, dtype=torch.bfloat16, device=device)
    scale = width**-0.5

    def ours() -> None:
        scaled_dot_product(q, k, v, scale, None).backward(grad)

    def plain() -> None:
        q_BHTd, k_BHTd, v_BHTV = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTV, is_causal=True, scale=scale)
        out.transpose(1, 2).backward(grad)

    name = f"batch {batch}, length {length}, {heads} heads, qk {width}, v {value}"
    return compare(name, "k tokens/s", batch * length / 1000, ours, plain, "SDPA, values unpadded")
