"""The forward of decoding: a few tokens a row over a latent cache, from weights laid out once for it.

For so few tokens a step is not arithmetic but the number of operations, so that projections of one input lie side by
side, MLA's up-projections are merged with what precedes and follows them, and small experts are computed for every
token, with weight 0 where it did not choose them. The numbers are those of the model's own forward up to rounding.

Shape suffixes: B rows, T tokens a row, X = B*T, S cached positions, D model, H heads, N no-rope dim, R rope dim,
V value dim, C kv latent, Q query latent, E experts, K experts per token, F expert width.
Source: V3 report §2.1.1 (the absorbed form), Eq. 1-11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model import rope
from core_model.attention import MultiHeadLatentAttention
from core_model.cache import LatentCache
from core_model.decoder import DecoderLayer
from core_model.model import V3ForCausalLM
from core_model.moe import MLP, MoE
from core_model.moe.gate import Routing
from core_model.mtp import MTPLayer
from core_model.norm import RMSNorm

# Merged up-projections may take as many times the multiplications of the two that they replace.
MERGED_WORK = 2.0
# Multiplications of an expert, over all tokens, up to which computing it for every token beats grouping the tokens.
DENSE_WORK = 4_000_000
# Numbers in the experts of a layer up to which reading them all costs nothing that matters.
DENSE_WEIGHTS = 1_000_000


@dataclass(frozen=True)
class _Step:
    """What all layers of one forward share.

    rotations: complex64 [B, T, 1, R/2]. mask: fp32 [B, T, 1, S], -inf on positions that a query may not see; None where
    every query sees all.
    """

    cache: LatentCache
    rotations: Tensor
    mask: Tensor | None


class DecodePath:
    """`model`, laid out for decoding in `dtype`: its weights are derived, and renewed by `refresh`."""

    def __init__(self, model: V3ForCausalLM, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        backbone = self.model.model
        self._layers = [_Layer(layer, self.dtype) for layer in backbone.main_layers()]
        drafter = next(iter(backbone.mtp_layers()), None)
        self._drafter = None if drafter is None else _Drafter(drafter, self.dtype)

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, position_ids: Tensor, cache: LatentCache) -> tuple[Tensor, list[Routing]]:
        """Normed states [B, T, D] and the routings of the MoE layers; latents are stored in the cache.

        Args:
            input_ids, position_ids: [B, T], for rows 0 to B of the cache.
        """
        step = self._begin(position_ids, cache)
        x_XD = self._embed(input_ids)
        routings = []
        for index, layer in enumerate(self._layers):
            x_XD, routing = layer.forward(x_XD, step, index)
            if routing is not None:
                routings.append(routing)
        return _norm(x_XD, self.model.model.norm).unflatten(0, input_ids.shape), routings

    @torch.inference_mode()
    def draft(self, hidden_BTD: Tensor, next_ids: Tensor, position_ids: Tensor, cache: LatentCache) -> Tensor:
        """The first MTP module's normed states [B, T, D], its latents stored.

        Args:
            hidden_BTD: normed states of the inputs at `position_ids`.
            next_ids: [B, T], the tokens after them.
        """
        assert self._drafter is not None
        step = self._begin(position_ids, cache)
        state_XD = self._drafter.forward(hidden_BTD.flatten(0, 1), self._embed(next_ids), step, len(self._layers))
        return state_XD.view_as(hidden_BTD)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., W]."""
        return F.linear(hidden, self.model.lm_head.weight.to(hidden.dtype)).float()

    def _embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.flatten(), self.model.model.embed_tokens.weight).to(self.dtype)

    def _begin(self, position_ids: Tensor, cache: LatentCache) -> _Step:
        config = self.model.config
        cache.begin(0, position_ids)
        inv_freq = cast(Tensor, self.model.model.inv_freq)
        rotations = rope.rotations(position_ids, inv_freq, rope.amplitude(config.rope_scaling)).unsqueeze(2)
        return _Step(cache, rotations, cache.mask())


