"""The rank cap: bounded rows, the lightest pairs left out, everything else as without it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_model, random_tokens, reference_experts, tiny_config
from torch import Tensor

from core_model.generation import Engine, SamplingParams
from core_model.moe import MoE, RankCap, experts
from core_model.moe.balance import gates, router_statistics, update_routing_bias
from core_model.moe.experts import group_rows, grouped_experts, looped_experts
from core_model.native import decoder as native_decoder

IMPLEMENTATIONS = [looped_experts, grouped_experts]
NEVER = RankCap(4, 4.0)  # a rank that takes every pair is within it


def reference_kept(
    indices: list[list[int]], weights: list[list[float]], experts: int, cap: RankCap
) -> list[list[bool]]:
    """The pairs of each rank, sorted by weight, then token, then choice."""
    pairs = [(-w, t, k) for t, row in enumerate(weights) for k, w in enumerate(row)]
    most = math.ceil(cap.factor * len(pairs) / cap.ranks - 1e-9)
    kept = [[False] * len(row) for row in weights]
    for rank in range(cap.ranks):
        mine = sorted(pair for pair in pairs if indices[pair[1]][pair[2]] // (experts // cap.ranks) == rank)
        for _, t, k in mine[:most]:
            kept[t][k] = True
    return kept


@st.composite
def routings(draw) -> tuple[Tensor, Tensor, int, RankCap]:
    """Indices, weights of few values (so that many are equal), the number of experts, a cap."""
    ranks, size = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    top_k = draw(st.integers(1, min(3, ranks * size)))
    token = st.permutations(range(ranks * size)).map(lambda order: list(order[:top_k]))
    indices = draw(st.lists(token, min_size=1, max_size=24))
    weight = st.lists(st.integers(1, 4).map(lambda n: n / 4), min_size=top_k, max_size=top_k)
    weights = draw(st.lists(weight, min_size=len(indices), max_size=len(indices)))
    cap = RankCap(ranks, draw(st.sampled_from([1, 1.1, 1.5, 2.0, 4.0])))
    return torch.tensor(indices), torch.tensor(weights), ranks * size, cap


@given(routings())
@settings(max_examples=80, deadline=None)
def test_no_rank_gets_more_rows_than_the_cap_and_the_lightest_go(drawn):
    indices, weights, count, cap = drawn
    kept = cap.kept(indices, weights, count)
    assert kept.tolist() == reference_kept(indices.tolist(), weights.tolist(), count, cap)
    rows = group_rows(indices, count, 1, kept)
    assert len(rows.token_P) == indices.numel() <= cap.ranks * cap.pairs(indices.numel())
    size, ends = count // cap.ranks, [0, *rows.ends.tolist()]
    per_rank = [b - a for a, b in zip(ends[::size], ends[size::size], strict=False)]
    chosen = (indices // size).flatten().bincount(minlength=cap.ranks).tolist()
    assert per_rank == [min(load, cap.pairs(indices.numel())) for load in chosen]
    assert sum(per_rank) == int(kept.sum()) == ends[-1]


def test_of_equal_weights_the_lower_token_stays_then_the_earlier_choice():
    indices = torch.tensor([[1, 0], [0, 1], [1, 0], [2, 3]])  # 6 pairs on rank 0, of which 4 fit
    weights = torch.full((4, 2), 0.5)
    assert RankCap(2, 1).kept(indices, weights, 4).tolist() == [[True, True], [True, True], [False, False], [True] * 2]
    indices = torch.tensor([[1, 0], [0, 2], [1, 0]])  # 5 on rank 0, 3 fit
    assert RankCap(2, 1).kept(indices, weights[:3], 4).tolist() == [[True, True], [True, True], [False, False]]
    weights[2, 1] = 0.6
    assert RankCap(2, 1).kept(indices, weights[:3], 4).tolist() == [[True, True], [False, True], [False, True]]


@pytest.mark.parametrize(
    ("cap", "total", "most"), [((4, 1.1), 40, 11), ((4, 1), 41, 11), ((3, 1.5), 2, 1), ((8, 1.25), 0, 0)]
)
def test_the_cap_is_rounded_up_from_the_factor_as_written(cap, total, most):
    assert RankCap(*cap).pairs(total) == most


def check(run, indices: Tensor, weights: Tensor, count: int, kept: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Output and gradients of the kept pairs alone, against a loop over all pairs with weight 0 for the rest."""
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(len(indices), 16, generator=generator),
        weights,
        torch.randn(count, 16, 16, generator=generator) / 4,
        torch.randn(count, 16, 8, generator=generator) / 3,
    ]
    values = [v if i == 1 else v.to(dtype) for i, v in enumerate(values)]
    ours = [v.clone().requires_grad_() for v in values]
    theirs = [v.float().detach().requires_grad_() for v in values]
    x, w, gate_up, down = ours
    out = run(x, indices, w, gate_up, down, kept)
    expected = reference_experts(theirs[0], indices, theirs[1] * kept, theirs[2], theirs[3])
    upstream = torch.randn(out.shape, generator=generator).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.float())
    for got, want in [(out, expected), *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))]:
        largest = want.abs().max().clamp_min(1e-3)
        assert (got.float() - want).abs().max() / largest < (1e-5 if dtype == torch.float32 else 3e-2)
    assert not w.grad[~kept].any()


