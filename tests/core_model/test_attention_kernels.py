"""The kernels of attention against SDPA on padded widths: the same numbers, chosen by what a device offers.

Kernels that need a GPU run as stand-ins with their signatures (kernel_stand_ins.py), FlexAttention as its own forward.
"""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from kernel_stand_ins import Varlen
from reference import random_model, random_tokens, reference_attention, relative_difference, shared_model, tiny_config
from test_recompute import PACKED, PADDED, POLICIES, WHOLE, inputs_of, step, training_model
from torch.nn.attention.bias import CausalBias
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn

from core_model import attention_kernels, documents
from core_model.attention import ABSORBED_QUERIES
from core_model.attention_kernels import (
    FlashDocuments,
    FlexDocuments,
    GatheredDocuments,
    Offers,
    WholeRows,
    flash_takes,
    kernel_for,
    scaled_dot_product,
    takes_unequal_widths,
    varlen_attention,
)
from core_model.cache import LatentCache
from core_model.documents import find_documents
from core_model.loss import IGNORE

CPU, NOT_CPU = torch.device("cpu"), torch.device("meta")
CLOSE = 1e-5
UNEQUAL = Offers(unequal=True)
FLEX = Offers(flex=flex_attention)


@pytest.fixture
def offering(monkeypatch):
    """Let the device offer something else from here on."""

    def offer(found: Offers) -> Offers:
        monkeypatch.setattr(attention_kernels, "offers", lambda *args: found)
        return found

    return offer


def trained(rows: str) -> dict[str, torch.Tensor]:
    """A batch whose padding is no target: what kernels leave there is their own affair."""
    inputs = inputs_of(rows)
    mask = inputs.get("attention_mask", torch.ones(2, 12))
    return {**inputs, "labels": inputs["labels"].masked_fill(mask == 0, IGNORE)}


def batch_of(rows: str) -> dict[str, torch.Tensor]:
    inputs = inputs_of(PADDED if rows == "padded on the left" else rows)
    del inputs["labels"]
    if rows == "padded on the left":
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    if rows == "packed and padded":
        inputs["position_ids"] = torch.tensor([[*range(5), *range(7)], [*range(4), *range(8)]])
        inputs["attention_mask"] = torch.ones(2, 12, dtype=torch.long)
        inputs["attention_mask"][0, :2] = inputs["attention_mask"][1, 6] = inputs["attention_mask"][1, 11] = 0
    return inputs


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rows", [WHOLE, PACKED, PADDED, "padded on the left", "packed and padded"])
@pytest.mark.parametrize("v_head_dim", [4, 12, 20])
@pytest.mark.parametrize("kernel", ["varlen", "flex", "unequal"])
def test_every_kernel_gives_the_states_of_the_padded_one(kernel, v_head_dim, rows, offering):
    model, inputs = shared_model(v_head_dim=v_head_dim), batch_of(rows)
    real = inputs.get("attention_mask", torch.ones(2, 12)).bool()
    with torch.no_grad():
        expected = model(**inputs).logits[real]
        varlen = Varlen()
        offering({"varlen": Offers(varlen=varlen), "flex": FLEX, "unequal": UNEQUAL}[kernel])
        found = model(**inputs).logits
    assert found.isfinite().all()
    assert relative_difference(found[real], expected) < CLOSE
    assert varlen.calls == (3 if kernel == "varlen" and rows != WHOLE else 0)


@pytest.mark.parametrize("rows", [WHOLE, PACKED, PADDED])
@pytest.mark.parametrize("v_head_dim", [8, 20])
@pytest.mark.parametrize("kernel", ["varlen", "unequal"])
def test_gradients_are_those_of_the_padded_kernel_and_the_same_under_every_policy(kernel, v_head_dim, rows, offering):
    model, inputs = training_model(v_head_dim=v_head_dim), trained(rows)
    expected = step(model, "none", inputs)
    offering(Offers(varlen=Varlen()) if kernel == "varlen" else UNEQUAL)
    kept = step(model, "none", inputs)
    for ours, padded in zip(kept, expected, strict=True):
        assert (ours - padded).abs().max() <= CLOSE * padded.abs().max().clamp_min(1e-3)
    for policy in POLICIES:
        for ours, as_kept in zip(step(model, policy, inputs), kept, strict=True):
            assert torch.equal(ours, as_kept), policy


@pytest.mark.parametrize("autocast", [False, True])
def test_flash_gets_half_precision_in_training_in_bf16(autocast, offering):
    model, inputs = training_model(), trained(PADDED)
    model.compute_dtype = None if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = step(model, "v3", inputs)[0]
        offering(Offers(varlen=Varlen(torch.bfloat16)))
        found = step(model, "v3", inputs)[0]
    assert abs(found - expected) < 2e-2 * expected


