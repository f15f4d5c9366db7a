"""Parameters, floating-point operations per token, cache bytes per token.

Arithmetic on the configuration alone; nothing is built. Checked against DeepSeek's published figures for V3 and against
built models in tests/core_model/test_accounting.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core_model.config import V3Config


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, the routing biases among them (no optimiser sees these, but DeepSeek counts them).

    total: the main model, embedding and head included, MTP modules excluded (V3: 671,026,419,200).
    active: of `total`, those one token uses (V3: 37,552,297,472, embedding and head included).
    embedding: the embedding table; the head is as large and is not counted here.
    mtp: the MTP modules without their copies of embedding and head (V3: 11,610,068,224).
    """

    total: int
    active: int
    embedding: int
    mtp: int


def attention_matrices(config: V3Config) -> int:
    """Weights of one layer's attention, norms left out."""
    heads, query_width = config.num_attention_heads, config.num_attention_heads * config.qk_head_dim
    if config.q_lora_rank is None:
        query = config.hidden_size * query_width
    else:
        query = config.q_lora_rank * (config.hidden_size + query_width)
    down = config.hidden_size * (config.kv_lora_rank + config.qk_rope_head_dim)
    up = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + heads * config.v_head_dim * config.hidden_size


def _norms(config: V3Config) -> int:
    """RMSNorm weights of one layer: two on the residual stream, and those of the latents."""
    return 2 * config.hidden_size + config.kv_lora_rank + (config.q_lora_rank or 0)


def _vectors(config: V3Config, layer_index: int) -> int:
    """What a layer has beside its matrices: norms and a routing bias."""
    return _norms(config) + (config.n_routed_experts or 0) * config.is_moe_layer(layer_index)


def feed_forward_matrices(config: V3Config, layer_index: int, *, active: bool) -> int:
    """Of one layer; `active` counts the routed experts that one token uses instead of all."""
    if not config.is_moe_layer(layer_index):
        return 3 * config.hidden_size * config.intermediate_size
    assert config.n_routed_experts is not None
    routed = config.num_experts_per_tok if active else config.n_routed_experts
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return (routed + config.n_shared_experts) * expert + config.n_routed_experts * config.hidden_size


def _layer_matrices(config: V3Config, layer_index: int, *, active: bool) -> int:
    return attention_matrices(config) + feed_forward_matrices(config, layer_index, active=active)


def _main_matrices(config: V3Config, *, active: bool) -> int:
    """All layers and the head; the embedding is a table, not a matrix product."""
    layers = sum(_layer_matrices(config, i, active=active) for i in range(config.num_hidden_layers))
    return layers + config.vocab_size * config.hidden_size


def _mtp_matrices(config: V3Config, *, active: bool) -> int:
    """The MTP modules: a projection of [embedding; hidden state] and a layer each; the head is the main model's."""
    layers = sum(_layer_matrices(config, i, active=active) for i in _mtp_layers(config))
    return config.num_nextn_predict_layers * 2 * config.hidden_size**2 + layers


def _mtp_layers(config: V3Config) -> range:
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)


def parameters(config: V3Config) -> ParameterCount:
    """Count parameters; see `ParameterCount` for what each number holds."""
    embedding = config.vocab_size * config.hidden_size
    vectors = sum(_vectors(config, i) for i in range(config.num_hidden_layers)) + config.hidden_size
    # Norms of an MTP module beyond its layer's: enorm, hnorm, shared_head.norm.
    mtp_vectors = sum(_vectors(config, i) + 3 * config.hidden_size for i in _mtp_layers(config))
    return ParameterCount(
        total=embedding + _main_matrices(config, active=False) + vectors,
        active=embedding + _main_matrices(config, active=True) + vectors,
        embedding=embedding,
        mtp=_mtp_matrices(config, active=False) + mtp_vectors,
    )


def flops_per_token(
    config: V3Config, sequence_length: int, *, backward: bool = True, mtp: bool = False, causal: bool = True
) -> int:
    """Floating-point operations of one token, the mean over a sequence; a multiply and an add are two.

    Matrix products only (norms, rotary embedding, softmax and the optimiser are left out), attention in its expanded
    form: per layer and head, q.k over qk_head_dim and p.v over v_head_dim numbers for every visible key.
    V3 at 4096 tokens, backward included: 250e9, the figure DeepSeek gives (arXiv:2505.09343, Table 2).

    Args:
        sequence_length: tokens of a document; a causal query sees (sequence_length + 1) / 2 keys on average.
        backward: count the backward pass too, twice the forward's.
        mtp: count the MTP modules, each with its pass through the shared head.
        causal: False counts the full square, as many MFU figures do.

    Raises:
        ValueError: sequence_length below 1.
    """
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be at least 1, not {sequence_length}")
    matrices, layers = _main_matrices(config, active=True), config.num_hidden_layers
    if mtp:
        depth = config.num_nextn_predict_layers
        matrices += _mtp_matrices(config, active=True) + depth * config.vocab_size * config.hidden_size
        layers += depth
    # Twice the visible keys is an integer; the two operations of a multiply-add make up for the half.
    twice_keys = sequence_length + 1 if causal else 2 * sequence_length
    attention = layers * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * twice_keys
    return (2 * matrices + attention) * (3 if backward else 1)


def kv_bytes_per_token(config: V3Config, dtype: torch.dtype) -> int:
    """Bytes of `LatentCache` that one token takes over all main layers (V3 in BF16: 70,272)."""
    return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * dtype.itemsize