@pytest.fixture
def poisoned_memory():
    """What an operation leaves unwritten is NaN, as it may be on a device."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@given(routings(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_and_gradients_are_those_of_the_kept_pairs(run, drawn, dtype):
    indices, weights, count, cap = drawn
    check(run, indices, weights, count, cap.kept(indices, weights, count), dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tokens_on_one_expert_and_the_other_ranks_empty(run, dtype):
    indices = torch.full((70, 1), 2)
    weights = torch.linspace(0.1, 1, 70).unsqueeze(1)
    kept = RankCap(4, 1.0).kept(indices, weights, 4)
    assert kept.flatten().tolist() == [False] * 52 + [True] * 18
    check(run, indices, weights, 4, kept, dtype)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_no_tokens_and_no_pairs_kept(run):
    gate_up, down = torch.ones(4, 16, 8, requires_grad=True), torch.ones(4, 8, 8)
    for tokens in (0, 3):
        indices = torch.zeros(tokens, 2, dtype=torch.long)
        kept = RankCap(2, 1).kept(indices, torch.ones(tokens, 2), 4) & False
        out = run(torch.ones(tokens, 8), indices, torch.ones(tokens, 2), gate_up, down, kept)
        out.sum().backward()
        assert out.shape == (tokens, 8) and not out.any() and not gate_up.grad.any()


def losses_and_gradients(model, tokens: Tensor) -> list[Tensor]:
    model.zero_grad()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_a_cap_that_is_never_reached_changes_no_bit(run, dtype, monkeypatch):
    monkeypatch.setattr(experts, "looped_experts", run)
    monkeypatch.setattr(native_decoder, "served", lambda *_: None)  # whose numbers are other ones
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 12)
    model.compute_dtype = dtype
    without = losses_and_gradients(model, tokens)
    model.rank_cap = NEVER
    assert all(torch.equal(a, b) for a, b in zip(losses_and_gradients(model, tokens), without, strict=True))
    assert {s.left_out for s in router_statistics(model).values()} == {0.0}
    model.rank_cap = RankCap(4, 1)
    assert not torch.equal(losses_and_gradients(model, tokens)[0], without[0])


@pytest.mark.parametrize("policy", ["none", "v3", "layer"])
def test_choices_are_counted_before_the_cap_and_what_it_left_out_once(policy):
    """The bias must see the load that the router made."""
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 12)
    losses_and_gradients(model, tokens)
    first = model.model.routed()[0].gate
    load = first.tokens_per_expert.clone()  # of the first router, whose input no cap has changed
    assert all("left_out" not in s.metrics() for s in router_statistics(model).values())
    update_routing_bias(model.model.routers(), 0.0)
    model.recompute, model.rank_cap = policy, RankCap(4, 1)
    losses_and_gradients(model, tokens)
    assert torch.equal(first.tokens_per_expert, load)
    per_rank = load.view(4, 2).sum(1)
    beyond = int((per_rank - 12).clamp_min(0).sum())  # 48 pairs, 12 a rank
    assert beyond > 0 and first.left_out.tolist() == [beyond, 48]
    found = router_statistics(model)
    assert found["model.layers.1.mlp.gate"].metrics()["left_out"] == pytest.approx(beyond / 48)
    assert len(found) == 3 and all(s.left_out is not None for s in found.values())
    losses_and_gradients(model, tokens)
    assert router_statistics(model)["model.layers.1.mlp.gate"].left_out == pytest.approx(beyond / 48)
    update_routing_bias(model.model.routers(), 0.0)
    assert not any(gate.left_out.any() for _, gate in gates(model))


def test_padding_takes_rows_and_is_no_pair_of_the_statistics():
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 12)
    model.rank_cap = RankCap(4, 1)
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    kept = model.model(tokens, attention_mask=mask).routings[0].kept_TK
    left_out, pairs = model.model.routers()[0].left_out.tolist()
    assert pairs == 19 * 2 and left_out == int((~kept)[mask.flatten().bool()].sum())


@pytest.mark.parametrize("policy", ["v3", "layer"])
def test_gradients_under_a_cap_are_bitwise_equal_however_they_are_recomputed(policy):
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 12)
    model.rank_cap = RankCap(4, 1)
    kept = losses_and_gradients(model, tokens)
    model.recompute = policy
    assert all(torch.equal(a, b) for a, b in zip(losses_and_gradients(model, tokens), kept, strict=True))


def test_a_layers_gradients_are_those_of_its_function():
    """Router included: weights that remain are those of the router's choice, normalised over what was left out too."""
    config = tiny_config(hidden_size=8, n_routed_experts=4, n_group=1, topk_group=1, routed_scaling_factor=2.5)
    moe = MoE(config).double().train()
    moe.gate.float()
    generator = torch.Generator().manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    moe.cap = RankCap(2, 1.0)
    x = torch.randn(1, 9, 8, generator=generator).double()
    out, routing = moe(x)
    assert routing.kept_TK is not None and int((~routing.kept_TK).sum()) > 0
    scores = (x[0].float() @ moe.gate.weight.T).sigmoid()
    chosen = scores.gather(1, routing.indices_TK)
    weights = chosen / chosen.sum(1, keepdim=True) * 2.5
    torch.testing.assert_close(routing.weights_TK, weights)
    expected = reference_experts(
        x[0], routing.indices_TK, weights * routing.kept_TK, moe.experts.gate_up_proj, moe.experts.down_proj
    ) + moe.shared_experts(x[0])
    torch.testing.assert_close(out[0], expected, rtol=1e-5, atol=1e-6)
    (ours,) = torch.autograd.grad(out.square().sum(), moe.gate.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.square().sum(), moe.gate.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_evaluation_and_generation_know_no_cap():
    model, tokens = random_model(tiny_config()), random_tokens(2, 12)
    prompts = [tokens[0].tolist(), tokens[1, :5].tolist()]

    def results() -> list:
        engine = Engine(model, max_batch=2, max_tokens=64, dtype=torch.float32, device="cpu")
        completions = engine.generate(prompts, SamplingParams(max_new_tokens=6, temperature=0.0))
        with torch.no_grad():
            in_training_mode = model.train()(tokens).logits
            own = model.generate(tokens, max_new_tokens=6, do_sample=False)
        logits = model.eval()(tokens).logits.detach()  # with gradients, in evaluation mode
        return [[c.token_ids for group in completions for c in group], in_training_mode, own, logits]

    without = results()
    model.rank_cap = RankCap(4, 1)
    for ours, expected in zip(results(), without, strict=True):
        assert ours == expected if isinstance(ours, list) else torch.equal(ours, expected)
    assert not torch.equal(model.train()(tokens).logits, without[3])


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        ((1, 1.0), "2 ranks"),
        ((2.0, 1.0), "2 ranks"),
        ((2, 0.9), ">= 1"),
        ((2, math.inf), "finite"),
        ((2, math.nan), "finite"),
        ((2, "1"), "not '1'"),
        ((2, None), "not None"),
        ((2, True), "not True"),
    ],
)
def test_caps_that_make_no_sense_are_refused(cap, message):
    with pytest.raises(ValueError, match=message):
        RankCap(*cap)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "8 experts do not divide among the 3 ranks"),
        ({"n_routed_experts": None}, "no layer"),
        ({"first_k_dense_replace": 4}, "no layer"),
    ],
)
def test_models_whose_experts_cannot_be_placed_so_are_refused(overrides, message):
    model = random_model(tiny_config(**overrides))
    with pytest.raises(ValueError, match=message):
        model.rank_cap = RankCap(3, 1.0)
    assert model.rank_cap is None
