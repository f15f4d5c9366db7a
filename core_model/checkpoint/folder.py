"""Save and load a model folder in DeepSeek's format, a tensor at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core_model.checkpoint.config_file import CONFIG, read_config, write_config
from core_model.checkpoint.convert import COMPANIONS
from core_model.checkpoint.names import mtp_copies, on_disk, shapes_on_disk
from core_model.checkpoint.storage import Declared, Storage
from core_model.checkpoint.tensor_file import TensorWriter
from core_model.checkpoint.weights import WEIGHTS, StoredWeights, remove_shards
from core_model.config import V3Config
from core_model.manifest import sync, verify_manifest, write_manifest

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from core_model.model import V3ForCausalLM


def save_folder(
    model: V3ForCausalLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write config.json, model.safetensors and the manifest (last) into `folder`, over another model if need be.

    What fails leaves the model that was there; killed between its last steps, a folder that is refused. For a while the
    disk holds both. The manifest covers the model and its tokenizer, and no other program's files.

    Args:
        state_dict: taken instead of the model's own (trainers gather it). An empty one writes nothing: transformers'
            Trainer passes it where DeepSpeed is about to save the weights.
        dtype: of the stored weights, float8_e4m3fn included (see `Storage`); default the parameters' own, so that
            training continues bit-exactly.

    Raises:
        ValueError: `state_dict` is not that of the model, weights are sharded, inf or NaN where FP8 is asked for, or no
            such `dtype`.
    """
    storage = Storage(dtype or model.dtype)
    if state_dict is not None and not state_dict:
        log.warning("%s: nothing is saved of an empty state_dict", folder)
        return
    state = model.state_dict() if state_dict is None else state_dict
    if sharded := [name for name, tensor in state.items() if hasattr(tensor, "device_mesh")]:
        raise ValueError(f"{sharded[0]} is sharded: gather the weights, and pass them as state_dict")
    tensors = dict(on_disk(state.items()))
    _refuse_other_tensors(tensors, model.config)
    tensors |= {copy: tensors[original] for copy, original in mtp_copies(model.config).items()}
    declared: dict[str, Declared] = {}
    for name, tensor in tensors.items():
        declared |= storage.declare(name, tuple(tensor.shape))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.partial"
    try:
        with TensorWriter(partial, declared) as writer:
            for name, tensor in tensors.items():
                for part, stored in storage.encode(name, tensor.detach()).items():
                    writer.write(part, stored)
        sync(partial)
        _replace_weights(partial, folder)
    finally:
        partial.unlink(missing_ok=True)
    remove_shards(folder)
    write_config(model.config, storage, folder)
    write_manifest(folder, only={CONFIG, WEIGHTS, *COMPANIONS})


def _replace_weights(partial: Path, folder: Path) -> None:
    """Give new weights their name, the configuration of the old ones out of the way: it would describe these."""
    config, aside = folder / CONFIG, folder / f"{CONFIG}.old"
    if config.is_file():
        config.replace(aside)
    try:
        partial.replace(folder / WEIGHTS)
    except BaseException:
        if aside.is_file():
            aside.replace(config)
        raise
    aside.unlink(missing_ok=True)


def _refuse_other_tensors(tensors: dict[str, Tensor], config: V3Config) -> None:
    """By the configuration and not by the model: what trainers gather, the model of one process may hold in part."""
    shapes, copies = shapes_on_disk(config), mtp_copies(config)
    missing = sorted(shapes.keys() - copies.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"not the weights of this model: missing {missing[:3]}, unexpected {unknown[:3]}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name} must be {list(shapes[name])}, not {list(tensor.shape)}")


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
