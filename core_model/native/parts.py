"""What a decoder layer is made of, found once: between two layers Python is most of what a compiled step waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import nn

from core_model.attention import MultiHeadLatentAttention
from core_model.moe import MLP, MoE
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate
from core_model.native import training
from core_model.native.training import LANES
from core_model.norm import RMSNorm
from core_model.precision import Linear

if TYPE_CHECKING:
    from core_model.decoder import DecoderLayer

KINDS = (MultiHeadLatentAttention, RMSNorm, Linear, MLP, MoE, Gate, Experts)  # what compiled code stands in for
NAMES = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
    router: nn.Parameter | None
    expert_gate_up: nn.Parameter | None
    expert_down: nn.Parameter | None

    @classmethod
    def of(cls, layer: DecoderLayer) -> LayerWeights:
        attention, mlp = cast(Any, layer.self_attn), cast(Any, layer.mlp)
        routed = isinstance(mlp, MoE)
        dense = mlp.shared_experts if routed else mlp
        if hasattr(attention, "q_proj"):
            queries = (None, None, attention.q_proj.weight)
        else:
            queries = (attention.q_a_proj.weight, attention.q_a_layernorm.weight, attention.q_b_proj.weight)
        return cls(
            layer.input_layernorm.weight,
            *queries,
            attention.kv_a_proj_with_mqa.weight,
            attention.kv_a_layernorm.weight,
            attention.kv_b_proj.weight,
            attention.o_proj.weight,
            layer.post_attention_layernorm.weight,
            dense.gate_proj.weight,
            dense.up_proj.weight,
            dense.down_proj.weight,
            *((mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj) if routed else (None, None, None)),
        )


class Parts:
    """A layer's modules and weights."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.attention, self.mlp, self.norm = layer.self_attn, layer.mlp, layer.input_layernorm
        self.gate: Gate | None = layer.mlp.gate if isinstance(layer.mlp, MoE) else None
        self.weights = LayerWeights.of(layer)
        self._modules = list(_modules(layer))
        # Where each was found: whoever replaces a module or a weight does so there.
        self._places: list[tuple[dict[str, Any], str, object]] = [
            (layer._modules, name, layer._modules[name]) for name in NAMES
        ]
        for module in self._modules:
            for names in (module._modules, module._parameters):
                self._places += [(names, name, one) for name, one in names.items()]
        self._shapes = [(weight, weight.shape) for weight in self.weights if weight is not None]
        self.fit = self._widths_fit() and all(weight.shape == shape for weight, shape in self._expected())

    @property
    def dim(self) -> int:
        return self.weights.attention_norm.shape[0]

    def _widths_fit(self) -> bool:
        attention, router = self.attention, self.weights.router
        widths = [attention.nope, attention.rope, attention.value, attention.latent]
        widths += [width for weight, shape in self._shapes if weight is not router for width in shape[-2:]]
        return all(width and width % LANES == 0 for width in widths)

    def _expected(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        """Each weight and the shape that the others give it: compiled code asks none of them."""
        attention, weights, dim = self.attention, self.weights, self.dim
        source, width = dim, weights.down.shape[-1]
        if weights.q_a is not None and weights.q_norm is not None:
            source = weights.q_a.shape[0]
            yield from ((weights.q_a, (source, dim)), (weights.q_norm, (source,)))
        yield weights.q_b, (attention.heads * (attention.nope + attention.rope), source)
        yield weights.kv_a, (attention.latent + attention.rope, dim)
        yield weights.kv_norm, (attention.latent,)
        yield weights.kv_b, (attention.heads * (attention.nope + attention.value), attention.latent)
        yield weights.o, (dim, attention.heads * attention.value)
        yield weights.mlp_norm, (dim,)
        yield from ((weights.gate, (width, dim)), (weights.up, (width, dim)), (weights.down, (dim, width)))
        if self.gate is not None:
            assert weights.router is not None and weights.expert_gate_up is not None and weights.expert_down is not None
            experts, width = self.gate.experts, weights.expert_down.shape[-1]
            yield weights.router, (experts, dim)
            yield from (
                (weights.expert_gate_up, (experts, 2 * width, dim)),
                (weights.expert_down, (experts, dim, width)),
            )

    def are_current(self) -> bool:
        """Whether the layer still has these, and not others in their place."""
        return all(place.get(name) is one for place, name, one in self._places) and all(
            weight.shape == shape for weight, shape in self._shapes
        )

    def are_plain(self) -> bool:
        """No module is watched or has been given a `forward` of its own, and all weights lie in memory as fp32."""
        return all(map(_plain, self._modules)) and all(
            type(weight) is nn.Parameter and training.is_stored(weight) for weight, _ in self._shapes
        )


_found: WeakKeyDictionary[DecoderLayer, Parts] = WeakKeyDictionary()


def parts_of(layer: DecoderLayer) -> Parts | None:
    """The layer's parts, None unless compiled code can stand in for every one of them."""
    parts = _found.get(layer)
    if parts is None or not parts.are_current():
        if not all(map(_plain, _modules(layer))):
            return None
        parts = _found[layer] = Parts(layer)
    return parts if parts.fit and parts.are_plain() else None


def all_watched() -> bool:
    """Whether there are hooks of all modules."""
    return any(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS)


def _modules(layer: DecoderLayer) -> Iterator[nn.Module]:
    for name in NAMES:
        yield from layer._modules[name].modules()  # type: ignore[union-attr]


def _plain(module: nn.Module) -> bool:
    """Neither replaced (by an adapter, say, or another `forward` of its own) nor watched."""
    own = vars(module)
    if type(module) not in KINDS or "forward" in own:
        return False
    forward, before, backward, before_backward = HOOKS  # not in a loop: asked of every module in every forward
    return not (own[forward] or own[before] or own[backward] or own[before_backward])
