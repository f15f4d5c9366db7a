"""Plain references that the model's fast code is measured against, and the tiny models that tests share.

Loops over tokens, experts and positions, as the report's equations are written; slow and easy to check by eye.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model.config import YARN_V3, V3Config
from core_model.model import V3ForCausalLM
from core_model.norm import RMSNorm

TINY: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
}
YARN_TINY = {**YARN_V3, "original_max_position_embeddings": 16, "factor": 4}


def tiny_config(**overrides: Any) -> V3Config:
    return V3Config.preset("nano", **{**TINY, **overrides})


def random_model(config: V3Config, seed: int = 0) -> V3ForCausalLM:
    """Every parameter and routing bias random, biases negative on average, norms away from 1; in eval mode."""
    model = V3ForCausalLM(config).initialize(0.15, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(-1.0, 0.5, generator=generator)
    return model.eval()


@cache
def shared_model(**overrides: Any) -> V3ForCausalLM:
    """One model a configuration, built once; tests that change weights build their own."""
    return random_model(tiny_config(**overrides))


def random_tokens(*shape: int, vocabulary: int = TINY["vocab_size"], seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit, NaN and types that do not compare included."""
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def reference_select(
    scores: list[float], bias: list[float], groups: int, top_groups: int, top_k: int
) -> tuple[list[int], list[float]]:
    """One token's experts and normalised weights (V3 Eq. 12-16), ties to the lower index."""
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(scores) // groups
    if groups > 1:
        group_scores = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        kept = sorted(range(groups), key=lambda g: (-group_scores[g], g))[:top_groups]
    else:
        kept = [0]
    candidates = [e for e in range(len(scores)) if e // size in kept]
    chosen = sorted(candidates, key=lambda e: (-biased[e], e))[:top_k]
    total = sum(scores[e] for e in chosen)
    return chosen, [scores[e] / total for e in chosen]


def reference_experts(x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One token and one expert at a time, in autograd's own operations."""
    rows = []
    for token, x_D in enumerate(x_TD):
        total = torch.zeros_like(x_D)
        for k, expert in enumerate(indices_TK[token].tolist()):
            gate, up = (gate_up[expert] @ x_D).chunk(2)
            total = total + weights_TK[token, k].to(x_D.dtype) * (down[expert] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows) if rows else x_TD * 1.0


def reference_attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor, scale: float, allowed_BTS: Tensor) -> Tensor:
    """softmax(q k^T scale) v over the allowed keys, [B, T, H, V]."""
    scores = torch.einsum("bthd,bshd->bhts", q_BTHd, k_BSHd) * scale
    probabilities = scores.masked_fill(~allowed_BTS[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhts,bshv->bthv", probabilities, v_BSHV)


def reference_balance_loss(scores_TE: Tensor, top_k: int) -> Tensor:
    """Sum_i f_i P_i of one sequence (V3 Eq. 17-20), by loops."""
    length, experts = scores_TE.shape
    total = scores_TE.new_zeros(())
    normalised = [row / row.sum() for row in scores_TE]
    for i in range(experts):
        hits = 0
        for row in scores_TE.tolist():
            hits += i in sorted(range(experts), key=lambda e: (-row[e], e))[:top_k]
        total = total + experts / (top_k * length) * hits * sum(row[i] for row in normalised) / length
    return total


def reference_documents(position_ids: list[list[int]], mask: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Lists of (row, column), one a document: a document starts at a row's first real token and at position 0."""
    documents: list[list[tuple[int, int]]] = []
    for row, (positions, real) in enumerate(zip(position_ids, mask, strict=True)):
        started = False
        for column, (position, is_real) in enumerate(zip(positions, real, strict=True)):
            if not is_real:
                continue
            if not started or position == 0:
                documents.append([])
                started = True
            documents[-1].append((row, column))
    return documents
