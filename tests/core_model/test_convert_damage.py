"""Folders that are damaged, or are none: refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import BF16, FP8, FP32, NAME, change, shard_of
from safetensors.torch import load_file, save_file

from core_model.checkpoint import convert_folder
from core_model.errors import InputError
from core_model.model import V3ForCausalLM


@pytest.fixture
def spoiled(converted, tmp_path):
    """A copy of the FP8 folder without its manifest (another program's), and a way to change one shard's tensors."""
    folder = Path(shutil.copytree(converted(FP8), tmp_path / "spoiled"))
    (folder / "manifest.json").unlink()
    return folder


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
