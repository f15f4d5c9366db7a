"""Load balance: the bias follows the load, the sequence loss is Eq. 17-20, the statistics say what they claim."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_model, random_tokens, reference_balance_loss, tiny_config
from torch import nn

from core_model.config import V3Config
from core_model.model import V3ForCausalLM
from core_model.moe.balance import gates, router_statistics, sequence_balance_loss, update_routing_bias
from core_model.moe.gate import Gate


@pytest.fixture
def gate() -> Gate:
    return Gate(tiny_config(n_routed_experts=4, n_group=1, topk_group=1))


def test_the_bias_rises_for_idle_experts_and_falls_for_busy_ones(gate):
    gate.tokens_per_expert.copy_(torch.tensor([10, 0, 5, 5]))
    update_routing_bias([gate], 0.001)
    torch.testing.assert_close(gate.e_score_correction_bias, torch.tensor([-0.001, 0.001, 0.0, 0.0]))


def test_only_the_sign_of_the_violation_counts(gate):
    gate.tokens_per_expert.copy_(torch.tensor([1000, 1, 2, 3]))
    update_routing_bias([gate], 0.01)
    bias = gate.e_score_correction_bias
    torch.testing.assert_close(bias[1:], bias[1].expand(3))
    torch.testing.assert_close(bias[1] - bias[0], torch.tensor(0.02))


def test_the_bias_is_centred_so_that_it_cannot_drift(gate):
    gate.e_score_correction_bias.copy_(torch.tensor([5.0, 5.1, 5.2, 4.7]))
    for _ in range(50):
        gate.tokens_per_expert.copy_(torch.tensor([9, 1, 1, 1]))
        update_routing_bias([gate], 0.01)
    bias = gate.e_score_correction_bias
    assert abs(float(bias.mean())) < 1e-6
    torch.testing.assert_close(bias[2] - bias[1], torch.tensor(0.1))


def test_an_update_forgets_the_load_and_without_load_or_speed_the_bias_stays(gate):
    gate.tokens_per_expert.copy_(torch.tensor([3, 1, 0, 0]))
    update_routing_bias([gate], 0.0)
    assert gate.tokens_per_expert.sum() == 0 and gate.e_score_correction_bias.abs().max() == 0
    update_routing_bias([gate], 0.5)
    assert gate.e_score_correction_bias.abs().max() == 0


def test_repeated_updates_even_out_a_skewed_router():
    gate = Gate(tiny_config(hidden_size=8, n_group=1, topk_group=1)).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(8))
    x = torch.randn(512, 8, generator=generator) + torch.linspace(2, -2, 8)
    gate.count(gate(x))
    before = router_statistics(gate)[""].max_violation
    update_routing_bias([gate], 0.0)
    for _ in range(150):
        gate.count(gate(x))
        update_routing_bias([gate], 0.01)
    gate.count(gate(x))
    after = router_statistics(gate)[""]
    assert before > 1.5 and after.max_violation < 0.2 and after.dead == 0


def test_routers_are_updated_together_as_one_by_one():
    """Each against its own load and centred by itself; the one that saw no token stays."""
    together, alone = ([Gate(tiny_config(n_routed_experts=4, n_group=1, topk_group=1)) for _ in range(3)] for _ in "ab")
    for routers in (together, alone):
        for gate, load, start in zip(
            routers, ([90, 1, 2, 3], [0, 0, 7, 1], [0, 0, 0, 0]), (0.0, 0.3, 0.5), strict=True
        ):
            gate.tokens_per_expert.copy_(torch.tensor(load))
            gate.e_score_correction_bias.copy_(torch.tensor([start, -0.1, 0.2, 0.4]))
    update_routing_bias(together, 0.01)
    for one, other in zip(together, alone, strict=True):
        update_routing_bias([other], 0.01)
        torch.testing.assert_close(one.e_score_correction_bias, other.e_score_correction_bias, rtol=0, atol=1e-7)
        assert not one.tokens_per_expert.any()
    assert torch.equal(together[2].e_score_correction_bias, torch.tensor([0.5, -0.1, 0.2, 0.4]))


def test_every_router_of_a_model_is_found_mtp_included():
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    assert [name for name, _ in gates(model)] == [f"model.layers.{i}.mlp.gate" for i in (1, 2, 3, 4)]


def aux_fi(indices: list[list[int]], experts: int, top_k: int) -> list[float]:
    """DeepSeek's own f_i (TileKernels `aux_fi`): count E / (tokens K), -1 for no expert."""
    counts = [sum(row.count(e) for row in indices) for e in range(experts)]
    return [count * experts / (len(indices) * top_k) for count in counts]