def test_a_batch_of_nothing_but_padding_is_finite(offering):
    tokens, mask = random_tokens(2, 5), torch.zeros(2, 5, dtype=torch.long)
    for found in (Offers(varlen=Varlen()), FLEX, Offers()):
        offering(found)
        with torch.no_grad():
            assert shared_model()(tokens, attention_mask=mask).logits.isfinite().all()


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_of_blocks_reads_all_that_a_query_may_see_and_nothing_unmasked_that_it_may_not(seed, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 4)
    draw = torch.Generator().manual_seed(seed)
    length = 19 + seed
    starts = torch.rand(2, length, generator=draw) < 0.15
    places = torch.arange(length).expand(2, -1)
    positions = places - torch.where(starts, places, 0).cummax(1).values
    mask = (torch.rand(2, length, generator=draw) < (0.9 if seed % 2 else 1.1)).long()
    found = find_documents(positions, mask, (2, length))
    assert found is not None
    ids, blocks = found.id_BT, found.block_mask
    causal = torch.ones(length, length).tril().bool()
    allowed = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, :, None] & causal | torch.eye(length).bool()
    count = -(-length // 4)

    def of_blocks(number, index):  # [B, I, J]
        chosen = torch.zeros(2, count, count, dtype=torch.bool)
        for row in range(2):
            for block in range(count):
                chosen[row, block, index[row, 0, block, : number[row, 0, block]].long()] = True
        return chosen

    partial = of_blocks(blocks.kv_num_blocks, blocks.kv_indices)
    whole = of_blocks(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    beyond = count * 4 - length
    tiles = torch.nn.functional.pad(allowed, (0, beyond, 0, beyond)).view(2, count, 4, count, 4)
    assert not (partial & whole).any()
    assert torch.equal((partial | whole) & tiles.any(4).any(2), tiles.any(4).any(2))
    assert tiles.all(4).all(2)[whole].all()
    if seed % 2 == 0:  # without padding nothing is read in vain, and every block that needs no mask has none
        assert torch.equal(partial | whole, tiles.any(4).any(2)) and torch.equal(whole, tiles.all(4).all(2))


def test_a_long_row_makes_no_mask_of_its_tokens():
    positions = (torch.arange(131072) % 5000).unsqueeze(0)
    found = find_documents(positions, None, (1, 131072))
    assert found is not None and found.longest == 5000
    with torch.profiler.profile(profile_memory=True) as profile:
        _ = found.block_mask
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 64 * 2**20  # bool pairs of 131072 tokens take 16 GiB


def test_a_chunk_behind_a_long_past_needs_no_mask():
    cache = LatentCache(tiny_config(), 2, 40, torch.float32)
    q, k = torch.randn(2, 9, 2, 12), torch.randn(2, 30, 2, 12)
    v = torch.randn(2, 30, 2, 8)
    cache.begin(0, torch.arange(21, 30).expand(2, -1))
    bias, mask = cache.visible(as_bias=True), cache.visible()
    assert isinstance(bias, CausalBias) and mask.shape == (2, 1, 9, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the CPU has no flash attention for it
        ours = scaled_dot_product(q, k, v, 0.3, bias)
    torch.testing.assert_close(ours, scaled_dot_product(q, k, v, 0.3, mask))
    cache.begin(0, torch.stack([torch.arange(21, 30), torch.arange(20, 29)]))
    assert not isinstance(cache.visible(as_bias=True), CausalBias)
    cache.begin(0, torch.arange(9).expand(2, -1))
    assert cache.visible(as_bias=True) is None


@pytest.mark.filterwarnings("ignore")  # that the CPU has no flash attention for such a mask
def test_a_prompt_read_in_chunks_gives_the_same_states_through_torchs_causal_bias(monkeypatch):
    model, tokens, given = shared_model(), random_tokens(2, 40), []
    visible = LatentCache.visible

    def as_on_an_accelerator(cache: LatentCache, as_bias: bool = False):
        given.append(visible(cache, cache._position_ids.shape[1] > ABSORBED_QUERIES))
        return given[-1]

    monkeypatch.setattr(LatentCache, "visible", as_on_an_accelerator)
    cache, start, parts = LatentCache(model.config, 2, 40, torch.float32), 0, []
    for length in (12, 14, 8, 6):
        positions = torch.arange(start, start + length).expand(2, -1)
        cache.begin(0, positions)
        with torch.no_grad():
            piece = tokens[:, start : start + length]
            parts.append(model(piece, position_ids=positions, past_key_values=cache).logits)
        start += length
    with torch.no_grad():
        assert relative_difference(torch.cat(parts, dim=1), model(tokens).logits) < CLOSE
    assert [type(one) for one in given] == [type(None), CausalBias, torch.Tensor, torch.Tensor]


# -- what is chosen


def test_the_cpu_offers_nothing_but_sdpa():
    packed = find_documents(torch.tensor([[0, 1, 0, 1]]), None, (1, 4))
    assert attention_kernels.offers(CPU, torch.float32, 12, 8) == Offers()
    assert kernel_for(CPU, torch.bfloat16, 192, 128, None) == WholeRows(padded=True)
    assert kernel_for(CPU, torch.float32, 12, 8, packed) == GatheredDocuments(packed)


def test_documents_take_flash_then_flex_then_batches(offering):
    packed = find_documents(torch.tensor([[0, 1, 0, 1]]), None, (1, 4))

    def chosen(found: Offers, documents=packed, masked=False):
        offering(found)
        return kernel_for(NOT_CPU, torch.bfloat16, 192, 128, documents, masked=masked)

    both = Offers(unequal=True, varlen=Varlen(), flex=flex_attention)
    assert isinstance(chosen(both), FlashDocuments)
    assert isinstance(chosen(FLEX), FlexDocuments)
    assert isinstance(chosen(UNEQUAL), GatheredDocuments)
    assert chosen(both, None) == WholeRows(padded=False)
    assert chosen(both, None, masked=True) == chosen(FLEX, None) == WholeRows(padded=True)


@pytest.mark.parametrize(
    ("capability", "dtype", "widths", "takes"),
    [
        ((9, 0), torch.bfloat16, (192, 128), True),
        ((8, 0), torch.float16, (256, 256), True),
        ((9, 0), torch.bfloat16, (256, 264), False),
        ((9, 0), torch.float32, (192, 128), False),
        ((7, 5), torch.float16, (64, 64), False),
        ((8, 9), torch.bfloat16, (192, 128), True),
        ((8, 9), torch.bfloat16, (200, 128), False),
        (None, torch.bfloat16, (64, 64), False),
    ],
)
def test_flash_is_taken_where_it_has_a_kernel(capability, dtype, widths, takes, monkeypatch):
    assert flash_takes(capability, dtype, *widths) == takes
    monkeypatch.setattr(attention_kernels, "nvidia_capability", lambda device: capability)
    monkeypatch.setattr(attention_kernels, "takes_unequal_widths", lambda *args: False)
    found = attention_kernels.offers.__wrapped__(NOT_CPU, dtype, *widths)
    assert (found.varlen is not None) == takes and not (found.unequal and widths[0] != widths[1])


def test_flex_is_offered_where_kernels_are_compiled(monkeypatch):
    monkeypatch.setattr(attention_kernels, "takes_unequal_widths", lambda *args: False)
    for compiles in (False, True):
        monkeypatch.setattr(attention_kernels, "compiles_kernels", lambda device, compiles=compiles: compiles)
        found = attention_kernels.offers.__wrapped__(NOT_CPU, torch.float32, 12, 8)
        assert found.varlen is None and (found.flex is not None) == compiles


def test_widths_stay_unequal_where_sdpa_would_take_cudnns_kernel(monkeypatch):
    asked, answers = [], []

    def choice(q, k, v, mask, dropout, causal):
        asked.append((q.shape[-1], k.shape[-1], v.shape[-1], q.dtype, q.requires_grad, causal, q.stride(-1)))
        return answers[-1]

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    for answer, expected in ((3, True), (1, False), (2, False), (0, False)):  # cuDNN, flash, memory-efficient, math
        answers.append(answer)
        assert takes_unequal_widths(CPU, torch.bfloat16, 192, 128) == expected
    assert set(asked) == {(192, 192, 128, torch.bfloat16, True, True, 1)}
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert not takes_unequal_widths(CPU, torch.bfloat16, 192, 128)


def test_sdpas_own_choice_can_be_asked():
    assert not takes_unequal_widths(CPU, torch.float32, 192, 128)


def test_varlen_of_another_signature_is_left_alone(monkeypatch):
    assert varlen_attention() is not None  # the installed one

    def first(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        raise AssertionError

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", first)
    assert varlen_attention() is None


def test_the_stand_in_has_varlens_signature():
    real, ours = inspect.signature(varlen_attn).parameters, inspect.signature(Varlen().__call__).parameters
    for name, parameter in ours.items():
        assert (real[name].kind, real[name].default) == (parameter.kind, parameter.default)


def test_the_stand_in_refuses_what_the_kernel_would():
    q = torch.randn(6, 2, 8)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    good = Varlen()(q, q, q, bounds, bounds, 4, 4, scale=0.3, window_size=(-1, 0))
    allowed = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).tril().bool()[None]
    torch.testing.assert_close(good, reference_attention(q[None], q[None], q[None], 0.3, allowed)[0])
    wrong = [(q, bounds, 3), (q, bounds.long(), 4), (q[..., :4], bounds, 4), (q, bounds - 1, 4), (q, bounds, 5)]
    for x, ends, longest in wrong:
        with pytest.raises(AssertionError):
            Varlen()(x, x, x, ends, ends, longest, longest, scale=0.3, window_size=(-1, 0))


def test_a_model_on_an_accelerator_packs_through_flash_in_every_layer_and_mtp_module(offering):
    varlen = Varlen()
    offering(Offers(unequal=True, varlen=varlen))
    model = random_model(tiny_config(num_nextn_predict_layers=2)).train()
    model.loss_weights.mtp = 0.3
    model(**inputs_of(PACKED)).loss.backward()
    assert varlen.calls == 5
