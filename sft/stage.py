"""The sft stage: a model, rows of conversations -> the model tuned on the assistant's side of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_model.errors import InputError
from recipes.run import Run
from sft.data import Limit, Sample, pack, read_samples, split_problems, to_dataset
from sft.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from core_model import V3ForCausalLM


def run_stage(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Tune as the recipe says; a killed run resumes from its last checkpoint to the same weights and metrics.

    Writes `model/` (DeepSeek's format, tokenizer and chat template included).

    Returns:
        The summary: steps, tokens, final losses (nats per trained token), the validation curve, what was trained on.

    Raises:
        InputError: the model, the rows or a checkpoint cannot be used.
    """
    from sft.trainer import V3SFTTrainer
    from sft.trainer_config import build_config

    model, tokenizer = load_start(recipe)
    limits = (
        Limit(recipe.sequence_length, "the recipe's sequence_length"),
        Limit(model.config.max_position_embeddings, f"max_position_embeddings of {recipe.init_from}"),
    )
    samples = read_samples([recipe.data, *recipe.more_data], tokenizer, min(limits, key=lambda limit: limit.tokens))
    training, validation = split_problems(samples, recipe.validation_share, recipe.seed)
    packs = {
        name: pack([len(sample) for sample in part], recipe.sequence_length, recipe.seed)
        for name, part in (("training", training), ("validation", validation))
    }
    config = build_config(recipe.trainer, seed=recipe.seed, folder=run.path, has_validation=bool(validation))
    trainer = V3SFTTrainer(
        model,
        config,
        recipe,
        run,
        tokenizer,
        to_dataset(training, packs["training"]),
        to_dataset(validation, packs["validation"]) if validation else None,
    )
    trainer.train_or_resume()
    save_model(model, tokenizer, run.path / "model")
    return {
        **_results(run),
        "training": describe(training, packs["training"], recipe.sequence_length),
        "validation": describe(validation, packs["validation"], recipe.sequence_length),
    }


def load_start(recipe: Recipe) -> tuple[V3ForCausalLM, PreTrainedTokenizerFast]:
    """The model and the tokenizer to start from.

    Raises:
        InputError: one is missing or damaged, or they do not fit each other or the recipe.
    """
    import torch

    from core_model import V3ForCausalLM
    from core_model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(recipe.init_from)
    model = V3ForCausalLM.from_pretrained(recipe.init_from)
    model.compute_dtype = torch.bfloat16 if recipe.compute_dtype == "bfloat16" else None
    model.recompute = recipe.recompute
    if len(tokenizer) > model.config.vocab_size:
        expected = f"a tokenizer of at most {model.config.vocab_size} tokens, the model's vocab_size"
        raise InputError(recipe.init_from, expected=expected, found=f"{len(tokenizer)} tokens")
    if recipe.mtp_weight and not model.config.num_nextn_predict_layers:
        expected = f"a model with MTP layers, for mtp_weight {recipe.mtp_weight} (or 0)"
        raise InputError(recipe.init_from, expected=expected, found="num_nextn_predict_layers 0")
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id  # what the Trainer would do, with a warning
    return model, tokenizer


def save_model(model: V3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder whole or not at all; its manifest covers the tokenizer as well."""
    partial = folder.with_name(folder.name + ".partial")
    for leftover in (partial, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    tokenizer.save_pretrained(partial)
    model.save_pretrained(partial)
    partial.rename(folder)


def describe(samples: Sequence[Sample], packs: Sequence[Sequence[int]], capacity: int) -> dict[str, Any]:
    """Sizes of one side of the data. `fill` is the share of the packs' room that samples take."""
    tokens = sum(len(sample) for sample in samples)
    return {
        "samples": len(samples),
        "tokens": tokens,
        "packs": len(packs),
        "fill": round(tokens / (len(packs) * capacity), 4) if packs else None,
        "variants": dict(sorted(Counter(map(_variant, samples)).items())),
    }


def _variant(sample: Sample) -> str:
    """The system prompt's variant, and the kind of length budget where the row has one."""
    kind = sample.budget.kind
    return sample.system_variant if kind == "none" else f"{sample.system_variant}:{kind}"


def _results(run: Run) -> dict[str, Any]:
    """The run's numbers, from its metrics: so they are the same whether it was interrupted or not."""
    from sft.trainer import VALIDATION_LOSS

    lines = run.metrics()
    trained = [line for line in lines if "lm_loss" in line][-1]
    curve = [[line["step"], line[VALIDATION_LOSS]] for line in lines if VALIDATION_LOSS in line]
    return {
        "steps": trained["step"],
        "tokens": int(trained["tokens"]),
        "trained_tokens": int(trained["trained_tokens"]),
        "train_loss": trained["lm_loss"],
        "validation_loss": curve[-1][1] if curve else None,
        "validation_curve": curve,
    }
