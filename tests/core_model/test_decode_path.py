"""The laid-out forward of decoding against the model's own."""

from __future__ import annotations

import shutil

import pytest
import torch
from reference import YARN_TINY, random_model, random_tokens, relative_difference, tiny_config

from core_model import native
from core_model.cache import LatentCache
from core_model.generation import Engine, SamplingParams, decode
from core_model.generation.decode import DecodePath

CLOSE = 1e-5
CONFIGURATIONS = {
    "as nano": {},
    "queries without a latent": {"q_lora_rank": None},
    "YaRN": {"rope_scaling": YARN_TINY},
    "one group, two shared experts": {"n_group": 1, "topk_group": 1, "n_shared_experts": 2},
    "a wide latent, nothing merged": {"kv_lora_rank": 96, "v_head_dim": 4, "qk_nope_head_dim": 4},
    "values wider than keys": {"v_head_dim": 40},
    "all layers dense": {"first_k_dense_replace": 3},
}


@pytest.fixture(params=["compiled", "operations"])
def code(request, monkeypatch) -> str:
    """What the layers run in. A compiler that is there has to make the one, whatever machine this is."""
    if request.param == "operations":
        monkeypatch.setattr(native, "library", lambda name: None)
    elif shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    return request.param


@torch.inference_mode()
def read(model, tokens, lengths) -> LatentCache:
    """A cache that holds the first lengths[b] tokens of each row."""
    cache = LatentCache(model.config, len(lengths), tokens.shape[1], torch.float32, drafts=True)
    for row, length in enumerate(lengths):
        positions = torch.arange(length).unsqueeze(0)
        cache.begin(row, positions)
        out = model.model(tokens[row : row + 1, :length], position_ids=positions, past_key_values=cache)
        cache.begin(row, positions)
        context = model.model.attention_context((1, length), positions, None, cache)
        after = model.model.embed(tokens[row : row + 1, 1 : length + 1])
        model.model.mtp_layers()[0](out.last_hidden_state, after, context)
    return cache


def rows_of(tokens, lengths, width, shift=0) -> torch.Tensor:
    """[B, width]: the tokens of each row from its length on."""
    at = torch.tensor(lengths)[:, None] + torch.arange(width) + shift
    return tokens.gather(1, at)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("lengths", [[9, 9, 9, 9], [3, 12, 1, 7], [5]])
@pytest.mark.parametrize("way", ["compiled", "all experts", "chosen experts"])
@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_states_routing_and_drafts_are_those_of_a_plain_forward(changes, way, lengths, width, monkeypatch):
    if way != "compiled":
        monkeypatch.setattr(native, "library", lambda name: None)
    if way == "chosen experts":
        monkeypatch.setattr(decode, "DENSE_WORK", 0)
    model = random_model(tiny_config(**changes))
    tokens = random_tokens(len(lengths), 20, seed=width)
    cache, path = read(model, tokens, lengths), DecodePath(model, torch.float32)
    positions = torch.tensor(lengths)[:, None] + torch.arange(width)
    states, routings = path.forward(rows_of(tokens, lengths, width), positions, cache)
    drafts = path.draft(states, rows_of(tokens, lengths, width, shift=1), positions, cache)
    for row, length in enumerate(lengths):
        whole = tokens[row : row + 1, : length + width + 1]
        with torch.no_grad():
            plain = model.model(whole)
            drafted, _ = next(model.mtp_states(whole, plain))
        new = slice(length, length + width)
        assert relative_difference(states[row], plain.last_hidden_state[0, new]) < CLOSE
        assert relative_difference(drafts[row], drafted[0, new]) < CLOSE
        for mine, theirs in zip(routings, plain.routings, strict=True):
            chosen = mine.indices_TK.unflatten(0, (len(lengths), width))[row]
            assert torch.equal(chosen, theirs.indices_TK[new])


def test_small_experts_are_computed_for_all_and_large_ones_are_not(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name: None)
    model = random_model(tiny_config())
    tokens, lengths = random_tokens(4, 8), [3, 4, 5, 6]
    for work, expected in ((decode.DENSE_WORK, 0), (0, 2)):
        monkeypatch.setattr(decode, "DENSE_WORK", work)
        cache, path = read(model, tokens, lengths), DecodePath(model, torch.float32)
        called: list[int] = []
        hooks = [
            layer.mlp.experts.register_forward_hook(lambda *_, called=called: called.append(1))
            for layer in model.model.layers[1:]
        ]
        path.forward(rows_of(tokens, lengths, 1), torch.tensor(lengths)[:, None], cache)
        assert len(called) == expected
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("update", ["optimiser", "load", "assignment", "bias"])
def test_an_engine_takes_over_an_update(update, code):
    model, other = random_model(tiny_config(), seed=1), random_model(tiny_config(), seed=2)
    engine, prompt = Engine(model), [random_tokens(9).tolist()]
    params = SamplingParams(8, temperature=0.0, logprobs=True)
    before = engine.generate(prompt, params)[0][0]
    if update == "optimiser":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, fused=True)
        model(torch.tensor(prompt), labels=torch.tensor(prompt)).loss.backward()
        optimizer.step()
    elif update == "load":
        model.load_state_dict(other.state_dict())
    elif update == "assignment":
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data = theirs.data
    else:
        for mine, theirs in zip(model.model.routers(), other.model.routers(), strict=True):
            mine.e_score_correction_bias.copy_(theirs.e_score_correction_bias)
    engine.refresh_weights()
    after = engine.generate(prompt, params)[0][0]
    fresh = Engine(model).generate(prompt, params)[0][0]
    assert after == fresh and after.logprobs != before.logprobs
