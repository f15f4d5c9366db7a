"""TRL's SFTConfig from a recipe's `trainer` keys: checked against its fields, then passed on word for word."""

from __future__ import annotations

import dataclasses
import inspect
import typing
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from core_model.errors import InputError
from core_model.parallel.device import training_device
from recipes.faults import did_you_mean, shown
from recipes.schema import KeyFault

if TYPE_CHECKING:
    from trl import SFTConfig

# Keys of SFTConfig that would be without effect here, or would break what the stage promises. Each with the reason.
REFUSED: dict[str, tuple[str, ...]] = {
    "the run folder and the recipe's own keys decide it": (
        *("output_dir", "seed", "data_seed", "run_name", "project", "report_to", "disable_tqdm", "log_level"),
        *("log_level_replica", "resume_from_checkpoint", "do_train", "do_eval", "do_predict"),
    ),
    "compute_dtype decides it": ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"),
    "samples are rendered, masked and packed by the stage (sequence_length)": (
        *("packing", "packing_strategy", "eval_packing", "padding_free", "pad_to_multiple_of", "max_length"),
        *("truncation_mode", "completion_only_loss", "assistant_only_loss", "dataset_text_field", "dataset_kwargs"),
        *("dataset_num_proc", "shuffle_dataset", "chat_template_path", "eos_token", "pad_token"),
        *("remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name"),
    ),
    "the loss is the model's own (mtp_weight, balance_alpha)": (
        *("loss_type", "label_smoothing_factor", "router_aux_loss_coef", "average_tokens_across_devices"),
    ),
    "the model comes from init_from": ("model_init_kwargs", "trust_remote_code", "use_cache"),
    "recompute decides it": (
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
        *("activation_checkpointing_kwargs",),
    ),
    "the model has no such mode": (
        *("activation_offloading", "use_liger_kernel", "liger_kernel_config"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    ),
    "a resumed run would differ from an uninterrupted one": (
        *("ignore_data_skip", "save_only_model", "auto_find_batch_size", "load_best_model_at_end"),
        *("metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint"),
        *("enable_jit_checkpoint", "logging_nan_inf_filter"),
    ),
    "the untrained model is always evaluated first when there is a validation set": ("eval_on_start",),
    "the stage runs as one process": ("deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
    "nothing is uploaded": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
}
# Intervals that end in the middle of nothing: an epoch's end is not a step, and a kill between the two would lose it.
ALLOWED = {
    "save_strategy": ("steps",),
    "logging_strategy": ("steps",),
    "eval_strategy": ("steps", "no"),
}


def find_fault(trainer: dict[str, Any]) -> KeyFault | None:
    """The first of a recipe's `trainer` keys that is at fault, None when none is. No trainer or device is set up."""
    from trl.trainer.sft_config import SFTConfig

    fault = find_key_fault(trainer, SFTConfig, REFUSED, ALLOWED)
    steps = trainer.get("max_steps", -1)
    if fault is None and steps < 1 and steps != -1:
        return KeyFault(("max_steps",), expected="at least 1, or -1 to go by num_train_epochs", found=shown(steps))
    return fault


def find_key_fault(
    trainer: dict[str, Any],
    config: type[Any],
    refused: Mapping[str, tuple[str, ...]],
    allowed: Mapping[str, tuple[str, ...]],
) -> KeyFault | None:
    """The first key that is no field of TRL's `config` class, is refused, or has a value that does not fit.

    Args:
        refused: reason -> the keys refused for it.
        allowed: key -> the only values it may have here.
    """
    hints = typing.get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config) if field.init]
    for key, value in trainer.items():
        if key not in known:
            expected = f"a key of TRL's {config.__name__}{did_you_mean(key, known)}"
            return KeyFault((key,), expected=expected, found=f"the unknown key {key!r}")
        reason = next((reason for reason, keys in refused.items() if key in keys), None)
        if reason is not None:
            return KeyFault((key,), expected=f"no key {key!r}: {reason}", found=shown(value))
        wanted = _expected_value(value, hints[key], allowed.get(key, ()))
        if wanted is not None:
            return KeyFault((key,), expected=wanted, found=shown(value))
    return _wrong_scheduler_key(trainer)


def trainer_values(trainer: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """A recipe's keys between what they replace and what replaces them, the same for all of TRL's trainers."""
    accelerated = training_device().type != "cpu"
    return {
        "logging_steps": 1,
        "save_total_limit": 2,
        "use_cpu": not accelerated,
        "dataloader_pin_memory": accelerated,
        **trainer,
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,  # activations are cast by the model itself; autocast would cast its weights at every product
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # it hides a loss that is not finite; ours stops there
    }


def build_config(trainer: dict[str, Any], *, seed: int, folder: Path, has_validation: bool) -> SFTConfig:
    """The trainer's configuration.

    Args:
        trainer: the recipe's keys.
        seed: of the order of the packs, and of every global random number generator.
        folder: the run's folder, named in errors.
        has_validation: whether there is anything to evaluate on.

    Raises:
        InputError: the values do not fit together.
    """
    from trl import SFTConfig

    own = {
        "eval_strategy": "steps" if has_validation else "no",
        "per_device_eval_batch_size": trainer.get("per_device_train_batch_size", 8),
    }
    values = trainer_values(own | trainer, seed, folder) | {
        "gradient_checkpointing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    where = folder / "recipe.yaml"
    if values["eval_strategy"] != "no" and not has_validation:
        raise InputError(where, where="trainer.eval_strategy", expected="'no' with validation_share 0", found="'steps'")
    try:
        with warnings.catch_warnings():
            # TRL turns `gradient_checkpointing` on; transformers deprecates the key that turns it off.
            warnings.simplefilter("ignore", FutureWarning)
            return SFTConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(where, where="trainer", expected="values that TRL accepts", found=str(error)) from error


def _expected_value(value: Any, hint: Any, allowed: tuple[str, ...]) -> str | None:
    """What a value should have been, None where it is that."""
    choices = [kind for kind in typing.get_args(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
    allowed = allowed or tuple(str(member.value) for kind in choices for member in kind)
    if allowed and value is not None and value not in allowed:
        return f"one of {', '.join(map(repr, allowed))}"
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=_strict(hint))
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Input should be ")
    return None


def _strict(hint: Any) -> bool:
    """Whether "5" and true are to be refused: for numbers and booleans, where they would be a slip."""
    kinds = {hint, *typing.get_args(hint)}
    return bool(kinds & {int, float, bool}) and str not in kinds


def _wrong_scheduler_key(trainer: dict[str, Any]) -> KeyFault | None:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    given = trainer.get("lr_scheduler_kwargs")
    if not isinstance(given, dict):
        return None
    name = str(trainer.get("lr_scheduler_type", "linear"))
    schedule = cast(Any, TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
    known = set(inspect.signature(schedule).parameters)
    known -= {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    unknown = sorted(given.keys() - known)
    if unknown:
        expected = f"a key of the schedule {name}, which has {', '.join(sorted(known)) or 'none'}"
        return KeyFault(("lr_scheduler_kwargs", unknown[0]), expected=expected, found=f"the unknown key {unknown[0]!r}")
    return None
