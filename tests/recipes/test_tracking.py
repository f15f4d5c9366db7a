"""What an offline wandb run holds: numbers, lineage, tables; and that nothing in it stops a stage."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
import wandb
from wandb_records import records

from recipes import tracking
from recipes.lineage import inputs_of
from recipes.run import Run
from recipes.schema import InputPath, StageRecipe

WEIGHTS = "these are the weights " * 40


class Recipe(StageRecipe):
    init_from: InputPath | None = None
    data: InputPath | None = None


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("DATA", "CACHE"):  # where wandb would stage copies
        monkeypatch.setenv(f"WANDB_{variable}_DIR", str(tmp_path / "staged"))
    return tmp_path


def open_run(folder: str, stage: str = "fake", **keys) -> Run:
    made = Recipe(stage=stage, name=Path(folder).name, run_dir=Path(folder), group="nano", **keys)
    return Run.open(made, ["python", "-m", stage], made.input_paths())


def make_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_text(WEIGHTS)


def artefacts(folder: Path):
    return [record.artifact for record in records(folder) if record.WhichOneof("record_type") == "artifact"]


def test_lineage_from_data_over_a_model_to_a_report(offline):
    data = offline / "rows.jsonl"
    data.write_text("{}\n")
    first = open_run("runs/sft", "sft", data=data)
    make_model(first.path)
    first.complete({})
    second = open_run("runs/eval", "eval", init_from=first.path / "model")
    second.log(1, {"accuracy": 0.5})
    (second.path / "report.json").write_text('{"accuracy": 0.5}\n')
    second.complete({})

    (used_data, model), (used_model, metrics, report) = ([*artefacts(run.path)] for run in (first, second))
    assert [made.type for made in (used_data, model, used_model, report, metrics)] == [
        "dataset", "model", "model", "report", "report"
    ]  # fmt: skip
    # The same node of the graph: name and digest, by which the server knows a version.
    assert (model.name, model.digest) == (used_model.name, used_model.digest)
    assert [made.use_after_commit for made in (used_data, model, used_model, report)] == [True, False, True, False]
    assert set(model.aliases) == {first.provenance["wandb_run_id"], "sft", "latest"}
    assert set(report.aliases) == {second.provenance["wandb_run_id"], "eval", "latest"}
    assert list(used_model.aliases) == ["latest"]  # wandb's own, on whatever is logged
    (entry,) = model.manifest.contents
    sha256 = second.provenance["inputs"]["init_from"]["sha256"]
    assert (entry.digest, entry.size, entry.local_path) == (sha256, 2 + len(WEIGHTS), "")
    assert entry.ref == (first.path / "model").resolve().as_uri()
    assert json.loads(model.metadata)["sha256"] == sha256
    assert model.name == f"model-{sha256[:16]}"
    about = next(record.run for record in records(second.path) if record.HasField("run"))
    assert (about.run_group, about.job_type, about.run_id) == ("nano", "eval", second.provenance["wandb_run_id"])


def test_no_weight_is_copied(offline):
    run = open_run("runs/sft")
    make_model(run.path)
    run.complete({})
    holding = [path for path in offline.rglob("*") if path.is_file() and WEIGHTS.encode() in path.read_bytes()]
    assert holding == [offline / "runs/sft/model/model.safetensors"]


def test_a_resumed_run_keeps_its_id_and_declares_its_inputs_again(offline):
    data = offline / "rows.jsonl"
    data.write_text("{}\n")
    run = open_run("runs/sft", data=data)
    run.log(1, {"loss": 2.0})
    run.close()
    time.sleep(1.0 - time.time() % 1.0)  # wandb names a process's folder by the second
    again = open_run("runs/sft", data=data)
    again.log(2, {"loss": 1.0})
    again.complete({})
    kept = records(run.path)
    assert {record.run.run_id for record in kept if record.HasField("run")} == {run.provenance["wandb_run_id"]}
    assert sum(record.HasField("run") for record in kept) >= 2
    losses = [item.value_json for record in kept for item in record.history.item if list(item.nested_key) == ["loss"]]
    assert [float(loss) for loss in losses] == [2.0, 1.0]
    used = [made.name for made in artefacts(run.path) if made.use_after_commit]
    assert len(used) == 2 and len(set(used)) == 1


def test_what_a_run_passes_on_unchanged_is_not_its_own(offline):
    data = offline / "given.jsonl"
    data.write_text("{}\n")
    run = open_run("runs/distill", data=data)
    (run.path / "samples").mkdir()
    (run.path / "samples" / "same.jsonl").write_text("{}\n")
    (run.path / "samples" / "new.jsonl").write_text("{}\n{}\n")
    run.complete({})
    made = [json.loads(artefact.metadata)["keys"] for artefact in artefacts(run.path)]
    assert made == [["data"], ["samples/new.jsonl"]]


def tables(run: Run) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.path.rglob("*.table.json"))]


def test_a_table_is_kept_whole_or_evenly_thinned(offline, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "MAX_ROWS", 4)
    monkeypatch.setattr(tracking, "MAX_TEXT", 5)
    run = open_run("runs/eval")
    run.log(3, {"accuracy": 0.5})
    with caplog.at_level(logging.INFO):
        run.table("problems", ["id", "tokens", "answer"], [["a", 3, "four"], ["b", float("nan"), None]])
        assert "wandb gets" not in caplog.text
        run.table("models/problems", ["n", "text"], [[number, "x" * number] for number in range(10)])
    run.close()
    assert "table models/problems: wandb gets 4 of its 10 rows" in caplog.text
    found = {tuple(table["columns"]): table["data"] for table in tables(run)}
    assert found[("id", "tokens", "answer")] == [["a", 3, "four"], ["b", None, None]]
    cut = "xxxxx... (2 more characters)"
    assert found[("n", "text")] == [[0, ""], [2, "xx"], [5, "xxxxx"], [7, cut]]
    history = {"/".join(item.nested_key) or item.key: item.value_json
               for record in records(run.path) for item in record.history.item}  # fmt: skip
    assert (history["problems/rows"], history["problems/rows_shown"]) == ("2", "2")
    assert (history["models/problems/rows"], history["models/problems/rows_shown"]) == ("10", "4")
    assert history["_step"] == "3"  # beside the numbers of the last step


def test_an_empty_table(offline):
    run = open_run("runs/eval")
    run.table("problems", ["id"], [])
    run.close()
    assert [table["data"] for table in tables(run)] == [[]]


def test_disabled_hashes_and_writes_nothing(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(tracking, "outputs_of", lambda folder: pytest.fail("it was read"))
    run = open_run("runs/sft")
    run.table("problems", ["id"], [["a"]])
    run.complete({})
    assert not (run.path / "wandb").exists()


def test_another_rank_tracks_nothing(offline):
    writer = open_run("runs/sft")
    recipe = writer.recipe
    other = Run.open(recipe, ["python"], recipe.input_paths(), writer=False)
    other.table("problems", ["id"], [["a"]])
    other.complete({})
    assert not (writer.path / "wandb").exists()
    writer.close()


@pytest.mark.parametrize("fault", ["an input vanishes", "a file cannot be hashed", "a bad table", "wandb fails"])
def test_nothing_in_tracking_stops_a_stage(offline, monkeypatch, caplog, fault):
    data = offline / "rows.jsonl"
    data.write_text("{}\n")
    run = open_run("runs/sft", data=data)
    make_model(run.path)
    if fault == "an input vanishes":
        data.unlink()
    elif fault == "a file cannot be hashed":
        monkeypatch.setattr(tracking, "outputs_of", lambda folder: inputs_of({"a": {"path": "gone", "sha256": ""}}))
    elif fault == "wandb fails":
        monkeypatch.setattr(wandb.Run, "log_artifact", lambda *_, **__: 1 / 0)
    run.log(1, {"loss": 1.0})
    if fault == "a bad table":
        run.table("problems", ["id", "task"], [["one cell"]])
    run.complete({"loss": 1.0})
    assert json.loads((run.path / "provenance.json").read_text())["status"] == "complete"
    assert run.metrics() == [{"step": 1, "loss": 1.0}]
    assert caplog.text.count("wandb is off for the rest of this run") == 1
    assert wandb.run is None  # it was ended: the next run of this process would go on in it
    assert any(record.HasField("exit") for record in records(run.path))
