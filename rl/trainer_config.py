"""TRL's GRPOConfig from a recipe's `trainer` keys: checked against its fields, then passed on word for word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_model.errors import InputError
from recipes.faults import shown
from recipes.schema import KeyFault
from sft.trainer_config import find_key_fault, trainer_values

if TYPE_CHECKING:
    from trl import GRPOConfig

# Keys of GRPOConfig that would be without effect here, or would break what the stage promises. Each with the reason.
REFUSED: dict[str, tuple[str, ...]] = {
    "the run folder and the recipe's own keys decide it": (
        *("output_dir", "seed", "data_seed", "run_name", "project", "report_to", "disable_tqdm", "log_level"),
        *("log_level_replica", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "log_completions"),
        *("log_completions_hub_repo", "log_multimodal", "log_unique_prompts", "num_completions_to_print"),
    ),
    "compute_dtype decides it": ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "cast_lm_head_to_fp32"),
    "rollouts come from our own engine": (
        *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
        *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_cap"),
        *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "ds3_gather_for_generation"),
        *("use_transformers_paged", "use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        *("cache_implementation", "generation_kwargs", "min_p", "repetition_penalty", "chat_template_kwargs"),
        *("max_tool_calling_iterations", "pad_to_multiple_of"),
    ),
    "problems are drawn in an order of their own (problems)": (
        *("shuffle_dataset", "num_train_epochs", "remove_unused_columns", "label_names", "train_sampling_strategy"),
        *("length_column_name", "dataloader_num_workers", "dataloader_drop_last"),
    ),
    "one function pays accuracy and format (rewards)": ("reward_weights", "multi_objective_aggregation"),
    "evaluation is a stage of its own": (
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
        *("per_device_eval_batch_size", "num_generations_eval"),
    ),
    "the reference model stays what it is": ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    "entropies are measured, they have no gradient here": (
        *("entropy_coef", "use_adaptive_entropy", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min"),
        *("entropy_target",),
    ),
    "balance is kept by the routing bias (bias_speed)": ("router_aux_loss_coef",),
    "the model comes from init_from": ("model_init_kwargs", "trust_remote_code", "disable_dropout"),
    "recompute decides it": ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    "the model has no such mode": (
        *("use_liger_kernel", "liger_kernel_config"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    ),
    "a resumed run would differ from an uninterrupted one": (
        *("ignore_data_skip", "save_only_model", "auto_find_batch_size", "load_best_model_at_end"),
        *("metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint"),
        *("enable_jit_checkpoint", "logging_nan_inf_filter"),
    ),
    "the stage runs as one process": ("deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
    "nothing is uploaded": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
}
# An epoch's end is not a step.
ALLOWED = {"save_strategy": ("steps",), "logging_strategy": ("steps",)}


def find_fault(trainer: dict[str, Any]) -> KeyFault | None:
    """The first of a recipe's `trainer` keys that is at fault, None when none is. No trainer or device is set up."""
    from trl.trainer.grpo_config import GRPOConfig

    fault = find_key_fault(trainer, GRPOConfig, REFUSED, ALLOWED)
    if fault is not None:
        return fault
    steps, temperature = trainer.get("max_steps"), trainer.get("temperature", 1.0)
    if steps is None or steps < 1:
        found = "nothing" if steps is None else shown(steps)
        return KeyFault(("max_steps",), expected="the number of optimiser steps, at least 1", found=found)
    if temperature <= 0:
        expected = "a number above 0: greedy samples of a prompt are all the same"
        return KeyFault(("temperature",), expected=expected, found=shown(temperature))
    return None


def build_config(trainer: dict[str, Any], *, seed: int, folder: Path) -> GRPOConfig:
    """The trainer's configuration.

    Args:
        trainer: the recipe's keys.
        seed: of every global random number generator.
        folder: the run's folder, named in errors.

    Raises:
        InputError: the values do not fit together.
    """
    from trl import GRPOConfig

    own = {"use_bias_correction_kl": False}  # the KL of the R1 and GRPO papers
    values = trainer_values(own | trainer, seed, folder) | {
        "activation_checkpointing": False,
        "shuffle_dataset": False,
        "router_aux_loss_coef": 0.0,
    }
    where = folder / "recipe.yaml"
    try:
        config = GRPOConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(where, where="trainer", expected="values that TRL accepts", found=str(error)) from error
    _check_boundaries(config, where)
    return config


def prompts_needed(config: GRPOConfig) -> int:
    """How many problems the run asks."""
    rounds = math.ceil(config.max_steps / steps_per_batch(config))
    return rounds * int(config.generation_batch_size or 0) // int(config.num_generations or 1)


def steps_per_batch(config: GRPOConfig) -> float:
    """Optimiser steps that one batch of samples serves: 1 where training is on-policy."""
    return int(config.steps_per_generation or 1) * config.num_iterations / config.gradient_accumulation_steps


def _check_boundaries(config: GRPOConfig, where: Path) -> None:
    """Samples are drawn, and checkpoints taken, between two optimiser steps, when no samples are left over."""
    steps = steps_per_batch(config)
    if steps != int(steps):
        raise InputError(
            where,
            where="trainer.gradient_accumulation_steps",
            expected="a divisor of steps_per_generation * num_iterations",
            found=str(config.gradient_accumulation_steps),
        )
    if config.save_steps % steps:
        raise InputError(
            where,
            where="trainer.save_steps",
            expected=f"a multiple of {steps:g}, the optimiser steps that a batch of samples serves",
            found=f"{config.save_steps:g}",
        )
