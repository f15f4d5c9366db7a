"""Validation: bits per byte on short text, loss by position on long text.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from core_model.loss import token_losses
from core_model.model import V3ForCausalLM
from core_model.precision import plain_weight
from pretrain.data.packing import SampleDataset
from pretrain.data.shards import TokenShards

POSITION_BUCKETS = 8


@torch.no_grad()
def sample_losses(model: V3ForCausalLM, samples_BT1: torch.Tensor) -> torch.Tensor:
    """Loss of each target of samples [B, T + 1], fp32 [B, T], without training's side effects."""
    training = model.training
    model.eval()
    hidden = model.model(samples_BT1[:, :-1]).last_hidden_state
    assert hidden is not None
    losses = token_losses(hidden, plain_weight(model, "lm_head"), samples_BT1[:, 1:])
    model.train(training)
    return losses


def short_text(
    model: V3ForCausalLM, data: SampleDataset, shards: TokenShards, tokens: int, batch: int
) -> dict[str, float]:
    """Loss (nats per token) and bits per byte over the first `tokens` tokens of validation text."""
    count = min(len(data), max(1, tokens // data.sequence_length))
    total = 0.0
    for start in range(0, count, batch):
        samples = torch.stack([data[i] for i in range(start, min(start + batch, count))])
        total += float(sample_losses(model, samples.to(model.device)).double().sum())
    loss = total / (count * data.sequence_length)
    return {"loss": loss, "bits_per_byte": shards.bits_per_byte(loss)}


def by_position(model: V3ForCausalLM, data: SampleDataset, rows: int) -> dict[str, Any]:
    """Mean loss in `POSITION_BUCKETS` equal stretches of long validation rows."""
    losses = torch.stack(
        [sample_losses(model, data[i][None].to(model.device))[0].cpu() for i in range(min(rows, len(data)))]
    )
    edges = torch.linspace(0, data.sequence_length, POSITION_BUCKETS + 1).long().tolist()
    return {
        "edges": edges,
        "loss": [float(losses[:, a:b].double().mean()) for a, b in pairwise(edges)],
    }
