"""Logits, tokens and folders equal those of transformers' `DeepseekV3ForCausalLM` in fp32."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.modeling_layers import MtpLayer

from core_model.cache import LatentCache
from core_model.checkpoint.config_file import disk_config
from core_model.checkpoint.storage import Storage
from core_model.config import YARN_V3, V3Config
from core_model.model import V3ForCausalLM
from tests.core_model.reference import TINY, random_model, random_tokens, relative_difference

CLOSE = 1e-5  # of the largest logit
YARN = {**YARN_V3, "original_max_position_embeddings": 16, "factor": 8}
BASE: dict[str, Any] = {**TINY, "n_routed_experts": 16, "num_experts_per_tok": 4, "routed_scaling_factor": 2.5}
CASES: dict[str, dict[str, Any]] = {
    "groups": {},
    "yarn": {"rope_scaling": YARN},
    "yarn without mscale_all_dim": {"rope_scaling": {k: v for k, v in YARN.items() if "mscale" not in k}},
    "plain queries": {"q_lora_rank": None},
    "plain queries, yarn": {"q_lora_rank": None, "rope_scaling": YARN},
    "two dense layers": {"first_k_dense_replace": 2},
    "no dense layer": {"first_k_dense_replace": 0},
    "all layers dense": {"n_routed_experts": None},
    "wide values": {"v_head_dim": 20},
    "one group, two shared experts": {"n_group": 1, "topk_group": 1, "n_shared_experts": 2},
    "weights as they are": {"norm_topk_prob": False},
}


def theirs_of(model: V3ForCausalLM) -> DeepseekV3ForCausalLM:
    """transformers' model with our weights, whose in-memory names are the same."""
    config = DeepseekV3Config.from_dict(disk_config(model.config, Storage(torch.float32)))
    theirs = DeepseekV3ForCausalLM(config).eval()
    mtp = tuple(
        f"model.layers.{model.config.num_hidden_layers + k}." for k in range(model.config.num_nextn_predict_layers)
    )
    theirs.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith(mtp)})
    return theirs


@cache
def pair(case: str) -> tuple[V3ForCausalLM, DeepseekV3ForCausalLM]:
    ours = random_model(V3Config.preset("nano", **{**BASE, **CASES[case]}))
    return ours, theirs_of(ours)


