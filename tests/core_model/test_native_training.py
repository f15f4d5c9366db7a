"""Compiled layers in training: gradients against fp32 and against PyTorch's operations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from compiled import (
    CONFIGURATIONS,
    THREE_HEADS,
    both,
    check_against_fp32,
    gradients,
    needs_compiler,
    operations,
    training_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_tokens, relative_difference

from core_model.moe.balance import router_statistics
from core_model.native import decoder as native_decoder
from core_model.parallel.engine import MicroBatch, TorchEngine

pytestmark = [needs_compiler, pytest.mark.usefixtures("wherever_it_compiles")]


@both
@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_gradients(changes, dtype):
    check_against_fp32(training_model(dtype, **changes), random_tokens(3, 101, vocabulary=48))


@both
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(2, 300), seed=st.integers(0, 5))
def test_gradients_of_any_number_of_tokens(rows, length, seed, dtype):
    """Tiles of tokens, blocks of attention and pairs of rows that are full, or not."""
    check_against_fp32(training_model(dtype), random_tokens(rows, length, vocabulary=48, seed=seed))


def test_gradients_with_routing_by_score():
    """Experts that get different numbers of tokens, some none, as the states say."""
    model = training_model(n_routed_experts=32, n_group=4, topk_group=2, num_experts_per_tok=4)
    for router in model.model.routers():
        router.e_score_correction_bias.normal_(-1.0, 0.1, generator=torch.Generator().manual_seed(0))
    tokens = random_tokens(2, 70, vocabulary=48)
    compiled = model.model(tokens).routings
    with operations():
        rounded = model.model(tokens).routings
        expected = gradients(model, tokens)
    for mine, theirs in zip(compiled, rounded, strict=True):
        assert (mine.indices_TK == theirs.indices_TK).float().mean() > 0.95
        torch.testing.assert_close(mine.scores_TE, theirs.scores_TE, rtol=0, atol=0.05)
    found = gradients(model, tokens)
    assert relative_difference(found["model.embed_tokens.weight"], expected["model.embed_tokens.weight"]) < 0.2


@both
def test_packed_documents(dtype):
    position_ids = torch.cat([torch.arange(n) for n in (1, 40, 59, 17, 83)]).view(2, 100)
    position_ids[1, 0] = 0  # rows begin a document
    check_against_fp32(training_model(dtype), random_tokens(2, 100, vocabulary=48), position_ids=position_ids)


@both
@pytest.mark.parametrize("side", ["left", "right", "a whole row"])
def test_padding_changes_nothing(side, dtype):
    """What is no document's has no part in the loss, nor in any gradient."""
    model, tokens = training_model(dtype), random_tokens(2, 60, vocabulary=48)
    model.loss_weights.balance = 0.0  # a mean over rows, of which there are more with padding
    mask = torch.ones(2, 60, dtype=torch.long)
    if side == "a whole row":
        mask[0] = 0
    else:
        mask[0, slice(None, 23) if side == "left" else slice(37, None)] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    padded = gradients(model, tokens, labels, attention_mask=mask)
    other = gradients(model, torch.where(mask == 0, 7, tokens), labels, attention_mask=mask)
    for name in padded:
        torch.testing.assert_close(padded[name], other[name], rtol=1e-3, atol=1e-6)
    check_against_fp32(model, tokens, labels=labels, attention_mask=mask)


@both
def test_the_same_to_the_last_bit_with_any_number_of_threads(dtype):
    model, tokens, kept = (
        training_model(dtype, **THREE_HEADS),
        random_tokens(3, 131, vocabulary=48),
        torch.get_num_threads(),
    )
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            context = model.model.attention_context((3, 131), None, None, None)
            assert native_decoder.served(model.model.layers[1], model.model.embed(tokens), context)
            # mtp's projection is PyTorch's, and what the embedding gets by way of it.
            mine = {k: v for k, v in gradients(model, tokens).items() if "self_attn" in k or "mlp" in k or "norm" in k}
            hidden = model.model.embed(tokens)
            hidden.backward(hidden.detach())
            found.append({**mine, "embedding": model.model.embed_tokens.weight.grad.clone()})
    finally:
        torch.set_num_threads(kept)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@both
def test_recomputation_of_layers_changes_nothing(dtype):
    model, tokens = training_model(dtype), random_tokens(2, 50, vocabulary=48)
    kept = gradients(model, tokens)
    model.recompute = "layer"
    again = gradients(model, tokens)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@both
def test_without_gradients_the_loss_is_the_same(dtype):
    model, tokens = training_model(dtype), random_tokens(2, 50, vocabulary=48)
    expected = gradients(model, tokens)["loss"]
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model.losses(tokens, tokens, model.model(tokens)).loss, expected)
    model.train()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    assert set(gradients(model, tokens)) == {"lm_head.weight", "loss"}


@both
def test_the_load_is_counted_and_training_learns(dtype):
    model = training_model(dtype, std=0.06)
    engine, tokens = TorchEngine(model), random_tokens(4, 64, vocabulary=48)
    losses = [engine.forward_backward([MicroBatch(tokens, tokens)]).lm]
    statistics = router_statistics(model)
    assert statistics and all(router.tokens_per_expert.sum() == 4 * 64 * 2 for router in model.model.routers())
    for _ in range(30):
        engine.step(5e-3, 0.001)
        losses.append(engine.forward_backward([MicroBatch(tokens, tokens)]).lm)
    assert losses[-1] < 0.5 * losses[0]


@both
@pytest.mark.parametrize("q_lora_rank", [32, None])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_frozen_weights_get_no_gradient_and_change_no_other(data, q_lora_rank, dtype):
    model, tokens = training_model(dtype, q_lora_rank=q_lora_rank), random_tokens(2, 101, vocabulary=48)
    expected = gradients(model, tokens)
    parameters = dict(model.named_parameters())
    for name in data.draw(st.sets(st.sampled_from(sorted(parameters)), min_size=1, max_size=len(parameters) - 1)):
        parameters[name].requires_grad_(False)
    found = gradients(model, tokens)
    assert found.keys() == {"loss", *(name for name, one in parameters.items() if one.requires_grad)}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "q_a_proj", "kv_a_proj_with_mqa", "q_proj"])
def test_one_of_two_weights_over_the_same_states_is_frozen(part):
    """Whose sums share what is kept for them."""
    model = training_model(torch.float32, q_lora_rank=None if part == "q_proj" else 32)
    tokens = random_tokens(2, 101, vocabulary=48)
    expected = gradients(model, tokens)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part not in name)
    found = gradients(model, tokens)
    assert len(found) < len(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_of_gradients_are_refused(compiled):
    model, tokens = training_model(torch.float32), random_tokens(2, 30, vocabulary=48)
    weight = model.model.embed_tokens.weight
    with nullcontext() if compiled else operations():
        with pytest.raises(RuntimeError, match="no gradients of gradients: create_graph must be False"):
            torch.autograd.grad(model(tokens, labels=tokens).loss, weight, create_graph=True)
        x = model.model.embed(tokens)
        context = model.model.attention_context((2, 30), None, None, None)
        with pytest.raises(RuntimeError, match="LayerFunction has no" if compiled else "SwiGLU has no"):
            torch.autograd.grad(model.model.layers[1](x, context)[0].sum(), weight, create_graph=True)


@both
def test_broken_states_do_not_look_sound(dtype):
    model = training_model(dtype)
    with torch.no_grad():
        model.model.layers[1].self_attn.kv_b_proj.weight[0, 0] = float("nan")
    assert gradients(model, random_tokens(2, 40, vocabulary=48))["loss"].isnan()
