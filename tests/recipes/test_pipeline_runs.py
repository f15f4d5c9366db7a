"""Pipelines as real processes: order, resume after SIGKILL, signals, the table."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from core_model.errors import InputError
from recipes.pipeline import plan_pipeline, run_pipeline

PIPELINE = "recipes/pipeline.yaml"
PRODUCTS = [
    f"{stage}/{name}" for stage in ("first", "second") for name in ("metrics.jsonl", "report.json", "model/result.json")
]


def products(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in PRODUCTS}


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("TABLE")]


def test_a_pipeline_killed_anywhere_ends_like_one_that_was_not(stages, finished):

    killed = [
        ({"FAKE_DIE": "first:13"}, "first"),  # between two checkpoints
        ({"FAKE_TORN": "second:10"}, "second"),  # inside the writing of one
        ({"FAKE_DIE": "second:3"}, "second"),  # not reached: the run goes on after step 5
    ]
    for environment, stage in killed[:2]:
        cut = stages.trivium("run", PIPELINE, "run_dir=cut", **environment)
        assert cut.returncode == 128 + signal.SIGKILL
        assert f"stage {stage} ended with status 137; the same command resumes" in cut.stderr
        assert json.loads((stages.root / "cut" / stage / "provenance.json").read_text())["status"] == "running"
    last = stages.trivium("run", PIPELINE, "run_dir=cut", **killed[2][0])
    assert last.returncode == 0, last.stderr
    assert "removing cut/second/checkpoints/.partial-step_00000010" in last.stderr
    assert "[1/2] first: already complete" in last.stdout
    assert "resuming recipes/walk.yaml, in cut/second" in last.stdout
    assert len(table(last.stdout)) == 1
    assert table(last.stdout) == table((finished.root / "output.txt").read_text())
    assert products(stages.root / "cut") == products(finished.root / "runs/both")

    second = json.loads((stages.root / "cut" / "second" / "provenance.json").read_text())
    assert second["status"] == "complete"
    assert second["resumed"] == 1
    assert second["inputs"]["source"]["path"] == "cut/first/model"
    assert second["summary"]["x"] > 100


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.is_file() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def state(pid: int) -> str:
    """A process's state letter: S sleeping, T stopped, ...; X when it is gone, or dead and not yet collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].replace("Z", "X")
    except FileNotFoundError:
        return "X"


def reaches(pid: int, letters: str) -> bool:
    for _ in range(100):
        if state(pid) in letters:
            return True
        time.sleep(0.05)
    return False


