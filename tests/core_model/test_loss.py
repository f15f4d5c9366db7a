"""Chunked cross-entropy equals the plain one, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model import loss as loss_module
from core_model.loss import IGNORE, cross_entropy_sum, token_losses
from core_model.native import training


def case(tokens: int, dim: int = 6, vocabulary: int = 11, seed: int = 0, ignored: float = 0.3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator)
    weight = torch.randn(vocabulary, dim, generator=generator)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORE
    return hidden, weight, labels


def plain(hidden, weight, labels):
    return F.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORE, reduction="sum")


@given(st.integers(1, 25), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_equal_the_plain_loss(tokens, chunk, seed):
    hidden, weight, labels = case(tokens, seed=seed)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    got, want = cross_entropy_sum(*ours, labels, chunk=chunk), plain(*theirs, labels)
    torch.testing.assert_close(got, want)
    (got * 0.37).backward()
    (want * 0.37).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_leading_dimensions_are_flattened():
    hidden, weight, labels = case(12)
    shaped = cross_entropy_sum(hidden.view(3, 4, 6), weight, labels.view(3, 4), chunk=5)
    torch.testing.assert_close(shaped, cross_entropy_sum(hidden, weight, labels))


@pytest.mark.parametrize("tokens", [0, 4])
def test_nothing_to_predict_costs_nothing_and_has_zero_gradients(tokens):
    hidden, weight, _ = case(tokens)
    hidden.requires_grad_(), weight.requires_grad_()
    value = cross_entropy_sum(hidden, weight, torch.full((tokens,), IGNORE))
    value.backward()
    assert value.item() == 0 and hidden.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


def test_ignored_tokens_get_no_gradient():
    hidden, weight, labels = case(20)
    hidden.requires_grad_()
    cross_entropy_sum(hidden, weight, labels).backward()
    assert hidden.grad[labels == IGNORE].abs().max() == 0
    assert (hidden.grad[labels != IGNORE].abs().sum(-1) > 0).all()


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    value = cross_entropy_sum(hidden, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1]))
    value.backward()
    assert value.item() == pytest.approx(2e4) and hidden.grad.isfinite().all()


def test_bf16_states_over_an_fp32_head_stay_near_fp32_and_the_gradient_is_fp32():
    hidden, weight, labels = case(200, dim=32)
    weight = (weight * 0.2).requires_grad_()
    value = cross_entropy_sum(hidden.to(torch.bfloat16), weight, labels)
    value.backward()
    assert value.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert value.item() == pytest.approx(plain(hidden, weight, labels).item(), rel=1e-2)


@pytest.mark.parametrize("scale", [1 / 3, 1 / 1000])
def test_states_and_head_are_weighed_alike_in_bf16(scale):
    """A scale that was rounded to bf16 would move every number of a gradient the same way, by up to 0.4 %."""
    hidden = (torch.randn(4096, 32) / 8).bfloat16().requires_grad_()
    labels, head = torch.randint(0, 48, (4096,)), torch.randn(48, 32)
    (whole,) = torch.autograd.grad(cross_entropy_sum(hidden, head, labels), hidden)
    (scaled,) = torch.autograd.grad(cross_entropy_sum(hidden, head, labels) * scale, hidden)
    factor = (scaled.float() * whole.float()).sum() / whole.float().square().sum()
    assert float(factor) / scale == pytest.approx(1, abs=1e-4)


def test_a_loss_that_is_compiled_is_the_compilers(monkeypatch):
    hidden, head = torch.randn(8, 32), torch.randn(48, 32)
    if not training.serves_loss(hidden, head):
        pytest.skip("no compiled loss on this machine")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not training.serves_loss(hidden, head)


def test_evaluation_works_out_no_gradient(monkeypatch):
    hidden, weight, labels = case(8)
    weight.requires_grad_()
    asked = []
    monkeypatch.setattr(
        loss_module._ChunkedCrossEntropy, "apply", lambda hidden, weight, *rest: asked.append(weight.requires_grad)
    )
    cross_entropy_sum(hidden, weight, labels)
    with torch.no_grad():
        cross_entropy_sum(hidden, weight, labels)
    assert asked == [True, False]


def test_token_losses_sum_to_the_loss_and_are_zero_where_ignored():
    hidden, weight, labels = case(21)
    losses = token_losses(hidden.view(3, 7, 6), weight, labels.view(3, 7), chunk=4)
    assert losses.shape == (3, 7) and (losses.flatten()[labels == IGNORE] == 0).all()
    torch.testing.assert_close(losses.sum(), plain(hidden, weight, labels))
