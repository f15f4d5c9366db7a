"""Save and load a model folder in DeepSeek's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core_model.checkpoint.names import from_disk, to_disk
from core_model.config import V3Config, refuse_unknown_fields
from core_model.errors import InputError
from core_model.manifest import verify_manifest, write_manifest

if TYPE_CHECKING:
    from core_model.model import V3ForCausalLM

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NOT_ON_DISK = ("keys_to_ignore_at_inference", "auto_map")
CONFIG_FIELDS = tuple(name for name in V3Config.__annotations__ if name not in NOT_ON_DISK)


def disk_config(config: V3Config, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as transformers, vLLM, SGLang and llama.cpp expect it."""
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **fields,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "ep_size": 1,
        "pretraining_tp": 1,
    }


def save_folder(
    model: V3ForCausalLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write config.json, model.safetensors and the manifest (last) into `folder`.

    Args:
        state_dict: taken instead of the model's own (trainers gather it).
        dtype: of the stored weights; default the parameters' own, so that training continues bit-exactly. The
            routing bias is always fp32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = dtype or model.dtype
    tensors = {}
    for name, tensor in to_disk((state_dict or model.state_dict()).items(), model.config):
        keep = name.endswith("e_score_correction_bias")
        tensors[name] = tensor.detach().to("cpu", torch.float32 if keep else stored).contiguous()
    save_file(_separate(tensors), str(folder / WEIGHTS), metadata={"format": "pt"})
    text = json.dumps(disk_config(model.config, stored), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    write_manifest(folder)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory: expert views and the MTP copies are copied."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        if address in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone()
        else:
            seen.add(address)
    return tensors


def read_config(folder: Path, overrides: dict[str, Any] | None = None) -> V3Config:
    """The configuration of a folder, some fields replaced.

    Raises:
        InputError: no config.json, not JSON, not a deepseek_v3 model, or fields that do not fit together.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(path, expected="a DeepSeek-V3 model folder", found="no config.json")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not isinstance(fields, dict):
        raise InputError(path, expected="a JSON object", found=type(fields).__name__)
    if fields.get("model_type") != "deepseek_v3":
        raise InputError(path, where="model_type", expected="deepseek_v3", found=repr(fields.get("model_type")))
    rope = fields.get("rope_parameters") or {}  # transformers 5 writes RoPE's fields in one dictionary
    if rope and "rope_theta" not in fields:
        fields["rope_theta"] = rope.get("rope_theta", 10000.0)
        fields["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    known = {name: fields[name] for name in CONFIG_FIELDS if name in fields}
    try:
        refuse_unknown_fields(overrides or {})
        return V3Config(**{**known, **(overrides or {})})
    except ValueError as error:
        raise InputError(path, expected="a consistent configuration", found=str(error)) from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by their names on disk.

    Raises:
        InputError: no weights, or a file that is damaged.
    """
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
            names = [Path(name).name for name in names]  # never outside the folder
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(folder / INDEX, expected="a JSON object with 'weight_map'", found=str(error)) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(path, expected="the model's weights", found="no such file")
        try:
            tensors.update(load_file(str(path)))
        except SafetensorError as error:
            raise InputError(path, expected="a safetensors file", found=str(error)) from error
    return tensors


def load_weights(model: V3ForCausalLM, folder: Path) -> None:
    """Fill `model` from a folder, every parameter and persistent buffer.

    Raises:
        InputError: the folder is damaged or belongs to another architecture.
    """
    verify_manifest(folder, required=False)  # folders of other programs have none
    _fill(model, folder)


def _fill(model: V3ForCausalLM, folder: Path) -> None:
    tensors = read_tensors(folder)
    try:
        state = from_disk(tensors)
    except ValueError as error:
        raise InputError(folder, expected="every expert's weights", found=str(error)) from error
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(name for name in state.keys() - own.keys() if not _is_unused_mtp(name, model.config))
    if missing or unexpected:
        found = f"missing {missing[:3]}, unexpected {unexpected[:3]}"
        raise InputError(folder, expected="the tensors of this configuration", found=found)
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise InputError(folder, where=name, expected=str(tuple(tensor.shape)), found=str(tuple(state[name].shape)))
    model.load_state_dict({name: state[name] for name in own})


def _is_unused_mtp(name: str, config: V3Config) -> bool:
    """Whether a tensor belongs to an MTP module that this configuration leaves out."""
    layer = name.removeprefix("model.layers.").split(".")[0]
    return layer.isdecimal() and int(layer) >= config.num_hidden_layers + config.num_nextn_predict_layers


def load_folder(folder: Path, overrides: dict[str, Any]) -> V3ForCausalLM:
    """Build and fill a model; parameters are fp32 (training's master weights), the dtype on disk notwithstanding.

    A folder without MTP weights whose config claims MTP layers is loaded with `num_nextn_predict_layers=0`
    passed by the caller.
    """
    from core_model.model import V3ForCausalLM

    verify_manifest(folder, required=False)  # before a damaged config.json is believed
    model = V3ForCausalLM(read_config(folder, overrides))
    _fill(model, folder)
    model.config._name_or_path = str(folder)
    return model
