"""FlashMLA's place in decoding, by a stand-in with its functions: the same states, pages that are rows in order."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from kernel_stand_ins import FlashMLA
from reference import random_model, random_tokens, relative_difference, tiny_config

from core_model import native
from core_model.cache import PAGE, LatentCache
from core_model.generation import Engine, SamplingParams, latent_kernels
from core_model.generation.decode import DecodePath
from core_model.generation.latent_kernels import Products, flash_mla, flash_mla_serves, latent_kernel

CLOSE = 1e-5
V3_WIDTHS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.fixture
def operations(monkeypatch) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)


@pytest.fixture
def install(monkeypatch, operations):
    """FlashMLA on a Hopper that computes in any precision."""

    def put(module: FlashMLA) -> FlashMLA:
        monkeypatch.setattr(latent_kernels, "flash_mla", lambda: module)
        monkeypatch.setattr(latent_kernels, "flash_mla_serves", lambda *args: True)
        return module

    return put


@torch.inference_mode()
def states(model, positions: int, width: int) -> torch.Tensor:
    """Normed states of `width` tokens in rows of different pasts, and of the drafter behind them."""
    lengths, tokens = [3, 70, 12], random_tokens(3, 80)
    cache = LatentCache(model.config, 5, positions, torch.float32, drafts=True)
    cache.buffer_LBSC.normal_(generator=torch.Generator().manual_seed(0))  # former occupants; the past itself
    at = torch.tensor(lengths)[:, None] + torch.arange(width)
    path = DecodePath(model, torch.float32)
    found, _ = path.forward(tokens.gather(1, at), at, cache)
    return torch.cat((found, path.draft(found, tokens.gather(1, at + 1), at, cache)))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None, "v_head_dim": 4, "hidden_size": 128}])
def test_states_are_those_of_products(changes, width, first, install):
    model = random_model(tiny_config(**V3_WIDTHS, **changes))
    expected = states(model, 2 * PAGE, width)  # before FlashMLA is there
    module = install(FlashMLA(first))
    assert relative_difference(states(model, 2 * PAGE, width), expected) < CLOSE
    assert (module.plans, module.calls) == (2, 4)  # a plan a step, and not a layer; three layers and the drafter


def test_a_cache_without_whole_pages_takes_products(install):
    model = random_model(tiny_config(**V3_WIDTHS))
    module = install(FlashMLA())
    states(model, 2 * PAGE - 1, 1)
    assert module.calls == 0


def test_an_engine_generates_the_same_from_a_cache_of_whole_pages(install):
    model = random_model(tiny_config(**V3_WIDTHS))
    prompts = [random_tokens(n, seed=n).tolist() for n in (3, 9, 20)]
    params = SamplingParams(40, temperature=0.0, speculative=2)
    plain = Engine(model, max_batch=3, speculate_always=True).generate(prompts, params)
    module = install(FlashMLA())
    engine = Engine(model, max_batch=3, speculate_always=True)
    found = engine.generate(prompts, params)
    assert [one.token_ids for row in found for one in row] == [one.token_ids for row in plain for one in row]
    assert module.calls > 40 and engine.batch.cache.is_paged


def test_pages_are_the_open_rows_in_order():
    cache = LatentCache(tiny_config(), 4, 2 * PAGE, torch.float32)
    cache.buffer_LBSC.copy_(torch.arange(cache.buffer_LBSC.numel()).view_as(cache.buffer_LBSC))
    cache.begin(1, torch.zeros(2, 1, dtype=torch.long))
    pages, table = cache.pages(2), cache.page_table()
    assert pages.shape == (4, PAGE, 1, 16) and pages.data_ptr() == cache.buffer_LBSC[2, 1].data_ptr()
    assert torch.equal(pages[table[1].long()].flatten(0, 2), cache.buffer_LBSC[2, 2])


@pytest.mark.parametrize(
    ("capability", "dtype", "widths", "serves"),
    [
        ((9, 0), torch.bfloat16, (512, 64), True),
        ((10, 0), torch.bfloat16, (512, 64), False),
        (None, torch.bfloat16, (512, 64), False),
        ((9, 0), torch.float32, (512, 64), False),
        ((9, 0), torch.bfloat16, (128, 64), False),
        ((9, 0), torch.bfloat16, (512, 32), False),
    ],
)
def test_it_serves_v3s_widths_in_bf16_on_hopper(capability, dtype, widths, serves):
    assert flash_mla_serves(capability, dtype, *widths) == serves


def test_it_is_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(latent_kernels, "nvidia_capability", lambda device: (9, 0))
    asked = (torch.device("cpu"), torch.bfloat16, 512, 64)
    flash_mla.cache_clear()
    assert isinstance(latent_kernel(*asked), Products)  # not installed here
    monkeypatch.setitem(sys.modules, "flash_mla", types.ModuleType("flash_mla"))
    flash_mla.cache_clear()
    assert latent_kernel(*asked).name == "FlashMLA"
    flash_mla.cache_clear()
    assert isinstance(latent_kernel(torch.device("cpu"), torch.float32, 512, 64), Products)
