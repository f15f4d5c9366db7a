"""The router, against hand-computed cases and a reference in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference_select, tiny_config

from core_model.moe.gate import Gate, top_k_low_index


def make_gate(bias: list[float] | None = None, **overrides) -> Gate:
    """A gate whose logits are its input: weight is the identity."""
    experts = overrides.get("n_routed_experts", 8)
    gate = Gate(tiny_config(hidden_size=experts, **overrides))
    with torch.no_grad():
        gate.weight.copy_(torch.eye(experts))
        if bias is not None:
            gate.e_score_correction_bias.copy_(torch.tensor(bias))
    return gate


def logits_of(scores: list[float]) -> torch.Tensor:
    return torch.tensor([scores], dtype=torch.float64).logit().float()


def test_weights_are_normalised_scores_times_the_scaling_factor():
    gate = make_gate(n_group=1, topk_group=1, routed_scaling_factor=2.5)
    routing = gate(logits_of([0.1, 0.2, 0.6, 0.3, 0.1, 0.2, 0.1, 0.1]))
    assert routing.indices_TK.tolist() == [[2, 3]]
    torch.testing.assert_close(routing.weights_TK, torch.tensor([[2.5 * 0.6 / 0.9, 2.5 * 0.3 / 0.9]]))
    torch.testing.assert_close(routing.scores_TE[0, 2], torch.tensor(0.6))


def test_without_normalisation_weights_are_the_scores():
    gate = make_gate(n_group=1, topk_group=1, norm_topk_prob=False)
    weights = gate(logits_of([0.1, 0.2, 0.6, 0.3, 0.1, 0.2, 0.1, 0.1])).weights_TK
    torch.testing.assert_close(weights, torch.tensor([[0.6, 0.3]]))


def test_groups_are_ranked_by_the_sum_of_their_two_best():
    # By maximum, group 0 (0.9) would win; by the top-2 sum, groups 1 (1.1) and 2 (1.05) do.
    gate = make_gate(topk_group=2)
    routing = gate(logits_of([0.9, 0.05, 0.55, 0.55, 0.6, 0.45, 0.3, 0.3]))
    assert routing.indices_TK.tolist() == [[4, 2]]


def test_groups_left_out_stay_out_when_every_biased_score_is_negative():
    # A mask of 0 instead of -inf would pick experts of the groups left out.
    gate = make_gate(bias=[-5.0] * 8, topk_group=1)
    routing = gate(logits_of([0.2, 0.2, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1]))
    assert routing.indices_TK.tolist() == [[2, 3]]
    torch.testing.assert_close(routing.weights_TK, torch.tensor([[0.8 / 1.5, 0.7 / 1.5]]))


def test_the_bias_chooses_but_does_not_weigh():
    scores = [0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2]
    plain = make_gate(n_group=1, topk_group=1)(logits_of(scores))
    biased = make_gate([0, 0, 0, 0, 0, 0, 0, 9.0], n_group=1, topk_group=1)(logits_of(scores))
    assert plain.indices_TK.tolist() == [[1, 0]]
    assert biased.indices_TK.tolist() == [[7, 1]]
    torch.testing.assert_close(biased.weights_TK, torch.tensor([[0.2 / 0.8, 0.6 / 0.8]]))
    torch.testing.assert_close(biased.scores_TE, plain.scores_TE)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_ties_go_to_the_lower_index(groups):
    gate = make_gate(n_group=groups[0], topk_group=groups[1])
    assert gate(torch.zeros(3, 8)).indices_TK.tolist() == [[0, 1]] * 3


def test_top_k_low_index_is_ordered():
    x = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, -0.0, 0.0, 0.0]])
    assert top_k_low_index(x, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


# Scores of 1/64 steps make ties common and sums exact.
score = st.integers(1, 63).map(lambda n: n / 64)
bias = st.integers(-640, 640).map(lambda n: n / 64)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_selection_equals_the_reference(data):
    groups = data.draw(st.sampled_from([1, 2, 4]), "groups")
    experts = groups * data.draw(st.integers(2, 4), "size")
    top_groups = data.draw(st.integers(1, groups), "top groups")
    top_k = data.draw(st.integers(1, top_groups * experts // groups), "top k")
    scores = data.draw(st.lists(score, min_size=experts, max_size=experts), "scores")
    biases = data.draw(st.lists(bias, min_size=experts, max_size=experts), "bias")
    gate = make_gate(biases, n_routed_experts=experts, n_group=groups, topk_group=top_groups, num_experts_per_tok=top_k)
    expected, _ = reference_select(scores, biases, groups, top_groups, top_k)
    assert gate.select(torch.tensor([scores])).tolist() == [expected]


def test_gradient_reaches_the_weights_and_never_the_bias():
    gate = make_gate()
    x = torch.randn(6, 8, requires_grad=True)
    routing = gate(x)
    routing.weights_TK.square().sum().backward()
    assert gate.weight.grad.abs().sum() > 0 and x.grad.abs().sum() > 0
    assert not gate.e_score_correction_bias.requires_grad and gate.e_score_correction_bias.grad is None
    assert "e_score_correction_bias" not in dict(gate.named_parameters())
    assert "e_score_correction_bias" in gate.state_dict() and "tokens_per_expert" not in gate.state_dict()


def test_the_load_is_the_choices_of_real_tokens_added_up():
    gate = make_gate(n_group=1, topk_group=1)
    routing = gate(torch.randn(10, 8))
    assert gate.tokens_per_expert.sum() == 0  # a forward alone, which may run again, counts nothing
    gate.count(routing)
    chosen = torch.bincount(routing.indices_TK.flatten(), minlength=8)
    assert torch.equal(gate.tokens_per_expert, chosen)
    gate.count(routing, torch.tensor([[True] * 4 + [False], [False] * 3 + [True] * 2]))
    real = torch.bincount(routing.indices_TK[[0, 1, 2, 3, 8, 9]].flatten(), minlength=8)
    assert torch.equal(gate.tokens_per_expert, chosen + real)


def test_routing_is_fp32_whatever_comes_in():
    gate = make_gate().to(torch.bfloat16)
    routing = gate(torch.randn(4, 8).to(torch.bfloat16))
    assert routing.scores_TE.dtype == routing.weights_TK.dtype == torch.float32


def test_a_cast_of_the_model_leaves_the_bias_in_fp32():
    gate = make_gate([0.501, 0.502, 0.503, 0.504, 0.505, 0.506, 0.507, 0.508])
    before = gate.e_score_correction_bias.clone()
    for cast in (gate.bfloat16, gate.half, gate.float):
        cast()
        assert torch.equal(gate.e_score_correction_bias, before)
    assert gate.to("meta").e_score_correction_bias.device.type == "meta"
