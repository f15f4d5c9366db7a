"""Nothing between the embedding and the loss makes the host wait for a device.

Emulated on CPU: operations whose result the host must read (a number, or a shape that depends on values) are refused
while the layers run forward and backward through the grouped GEMMs that CUDA takes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_stand_ins import Varlen
from reference import random_model, random_tokens, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from core_model import attention_kernels
from core_model.attention_kernels import Offers
from core_model.documents import find_documents
from core_model.moe import RankCap, experts
from core_model.moe.balance import sequence_balance_loss, update_routing_bias
from core_model.moe.experts import group_rows

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten._unique2,
    aten.unique_consecutive,
    aten.repeat_interleave,
}


class RefusesToWait(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if func.overloadpacket in WAITS or mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(experts, "looped_experts", experts.grouped_experts)
    yield


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.bincount(x, minlength=9),
        lambda x: x.masked_fill_(x > 0, 1) if x.max() > 0 else x,
        lambda x: torch.zeros(3).index_put_((x > 1,), torch.ones(())),
    ],
)
def test_the_check_would_notice(wait):
    with RefusesToWait(), pytest.raises(AssertionError, match="waits"):
        wait(torch.tensor([1, 2, 0]))


@pytest.mark.parametrize("recompute", ["none", "v3"])
@pytest.mark.parametrize("rows", ["whole rows", "packed", "padded"])
@pytest.mark.parametrize("found", [Offers(), Offers(unequal=True, varlen=Varlen())], ids=["batches", "varlen"])
def test_layers_run_without_waiting(found, rows, recompute, monkeypatch):
    monkeypatch.setattr(attention_kernels, "offers", lambda *args: found)
    model = random_model(tiny_config()).train()
    model.recompute = recompute
    tokens = random_tokens(2, 12)
    positions = torch.tensor([[*range(5), *range(7)]] * 2) if rows == "packed" else None
    mask = torch.ones_like(tokens) if rows == "padded" else None
    if mask is not None:
        mask[1, 7:] = 0
    backbone = model.model
    # Where documents begin is asked once a batch, before the layers.
    context = backbone.attention_context((2, 12), positions, mask, None)
    with RefusesToWait():
        backbone.attention_context = lambda *args: context  # type: ignore[method-assign]
        out = backbone(tokens)
        states = [out.last_hidden_state, *(state for state, _ in model.mtp_states(tokens, out))]
        balance = [sequence_balance_loss(r.scores_TE, 2, 2, context.real_BT) for r in out.routings]
        (torch.stack(balance).sum() + sum(state.square().sum() for state in states)).backward()
    counted = 19 if rows == "padded" else 24
    assert {int(gate.tokens_per_expert.sum()) for gate in backbone.routers()} == {2 * counted}


def test_a_rank_cap_does_not_wait():
    model = random_model(tiny_config()).train()
    model.rank_cap = RankCap(4, 1)
    backbone, tokens = model.model, random_tokens(2, 12)
    context = backbone.attention_context((2, 12), None, None, None)
    with RefusesToWait():
        backbone.attention_context = lambda *args: context  # type: ignore[method-assign]
        backbone(tokens).last_hidden_state.square().sum().backward()
    assert all(gate.left_out.tolist()[1] == 48 for gate in backbone.routers()[:2])
    assert any(gate.left_out.tolist()[0] for gate in backbone.routers())


def test_the_mask_of_blocks_is_made_without_waiting():
    documents = find_documents(torch.tensor([[*range(5), *range(7)]] * 2), None, (2, 12))
    with RefusesToWait():
        assert documents.block_mask.shape == (2, 1, 12, 12)


def test_rows_are_grouped_without_waiting():
    indices = torch.tensor([[3, 1], [1, 0], [3, 0]])
    with RefusesToWait():
        rows = group_rows(indices, 5, multiple=1)
    assert rows.ends.tolist() == [2, 4, 4, 6, 6]
    assert rows.token_P.tolist() == [1, 2, 0, 1, 0, 2]
    with RefusesToWait(), pytest.raises(AssertionError, match="waits"):
        group_rows(indices, 5, multiple=32)  # the CPU's way, whose number of rows depends on the routing


def test_the_bias_follows_without_waiting():
    model = random_model(tiny_config()).train()
    model.model(random_tokens(2, 12))
    before = [gate.e_score_correction_bias.clone() for gate in model.model.routers()]
    with RefusesToWait():
        update_routing_bias(model.model.routers(), 0.01)
    after = [gate.e_score_correction_bias for gate in model.model.routers()]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, False, True]
