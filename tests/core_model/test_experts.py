"""Both implementations of the routed experts against a loop over tokens, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference_experts, relative_difference, tiny_config

from core_model.moe import MoE, experts
from core_model.moe.experts import Experts, group_rows, grouped_experts, looped_experts
from core_model.parallel import device

IMPLEMENTATIONS = [looped_experts, grouped_experts]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def inputs(indices: torch.Tensor, experts: int, dim: int, width: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, top_k = indices.shape
    return [
        torch.randn(tokens, dim, generator=generator),
        torch.rand(tokens, top_k, generator=generator) + 0.1,
        torch.randn(experts, 2 * width, dim, generator=generator) * dim**-0.5,
        torch.randn(experts, dim, width, generator=generator) * width**-0.5,
    ]


def check(run, indices: torch.Tensor, experts: int, dtype: torch.dtype, dim: int = 16, width: int = 8, seed: int = 0):
    """Output and the gradients of x, weights and both matrices; the reference runs in fp32 on the same numbers."""
    values = inputs(indices, experts, dim, width, seed)
    values = [v if i == 1 else v.to(dtype) for i, v in enumerate(values)]
    ours = [v.clone().requires_grad_() for v in values]
    theirs = [v.float().requires_grad_() for v in values]
    out = run(ours[0], indices, *ours[1:])
    expected = reference_experts(theirs[0], indices, *theirs[1:])
    assert out.shape == expected.shape and out.dtype == dtype
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.float())
    pairs = [(out, expected)] + [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)]
    for got, want in pairs:
        scale = want.abs().max().clamp_min(1e-6)
        assert ((got.float() - want).abs().max() / scale) < TOLERANCE[dtype]
    return ours


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "indices",
    [
        [[0, 1], [2, 0], [1, 3], [3, 2], [0, 2]],
        [[3, 1]],  # one token
        [[2, 0]] * 40,  # two experts take everything, the others are empty
        [[3, 0]] * 32 + [[0, 3]] * 33,  # at and just over the padded row count
    ],
)
def test_experts_equal_the_reference(run, indices, dtype):
    check(run, torch.tensor(indices), 4, dtype)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_an_expert_without_tokens_gets_a_zero_gradient(run):
    values = check(run, torch.tensor([[2], [2], [2]]), 4, torch.float32)
    for weight in values[2:]:
        assert weight.grad[[0, 1, 3]].abs().max() == 0 and weight.grad[2].abs().max() > 0


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_no_tokens_give_no_rows(run):
    x, weights, gate_up, down = (v.requires_grad_() for v in inputs(torch.zeros(0, 2), 4, 16, 8, 0))
    out = run(x, torch.zeros(0, 2, dtype=torch.long), weights, gate_up, down)
    out.sum().backward()
    assert out.shape == (0, 16) and gate_up.grad.abs().max() == 0


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@given(st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_routing_equals_the_reference(run, data):
    experts = data.draw(st.integers(1, 6), "experts")
    top_k = data.draw(st.integers(1, experts), "top k")
    token = st.permutations(range(experts)).map(lambda order: list(order[:top_k]))
    indices = torch.tensor(data.draw(st.lists(token, min_size=1, max_size=40), "routing"))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)), "dtype")
    check(run, indices, experts, dtype, seed=data.draw(st.integers(0, 99), "seed"))


@pytest.mark.parametrize(("capability", "forgets"), [(None, True), ((9, 0), False), ((10, 0), True), ((12, 0), True)])
def test_groups_that_a_device_forgets_are_cleared(capability, forgets, monkeypatch):
    """On some, grouped products of groups without rows are what memory held."""
    assert not device.forgets_empty_groups(torch.device("cpu"))
    monkeypatch.setattr(device, "nvidia_capability", lambda device: capability)
    assert device.forgets_empty_groups(torch.device("cuda")) == forgets
    monkeypatch.setattr(experts, "forgets_empty_groups", lambda device: forgets)
    whole = F.grouped_mm

    def forgetful(a, b, offs):
        product = whole(a, b, offs=offs)
        if product.dim() == 3 and forgets:
            product[offs.diff(prepend=offs.new_zeros(1)) == 0] = float("nan")
        return product

    monkeypatch.setattr(F, "grouped_mm", forgetful)
    values = check(grouped_experts, torch.tensor([[2], [2], [0]]), 4, torch.float32)
    assert all(weight.grad[[1, 3]].abs().max() == 0 for weight in values[2:])


@given(st.lists(st.integers(0, 4), min_size=0, max_size=60), st.sampled_from([1, 4, 32]))
@settings(max_examples=50, deadline=None)
def test_rows_hold_every_pair_once_in_its_experts_block(pairs, multiple):
    indices = torch.tensor(pairs, dtype=torch.long).view(-1, 1)
    rows = group_rows(indices, 5, multiple)
    ends = rows.ends.tolist()
    assert all(end % multiple == 0 for end in ends) and ends[-1] == len(rows.token_P)
    used = rows.row_TK.flatten().tolist()
    assert len(set(used)) == len(pairs)
    for token, (expert, row) in enumerate(zip(pairs, used, strict=True)):
        assert (0 if expert == 0 else ends[expert - 1]) <= row < ends[expert]
        assert rows.token_P[row] == token


def test_both_implementations_agree_in_a_layer_and_the_shared_expert_sees_every_token():
    moe = MoE(tiny_config()).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.2, generator=generator)
        x = torch.randn(2, 7, 32, generator=generator)
        out, routing = moe(x)
        flat = x.flatten(0, 1)
        weights = (moe.experts.gate_up_proj, moe.experts.down_proj)
        routed = grouped_experts(flat, routing.indices_TK, routing.weights_TK, *weights)
        assert relative_difference(out.flatten(0, 1), routed + moe.shared_experts(flat)) < 1e-5


def test_weights_follow_the_activations_dtype_and_gradients_the_weights():
    experts = Experts(tiny_config())
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 32).to(torch.bfloat16)
    out = experts(x, torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and experts.down_proj.grad.dtype == torch.float32
