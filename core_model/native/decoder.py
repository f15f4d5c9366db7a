"""A decoder layer's forward and backward as one call each into compiled code (decoder.h), for training on CPU.

Shape suffixes: B batch, T tokens, D model, X all tokens, E experts, K experts per token.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from core_model.attention import AttentionContext, MultiHeadLatentAttention
from core_model.autograd import differentiable_once
from core_model.moe import MLP, MoE
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate
from core_model.native import training
from core_model.native.router import Router
from core_model.native.training import KINDS, LANES, address, plain
from core_model.norm import RMSNorm
from core_model.precision import Linear
from core_model.recompute import drops_derived

if TYPE_CHECKING:
    from core_model.decoder import DecoderLayer

PARTS = (MultiHeadLatentAttention, RMSNorm, Linear, MLP, MoE, Gate, Experts)  # what compiled code stands in for

WEIGHTS = (
    "attention_norm", "q_a", "q_norm", "q_b", "kv_a", "kv_norm", "kv_b", "o",
    "mlp_norm", "gate", "up", "down", "router", "expert_gate_up", "expert_down",
)  # fmt: skip
KEPT = ("latents", "q", "k", "v", "out", "after", "inner", "expert_inner", "lse", "indices", "weights", "scores")


class Shape(ctypes.Structure):
    """As in decoder.h."""

    _fields_ = [
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("dim", "heads", "nope", "rope", "value", "latent", "query")),
        *((name, ctypes.c_int32) for name in ("width", "expert_width")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        ("router", Router),
        ("threads", ctypes.c_int32),
    ]


class Weights(ctypes.Structure):
    """As in decoder.h: weights or gradients."""

    _fields_ = [(name, ctypes.c_void_p) for name in WEIGHTS]


class Sequences(ctypes.Structure):
    """As in decoder.h."""

    _fields_ = [
        ("tokens", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("rotations", ctypes.c_void_p),
        ("rotated", ctypes.c_int64),
    ]


class Kept(ctypes.Structure):
    """As in decoder.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in KEPT]


def served(layer: DecoderLayer, x_BTD: Tensor, context: AttentionContext) -> dict[str, nn.Parameter] | None:
    """The layer's weights by their names in decoder.h where compiled code runs it, else None.

    It does with fp32 or bf16 states over fp32 weights, whole sequences, widths that fit, as many heads as threads,
    nothing left out of what backward keeps, no rank cap, and no part of the layer replaced or watched.
    """
    if type(x_BTD) is not Tensor or x_BTD.device.type != "cpu" or not x_BTD.numel():
        return None
    if isinstance(layer.mlp, MoE) and layer.mlp.is_capped:
        return None
    if context.cache is not None or drops_derived() or not training.compiled(x_BTD.dtype) or _all_watched():
        return None
    parts = (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp)
    if not all(_plain(module) for part in parts for module in part.modules()):
        return None
    weights = _weights(layer)
    if not all(type(w) is nn.Parameter and training.is_stored(w) for w in weights.values()):
        return None
    attention = layer.self_attn
    widths = [size for w in weights.values() for size in w.shape[-2:] if w is not weights.get("router")]
    sequences = len(x_BTD) if context.documents is None else len(context.documents.end_N)
    widths += [attention.nope, attention.rope, attention.value, attention.latent]
    fits = all(width and width % LANES == 0 for width in widths)
    return weights if fits and sequences * attention.heads >= torch.get_num_threads() else None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _plain(module: nn.Module) -> bool:
    """Neither replaced (by an adapter, say, or another `forward` of its own) nor watched."""
    if type(module) not in PARTS or "forward" in vars(module):
        return False
    return not any(getattr(module, hooks) for hooks in HOOKS)


def _all_watched() -> bool:
    """Whether there are hooks of all modules."""
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS)