def logits(model: torch.nn.Module, tokens: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert relative_difference(ours, theirs) < CLOSE


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    ours, theirs = pair(case)
    tokens = random_tokens(2, 40)
    assert_equal(logits(ours, tokens), logits(theirs, tokens))


def test_the_comparison_would_notice_each_part():
    """A parity test that cannot fail proves nothing: leave out one part of ours at a time."""
    ours, theirs = pair("yarn")
    tokens, expected = random_tokens(2, 40), logits(theirs, random_tokens(2, 40))
    router = ours.model.layers[1].mlp.gate
    kept = router.e_score_correction_bias.clone()
    router.e_score_correction_bias.zero_()
    without_bias = logits(ours, tokens)
    router.e_score_correction_bias.copy_(kept)
    plain = V3ForCausalLM(V3Config.preset("nano", **BASE)).eval()
    plain.load_state_dict(ours.state_dict())
    for changed in (without_bias, logits(plain, tokens)):
        assert relative_difference(changed, expected) > 100 * CLOSE
    assert_equal(logits(ours, tokens), expected)


@st.composite
def configurations(draw) -> V3Config:
    groups = draw(st.sampled_from([1, 2, 4]))
    experts = groups * draw(st.integers(2, 4))
    top_groups = draw(st.integers(1, groups))
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return V3Config.preset(
        "nano",
        **{
            **BASE,
            "hidden_size": draw(st.sampled_from([24, 32, 40])),
            "intermediate_size": draw(st.integers(1, 48)),
            "moe_intermediate_size": 4 * draw(st.integers(1, 4)),  # theirs: grouped GEMMs want rows of 16 bytes
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "num_hidden_layers": layers,
            "first_k_dense_replace": draw(st.integers(0, layers)),
            "num_nextn_predict_layers": draw(st.integers(0, 2)),
            "n_routed_experts": experts,
            "n_group": groups,
            "topk_group": top_groups,
            "num_experts_per_tok": draw(st.integers(1, top_groups * experts // groups)),
            "n_shared_experts": draw(st.integers(1, 2)),
            "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
            "q_lora_rank": draw(st.sampled_from([None, 8, 24])),
            "kv_lora_rank": 2 * draw(st.integers(2, 10)),
            "qk_nope_head_dim": 2 * draw(st.integers(1, 6)),
            "qk_rope_head_dim": 2 * draw(st.integers(1, 6)),
            "v_head_dim": draw(st.integers(1, 24)),
            "rope_scaling": draw(st.sampled_from([None, YARN, {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}])),
            "norm_topk_prob": draw(st.booleans()),
        },
    )


LENGTH = 24
cuts = st.lists(st.integers(1, LENGTH - 1), max_size=4, unique=True).map(sorted)


@given(configurations(), st.integers(0, 3), cuts, st.integers(0, LENGTH - 1), st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_logits_of_any_configuration(config, seed, cut, padding, left):
    """Whole rows, packed documents, padding on either side, and decoding; biases are negative for most experts."""
    ours = random_model(config, seed)
    theirs = theirs_of(ours)
    tokens = random_tokens(2, LENGTH, seed=seed)
    expected = logits(theirs, tokens)
    assume(expected.abs().max() > 0)
    assert_equal(logits(ours, tokens), expected)

    lengths = [end - start for start, end in zip([0, *cut], [*cut, LENGTH], strict=True)]
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    packed = torch.cat([logits(theirs, part) for part in tokens.split(lengths, dim=1)], dim=1)
    assert_equal(logits(ours, tokens, position_ids=positions), packed)

    mask = torch.ones_like(tokens)
    mask[1, slice(padding) if left else slice(LENGTH - padding, None)] = 0
    padded = logits(ours, tokens, attention_mask=mask)
    assert_equal(padded[:1], expected[:1])
    assert_equal(padded[1, mask[1].bool()], logits(theirs, tokens[1:, mask[1].bool()])[0])

    cache = LatentCache(config, 2, LENGTH, torch.float32)
    steps = []
    for at in range(4):
        positions = torch.full((2, 1), at)
        cache.begin(0, positions)
        steps.append(logits(ours, tokens[:, at : at + 1], position_ids=positions, past_key_values=cache))
    assert_equal(torch.cat(steps, 1), expected[:, :4])


@pytest.mark.parametrize("case", ["groups", "yarn"])
def test_an_mtp_module_is_transformers_own(case):
    """Its module for released weights, with ours: the order of the projection's input, both norms, the norm behind."""
    ours, theirs = pair(case)
    (layer,) = ours.model.mtp_layers()
    names = {"shared_head.norm": "post_norm", **{n: n for n in ("enorm", "hnorm", "eh_proj")}}
    module = MtpLayer(theirs.config, type(theirs.model.layers[-1]), type(theirs.model.norm), 3).eval()
    weights = {}
    for name, tensor in layer.state_dict().items():
        head = name.removesuffix(".weight")
        weights[f"{names[head]}.weight" if head in names else f"mtp_block.{name}"] = tensor
    module.load_state_dict(weights)
    tokens = random_tokens(2, 20)
    positions = torch.arange(20).unsqueeze(0)
    causal = torch.full((20, 20), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        backbone = ours.model(tokens)
        ((state, _),) = ours.mtp_states(tokens, backbone)
        expected = module(
            theirs.model.embed_tokens(torch.nn.functional.pad(tokens[:, 1:], (0, 1))),
            theirs.model(tokens).last_hidden_state,  # after the final norm
            theirs.model.rotary_emb(backbone.last_hidden_state, positions),
            causal,
            positions,
            None,
        )
    assert_equal(state, expected)


@pytest.mark.parametrize("case", ["groups", "yarn", "plain queries, yarn", "wide values"])
def test_absorbed_decoding_token_by_token(case):
    ours, theirs = pair(case)
    tokens = random_tokens(2, 20)
    expected = logits(theirs, tokens)
    transformers_cache, latent = DynamicCache(config=ours.config), LatentCache(ours.config, 2, 20, torch.float32)
    for at in range(20):
        token, positions = tokens[:, at : at + 1], torch.full((2, 1), at)
        step = logits(ours, token, past_key_values=transformers_cache, use_cache=True)
        assert_equal(step[:, 0], expected[:, at])
        latent.begin(0, positions)
        step = logits(ours, token, position_ids=positions, past_key_values=latent)
        assert_equal(step[:, 0], expected[:, at])
    assert transformers_cache.get_seq_length() == 20


def test_a_cached_prefix_then_a_chunk_then_single_tokens():
    ours, theirs = pair("yarn")
    tokens, cache, parts, start = random_tokens(2, 12), DynamicCache(), [], 0
    for length in (5, 4, 1, 2):
        piece = tokens[:, start : start + length]
        parts.append(logits(ours, piece, past_key_values=cache, use_cache=True))
        start += length
    assert_equal(torch.cat(parts, 1), logits(theirs, tokens))


@pytest.mark.parametrize("case", ["groups", "yarn"])
def test_packed_documents(case):
    """Against each document alone and against transformers, document by document and packed as it packs."""
    ours, theirs = pair(case)
    tokens, lengths = random_tokens(1, 24), [9, 1, 10, 4]
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    packed = logits(ours, tokens, position_ids=positions)
    expected = torch.cat([logits(theirs, part) for part in tokens.split(lengths, dim=1)], dim=1)
    alone = torch.cat([logits(ours, part) for part in tokens.split(lengths, dim=1)], dim=1)
    assert_equal(packed, expected)
    assert_equal(packed, alone)
    assert_equal(packed, logits(theirs, tokens, position_ids=positions, use_cache=False))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_by_attention_mask(side, use_cache):
    ours, theirs = pair("yarn")
    tokens, mask = random_tokens(3, 14), torch.ones(3, 14, dtype=torch.long)
    for row, padding in enumerate((0, 5, 13)):
        mask[row, slice(padding) if side == "left" else slice(14 - padding, None)] = 0
    real = mask.bool()
    mine = logits(ours, tokens, attention_mask=mask, use_cache=use_cache)
    assert_equal(mine[real], logits(theirs, tokens, attention_mask=mask)[real])
    for row in range(3):
        assert_equal(mine[row, real[row]], logits(theirs, tokens[row : row + 1, real[row]])[0])


@pytest.mark.parametrize("case", ["groups", "yarn", "plain queries", "all layers dense"])
def test_transformers_loads_our_folder_and_decodes_the_same_tokens(case, tmp_path):
    ours, _ = pair(case)
    ours.save_pretrained(tmp_path / "model")
    theirs, report = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is DeepseekV3ForCausalLM
    # The trap: transformers ignores MTP weights by V3's own layer number, 61 (`_keys_to_ignore_on_load_unexpected`),
    # so the LOAD REPORT of any smaller model lists its MTP layer, and nothing else, as unexpected.
    assert report["missing_keys"] == set() and report["mismatched_keys"] == set()
    assert all(name.startswith("model.layers.3.") for name in report["unexpected_keys"])
    assert len(report["unexpected_keys"]) > 0
    prompt = random_tokens(3, 6)
    greedy = {"do_sample": False, "max_new_tokens": 12, "attention_mask": torch.ones_like(prompt), "pad_token_id": 2}
    assert torch.equal(ours.generate(prompt, **greedy), theirs.eval().generate(prompt, **greedy))


def test_without_mtp_the_load_report_is_empty(tmp_path):
    ours = random_model(V3Config.preset("nano", **{**BASE, "num_nextn_predict_layers": 0}))
    ours.save_pretrained(tmp_path / "model")
    _, report = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("case", ["groups", "yarn", "plain queries", "two dense layers", "all layers dense"])
def test_a_folder_that_transformers_saved_loads_here(case, tmp_path):
    ours, theirs = pair(case)
    theirs.save_pretrained(tmp_path / "model")
    # Its config claims the MTP module that transformers has dropped: the caller says so.
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model", num_nextn_predict_layers=0).eval()
    tokens = random_tokens(2, 30)
    assert_equal(logits(loaded, tokens), logits(theirs, tokens))
    assert (loaded.config.rope_scaling is None) == (ours.config.rope_scaling is None)


@pytest.mark.parametrize("case", ["groups", "yarn"])
def test_generate_equals_a_loop_of_whole_forwards_with_left_padding(case):
    ours, _ = pair(case)
    prompts, new = [random_tokens(1, n, seed=n) for n in (3, 7, 5)], 8
    padded, mask = torch.full((3, 7), 2), torch.zeros(3, 7, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, 7 - prompt.shape[1] :] = prompt[0]
        mask[row, 7 - prompt.shape[1] :] = 1
    generated = ours.generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=2, eos_token_id=-1
    )
    for row, prompt in enumerate(prompts):
        text = prompt
        for _ in range(new):
            text = torch.cat((text, logits(ours, text)[:, -1:].argmax(-1)), dim=1)
        assert generated[row, 7:].tolist() == text[0, prompt.shape[1] :].tolist()


def test_sampling_through_generate_is_reproducible():
    ours, _ = pair("groups")
    prompt = random_tokens(2, 4)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        mask = torch.ones_like(prompt)
        return ours.generate(prompt, attention_mask=mask, do_sample=True, max_new_tokens=10, pad_token_id=2)

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
