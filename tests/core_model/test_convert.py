"""Conversion of folders: what comes back bit by bit, what lies on disk, kills, damage."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import YARN_TINY, random_model, random_tokens, same, tiny_config
from safetensors.torch import load_file, save_file

from core_model.checkpoint import Storage, convert_folder
from core_model.checkpoint.tensor_file import TensorWriter
from core_model.errors import InputError
from core_model.manifest import verify_manifest
from core_model.model import V3ForCausalLM

FP32, BF16 = Storage(torch.float32), Storage(torch.bfloat16)
FP8, UE8M0 = Storage(torch.float8_e4m3fn), Storage(torch.float8_e4m3fn, power_of_two=True)
SHARD = 400_000  # bytes: between four and fifteen shards of the models below
# Widths that 128 does not divide, on both sides of it: blocks at the edges are smaller.
WIDE = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 130, "kv_lora_rank": 132}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a folder stores, through the safetensors library and the index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return load_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(weight_map.values())}
    return {name: files[file][name] for name, file in weight_map.items()}


def assert_same_tensors(a: Path, b: Path) -> None:
    ours, theirs = tensors_of(a), tensors_of(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """An fp32 folder with MTP, groups, negative biases and blocks that do not fill up."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    random_model(tiny_config(**WIDE, rope_scaling=YARN_TINY)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_deepseek.py").write_text("raise SystemExit('code does not travel')")
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="module")
def converted(wide):
    """Folders made from `wide` one after the other, each once: converted(BF16, FP8) is its BF16 folder in FP8."""
    made: dict[tuple[Storage, ...], Path] = {(): wide}

    def make(*steps: Storage) -> Path:
        if steps not in made:
            source, out = make(*steps[:-1]), wide.parent / f"converted_{len(made)}"
            convert_folder(source, out, steps[-1], shard_bytes=SHARD)
            made[steps] = out
        return made[steps]

    return make


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
    (record,) = caplog.records
    assert "shared_head.head.weight is no copy of lm_head.weight" in record.getMessage()
    assert_same_tensors(tmp_path / "out", converted(BF16))


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


# Damage


@pytest.fixture
def spoiled(converted, tmp_path):
    """A copy of the FP8 folder without its manifest (another program's), and a way to change one shard's tensors."""
    folder = Path(shutil.copytree(converted(FP8), tmp_path / "spoiled"))
    (folder / "manifest.json").unlink()
    return folder


NAME = "model.layers.1.mlp.experts.3.up_proj.weight"


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = shard_of(folder, name)
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path)


def refused(folder: Path) -> InputError:
    """Loading and converting refuse alike, and nothing is left under the new name."""
    errors = []
    for attempt in (
        lambda: V3ForCausalLM.from_pretrained(folder),
        lambda: convert_folder(folder, folder / "out", FP32),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        errors.append(caught.value)
    assert not (folder / "out").exists()
    assert str(errors[0]) == str(errors[1])
    return errors[0]


def test_a_truncated_shard(spoiled):
    path = shard_of(spoiled, NAME)
    path.write_bytes(path.read_bytes()[:-100])
    error = refused(spoiled)
    assert error.path == path and "cut short" in error.found


def test_a_missing_shard(spoiled):
    path = shard_of(spoiled, NAME)
    path.unlink()
    assert refused(spoiled).path == path


def test_an_index_entry_that_is_not_in_its_shard(spoiled):
    change(spoiled, NAME, None)
    error = refused(spoiled)
    assert error.path.name == "model.safetensors.index.json" and error.where == NAME


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (130, 160), (4,)])
def test_scales_of_a_wrong_shape(spoiled, shape):
    change(spoiled, f"{NAME}_scale_inv", torch.ones(shape))
    error = refused(spoiled)
    assert error.path == shard_of(spoiled, NAME) and error.where == f"{NAME}_scale_inv"
    assert "[2, 2]" in error.expected and error.found == str(list(shape))


def test_scales_that_are_no_numbers(spoiled):
    change(spoiled, f"{NAME}_scale_inv", torch.tensor([[1.0, torch.nan], [1.0, 1.0]]))
    error = refused(spoiled)
    assert error.where == f"{NAME}_scale_inv" and "NaN" in error.found


def test_an_fp8_weight_without_scales(spoiled):
    index = spoiled / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][f"{NAME}_scale_inv"]
    index.write_text(json.dumps(content))
    assert refused(spoiled).where == f"{NAME}_scale_inv"


