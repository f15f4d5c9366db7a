"""The stage as a command, killed and started again: same weights, same metrics, byte for byte."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys

import pytest

from core_model import V3ForCausalLM
from core_model.tokenizer import load_tokenizer, render_prompt
from recipes.atomic import sha256_artefact

KILLED = """
import os, signal, sys
from recipes.stage_main import stage_main
from sft.stage import run_stage
from sft.trainer import V3SFTTrainer

step, arguments = int(sys.argv[1]), sys.argv[2:]
end_step = V3SFTTrainer.end_step

def end_and_die(self, will_log):
    end_step(self, will_log)
    if self.state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)

V3SFTTrainer.end_step = end_and_die
stage_main("sft", run_stage, arguments=arguments)
"""


class Killed(Exception):
    """Stands for a kill at a place that a signal could not be aimed at."""


def die(*args, **kwargs):
    raise Killed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run folder of an uninterrupted run, made by the first test that needs it."""
    return tmp_path_factory.mktemp("uninterrupted") / "run"


@pytest.fixture
def whole(stage, uninterrupted):
    if not uninterrupted.exists():
        assert stage.tune("whole") == 0
        shutil.copytree(stage.root / "whole", uninterrupted)
    return uninterrupted


def assert_same(folder, whole):
    assert sha256_artefact(folder / "model") == sha256_artefact(whole / "model")
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    done, expected = (json.loads((path / "provenance.json").read_text()) for path in (folder, whole))
    assert done["summary"] == expected["summary"]


def test_the_command_tunes_and_leaves_a_model_that_can_be_used(stage, whole, start, capsys):
    summary = json.loads((whole / "provenance.json").read_text())["summary"]
    curve = summary["validation_curve"]
    assert [step for step, _ in curve] == [0, 4, 8, 9]
    assert curve[-1][1] == summary["validation_loss"] < curve[0][1]
    assert summary["steps"] == 9
    assert summary["training"]["samples"] + summary["validation"]["samples"] == 60
    assert summary["training"]["variants"] == {"reflect": summary["training"]["samples"]}
    assert 0 < summary["trained_tokens"] < summary["tokens"]
    model, tokenizer = V3ForCausalLM.from_pretrained(whole / "model"), load_tokenizer(whole / "model")
    assert sha256_artefact(whole / "model") != sha256_artefact(start)
    assert render_prompt(tokenizer, [{"role": "user", "content": "1+2=?"}])
    assert model.config.num_nextn_predict_layers == 1


def test_sigkill_in_the_second_epoch_and_the_same_command_again(stage, whole):
    arguments = [str(stage.recipe), f"run_dir={stage.root / 'run'}"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "8", *arguments], timeout=280, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines = [json.loads(line) for line in (stage.root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 7
    assert lines[-1]["epoch"] > 1
    assert os.listdir(stage.root / "run" / "checkpoints") == ["step_00000003", "step_00000006"]
    assert stage.tune("run") == 0
    assert_same(stage.root / "run", whole)


@pytest.mark.parametrize(
    ("place", "nth"),
    [
        ("sft.trainer.V3SFTTrainer.evaluate", 1),  # before the first step: metrics but no checkpoint
        ("sft.trainer.V3SFTTrainer._save_rng_state", 2),  # half-way through writing the second checkpoint
        ("sft.trainer.V3SFTTrainer.evaluate", 3),  # after a line of the same step, before its checkpoint
        ("sft.stage.save_model", 1),  # after the last checkpoint
        ("recipes.run.Run.complete", 1),  # after the model
    ],
)
def test_death_at_an_awkward_moment(stage, whole, monkeypatch, place, nth):
    module, _, name = place.rpartition(".")
    calls = []
    with monkeypatch.context() as patch:
        owner = pkgutil.resolve_name(module)
        real = getattr(owner, name)

        def call(*args, **kwargs):
            calls.append(1)
            done = real(*args, **kwargs)
            return die() if len(calls) == nth else done

        patch.setattr(owner, name, call)
        with pytest.raises(Killed):
            stage.tune("run")
    assert stage.tune("run") == 0
    assert_same(stage.root / "run", whole)


def test_a_window_of_log_lines_survives_a_kill_inside_it(stage, monkeypatch):
    overrides = ("trainer.logging_steps=4", "trainer.max_steps=5", "trainer.save_steps=2")
    assert stage.tune("whole", *overrides) == 0
    from sft.trainer import V3SFTTrainer

    end_step = V3SFTTrainer.end_step
    with monkeypatch.context() as patch:
        patch.setattr(
            V3SFTTrainer, "end_step", lambda self, log: die() if self.state.global_step == 3 else end_step(self, log)
        )
        with pytest.raises(Killed):
            stage.tune("run", *overrides)
    assert stage.tune("run", *overrides) == 0
    assert_same(stage.root / "run", stage.root / "whole")


def test_epochs_instead_of_steps_end_where_they_should(stage, monkeypatch):
    overrides = ("trainer.max_steps=-1", "trainer.num_train_epochs=1", "trainer.save_steps=2")
    assert stage.tune("whole", *overrides) == 0
    summary = json.loads((stage.root / "whole" / "provenance.json").read_text())["summary"]
    assert summary["tokens"] == summary["training"]["tokens"]
    with monkeypatch.context() as patch:
        patch.setattr("sft.stage.save_model", die)
        with pytest.raises(Killed):
            stage.tune("run", *overrides)
    assert stage.tune("run", *overrides) == 0
    assert_same(stage.root / "run", stage.root / "whole")


def test_a_flipped_byte_in_a_checkpoint_is_one_message(stage, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("sft.stage.save_model", die)
        with pytest.raises(Killed):
            stage.tune("run", "trainer.max_steps=2")
    (weights,) = (stage.root / "run" / "checkpoints").rglob("model.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    capsys.readouterr()
    assert stage.tune("run", "trainer.max_steps=2") == 2
    message = capsys.readouterr().err
    assert "model.safetensors: expected sha256" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sequence_length=16",), "expected at most 16 tokens (the recipe's sequence_length), since nothing is cut"),
        (("data=none.jsonl",), "none.jsonl: input data"),
        (("init_from=none",), "none: input init_from"),
        (("trainer.learning_rat=1",), "did you mean 'learning_rate'?"),
    ],
)
def test_bad_input_is_one_message_and_exit_status_2(stage, capsys, overrides, message):
    assert stage.tune("run", *overrides) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_mtp_layers_needs_weight_0(stage, start, tmp_path, capsys):
    model = V3ForCausalLM.from_pretrained(start, num_nextn_predict_layers=0)
    folder = tmp_path / "bare"
    load_tokenizer(start).save_pretrained(folder)
    model.save_pretrained(folder)
    assert stage.tune("run", f"init_from={folder}") == 2
    assert "MTP layers, for mtp_weight 0.1 (or 0); found num_nextn_predict_layers 0" in capsys.readouterr().err
    assert stage.tune("bare", f"init_from={folder}", "mtp_weight=0", "trainer.max_steps=1") == 0
