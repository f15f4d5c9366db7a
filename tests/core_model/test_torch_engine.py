"""The torch engine: what a step's micro-batches add up to."""

from __future__ import annotations

import pytest
import torch
from reference import random_model, random_tokens, tiny_config

from core_model.loss import IGNORE
from core_model.parallel.engine import MicroBatch, TorchEngine


def engine() -> TorchEngine:
    model = random_model(tiny_config())
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    return TorchEngine(model)


def test_every_token_weighs_the_same_whatever_its_micro_batch():
    tokens = random_tokens(4, 9)
    labels = tokens.clone()
    labels[0, 4:] = IGNORE
    whole, parts = engine(), engine()
    whole.model.loss_weights.balance = parts.model.loss_weights.balance = 0.0
    expected = whole.forward_backward([MicroBatch(tokens, labels)])
    found = parts.forward_backward([MicroBatch(tokens[:1], labels[:1]), MicroBatch(tokens[1:], labels[1:])])
    assert (found.lm, found.mtp) == pytest.approx((expected.lm, expected.mtp), rel=1e-5)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_without_a_target_adds_nothing():
    tokens = random_tokens(2, 9)
    empty = MicroBatch(tokens, torch.full_like(tokens, IGNORE))
    alone, beside = engine(), engine()
    expected = alone.forward_backward([MicroBatch(tokens, tokens)])
    assert beside.forward_backward([MicroBatch(tokens, tokens), empty]) == expected
    for ours, theirs in zip(beside.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    with pytest.raises(ValueError, match="none of the step's 2 micro-batches"):
        beside.forward_backward([empty, empty])
