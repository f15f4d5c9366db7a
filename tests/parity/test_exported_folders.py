"""Exports load in transformers, and folders that transformers saved are imported, with the same weights and tokens.

transformers 5.23 cannot run FP8 on CPU: it makes BF16 of it on loading. It takes the size of a block to be rows over
rows of scales, which is 128 only where sizes are at most 128 or multiples of it; for others it wants whole blocks.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_transformers import BASE, YARN, assert_equal, logits, pair
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, FineGrainedFP8Config
from transformers.quantizers.auto import AutoHfQuantizer

from core_model.checkpoint import Storage, convert_folder
from core_model.config import V3Config
from core_model.model import V3ForCausalLM
from tests.core_model.reference import random_model, random_tokens

FP32, BF16 = Storage(torch.float32), Storage(torch.bfloat16)
FP8, UE8M0 = Storage(torch.float8_e4m3fn), Storage(torch.float8_e4m3fn, power_of_two=True)
WHOLE = Storage(torch.float8_e4m3fn, whole_blocks=True)
# Several blocks a matrix, all of them whole: [256, 256], [256, 128] and so on.
BLOCKS = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "q_lora_rank": 128,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 96,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
CASES = {
    "blocks": BLOCKS,
    "blocks, plain queries, yarn": {**BLOCKS, "q_lora_rank": None, "rope_scaling": YARN},
    "less than a block": {},
}


def export(case: dict, storage: Storage, folder: Path, **options) -> Path:
    """A random model with groups, negative biases and MTP, exported in shards."""
    random_model(V3Config.preset("nano", **{**BASE, **case})).save_pretrained(folder / "model")
    convert_folder(folder / "model", folder / "export", storage, shard_bytes=500_000, **options)
    return folder / "export"


def load_theirs(folder: Path) -> DeepseekV3ForCausalLM:
    """transformers' model, computing in fp32 with the weights it read."""
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is DeepseekV3ForCausalLM
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith("model.layers.3.") for name in report["unexpected_keys"])  # MTP, which it lacks
    return theirs.float().eval()


def greedy(model, prompt: torch.Tensor) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 2, "eos_token_id": -1}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).tolist()


def assert_same_model(ours: V3ForCausalLM, theirs: DeepseekV3ForCausalLM) -> None:
    state = ours.state_dict()
    assert [name for name, tensor in theirs.state_dict().items() if not torch.equal(state[name], tensor)] == []
    tokens = random_tokens(2, 40)
    assert_equal(logits(ours, tokens), logits(theirs, tokens))
    prompt = random_tokens(3, 6)
    assert greedy(ours, prompt) == greedy(theirs, prompt)


@pytest.mark.parametrize("storage", [BF16, FP8, UE8M0], ids=["bf16", "fp8", "fp8 ue8m0"])
@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_same_model_there(case, storage, tmp_path):
    folder = export(CASES[case], storage, tmp_path)
    if storage.is_fp8:  # they round to BF16, so we do
        convert_folder(folder, tmp_path / "bf16", BF16)
    ours = V3ForCausalLM.from_pretrained(tmp_path / "bf16" if storage.is_fp8 else folder).eval()
    assert_same_model(ours, load_theirs(folder))


# Of attention, of experts and of the dense feed-forward: sizes above a block that blocks do not divide.
CUT_OFF = {**BLOCKS, "kv_lora_rank": 160, "q_lora_rank": 192, "moe_intermediate_size": 144, "intermediate_size": 129}


@pytest.mark.parametrize("storage", [WHOLE, replace(WHOLE, power_of_two=True)], ids=["fp8", "fp8 ue8m0"])
def test_with_whole_blocks_alone_an_fp8_export_of_any_sizes_is_the_same_model_there(storage, tmp_path):
    folder = export(CUT_OFF, storage, tmp_path)
    left_out = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert "model.layers.0.self_attn.q_a_proj" in left_out and "model.layers.0.self_attn.o_proj" not in left_out
    assert convert_folder(folder, tmp_path / "bf16", BF16).cut_off == 0
    assert_same_model(V3ForCausalLM.from_pretrained(tmp_path / "bf16").eval(), load_theirs(folder))


