"""The stage as a command: killed by SIGKILL and started again, it ends with the same model and the same numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rl.stage
from eval.tasks.family import Judgement
from recipes.atomic import sha256_artefact
from recipes.rows import Verdict
from recipes.run import read_metrics
from recipes.stage_main import stage_main
from rl.rewards import SampleRewards
from rl.rollouts import Rollouts
from rl.stage import run_stage

STEPS, KILLED_AT = 5, 3

STOPS = tuple(range(0, 300, 4))  # so many that a random model ends its answers, at different lengths

# The same command as in the test's own process, `lenient` included, but for the kill.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_rl_resume import lenient
from recipes.stage_main import stage_main
from rl.rollouts import Rollouts
from rl.stage import run_stage

lenient(setattr)
call = Rollouts.__call__

def die_after(self, prompts, trainer):
    made = call(self, prompts, trainer)
    if trainer.state.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return made

Rollouts.__call__ = die_after
stage_main("rl", run_stage, arguments=sys.argv[3:])
"""


def lenient(patch):
    """Rewards that a random model earns now and then: any answer of an odd number of characters is right."""

    def judge(problems, answers):
        return [Judgement(Verdict.CORRECT if len(answer) % 2 else Verdict.WRONG_ANSWER) for answer in answers]

    begin, score = Rollouts.__init__, SampleRewards.__init__

    def stop_early(self, *given):
        begin(self, *given)
        self.stop_ids = STOPS

    patch(Rollouts, "__init__", stop_early)
    patch(SampleRewards, "__init__", lambda self, tokenizer, recipe: score(self, tokenizer, recipe, judge))
    patch(rl.stage, "check_rewards", lambda *given: None)


def arguments(model_folder: Path, folder: Path) -> list[str]:
    """The command line of a run of five small steps, a checkpoint after every second one."""
    recipe = folder.parent / "rl.yaml"
    recipe.write_text(
        f"""
stage: rl
name: test
threads: 1
init_from: {model_folder}
problems: {{families: {{chain_sum: 1.0, gcd: 1.0}}}}
rewards: {{accuracy: 1.0, format: 0.0, require_thought: false}}
length: {{kind: kimi, weight: 0.3}}
trainer: {{max_steps: {STEPS}, per_device_train_batch_size: 16, num_generations: 4, max_completion_length: 12,
  learning_rate: 0.01, save_steps: 2, lr_scheduler_type: cosine, warmup_steps: 1}}
"""
    )
    return [str(recipe), f"run_dir={folder}"]


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics but for what the clock says."""
    return [
        {name: value for name, value in line.items() if not name.startswith("seconds/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_killed_and_started_again(model_folder, tmp_path, monkeypatch):
    lenient(monkeypatch.setattr)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert stage_main("rl", run_stage, arguments=arguments(model_folder, whole)) == 0
    program = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(KILLED_AT)]
    died = subprocess.run([*program, *arguments(model_folder, killed)], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [line["step"] for line in numbers(killed)] == list(range(1, KILLED_AT + 1))
    assert stage_main("rl", run_stage, arguments=arguments(model_folder, killed)) == 0

    assert [line["step"] for line in numbers(whole)] == list(range(1, STEPS + 1))
    assert numbers(killed) == numbers(whole)
    assert sha256_artefact(killed / "model") == sha256_artefact(whole / "model")
    assert sha256_artefact(whole / "model") != sha256_artefact(model_folder)
    summaries = [json.loads((folder / "provenance.json").read_text())["summary"] for folder in (whole, killed)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["steps"] == STEPS
    assert 0 < summaries[0]["accuracy"] < 1


class Killed(Exception):
    """Stands for a kill at a place that a signal could not be aimed at."""


@pytest.mark.parametrize("place", ["sft.stage.save_model", "recipes.run.Run.complete"])
def test_death_after_the_last_checkpoint(model_folder, tmp_path, monkeypatch, place):
    """Nothing is left to train: one step more would be one too many."""

    def die(*given, **named):
        raise Killed

    lenient(monkeypatch.setattr)
    command = [*arguments(model_folder, tmp_path / "run"), "trainer.max_steps=2"]
    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(Killed):
            stage_main("rl", run_stage, arguments=command)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    before = (checkpoint / "model" / "model.safetensors").read_bytes()
    assert stage_main("rl", run_stage, arguments=command) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    assert before != (model_folder / "model.safetensors").read_bytes()
    assert [line["step"] for line in numbers(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_completion_length=150", "the model has 160 positions"),
        ("trainer.num_generations=5", "divisible by num_generations"),
        ("init_from=nowhere", "nowhere: input init_from"),
        ("trainer.max_completion_length=4", "room for the answers"),
    ],
)
def test_bad_input_is_one_message_and_exit_status_2(model_folder, tmp_path, capsys, override, message):
    assert stage_main("rl", run_stage, arguments=[*arguments(model_folder, tmp_path / "run"), override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
