"""The forward of decoding: a few tokens a row over a latent cache, from weights laid out once for it.

For so few tokens a step is not arithmetic but the number of operations, so that projections of one input lie side by
side, MLA's up-projections are merged with what precedes and follows them, and small experts are computed for every
token, with weight 0 where it did not choose them. The numbers are those of the model's own forward up to rounding.

Shape suffixes: B rows, T tokens a row, X = B*T, S cached positions, D model, H heads, N no-rope dim, R rope dim,
V value dim, C kv latent, Q query latent, E experts, K experts per token, F expert width.
Source: V3 report §2.1.1 (the absorbed form), Eq. 1-11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model import rope
from core_model.attention import MultiHeadLatentAttention
from core_model.cache import LatentCache
from core_model.decoder import DecoderLayer
from core_model.embedding import Embedding
from core_model.generation.compiled import CompiledLayers, CompiledLinear
from core_model.generation.latent_kernels import latent_kernel
from core_model.generation.merged import MergedAttention, Step
from core_model.model import V3ForCausalLM, V3Model
from core_model.moe import MLP, MoE
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate, Routing
from core_model.mtp import MTPLayer, SharedHead
from core_model.norm import RMSNorm
from core_model.precision import Linear
from core_model.replaced import runs_as_own, why_not

# Multiplications of an expert, over all tokens, up to which computing it for every token beats grouping the tokens.
DENSE_WORK = 4_000_000
# Numbers in the experts of a layer up to which reading them all costs nothing that matters.
DENSE_WEIGHTS = 1_000_000


# What is laid out: of other modules it would leave out what they do.
OWN: tuple[type[nn.Module], ...] = (
    *(nn.ModuleList, DecoderLayer, MTPLayer, SharedHead, MultiHeadLatentAttention, MLP, MoE),
    *(Experts, Gate, Linear, RMSNorm, Embedding),
)


def refuse_replaced(model: V3ForCausalLM) -> None:
    """Whether decoding, which works with weights, leaves out something that the model's forward does.

    Of the whole model only its class counts: accelerate gives it a forward, and wandb a hook.

    Raises:
        ValueError: a module that is not the model's own, such as an adapter.
    """
    others = {model: type(model).forward is not V3ForCausalLM.forward}
    others[model.model] = not runs_as_own(model.model, V3Model)
    for name, module in model.named_modules():
        if others[module] if module in others else not any(runs_as_own(module, kind) for kind in OWN):
            raise ValueError(f"decoding lays out weights, and {name or 'the model'} {why_not(module)}")


class DecodePath:
    """`model`, laid out for decoding in `dtype`: its weights are derived, and renewed by `refresh`.

    page: rows of its cache had best hold a multiple of so many positions.
    """

    def __init__(self, model: V3ForCausalLM, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        config = model.config
        self.page = latent_kernel(model.device, dtype, config.kv_lora_rank, config.qk_rope_head_dim).page
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now.

        Raises:
            ValueError: a module that is not the model's own, such as an adapter: it would be left out.
        """
        refuse_replaced(self.model)
        backbone = self.model.model
        self._count = len(backbone.main_layers())
        self._layers = _laid_out(backbone.main_layers(), backbone.norm, self.dtype)
        self._head = CompiledLinear.of(self.model.lm_head.weight, self.dtype)
        drafter = next(iter(backbone.mtp_layers()), None)
        self._drafter = None if drafter is None else _Drafter(drafter, self.dtype)

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, position_ids: Tensor, cache: LatentCache) -> tuple[Tensor, list[Routing]]:
        """Normed states [B, T, D] and the routings of the MoE layers; latents are stored in the cache.

        Args:
            input_ids, position_ids: [B, T], for rows 0 to B of the cache.
        """
        x_XD, routings = self._layers.forward(self._embed(input_ids), self._step(position_ids, cache), 0)
        return x_XD.unflatten(0, input_ids.shape), routings

    @torch.inference_mode()
    def draft(self, hidden_BTD: Tensor, next_ids: Tensor, position_ids: Tensor, cache: LatentCache) -> Tensor:
        """The first MTP module's normed states [B, T, D], its latents stored.

        Args:
            hidden_BTD: normed states of the inputs at `position_ids`.
            next_ids: [B, T], the tokens after them.
        """
        assert self._drafter is not None
        step = self._step(position_ids, cache)
        state_XD = self._drafter.forward(hidden_BTD.flatten(0, 1), self._embed(next_ids), step, self._count)
        return state_XD.view_as(hidden_BTD)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., W]."""
        if self._head is not None:
            return self._head.forward(hidden)
        return F.linear(hidden, self.model.lm_head.weight.to(hidden.dtype)).float()

    def _embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids.flatten(), self.model.model.embed_tokens.weight).to(self.dtype)

    def _step(self, position_ids: Tensor, cache: LatentCache) -> Step:
        inv_freq, scaling = cast(Tensor, self.model.model.inv_freq), self.model.config.rope_scaling
        return Step(cache, position_ids, inv_freq, rope.amplitude(scaling))


class _Layers:
    """Decoder layers and the norm behind them, in PyTorch's operations."""

    def __init__(self, layers: Sequence[DecoderLayer], last_norm: RMSNorm, dtype: torch.dtype) -> None:
        self._layers, self._last_norm = [_Layer(layer, dtype) for layer in layers], last_norm

    def forward(self, x_XD: Tensor, step: Step, first: int) -> tuple[Tensor, list[Routing]]:
        step.cache.begin(0, step.position_ids)
        routings = []
        for index, layer in enumerate(self._layers, first):
            x_XD, routing = layer.forward(x_XD, step, index)
            if routing is not None:
                routings.append(routing)
        return _norm(x_XD, self._last_norm), routings


