"""Conversion of folders: what comes back bit by bit, and what lies on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from folders import BF16, FP8, FP32, SHARD, UE8M0, assert_same_tensors, tensors_of
from reference import YARN_TINY, random_model, random_tokens, same, tiny_config
from safetensors.torch import load_file, save_file

from core_model.checkpoint import convert_folder
from core_model.errors import InputError
from core_model.manifest import verify_manifest
from core_model.model import V3ForCausalLM


def test_fp32_and_bf16_round_trips_are_bit_exact(converted, wide):
    assert_same_tensors(converted(FP32), wide)
    assert_same_tensors(converted(FP32, BF16), converted(BF16))
    assert_same_tensors(converted(BF16, FP32, BF16), converted(BF16))
    ours, theirs = V3ForCausalLM.from_pretrained(converted(FP32)), V3ForCausalLM.from_pretrained(wide)
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in ours.state_dict().items())
    tokens = random_tokens(2, 9)
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert ours.config.rope_scaling == YARN_TINY


def test_bf16_save_export_import_is_bit_exact(tmp_path):
    model = random_model(tiny_config(q_lora_rank=None, num_nextn_predict_layers=2))
    model.save_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    convert_folder(tmp_path / "model", tmp_path / "export", BF16, shard_bytes=9000)
    convert_folder(tmp_path / "export", tmp_path / "import")
    assert_same_tensors(tmp_path / "import", tmp_path / "model")
    assert len(list((tmp_path / "export").glob("*.safetensors"))) > 5
    # Floating-point parameters as they are on disk; fp32 in memory.
    expected = {n: t if "correction_bias" in n else t.bfloat16().float() for n, t in model.state_dict().items()}
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "import").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("storage", [FP8, UE8M0], ids=["fp32 scales", "ue8m0"])
def test_fp8_to_fp8_copies_the_bytes(converted, storage):
    assert_same_tensors(converted(storage, storage), converted(storage))


def test_scales_that_are_powers_of_two_do_for_fp8_of_either_kind(converted):
    assert_same_tensors(converted(UE8M0, FP8), converted(UE8M0))
    changed = tensors_of(converted(FP8, UE8M0))  # the other way they have to be taken anew
    scales = [t for name, t in changed.items() if name.endswith("_scale_inv")]
    assert len(scales) > 50 and all((torch.frexp(t).mantissa == 0.5).all() for t in scales)


@pytest.mark.parametrize("between", [BF16, FP32], ids=["bf16", "fp32"])
def test_fp8_through_bf16_and_back(converted, between):
    first, second = tensors_of(converted(FP8)), tensors_of(converted(FP8, between, FP8))
    for name, tensor in first.items():
        if name.endswith("_scale_inv"):
            torch.testing.assert_close(second[name], tensor, rtol={BF16: 2**-8, FP32: 2**-22}[between], atol=0)
        else:
            assert same(second[name], tensor), name
    assert_same_tensors(converted(UE8M0, between, UE8M0, between), converted(UE8M0, between))


def test_bf16_through_fp8_loses_once_and_by_the_published_amount(converted):
    assert_same_tensors(converted(BF16, UE8M0, BF16, UE8M0, BF16), converted(BF16, UE8M0, BF16))
    before, after = tensors_of(converted(BF16)), tensors_of(converted(BF16, FP8, BF16))
    changed = {name for name in before if not same(before[name], after[name])}
    stored = tensors_of(converted(BF16, FP8))
    assert changed == {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    x = torch.cat([before[name].double().flatten() for name in sorted(changed)])
    error = torch.cat([after[name].double().flatten() for name in sorted(changed)]) - x
    assert float(error.norm() / x.norm()) == pytest.approx(2.64e-2, abs=3e-4)


def test_types_on_disk_are_those_of_the_released_model(converted):
    kept = {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.self_attn.q_a_layernorm.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.enorm.weight",
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
    }
    tensors = tensors_of(converted(FP8))
    in_fp8 = {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    assert kept <= {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    assert {name for name, tensor in tensors.items() if tensor.dtype == torch.float32} == {
        *(f"{name}_scale_inv" for name in in_fp8),
        *(f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)),
    }
    attention = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    experts = ("shared_experts", *(f"experts.{expert}" for expert in range(8)))
    feed_forward = {0: [""], **{layer: [f"{expert}." for expert in experts] for layer in (1, 2, 3)}}
    assert in_fp8 == {
        *(f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(4) for name in attention),
        *(
            f"model.layers.{layer}.mlp.{expert}{part}_proj.weight"
            for layer, layers_experts in feed_forward.items()
            for expert in layers_experts
            for part in ("gate", "up", "down")
        ),
    }
    assert tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (136, 160)
    assert tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (2, 2)


def test_a_saved_model_in_fp8_is_the_converted_one(converted, tmp_path):
    model = V3ForCausalLM.from_pretrained(converted())
    model.save_pretrained(tmp_path / "model", dtype=torch.float8_e4m3fn)
    assert_same_tensors(tmp_path / "model", converted(FP8))


def test_the_config_says_how_the_weights_are_stored(converted):
    configs = {s: json.loads((converted(s) / "config.json").read_text()) for s in (FP32, BF16, FP8, UE8M0)}
    assert [configs[s]["torch_dtype"] for s in configs] == ["float32", "bfloat16", "bfloat16", "bfloat16"]
    assert "quantization_config" not in configs[FP32] and "quantization_config" not in configs[BF16]
    released = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    assert configs[FP8]["quantization_config"] == released
    assert configs[UE8M0]["quantization_config"] == {**released, "scale_fmt": "ue8m0"}


def test_the_index_says_where_everything_is(converted):
    folder = converted(FP8)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
    assert {name for tensors in files.values() for name in tensors} == index["weight_map"].keys()
    assert sum(t.nbytes for tensors in files.values() for t in tensors.values()) == index["metadata"]["total_size"]
    assert all(sum(t.nbytes for t in tensors.values()) <= SHARD or len(tensors) <= 2 for tensors in files.values())
    assert all(name.removesuffix("_scale_inv") in files[file] for name, file in index["weight_map"].items())
    assert max(files) == index["weight_map"]["model.layers.3.shared_head.head.weight"]
    verify_manifest(folder)


def test_tokenizer_and_template_travel_and_code_does_not(converted):
    files = {path.name for path in converted(FP8).iterdir() if path.suffix != ".safetensors"}
    assert files == {
        "config.json",
        "manifest.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_companions_of_hugging_faces_cache_are_links_that_travel(wide, tmp_path):
    source = Path(shutil.copytree(wide, tmp_path / "cache" / "snapshots" / "abc"))
    (tmp_path / "cache" / "blobs").mkdir()
    (source / "tokenizer.json").rename(tmp_path / "cache" / "blobs" / "123")
    (source / "tokenizer.json").symlink_to("../../blobs/123")
    (source / "vocab.json").symlink_to("tokenizer.json")
    (tmp_path / "link").symlink_to(source)
    convert_folder(tmp_path / "link", tmp_path / "out", BF16)
    for name in ("tokenizer.json", "vocab.json"):
        assert (tmp_path / "out" / name).read_text() == "{}" and not (tmp_path / "out" / name).is_symlink()


@pytest.mark.parametrize("kind", ["outside", "blobs", "folder", "pipe", "nothing"])
def test_companions_that_are_no_files_of_the_source_are_refused(wide, tmp_path, kind):
    source = Path(shutil.copytree(wide, tmp_path / "model"))
    for secret in (tmp_path / "secret", tmp_path / "blobs" / "secret"):
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("a key")
    path = source / "tokenizer.model"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"outside": "../secret", "blobs": "../blobs/secret", "nothing": "none"}[kind])
    with pytest.raises(InputError) as caught:
        convert_folder(source, tmp_path / "out", BF16)
    assert caught.value.path == path
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".partial*"))


def test_without_mtp(converted, wide, tmp_path):
    written = convert_folder(wide, tmp_path / "out", BF16, mtp=False)
    names = tensors_of(tmp_path / "out").keys()
    assert written.mtp_layers == 0 and not any(name.startswith("model.layers.3.") for name in names)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert V3ForCausalLM.from_pretrained(tmp_path / "out").config.num_nextn_predict_layers == 0


def test_mtp_that_is_claimed_and_not_there_is_struck_out_and_half_of_it_is_an_error(converted, wide, tmp_path):
    source = Path(shutil.copytree(wide, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    half = {name: t for name, t in tensors.items() if not name.endswith("eh_proj.weight")}
    save_file(half, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.3\.eh_proj"):
        convert_folder(source, tmp_path / "out", BF16)
    none = {name: t for name, t in tensors.items() if not name.startswith("model.layers.3.")}
    save_file(none, source / "model.safetensors", metadata={"format": "pt"})
    assert convert_folder(source, tmp_path / "out", BF16).mtp_layers == 0


def test_mtp_copies_that_are_none_are_said_and_written_anew(wide, converted, tmp_path, caplog):
    source = Path(shutil.copytree(wide, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.3.shared_head.head.weight"] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert_folder(wide, tmp_path / "quiet", BF16)
    assert not caplog.records
    convert_folder(source, tmp_path / "out", BF16, shard_bytes=SHARD)
    V3ForCausalLM.from_pretrained(source)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert "shared_head.head.weight is no copy of lm_head.weight" in record.getMessage()
    assert_same_tensors(tmp_path / "out", converted(BF16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_of_floats_are_kept(tmp_path, dtype):
    random_model(tiny_config()).save_pretrained(tmp_path / "model", dtype=dtype)
    convert_folder(tmp_path / "model", tmp_path / "out")
    assert_same_tensors(tmp_path / "out", tmp_path / "model")
    assert tensors_of(tmp_path / "out")["lm_head.weight"].dtype == dtype


@pytest.mark.parametrize("code", [torch.float8_e8m0fnu, torch.bfloat16])
def test_power_of_two_scales_may_lie_in_a_type_of_their_own(converted, tmp_path, code):
    """UE8M0 scales as bytes, of which fp32 holds every one."""
    source = Path(shutil.copytree(converted(UE8M0), tmp_path / "source"))
    (source / "manifest.json").unlink()
    for shard in source.glob("*.safetensors"):
        tensors = {n: t.to(code) if n.endswith("_scale_inv") else t for n, t in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    convert_folder(source, tmp_path / "out", UE8M0, shard_bytes=SHARD)
    assert_same_tensors(tmp_path / "out", converted(UE8M0))


def test_a_source_without_mtp_copies_gets_them(wide, converted, tmp_path):
    source = Path(shutil.copytree(wide, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    for copy in ("embed_tokens", "shared_head.head"):
        del tensors[f"model.layers.3.{copy}.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert_folder(source, tmp_path / "out", BF16)
    assert_same_tensors(tmp_path / "out", converted(BF16))
