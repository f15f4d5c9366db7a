"""From a configuration to a folder that training reads: documents, tokenizer, token shards.

    corpus.json          the configuration, the summary, and the checksums of the tokenizer's files; written last
    documents.jsonl      every document that is used, with source, path and licence
    tokenizer/           trained on a sample of the training documents
    train/ validation/   token shards of whole documents
    long_<T>/train, long_<T>/validation      rows of T + 1 tokens for a stage of context extension

The work happens in `<folder>.partial`, which is renamed when all of it is on the disk: a folder is finished or absent.
One process prepares; the others wait for it.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from core_model.errors import InputError
from core_model.manifest import sha256_file, sync
from core_model.tokenizer import encode_texts, load_tokenizer, token_byte_lengths, train_tokenizer
from core_model.tokenizer.prompts import CHAT_PHRASES
from pretrain.data.config import CorpusConfig, LongText
from pretrain.data.corpus import Document, corpus_documents, up_to
from pretrain.data.dedup import Deduplicator, content_digest, hash_fraction, is_validation
from pretrain.data.fim import encode_documents
from pretrain.data.long_documents import ModuleGroup, long_documents, module_groups
from pretrain.data.needles import needle_row, short_needle_documents
from pretrain.data.shards import ShardWriter, TokenShards, write_durably

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS_FILE = "corpus.json"
_BATCH_BYTES = 1_000_000  # text encoded at once: bounds the memory, feeds the threads
_PHRASE_REPEATS = 3000  # of the chat's phrases in the tokenizer's training text: enough for a token a word
_FILLER_BYTES = 1_000_000  # text that needles hide in


@dataclass(frozen=True)
class PreparedCorpus:
    """A finished corpus, opened."""

    folder: Path
    summary: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    train: TokenShards
    validation: TokenShards

    def long(self, length: int, split: str) -> TokenShards:
        """The rows of one extension stage, `split` train or validation.

        Raises:
            InputError: the corpus has none of that length, or they are damaged.
        """
        return TokenShards(self.folder / f"long_{length}" / split)


def prepare_corpus(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    """Build the corpus in `folder`, or do nothing where the same one is finished there; returns its summary.

    The summary holds `documents, bytes, tokens, bytes_per_token, duplicates, short`, `sources` (the same for each,
    with licences), `splits` (tokens, documents, text bytes of every folder of shards) and `vocabulary_size`.

    Raises:
        InputError: `folder` holds something else, or the configuration asks for what is not there.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _finished_summary(config, folder)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # an interrupted attempt: nothing in it is worth trusting
    partial.mkdir(parents=True)
    summary = _build(config, partial)
    partial.replace(folder)
    sync(folder.parent)
    return summary


def open_corpus(folder: Path) -> PreparedCorpus:
    """Open what `prepare_corpus` built.

    Raises:
        InputError: it is not finished, or a file is missing, truncated or altered; the message names the file.
    """
    folder = Path(folder)
    record = _read_record(folder)
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(path, expected="a file of the corpus", found="no such file")
        if (found := sha256_file(path)) != expected:
            raise InputError(path, expected=f"sha256 {expected}", found=f"sha256 {found}")
    return PreparedCorpus(
        folder=folder,
        summary=record["summary"],
        tokenizer=load_tokenizer(folder / "tokenizer"),
        train=TokenShards(folder / "train"),
        validation=TokenShards(folder / "validation"),
    )


