"""Run folders: what they record, what they refuse, what they survive."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from wandb_records import records

from core_model.errors import InputError
from recipes.atomic import sha256_artefact, write_text
from recipes.run import Run, read_metrics, run_status
from recipes.schema import InputPath, StageRecipe, StrictModel


class Clipping(StrictModel):
    limit: float = Field(default=1.0, description="limit")


class Optimiser(StrictModel):
    rate: float = Field(default=0.1, description="rate")
    warmup: int = Field(default=0, description="warm-up")
    clipping: Clipping = Field(default=Clipping(), description="clipping")


class Recipe(StageRecipe):
    steps: int = Field(default=1, description="steps")
    corpus: InputPath | None = None
    optimiser: Optimiser = Field(default_factory=Optimiser, description="optimiser")
    clips: list[Clipping] = Field(default=[], description="several")
    named: dict[str, Clipping] = Field(default={}, description="by name")
    cores: int = Field(default_factory=lambda: 2, description="of the machine")


def recipe(folder: Path, **keys) -> Recipe:
    return Recipe(stage="fake", name="test", run_dir=folder, **keys)


def open_run(folder: Path, **keys) -> Run:
    made = recipe(folder, **keys)
    return Run.open(made, ["python", "-m", "fake"], made.input_paths())


def test_a_run_records_what_made_it(tmp_run):
    corpus = tmp_run.parent / "corpus.txt"
    corpus.parent.mkdir()
    corpus.write_text("abc")
    run = open_run(tmp_run, corpus=corpus, seed=5)
    assert (run.is_complete, run.summary) == (False, None)
    run.log(1, {"loss": 2.5})
    run.complete({"loss": 2.5})
    record = json.loads((tmp_run / "provenance.json").read_text())
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record["inputs"] == {"corpus": {"path": str(corpus), "sha256": abc}}
    assert (record["status"], record["summary"], record["seeds"]) == ("complete", {"loss": 2.5}, {"seed": 5})
    assert record["command"] == ["python", "-m", "fake"]
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["hardware"]["cores"] >= 1
    assert {"commit", "dirty"} == record["git"].keys()
    assert "steps: 1" in (tmp_run / "recipe.yaml").read_text()
    again = open_run(tmp_run, corpus=corpus, seed=5)
    assert (again.is_complete, again.summary) == (True, {"loss": 2.5})
    again.close()
    assert json.loads((tmp_run / "provenance.json").read_text()) == record


def test_the_default_folder_is_named_after_the_run(tmp_run):
    assert Recipe(stage="fake", name="test").folder == Path("runs/test")


def test_another_recipe_or_input_is_refused(tmp_run):
    corpus = tmp_run.parent / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "a.txt").write_text("a")
    run = open_run(tmp_run, corpus=corpus)
    run.log(1, {"loss": 2.0})
    run.close()
    with pytest.raises(InputError, match=r"steps: expected the recipe this run was made with \(steps: 1\); found 2"):
        open_run(tmp_run, corpus=corpus, steps=2)
    (corpus / "b.txt").write_text("")
    with pytest.raises(InputError, match="input corpus: expected the artefact this run was made with"):
        open_run(tmp_run, corpus=corpus)
    with pytest.raises(InputError, match="input corpus: expected an artefact of an earlier stage; found no such file"):
        open_run(tmp_run, corpus=corpus / "gone")


def test_a_recipe_may_be_mended_before_the_first_result(tmp_run):
    open_run(tmp_run, steps=1).close()
    run = open_run(tmp_run, steps=2)
    assert run.provenance["recipe"]["steps"] == 2 and "steps: 2" in (tmp_run / "recipe.yaml").read_text()
    (tmp_run / "samples").mkdir()
    run.close()
    with pytest.raises(InputError, match=r"steps: expected .*steps: 2"):
        open_run(tmp_run, steps=1)


@pytest.mark.parametrize(
    ("key", "others"),
    [
        (["steps"], {"steps": 2}),
        (["optimiser"], {"optimiser": Optimiser(rate=0.2)}),
        (["optimiser", "warmup"], {"optimiser": Optimiser(warmup=3)}),
        (["optimiser", "clipping"], {"optimiser": Optimiser(clipping=Clipping(limit=2.0))}),
        (["optimiser", "clipping", "limit"], {"optimiser": Optimiser(clipping=Clipping(limit=2.0))}),
        (["clips", 0, "limit"], {"clips": [Clipping(limit=2.0)]}),
        (["named", "a", "limit"], {"named": {"a": Clipping(limit=2.0)}}),
    ],
)
def test_a_key_that_recipes_did_not_have_then_is_as_before_at_its_default(tmp_run, key, others):
    run = open_run(tmp_run, clips=[Clipping()], named={"a": Clipping()})
    run.log(1, {"loss": 2.0})
    run.close()
    record = json.loads((tmp_run / "provenance.json").read_text())
    section = record["recipe"]
    for name in key[:-1]:
        section = section[name]
    del section[key[-1]]
    (tmp_run / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"{key[0]}.*: expected .* this run was made with .*; found "):
        open_run(tmp_run, **{"clips": [Clipping()], "named": {"a": Clipping()}, **others})
    open_run(tmp_run, clips=[Clipping()], named={"a": Clipping()}).close()


def test_a_default_of_the_machine_says_nothing_of_then(tmp_run):
    run = open_run(tmp_run)
    run.log(1, {"loss": 2.0})
    run.close()
    record = json.loads((tmp_run / "provenance.json").read_text())
    del record["recipe"]["cores"]
    (tmp_run / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="cores: expected"):
        open_run(tmp_run)


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(InputError, match="/proc/no-such-run: expected a folder that can be written"):
        open_run(Path("/proc/no-such-run"))


def test_placement_is_no_part_of_the_recipe(tmp_run, monkeypatch):
    open_run(tmp_run, group="one").close()
    monkeypatch.chdir(tmp_run.parent)
    run = open_run(Path("test"), group="two")
    assert run.provenance["resumed"] == 1
    run.close()


def test_leftovers_without_provenance_are_refused(tmp_run):
    (tmp_run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoints without provenance.json"):
        open_run(tmp_run)


ODD_INPUTS = [
    json.dumps({"status": "running", "inputs": inputs, "recipe": {}, "wandb_run_id": None})
    for inputs in ("x", [1], None, {"corpus": 1}, {"corpus": {"path": "x"}})
]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"status": "done"}', '{"status": "running", "inputs": {}}', *ODD_INPUTS]
)
def test_a_damaged_provenance_is_one_message(tmp_run, text):
    tmp_run.mkdir(parents=True)
    (tmp_run / "provenance.json").write_text(text)
    with pytest.raises(InputError, match=r"provenance.json: expected the provenance of a run; found"):
        open_run(tmp_run)


def test_a_file_in_the_folders_place(tmp_run):
    tmp_run.parent.mkdir()
    tmp_run.write_text("")
    with pytest.raises(InputError, match="expected a folder for the run; found a file"):
        open_run(tmp_run)


def test_status_without_opening(tmp_run):
    made = recipe(tmp_run)
    assert run_status(made, {}) is None
    run = open_run(tmp_run)
    assert run_status(made, {}) == "running"
    run.complete({})
    assert run_status(made, {}) == "complete"
    with pytest.raises(InputError, match="steps: expected the recipe"):
        run_status(recipe(tmp_run, steps=3), {})


def test_a_second_process_is_kept_out(tmp_run, monkeypatch, repository):
    run = open_run(tmp_run)
    code = (
        "import sys, recipes.run\nfrom pathlib import Path\nrecipes.run.PATIENCE = 0.0\n"
        "try: recipes.run._lock(Path(sys.argv[1]))\nexcept Exception as error: print(error)\nelse: print('free')"
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(tmp_run)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository).stdout

    assert "found another process at work on it" in other()
    run.close()
    assert other() == "free\n"


def test_ranks_after_the_first_write_nothing(tmp_run):
    made = recipe(tmp_run)
    run = Run.open(made, [], {}, writer=False)
    run.log(1, {"loss": 1.0})
    run.rewind(0)
    run.complete({})
    assert not tmp_run.exists()


def test_metrics_are_json_lines(tmp_run):
    run = open_run(tmp_run)
    run.log(0, {"loss": 1, "norm": math.inf})
    run.log(1, {"loss": math.nan})
    assert (
        tmp_run / "metrics.jsonl"
    ).read_text() == '{"step": 0, "loss": 1.0, "norm": null}\n{"step": 1, "loss": null}\n'
    with pytest.raises(ValueError, match="the line's own key"):
        run.log(2, {"step": 3})
    run.close()


def test_rewind_drops_later_steps_and_logging_goes_on(tmp_run):
    run = open_run(tmp_run)
    for step in (1, 2, 2, 3):
        run.log(step, {"x": step})
    run.rewind(2)
    run.log(5, {"x": 5})
    assert [line["step"] for line in run.metrics()] == [1, 2, 2, 5]
    run.rewind(-1)
    assert run.metrics() == []
    run.close()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 200), step=st.integers(-1, 12))
def test_a_half_written_last_line_is_dropped_on_resume(tmp_path_factory, cut, step):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    lines = [json.dumps({"step": number, "x": 0.5}) + "\n" for number in range(10)]
    text = "".join(lines)[: len("".join(lines)) - cut % 200]
    path.write_text(text)
    whole = text.count("\n")
    assert [row["step"] for row in read_metrics(path)] == list(range(whole))


def test_resuming_after_a_half_written_line(tmp_run):
    run = open_run(tmp_run)
    run.log(1, {"x": 1})
    run.log(2, {"x": 2})
    run.close()
    path = tmp_run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = open_run(tmp_run)
    again.log(2, {"x": 2})
    assert again.metrics() == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]
    again.close()


@pytest.mark.parametrize("line", ["", "{", "3", "{}", '{"step": "1"}', "\xff"])
def test_a_damaged_line_inside_is_named(tmp_run, line):
    run = open_run(tmp_run)
    (tmp_run / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2: expected a JSON object with a step"):
        run.rewind(1)
    assert len((tmp_run / "metrics.jsonl").read_text().splitlines()) == 3
    run.close()


def test_wandb_gets_the_same_offline_and_one_run_over_a_resume(tmp_run, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "openai", types.ModuleType("openai"))  # wandb advertises where it sees this one
    run = open_run(tmp_run, group="nano")
    run.log(1, {"loss": 0.125})
    run.close()
    again = open_run(tmp_run, group="nano")
    again.log(2, {"loss": 0.0625})
    again.complete({})
    kept = records(tmp_run)
    assert any(item.value_json == "0.0625" for record in kept for item in record.history.item)
    about = {(record.run.run_id, record.run.run_group, record.run.project) for record in kept if record.HasField("run")}
    assert about == {(run.provenance["wandb_run_id"], "nano", "trivium")}
    assert capfd.readouterr() == ("", "")


def test_a_broken_wandb_stops_nothing(tmp_run, monkeypatch, caplog):
    import wandb

    def refuse(**_):
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = open_run(tmp_run)
    run.log(1, {"x": 1})
    run.log(2, {"x": 2})
    run.complete({})
    assert len(run.metrics()) == 2
    assert [record.message for record in caplog.records].count(
        "wandb is off for the rest of this run (metrics.jsonl is not affected): no space left"
    ) == 1


def test_a_folders_hash_sees_names_and_contents(tmp_path):
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return sha256_artefact(folder)

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="12"), digest(b="1", a="", c="2")}) == 4


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "provenance.json"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        write_text(path, "new")
    assert path.read_text() == "old"
