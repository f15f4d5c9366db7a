"""Save and load a model folder in DeepSeek's format, a tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core_model.checkpoint.config_file import read_config, write_config
from core_model.checkpoint.names import mtp_copies, on_disk
from core_model.checkpoint.storage import Declared, Storage
from core_model.checkpoint.tensor_file import TensorWriter
from core_model.checkpoint.weights import WEIGHTS, StoredWeights, remove_weights
from core_model.manifest import verify_manifest, write_manifest

if TYPE_CHECKING:
    from core_model.model import V3ForCausalLM


def save_folder(
    model: V3ForCausalLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write config.json, model.safetensors and the manifest (last) into `folder`.

    Args:
        state_dict: taken instead of the model's own (trainers gather it).
        dtype: of the stored weights, float8_e4m3fn included (see `Storage`); default the parameters' own, so that
            training continues bit-exactly.

    Raises:
        ValueError: `state_dict` is not that of the model, or no such `dtype`. Nothing is written then.
    """
    storage = Storage(dtype or model.dtype)
    state, own = model.state_dict() if state_dict is None else state_dict, model.state_dict()
    _refuse_other_tensors(state, own)
    tensors = dict(on_disk((name, state[name]) for name in own))
    tensors |= {copy: tensors[original] for copy, original in mtp_copies(model.config).items()}
    declared: dict[str, Declared] = {}
    for name, tensor in tensors.items():
        declared |= storage.declare(name, tuple(tensor.shape))
    folder.mkdir(parents=True, exist_ok=True)
    remove_weights(folder)
    with TensorWriter(folder / WEIGHTS, declared) as writer:
        for name, tensor in tensors.items():
            for part, stored in storage.encode(name, tensor.detach()).items():
                writer.write(part, stored)
    write_config(model.config, storage, folder)
    write_manifest(folder)


def _refuse_other_tensors(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    if missing := sorted(own.keys() - state.keys()):
        raise ValueError(f"state_dict lacks {len(missing)} tensors of the model: {', '.join(missing[:3])}, ...")
    if unknown := sorted(state.keys() - own.keys()):
        raise ValueError(f"state_dict has {len(unknown)} tensors that the model lacks: {', '.join(unknown[:3])}, ...")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise ValueError(f"state_dict: {name} must be {list(tensor.shape)}, not {list(state[name].shape)}")


def load_weights(model: V3ForCausalLM, folder: Path) -> None:
    """Fill `model` from a folder: every parameter and persistent buffer; other buffers get their first values.

    Raises:
        InputError: the folder is damaged or belongs to another architecture. Damage that only reading shows (no
            manifest, scales that are no numbers) leaves the model half filled.
    """
    verify_manifest(folder, required=False)  # folders of other programs have none
    _fill(model, folder)


def _fill(model: V3ForCausalLM, folder: Path) -> None:
    weights = StoredWeights(folder)
    own = dict(on_disk(model.state_dict().items()))
    weights.check({name: tuple(view.shape) for name, view in own.items()}, model.config)
    weights.warn_of_other_copies(model.config)
    for name, view in own.items():
        view.copy_(weights.read(name))
    model.model.set_buffers()


def load_folder(folder: Path, overrides: dict[str, Any]) -> V3ForCausalLM:
    """Build and fill a model; parameters are fp32 (training's master weights), the dtype on disk notwithstanding.

    A folder without MTP weights whose config claims MTP layers is loaded with `num_nextn_predict_layers=0`
    passed by the caller.
    """
    from transformers.initialization import no_init_weights

    from core_model.model import V3ForCausalLM

    verify_manifest(folder, required=False)  # before a damaged config.json is believed
    config = read_config(folder, overrides)
    StoredWeights(folder).check_count(config)
    with no_init_weights():  # everything is filled: `_fill` refuses a folder that lacks a tensor
        model = V3ForCausalLM(config)
    _fill(model, folder)
    model.config._name_or_path = str(folder)
    return model
