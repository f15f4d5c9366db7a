"""What is compiled beside the layers: cross-entropy, norms, the embedding's gradient, balance losses."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from compiled import both, needs_compiler, operations
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import relative_difference
from torch import nn

from core_model.embedding import Embedding
from core_model.loss import cross_entropy_sum
from core_model.moe.balance import sequence_balance_loss
from core_model.native import training
from core_model.norm import RMSNorm

pytestmark = [needs_compiler, pytest.mark.usefixtures("wherever_it_compiles")]


@both
@pytest.mark.parametrize("tokens", [1, 47, 96, 1921, 4000])
def test_cross_entropy(tokens, dtype):
    """One tile and several, one chunk and several, with an odd one at the end."""
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 32, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(80, 32, generator=draw).bfloat16().float().requires_grad_()
    labels = torch.randint(0, 80, (tokens,), generator=draw)
    loss = cross_entropy_sum(hidden, weight, labels)
    (3 * loss).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum")
    (3 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for one, other in zip((hidden, weight), exact, strict=True):
        assert relative_difference(one.grad, other.grad) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_cross_entropy_of_nothing_and_of_no_token():
    hidden, weight = torch.zeros(3, 32, dtype=torch.bfloat16), torch.zeros(80, 32, requires_grad=True)
    loss = cross_entropy_sum(hidden, weight, torch.full((3,), -100))
    loss.backward()
    assert loss == 0 and weight.grad is not None and not weight.grad.any()
    with pytest.raises(IndexError, match="from 2 to 80, tokens from 0 to 79"):
        cross_entropy_sum(hidden, weight, torch.tensor([2, 80, 5]))


@both
@pytest.mark.parametrize("shape", [(1, 16), (95, 48), (3, 97, 32), (2, 200, 144)])
def test_norm(shape, dtype):
    """Rows of less than a tile, and of several; widths of one panel and of several."""
    draw = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.rand(shape[-1], generator=draw) + 0.5)
    norm = RMSNorm(shape[-1], 1e-6)
    norm.weight = weight
    x = torch.randn(shape, generator=draw).to(dtype)
    x[..., 1:2, :] = 0.0  # rows whose only measure is eps
    dy = torch.randn(shape, generator=draw).to(dtype)

    def run(x, norm=norm):
        x = x.clone().requires_grad_()
        y = norm(x)
        return [y.detach(), *torch.autograd.grad(y, (x, weight), dy)]

    found = run(x)
    with operations():
        expected = run(x)
    transposed = run(x.transpose(0, 1).contiguous().transpose(0, 1))  # not contiguous
    for one, other, again in zip(found, expected, transposed, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, again)
        assert relative_difference(one, other) < (1e-6 if dtype == torch.float32 else 5e-3)
    weight.requires_grad_(False)
    x.requires_grad_()
    assert torch.equal(torch.autograd.grad(norm(x), x, dy)[0], found[1])


def test_norms_that_operations_serve(monkeypatch):
    monkeypatch.setattr(training, "norm", None)
    with pytest.raises(TypeError):
        RMSNorm(32, 1e-6)(torch.ones(2, 32))
    RMSNorm(40, 1e-6)(torch.ones(2, 40))
    RMSNorm(32, 1e-6)(torch.ones(2, 32, dtype=torch.float64))
    RMSNorm(32, 1e-6)(torch.ones(0, 32))
    RMSNorm(32, 1e-6).to("meta")(torch.ones(2, 32, device="meta"))
    with pytest.raises(RuntimeError):
        RMSNorm(32, 1e-6)(torch.ones(2, 64))


@given(sizes=st.lists(st.sampled_from([1, 7, 32, 33, 8192, 20001]), max_size=6), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_norm_of_all_gradients(sizes, seed):
    draw = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=draw) for size in sizes]
    expected = torch.cat([torch.zeros(1), *tensors]).double().norm()
    assert training.serves_norm(tensors)
    assert training.total_norm(tensors) == pytest.approx(float(expected), rel=1e-6)
    assert not training.serves_norm([*tensors, torch.ones(3, dtype=torch.float64)])
    assert not training.serves_norm([*tensors, torch.ones(4, 4).T])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 40, 8200])
def test_norm_of_broken_gradients(bad, at):
    tensors = [torch.ones(5), torch.ones(8201).index_fill(0, torch.tensor(at), bad)]
    assert not math.isfinite(training.total_norm(tensors))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("dim", [16, 144])
def test_embedding(dim, kind):
    ids = torch.tensor([[5, 0, 5], [79, 5, 1]], dtype=kind)
    embedding, plain = Embedding(80, dim), nn.Embedding(80, dim)
    plain.load_state_dict(embedding.state_dict())
    dy = torch.randn(3, 2, dim).transpose(0, 1)  # not contiguous
    for module in (embedding, plain):
        module(ids).backward(dy)
    assert torch.equal(embedding(ids), plain(ids))
    torch.testing.assert_close(embedding.weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6)
    with pytest.raises(IndexError):
        embedding(ids + 1)


def test_embeddings_that_operations_serve(monkeypatch):
    monkeypatch.setattr(training, "embedding_backward", None)
    ids = torch.tensor([1, 2])
    with pytest.raises(TypeError):
        Embedding(8, 16)(ids).sum().backward()
    for module in (Embedding(8, 24), Embedding(8, 16).bfloat16(), Embedding(8, 16, padding_idx=1)):
        module(ids).float().sum().backward()
        assert module.weight.grad is not None
    assert not Embedding(8, 16, padding_idx=1)(ids)[0].any()
    assert Embedding(8, 16)(ids[:0]).shape == (0, 16)
    frozen = Embedding(8, 16).requires_grad_(False)
    assert not frozen(ids).requires_grad


@given(
    sequences=st.integers(1, 4), length=st.integers(1, 30), experts=st.integers(1, 20), seed=st.integers(0, 5),
    padded=st.booleans(), levels=st.sampled_from([3, 1000]), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_balance_loss(sequences, length, experts, seed, padded, levels, data):
    """Scores of few values are often equal, and ties go to the lower index."""
    top_k, draw = data.draw(st.integers(1, experts)), torch.Generator().manual_seed(seed)
    scores = 0.2 + torch.randint(levels, (sequences * length, experts), generator=draw) / levels
    real = torch.rand(sequences, length, generator=draw) < 0.6 if padded else None

    def run():
        x = scores.clone().requires_grad_()
        loss = sequence_balance_loss(x, top_k, sequences, real)
        return loss.detach(), torch.autograd.grad(3 * loss, x)[0]

    found = run()
    with operations():
        expected = run()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_balance_loss_of_broken_scores():
    scores = torch.full((6, 4), 0.5, requires_grad=True)
    broken = scores.masked_fill(torch.eye(6, 4) == 1, float("nan"))
    assert sequence_balance_loss(broken, 2, 2).isnan()


def test_labels_of_any_integer_type():
    hidden, weight, labels = torch.randn(70, 32), torch.randn(80, 32), torch.arange(70)
    expected = cross_entropy_sum(hidden, weight, labels)
    for kind in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(cross_entropy_sum(hidden, weight, labels.to(kind)), expected)


def test_balance_loss_of_unusual_arguments():
    scores = torch.rand(6, 4)
    with operations():
        expected = sequence_balance_loss(scores, 9, 2)
    assert torch.equal(sequence_balance_loss(scores, 9, 2), expected)  # more experts than there are
    real = torch.tensor([[True, True, False]])  # of all sequences alike
    torch.testing.assert_close(
        sequence_balance_loss(scores, 2, 2, real), sequence_balance_loss(scores, 2, 2, real.expand(2, 3).clone())
    )
    with pytest.raises(RuntimeError):
        sequence_balance_loss(scores, 2, 2, torch.ones(2, 10, dtype=torch.bool))


def test_tensors_that_only_say_that_they_are_negated_or_zero():
    norm, x, g = RMSNorm(32, 1e-6), torch.randn(4, 32, requires_grad=True), torch.randn(4, 32)
    assert torch.equal(norm(torch._neg_view(x)), norm(-x))
    expected = torch.autograd.grad(norm(x), x, -g)[0]
    assert torch.equal(torch.autograd.grad(norm(x), x, torch._neg_view(g))[0], expected)
    assert not torch.autograd.grad(norm(x), x, torch._efficientzerotensor((4, 32)))[0].any()


def test_an_embedding_may_step_between_two_backwards_and_keeps_no_table():
    embedding, kept = Embedding(80, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        one, two = embedding(torch.tensor([1, 2])).sum(), embedding(torch.tensor([3])).sum()
    one.backward()
    with torch.no_grad():
        embedding.weight += 1.0
    two.backward()
    assert sum(kept) == 3


def test_compilers_and_transforms_take_operations():
    embedding, ids = Embedding(80, 16), torch.tensor([[1, 2], [3, 1]])
    assert torch.equal(torch.vmap(embedding)(ids), embedding(ids))
    assert torch.equal(torch.compile(embedding, backend="eager", fullgraph=True)(ids), embedding(ids))


PARTS = {
    "ChunkedCrossEntropy": lambda x: cross_entropy_sum(x, torch.randn(48, 32), torch.arange(4)),
    "SequenceLoss": lambda x: sequence_balance_loss(x.sigmoid(), 2, 2),
    "RMSNorm": lambda x: RMSNorm(32, 1e-6)(x).square().sum(),
    "Embedding": lambda x: torch.func.functional_call(Embedding(4, 32), {"weight": x}, torch.arange(4)).square().sum(),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_gradients_are_refused_by(part, compiled):
    x = torch.randn(4, 32, requires_grad=True)
    with nullcontext() if compiled else operations():
        value = PARTS[part](x)
        if not compiled and part in ("SequenceLoss", "Embedding"):  # torch's own operations
            assert torch.autograd.grad(value, x, create_graph=True)[0].requires_grad
            return
        with pytest.raises(RuntimeError, match=f"{part}(Function)? has no gradients of gradients"):
            torch.autograd.grad(value, x, create_graph=True)


def test_losses_of_tensors_that_only_say_that_they_are_negated():
    x, weight, labels = torch.randn(4, 32), torch.randn(48, 32), torch.arange(4)
    expected = cross_entropy_sum(-x, weight, labels)
    torch.testing.assert_close(cross_entropy_sum(torch._neg_view(x), weight, labels), expected)
    torch.testing.assert_close(cross_entropy_sum(x, torch._neg_view(weight), labels), expected)
    scores = torch.rand(6, 4)
    expected = sequence_balance_loss(scores, 2, 2)
    torch.testing.assert_close(sequence_balance_loss(torch._neg_view(-scores), 2, 2), expected)
