"""The recipe's `trainer` keys: TRL's own, checked before anything is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core_model.errors import InputError
from recipes.loader import load_recipe
from sft.trainer_config import build_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.learning_rat=1e-4",
            r"a key of TRL's SFTConfig \(did you mean 'learning_rate'\?\); found the unknown key",
        ),
        ("trainer.learning_rate=fast", "expected a valid number; found 'fast'"),
        ("trainer.max_steps=2.5", "expected a valid integer; found 2.5"),
        ("trainer.max_steps=true", "expected a valid integer; found True"),
        ("trainer.max_steps=0", "expected at least 1, or -1 .*; found 0"),
        ("trainer.max_steps=-5", "expected at least 1, or -1 .*; found -5"),
        ("trainer.lr_scheduler_type=cosin", "expected one of 'linear', 'cosine'.*; found 'cosin'"),
        (
            "trainer.lr_scheduler_kwargs={min_lr_rat: 0.2}",
            "min_lr_rate, num_cycles; found the unknown key 'min_lr_rat'",
        ),
        ("trainer.eval_strategy=epoch", "expected one of 'steps', 'no'; found 'epoch'"),
        ("trainer.save_strategy=no", "expected one of 'steps'; found False"),
        ("trainer.bf16=true", "no key 'bf16': compute_dtype decides it"),
        ("trainer.packing=true", "no key 'packing': samples are rendered, masked and packed by the stage"),
        ("trainer.output_dir=x", "no key 'output_dir'"),
        ("mtp_weigth=0.1", "did you mean 'mtp_weight'"),
        ("validation_share=1.0", "validation_share"),
        ("data=[a]", "data"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected(stage, override, message):
    with pytest.raises(InputError, match=message) as error:
        load_recipe(stage.recipe, [override])
    assert f"{stage.recipe}: override {override!r}: expected " in str(error.value)


def test_a_wrong_key_in_a_file_is_named_with_its_line(stage, tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text(f"extends: {stage.recipe}\ntrainer:\n  learning_rate: 1.0e-4\n  max_stepz: 3\n")
    with pytest.raises(InputError, match=r"typo.yaml: line 4, trainer.max_stepz: expected a key of TRL's SFTConfig"):
        load_recipe(path)


def test_routers_that_nothing_balances_are_asked_for_by_name(stage):
    neither = ["balance_alpha=0", "bias_speed=0"]
    with pytest.raises(InputError, match="say unbalanced: true"):
        load_recipe(stage.recipe, neither)
    assert load_recipe(stage.recipe, [*neither, "unbalanced=true"]).unbalanced
    assert not load_recipe(stage.recipe, ["balance_alpha=0", "bias_speed=0.001"]).unbalanced


def test_every_file_of_rows_is_an_input(stage):
    assert list(load_recipe(stage.recipe).input_paths()) == ["init_from", "data"]
    assert list(load_recipe(stage.recipe, ["more_data=[a, b]"]).input_paths())[2:] == ["more_data.0", "more_data.1"]


def test_keys_reach_trl_word_for_word(tmp_path):
    given = {"learning_rate": 5e-6, "adam_beta2": 0.95, "logging_steps": 7, "warmup_steps": 3, "optim": "sgd"}
    config = build_config(given, seed=5, folder=tmp_path, has_validation=False)
    assert {key: getattr(config, key) for key in given} == given
    assert (config.seed, config.data_seed, config.bf16, config.report_to) == (5, 5, False, [])


def test_values_that_only_trl_can_judge_are_an_input_error_too(tmp_path):
    with pytest.raises(InputError, match="trainer: expected values that TRL accepts; found"):
        build_config({"logging_steps": 0}, seed=0, folder=tmp_path, has_validation=True)
    with pytest.raises(InputError, match="eval_strategy"):
        build_config({"eval_strategy": "steps"}, seed=0, folder=tmp_path, has_validation=False)


def test_importing_the_stage_does_not_import_trl():
    code = (
        "import sys, sft, sft.recipe, sft.stage, sft.data; sys.exit('trl' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
