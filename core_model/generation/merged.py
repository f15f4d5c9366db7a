"""What decoding over the latent cache is made of: a step's inputs, and MLA's weights as it wants them.

Projections of one input lie side by side, and an up-projection is merged with what precedes or follows it where that
saves work. Shape suffixes: B rows, T tokens a row, S cached positions, D model, H heads, N no-rope dim, R rope dim,
V value dim, C kv latent, Q query latent (D where queries come from the states themselves).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from core_model import rope
from core_model.attention import MultiHeadLatentAttention
from core_model.cache import LatentCache
from core_model.norm import RMSNorm

# Merged up-projections may take as many times the multiplications of the two that they replace.
MERGED_WORK = 2.0


@dataclass(frozen=True)
class Step:
    """What all layers of one forward share. position_ids [B, T], one after the other in a row; inv_freq [R/2] and
    amplitude are RoPE's; shared: what a kernel works out in the first layer for all of them."""

    cache: LatentCache
    position_ids: Tensor
    inv_freq: Tensor
    amplitude: float
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def rotations(self) -> Tensor:
        """complex64 [B, T, 1, R/2]."""
        return rope.rotations(self.position_ids, self.inv_freq, self.amplitude).unsqueeze(2)

    @cached_property
    def mask(self) -> Tensor | None:
        """fp32 [B, T, 1, S], -inf on positions that a query may not see; None where every query sees all."""
        return self.cache.mask()


@dataclass(frozen=True)
class MergedAttention:
    """fp32; matrices are [out, in].

    down: [Q + C + R, D], or [C + R, D] with query_width 0. queries, times the scale of the scores: [H * (C + R), Q], or
    [H * (N + R), Q] followed by up_k [H, C, N]. out: [D, H * C], or [D, H * V] preceded by up_v [H, V, C].
    """

    heads: int
    latent: int
    rope: int
    nope: int
    value: int
    query_width: int
    query_norm: RMSNorm | None
    latent_norm: RMSNorm
    down: Tensor
    queries: Tensor
    up_k: Tensor | None
    up_v: Tensor | None
    out: Tensor

    @classmethod
    def of(cls, source: MultiHeadLatentAttention) -> MergedAttention:
        """From the weights as they are now."""
        up_HXC = source.kv_b_proj.weight.float().view(source.heads, -1, source.latent)
        up_k_HNC, up_v_HVC = up_HXC[:, : source.nope], up_HXC[:, source.nope :]
        down = down_kv = source.kv_a_proj_with_mqa.weight.float()
        if hasattr(source, "q_proj"):
            query_norm, queries = None, source.q_proj.weight
        else:
            query_norm, queries = source.q_a_layernorm, source.q_b_proj.weight
            down = torch.cat((source.q_a_proj.weight.float(), down_kv))
        queries_HXQ = queries.float().view(source.heads, source.nope + source.rope, -1) * source.scale
        up_k = up_v = None
        if _worth_merging(queries_HXQ.shape[-1], source.nope, source.latent):
            merged_HCQ = up_k_HNC.transpose(1, 2) @ queries_HXQ[:, : source.nope]
            queries_HXQ = torch.cat((merged_HCQ, queries_HXQ[:, source.nope :]), dim=1)
        else:
            up_k = up_k_HNC.transpose(1, 2)
        out = source.o_proj.weight.float()
        out_DHV = out.unflatten(1, (source.heads, -1))
        if _worth_merging(out_DHV.shape[0], out_DHV.shape[2], source.latent):
            out = torch.einsum("dhv,hvc->dhc", out_DHV, up_v_HVC).flatten(1)
        else:
            up_v = up_v_HVC
        return cls(
            heads=source.heads,
            latent=source.latent,
            rope=source.rope,
            nope=source.nope,
            value=up_v_HVC.shape[1],
            query_width=down.shape[0] - down_kv.shape[0],
            query_norm=query_norm,
            latent_norm=source.kv_a_layernorm,
            down=down,
            queries=queries_HXQ.flatten(0, 1),
            up_k=up_k,
            up_v=up_v,
            out=out,
        )


def _worth_merging(outer: int, inner: int, latent: int) -> bool:
    """Whether one product outer x latent replaces two, outer x inner and inner x latent (all times heads)."""
    return outer * latent <= MERGED_WORK * (outer * inner + inner * latent)