class _Layer:
    """A decoder layer, laid out."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._attention = _Attention(layer.self_attn, dtype)
        self._mlp = _MoE(layer.mlp, dtype) if isinstance(layer.mlp, MoE) else _Dense.of(cast(MLP, layer.mlp), dtype)

    def forward(self, x_XD: Tensor, step: _Step, index: int) -> tuple[Tensor, Routing | None]:
        x_XD = x_XD + self._attention.forward(_norm(x_XD, self._norms[0]), step, index)
        mlp_XD, routing = self._mlp.forward(_norm(x_XD, self._norms[1]))
        return x_XD + mlp_XD, routing


class _Drafter:
    """An MTP module, laid out."""

    def __init__(self, layer: MTPLayer, dtype: torch.dtype) -> None:
        self._norms, self._last_norm = (layer.enorm, layer.hnorm), layer.shared_head.norm
        self._joint = layer.eh_proj.weight.to(dtype)
        self._layer = _Layer(layer, dtype)

    def forward(self, hidden_XD: Tensor, embedding_XD: Tensor, step: _Step, index: int) -> Tensor:
        joined = torch.cat((_norm(embedding_XD, self._norms[0]), _norm(hidden_XD, self._norms[1])), dim=-1)
        x_XD, _ = self._layer.forward(F.linear(joined, self._joint), step, index)
        return _norm(x_XD, self._last_norm)


class _Attention:
    """MLA in the latent space; see `MultiHeadLatentAttention.absorbed`."""

    def __init__(self, source: MultiHeadLatentAttention, dtype: torch.dtype) -> None:
        self._heads, self._latent, self._rope, self._nope = source.heads, source.latent, source.rope, source.nope
        self._kv_norm = source.kv_a_layernorm
        up_HXC = source.kv_b_proj.weight.float().view(self._heads, -1, self._latent)
        up_k_HNC, up_v_HVC = up_HXC[:, : self._nope], up_HXC[:, self._nope :]
        down_kv = source.kv_a_proj_with_mqa.weight
        if hasattr(source, "q_proj"):
            self._q_norm, queries, self._down = None, source.q_proj.weight, down_kv.to(dtype)
        else:
            self._q_norm, queries = source.q_a_layernorm, source.q_b_proj.weight
            self._down = torch.cat((source.q_a_proj.weight, down_kv)).to(dtype)
        self._query_width = self._down.shape[0] - down_kv.shape[0]
        # The scale of the scores goes into the queries.
        queries_HXQ = queries.float().view(self._heads, self._nope + self._rope, -1) * source.scale
        self._up_k = self._up_v = None
        if _worth_merging(queries_HXQ.shape[-1], self._nope, self._latent):
            merged_HCQ = up_k_HNC.transpose(1, 2) @ queries_HXQ[:, : self._nope]
            queries_HXQ = torch.cat((merged_HCQ, queries_HXQ[:, self._nope :]), dim=1)
        else:
            self._up_k = up_k_HNC.to(dtype).contiguous()
        self._queries = queries_HXQ.flatten(0, 1).to(dtype)
        out_DHV = source.o_proj.weight.float().unflatten(1, (self._heads, -1))
        if _worth_merging(out_DHV.shape[0], out_DHV.shape[2], self._latent):
            self._out = torch.einsum("dhv,hvc->dhc", out_DHV, up_v_HVC).flatten(1).to(dtype)
        else:
            self._up_v = up_v_HVC.transpose(1, 2).to(dtype).contiguous()
            self._out = source.o_proj.weight.to(dtype)

    def forward(self, x_XD: Tensor, step: _Step, index: int) -> Tensor:
        batch, length = step.rotations.shape[:2]
        down_BTX = F.linear(x_XD, self._down).view(batch, length, -1)
        query_latent, latent, k_rope = down_BTX.split((self._query_width, self._latent, self._rope), dim=-1)
        k_rope = k_rope.clone()  # so that pairs begin at even places, whatever the width of the query latent
        _rotate_(k_rope.unsqueeze(2), step.rotations)
        kv_BSC = step.cache.update(torch.cat((_norm(latent, self._kv_norm), k_rope), dim=-1), index)
        query_latent = x_XD.view(batch, length, -1) if self._q_norm is None else _norm(query_latent, self._q_norm)
        q_BTHC = F.linear(query_latent, self._queries).unflatten(-1, (self._heads, -1))
        _rotate_(q_BTHC[..., -self._rope :], step.rotations)
        if self._up_k is not None:
            q_nope, q_rope = q_BTHC.split((self._nope, self._rope), dim=-1)
            q_BTHC = torch.cat((self._per_head(q_nope, self._up_k), q_rope), dim=-1)
        # Y: queries by heads. As the transposed right side, the cache takes up to four times as long on CPU.
        scores_BYS = torch.bmm(kv_BSC, q_BTHC.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        if step.mask is not None:
            scores_BYS = (scores_BYS.unflatten(1, (length, self._heads)) + step.mask).flatten(1, 2)
        probs_BYS = scores_BYS.softmax(dim=-1, dtype=torch.float32).to(kv_BSC.dtype)
        out_BTHC = torch.bmm(probs_BYS, kv_BSC[..., : self._latent]).view(batch, length, self._heads, -1)
        if self._up_v is not None:
            out_BTHC = self._per_head(out_BTHC, self._up_v)
        return F.linear(out_BTHC.flatten(2).flatten(0, 1), self._out)

    def _per_head(self, x_BTHI: Tensor, weight_HIO: Tensor) -> Tensor:
        """Each head's vectors by its own matrix, [B, T, H, O]."""
        x_HXI = x_BTHI.flatten(0, 1).transpose(0, 1)
        return (x_HXI @ weight_HIO).transpose(0, 1).unflatten(0, x_BTHI.shape[:2])


