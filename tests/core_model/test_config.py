"""Configuration: published fields, consistency checks, no silently ignored field."""

from __future__ import annotations

import math

import pytest
import torch
from reference import TINY, tiny_config

from core_model.config import MOST, MOST_OF, PRESETS, SIZES, YARN_V3, V3Config
from core_model.model import V3ForCausalLM


def test_the_default_is_the_published_671b_configuration():
    config = V3Config.preset("671b")
    published = {
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 163840,
        "vocab_size": 129280,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_scaling": None,  # plain RoPE in pre-training; YaRN belongs to the extension stages
    }
    assert {name: getattr(config, name) for name in published} == published
    assert config.qk_head_dim == 192


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_consistent(name):
    assert V3Config.preset(name).hidden_size > 0


@pytest.mark.parametrize("name", ["nano", "mini"])
def test_the_small_presets_have_every_part_of_v3(name):
    config = V3Config.preset(name)
    assert config.num_nextn_predict_layers >= 1 and config.n_shared_experts >= 1 and config.q_lora_rank
    assert 0 < config.first_k_dense_replace < config.num_hidden_layers
    assert 1 < config.topk_group < config.n_group
    assert not config.is_moe_layer(0) and config.is_moe_layer(config.num_hidden_layers)


def test_overrides_replace_preset_fields():
    config = V3Config.preset("nano", vocab_size=77, rope_scaling=YARN_V3)
    assert (config.vocab_size, config.rope_scaling) == (77, YARN_V3)
    assert V3Config.preset("nano").vocab_size != 77


def test_a_mistyped_field_is_refused():
    with pytest.raises(ValueError, match="rope_scalling"):
        V3Config.preset("nano", rope_scalling=None)


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(ValueError, match=r"nano.*671b"):
        V3Config.preset("micro")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"qk_rope_head_dim": 5}, "qk_rope_head_dim must be even"),
        ({"qk_nope_head_dim": 5}, "qk_nope_head_dim must be even"),
        ({"kv_lora_rank": 5}, "kv_lora_rank must be even"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"n_group": 3}, "multiple of n_group"),
        ({"topk_group": 5}, "topk_group 5 exceeds"),
        ({"topk_group": 1, "num_experts_per_tok": 3}, "num_experts_per_tok"),
        ({"n_group": 8, "topk_group": 8}, "two experts"),
        ({"scoring_func": "softmax"}, "sigmoid"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"rope_scaling": {**YARN_V3, "type": "linear"}}, "yarn"),
        ({"rope_scaling": "yarn"}, "dictionary"),
        ({"rope_scaling": {"type": "yarn"}}, "factor and original_max_position_embeddings"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": -2, "num_key_value_heads": -2}, "num_attention_heads"),
        ({"q_lora_rank": 0}, "q_lora_rank"),
        ({"n_shared_experts": 0}, "n_shared_experts"),
        ({"n_group": 0}, "n_group"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        ({"hidden_size": 10**30}, "hidden_size must be at most 1000000, not 10000"),
        ({"num_hidden_layers": 10**8}, "num_hidden_layers must be at most 10000"),
        ({"num_nextn_predict_layers": 10**8}, "num_nextn_predict_layers must be at most 100"),
        ({"n_routed_experts": 10**8}, "n_routed_experts must be at most 1000000"),
        ({"vocab_size": 10**8}, "vocab_size must be at most 10000000"),
        ({"max_position_embeddings": 10**10}, "max_position_embeddings must be at most"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor must be a number > 0, not '2.5'"),
        ({"routed_scaling_factor": math.nan}, "routed_scaling_factor"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rope_theta": 1}, "rope_theta must be a number > 1"),
        ({"rope_theta": 10**400}, "rope_theta must be a number > 1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number > 0"),
        ({"routed_scaling_factor": -(10**400)}, "routed_scaling_factor must be a number > 0"),
        ({"rope_scaling": {**YARN_V3, "factor": 10**400}}, "rope_scaling.factor must be a number >= 1"),
        ({"norm_topk_prob": "false"}, "norm_topk_prob"),
        ({"rope_scaling": {**YARN_V3, "factor": 0}}, "rope_scaling.factor must be a number >= 1"),
        ({"rope_scaling": {**YARN_V3, "factor": "40"}}, "rope_scaling.factor"),
        ({"rope_scaling": {**YARN_V3, "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {**YARN_V3, "beta_fast": 0}}, "beta_fast"),
        ({"rope_scaling": {**YARN_V3, "mscale": None}}, "mscale"),
        ({"rope_scaling": {**YARN_V3, "attention_factor": 1.3}}, "attention_factor must be left out"),
        ({"rope_scaling": {**YARN_V3, "truncate": False}}, "truncate must be left out"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_the_largest_sizes_still_have_bytes_that_pytorch_can_count():
    config = tiny_config(
        **dict.fromkeys(set(SIZES) - MOST_OF.keys() - {"n_group", "topk_group", "first_k_dense_replace"}, MOST),
        vocab_size=MOST_OF["vocab_size"],
        num_key_value_heads=MOST,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    with torch.device("meta"):
        state = V3ForCausalLM(config).state_dict()
    assert max(t.nbytes for t in state.values()) > 2**62


def test_a_dense_model_needs_no_expert_fields_to_fit():
    config = tiny_config(n_routed_experts=None, n_group=3)
    assert not any(config.is_moe_layer(i) for i in range(TINY["num_hidden_layers"] + 1))


def test_trl_finds_what_it_reads():
    assert V3Config.auto_map == {}
    assert V3Config.model_type == "trivium_v3"
