"""Accounting against DeepSeek's published figures and against built models."""

from __future__ import annotations

import time

import pytest
import torch
from reference import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from core_model.accounting import flops_per_token, kv_bytes_per_token, parameters
from core_model.accounting.__main__ import main
from core_model.cache import LatentCache
from core_model.config import PRESETS, V3Config
from core_model.model import V3ForCausalLM

CONFIGURATIONS = [
    {},
    {"q_lora_rank": None},
    {"num_nextn_predict_layers": 0},
    {"num_nextn_predict_layers": 2, "n_shared_experts": 2, "v_head_dim": 10},
    {"n_routed_experts": None},
    {"first_k_dense_replace": 0},
    {"first_k_dense_replace": 3},
    {"first_k_dense_replace": 4, "num_nextn_predict_layers": 2},  # of the two MTP modules, one is dense
]


def test_v3s_published_counts():
    count = parameters(V3Config.preset("671b"))
    assert count.total == 671_026_419_200
    assert count.active == 37_552_297_472
    assert count.active - count.embedding == 36_625_618_432
    assert count.embedding == 129280 * 7168
    assert count.mtp == 11_610_068_224


@pytest.mark.parametrize(("name", "total"), [("16b", 15_706_485_888), ("236b", 235_741_444_320)])
def test_the_other_sizes_published_counts(name, total):
    assert parameters(V3Config.preset(name)).total == total


def test_mini_has_a_hundred_million_active_parameters():
    count = parameters(V3Config.preset("mini"))
    assert 95e6 < count.active < 105e6 and 3 * count.active < count.total < 5 * count.active


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_on_the_meta_device_with_as_many_parameters(name):
    """Without memory and in seconds, V3's 671B too."""
    config = V3Config.preset(name)
    started = time.process_time()
    with torch.device("meta"):
        model = V3ForCausalLM(config)
    assert time.process_time() - started < 10
    assert all(tensor.device.type == "meta" for tensor in model.state_dict().values())
    count = parameters(config)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == count.total + count.mtp


def test_the_command_prints_every_preset_and_refuses_others(capsys):
    assert main(["--tokens", "4096"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line and line[0] != " "] == list(PRESETS)
    for number in ("671,026,419,200", "37,552,297,472", "11,610,068,224", "70,272 B", "15,706,485,888"):
        assert number in printed
    recomputed = ("no recomputation", "norms and up-projections recomputed", "whole layers recomputed")
    for label in (
        *(f"activations, {one}" for one in recomputed),
        "BF16 weight copies (not with whole-layer recomputation)",
    ):
        assert printed.count(f"  {label} ") == len(PRESETS)
    assert main(["nano", "micro"]) == 2 and "no preset 'micro'" in capsys.readouterr().err
    assert main(["nano", "--tokens", "0"]) == 2 and "sequence_length" in capsys.readouterr().err


def test_v3s_published_cache_and_training_cost():
    config = V3Config.preset("671b")
    assert kv_bytes_per_token(config, torch.bfloat16) == 70_272
    assert flops_per_token(config, 4096) == pytest.approx(250e9, rel=0.01)


@pytest.mark.parametrize("overrides", CONFIGURATIONS)
def test_counts_equal_a_built_model(overrides):
    config = tiny_config(**overrides)
    count = parameters(config)
    model = V3ForCausalLM(config)
    mtp = sum(tensor.numel() for layer in model.model.mtp_layers() for tensor in layer.state_dict().values())
    assert count.mtp == mtp
    assert count.total == sum(tensor.numel() for tensor in model.state_dict().values()) - mtp
    assert count.embedding == model.model.embed_tokens.weight.numel()


def test_nano_is_counted_exactly():
    config = V3Config.preset("nano")
    count = parameters(config)
    assert count.total + count.mtp == sum(t.numel() for t in V3ForCausalLM(config).state_dict().values())
    assert count.active < count.total


def test_a_model_that_uses_every_expert_is_all_active():
    count = parameters(tiny_config(num_experts_per_tok=8, n_group=1, topk_group=1))
    assert count.active == count.total


@pytest.mark.parametrize("overrides", CONFIGURATIONS)
def test_flops_equal_those_torch_counts(overrides):
    """torch's counter sees every product of the forward (the loop of experts pads no rows in fp32) but attention."""
    config = tiny_config(**overrides)
    model = V3ForCausalLM(config).initialize(0.1, 0).eval()
    length = 16
    tokens = torch.arange(length).unsqueeze(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(n for op, n in counted.items() if "attention" not in op)
    width = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    attention = config.num_hidden_layers * width * (length + 1)
    assert flops_per_token(config, length, backward=False) == products // length + attention


def test_backward_is_twice_the_forward_and_mtp_adds_its_modules():
    config = tiny_config(num_nextn_predict_layers=2)
    forward = flops_per_token(config, 64, backward=False)
    assert flops_per_token(config, 64) == 3 * forward
    one = flops_per_token(tiny_config(), 64, backward=False, mtp=True) - forward
    assert one > 2 * config.vocab_size * config.hidden_size
    assert flops_per_token(config, 64, backward=False, mtp=True) == forward + 2 * one


def test_a_longer_context_costs_more_and_full_attention_about_twice_causal():
    config = V3Config.preset("671b")
    base = flops_per_token(config, 1, backward=False)
    causal = flops_per_token(config, 131072, backward=False) - base
    full = flops_per_token(config, 131072, backward=False, causal=False) - base
    assert full == pytest.approx(2 * causal, rel=1e-4) and causal > base


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="sequence_length"):
        flops_per_token(tiny_config(), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_equal_the_cache(dtype):
    config = tiny_config()
    assert LatentCache(config, 3, 5, dtype).nbytes == 15 * kv_bytes_per_token(config, dtype)
