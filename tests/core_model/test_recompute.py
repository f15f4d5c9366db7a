"""Recomputation: the same gradients bit for bit, less kept, every token counted once."""

from __future__ import annotations

import warnings

import pytest
import torch
from memory import measure
from reference import YARN_TINY, random_model, random_tokens, tiny_config

from core_model.attention import AttentionContext, MultiHeadLatentAttention
from core_model.model import V3ForCausalLM
from core_model.moe.balance import gates
from core_model.norm import RMSNorm
from core_model.recompute import derived, run
from core_model.rope import inverse_frequencies, rotations

POLICIES = ("v3", "layer")
WHOLE, PACKED, PADDED = "whole rows", "packed", "padded"
CONFIGURATIONS = {
    "groups, yarn": {"rope_scaling": YARN_TINY},
    "plain queries": {"q_lora_rank": None},
    "wide values, two MTP depths": {"v_head_dim": 20, "num_nextn_predict_layers": 2},
    "dense": {"n_routed_experts": None},
}


def training_model(**overrides) -> V3ForCausalLM:
    model = random_model(tiny_config(**overrides)).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    return model


def inputs_of(rows: str) -> dict[str, torch.Tensor]:
    tokens = random_tokens(2, 12)
    inputs = {"input_ids": tokens, "labels": tokens}
    if rows == PACKED:
        inputs["position_ids"] = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    if rows == PADDED:
        inputs["attention_mask"] = torch.ones_like(tokens)
        inputs["attention_mask"][1, 7:] = 0
    return inputs


def step(model: V3ForCausalLM, policy: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Loss, then every gradient."""
    model.recompute = policy
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in model.parameters())


@pytest.mark.parametrize("rows", [WHOLE, PACKED, PADDED])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_gradients_are_bitwise_equal(case, rows):
    model, inputs = training_model(**CONFIGURATIONS[case]), inputs_of(rows)
    kept = step(model, "none", inputs)
    for policy in POLICIES:
        for ours, expected in zip(step(model, policy, inputs), kept, strict=True):
            assert torch.equal(ours, expected), policy


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_bitwise_equal_in_bf16(autocast):
    model, inputs = training_model(), inputs_of(PACKED)
    model.compute_dtype = None if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = [step(model, policy, inputs) for policy in ("none", *POLICIES)]
    for ours in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ours, found[0], strict=True))


@pytest.mark.parametrize("policy", ("none", *POLICIES))
def test_a_token_is_counted_once_and_never_in_evaluation(policy):
    model, inputs = training_model(num_nextn_predict_layers=2), inputs_of(PADDED)
    step(model, policy, inputs)
    counts = [int(gate.tokens_per_expert.sum()) for _, gate in gates(model)]
    assert counts == [(12 + 7) * 2] * 4  # real tokens, two experts each; two MoE layers and two MTP modules
    model.eval()
    model(**inputs).loss.backward()
    with torch.no_grad():
        model.train()(**inputs)
    assert [int(gate.tokens_per_expert.sum()) for _, gate in gates(model)] == counts


def test_norms_and_up_projections_run_again_and_nothing_else_does_under_v3():
    model, inputs = training_model(), inputs_of(WHOLE)
    calls: dict[str, int] = {}

    def counted(name: str, forward):
        def wrapper(*args):
            calls[name] = calls.get(name, 0) + 1
            return forward(*args)

        return wrapper

    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module._normalise = counted(name, module._normalise)
        elif isinstance(module, torch.nn.Linear) and name != "lm_head":  # which losses do not call
            module.forward = counted(name, module.forward)
    step(model, "v3", inputs)
    again = {name for name, count in calls.items() if count == 2}
    assert set(calls.values()) <= {1, 2}
    for name in calls:
        before_head = name == "model.norm" or name.endswith("shared_head.norm")  # the loss keeps gradients alone
        expected = name.endswith("_b_proj") or ("norm" in name and not before_head)
        assert (name in again) == expected, name


def test_each_policy_keeps_less_than_the_one_before():
    model = training_model(hidden_size=64, num_hidden_layers=4)
    tokens = random_tokens(4, 64)
    kept = []
    for policy in ("none", *POLICIES):
        model.recompute = policy
        kept.append(measure(lambda: model(tokens, labels=tokens).loss).kept)
    assert kept[0] > 1.2 * kept[1] and kept[1] > 1.5 * kept[2]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="none, v3 or layer, not 'all'"):
        run("all", torch.nn.Identity(), torch.zeros(1))


def test_transformers_switch_is_the_policy_layer():
    model = training_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()
        assert model.recompute == "layer" and model.is_gradient_checkpointing
        model.gradient_checkpointing_disable()
        assert model.recompute == "none" and not model.is_gradient_checkpointing
        for refused in ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, {"every_n_layers": 2}):
            with pytest.raises(ValueError, match="not reentrant"):
                model.gradient_checkpointing_enable(**refused)
        assert model.recompute == "none"


def test_a_derived_tensor_is_made_again_once_for_all_its_readers_and_with_views():
    made = []

    def double(x: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return 2 * x

    x = torch.arange(6.0).view(2, 3).requires_grad_()
    weight = torch.ones(3, requires_grad=True)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = derived(double, x)
        return (y * weight).sum() + (y[:, 1:] * weight[1:]).sum() + (y.T[0] * weight[0]).sum()

    run("v3", forward, x).backward()
    assert len(made) == 2
    torch.testing.assert_close(weight.grad, torch.tensor([12.0, 20.0, 28.0]))
    torch.testing.assert_close(x.grad, torch.full((2, 3), 4.0))


def test_a_long_sequence_takes_memory_in_its_length_not_its_square():
    """Forward and backward of one attention layer; the scores of 16K tokens would take 1 GiB."""
    sizes = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": 16}
    attention = MultiHeadLatentAttention(tiny_config(**sizes), 0)

    def train(length: int) -> torch.Tensor:
        positions = torch.arange(length).unsqueeze(0)
        context = AttentionContext(rotations(positions, inverse_frequencies(4, 10000.0, None)))
        out = attention(torch.ones(1, length, 32, requires_grad=True), context)
        out.sum().backward()
        return out

    short, long = (measure(lambda length=length: train(length)).peak for length in (4096, 16384))
    assert long < 4.5 * short and long < 64 * 2**20
