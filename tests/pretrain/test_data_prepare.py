"""The whole corpus: complete, repeatable, finished or absent, and refused when a file of it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from core_model.errors import InputError
from core_model.tokenizer import SPECIAL_TOKENS, decode_tokens, token_byte_lengths
from pretrain.data import prepare
from pretrain.data.config import CorpusConfig, LongText
from pretrain.data.dedup import content_digest, is_validation
from pretrain.data.packing import PackedDataset, RowDataset
from pretrain.data.prepare import open_corpus, prepare_corpus

FIM_BEGIN_ID = SPECIAL_TOKENS.index("<｜fim▁begin｜>")

CONFIG = CorpusConfig(
    stdlib_mb=0.15,
    docstrings_mb=0.05,
    docstring_packages=("networkx",),
    tasks_mb=0.04,
    task_families=("chain_sum", "gcd"),
    needles_mb=0.01,
    validation_share=0.1,
    vocabulary_size=400,
    tokenizer_mb=0.1,
    fim_rate=0.3,
    shard_tokens=20_000,
    long_packages=("networkx",),
    long=(LongText(length=256, rows=6, validation_rows=2, needles_per_row=2),),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "corpus"
    prepare_corpus(CONFIG, folder)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for name, data in contents(built).items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "corpus"


def test_every_document_is_in_the_split_its_hash_says(built: Path):
    corpus = open_corpus(built)
    rows = [json.loads(line) for line in (built / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = {row["text"] for row in rows if is_validation(content_digest(row["text"]), 0.1)}
    validation = [corpus.validation.document(index) for index in range(corpus.validation.documents)]
    assert {decode_tokens(corpus.tokenizer, ids[1:-1].tolist()) for ids in validation} == held_out
    assert len(held_out) == corpus.validation.documents > 0
    assert corpus.train.documents == len(rows) - len(held_out)
    in_fim = [index for index in range(corpus.train.documents) if FIM_BEGIN_ID in corpus.train.document(index)]
    assert 0.2 < len(in_fim) / corpus.train.documents < 0.4
    for index in range(corpus.train.documents):
        ids = corpus.train.document(index)
        assert (ids[0], ids[-1]) == (0, 1)


def test_summary_adds_up(built: Path):
    corpus = open_corpus(built)
    summary, sources = corpus.summary, corpus.summary["sources"]
    assert set(sources) == {"stdlib", "docstrings/networkx", "tasks/chain_sum", "tasks/gcd", "needles"}
    for key in ("documents", "bytes", "tokens"):
        assert summary[key] == sum(source[key] for source in sources.values()) > 0
    assert sources["docstrings/networkx"]["licences"] == {"BSD-3-Clause": sources["docstrings/networkx"]["documents"]}
    assert summary["tokens"] == corpus.train.tokens + corpus.validation.tokens
    assert summary["bytes"] == corpus.train.text_bytes + corpus.validation.text_bytes
    assert summary["bytes_per_token"] == round(summary["bytes"] / summary["tokens"], 4)
    assert summary["vocabulary_size"] == len(corpus.tokenizer) == 400
    assert len(corpus.train.manifest.shards) > 1


def test_bytes_can_be_counted_token_by_token(built: Path):
    corpus = open_corpus(built)
    lengths = token_byte_lengths(corpus.tokenizer)
    for shards in (corpus.train, corpus.validation, corpus.long(256, "train")):
        assert lengths[shards.read(0, shards.tokens)].sum() == shards.text_bytes


def test_long_rows(built: Path):
    corpus = open_corpus(built)
    training = RowDataset(corpus.long(256, "train"), 256)
    validation = RowDataset(corpus.long(256, "validation"), 256)
    assert (len(training), len(validation)) == (6, 2)
    texts = [decode_tokens(corpus.tokenizer, training[index].tolist()) for index in range(6)]
    assert sum("# file: " in text for text in texts[:3]) == 3
    assert all("The secret number of" in text for text in texts[3:])
    with pytest.raises(InputError, match="long_512"):
        corpus.long(512, "train")


def test_samples_can_be_drawn(built: Path):
    corpus = open_corpus(built)
    dataset = PackedDataset(corpus.train, 64)
    assert dataset.sample(5, seed=1).shape == (65,)
    assert 1 < corpus.validation.bits_per_byte(3.0) < 8


def test_built_twice_it_is_the_same_byte_for_byte(built: Path, tmp_path: Path):
    summary = prepare_corpus(CONFIG, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(built)
    assert summary == open_corpus(built).summary


def test_a_finished_corpus_is_not_touched(folder: Path):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    summary = prepare_corpus(CONFIG, folder)
    assert summary == open_corpus(folder).summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_another_configuration_is_refused_by_its_key(folder: Path):
    before = contents(folder)
    other = CONFIG.model_copy(update={"fim_rate": 0.2})
    with pytest.raises(InputError, match=r"corpus\.json: config\.fim_rate: .*\(0\.2\); found another one \(0\.3\)"):
        prepare_corpus(other, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("stage", ["train_tokenizer", "_write_shards", "_write_long", "_summary"])
def test_interrupted_anywhere_it_is_absent_and_then_redone(built: Path, tmp_path: Path, monkeypatch, stage: str):
    def interrupt(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(CONFIG, folder)
    assert not folder.exists()
    left_over = tmp_path / "corpus.partial"
    assert left_over.is_dir()
    (left_over / "documents.jsonl").write_text("half a li")
    if stage == "_summary":  # one full repetition is enough
        prepare_corpus(CONFIG, folder)
        assert contents(folder) == contents(built)
        assert not left_over.exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"corpus\.json: expected a finished corpus; found no such file"):
        prepare_corpus(CONFIG, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(InputError):
        prepare_corpus(CONFIG, tmp_path / "thesis.txt")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
        "train/shard_00000.bin",
        "validation/shard_00000.idx",
    ],
)
def test_a_flipped_byte_names_its_file(folder: Path, name: str):
    flip(folder / name)
    with pytest.raises(InputError, match=f"{name}: expected sha256"):
        open_corpus(folder)


def test_a_truncated_shard_and_a_missing_file_are_named(folder: Path):
    path = folder / "train/shard_00001.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train/shard_00001\.bin: expected \d+ bytes; found 100 bytes"):
        open_corpus(folder)
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a file of the corpus; found no such file"):
        open_corpus(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}'])
def test_a_damaged_record_is_named(folder: Path, text: str):
    (folder / "corpus.json").write_text(text)
    for use in (open_corpus, lambda place: prepare_corpus(CONFIG, place)):
        with pytest.raises(InputError, match=r"corpus\.json"):
            use(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"long": (LongText(length=256, rows=100_000, needle_share=0.0),)},
            r"at most \d+ rows of 256 tokens.*found 100000",
        ),
        ({"stdlib_mb": 0.0, "docstrings_mb": 0.0}, "needles_mb: expected text .* to hide in"),
        (
            {"stdlib_mb": 0.0, "docstrings_mb": 0.0, "tasks_mb": 0.0, "needles_mb": 0.0},
            "at least one document; found none",
        ),
        ({"docstring_packages": ("no_such_package",)}, "no_such_package: expected an installed package"),
        ({"task_families": ("nonsense",)}, "nonsense"),
    ],
)
def test_what_cannot_be_had_is_said_and_nothing_is_left(tmp_path: Path, changes, reason):
    small = {"stdlib_mb": 0.02, "docstrings_mb": 0.01, "long_packages": (), "long": (), "tasks_mb": 0.005}
    with pytest.raises(InputError, match=reason):
        prepare_corpus(CONFIG.model_copy(update=small | changes), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"fim_rate": 1.5},
        {"vocabulary_size": 100},
        {"validation_share": 1.0},
        {"stdlib_megabytes": 1.0},
        {"long": [{"length": 8, "rows": 1}]},
    ],
)
def test_impossible_configurations_are_refused(bad):
    with pytest.raises(ValidationError):
        CorpusConfig.model_validate(bad)


def test_every_key_is_described():
    for model in (CorpusConfig, LongText):
        assert all(field.description for field in model.model_fields.values())
