"""Bytes of training: weights, gradients, optimiser, and what autograd keeps of a forward under each recompute policy.

Arithmetic on the configuration, for one device that holds the whole model; a sharded job divides each part by its own
degree. What this counts is what core_model saves, tensor by tensor, on an accelerator: experts through grouped GEMM,
attention through a fused kernel for one width (which keeps queries, keys, values, output and one fp32 sum a head; a
kernel that takes values as narrow as they are keeps less), no padding and no packing. tests/core_model/test_memory.py
holds it against torch's allocator. Left out: the allocator's slack, workspaces of kernels, and tensors that live for
one operation.

Shape letters: T tokens of a micro-batch, D model, H heads, N no-rope dim, R rope dim, V value dim, C kv latent,
Q query latent, E experts, K experts per token, F expert width, W vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core_model.accounting.counts import (
    attention_matrices,
    feed_forward_matrices,
    parameters,
)
from core_model.config import V3Config
from core_model.recompute import Recompute

FP32 = 4  # bytes


@dataclass(frozen=True)
class Dtypes:
    """Of master weights, gradients, Adam's two moments, activations.

    The defaults are the recipes'. V3 keeps its moments in BF16 (report §3.3.2): `moments=torch.bfloat16`.
    """

    weights: torch.dtype = torch.float32
    gradients: torch.dtype = torch.float32
    moments: torch.dtype = torch.float32
    compute: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class StateBytes:
    """What training holds between steps. weights: routing biases among them; moments: both of Adam's."""

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class ActivationBytes:
    """What a forward leaves for its backward.

    tokens: grows with the micro-batch. heads: the gradient of the shared head, which `core_model.loss` works out in
    forward, fp32 and one a head. copies: weights in the dtype of the products. again: the most that a layer adds in
    backward, while its own forward runs again ("layer") or its derived tensors are made ("v3").
    """

    tokens: int
    heads: int
    copies: int
    again: int

    @property
    def kept(self) -> int:
        """At the end of forward."""
        return self.tokens + self.heads + self.copies


def state_bytes(config: V3Config, dtypes: Dtypes | None = None) -> StateBytes:
    """Bytes of weights, gradients and optimiser, MTP modules included."""
    dtypes = dtypes or Dtypes()
    count = parameters(config)
    routers = sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers + config.num_nextn_predict_layers))
    biases = routers * (config.n_routed_experts or 0)
    learned = count.total + count.mtp - biases
    return StateBytes(
        weights=learned * dtypes.weights.itemsize + biases * FP32,
        gradients=learned * dtypes.gradients.itemsize,
        moments=2 * learned * dtypes.moments.itemsize,
    )