def test_the_loss_weighs_probabilities_by_deepseeks_aux_fi():
    assert aux_fi([[0, 1], [0, 2], [0, -1]], 4, 2) == pytest.approx([2.0, 0.6667, 0.6667, 0.0], abs=5e-5)
    # The same counts with a whole third row: expert 3 takes the place of -1. P is then read off the gradient:
    # with scores that sum to one in every row, dL/ds of an expert not chosen differs by f_i alone.
    scores = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1], [0.5, 0.1, 0.1, 0.3]])
    f = aux_fi([[0, 1], [0, 2], [0, 3]], 4, 2)
    expected = sum(f_i * p_i for f_i, p_i in zip(f, scores.mean(0).tolist(), strict=True))
    assert float(sequence_balance_loss(scores, 2, 1)) == pytest.approx(expected, abs=1e-6)


def test_an_even_router_costs_one_and_a_collapsed_one_more():
    even = torch.eye(4).mul(0.6).add(0.1).repeat(2, 1)
    collapsed = torch.tensor([[0.9, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert float(sequence_balance_loss(even, 1, 1)) == pytest.approx(1.0, abs=1e-6)
    assert float(sequence_balance_loss(collapsed, 1, 1)) == pytest.approx(4 * 0.75, abs=1e-6)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_loss_equals_the_reference_averaged_over_sequences(sequences, length, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(sequences * length, experts, generator=generator, dtype=torch.float64) + 0.01
    top_k = 1 + seed % experts
    ours, theirs = scores.float().requires_grad_(), scores.float().requires_grad_()
    loss = sequence_balance_loss(ours, top_k, sequences)
    expected = torch.stack([reference_balance_loss(part, top_k) for part in theirs.chunk(sequences)]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_counts_unbiased_choices():
    """Eq. 18 ranks s, not s + b: a bias moves the routing and leaves this loss as it is."""
    model = random_model(tiny_config()).train()
    model.loss_weights.balance = 1.0
    tokens = random_tokens(2, 9)
    first_router = model.model.layers[1].mlp.gate
    routing = model.model(tokens).routings[0]
    before = sequence_balance_loss(routing.scores_TE, 2, 2)
    with torch.no_grad():
        first_router.e_score_correction_bias.copy_(torch.linspace(-9, 9, 8))
    moved = model.model(tokens).routings[0]
    assert not torch.equal(moved.indices_TK, routing.indices_TK)
    torch.testing.assert_close(sequence_balance_loss(moved.scores_TE, 2, 2), before)


def test_statistics_of_a_known_load(gate):
    gate.tokens_per_expert.copy_(torch.tensor([6, 2, 0, 0]))
    gate.e_score_correction_bias.copy_(torch.tensor([-0.5, 0.25, 0.0, 0.25]))
    (found,) = router_statistics(nn.ModuleDict({"router": gate})).items()
    name, statistics = found
    assert (name, statistics.load) == ("router", [6, 2, 0, 0])
    assert statistics.max_violation == pytest.approx(2.0)
    assert statistics.dead == 0.5
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert statistics.entropy == pytest.approx(entropy, abs=1e-6)
    assert statistics.bias_range == pytest.approx(0.75)


def test_the_sequence_loss_of_each_router_is_in_its_statistics():
    """The mean over the sequences of all micro-batches since the last update; in training alone."""
    model = random_model(tiny_config()).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 1e-4
    batches = [random_tokens(1, 9, seed=1), random_tokens(3, 9, seed=2)]
    expected = torch.zeros(3)
    for tokens in batches:
        out = model(tokens, labels=tokens)
        backbone = model.eval().model(tokens)
        routings = [*backbone.routings, *(routing for _, routing in model.mtp_states(tokens, backbone))]
        expected += torch.stack([sequence_balance_loss(r.scores_TE, 2, len(tokens)) for r in routings]) * len(tokens)
        assert out.balance_loss.item() == pytest.approx(model(tokens, labels=tokens).balance_loss.item())
        model.train()
    found = router_statistics(model)
    assert list(found) == [f"model.layers.{i}.mlp.gate" for i in (1, 2, 3)]
    torch.testing.assert_close(torch.tensor([s.sequence_loss for s in found.values()]), expected / 4)
    assert all(s.metrics()["sequence_loss"] == s.sequence_loss for s in found.values())
    update_routing_bias(model.model.routers(), 0.0)
    model.loss_weights.balance = 0.0
    model(batches[0], labels=batches[0])
    assert all("sequence_loss" not in s.metrics() and s.metrics() for s in router_statistics(model).values())


def test_the_load_of_a_batch_is_that_of_its_micro_batches():
    model = random_model(tiny_config()).train()
    tokens = random_tokens(4, 9)
    model.model(tokens)
    whole = [gate.tokens_per_expert.clone() for _, gate in gates(model)]
    update_routing_bias(model.model.routers(), 0.0)
    for part in tokens.split(1):
        model.model(part)
    assert all(torch.equal(gate.tokens_per_expert, load) for (_, gate), load in zip(gates(model), whole, strict=True))


loads = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any)


@given(loads, st.floats(1e-4, 0.1), st.integers(2, 50), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_bias_update(load, speed, factor, seed):
    """Centred; busy experts fall against idle ones, by twice the speed; the sizes of loads do not matter."""

    def update(start: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
        gate = Gate(tiny_config(n_routed_experts=len(start), n_group=1, topk_group=1))
        gate.e_score_correction_bias.copy_(start)
        gate.tokens_per_expert.copy_(load)
        update_routing_bias([gate], speed)
        assert not gate.tokens_per_expert.any()
        return gate.e_score_correction_bias

    counts = torch.tensor(load)
    start = torch.randn(len(load), generator=torch.Generator().manual_seed(seed))
    bias = update(start, counts)
    assert abs(float(bias.mean())) < 1e-6
    sign = [(sum(load) > n * len(load)) - (sum(load) < n * len(load)) for n in load]
    moved = (bias - start).double()
    for i, j in zip(range(len(load)), range(1, len(load)), strict=False):
        assert float(moved[i] - moved[j]) == pytest.approx(speed * (sign[i] - sign[j]), abs=2e-6)
    torch.testing.assert_close(update(start, counts * factor), bias, rtol=0, atol=2e-6)
    torch.testing.assert_close(update(start + 3.0, counts), bias, rtol=0, atol=2e-6)


def test_routers_without_tokens_have_no_statistics(gate):
    assert router_statistics(gate) == {}


def test_padding_is_no_load_and_no_loss() -> None:
    """A padded batch moves counts, bias and balance loss exactly as its real tokens alone."""
    config = V3Config.preset("nano", num_nextn_predict_layers=1)
    model = V3ForCausalLM(config).initialize(0.3, 0).train()
    model.loss_weights.balance, model.loss_weights.mtp = 1.0, 0.3
    ids = torch.randint(0, config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    found = []
    for left, right in ((0, 0), (3, 6)):
        padded = torch.nn.functional.pad(ids, (left, right))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        labels = padded.masked_fill(mask == 0, -100)
        out = model(padded, attention_mask=mask, labels=labels)
        found.append(([gate.tokens_per_expert.clone() for _, gate in gates(model)], out.balance_loss))
        update_routing_bias(model.model.routers(), 0.0)
    (alone, loss), (beside, padded_loss) = found
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    torch.testing.assert_close(loss, padded_loss)