def _laid_out(layers: Sequence[DecoderLayer], last_norm: RMSNorm, dtype: torch.dtype) -> _Layers | CompiledLayers:
    return CompiledLayers.of(layers, last_norm, dtype) or _Layers(layers, last_norm, dtype)


class _Layer:
    """A decoder layer, laid out."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._attention = _Attention(layer.self_attn, dtype)
        self._mlp = _MoE(layer.mlp, dtype) if isinstance(layer.mlp, MoE) else _Dense.of(cast(MLP, layer.mlp), dtype)

    def forward(self, x_XD: Tensor, step: Step, index: int) -> tuple[Tensor, Routing | None]:
        x_XD = x_XD + self._attention.forward(_norm(x_XD, self._norms[0]), step, index)
        mlp_XD, routing = self._mlp.forward(_norm(x_XD, self._norms[1]))
        return x_XD + mlp_XD, routing


class _Drafter:
    """An MTP module, laid out."""

    def __init__(self, layer: MTPLayer, dtype: torch.dtype) -> None:
        self._norms, self._joint = (layer.enorm, layer.hnorm), layer.eh_proj.weight.to(dtype)
        self._layer = _laid_out([layer], layer.shared_head.norm, dtype)

    def forward(self, hidden_XD: Tensor, embedding_XD: Tensor, step: Step, index: int) -> Tensor:
        joined = torch.cat((_norm(embedding_XD, self._norms[0]), _norm(hidden_XD, self._norms[1])), dim=-1)
        return self._layer.forward(F.linear(joined, self._joint), step, index)[0]


class _Attention:
    """MLA in the latent space; see `MultiHeadLatentAttention.absorbed`."""

    def __init__(self, source: MultiHeadLatentAttention, dtype: torch.dtype) -> None:
        merged = MergedAttention.of(source)
        self._kernel = latent_kernel(merged.down.device, dtype, merged.latent, merged.rope)
        self._heads, self._latent, self._rope, self._nope = merged.heads, merged.latent, merged.rope, merged.nope
        self._query_width, self._q_norm, self._kv_norm = merged.query_width, merged.query_norm, merged.latent_norm
        self._down, self._queries, self._out = (part.to(dtype) for part in (merged.down, merged.queries, merged.out))
        self._up_k = None if merged.up_k is None else merged.up_k.transpose(1, 2).to(dtype).contiguous()
        self._up_v = None if merged.up_v is None else merged.up_v.transpose(1, 2).to(dtype).contiguous()

    def forward(self, x_XD: Tensor, step: Step, index: int) -> Tensor:
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
        out_BTHC = self._kernel.attend(q_BTHC, kv_BSC, step, index)
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


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), norm.weight.float(), norm.eps).to(x.dtype)


def _rotate_(x_BTHR: Tensor, rotations: Tensor) -> None:
    """`rope.rotate` in place, over rotations that have a head axis."""
    real = x_BTHR.float().unflatten(-1, (-1, 2))  # for fp32, the memory of x itself
    torch.view_as_complex(real).mul_(rotations)
    if x_BTHR.dtype != torch.float32:
        x_BTHR.copy_(real.flatten(-2))
