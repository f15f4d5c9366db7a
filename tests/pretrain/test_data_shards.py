"""Token shards: what is written is read back, and no damaged file is read at all."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from pretrain.data.shards import MANIFEST, ShardWriter, TokenShards

DOCUMENTS = [[0, 5, 6, 7, 1], [0, 1], [0, *range(10, 300), 1], [0, 9, 1]]


def write(folder: Path, documents=DOCUMENTS, vocabulary_size: int = 2048, shard_tokens: int = 50) -> TokenShards:
    with ShardWriter(folder, vocabulary_size, shard_tokens) as writer:
        for ids in documents:
            writer.add(ids, 3 * len(ids))
    return TokenShards(folder)


@given(
    documents=st.lists(st.lists(st.integers(0, 2047), min_size=1, max_size=40), max_size=20),
    shard_tokens=st.integers(1, 60),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_stream_documents_and_starts_are_what_was_written(tmp_path_factory, documents, shard_tokens, data):
    shards = write(tmp_path_factory.mktemp("shards"), documents, 2048, shard_tokens)
    stream = [token for ids in documents for token in ids]
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    assert (shards.tokens, shards.documents, shards.text_bytes) == (len(stream), len(documents), 3 * len(stream))
    assert [shards.document(index).tolist() for index in range(len(documents))] == documents
    low = data.draw(st.integers(0, len(stream)))
    high = data.draw(st.integers(low, len(stream)))
    assert shards.read(low, high).tolist() == stream[low:high]
    assert shards.document_starts(low, high).tolist() == [start for start in starts if low <= start < high]


def test_width_follows_the_vocabulary(tmp_path: Path):
    narrow = write(tmp_path / "narrow", [[65_535]], 65_536)
    wide = write(tmp_path / "wide", [[128_000]], 129_280)
    assert (narrow.manifest.dtype, wide.manifest.dtype) == ("uint16", "uint32")
    assert (narrow.read(0, 1).tolist(), wide.read(0, 1).tolist()) == ([65_535], [128_000])
    assert (tmp_path / "wide/shard_00000.bin").read_bytes() == b"\x00\xf4\x01\x00"  # little-endian on any machine


@pytest.mark.parametrize("ids", [[], [-1], [2048], [0, 70_000]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, ids):
    with ShardWriter(tmp_path, 2048) as writer, pytest.raises(ValueError, match=r"\[0, 2048\)"):
        writer.add(ids, 1)


def test_reading_outside_the_stream_is_an_error(tmp_path: Path):
    shards = write(tmp_path)
    for start, stop in ((-1, 3), (3, 2), (0, shards.tokens + 1)):
        with pytest.raises(IndexError):
            shards.read(start, stop)
    with pytest.raises(IndexError):
        shards.document(shards.documents)


def test_nothing_written_is_an_empty_corpus(tmp_path: Path):
    shards = write(tmp_path, [])
    assert (shards.tokens, shards.documents, shards.read(0, 0).tolist()) == (0, 0, [])
    with pytest.raises(InputError, match="at least one byte"):
        shards.bits_per_byte(1.0)


def test_bits_per_byte(tmp_path: Path):
    # 1 nat a token is log2(e) bits a token; three bytes a token.
    assert write(tmp_path).bits_per_byte(1.0) == pytest.approx(1 / math.log(2) / 3)


def test_another_process_reads_the_same(tmp_path: Path):
    shards = write(tmp_path)
    shards.read(0, shards.tokens)
    copy = pickle.loads(pickle.dumps(shards))  # noqa: S301
    assert copy.read(3, 200).tolist() == shards.read(3, 200).tolist()
    assert len(pickle.dumps(shards)) < 5000


def test_an_interrupted_writer_leaves_no_manifest(tmp_path: Path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 2048) as writer:
        writer.add([1, 2], 2)
        raise RuntimeError
    with pytest.raises(InputError, match=r"manifest\.json: expected the manifest.*no such file"):
        TokenShards(tmp_path)


@pytest.mark.parametrize("name", ["shard_00000.bin", "shard_00000.idx", "shard_00001.bin"])
def test_truncated_altered_and_missing_files_are_named(tmp_path: Path, name: str):
    write(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{name}: expected {len(whole)} bytes; found {len(whole) - 1} bytes"):
        TokenShards(tmp_path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=rf"{name}: expected {len(whole)} bytes"):
        TokenShards(tmp_path)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(InputError, match=rf"{name}: expected sha256 [0-9a-f]{{64}}; found sha256"):
        TokenShards(tmp_path)
    TokenShards(tmp_path, verify=False)  # sizes are still checked, content is not
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}.*no such file"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest.update(format="other"), "manifest.json: format: expected a manifest"),
        (lambda manifest: manifest.update(dtype="float32"), "manifest.json: dtype"),
        (lambda manifest: manifest.update(tokens=1), "sums over the shards"),
        (lambda manifest: manifest.pop("shards"), "manifest.json: shards"),
        (lambda manifest: manifest["shards"][0]["data"].update(name="../../outside"), "outside"),
        (lambda manifest: manifest["shards"][0]["data"].update(size=1), "expected an entry of"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, change, reason):
    write(tmp_path)
    path = tmp_path / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=reason):
        TokenShards(tmp_path)


def test_a_half_written_manifest_is_named(tmp_path: Path):
    write(tmp_path)
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"manifest\.json: expected a manifest of token shards"):
        TokenShards(tmp_path)