@pytest.mark.parametrize("case", [CUT_OFF, {**BLOCKS, "kv_lora_rank": 160}, BLOCKS], ids=["all", "one", "none"])
def test_what_transformers_runs_in_fp8_is_what_lies_in_fp8(case, tmp_path):
    """On a GPU it replaces modules before it loads them; which, is seen on the meta device."""
    folder = export(case, WHOLE, tmp_path, mtp=False)
    fields = json.loads((folder / "config.json").read_text())
    quantization = fields.pop("quantization_config")
    known = {key: quantization[key] for key in ("modules_to_not_convert", "weight_block_size") if key in quantization}
    with torch.device("meta"):
        theirs = DeepseekV3ForCausalLM(DeepseekV3Config.from_dict(fields))
    quantizer = AutoHfQuantizer.from_config(FineGrainedFP8Config(**known), pre_quantized=True)
    quantizer._process_model_before_weight_loading(theirs)
    stored = set()
    for shard in folder.glob("*.safetensors"):
        scales = (name for name in load_file(shard) if name.endswith(".weight_scale_inv"))
        stored |= {name.removesuffix(".weight_scale_inv") for name in scales}
    in_fp8 = {re.sub(r"(?<=experts)\.\d+\.\w+$", "", name) for name in stored}
    assert in_fp8 == {name for name, module in theirs.named_modules() if type(module).__name__.startswith("FP8")}


def test_the_examples_models_with_whole_blocks(tmp_path):
    """nano as it is, whose kv_b_proj has 192 rows."""
    random_model(V3Config.preset("nano")).save_pretrained(tmp_path / "model")
    for name, storage in (("fp8", FP8), ("whole", WHOLE)):
        cut_off = convert_folder(tmp_path / "model", tmp_path / name, storage).cut_off
        assert cut_off == (5 if storage is FP8 else 0)
    convert_folder(tmp_path / "whole", tmp_path / "bf16", BF16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").float().eval()
    assert_same_model(V3ForCausalLM.from_pretrained(tmp_path / "bf16").eval(), theirs)


def test_without_mtp_nothing_is_unexpected_there(tmp_path):
    folder = export(BLOCKS, BF16, tmp_path, mtp=False)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("case", ["groups", "yarn", "plain queries"])
def test_a_folder_that_transformers_saved_is_imported(case, tmp_path):
    ours, theirs = pair(case)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    # Its config claims the MTP module that transformers has dropped.
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert convert_folder(tmp_path / "theirs", tmp_path / "ours").mtp_layers == 0
    imported = V3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert imported.config.num_nextn_predict_layers == 0
    assert imported.config.rope_scaling is None or imported.config.rope_scaling["factor"] == YARN["factor"]
    assert_same_model(imported, theirs)
    assert greedy(imported, random_tokens(1, 5)) == greedy(ours, random_tokens(1, 5))


def test_an_export_comes_back_from_transformers_bit_by_bit(tmp_path):
    load_theirs(export(BLOCKS, FP32, tmp_path)).save_pretrained(tmp_path / "theirs")
    convert_folder(tmp_path / "theirs", tmp_path / "back")
    back = V3ForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    ours = V3ForCausalLM.from_pretrained(tmp_path / "model", num_nextn_predict_layers=0).state_dict()
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize(("size", "silent"), [(192, True), (200, True), (129, False)])
def test_blocks_that_are_cut_off_want_our_import_first(size, silent, tmp_path):
    """192 rows have 2 rows of scales, from which transformers infers blocks of 96; 129 rows it refuses."""
    folder = export({**BLOCKS, "intermediate_size": size}, FP8, tmp_path)
    convert_folder(folder, tmp_path / "bf16", BF16)
    ours = V3ForCausalLM.from_pretrained(tmp_path / "bf16").eval()
    assert_same_model(ours, load_theirs(tmp_path / "bf16"))
    if not silent:
        with pytest.raises(RuntimeError, match="conversion"):
            AutoModelForCausalLM.from_pretrained(folder)
        return
    name = "model.layers.0.mlp.gate_proj.weight"
    wrong, right = load_theirs(folder).state_dict()[name], ours.state_dict()[name]
    assert torch.equal(wrong[:96], right[:96]) and not torch.equal(wrong[96:128], right[96:128])