@pytest.mark.parametrize(
    ("key", "value"), [("quant_method", "awq"), ("weight_block_size", [64, 128]), ("fmt", "e5m2"), (None, "fp8")]
)
def test_another_way_of_quantising(spoiled, key, value):
    config = json.loads((spoiled / "config.json").read_text())
    quantization = {**config["quantization_config"], key: value} if key else value
    (spoiled / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    error = refused(spoiled)
    assert error.path.name == "config.json" and error.where.startswith("quantization_config")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers must be at most"),
        ({"n_routed_experts": 10**8}, "n_routed_experts must be at most"),
        ({"num_nextn_predict_layers": 10**8}, "num_nextn_predict_layers must be at most"),
        ({"hidden_size": 10**30}, "hidden_size must be at most"),
        ({"rope_theta": 10**400}, "rope_theta must be a number"),
        ({"num_hidden_layers": 10_000, "num_nextn_predict_layers": 0}, "the tensors of this configuration, "),
        ({"n_routed_experts": 1_000_000}, "the tensors of this configuration, "),
        ({"num_nextn_predict_layers": 10_000}, "num_nextn_predict_layers must be at most 100"),
    ],
)
def test_a_configuration_of_far_more_than_there_is(spoiled, monkeypatch, sizes, message):
    """Refused before any of its weights is made or named."""
    monkeypatch.setattr(V3ForCausalLM, "__init__", lambda *_: pytest.fail("built"))
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps({**config, **sizes}))
    assert message in str(refused(spoiled))


def test_damage_under_a_manifest_is_found_before_anything_is_written(converted, tmp_path):
    folder = Path(shutil.copytree(converted(FP8), tmp_path / "damaged"))
    path = shard_of(folder, NAME)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        convert_folder(folder, tmp_path / "out", BF16)
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_do_not_become_fp8(wide, tmp_path, bad):
    source = Path(shutil.copytree(wide, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors[NAME][5, 7] = bad
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        convert_folder(source, tmp_path / "out", FP8)
    assert caught.value.where == NAME and not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_anything_is_written(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="free space"):
        convert_folder(wide, tmp_path / "out", BF16)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_touched(converted, wide):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in wide.iterdir())
    with pytest.raises(InputError, match="not there yet"):
        convert_folder(converted(BF16), wide, FP32)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in wide.iterdir()) == before


# Kills


class Killed(BaseException):
    """Stands for SIGKILL: nothing that tidies up after errors catches it."""


def stop(done: int = 0, total: int = 0) -> None:
    raise Killed(done)


def kill_at(number: int, how=None):
    def reached(done: int, total: int) -> None:
        if done == number:
            if how is not None:
                os.kill(os.getpid(), how)
            stop(done)

    return reached


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(wide, converted, tmp_path_factory, data):
    whole, out = converted(FP8), tmp_path_factory.mktemp("killed") / "out"
    total, kept = len(tensors_of(converted(FP32))), 0
    at = 0
    for _ in range(data.draw(st.integers(1, 3), "kills")):
        at = data.draw(st.integers(at, total), "at")
        with pytest.raises(Killed):
            convert_folder(wide, out, FP8, shard_bytes=SHARD, on_tensors=kill_at(at))
        assert not out.exists()
        done = {path: path.stat().st_mtime_ns for path in out.parent.glob(".partial-out/*.safetensors")}
        assert len(done) >= kept
        kept = len(done)
        if at == total:
            break
        with pytest.raises(Killed) as again:  # at once: the first call tells what is there already
            convert_folder(wide, out, FP8, shard_bytes=SHARD, on_tensors=stop)
        assert {path: path.stat().st_mtime_ns for path in done} == done
        at = max(at, again.value.args[0])
    finished = convert_folder(wide, out, FP8, shard_bytes=SHARD)
    assert finished.kept == kept
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
    assert list(out.parent.iterdir()) == [out]


def test_a_process_that_is_killed(wide, converted, tmp_path):
    """SIGKILL, in the middle of a shard."""
    out = tmp_path / "out"
    options = {"shard_bytes": SHARD, "on_tensors": kill_at(50, signal.SIGKILL)}
    process = multiprocessing.get_context("fork").Process(target=convert_folder, args=(wide, out, BF16), kwargs=options)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / ".partial-out").is_dir()
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


def test_a_finished_shard_that_was_damaged_is_written_again(wide, converted, tmp_path, caplog):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
    first, *others = sorted((tmp_path / ".partial-out").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept == len(others)
    assert first.name in caplog.text
    assert_same_tensors(out, converted(BF16))


def test_a_second_process_is_refused_while_the_first_is_at_work(wide, converted, tmp_path):
    out = tmp_path / "out"
    refused = []

    def second(done: int, total: int) -> None:
        if done == 60:
            with pytest.raises(InputError, match="another process at work") as caught:
                convert_folder(wide, out, BF16, shard_bytes=SHARD)
            refused.append(caught.value.path)

    convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=second)
    assert refused == [tmp_path / ".partial-out"] and list(tmp_path.iterdir()) == [out]
    assert_same_tensors(out, converted(BF16))