def _build(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    sources = _write_documents(config, folder / "documents.jsonl")
    if not any(source["documents"] for source in sources.values()):
        raise InputError(folder, expected="a corpus with at least one document", found="none")
    tokenizer = train_tokenizer(_tokenizer_sample(config, folder, sources), config.vocabulary_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    splits = _write_shards(config, folder, tokenizer, sources)
    groups = module_groups(config.long_packages) if config.long else []
    for stage in config.long:
        splits |= _write_long(config, stage, folder, tokenizer, groups)
    summary = _summary(sources, splits, len(tokenizer))
    files = sorted(path for path in (folder / "tokenizer").iterdir())
    record = {
        "format": "trivium-corpus/1",
        "config": config.model_dump(mode="json"),
        "summary": summary,
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    write_durably(folder / CORPUS_FILE, json.dumps(record, indent=1, ensure_ascii=False).encode())
    return summary


def _write_documents(config: CorpusConfig, path: Path) -> dict[str, dict[str, Any]]:
    """Write the documents that are long enough and new; returns what each source gave."""
    sources: dict[str, dict[str, Any]] = {}
    deduplicator = Deduplicator()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in corpus_documents(config):
            _write_document(document, config, file, deduplicator, sources)
        file.flush()
        filler = _filler(config, path.parent)
        if config.needles_mb and not filler:
            expected = "text of the standard library or of docstrings for needles to hide in"
            raise InputError(path, where="needles_mb", expected=expected, found="none")
        if filler:
            for document in up_to(config.needles_mb, short_needle_documents(filler, config.seed)):
                _write_document(document, config, file, deduplicator, sources)
    return sources


def _write_document(
    document: Document,
    config: CorpusConfig,
    file: TextIO,
    deduplicator: Deduplicator,
    sources: dict[str, dict[str, Any]],
) -> None:
    empty = {"licences": Counter(), "documents": 0, "bytes": 0, "tokens": 0, "duplicates": 0, "short": 0}
    source = sources.setdefault(document.source, empty)
    if len(document.text) < config.minimum_characters:
        source["short"] += 1
    elif not deduplicator.is_new(content_digest(document.text)):
        source["duplicates"] += 1
    else:
        source["licences"][document.licence] += 1
        source["documents"] += 1
        source["bytes"] += len(document.text.encode())
        file.write(document.to_json() + "\n")


def _read_documents(folder: Path) -> Iterator[Document]:
    with (folder / "documents.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document.from_json(line)


def _tokenizer_sample(config: CorpusConfig, folder: Path, sources: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Training documents chosen by their hash, so that every source is there in proportion, and the chat's phrases."""
    yield from ["\n".join(CHAT_PHRASES)] * _PHRASE_REPEATS
    total = sum(source["bytes"] for source in sources.values())
    share = config.tokenizer_mb * 1e6 / max(total, 1)
    for document in _read_documents(folder):
        digest = content_digest(document.text)
        if hash_fraction(digest, "tokenizer") < share and not is_validation(digest, config.validation_share):
            yield document.text


def _write_shards(
    config: CorpusConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, sources: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Encode every document into its split, fill-in-the-middle in training only; counts tokens by source."""
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ShardWriter(folder / name, config.vocabulary_size, config.shard_tokens))
            for name in ("train", "validation")
        }
        for batch in _batches(_read_documents(folder)):
            by_split: dict[str, list[Document]] = {"train": [], "validation": []}
            for document in batch:
                held_out = is_validation(content_digest(document.text), config.validation_share)
                by_split["validation" if held_out else "train"].append(document)
            for name, documents in by_split.items():
                rate = config.fim_rate if name == "train" else 0.0
                texts = [document.text for document in documents]
                encoded = encode_documents(tokenizer, texts, fim_rate=rate, seed=config.seed)
                for document, ids in zip(documents, encoded, strict=True):
                    writers[name].add(ids, len(document.text.encode()))
                    sources[document.source]["tokens"] += len(ids)
    return {name: _totals(folder / name) for name in writers}


def _write_long(
    config: CorpusConfig,
    stage: LongText,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    groups: list[ModuleGroup],
) -> dict[str, Any]:
    """The rows of one extension stage: joined modules and needle documents to train on, joined modules to validate."""
    needles = round(stage.rows * stage.needle_share)
    training = [group for group in groups if not group.is_held_out]
    held_out = [group for group in groups if group.is_held_out]
    rows = {
        "train": itertools.chain(
            _module_rows(tokenizer, stage.length, training, stage.rows - needles),
            _needle_rows(config, stage, folder, tokenizer, needles),
        ),
        "validation": _module_rows(tokenizer, stage.length, held_out, stage.validation_rows),
    }
    byte_lengths = token_byte_lengths(tokenizer)
    totals = {}
    for split, ids_of_rows in rows.items():
        name = f"long_{stage.length}/{split}"
        with ShardWriter(folder / name, config.vocabulary_size, config.shard_tokens) as writer:
            for ids in ids_of_rows:
                writer.add(ids, int(byte_lengths[ids].sum()))
        totals[name] = _totals(folder / name)
    return totals


def _module_rows(
    tokenizer: PreTrainedTokenizerFast, length: int, groups: list[ModuleGroup], count: int
) -> Iterator[list[int]]:
    found = 0
    for _, ids in itertools.islice(long_documents(tokenizer, length + 1, groups), count):
        yield ids
        found += 1
    if found < count:
        expected = f"at most {found} rows of {length} tokens, which is what the packages give"
        raise InputError("long_packages", where=f"long rows of {length}", expected=expected, found=str(count))


def _needle_rows(
    config: CorpusConfig, stage: LongText, folder: Path, tokenizer: PreTrainedTokenizerFast, count: int
) -> Iterator[list[int]]:
    if not count:
        return
    filler = encode_texts(tokenizer, [f"{line}\n" for line in _filler(config, folder)])
    if not filler:
        raise InputError("stdlib_mb", where=f"long rows of {stage.length}", expected="text as filler", found="none")
    for number in range(count):
        draw = random.Random(f"needle rows/{config.seed}/{stage.length}/{number}")
        yield needle_row(tokenizer, stage.length + 1, filler, stage.needles_per_row, draw)


def _filler(config: CorpusConfig, folder: Path) -> list[str]:
    """Lines of training documents for needles to hide in."""
    lines: list[str] = []
    size = 0
    for document in _read_documents(folder):
        if size >= _FILLER_BYTES:
            break
        if document.source.startswith("tasks/") or is_validation(
            content_digest(document.text), config.validation_share
        ):
            continue
        lines += [line for line in document.text.splitlines() if line.strip()]
        size += len(document.text)
    return lines


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _totals(folder: Path) -> dict[str, int]:
    shards = TokenShards(folder, verify=False)
    return {"tokens": shards.tokens, "documents": shards.documents, "text_bytes": shards.text_bytes}


def _summary(sources: dict[str, dict[str, Any]], splits: dict[str, Any], vocabulary_size: int) -> dict[str, Any]:
    def total(key: str) -> int:
        return sum(source[key] for source in sources.values())

    return {
        "documents": total("documents"),
        "bytes": total("bytes"),
        "tokens": total("tokens"),
        "bytes_per_token": round(total("bytes") / max(total("tokens"), 1), 4),
        "duplicates": total("duplicates"),
        "short": total("short"),
        "vocabulary_size": vocabulary_size,
        "sources": {name: {**source, "licences": dict(source["licences"])} for name, source in sources.items()},
        "splits": splits,
    }


def _finished_summary(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    record = _read_record(folder)
    wanted = config.model_dump(mode="json")
    for key in wanted.keys() | record["config"].keys():
        if wanted.get(key) != record["config"].get(key):
            raise InputError(
                folder / CORPUS_FILE,
                where=f"config.{key}",
                expected=f"the corpus that is asked for ({wanted.get(key)!r})",
                found=f"another one ({record['config'].get(key)!r}); remove the folder or choose another",
            )
    return record["summary"]


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / CORPUS_FILE
    if not path.is_file():
        raise InputError(path, expected="a finished corpus", found="no such file")
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not isinstance(record, dict) or record.get("format") != "trivium-corpus/1":
        found = repr(record.get("format")) if isinstance(record, dict) else type(record).__name__
        raise InputError(path, where="format", expected="'trivium-corpus/1'", found=found)
    return record