class _Dense:
    """A SwiGLU feed-forward with gate and up side by side."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, dtype: torch.dtype) -> None:
        self._gate_up, self._down = torch.cat((gate, up)).to(dtype), down.to(dtype)

    @classmethod
    def of(cls, source: MLP, dtype: torch.dtype) -> _Dense:
        return cls(source.gate_proj.weight, source.up_proj.weight, source.down_proj.weight, dtype)

    def inner(self, x_XD: Tensor) -> Tensor:
        gate, up = F.linear(x_XD, self._gate_up).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def outer(self, inner: Tensor) -> Tensor:
        return F.linear(inner, self._down)

    def forward(self, x_XD: Tensor) -> tuple[Tensor, None]:
        return self.outer(self.inner(x_XD)), None


class _MoE:
    """Experts: all of them for every token where they are small, else those that were chosen, as in the model."""

    def __init__(self, source: MoE, dtype: torch.dtype) -> None:
        self._source = source
        experts, self._shared = source.experts, _Dense.of(source.shared_experts, dtype)
        self._count, width, dim = experts.gate_up_proj.shape[0], experts.down_proj.shape[2], experts.down_proj.shape[1]
        self._routed_width = self._count * width
        self._most = DENSE_WORK // (3 * dim * width)  # tokens
        # With fewer choices than experts, experts that are large and were not chosen had better not be read.
        self._least = 1 if self._count * 3 * dim * width <= DENSE_WEIGHTS else self._count  # choices
        self._all: _Dense | None = None
        if self._most * source.gate.top_k >= self._count:
            gate, up = experts.gate_up_proj.chunk(2, dim=1)
            shared = source.shared_experts
            self._all = _Dense(
                torch.cat((gate.flatten(0, 1), shared.gate_proj.weight)),
                torch.cat((up.flatten(0, 1), shared.up_proj.weight)),
                torch.cat((experts.down_proj.transpose(0, 1).flatten(1), shared.down_proj.weight), dim=1),
                dtype,
            )

    def forward(self, x_XD: Tensor) -> tuple[Tensor, Routing]:
        routing = self._source.gate.route(x_XD.float())
        indices, weights = routing.indices_TK, routing.weights_TK
        if self._all is None or not self._least <= indices.numel() <= self._most * indices.shape[1]:
            return self._source.experts(x_XD, indices, weights) + self._shared.forward(x_XD)[0], routing
        weights_XE = weights.new_zeros(len(x_XD), self._count).scatter_(1, indices, weights).to(x_XD.dtype)
        inner = self._all.inner(x_XD)
        inner[:, : self._routed_width].unflatten(1, (self._count, -1)).mul_(weights_XE.unsqueeze(-1))
        return self._all.outer(inner), routing


def _worth_merging(outer: int, inner: int, latent: int) -> bool:
    """Whether one product outer x latent replaces two, outer x inner and inner x latent (all times heads)."""
    return outer * latent <= MERGED_WORK * (outer * inner + inner * latent)


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), norm.weight.float(), norm.eps).to(x.dtype)


def _rotate_(x_BTHR: Tensor, rotations: Tensor) -> None:
    """`rope.rotate` in place, over rotations that have a head axis."""
    real = x_BTHR.float().unflatten(-1, (-1, 2))  # for fp32, the memory of x itself
    torch.view_as_complex(real).mul_(rotations)
    if x_BTHR.dtype != torch.float32:
        x_BTHR.copy_(real.flatten(-2))