@pytest.mark.parametrize("moment", ["before the lock", "after the lock"])
def test_a_second_process_that_starts_while_the_first_takes_its_lock(wide, converted, tmp_path, monkeypatch, moment):
    """Whoever has the lock goes on with what is there then, and the other one deletes nothing."""
    out, flock, outcomes = tmp_path / "out", fcntl.flock, []

    def during(lock: int, operation: int) -> None:
        monkeypatch.undo()
        if moment == "after the lock":
            flock(lock, operation)
        try:
            outcomes.append(convert_folder(wide, out, BF16, shard_bytes=SHARD).kept)
        except InputError as error:
            outcomes.append(error.found)
        if moment == "before the lock":
            flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", during)
    if moment == "after the lock":
        convert_folder(wide, out, BF16, shard_bytes=SHARD)
        assert outcomes == ["another process at work on it"]
    else:
        with pytest.raises(InputError, match="another process at work"):
            convert_folder(wide, out, BF16, shard_bytes=SHARD)
        assert outcomes == [0]
    assert list(tmp_path.iterdir()) == [out]
    assert_same_tensors(out, converted(BF16))


def test_shards_that_another_process_finished_before_the_lock_are_kept(wide, converted, tmp_path, monkeypatch):
    out, flock = tmp_path / "out", fcntl.flock

    def during(lock: int, operation: int) -> None:
        monkeypatch.undo()
        with pytest.raises(Killed):
            convert_folder(wide, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", during)
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


def test_a_second_process_that_starts_between_the_last_two_steps_finds_all_done(wide, tmp_path, monkeypatch):
    out, outcomes = tmp_path / "out", []

    def during(path: Path) -> None:
        if path == tmp_path and out.exists():
            monkeypatch.undo()
            outcomes.append(convert_folder(wide, out, BF16).kept)

    monkeypatch.setattr("core_model.checkpoint.convert.sync", during)
    assert convert_folder(wide, out, BF16).kept == 0 and outcomes == [1]
    assert list(tmp_path.iterdir()) == [out]


def test_what_no_record_describes_is_emptied(wide, tmp_path):
    (tmp_path / ".partial-out" / "folder").mkdir(parents=True)
    (tmp_path / ".partial-out" / "folder" / "file").write_text("old")
    (tmp_path / ".partial-out" / "link").symlink_to(wide)
    convert_folder(wide, tmp_path / "out", BF16)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and (wide / "config.json").is_file()


def test_a_disk_that_fills_up_on_the_way_leaves_what_can_go_on(wide, converted, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out", TensorWriter.write, []

    def fills_up(writer: TensorWriter, name: str, tensor: torch.Tensor) -> None:
        written.append(name)
        if len(written) == 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(writer.path))
        write(writer, name, tensor)

    monkeypatch.setattr(TensorWriter, "write", fills_up)
    with pytest.raises(OSError, match="No space left"):
        convert_folder(wide, out, BF16, shard_bytes=SHARD)
    assert not out.exists()
    monkeypatch.undo()
    assert convert_folder(wide, out, BF16, shard_bytes=SHARD).kept > 2
    assert_same_tensors(out, converted(BF16))


@pytest.mark.parametrize("other", ["storage", "shards", "source"])
def test_another_conversion_does_not_go_on_with_the_first(wide, tmp_path, other):
    source, out = Path(shutil.copytree(wide, tmp_path / "source")), tmp_path / "out"
    with pytest.raises(Killed):
        convert_folder(source, out, BF16, shard_bytes=SHARD, on_tensors=kill_at(60))
    if other == "source":
        os.utime(source / "model.safetensors")
    storage, shard_bytes = FP8 if other == "storage" else BF16, 2 * SHARD if other == "shards" else SHARD
    with pytest.raises(InputError, match="remove it"):
        convert_folder(source, out, storage, shard_bytes=shard_bytes)


def test_killed_between_the_last_two_steps(wide, tmp_path, monkeypatch):
    out, unlink = tmp_path / "out", Path.unlink
    record = tmp_path / ".partial-out.json"
    monkeypatch.setattr(Path, "unlink", lambda path, **options: stop() if path == record else unlink(path, **options))
    with pytest.raises(Killed):
        convert_folder(wide, out, BF16)
    monkeypatch.undo()
    assert convert_folder(wide, out, BF16).kept == 1
    assert list(tmp_path.iterdir()) == [out]


def test_a_record_of_another_form_is_refused(wide, tmp_path):
    (tmp_path / ".partial-out.json").write_text("[]")
    with pytest.raises(InputError, match=r"\.partial-out\.json"):
        convert_folder(wide, tmp_path / "out", BF16)
