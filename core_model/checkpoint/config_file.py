"""config.json: written as transformers, vLLM, SGLang and llama.cpp expect it, read from any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core_model.checkpoint.storage import Storage
from core_model.config import V3Config, refuse_unknown_fields
from core_model.errors import InputError

CONFIG = "config.json"
NOT_ON_DISK = ("keys_to_ignore_at_inference", "auto_map")
# Other loaders require a number of experts; first_k_dense_replace then says that no layer has them.
NO_ROUTER = {
    "n_routed_experts": 1, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "moe_layer_freq": 1,
}  # fmt: skip
CONFIG_FIELDS = tuple(name for name in V3Config.__annotations__ if name not in NOT_ON_DISK)


def disk_config(config: V3Config, storage: Storage, left_out: list[str] | None = None) -> dict[str, Any]:
    """The content of config.json for weights stored as `storage` says; left_out: `Storage.left_out` of them."""
    fields = {name: getattr(config, name) for name in CONFIG_FIELDS}
    if config.n_routed_experts is None:
        fields |= NO_ROUTER
        fields["first_k_dense_replace"] = config.num_hidden_layers + config.num_nextn_predict_layers
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **fields,
        "torch_dtype": str(storage.plain_dtype).removeprefix("torch."),
        "ep_size": 1,
        "pretraining_tp": 1,
        **({"quantization_config": storage.quantization_config(left_out or [])} if storage.is_fp8 else {}),
    }


def write_config(config: V3Config, storage: Storage, folder: Path, left_out: list[str] | None = None) -> None:
    text = json.dumps(disk_config(config, storage, left_out), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Raises:
        InputError: no config.json, not a JSON object, or not a deepseek_v3 model.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(path, expected="a DeepSeek-V3 model folder", found="no config.json")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not isinstance(fields, dict):
        raise InputError(path, expected="a JSON object", found=type(fields).__name__)
    if fields.get("model_type") != "deepseek_v3":
        raise InputError(path, where="model_type", expected="deepseek_v3", found=repr(fields.get("model_type")))
    return fields


def read_config(folder: Path, overrides: dict[str, Any] | None = None) -> V3Config:
    """The configuration of a folder, some fields replaced.

    Raises:
        InputError: no config.json, not JSON, not a deepseek_v3 model, fields that do not fit together, or an override
            of what is no field.
    """
    try:
        refuse_unknown_fields(overrides or {})
    except ValueError as error:
        raise InputError(folder, where="overrides", expected="fields of its configuration", found=str(error)) from error
    path, fields = folder / CONFIG, read_fields(folder)
    if fields.get("rope_interleave", True) is not True:  # transformers' field: weights of the other layout
        found = repr(fields["rope_interleave"])
        raise InputError(path, where="rope_interleave", expected="true, DeepSeek's layout of rotary pairs", found=found)
    fields |= _rope_fields(path, fields)
    known = {name: fields[name] for name in CONFIG_FIELDS if name in fields}
    try:
        if _is_dense(known):
            known["n_routed_experts"] = None
        return V3Config(**{**known, **(overrides or {})})
    except ValueError as error:
        raise InputError(path, expected="a consistent configuration", found=str(error)) from error


def _is_dense(fields: dict[str, Any]) -> bool:
    """Whether these are what `disk_config` writes of a model without a router."""
    names = ("first_k_dense_replace", "num_hidden_layers", "num_nextn_predict_layers")
    dense, main, mtp = (fields.get(name, getattr(V3Config, name)) for name in names)
    numbers = all(type(value) is int for value in (dense, main, mtp))
    return numbers and fields.get("n_routed_experts") == NO_ROUTER["n_routed_experts"] and dense >= main + mtp


def _rope_fields(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says, in which transformers 5 writes RoPE's fields together, in DeepSeek's fields.

    Where both are there, as transformers reads them: the base in it counts, and its scaling if `rope_scaling` is none.
    """
    rope = fields.get("rope_parameters")
    if not rope:
        return {}
    if not isinstance(rope, dict):
        raise InputError(path, where="rope_parameters", expected="a JSON object", found=type(rope).__name__)
    plain = rope.get("rope_type", rope.get("type", "default")) == "default"
    return {
        "rope_theta": rope.get("rope_theta", fields.get("rope_theta", 10000.0)),
        "rope_scaling": fields.get("rope_scaling") or (None if plain else rope),
    }


def scale_format(folder: Path) -> str | None:
    """What a folder's config.json says of its FP8 scales: "ue8m0", or None (FP32, or no FP8).

    Raises:
        InputError: weights quantised in another way than DeepSeek's.
    """
    quantization = read_fields(folder).get("quantization_config")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        found = type(quantization).__name__
        raise InputError(folder / CONFIG, where="quantization_config", expected="a JSON object", found=found)
    expected = {"quant_method": ("fp8",), "fmt": ("e4m3", None), "weight_block_size": ([128, 128],)}
    for key, allowed in expected.items():
        if (value := quantization.get(key)) not in allowed:
            where = f"quantization_config.{key}"
            raise InputError(folder / CONFIG, where=where, expected=repr(allowed[0]), found=repr(value))
    return quantization.get("scale_fmt")
