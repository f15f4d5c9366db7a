"""Rotary position embedding in DeepSeek's interleaved layout, and YaRN.

Shape suffixes: B batch, T tokens, H heads, R rope dim.
Source: V3 report §4.3; deepseek-ai/DeepSeek-V3 inference/model.py (`precompute_freqs_cis`, `apply_rotary_emb`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from core_model.autograd import differentiable_once
from core_model.fused import fused


def correction_dim(rotations: float, dim: int, base: float, original_length: int) -> float:
    """The (fractional) pair index that turns `rotations` times within the original context."""
    return dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))


def inverse_frequencies(dim: int, base: float, scaling: dict[str, Any] | None) -> Tensor:
    """Angular frequency of each rotated pair, fp32 [R/2].

    With YaRN, pairs that turn more than `beta_fast` times in the original context keep their frequency, pairs that
    turn less than `beta_slow` times are slowed by `factor`, and those between are interpolated linearly.
    """
    freqs = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return freqs
    original = scaling["original_max_position_embeddings"]
    low = max(math.floor(correction_dim(scaling.get("beta_fast", 32), dim, base, original)), 0)
    high = min(math.ceil(correction_dim(scaling.get("beta_slow", 1), dim, base, original)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return freqs / scaling["factor"] * ramp + freqs * (1 - ramp)


def yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_scale(qk_head_dim: int, scaling: dict[str, Any] | None) -> float:
    """1/sqrt(qk_head_dim), times m^2 under YaRN (V3: 0.0721687836 -> 0.1352337789)."""
    scale = qk_head_dim**-0.5
    if scaling is not None and scaling.get("mscale_all_dim"):
        scale *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def amplitude(scaling: dict[str, Any] | None) -> float:
    """Factor on cos and sin: 1 in V3, whose mscale equals mscale_all_dim."""
    if scaling is None:
        return 1.0
    factor = scaling["factor"]
    return yarn_mscale(factor, scaling.get("mscale", 1.0)) / yarn_mscale(factor, scaling.get("mscale_all_dim", 0.0))


def rotations(position_ids: Tensor, inv_freq: Tensor, scale: float = 1.0) -> Tensor:
    """position_ids [B, T] -> scale * exp(i * angle), complex64 [B, T, R/2]."""
    angles = position_ids[..., None].float() * inv_freq
    return torch.polar(torch.full_like(angles, scale), angles)


def rotate(x_BTHR: Tensor, rotations_BTR: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of the last dimension; computed in fp32, returned in x's dtype."""
    return _turned(x_BTHR, torch.view_as_real(rotations_BTR))


def _turned(x_BTHR: Tensor, turns_BTR2: Tensor) -> Tensor:
    pairs, turns_BT1R2 = x_BTHR.float().unflatten(-1, (-1, 2)), turns_BTR2.unsqueeze(2)
    if torch.compiler.is_compiling():  # which makes no kernels of complex numbers
        (x, y), (cos, sin) = pairs.unbind(-1), turns_BT1R2.unbind(-1)
        turned = torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)
    else:
        *strides, last = pairs.stride()
        if last != 1 or pairs.storage_offset() % 2 or any(stride % 2 for stride in strides):
            # Laid out so that memory holds no complex numbers.
            pairs = pairs.clone(memory_format=torch.contiguous_format)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns_BT1R2))
    return turned.flatten(-2).to(x_BTHR.dtype)


@fused
def rotated_tail(x_BTHd: Tensor, turns_BTR2: Tensor) -> Tensor:
    """`rotate_tail`, the rotations as pairs of real numbers."""
    width = 2 * turns_BTR2.shape[2]
    head, tail = x_BTHd.split([x_BTHd.shape[-1] - width, width], dim=-1)
    return torch.cat((head, _turned(tail, turns_BTR2)), dim=-1)


class _RotatedTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTHd: Tensor, rotations_BTR: Tensor) -> Tensor:
        ctx.save_for_backward(rotations_BTR)
        return rotated_tail(x_BTHd, torch.view_as_real(rotations_BTR))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rotations_BTR,) = ctx.saved_tensors
        return rotated_tail(grads[0], torch.view_as_real(rotations_BTR.conj_physical())), None


def rotate_tail(x_BTHd: Tensor, rotations_BTR: Tensor) -> Tensor:
    """x [B, T, H, d] with the last R numbers of each head rotated, those before them as they are."""
    return _RotatedTail.apply(x_BTHd, rotations_BTR)
