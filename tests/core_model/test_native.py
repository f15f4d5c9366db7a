"""The compiled decoding step: against PyTorch's operations, alone and among others, and where it cannot be had."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_model, random_tokens, relative_difference, tiny_config

from core_model import native
from core_model.cache import LatentCache
from core_model.generation import Engine, SamplingParams, compiled
from core_model.generation.compiled import PANEL, CompiledLayers, CompiledLinear
from core_model.generation.decode import DecodePath

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
FAR = 2500  # positions: several stretches
MANY_EXPERTS = {"n_routed_experts": 40, "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6}


def paths(model, monkeypatch) -> tuple[DecodePath, DecodePath]:
    """The model in compiled code, and in operations."""
    compiled = DecodePath(model, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda name: None)
        return compiled, DecodePath(model, torch.float32)


def filled_cache(config, rows: int, positions: int) -> LatentCache:
    cache = LatentCache(config, rows, positions, torch.float32)
    cache.buffer_LBSC.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def copy_of(cache: LatentCache, config) -> LatentCache:
    twin = LatentCache(config, *cache.buffer_LBSC.shape[1:3], torch.float32)
    twin.buffer_LBSC.copy_(cache.buffer_LBSC)
    return twin


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 3 * PANEL + 1))
def test_products(rows, depth, width):
    draw = torch.Generator().manual_seed(rows * 7919 + depth * 101 + width)
    weight, x = torch.randn(width, depth, generator=draw), torch.randn(2, rows, depth, generator=draw)
    product = CompiledLinear.of(weight, torch.float32)
    assert product is not None
    torch.testing.assert_close(product.forward(x), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("changes", [{}, MANY_EXPERTS])
def test_far_into_a_long_past(changes, monkeypatch):
    """Positions are summed up in stretches and blocks; rows end at different places of both."""
    config = tiny_config(max_position_embeddings=FAR + 8, **changes)
    compiled, operations = paths(random_model(config), monkeypatch)
    positions = torch.tensor([[FAR], [1024], [1023], [64], [63], [0]]) + torch.arange(2)
    tokens = random_tokens(6, 2)
    cache = filled_cache(config, 6, FAR + 8)
    twin = copy_of(cache, config)
    states, routings = compiled.forward(tokens, positions, cache)
    expected, others = operations.forward(tokens, positions, twin)
    assert relative_difference(states, expected) < 1e-5
    torch.testing.assert_close(cache.buffer_LBSC, twin.buffer_LBSC, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(routings, others, strict=True):
        assert torch.equal(mine.indices_TK, theirs.indices_TK)
        torch.testing.assert_close(mine.weights_TK, theirs.weights_TK, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.scores_TE, theirs.scores_TE, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_to_the_last_bit_in_any_company(threads):
    """In batches of any size, by any number of threads, in rows that are taken together and rows that are not."""
    config = tiny_config(max_position_embeddings=FAR)
    path = DecodePath(random_model(config), torch.float32)
    rows, cache = 70, filled_cache(config, 70, FAR)
    positions = torch.randint(0, FAR - 1, (rows, 1), generator=torch.Generator().manual_seed(1))
    tokens, kept = random_tokens(rows, 1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = []
        for row in range(rows):
            own = LatentCache(config, 1, FAR, torch.float32)
            own.buffer_LBSC.copy_(cache.buffer_LBSC[:, row : row + 1])
            alone.append(path.forward(tokens[row : row + 1], positions[row : row + 1], own)[0])
        torch.set_num_threads(threads)
        for count in (1, 2, 33, rows):
            together, _ = path.forward(tokens[:count], positions[:count], copy_of(cache, config))
            assert torch.equal(together, torch.cat(alone[:count]))
    finally:
        torch.set_num_threads(kept)


@needs_compiler
def test_what_does_not_fit_is_refused():
    config = tiny_config()
    path = DecodePath(random_model(config), torch.float32)
    for rows, position in ((2, 8), (3, 0), (1, -1)):
        with pytest.raises((ValueError, IndexError)):
            path.forward(random_tokens(rows, 1), torch.full((rows, 1), position), filled_cache(config, 2, 8))
    with pytest.raises(ValueError, match="fp32 cache"):
        path.forward(
            random_tokens(1, 1), torch.zeros(1, 1, dtype=torch.long), LatentCache(config, 1, 8, torch.bfloat16)
        )


@needs_compiler
def test_positions_of_another_type_are_the_same():
    config = tiny_config()
    path, tokens = DecodePath(random_model(config), torch.float32), random_tokens(3, 1)
    positions = torch.tensor([[5], [0], [7]])
    states, _ = path.forward(tokens, positions, filled_cache(config, 3, 8))
    assert torch.equal(path.forward(tokens, positions.int(), filled_cache(config, 3, 8))[0], states)


@needs_compiler
def test_vectors_of_another_size_or_type_are_refused():
    product = CompiledLinear.of(torch.randn(5, 7), torch.float32)
    for x in (torch.zeros(2, 6), torch.zeros(2, 7, dtype=torch.float64)):
        with pytest.raises(ValueError, match="7 fp32 numbers"):
            product.forward(x)


def test_other_dtypes_and_large_models_take_operations(monkeypatch):
    layers, norm = random_model(tiny_config()).model.main_layers(), random_model(tiny_config()).model.norm
    assert CompiledLayers.of(layers, norm, torch.bfloat16) is None
    monkeypatch.setattr(compiled, "MOST_WEIGHTS", 10)
    assert CompiledLayers.of(layers, norm, torch.float32) is None


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As on a machine where nothing is compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._loaded.cache_clear()
    yield tmp_path / "trivium"
    native._loaded.cache_clear()


@needs_compiler
def test_it_is_compiled_once(fresh, monkeypatch):
    assert native.library("decode") is not None
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    native._loaded.cache_clear()
    run = subprocess.run

    def version_only(command, **more):
        assert "--version" in command
        return run(command, **more)

    monkeypatch.setattr(subprocess, "run", version_only)
    assert native.library("decode") is not None


@needs_compiler
def test_a_damaged_library_is_compiled_anew(fresh):
    assert native.library("decode") is not None
    (made,) = fresh.iterdir()
    made.unlink()
    made.write_bytes(b"half of it")
    native._loaded.cache_clear()
    assert native.library("decode") is not None and native.reason_against("decode") is None


@pytest.mark.parametrize("fault", ["no compiler", "no room", "a fault in the source", "turned off"])
def test_without_it_decoding_is_the_same(fault, fresh, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    if fault == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif fault == "no room":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif fault == "a fault in the source":
        broken = tmp_path / "decode.cpp"
        broken.write_text("int main( {")
        monkeypatch.setattr(native, "SOURCES", tmp_path)
    else:
        monkeypatch.setenv("TRIVIUM_NATIVE", "0")
    assert native.library("decode") is None
    assert ("decode without compiled code" in caplog.text) == (fault != "turned off") and native.reason_against(
        "decode"
    )
    model, prompt = random_model(tiny_config()), [random_tokens(9).tolist()]
    params = SamplingParams(12, temperature=0.0)
    slow = Engine(model).generate(prompt, params)[0][0]
    monkeypatch.undo()
    native._loaded.cache_clear()
    assert Engine(model).generate(prompt, params)[0][0].token_ids == slow.token_ids
