"""Multi-head latent attention: expanded for training and prefill, absorbed for decoding, the same weights.

Shape suffixes: B batch, T query tokens, S cached positions, D model, H heads, N no-rope dim, R rope dim, V value dim,
C kv latent, Q query latent.
Source: V3 report §2.1.1, Eq. 1-11; deepseek-ai/DeepSeek-V3 inference/model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from core_model.attention_kernels import kernel_for
from core_model.cache import LatentCache
from core_model.config import V3Config
from core_model.documents import Documents
from core_model.norm import RMSNorm
from core_model.precision import Linear, autocast_dtype
from core_model.recompute import derived
from core_model.replaced import is_own
from core_model.rope import rotate, rotate_tail, softmax_scale


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward share.

    rotations: RoPE's, complex64 [B, T, R/2]. documents: set when rows hold several documents or padding.
    visible: what the queries see of a cache, bool [B, 1, T, S] or torch's causal bias; None without a cache, and where
    rows are plainly causal. cache: a `LatentCache` or a transformers cache. end: positions in the latter once the
    queries are in it; one of fixed length has room for more.
    """

    rotations: Tensor
    documents: Documents | None = None
    visible: Tensor | None = None
    cache: object | None = None
    end: int | None = None

    @cached_property
    def real_BT(self) -> Tensor | None:
        """Which tokens are not padding, bool [B, T]; None when all are, or with a cache."""
        return None if self.documents is None else self.documents.real_BT


# Up to this many queries over a cache, attention stays in the latent space: one token, or one and its drafts.
ABSORBED_QUERIES = 8


class MultiHeadLatentAttention(nn.Module):
    """MLA of one layer. Input and output [B, T, D]."""

    def __init__(self, config: V3Config, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent = config.kv_lora_rank
        self.scale = softmax_scale(config.qk_head_dim, config.rope_scaling)
        query_width = self.heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, query_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(config.q_lora_rank, query_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.latent + self.rope)
        self.kv_a_layernorm = RMSNorm(self.latent, config.rms_norm_eps)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = Linear(self.heads * self.value, config.hidden_size)

    def query_latent(self, x_BTD: Tensor) -> Tensor:
        """Normed latent [B, T, Q] that the queries are expanded from; without one, the input itself."""
        return x_BTD if hasattr(self, "q_proj") else self.q_a_layernorm(self.q_a_proj(x_BTD))

    def queries(self, query_latent: Tensor, context: AttentionContext) -> Tensor:
        """[B, T, H, N+R], the last R roped."""
        q = self.q_proj(query_latent) if hasattr(self, "q_proj") else self.q_b_proj(query_latent)
        return rotate_tail(q.unflatten(-1, (self.heads, -1)), context.rotations)

    def latents(self, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Normed latent [B, T, C] and the roped key that all heads share [B, T, R]: what the cache holds."""
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split([self.latent, self.rope], dim=-1)
        k_rope = rotate(k_rope.unsqueeze(2), context.rotations).squeeze(2)
        return self.kv_a_layernorm(latent), k_rope

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        query_latent = self.query_latent(x_BTD)
        latent, k_rope = self.latents(x_BTD, context)
        if context.cache is not None:
            latent, k_rope = self._through_cache(latent, k_rope, context)
            if x_BTD.shape[1] <= ABSORBED_QUERIES and is_own(self.kv_b_proj, Linear):
                q_nope, q_rope = self.queries(query_latent, context).split([self.nope, self.rope], dim=-1)
                return self.o_proj(self.absorbed(q_nope, q_rope, latent, k_rope, context.visible))
        return self.o_proj(self.expanded(query_latent, latent, k_rope, context))

    def _through_cache(self, latent: Tensor, k_rope: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        cache = context.cache
        if isinstance(cache, LatentCache):
            kv_BSC = cache.update(torch.cat((latent, k_rope), dim=-1), self.layer_index).to(latent.dtype)
            return kv_BSC[..., : self.latent], kv_BSC[..., self.latent :]
        # A transformers cache wants a head axis.
        latent, k_rope = cache.update(latent.unsqueeze(1), k_rope.unsqueeze(1), self.layer_index)  # type: ignore[attr-defined]
        return latent.squeeze(1)[:, : context.end], k_rope.squeeze(1)[:, : context.end]

    def expanded(self, query_latent: Tensor, latent: Tensor, k_rope: Tensor, context: AttentionContext) -> Tensor:
        """Queries, keys and values written out per head; [B, T, H*V]."""
        documents = None if context.cache is not None else context.documents
        dtype, device = latent.dtype, latent.device
        computed = autocast_dtype(device) or dtype
        visible = context.visible
        if context.cache is not None and visible is None and query_latent.shape[1] == 1:
            visible = latent.new_ones(1, 1, 1, latent.shape[1], dtype=torch.bool)  # else it would see the first alone
        masked = visible is not None
        kernel = kernel_for(device, computed, self.nope + self.rope, self.value, documents, masked=masked)

        def expand(query_latent: Tensor, latent: Tensor, k_rope: Tensor) -> tuple[Tensor, ...]:
            q = self.queries(query_latent, context)
            kv = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1))
            k_nope, v = kv.split([self.nope, self.value], dim=-1)
            k = torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.heads, -1)), dim=-1)
            return kernel.inputs(q, k, v)

        def join(*outs: Tensor) -> Tensor:
            return kernel.output(outs, self.value, dtype).flatten(2)

        inputs = derived(expand, query_latent, latent, k_rope)
        return derived(join, *kernel.attend(inputs, self.scale, visible))

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Attention in the latent space, for a few queries over many positions; [B, T, H*V].

        W_UK moves to the query's side and W_UV behind the weighted sum, so that nothing per head and position is
        ever written out. Without `visible`, the queries are the last T positions.
        """
        batch, length = q_nope.shape[:2]
        up_HNVC = self.kv_b_proj.weight.to(latent.dtype).view(self.heads, -1, self.latent)
        w_uk, w_uv = up_HNVC[:, : self.nope], up_HNVC[:, self.nope :]
        q_HXC = q_nope.flatten(0, 1).transpose(0, 1) @ w_uk  # X: all queries of all rows
        q_BYC = q_HXC.transpose(0, 1).reshape(batch, -1, self.latent)  # Y: queries by heads
        scores_BYS = q_BYC @ latent.transpose(1, 2) + q_rope.flatten(1, 2) @ k_rope.transpose(1, 2)
        scores_BTHS = scores_BYS.float().unflatten(1, (length, self.heads)) * self.scale
        if visible is None and length > 1:
            visible = latent.new_ones(length, latent.shape[1], dtype=torch.bool).tril(latent.shape[1] - length)
            visible = visible[None, None]
        if visible is not None:
            scores_BTHS = scores_BTHS.masked_fill(~visible.transpose(1, 2), float("-inf"))
        out_BYC = scores_BTHS.softmax(dim=-1).flatten(1, 2).to(latent.dtype) @ latent
        out_HXC = out_BYC.view(batch * length, self.heads, self.latent).transpose(0, 1)
        out_HXV = out_HXC @ w_uv.transpose(1, 2)
        return out_HXV.transpose(0, 1).reshape(batch, length, -1)
