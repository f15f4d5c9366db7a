"""Artefacts: one content, one name, whoever made or reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.atomic import sha256_artefact
from recipes.lineage import Input, inputs_of, kind_of, outputs_of
from recipes.run import hash_inputs

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def recorded(**paths: Path) -> dict[str, Input]:
    """As provenance.json has them."""
    return {key: {"path": str(paths[key]), "sha256": sha256} for key, sha256 in hash_inputs(paths).items()}


def test_what_a_run_made(tmp_path):
    run = write(
        tmp_path / "run", model__config_json="{}", model__weights="w" * 10, corpus__corpus_json="{}",
        corpus__documents="abc", corpus__tokenizer__tokenizer_json="{}", samples__short="abc", samples__judged__a="1",
        report_json="{}", metrics="not an output", checkpoints__step="x", wandb__x="x",
    )  # fmt: skip
    made = {artefact.keys[0]: artefact for artefact in outputs_of(run)}
    assert {key: artefact.kind for key, artefact in made.items()} == {
        "model": "model", "corpus": "corpus", "corpus/corpus.json": "corpus", "corpus/documents": "corpus",
        "corpus/tokenizer": "corpus", "report.json": "report", "samples/judged": "dataset", "samples/short": "dataset",
    }  # fmt: skip
    assert (made["model"].files, made["model"].size) == (2, 12)
    assert made["samples/short"].sha256 == ABC
    assert made["samples/short"].name == "dataset-ba7816bf8f01cfea"


def test_the_next_stage_reads_under_the_same_name(tmp_path):
    run = write(
        tmp_path / "first", model__config_json="{}", model__weights="w", corpus__corpus_json="{}", corpus__text="t",
        corpus__tokenizer__vocabulary="v", samples__short="s", report_json="{}",
    )  # fmt: skip
    inside = ("model", "corpus", "corpus/text", "corpus/tokenizer", "samples/short", "report.json")
    made = {artefact.keys[0]: artefact.name for artefact in outputs_of(run)}
    read = inputs_of(recorded(**{name: run / name for name in inside}))
    assert {artefact.keys[0]: artefact.name for artefact in read} == {name: made[name] for name in inside}


def test_a_copy_elsewhere_is_the_same_artefact_and_another_weight_is_not(tmp_path):
    one = write(tmp_path / "one/model", config_json="{}", weights="w")
    copy = write(tmp_path / "exported", config_json="{}", weights="w")
    other = write(tmp_path / "other/model", config_json="{}", weights="v")
    read = inputs_of(recorded(a=one, b=copy, c=other))
    assert [artefact.keys for artefact in read] == [("a", "b"), ("c",)]
    assert read[0].path == one


@pytest.mark.parametrize(
    ("name", "kind"),
    [("metrics.jsonl", "report"), ("report.json", "report"), ("rows.jsonl", "dataset"), ("folder/rows", "dataset")],
)
def test_kinds(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert kind_of(path) == kind
    assert kind_of(tmp_path) == "dataset"
    (tmp_path / "corpus.json").write_text("{}")
    assert kind_of(path) == ("dataset" if name == "folder/rows" else "corpus")


PART = st.sampled_from(["a", "b", "a.b", "a-b", "A"])


@settings(max_examples=30)
@given(files=st.dictionaries(st.tuples(PART, PART, PART).map("/".join), st.binary(max_size=4), min_size=1))
def test_one_reading_gives_the_hashes_of_the_whole_and_of_each_part(files):
    with tempfile.TemporaryDirectory() as name:
        corpus = write(Path(name), corpus__corpus_json="{}") / "corpus"
        for path, content in files.items():
            (corpus / path).parent.mkdir(parents=True, exist_ok=True)
            (corpus / path).write_bytes(content)
        for artefact in outputs_of(Path(name)):
            assert artefact.sha256 == sha256_artefact(artefact.path)
