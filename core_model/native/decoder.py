"""A decoder layer's forward and backward as one call each into compiled code (decoder.h), for training on CPU.

Shape suffixes: B batch, T tokens, D model, X all tokens, E experts, K experts per token.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from core_model.attention import AttentionContext
from core_model.autograd import differentiable_once
from core_model.moe import MoE
from core_model.native import training
from core_model.native.parts import LayerWeights, Parts, all_watched, parts_of
from core_model.native.router import Router
from core_model.native.training import KINDS, address, plain
from core_model.recompute import drops_derived

if TYPE_CHECKING:
    from core_model.decoder import DecoderLayer


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

    _fields_ = [(name, ctypes.c_void_p) for name in LayerWeights._fields]


class Sequences(ctypes.Structure):
    """As in decoder.h."""

    _fields_ = [
        ("tokens", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("rotations", ctypes.c_void_p),
        ("rotated", ctypes.c_int64),
    ]


class LayerKept(NamedTuple):
    """As in decoder.h, whose `Kept` are the addresses; the last four are None in a dense layer."""

    latents: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    after: Tensor
    inner: Tensor
    lse: Tensor
    expert_inner: Tensor | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None
    scores: Tensor | None = None


class Kept(ctypes.Structure):
    """As in decoder.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in LayerKept._fields]


def served(layer: DecoderLayer, x_BTD: Tensor, context: AttentionContext) -> Parts | None:
    """The layer's parts where compiled code runs it, else None.

    It does with fp32 or bf16 states over fp32 weights, whole sequences, widths that fit, as many heads as threads,
    nothing left out of what backward keeps, no rank cap, and no part of the layer replaced or watched.
    """
    if torch.compiler.is_compiling() or type(x_BTD) is not Tensor or x_BTD.device.type != "cpu" or not x_BTD.numel():
        return None
    if context.cache is not None or drops_derived() or not training.compiled(x_BTD.dtype) or all_watched():
        return None
    parts = parts_of(layer)
    if parts is None or not _belong(x_BTD, context, parts) or (isinstance(parts.mlp, MoE) and parts.mlp.is_capped):
        return None
    sequences = len(x_BTD) if context.documents is None else len(context.documents.end_N)
    return parts if sequences * parts.attention.heads >= torch.get_num_threads() else None


def _belong(x_BTD: Tensor, context: AttentionContext, parts: Parts) -> bool:
    """Whether the states are some of this layer, and the context is theirs; operations refuse others."""
    if x_BTD.dim() != 3:
        return False
    batch, length, dim = x_BTD.shape
    rows, positions, pairs = context.rotations.shape
    if dim != parts.dim or rows not in (1, batch) or positions != length or 2 * pairs != parts.attention.rope:
        return False
    if context.rotations.dtype != torch.complex64 or context.rotations.device.type != "cpu":
        return False
    return context.documents is None or context.documents.id_BT.shape == (batch, length)


def run(parts: Parts, x_BTD: Tensor, context: AttentionContext) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """[B, T, D] -> [B, T, D], and indices [X, K], weights [X, K] and scores [X, E] of a layer with experts.

    parts: what `served` has found.
    """
    outs = _LayerFunction.apply(x_BTD, _shape(parts, x_BTD), parts.bias, _Order(x_BTD, context), *parts.weights)
    return (outs, None) if parts.gate is None else (outs[0], outs[1:])


def _shape(parts: Parts, x_BTD: Tensor) -> Shape:
    attention, weights = parts.attention, parts.weights
    router = Router() if parts.gate is None else Router.of(parts.gate, cast(Tensor, parts.bias).data_ptr())
    return Shape(
        tokens=x_BTD.shape[0] * x_BTD.shape[1],
        dim=x_BTD.shape[2],
        heads=attention.heads,
        nope=attention.nope,
        rope=attention.rope,
        value=attention.value,
        latent=attention.latent,
        query=0 if weights.q_a is None else weights.q_a.shape[0],
        width=weights.down.shape[1],
        expert_width=0 if weights.expert_down is None else weights.expert_down.shape[2],
        eps=parts.eps,
        scale=attention.scale,
        router=router,
        threads=torch.get_num_threads(),
    )


