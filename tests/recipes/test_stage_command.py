"""`python -m <stage>`: help, exit statuses, one message for bad input, seeds; and under accelerate."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from recipes.schema import KeyFault
from recipes.stage_main import stage_main

RECIPE = "recipes/walk.yaml"


def numbers(recipe, run) -> dict[str, float]:
    import random

    import numpy

    run.log(1, {"x": 1.0})
    return {"torch": float(torch.rand(())), "python": random.random(), "numpy": float(numpy.random.rand())}


def walk(*arguments: str) -> int:
    return stage_main("walk", numbers, arguments=list(arguments))


def summary(folder: str) -> dict[str, float]:
    return json.loads(open(f"{folder}/provenance.json").read())["summary"]


def test_a_run_its_repetition_and_another_seed(walk_recipe, capsys):
    assert walk(RECIPE) == walk(RECIPE, "run_dir=second") == walk(RECIPE, "run_dir=third", "seed=1") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", in runs/walk")
    assert summary("runs/walk") == summary("second")
    assert all(summary("second")[key] != summary("third")[key] for key in ("torch", "python", "numpy"))
    assert walk(RECIPE) == 0
    assert capsys.readouterr().out == "walk: runs/walk is already complete\n"
    # What a run wrote down is a recipe itself, and says the same.
    assert walk("second/recipe.yaml", "run_dir=fourth") == 0
    assert summary("fourth") == summary("second")


def test_help_teaches(walk_recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        walk("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "python -m walk recipes/nano/walk.yaml seed=1" in text
    assert "keys of a walk recipe" in text
    assert re.search(r"  pace.length +1.0 +of a step, metres\n", text)
    assert "Exit status: 0 done, 2 bad input" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [RECIPE, "setps=3"],
            "walk: recipes/walk.yaml: override 'setps=3': expected a known key (did you mean 'steps'?)",
        ),
        (["recipes/gone.yaml"], "walk: recipes/gone.yaml: expected a recipe (a YAML file); found no such file"),
        ([RECIPE, "steps=many"], "override 'steps=many': expected a valid integer (how many steps); found 'many'"),
        (
            [RECIPE, "source=gone"],
            "gone: input source: expected an artefact of an earlier stage; found no such file or folder",
        ),
        (
            [RECIPE, "steps=20000"],
            "recipes/walk.yaml: steps: expected no more steps than this machine has ground; found",
        ),
        ([RECIPE, "stage=talk"], "recipes/walk.yaml: stage: expected 'walk'; found 'talk'"),
    ],
)
def test_bad_input_is_one_message_and_status_2(walk_recipe, capsys, arguments, message):
    assert walk(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not os.path.exists("runs")


def test_what_a_machine_lacks_stops_neither_a_step_nor_a_complete_run(walk_recipe, monkeypatch, capsys):
    assert (
        walk(RECIPE) == stage_main("walk", numbers, step="far", arguments=[RECIPE, "steps=20000", "run_dir=far"]) == 0
    )
    module = sys.modules["walk.recipe"]
    lacking = KeyFault(("steps",), expected="ground", found="none")
    monkeypatch.setattr(module.Recipe, "machine_faults", lambda self: [lacking])
    assert walk(RECIPE) == 0 and "already complete" in capsys.readouterr().out
    assert walk(RECIPE, "seed=1", "run_dir=other") == 2


def test_several_processes_are_refused(walk_recipe, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert walk(RECIPE) == 2
    assert "expected one process: this stage is not distributed; found WORLD_SIZE=2" in capsys.readouterr().err
    assert stage_main("walk", numbers, distributed=True, arguments=[RECIPE]) == 0


def test_a_failure_inside_the_stage_is_not_dressed_up_and_frees_the_folder(walk_recipe, capsys):
    def fail(recipe, run):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        stage_main("walk", fail, arguments=[RECIPE])
    assert walk(RECIPE) == 0


def test_a_full_disk_is_one_message(walk_recipe, capsys):
    def fill(recipe, run):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/walk/metrics.jsonl")

    assert stage_main("walk", fill, arguments=[RECIPE]) == 2
    error = capsys.readouterr().err
    assert error.startswith("walk: runs/walk/metrics.jsonl: expected") and "No space left" in error
    assert walk(RECIPE) == 0

    def stumble(recipe, run):
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    with pytest.raises(FileNotFoundError):  # a bug, not the disk's fault
        stage_main("walk", stumble, arguments=[RECIPE, "run_dir=runs/second"])


def test_interrupted(walk_recipe, capsys):
    def interrupt(recipe, run):
        raise KeyboardInterrupt

    assert stage_main("walk", interrupt, arguments=[RECIPE]) == 130
    assert capsys.readouterr().err == "walk: interrupted; the same command resumes\n"


def test_accelerate_launches_a_stage(stages, repository):
    (stages.path / "torch.py").unlink()  # the double: here the real one is wanted
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(repository / "recipes/accelerate/cpu.yaml"),
    ]
    command = [*launch, "-m", "walk", RECIPE, "steps=6"]
    done = subprocess.run(command, cwd=stages.root, env=stages.environ(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((stages.root / "runs/walk/provenance.json").read_text())["status"] == "complete"
    assert len((stages.root / "runs/walk/metrics.jsonl").read_text().splitlines()) == 6
