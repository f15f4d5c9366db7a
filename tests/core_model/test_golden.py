"""Losses of ten training steps, committed: any change of numerics shows here first.

Regenerate after an intended change with `python tests/core_model/test_golden.py`, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference import YARN_TINY, tiny_config

from core_model.model import V3ForCausalLM
from core_model.moe.balance import update_routing_bias

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS, BATCH, LENGTH, VOCABULARY = 10, 2, 24, 48


def synthetic_tokens() -> list[list[list[int]]]:
    """Counting rows with different strides: learnable, and plain arithmetic, so that they can be checked by eye."""
    return [
        [[(step + row + (1 + row) * column) % VOCABULARY for column in range(LENGTH)] for row in range(BATCH)]
        for step in range(STEPS)
    ]


def train(tokens: list[list[list[int]]]) -> list[list[float]]:
    """[main, MTP, balance, total] of each step; every part of V3 is on, and two documents lie in a row."""
    torch.manual_seed(0)
    model = V3ForCausalLM(tiny_config(rope_scaling=YARN_TINY)).initialize(0.05, 7).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    positions = torch.cat((torch.arange(10), torch.arange(LENGTH - 10))).expand(BATCH, -1)
    losses = []
    for batch in tokens:
        input_ids = torch.tensor(batch)
        out = model(input_ids, labels=input_ids, position_ids=positions)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_routing_bias(model.model.routers(), 0.001)
        losses.append([float(x.detach()) for x in (out.lm_loss, out.mtp_losses[0], out.balance_loss, out.loss)])
    return losses


def test_losses_are_the_committed_ones():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["tokens"] == synthetic_tokens()
    losses = train(golden["tokens"])
    assert losses[-1][0] < losses[0][0] - 0.5
    for step, (ours, committed) in enumerate(zip(losses, golden["losses"], strict=True)):
        assert ours == pytest.approx(committed, abs=1e-5), f"step {step}"


def test_two_runs_on_one_machine_are_bitwise_equal():
    tokens = synthetic_tokens()[:3]
    assert train(tokens) == train(tokens)


if __name__ == "__main__":
    golden = {"tokens": synthetic_tokens(), "losses": train(synthetic_tokens())}
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")
