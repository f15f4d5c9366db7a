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


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_step_is_torchs_clipping_and_adamw(clip):
    """Gradients that are clipped, and that are not."""
    tokens, ours, theirs = random_tokens(4, 9), engine(), engine()
    ours.clip = clip
    for _ in range(3):
        for each in (ours, theirs):
            each.forward_backward([MicroBatch(tokens, tokens)])
        norm = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), clip)
        for group in theirs.optimizer.param_groups:
            group["lr"] = 0.01
        theirs.optimizer.step()
        theirs.optimizer.zero_grad()
        assert ours.step(0.01, 0.0) == pytest.approx(float(norm), rel=1e-5)
    assert not hasattr(ours.optimizer, "grad_scale")  # a step of somebody else would divide by it
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert mine.grad is None
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_gradients_that_are_not_finite_update_nothing():
    tokens, one = random_tokens(2, 9), engine()
    one.forward_backward([MicroBatch(tokens, tokens)])
    next(one.model.parameters()).grad[0, 0] = float("inf")
    before = [p.detach().clone() for p in one.model.parameters()]
    with pytest.raises(FloatingPointError, match="gradient norm is inf"):
        one.step(0.01, 0.001)
    assert all(torch.equal(p, old) for p, old in zip(one.model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_are_stepped(dtype):
    tokens = random_tokens(2, 9)
    one = TorchEngine(engine().model.to(dtype))
    before = [p.detach().clone() for p in one.model.parameters()]
    one.forward_backward([MicroBatch(tokens, tokens)])
    one.step(0.01, 0.001)
    assert any(not torch.equal(p, old) for p, old in zip(one.model.parameters(), before, strict=True))
