"""The `trivium` command: run, list, check, doctor, and passing on to other packages."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from core_model.errors import InputError
from recipes import catalogue
from recipes.cli import app, main


def trivium(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_command_is_light(repository):
    heavy = ("torch", "transformers", "trl", "wandb", "datasets", "matplotlib")
    code = f"import sys, recipes.cli, recipes.pipeline, recipes.stage_main; print(sys.modules.keys() & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout == "set()\n"


def test_list_shows_what_there_is(stages, monkeypatch):
    monkeypatch.chdir(stages.root)
    stages.write("recipes/broken.yaml", "# not [bold]YAML[/bold]\nx: [\n")
    stages.write("recipes/accelerate/cpu.yaml", "num_processes: 1\n")
    result = trivium("list")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert rows == [
        ["recipe", "stage", "what it is"],
        ["recipes/broken.yaml", "unreadable", "not [bold]YAML[/bold]"],
        ["recipes/pipeline.yaml", "pipeline", "two walks, one after the other"],
        ["recipes/walk.yaml", "walk", "a random walk"],
    ]
    assert isinstance(trivium("list", "nowhere").exception, InputError)


def test_list_cuts_no_path_in_a_narrow_terminal(stages, monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "_console", lambda: Console(width=50))
    monkeypatch.chdir(stages.root)
    stages.write("recipes/of_a_rather_long_name.yaml", "# what it is takes three lines and more here\nstage: walk\n")
    catalogue.print_catalogue(Path("recipes"))
    assert "recipes/of_a_rather_long_name.yaml  walk" in capsys.readouterr().out


def test_check_says_ok_or_2(walk_recipe, stages):
    good = trivium("check", "recipes/walk.yaml", "recipes/pipeline.yaml", "seed=4")
    assert (good.exit_code, good.output) == (0, "recipes/walk.yaml: ok\nrecipes/pipeline.yaml: ok\n")
    assert not (stages.root / "runs").exists()
    note = trivium("check", "recipes/walk.yaml", "source=later")
    assert (note.exit_code, note.output) == (0, "recipes/walk.yaml: ok\n  input source is not there yet: later\n")


def test_check_names_every_faulty_file(walk_recipe, stages):
    stages.write("recipes/typo.yaml", "extends: walk.yaml\nstpes: 3\n")
    stages.write("recipes/long.yaml", "extends: walk.yaml\nsteps: 20000\n")
    result = trivium("check", "recipes/typo.yaml", "recipes/walk.yaml", "recipes/long.yaml", "recipes/gone.yaml")
    assert result.exit_code == 2
    assert "recipes/typo.yaml: line 2, stpes: expected a known key (did you mean 'steps'?)" in result.output
    assert "recipes/walk.yaml: ok" in result.output
    assert "recipes/long.yaml: steps: expected no more steps than this machine has ground; found 20000" in result.output
    assert "recipes/gone.yaml: expected a recipe" in result.output


def test_check_looks_into_a_pipelines_stages(walk_recipe, stages):
    result = trivium("check", "recipes/pipeline.yaml", "first.steps=20000")
    assert result.exit_code == 2
    assert "no more steps than this machine has ground" in result.output


SWEEP = """\
name: strolls
method: grid
metric: {name: x}
parameters: {start: {values: [1.0, 2.0]}}
command: ["${interpreter}", -m, walk, recipes/walk.yaml, source=later, "${args_no_hyphens}"]
"""


def test_a_sweep_is_checked_as_one_and_run_by_its_own_command(walk_recipe, stages):
    stages.write("recipes/sweep.yaml", SWEEP)
    command = "`python -m recipes.sweep recipes/sweep.yaml` runs"
    good = trivium("check", "recipes/walk.yaml", "recipes/sweep.yaml")
    assert good.exit_code == 0
    assert good.output.splitlines()[1:] == [
        "recipes/sweep.yaml: ok", f"  a sweep of 2 trials: {command} them", "  input source is not there yet: later"
    ]  # fmt: skip
    run = trivium("run", "recipes/sweep.yaml")
    assert str(run.exception).endswith(f"expected a recipe or a pipeline; found a sweep; {command} it")
    stages.write("recipes/sweep.yaml", SWEEP.replace("[1.0, 2.0]", "[1.0, far]"))
    bad = trivium("check", "recipes/sweep.yaml")
    assert (bad.exit_code, "override 'start=far': expected a valid number" in bad.output) == (2, True)


def test_run_takes_a_single_recipe(stages):
    done = stages.trivium("run", "recipes/walk.yaml", "steps=3", "run_dir=here")
    assert done.returncode == 0, done.stderr
    assert (stages.root / "here" / "report.json").is_file()


@pytest.mark.parametrize(
    "arguments", [["run", "recipes/gone.yaml"], ["run", "recipes/walk.yaml", "stpes=3"], ["check", "a=b"]]
)
def test_bad_input_is_one_message_and_status_2(walk_recipe, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["trivium", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("trivium: ")
    assert error.count("\n") == 1


def test_chat_and_report_belong_to_their_packages(stages):
    done = stages.trivium("report", "runs/nano", "--help", "-x")
    assert (done.returncode, done.stdout) == (0, "REPORT runs/nano --help -x\n")


def test_help_fills_narrow_lines_and_says_what_is_written(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("export", "import"):
        text = trivium(command, "--help").output
        lines = [line.strip() for line in text.partition("Arguments")[0].splitlines()]
        # A line that is not a paragraph's last has no room for the next one's first word.
        for line, after in itertools.pairwise(lines):
            assert not line or not after or len(line) + 1 + len(after.split()[0]) > 76, line
    said = " ".join(trivium("--help").output.replace("│", " ").split())
    assert "Write an eval run's report (report.json, report.html, figures) anew" in said
    assert "how well judged programs are sandboxed" in said


def test_doctor():
    result = trivium("doctor")
    assert result.exit_code == 0
    for word in ("processor", "memory", "torch", "transformers"):
        assert word in result.output
    assert re.search(r"elementwise work +(single operations|kernels of fused functions)", result.output)
    for what in ("whole rows", "documents", "decoding"):
        assert re.search(rf"attention, {what} +\w", result.output)