@functools.lru_cache(maxsize=8)
def _whole_rows(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens in order, and the rows' ends."""
    tokens = functools.partial(torch.arange, dtype=torch.int32, device="cpu")
    return tokens(batch * length), tokens(length, batch * length + 1, length)


class _Order:
    """Documents as runs of tokens, and the rotations: addresses, and tensors that stay alive with them."""

    def __init__(self, x_BTD: Tensor, context: AttentionContext) -> None:
        if context.documents is None:
            token_X, end_N = _whole_rows(x_BTD.shape[0], x_BTD.shape[1])
        else:
            token_X, end_N = context.documents.token_X, context.documents.end_N
        rotations = torch.view_as_real(context.rotations).flatten(0, 1).contiguous()
        self.tokens = len(token_X)  # that are in a document
        self.struct = Sequences(token_X.data_ptr(), end_N.data_ptr(), len(end_N), rotations.data_ptr(), len(rotations))
        self._alive = (token_X, end_N, rotations)


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, shape: Shape, bias: Tensor | None, order: _Order, *weights: Tensor | None
    ) -> Any:
        x, kept = plain(x_BTD), _keep(shape, order, x_BTD.dtype)
        y = torch.empty_like(x)
        training.library().trivium_layer_forward(
            KINDS[x.dtype], ctypes.byref(shape), ctypes.byref(Weights(*map(address, weights))),
            ctypes.byref(order.struct), address(x), ctypes.byref(Kept(*map(address, kept))), address(y),
        )  # fmt: skip
        ctx.save_for_backward(x, *kept, *weights)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.order = shape, order
        if not shape.router.experts:
            return y
        ctx.mark_non_differentiable(kept.indices)
        return y, kept.indices, kept.weights, kept.scores

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, weights = rest[: len(LayerKept._fields)], rest[len(LayerKept._fields) :]
        dy, _, dweights, dscores = grads if len(grads) > 1 else (grads[0], None, None, None)
        dy = torch.zeros_like(x) if dy is None else plain(dy)
        asked = zip(weights, ctx.needs_input_grad[-len(weights) :], strict=True)
        dx, gradients = torch.empty_like(x), [torch.empty_like(weight) if ask else None for weight, ask in asked]
        given = [None if one is None else plain(one) for one in (dweights, dscores)]
        training.library().trivium_layer_backward(
            KINDS[x.dtype], ctypes.byref(ctx.shape), ctypes.byref(Weights(*map(address, weights))),
            ctypes.byref(ctx.order.struct), address(x), ctypes.byref(Kept(*map(address, kept))), address(dy),
            *map(address, given), ctypes.byref(Weights(*map(address, gradients))), address(dx),
        )  # fmt: skip
        return dx, None, None, None, *gradients


def _keep(s: Shape, order: _Order, dtype: torch.dtype) -> LayerKept:
    """Room for what forward leaves to backward."""
    tokens, heads, experts = s.tokens, s.heads, s.router.experts

    # Every dtype and device is named: the defaults may be others.
    def states(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="cpu")

    def fp32(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device="cpu")

    kept = LayerKept(
        latents=states(tokens, s.query + s.latent + s.rope),
        q=states(tokens, heads, s.nope + s.rope),
        k=states(tokens, heads, s.nope + s.rope),
        v=states(tokens, heads, s.value),
        # What is no document's attends to nothing.
        out=states(tokens, heads, s.value) if order.tokens == tokens else states(tokens, heads, s.value).zero_(),
        after=states(tokens, s.dim),
        inner=states(tokens, 2 * s.width),
        lse=fp32(tokens, heads),
    )
    if not experts:
        return kept
    return kept._replace(
        expert_inner=states(tokens * s.router.chosen + experts, 2 * s.expert_width),  # each expert's rows made even
        indices=torch.empty(tokens, s.router.chosen, dtype=torch.int64, device="cpu"),
        weights=fp32(tokens, s.router.chosen),
        scores=fp32(tokens, experts),
    )