def test_the_stage_dies_with_a_killed_pipeline_and_the_same_command_goes_on(stages):
    process = stages.start("run", PIPELINE, FAKE_HANG="first:7")
    child = int(wait_for(stages.root / "runs/both/first/hanging"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert reaches(child, "X")
    again = stages.trivium("run", PIPELINE)
    assert again.returncode == 0, again.stderr
    steps = [
        json.loads(line)["step"] for line in (stages.root / "runs/both/first/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 21))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_stage(stages, number):
    process = stages.start("run", PIPELINE, FAKE_HANG="first:7")
    child = int(wait_for(stages.root / "runs/both/first/hanging"))
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert state(child) == "X"
    assert "the same command resumes" in output
    assert ("walk: interrupted" in output) == (number == signal.SIGINT)


def test_a_background_job_hears_ctrl_c(stages):
    """A shell starts its background jobs with SIGINT ignored, which children inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = stages.start("run", PIPELINE, FAKE_HANG="first:7")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(stages.root / "runs/both/first/hanging")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and "walk: interrupted" in output


def test_ctrl_z_stops_the_stage_too_and_both_go_on(stages):
    process = stages.start("run", PIPELINE, FAKE_HANG="first:7")
    child = int(wait_for(stages.root / "runs/both/first/hanging"))
    process.send_signal(signal.SIGTSTP)
    assert reaches(process.pid, "T")
    assert reaches(child, "T")
    process.send_signal(signal.SIGCONT)
    assert reaches(child, "SR")
    process.kill()
    process.communicate()
    assert reaches(child, "X")


def test_a_failing_stage_stops_the_pipeline_with_its_status(stages):
    pipeline = stages.write(
        "recipes/pipeline.yaml", (stages.root / PIPELINE).read_text().replace("first/model", "first/nothing")
    )
    done = stages.trivium("run", str(pipeline))
    assert done.returncode == 2
    assert "input source: expected an artefact of an earlier stage; found no such file or folder" in done.stderr
    assert not (stages.root / "runs/both/second/provenance.json").exists()


def test_a_complete_pipeline_only_prints_its_table(finished):
    before = products(finished.root / "runs/both")
    again = finished.trivium("run", PIPELINE)
    assert again.returncode == 0
    assert table(again.stdout) == table((finished.root / "output.txt").read_text())
    assert again.stdout.count("already complete") == 2
    assert products(finished.root / "runs/both") == before


def test_a_complete_stage_is_refused_when_its_recipe_changed(inside_finished):
    with pytest.raises(
        InputError, match=r"runs/both/second: start: expected the recipe .* \(start: 100.0\); found 7.0"
    ):
        run_pipeline(PIPELINE, ["second.start=7"])


def test_a_complete_stage_is_refused_when_its_input_changed(inside_finished):
    result = inside_finished.root / "runs/both/first/model/result.json"
    before = result.read_text()
    result.write_text('{"x": 1}')
    with pytest.raises(
        InputError, match="runs/both/second: input source: expected the artefact this run was made with"
    ):
        run_pipeline(PIPELINE)
    result.write_text(before)


def test_a_missing_table_is_an_error(inside_finished):
    with pytest.raises(
        InputError, match=r"runs/both/second/absent.json: tables of recipes/pipeline.yaml: expected a rep"
    ):
        run_pipeline(PIPELINE, ["tables=[second/absent.json]"])


def test_an_input_from_outside_must_be_there_before_anything_runs(walk_recipe, stages):
    with pytest.raises(
        InputError, match="absent: input source of stage first: expected a file or folder; found nothing"
    ):
        run_pipeline(PIPELINE, ["first.source=absent"])
    assert not (stages.root / "runs").exists()


def test_what_the_machine_lacks_for_a_later_stage_stops_the_first(walk_recipe, stages):
    with pytest.raises(InputError, match=r"^recipes/walk.yaml: steps: expected no more steps than this machine has"):
        run_pipeline(PIPELINE, ["second.steps=20000"])
    assert not (stages.root / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("first/model", "third/model", "line 8, stages.1.inputs.source: expected an earlier stage (first)"),
        (
            "first/model",
            "second/model",
            "expected an earlier stage (first) before the first slash; found 'second/model'",
        ),
        ("first/model", "first/../../x", "expected <stage id>/<path inside its run folder>"),
        ("source: first", "sauce: first", "did you mean 'source'?"),
        ("source: first/model", "start: first/model", "expected a valid number"),
        ("id: second", "id: first", "line 6, stages.1.id: expected an id that is not taken; found 'first'"),
        ("id: second", "id: seed", "expected an id that is not taken"),
        ("start=100", "strat=100", "override 'strat=100': expected a known key (did you mean 'start'?)"),
        (
            "recipe: walk.yaml\n",
            "recipe: wolk.yaml\n",
            "recipes/wolk.yaml: expected a recipe (a YAML file); found no such file",
        ),
        ("tables: [second", "tables: [third", "tables.0: expected an earlier stage (first, second)"),
        ("overrides:", "needs: [second]\n    overrides:", "stages.1.needs.0: expected an earlier stage (first)"),
        ("seed: 3", "sede: 3", "line 3, sede: expected a known key (did you mean 'seed'?)"),
        ("seed: 3", "seed: -3", "seed: expected greater than or equal to 0"),
    ],
)
def test_a_faulty_pipeline_is_one_message(stages, walk_recipe, old, new, message):
    text = (stages.root / PIPELINE).read_text()
    assert old in text
    stages.write(PIPELINE, text.replace(old, new))
    with pytest.raises(InputError) as error:
        plan_pipeline(PIPELINE)
    assert message in str(error.value)


def test_overrides_reach_their_stage_and_paths_are_quoted(stages, walk_recipe):
    plan = plan_pipeline(PIPELINE, ["seed=9", "second.steps=4", "run_dir='odd: [name] # here'"])
    first, second = (stage.recipe for stage in plan.stages)
    assert (first.seed, second.seed, first.steps, second.steps) == (9, 9, 20, 4)
    assert second.source == Path("odd: [name] # here/first/model")
    assert second.folder == Path("odd: [name] # here/second")
    assert first.group == "both"
    with pytest.raises(InputError, match="one that begins with a stage: first, second"):
        plan_pipeline(PIPELINE, ["thrid.steps=4"])
