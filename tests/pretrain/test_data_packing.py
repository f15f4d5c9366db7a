"""Fill-in-the-middle, packing into samples, and an order that no batch size or process count can change."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer import decode_tokens, encode_text, train_tokenizer
from eval.tasks.needle import Needle
from pretrain.data.fim import encode_documents, split_for_fim
from pretrain.data.needles import needle_row, short_needle_documents
from pretrain.data.packing import PackedDataset, RowDataset, SampleOrder
from pretrain.data.shards import ShardWriter, TokenShards

BOS_ID, EOS_ID, HOLE_ID, BEGIN_ID, END_ID = 0, 1, 7, 8, 9


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The secret number of Lima is 4827.\nsome other words of filler\n"] * 20, 330)


def write(folder: Path, documents: list[list[int]]) -> TokenShards:
    with ShardWriter(folder, 2048, shard_tokens=30) as writer:
        for ids in documents:
            writer.add(ids, len(ids))
    return TokenShards(folder)


# Fill in the middle


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), seed=st.integers(0, 5))
def test_fim_parts_are_the_document_and_repeat(text, seed):
    parts = split_for_fim(text, 1.0, seed)
    assert parts is not None
    prefix, middle, suffix = parts
    assert prefix + middle + suffix == text
    assert split_for_fim(text, 1.0, seed) == parts
    assert split_for_fim(text, 0.0, seed) is None


def test_fim_rate_and_cuts_are_spread():
    texts = [f"document {number} " + "x" * 100 for number in range(4000)]
    split = [parts for text in texts if (parts := split_for_fim(text, 0.1, 0))]
    assert 340 < len(split) < 460
    assert 25 < sum(len(prefix) for prefix, _, _ in split) / len(split) < 55  # a third of about 113 characters
    assert [split_for_fim(text, 0.1, 1) for text in texts] != [split_for_fim(text, 0.1, 0) for text in texts]
    # A higher rate keeps the documents of a lower one, with the same cuts.
    assert all(split_for_fim("".join(parts), 0.5, 0) == parts for parts in split)


def test_fim_order_is_prefix_suffix_middle(tokenizer):
    text = "The secret number of Lima is 4827.\n"
    [ids] = encode_documents(tokenizer, [text], fim_rate=1.0, seed=3)
    prefix, middle, suffix = split_for_fim(text, 1.0, 3)
    encoded = [encode_text(tokenizer, part) for part in (prefix, suffix, middle)]
    assert ids == [BOS_ID, BEGIN_ID, *encoded[0], HOLE_ID, *encoded[1], END_ID, *encoded[2], EOS_ID]


def test_plain_documents_stand_between_bos_and_eos(tokenizer):
    hostile = "a <｜fim▁hole｜> b"
    assert list(encode_documents(tokenizer, [hostile, ""])) == [
        [BOS_ID, *encode_text(tokenizer, hostile), EOS_ID],
        [BOS_ID, EOS_ID],
    ]
    assert HOLE_ID not in next(encode_documents(tokenizer, [hostile]))
    assert list(encode_documents(tokenizer, [])) == []


def test_a_document_does_not_depend_on_its_batch(tokenizer):
    texts = [f"words {number} of filler" for number in range(40)]
    together = list(encode_documents(tokenizer, texts, fim_rate=0.5, seed=1))
    apart = [next(encode_documents(tokenizer, [text], fim_rate=0.5, seed=1)) for text in texts]
    assert together == apart
    assert 5 < sum(BEGIN_ID in ids for ids in together) < 35


# Order


@given(count=st.integers(1, 400), seed=st.integers(0, 2**32), epoch=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_order_is_a_permutation(count, seed, epoch):
    order = SampleOrder(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert len(order) == count
    for position in (-1, count):
        with pytest.raises(IndexError):
            order[position]


def test_order_changes_with_seed_and_epoch_and_looks_random():
    orders = [list(SampleOrder(1000, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sum(index == position for position, index in enumerate(order)) < 10
        # Neighbours in the order are a third of the range apart on average, as for a random permutation.
        gaps = [abs(first - second) for first, second in itertools.pairwise(order)]
        assert 290 < sum(gaps) / len(gaps) < 380
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(orders[first], orders[second], strict=True)) < 10


def test_order_is_pinned():
    # A resumed run may meet another version of this file: changing the order must be a decision.
    assert list(SampleOrder(10, 0, 0)) == [2, 3, 1, 4, 5, 0, 6, 7, 9, 8]


def test_order_of_a_huge_corpus_costs_nothing():
    order = SampleOrder(10**13, 0, 0)
    assert len({order[position] for position in range(1000)}) == 1000
    assert max(order[position] for position in range(1000)) > 10**12


# Packing


def documents_of(lengths: list[int]) -> list[list[int]]:
    return [
        [BOS_ID, *(10 + (number + place) % 1000 for place in range(length)), EOS_ID]
        for number, length in enumerate(lengths)
    ]


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12), sequence_length=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_samples_cover_the_stream_and_every_token_is_a_target_once(tmp_path_factory, lengths, sequence_length):
    documents = documents_of(lengths)
    shards = write(tmp_path_factory.mktemp("packed"), documents)
    stream = [token for ids in documents for token in ids]
    if len(stream) <= sequence_length:
        with pytest.raises(InputError, match=f"expected at least {sequence_length + 1} tokens; found {len(stream)}"):
            PackedDataset(shards, sequence_length)
        return
    dataset = PackedDataset(shards, sequence_length)
    samples = [dataset[index] for index in range(len(dataset))]
    assert all(sample.shape == (sequence_length + 1,) and sample.dtype == torch.int64 for sample in samples)
    targets = [token for sample in samples for token in sample[1:].tolist()]
    assert targets == stream[1 : 1 + len(targets)]
    assert 0 <= len(stream) - 1 - len(targets) < sequence_length
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_document_starts_and_positions(tmp_path: Path):
    shards = write(tmp_path, documents_of([3, 0, 6]))  # 5, 2 and 8 tokens
    dataset = PackedDataset(shards, 7)
    assert dataset[0].tolist()[5:7] == [BOS_ID, EOS_ID]
    assert dataset.document_starts(0).tolist() == [0, 5, 7]
    assert dataset.position_ids(0).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert dataset.document_starts(1).tolist() == [0]
    later = PackedDataset(shards, 3)
    assert later.document_starts(1).tolist() == [2]  # the first document goes on, the second begins at place 2
    assert later.position_ids(1).tolist() == [0, 1, 0]
    assert later.document_starts(3).tolist() == []
    assert later.position_ids(3).tolist() == [0, 1, 2]


def test_counting_samples_is_all_a_resumed_run_needs(tmp_path: Path):
    dataset = PackedDataset(write(tmp_path, documents_of([40] * 5)), 8)
    epoch = len(dataset)
    whole = [dataset.sample(number, seed=7).tolist() for number in range(2 * epoch + 3)]
    assert sorted(map(tuple, whole[:epoch])) == sorted(tuple(dataset[index].tolist()) for index in range(epoch))
    assert whole[:epoch] != whole[epoch : 2 * epoch]
    # Two processes with batches of 3, started again from the middle, meet the same samples.
    for step in range(4, 6):
        batch = [dataset.sample(step * 6 + rank * 3 + place, seed=7).tolist() for rank in (0, 1) for place in (0, 1, 2)]
        assert batch == whole[step * 6 : step * 6 + 6]


def test_rows_are_documents_of_one_length(tmp_path: Path):
    rows = [[BOS_ID, *range(10 * n, 10 * n + 8)] for n in range(1, 6)]
    dataset = RowDataset(write(tmp_path / "rows", rows), 8)
    assert [dataset[index].tolist() for index in range(len(dataset))] == rows
    assert dataset.document_starts(2).tolist() == [0]
    assert dataset.position_ids(2).tolist() == list(range(8))
    for documents in ([*rows, [1, 2]], []):
        with pytest.raises(InputError, match="expected documents of 9 tokens each"):
            RowDataset(write(tmp_path / f"other{len(documents)}", documents), 8)


# Needles


def test_needle_rows_recall_every_needle_they_hide(tokenizer):
    filler = [encode_text(tokenizer, f"some other words {number}\n") for number in range(50)]
    counts = set()
    for number in range(30):
        ids = needle_row(tokenizer, 400, filler, 4, random.Random(number))
        assert len(ids) == 400
        assert (ids[0], ids[-1]) == (BOS_ID, EOS_ID)
        sentences = [line for line in decode_tokens(tokenizer, ids[1:-1]).splitlines() if line.startswith("The secret")]
        needles = len(sentences) // 2
        counts.add(needles)
        assert sorted(sentences[:needles]) == sorted(sentences[needles:])
        family = Needle()
        for sentence in sentences[needles:]:
            place, answer = sentence.removeprefix("The secret number of ").removesuffix(".").split(" is ")
            assert family.split_of({"pairs": [[place, answer]], "asked": 0}) == "train"
    assert counts == {1, 2, 3, 4}


def test_needle_rows_need_room_and_filler(tokenizer):
    with pytest.raises(ValueError, match="room"):
        needle_row(tokenizer, 20, [[10, 11]], 1, random.Random(0))
    for filler in ([], [[], []]):
        with pytest.raises(ValueError, match="filler"):
            needle_row(tokenizer, 200, filler, 1, random.Random(0))


def test_short_needle_documents_fit_a_base_context():
    documents = short_needle_documents(["naïve words, 漢字 and more", "x" * 300], seed=0)
    texts = [next(documents).text for _ in range(50)]
    assert all(190 <= len(text.encode()) <= 700 for text in texts)
    assert all(text.endswith(".\n") for text in texts)
    counts = {text.count("The secret number of") for text in texts}
    assert counts <= set(range(2, 15, 2)) and len(counts) > 3  # each needle and its repetition; more where they fit
    assert len(set(texts)) == 50
