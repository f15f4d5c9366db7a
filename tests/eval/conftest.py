"""Two models of a few thousand parameters with their tokenizer, and a small recipe with everything in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.tasks import get_family
from recipes.loader import load_recipe


@pytest.fixture(scope="session")
def tokenizer():
    from core_model.tokenizer import train_tokenizer
    from eval.tasks import problems

    asked = [problem for family in ("chain_sum", "gcd", "code", "needle") for problem in problems(family, "train", 60)]
    texts = [f"Question: {p.messages[-1].content}\n{get_family(p.source).reference_answer(p)}\n" for p in asked]
    return train_tokenizer(texts, 420)


@pytest.fixture(scope="session")
def models(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders of two untrained models."""
    from core_model import V3Config, V3ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
    config = V3Config.preset("nano", vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **ranks)
    folders = {}
    for seed, name in enumerate(("first", "second")):
        folders[name] = tmp_path_factory.mktemp(name)
        tokenizer.save_pretrained(folders[name])
        V3ForCausalLM(config).initialize(0.3, seed).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def recipe_data(tmp_path_factory, models) -> dict[str, Any]:
    """A recipe with everything in it, small."""
    inputs = tmp_path_factory.mktemp("inputs")
    filler = inputs / "filler.txt"
    filler.write_text("\n".join(f"Line {number} of the filler says little." for number in range(80)))
    metrics = inputs / "metrics.jsonl"
    lines = [{"step": i, "lm_loss": 3 / (i + 1), "router/layer_1/max_violation": 1.0, "seconds": 0.1} for i in range(9)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = {"short": {"bits_per_byte": 2.0}, "long": {"edges": [0, 64, 128], "loss": [2.0, 1.5]}}
    stage_report = inputs / "stage_report.json"
    stage_report.write_text(json.dumps({"steps": 3, "before": losses, "after": losses}))
    return {
        "stage": "eval",
        "name": "test",
        "threads": 1,
        "models": {
            "base": {"path": str(models["first"]), "mode": "base", "needle": True, "report": str(stage_report)},
            "short": {"path": str(models["second"]), "mode": "chat"},
            "reasoning": {"path": str(models["second"]), "mode": "reasoning"},
        },
        "tasks": {"chain_sum": {"count": 5}, "gcd": {"count": 5}, "code": {"count": 3}},
        "sampling": {"max_new_tokens": {"base": 12, "chat": 12, "reasoning": 24}},
        "comparisons": [{"better": "reasoning", "baseline": "short"}],
        "statistics": {"resamples": 200, "flips": 200},
        "needle": {"lengths": [96, 192], "depths": [0.0, 1.0], "filler": str(filler)},
        "curves": {"pretrain": str(metrics)},
        "max_batch": 4,
        "chunk": 8,
    }


@pytest.fixture
def recipe_file(tmp_path, recipe_data) -> Path:
    path = tmp_path / "eval.yaml"
    path.write_text(json.dumps(recipe_data))  # JSON is YAML
    return path


@pytest.fixture
def recipe(recipe_file):
    return load_recipe(recipe_file)
