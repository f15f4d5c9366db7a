"""Sweeps without a server: what is refused before anything runs, which trials there are, what a kill leaves."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from core_model.errors import InputError
from recipes.loader import load_recipe
from recipes.sweep import Parameter, is_sweep, main, plan_sweep, results

SHIPPED = Path(__file__).resolve().parents[2] / "recipes" / "nano" / "sweep.yaml"

SWEEP = """\
name: strolls
method: grid
metric: {name: x, goal: minimize}
parameters:
  start: {values: [30.0, 10.0]}
  steps: {values: [8, 12]}
command: ["${env}", "${interpreter}", -m, walk, recipes/walk.yaml, seed=3, "run_dir=runs/${oc.env:WANDB_RUN_ID}",
          "${args_no_hyphens}"]
"""


def sweep_file(text: str = SWEEP) -> Path:
    path = Path("sweep.yaml")
    path.write_text(text)
    return path


def test_a_grid(walk_recipe):
    plan = plan_sweep(sweep_file())
    assert [trial.values for trial in plan.trials] == [
        {"start": start, "steps": steps} for start in (30.0, 10.0) for steps in (8, 12)
    ]
    first = plan.trials[0]
    assert first.command[1:] == (
        "-m", "walk", "recipes/walk.yaml", "seed=3", "start=30.0", "steps=8", f"run_dir=runs/sweeps/strolls/{first.id}",
        "group=strolls",
    )  # fmt: skip
    assert (first.recipe.seed, first.recipe.group) == (3, "strolls")
    assert len({trial.id for trial in plan.trials}) == 4
    assert plan_sweep(sweep_file(), count=3, folder=Path("here")).trials[2].recipe.folder.parent == Path("here")


def test_a_trials_folder_depends_on_its_values_alone(walk_recipe):
    before = {json.dumps(trial.values): trial.id for trial in plan_sweep(sweep_file()).trials}
    wider = plan_sweep(sweep_file(SWEEP.replace("[30.0, 10.0]", "[5.0, 10.0, 30.0]"))).trials
    assert {json.dumps(trial.values): trial.id for trial in wider}.items() > before.items()


def test_random_draws_are_the_same_whatever_the_count(walk_recipe):
    path = sweep_file(SWEEP.replace("grid", "random").replace("{values: [30.0, 10.0]}", "{min: 0.5, max: 2.0}"))
    few, many, other = (plan_sweep(path, count=n, seed=seed).trials for n, seed in ((2, 0), (5, 0), (5, 1)))
    assert [trial.id for trial in few] == [trial.id for trial in many[:2]]
    assert not {trial.id for trial in many} & {trial.id for trial in other}
    assert all(0.5 <= float(trial.values["start"]) <= 2.0 and trial.values["steps"] in (8, 12) for trial in many)


def test_no_combination_is_drawn_twice(walk_recipe, capsys):
    plan = plan_sweep(sweep_file(SWEEP.replace("grid", "random")), count=9)
    assert len({trial.id for trial in plan.trials}) == len(plan.trials) == 4
    assert capsys.readouterr().err == "sweep strolls: 4 different trials and not 9: there are no more\n"


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.integers(0, 99))
def test_draws_stay_inside_their_range(one, two, seed):
    low, high = sorted((one, two))
    if low == high:
        high = low * 2
    for kind in ("uniform", "log_uniform_values"):
        drawn = Parameter(distribution=kind, min=low, max=high).draw(random.Random(seed))
        assert low <= drawn <= high


def test_a_logarithmic_range_is_drawn_evenly_by_magnitude():
    generator, parameter = random.Random(0), Parameter(distribution="log_uniform_values", min=1e-4, max=1.0)
    drawn = [float(parameter.draw(generator)) for _ in range(4000)]
    below = sum(value < 1e-2 for value in drawn)  # half of the magnitudes; uniform: 1 % of the draws
    assert abs(below - 2000) < 4 * (4000 * 0.25) ** 0.5
    assert {Parameter(min=1, max=3).draw(generator) for _ in range(60)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("start:", "strat:", r"walk.yaml: override 'strat=30.0': expected a known key \(did you mean 'start'\?\)"),
        ("  steps: {values: [8, 12]}", "  pace.length: {values: [1.0, -1.0]}", "override 'pace.length=-1.0': expected"),
        ("[8, 12]", "[8, 20000]", r"sweep.yaml: trial .*20000.*can run here; found .*steps: expected no more steps"),
        ("method: grid", "method: bayes", "sweep.yaml: line 2, method: expected 'grid' or 'random'"),
        ("method: grid", "method: random", "sweep.yaml: run_cap: expected how many trials a random sweep has"),
        ("name: strolls", "name: strolls\nearly_terminate: {}", "line 2, early_terminate: expected one of"),
        ("{values: [8, 12]}", "{min: 8, max: 12}", "parameters.steps: expected a value or values: it is a grid"),
        ("{values: [8, 12]}", "{min: 12, max: 8}", "min 12 is not below max 8"),
        ("{values: [8, 12]}", "{value: 8, values: [8]}", "it takes a value, or values, or min and max"),
        ("{values: [8, 12]}", "{value: 8, min: 1}", "min, max and distribution belong to a range"),
        ("{values: [8, 12]}", "{distribution: int_uniform, min: 1.5, max: 3}", "int_uniform needs whole numbers"),
        ("steps:", "run_dir:", "parameters.run_dir: expected a dotted key that decides a number"),
        ("-m, walk,", "-m, talk,", "command: expected a recipe of the stage talk; found recipes/walk.yaml of walk"),
        ('"${args_no_hyphens}"', '"${args}"', r"line 7, command: expected \[\$\{env\}, \$\{interpreter\}, -m, STAGE"),
        ("seed=3", "'${program}'", "command: expected no other"),
        ("metric:", "metric: [", "sweep.yaml: expected YAML in UTF-8"),
    ],
)  # fmt: skip
def test_a_fault_is_found_before_anything_runs(walk_recipe, capsys, old, new, message):
    path = sweep_file(SWEEP.replace(old, new))
    assert path.read_text() != SWEEP
    with pytest.raises(InputError, match=message):
        plan_sweep(path)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sweep: ") and error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_missing_input_is_found_before_anything_runs(walk_recipe, capsys):
    path = sweep_file(SWEEP.replace("seed=3", "source=gone"))
    assert main([str(path), "--dry-run"]) == 0
    assert main([str(path)]) == 2
    assert "gone: input source: expected a file or folder; found nothing there" in capsys.readouterr().err
    assert main(["nowhere.yaml"]) == 2
    assert main([str(path), "--count", "0"]) == 2
    assert not Path("runs").exists()


def test_dry_run_prints_the_commands(walk_recipe, capsys):
    assert main([str(sweep_file()), "--dry-run", "--count", "1"]) == 0
    line = "python -m walk recipes/walk.yaml seed=3 start=30.0 steps=8 run_dir=runs/sweeps/strolls/"
    assert capsys.readouterr().out.startswith(line)
    assert not Path("runs").exists()


def test_a_sweep_killed_in_a_trial_goes_on_there(stages, walk_recipe):
    path = sweep_file()
    plan = plan_sweep(path, count=3)
    killed = plan.trials[1]
    command = ("-m", "recipes.sweep", str(path), "--count", "3")
    done = stages.python(*command, FAKE_DIE=f"{killed.id}:7")
    assert done.returncode == 128 + 9
    assert f"{killed.id} start=30 steps=12: ended by signal 9; the same command resumes" in done.stderr
    assert not (plan.folder / plan.trials[2].id).exists()

    done = stages.python(*command)
    assert done.returncode == 0, done.stderr
    said = [line.rpartition(": ")[2] for line in done.stdout.splitlines() if line.startswith("[")]
    assert said == ["already complete", "resuming", "starting"]
    table = json.loads((plan.folder / "trials.json").read_text())
    assert table["metric"] == {"name": "x", "goal": "minimize"}
    # The same seed walks the same way: fewer steps from nearer by end lower.
    order = [(row["values"]["start"], row["values"]["steps"]) for row in table["trials"]]
    assert order == [(10.0, 8), (30.0, 8), (30.0, 12)]
    assert {row["status"] for row in table["trials"]} == {"complete"}
    last = [json.loads(line)["x"] for line in (killed.recipe.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert table["trials"][2]["metric"] == last
    rows = {row["trial"]: row["metric"] for row in table["trials"]}
    words = [line.split() for line in done.stdout.splitlines()]
    printed = {row[1]: float(row[0]) for row in words if row[1:2] and row[0][0] != "[" and row[1] in rows}
    assert list(printed) == list(rows)  # best first
    assert printed == pytest.approx(rows, rel=1e-5)
    # Another recipe under the same values is refused, and nothing is run.
    sweep_file(SWEEP.replace("seed=3", "seed=4"))
    refused = stages.python(*command)
    assert refused.returncode == 2
    assert "seed: expected the recipe this run was made with (seed: 3); found 4" in refused.stderr


def test_a_trial_that_fails_does_not_stop_the_others(stages, walk_recipe):
    made = (stages.path / "walk/__main__.py").read_text()
    stages.write(stages.path / "walk/__main__.py", made.replace(
        "    step, x = 0", "    if recipe.start > 20: raise SystemExit(1)\n    step, x = 0"))  # fmt: skip
    done = stages.python("-m", "recipes.sweep", str(sweep_file(SWEEP.replace("[8, 12]", "[8]"))))
    assert done.returncode == 1
    assert "start=30 steps=8: ended with status 1" in done.stderr
    rows = results(plan_sweep(Path("sweep.yaml"), count=2))
    assert [(row["values"]["start"], row["status"]) for row in rows] == [(10.0, "complete"), (30.0, "running")]
    assert rows[1]["metric"] is None


def test_the_shipped_sweep_is_what_wandbs_agent_would_run(monkeypatch):
    monkeypatch.chdir(SHIPPED.parents[2])
    plan = plan_sweep(SHIPPED)
    assert is_sweep(SHIPPED) and not is_sweep(SHIPPED.parent / "pipeline.yaml")
    assert len(plan.trials) == 6
    for trial in plan.trials:
        agent = create_sweep_command_args({"args": {name: {"value": value} for name, value in trial.values.items()}})
        assert set(agent["args_no_hyphens"]) <= set(trial.command)
    # The agent's trials get folders of their own by the run_dir that is left out here.
    (place,) = [word for word in yaml.safe_load(SHIPPED.read_text())["command"] if word.startswith("run_dir=")]
    monkeypatch.setenv("WANDB_RUN_ID", "ab12cd34")
    assert load_recipe(plan.trials[0].command[3], [place]).folder == Path("runs/sweeps/nano-rl/ab12cd34")