def activation_bytes(
    config: V3Config, tokens: int, recompute: Recompute = "none", dtypes: Dtypes | None = None, *, mtp: bool = True
) -> ActivationBytes:
    """Bytes that the forward and losses of one micro-batch of `tokens` tokens keep.

    Args:
        mtp: whether the MTP modules are trained.

    Raises:
        ValueError: tokens below 1.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, not {tokens}")
    dtypes = dtypes or Dtypes()
    width, depth = dtypes.compute.itemsize, config.num_nextn_predict_layers if mtp else 0
    layers = range(config.num_hidden_layers + depth)
    per_token = sum(_layer(config, i, recompute, width) for i in layers)
    per_token += sum(_mtp(config, k, recompute, width) for k in range(depth))
    per_token += _around_layers(config, recompute, width) + (1 + depth) * _head(config, width)
    copies = [_copies(config, i, dtypes) for i in layers]
    whole = [_layer(config, i, "none", width) * tokens + copies[i] for i in layers]
    derived = [(_layer(config, i, "none", width) - _layer(config, i, "v3", width)) * tokens for i in layers]
    return ActivationBytes(
        tokens=per_token * tokens,
        heads=(1 + depth) * config.vocab_size * config.hidden_size * FP32,
        copies=0 if recompute == "layer" else sum(copies),
        again={"none": 0, "v3": max(derived), "layer": max(whole)}[recompute],
    )


def _copies(config: V3Config, layer_index: int, dtypes: Dtypes) -> int:
    """A layer's matrices in the dtype of the products, kept for the input's gradient; the router stays fp32."""
    if dtypes.compute == dtypes.weights:
        return 0
    matrices = attention_matrices(config) + feed_forward_matrices(config, layer_index, active=False)
    if config.is_moe_layer(layer_index):
        assert config.n_routed_experts is not None
        matrices -= config.n_routed_experts * config.hidden_size
    if layer_index >= config.num_hidden_layers:
        matrices += 2 * config.hidden_size**2
    return matrices * dtypes.compute.itemsize


# All below: bytes a token; `width` is the bytes of one activation.


def _norm(dim: int, recompute: Recompute, width: int, *, feeds_product: bool = True) -> int:
    """Of RMSNorm and its reader: its input, the inverse in fp32, and but for "v3" its output.

    feeds_product: a product or convolution follows, which keeps the norm's output; else nobody does.
    """
    return dim * width + FP32 + (dim * width if feeds_product and recompute != "v3" else 0)


def _attention(config: V3Config, recompute: Recompute, width: int) -> int:
    heads, kernel_dim = config.num_attention_heads, max(config.qk_head_dim, config.v_head_dim)
    kept = _norm(config.hidden_size, recompute, width) + _norm(config.kv_lora_rank, recompute, width)
    if config.q_lora_rank is not None:
        kept += _norm(config.q_lora_rank, recompute, width)
    kept += heads * (kernel_dim * width + FP32)  # the kernel's output and its sums
    kept += config.qk_rope_head_dim * width  # the rope key as it was projected, in one tensor with the latent
    if recompute == "v3":
        return kept + config.qk_rope_head_dim * width  # and as it was rotated
    kept += 3 * heads * kernel_dim * width  # q, k and v, all as wide as the widest
    narrowed = config.v_head_dim < kernel_dim  # then the output projection reads a copy
    return kept + heads * config.v_head_dim * width * narrowed


def _feed_forward(config: V3Config, layer_index: int, recompute: Recompute, width: int) -> int:
    kept = _norm(config.hidden_size, recompute, width)
    if not config.is_moe_layer(layer_index):
        return kept + 3 * config.intermediate_size * width  # gate, up, and the activation
    top_k, expert = config.num_experts_per_tok, config.moe_intermediate_size
    if recompute != "v3" and width != FP32:
        kept += config.hidden_size * FP32  # the router's input
    kept += _routing(config)
    if config.norm_topk_prob:
        kept += (top_k + 1) * FP32  # what is divided, and by what
    # Rows of the experts: gate and up; each row's token, each pair's row.
    kept += top_k * 2 * expert * width + 2 * top_k * 8
    return kept + 3 * config.n_shared_experts * expert * width


def _routing(config: V3Config) -> int:
    """Scores, indices and weights, which the balance loss and the trainer read; the loss keeps two numbers more."""
    return (config.n_routed_experts or 0) * FP32 + config.num_experts_per_tok * (8 + FP32) + 2 * FP32


def _layer(config: V3Config, layer_index: int, recompute: Recompute, width: int) -> int:
    if recompute == "layer":
        if layer_index >= config.num_hidden_layers:  # its inputs are among `_mtp`'s; nobody holds its routing
            return ((config.n_routed_experts or 0) + 2) * FP32 * config.is_moe_layer(layer_index)
        return config.hidden_size * width + _routing(config) * config.is_moe_layer(layer_index)
    return _attention(config, recompute, width) + _feed_forward(config, layer_index, recompute, width)


def _mtp(config: V3Config, depth: int, recompute: Recompute, width: int) -> int:
    """Of a module beyond its layer: its tokens, enorm, hnorm, the projection's input, shared_head.norm."""
    dim, tokens = config.hidden_size, 8
    # The embedding, and from the second depth on the state before (the first reads the main model's, counted there).
    kept = tokens + (1 if depth == 0 else 2) * dim * width
    if recompute == "layer":
        return kept
    kept += dim * width + 3 * FP32  # what shared_head.norm reads; the inverses of the three
    return kept + (2 * dim * width if recompute == "none" else 0)  # the projection's input


def _around_layers(config: V3Config, recompute: Recompute, width: int) -> int:
    """Rotations, the final norm, and its output, which the caller holds."""
    kept = config.qk_rope_head_dim * FP32 + config.hidden_size * width
    if recompute == "layer":
        return kept + config.hidden_size * width
    return kept + _norm(config.hidden_size, recompute, width, feeds_product=False)


def _head(config: V3Config, width: int) -> int:
    """The gradient of the state, and the index of the token it belongs to."""
    return config.hidden_size * width + 8
