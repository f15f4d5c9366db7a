"""The pre-training stage on a tiny model: from scratch, extended, killed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from core_model.errors import InputError
from pretrain.recipe import Recipe
from pretrain.stage import build_model, run_stage
from recipes.loader import load_recipe
from recipes.run import Run

YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32,
}
TINY = {
    "stage": "pretrain",
    "name": "tiny",
    "model": {
        "preset": "nano",
        "init_std": 0.06,
        "overrides": {
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 48,
            "moe_intermediate_size": 16,
            "num_hidden_layers": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
        },
    },
    "corpus": {
        "vocabulary_size": 300,
        "stdlib_mb": 0.08,
        "docstrings_mb": 0.0,
        "tasks_mb": 0.03,
        "task_families": ["chain_sum"],
        "needles_mb": 0.01,
        "validation_share": 0.1,
        "long_packages": [],
        "long": [{"length": 128, "rows": 6, "validation_rows": 1, "needle_share": 0.5, "needles_per_row": 1}],
    },
    "data": {"sequence_length": 32, "sequences_per_step": 4, "micro_batch": 2, "base_length": 32},
    "steps": 6,
    "learning_rate": {"peak": 3e-3, "floor": 3e-4, "warmup_steps": 2, "decay_start": 4, "decay_steps": 2},
    "bias_speed": {"phases": [{"from_step": 0, "value": 0.01}, {"from_step": 4, "value": 0.0}]},
    "compute_dtype": "float32",
    "evaluation": {"every": 2, "short_tokens": 256},
    "log_every": 1,
    "checkpoint_every": 2,
}


def write_recipe(folder: Path, changes: dict | None = None) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **(changes or {})}))
    return path


def train(recipe: Recipe) -> Run:
    run = Run.open(recipe, ["test"], recipe.input_paths())
    run.complete(run_stage(recipe, run))
    return run


def without_clock(run: Path) -> tuple[list[str], dict]:
    return (run / "metrics.jsonl").read_text().splitlines(), json.loads((run / "report.json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(load_recipe(write_recipe(folder), [f"run_dir={folder / 'run'}"]))
    return folder / "run"


def test_from_scratch_learns_and_reports(base: Path) -> None:
    report = json.loads((base / "report.json").read_text())
    assert report["after"]["short"]["bits_per_byte"] < report["before"]["short"]["bits_per_byte"] - 0.3
    assert set(report["routers"]) == {"layer 1", "layer 2"}  # layer 0 is dense, layer 2 is the MTP module
    lines = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx(
        [1.5e-3, 3e-3, 3e-3, 3e-3, 3e-3, 1.65e-3]
    )
    assert json.loads((base / "model" / "config.json").read_text())["rope_scaling"] is None


def test_extension_goes_on_with_yarn_and_measures_by_position(base: Path, tmp_path: Path) -> None:
    changes = {
        "model": None,
        "corpus": None,
        "init_from": str(base / "model"),
        "corpus_from": str(base / "corpus"),
        "rope_scaling": YARN,
        "data": {
            "sequence_length": 128,
            "sequences_per_step": 1,
            "micro_batch": 1,
            "rows": "long",
            "replay_sequences": 2,
            "base_length": 32,
        },
        "steps": 2,
        "evaluation": {"short_tokens": 256, "long_rows": 1},
    }
    run = train(load_recipe(write_recipe(tmp_path, changes), [f"run_dir={tmp_path / 'run'}"]))
    report = json.loads((run.path / "report.json").read_text())
    assert report["tokens"] == 2 * (128 + 2 * 32)
    assert report["after"]["long"]["edges"] == list(range(0, 129, 16))
    assert len(report["before"]["long"]["loss"]) == 8
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert config["rope_scaling"] == YARN and config["max_position_embeddings"] == 128


def test_killed_at_a_checkpoint_it_ends_bit_for_bit_the_same(base: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    command = [sys.executable, "-m", "pretrain", str(path), f"run_dir={tmp_path / 'run'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not any((tmp_path / "run" / "checkpoints").glob("step_*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, "ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert finished.returncode == 0, finished.stderr
    assert without_clock(tmp_path / "run") == without_clock(base)
    again, whole = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", base))
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model .from scratch. or init_from"),
        ({"corpus": None}, "corpus .to prepare. or corpus_from"),
        ({"balance_alpha": 0.0, "bias_speed": {"phases": [{"from_step": 0, "value": 0.0}]}}, "unbalanced"),
        (
            {
                "balance_alpha": 0.0,
                "bias_speed": {"phases": [{"from_step": 0, "value": 0.0}, {"from_step": 6, "value": 0.01}]},
            },
            "unbalanced",
        ),  # a phase after the last step
        ({"data": {"sequence_length": 32, "sequences_per_step": 3, "micro_batch": 2}}, "not a multiple"),
        ({"stepz": 3}, "steps"),
        ({"model": {**TINY["model"], "preset": "nanoo"}}, r"model.preset: expected one of nano, .*; found 'nanoo'"),
        (
            {"model": {**TINY["model"], "overrides": {"hidden_siz": 3}}},
            r"model.overrides.hidden_siz: expected a field of V3Config \(did you mean 'hidden_size'",
        ),
        (
            {"model": {**TINY["model"], "overrides": {"hidden_size": "x"}}},
            "model.overrides: .* hidden_size must be an int",
        ),
        (
            {"model": {**TINY["model"], "overrides": {"rope_scaling": None}}},
            "overrides.rope_scaling: expected it beside",
        ),
        (
            {"rope_scaling": {"type": "yarn"}},
            "rope_scaling: expected fields that fit together; found rope_scaling lacks",
        ),
        (
            {"model": {**TINY["model"], "overrides": {"vocab_size": 512}}},
            "vocab_size 512 is not corpus.vocab",
        ),
        ({"rank_cap": {"ranks": 3, "factor": 1.5}}, "8 experts do not divide among the 3 ranks"),
        ({"rank_cap": {"ranks": 4, "factor": 0.5}}, "rank_cap.factor"),
        ({"rank_cap": {"ranks": 1, "factor": 1.5}}, "rank_cap.ranks"),
        ({"corpus": {**TINY["corpus"], "task_families": ["foo"]}}, "no task family 'foo'; there are chain_sum"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(tmp_path, changes))


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(base: Path, tmp_path: Path) -> None:
    model = {**TINY["model"], "overrides": {**TINY["model"]["overrides"], "vocab_size": 512}}  # type: ignore[dict-item]
    changes = {"model": model, "corpus": None, "corpus_from": str(base / "corpus")}
    recipe = load_recipe(write_recipe(tmp_path, changes), [f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match="vocabulary"):
        train(recipe)


def test_a_rank_cap_of_a_given_model_is_checked_against_its_experts(base: Path, tmp_path: Path) -> None:
    changes = {
        "model": None,
        "corpus": None,
        "init_from": str(base / "model"),
        "corpus_from": str(base / "corpus"),
        "rank_cap": {"ranks": 3, "factor": 1.5},
    }
    recipe = load_recipe(write_recipe(tmp_path, changes), [f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match=r"rank_cap.*8 experts do not divide among the 3 ranks"):
        build_model(recipe, 300)


def test_what_a_rank_cap_left_out_is_logged_and_reported(base: Path, tmp_path: Path) -> None:
    changes = {"rank_cap": {"ranks": 4, "factor": 1.0}, "corpus": None, "corpus_from": str(base / "corpus"), "steps": 1}
    run = train(load_recipe(write_recipe(tmp_path, changes), [f"run_dir={tmp_path / 'run'}"]))
    (line,) = (x for x in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()) if "loss" in x)
    routers = json.loads((run.path / "report.json").read_text())["routers"]
    for layer in (1, 2):
        share = line[f"router/layer_{layer}/left_out"]
        assert 0 < share < 1 and routers[f"layer {layer}"]["left_out"] == share
    assert "left_out" not in (base / "metrics.jsonl").read_text()


@pytest.mark.parametrize("policy", ["none", "v3", "layer"])
def test_the_recipe_chooses_what_is_recomputed(policy):
    assert build_model(Recipe.model_validate({**TINY, "recompute": policy}), 300).recompute == policy