def run(
    layer: DecoderLayer, weights: dict[str, nn.Parameter], x_BTD: Tensor, context: AttentionContext
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """[B, T, D] -> [B, T, D], and indices [X, K], weights [X, K] and scores [X, E] of a layer with experts.

    weights: what `served` has found.
    """
    shape = _shape(layer, weights, x_BTD)
    outs = _LayerFunction.apply(x_BTD, shape, _bias(layer), _Order(x_BTD, context), tuple(weights), *weights.values())
    return (outs[0], outs[1:]) if shape.router.experts else (outs, None)


def _weights(layer: DecoderLayer) -> dict[str, nn.Parameter]:
    """The layer's parameters by their names in decoder.h."""
    attention, mlp = cast(Any, layer.self_attn), cast(Any, layer.mlp)
    routed = hasattr(mlp, "experts")
    dense = mlp.shared_experts if routed else mlp
    found = {"attention_norm": layer.input_layernorm, "kv_a": attention.kv_a_proj_with_mqa}
    found |= {"kv_norm": attention.kv_a_layernorm, "kv_b": attention.kv_b_proj, "o": attention.o_proj}
    if hasattr(attention, "q_proj"):
        found["q_b"] = attention.q_proj
    else:
        found |= {"q_a": attention.q_a_proj, "q_norm": attention.q_a_layernorm, "q_b": attention.q_b_proj}
    found |= {"mlp_norm": layer.post_attention_layernorm}
    found |= {"gate": dense.gate_proj, "up": dense.up_proj, "down": dense.down_proj}
    weights = {name: cast(nn.Parameter, module.weight) for name, module in found.items()}
    if routed:
        weights["router"] = mlp.gate.weight
        weights |= {"expert_gate_up": mlp.experts.gate_up_proj, "expert_down": mlp.experts.down_proj}
    return weights


def _bias(layer: DecoderLayer) -> Tensor | None:
    gate = getattr(layer.mlp, "gate", None)
    return None if gate is None else gate.e_score_correction_bias


def _shape(layer: DecoderLayer, weights: dict[str, nn.Parameter], x_BTD: Tensor) -> Shape:
    attention, gate = layer.self_attn, getattr(layer.mlp, "gate", None)
    return Shape(
        tokens=x_BTD.shape[0] * x_BTD.shape[1],
        dim=x_BTD.shape[2],
        heads=attention.heads,
        nope=attention.nope,
        rope=attention.rope,
        value=attention.value,
        latent=attention.latent,
        query=weights["q_a"].shape[0] if "q_a" in weights else 0,
        width=weights["down"].shape[1],
        expert_width=weights["expert_down"].shape[2] if gate is not None else 0,
        eps=layer.input_layernorm.eps,
        scale=attention.scale,
        router=Router() if gate is None else Router.of(gate, gate.e_score_correction_bias.data_ptr()),
        threads=torch.get_num_threads(),
    )


class _Order:
    """Documents as runs of tokens, and the rotations: tensors that stay alive with it."""

    def __init__(self, x_BTD: Tensor, context: AttentionContext) -> None:
        batch, length, _ = x_BTD.shape
        if context.documents is None:
            tokens = functools.partial(torch.arange, dtype=torch.int32, device=x_BTD.device)
            self.token_X, self.end_N = tokens(batch * length), tokens(length, batch * length + 1, length)
        else:
            self.token_X, self.end_N = context.documents.token_X, context.documents.end_N
        self.rotations = torch.view_as_real(context.rotations).flatten(0, 1).contiguous()

    def covers(self, tokens: int) -> bool:
        """Whether each of them is in a document."""
        return len(self.token_X) == tokens

    def struct(self) -> Sequences:
        return Sequences(
            self.token_X.data_ptr(),
            self.end_N.data_ptr(),
            len(self.end_N),
            self.rotations.data_ptr(),
            len(self.rotations),
        )


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        shape: Shape,
        bias: Tensor | None,
        order: _Order,
        names: tuple[str, ...],
        *weights: Tensor,
    ) -> Any:
        x, kept = plain(x_BTD), _keep(shape, order, x_BTD.dtype)
        y = torch.empty_like(x)
        training.library().trivium_layer_forward(
            KINDS[x.dtype], ctypes.byref(shape), ctypes.byref(_pointers(Weights, names, weights)),
            ctypes.byref(order.struct()), address(x),
            ctypes.byref(_pointers(Kept, kept.keys(), kept.values())), address(y),
        )  # fmt: skip
        ctx.save_for_backward(x, *kept.values(), *weights)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.order, ctx.names, ctx.kept = shape, order, names, tuple(kept)
        if not shape.router.experts:
            return y
        ctx.mark_non_differentiable(kept["indices"])
        return y, kept["indices"], kept["weights"], kept["scores"]

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, weights = rest[: len(ctx.kept)], rest[len(ctx.kept) :]
        dy, _, dweights, dscores = grads if len(grads) > 1 else (grads[0], None, None, None)
        dy = torch.zeros_like(x) if dy is None else plain(dy)
        asked = zip(weights, ctx.needs_input_grad[-len(weights) :], strict=True)
        dx, gradients = torch.empty_like(x), [torch.empty_like(weight) if ask else None for weight, ask in asked]
        given = [None if one is None else plain(one) for one in (dweights, dscores)]
        training.library().trivium_layer_backward(
            KINDS[x.dtype], ctypes.byref(ctx.shape), ctypes.byref(_pointers(Weights, ctx.names, weights)),
            ctypes.byref(ctx.order.struct()), address(x), ctypes.byref(_pointers(Kept, ctx.kept, kept)), address(dy),
            *map(address, given), ctypes.byref(_pointers(Weights, ctx.names, gradients)), address(dx),
        )  # fmt: skip
        return dx, None, None, None, None, *gradients


def _keep(s: Shape, order: _Order, dtype: torch.dtype) -> dict[str, Tensor]:
    """Room for what forward leaves to backward."""
    tokens, heads = s.tokens, s.heads

    # Every dtype and device is named: the defaults may be others.
    def states(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="cpu")

    def fp32(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device="cpu")

    kept = {
        "latents": states(tokens, s.query + s.latent + s.rope),
        "q": states(tokens, heads, s.nope + s.rope),
        "k": states(tokens, heads, s.nope + s.rope),
        "v": states(tokens, heads, s.value),
        # What is no document's attends to nothing.
        "out": states(tokens, heads, s.value) if order.covers(tokens) else states(tokens, heads, s.value).zero_(),
        "lse": fp32(tokens, heads),
        "after": states(tokens, s.dim),
        "inner": states(tokens, 2 * s.width),
    }
    if s.router.experts:
        chosen, experts = s.router.chosen, s.router.experts
        kept["expert_inner"] = states(tokens * chosen + experts, 2 * s.expert_width)  # each expert's rows made even
        kept["indices"] = torch.empty(tokens, chosen, dtype=torch.int64, device="cpu")
        kept["weights"], kept["scores"] = fp32(tokens, chosen), fp32(tokens, experts)
    return kept


def _pointers(kind: type[ctypes.Structure], names: Any, tensors: Any) -> ctypes.Structure:
    return kind(**{name: address(tensor) for name, tensor in zip(names, tensors, strict=True)})
