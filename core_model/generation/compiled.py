"""The decoding step as one call into compiled code, for models small enough that beginning operations is what costs.

The code is core_model/native/decode.cpp; without a compiler, decoding takes PyTorch's operations
(core_model/generation/decode.py), whose numbers are the same up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model import native
from core_model.decoder import DecoderLayer
from core_model.generation.merged import MergedAttention, Step
from core_model.moe import MLP, MoE
from core_model.moe.gate import Routing
from core_model.native.router import Router
from core_model.norm import RMSNorm

PANEL = 32  # as in decode.cpp
MOST_WEIGHTS = 500_000_000  # numbers in the layers, which are kept a second time (2 GB)


class Shape(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("dim", "heads", "nope", "rope", "value", "latent", "query")),
        ("eps", ctypes.c_float),
    ]


POINTERS = (
    "attention_norm", "down", "query_norm", "latent_norm", "queries", "up_k", "up_v", "out",
    "mlp_norm", "gate_up", "mlp_down", "gate", "expert_gate_up", "expert_down",
)  # fmt: skip


class Layer(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("width", ctypes.c_int32),
        ("expert_width", ctypes.c_int32),
        ("router", Router),
    ]


def pack(weight: Tensor) -> Tensor:
    """Matrices [..., O, K] as panels [..., ceil(O/32), K, 32], fp32, the last one padded with zeros."""
    padded = F.pad(weight.float(), (0, 0, 0, -weight.shape[-2] % PANEL))
    return padded.unflatten(-2, (-1, PANEL)).transpose(-1, -2).contiguous()


class CompiledLayers:
    """Decoder layers for fp32 on CPU, their weights packed. `of` makes them where they can be had and pay."""

    def __init__(self, layers: Sequence[DecoderLayer], last_norm: RMSNorm, compiled: ctypes.CDLL) -> None:
        self._compiled = compiled
        self._kept: list[Tensor] = []  # what the addresses point to
        self._last_norm = self._vector(last_norm.weight)
        self._layers = (Layer * len(layers))(*map(self._pack, layers))
        routers = [layer.router for layer in self._layers if layer.router.experts]  # all of them alike
        self._routed = len(routers)
        self._experts: int = routers[0].experts if routers else 0
        self._chosen: int = routers[0].chosen if routers else 0
        merged, norm = MergedAttention.of(layers[0].self_attn), layers[0].input_layernorm
        self._shape = Shape(
            dim=norm.weight.shape[0],
            heads=merged.heads,
            nope=merged.nope,
            rope=merged.rope,
            value=merged.value,
            latent=merged.latent,
            query=merged.query_width,
            eps=norm.eps,
        )

    @classmethod
    def of(cls, layers: Sequence[DecoderLayer], last_norm: RMSNorm, dtype: torch.dtype) -> CompiledLayers | None:
        """None for another dtype or device, for models too large to keep twice, without a compiler."""
        weights = [parameter for layer in layers for parameter in layer.parameters()]
        if dtype != torch.float32 or weights[0].device.type != "cpu":
            return None
        if (
            sum(parameter.numel() for parameter in weights) > MOST_WEIGHTS
            or (compiled := native.library("decode")) is None
        ):
            return None
        return cls(layers, last_norm, compiled)

    def forward(self, x_XD: Tensor, step: Step, first: int) -> tuple[Tensor, list[Routing]]:
        """Normed states behind the layers, the first of which is the cache's layer `first`, and the routings of those
        with experts. What goes into the cache is there afterwards."""
        buffer, (rows, tokens) = step.cache.buffer_LBSC, step.position_ids.shape
        if buffer.dtype != torch.float32 or not buffer.is_contiguous():
            raise ValueError(f"a contiguous fp32 cache is needed, not {buffer.dtype}")
        if x_XD.dtype != torch.float32 or x_XD.shape != (rows * tokens, self._shape.dim):
            found = f"{x_XD.dtype} {list(x_XD.shape)}"
            raise ValueError(f"states are fp32 [{rows * tokens}, {self._shape.dim}] for these positions, not {found}")
        least, most = map(int, torch.aminmax(step.position_ids))
        layers, most_rows, positions, width = buffer.shape
        fits = rows <= most_rows and least >= 0 and most < positions and first + len(self._layers) <= layers
        if not fits or width != self._shape.latent + self._shape.rope:
            what = f"{rows} rows at positions {least} to {most} of layer {first} on"
            raise ValueError(f"{what} do not fit into a cache of {list(buffer.shape)}")
        states = x_XD.clone(memory_format=torch.contiguous_format)
        at = step.position_ids.to(torch.int64).contiguous()
        indices = torch.empty(self._routed, len(states), self._chosen, dtype=torch.int64)
        weights = torch.empty(indices.shape, dtype=torch.float32)
        scores = torch.empty(self._routed, len(states), self._experts, dtype=torch.float32)
        self._compiled.trivium_decode(
            ctypes.byref(self._shape), self._layers, len(self._layers), rows, tokens,
            _address(at), _address(step.inv_freq), ctypes.c_float(step.amplitude), _address(states),
            _address(buffer[first:]), ctypes.c_int64(buffer.stride(0)), ctypes.c_int64(buffer.stride(1)),
            ctypes.c_void_p(self._last_norm), *map(_address, (indices, weights, scores)), torch.get_num_threads(),
        )  # fmt: skip
        return states, [Routing(*one) for one in zip(indices, weights, scores, strict=True)]

    def _pack(self, layer: DecoderLayer) -> Layer:
        merged = MergedAttention.of(layer.self_attn)
        mlp = layer.mlp.shared_experts if isinstance(layer.mlp, MoE) else cast(MLP, layer.mlp)
        packed = Layer(
            attention_norm=self._vector(layer.input_layernorm.weight),
            down=self._matrix(merged.down),
            query_norm=None if merged.query_norm is None else self._vector(merged.query_norm.weight),
            latent_norm=self._vector(merged.latent_norm.weight),
            queries=self._matrix(merged.queries),
            up_k=None if merged.up_k is None else self._matrix(merged.up_k),
            up_v=None if merged.up_v is None else self._matrix(merged.up_v),
            out=self._matrix(merged.out),
            mlp_norm=self._vector(layer.post_attention_layernorm.weight),
            gate_up=self._matrix(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))),
            mlp_down=self._matrix(mlp.down_proj.weight),
            width=mlp.down_proj.weight.shape[1],
        )
        if isinstance(layer.mlp, MoE):
            router, experts = layer.mlp.gate, layer.mlp.experts
            packed.gate = self._matrix(router.weight)
            packed.router = Router.of(router, self._vector(router.e_score_correction_bias))
            packed.expert_gate_up = self._matrix(experts.gate_up_proj)
            packed.expert_down = self._matrix(experts.down_proj)
            packed.expert_width = experts.down_proj.shape[2]
        return packed

    def _matrix(self, weight: Tensor) -> int:
        return self._keep(pack(weight))

    def _vector(self, weight: Tensor) -> int:
        return self._keep(weight.detach().to(torch.float32, copy=True))

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


class CompiledLinear:
    """A matrix [O, K] for few vectors, fp32 on CPU."""

    def __init__(self, weight: Tensor, compiled: ctypes.CDLL) -> None:
        self._compiled, self._packed, (self._width, self._depth) = compiled, pack(weight.detach()), weight.shape

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> CompiledLinear | None:
        """None as in `CompiledLayers.of`."""
        if dtype != torch.float32 or weight.device.type != "cpu" or weight.numel() > MOST_WEIGHTS:
            return None
        compiled = native.library("decode")
        return None if compiled is None else cls(weight, compiled)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., O]."""
        if x.dtype != torch.float32 or x.shape[-1] != self._depth:
            raise ValueError(f"vectors of {self._depth} fp32 numbers are needed, not {x.dtype} {list(x.shape)}")
        given, out = x.contiguous(), torch.empty(*x.shape[:-1], self._width, dtype=torch.float32)
        self._compiled.trivium_product(
            _address(given), given.numel() // self._depth, self._depth, _address(self._packed), self._width,
            _address(out), torch.get_num_threads(),
        )  # fmt: skip
        return out


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
