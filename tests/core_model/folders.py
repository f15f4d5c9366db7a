"""Converted folders, and how to look into them and change them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from reference import same
from safetensors.torch import load_file, save_file

from core_model.checkpoint import Storage

FP32, BF16 = Storage(torch.float32), Storage(torch.bfloat16)
FP8, UE8M0 = Storage(torch.float8_e4m3fn), Storage(torch.float8_e4m3fn, power_of_two=True)
SHARD = 400_000  # bytes: between four and fifteen shards of the models below
# Widths that 128 does not divide, on both sides of it: blocks at the edges are smaller.
WIDE = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 130, "kv_lora_rank": 132}
NAME = "model.layers.1.mlp.experts.3.up_proj.weight"


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


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = shard_of(folder, name)
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path)
