"""What a decoder layer is made of, and whether it is what compiled code stands in for.

Found anew for every forward, so that it is never what the layer was once. The modules' own dictionaries are read, as
their attributes cost several times as much: between two layers, Python is what a compiled step waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from core_model.attention import MultiHeadLatentAttention
from core_model.moe import MLP, MoE
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate
from core_model.native import training
from core_model.native.training import LANES
from core_model.norm import RMSNorm
from core_model.precision import Linear
from core_model.replaced import HOOKS, is_own

if TYPE_CHECKING:
    from core_model.decoder import DecoderLayer

Kind = TypeVar("Kind", bound=nn.Module)


class LayerWeights(NamedTuple):
    """As in decoder.h, whose `Weights` are the addresses; None where a layer has no such weight.

    q_b: `q_proj` without a latent of queries. gate, up, down: of the dense feed-forward, or of the shared experts.
    """

    attention_norm: nn.Parameter
    q_a: nn.Parameter | None
    q_norm: nn.Parameter | None
    q_b: nn.Parameter
    kv_a: nn.Parameter
    kv_norm: nn.Parameter
    kv_b: nn.Parameter
    o: nn.Parameter
    mlp_norm: nn.Parameter
    gate: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter
    router: nn.Parameter | None = None
    expert_gate_up: nn.Parameter | None = None
    expert_down: nn.Parameter | None = None


class Parts(NamedTuple):
    """bias: the routing's; None in a dense layer, like the gate."""

    attention: MultiHeadLatentAttention
    mlp: MLP | MoE
    gate: Gate | None
    bias: Tensor | None
    eps: float
    weights: LayerWeights

    @property
    def dim(self) -> int:
        return self.weights.attention_norm.shape[0]


class _Other(Exception):
    """A part is not what compiled code stands in for."""


def parts_of(layer: DecoderLayer) -> Parts | None:
    """None unless compiled code can stand in for every part of the layer.

    It can where these are the model's own modules, nobody has given them a `forward` or watches them, their weights lie
    in memory as fp32, and all sizes fit it and each other: compiled code asks for none.
    """
    try:
        parts = _found(layer)
    except _Other:
        return None
    return parts if _fits(parts) else None


def all_watched() -> bool:
    """Whether there are hooks of all modules."""
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS)


def _found(layer: DecoderLayer) -> Parts:
    attention = _part(layer, "self_attn", MultiHeadLatentAttention)
    before, after = _part(layer, "input_layernorm", RMSNorm), _part(layer, "post_attention_layernorm", RMSNorm)
    norms = [before, after, _part(attention, "kv_a_layernorm", RMSNorm)]
    q_a = q_norm = None
    if "q_proj" in attention._modules:
        q_b = _linear(attention, "q_proj")
    else:
        norms.append(_part(attention, "q_a_layernorm", RMSNorm))
        q_a, q_norm, q_b = _linear(attention, "q_a_proj"), _weight(norms[-1]), _linear(attention, "q_b_proj")
    mlp, gate = layer._modules.get("mlp"), None
    routed: tuple[nn.Parameter, ...] = ()
    if type(mlp) is MoE:
        _part(layer, "mlp", MoE)
        gate, experts = _part(mlp, "gate", Gate), _part(mlp, "experts", Experts)
        routed = (_weight(gate), _weight(experts, "gate_up_proj"), _weight(experts, "down_proj"))
        dense = _part(mlp, "shared_experts", MLP)
    else:
        dense = mlp = _part(layer, "mlp", MLP)
    if any(norm.eps != before.eps for norm in norms):
        raise _Other
    weights = LayerWeights(
        _weight(before),
        q_a,
        q_norm,
        q_b,
        _linear(attention, "kv_a_proj_with_mqa"),
        _weight(norms[2]),
        _linear(attention, "kv_b_proj"),
        _linear(attention, "o_proj"),
        _weight(after),
        *(_linear(dense, name) for name in ("gate_proj", "up_proj", "down_proj")),
        *routed,
    )
    bias = None if gate is None else gate._buffers.get("e_score_correction_bias")
    return Parts(attention, mlp, gate, bias, before.eps, weights)


def _part(of: nn.Module, name: str, kind: type[Kind]) -> Kind:
    module = of._modules.get(name)
    if not is_own(module, kind):
        raise _Other
    return cast(Kind, module)


def _weight(module: nn.Module, name: str = "weight") -> nn.Parameter:
    weight = module._parameters.get(name)
    if type(weight) is not nn.Parameter or not training.is_stored(weight):
        raise _Other
    return weight


def _linear(of: nn.Module, name: str) -> nn.Parameter:
    return _weight(_part(of, name, Linear))


def _fits(parts: Parts) -> bool:
    a, w, dim = parts.attention, parts.weights, parts.dim
    width = w.down.shape[-1]
    query = a.heads * (a.nope + a.rope)
    widths = [dim, a.nope, a.rope, a.value, a.latent, width]
    sizes = [(w.kv_a, (a.latent + a.rope, dim)), (w.kv_norm, (a.latent,)), (w.mlp_norm, (dim,))]
    sizes += [(w.kv_b, (a.heads * (a.nope + a.value), a.latent)), (w.o, (dim, a.heads * a.value))]
    sizes += [(w.gate, (width, dim)), (w.up, (width, dim)), (w.down, (dim, width))]
    if w.q_a is None or w.q_norm is None:
        sizes.append((w.q_b, (query, dim)))
    else:
        latent = w.q_a.shape[0]
        widths.append(latent)
        sizes += [(w.q_a, (latent, dim)), (w.q_norm, (latent,)), (w.q_b, (query, latent))]
    if parts.gate is not None:
        if parts.bias is None or not _routes(parts.gate, parts.bias):
            return False
        router, gate_up, down = (cast(nn.Parameter, one) for one in w[-3:])
        experts, width = parts.gate.experts, down.shape[-1]
        widths.append(width)
        sizes += [(router, (experts, dim)), (gate_up, (experts, 2 * width, dim)), (down, (experts, dim, width))]
    return all(one > 0 and one % LANES == 0 for one in widths) and all(one.shape == size for one, size in sizes)


def _routes(gate: Gate, bias: Tensor) -> bool:
    """Whether there are as many experts to choose from as are chosen, and a bias for each."""
    if not (training.is_stored(bias) and bias.shape == (gate.experts,)):
        return False
    if gate.groups < 1 or gate.experts % gate.groups or not 0 < gate.top_groups <= gate.groups:
        return False
    return 0 < gate.top_k <= gate.experts // gate.groups * gate.top_groups
