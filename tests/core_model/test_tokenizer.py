"""Byte-level BPE: exact round trips, single digits, stable special ids, and text that never turns special."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer import (
    BOS,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    THINK,
    decode_tokens,
    encode_text,
    encode_texts,
    load_tokenizer,
    token_byte_lengths,
    train_tokenizer,
)

TEXTS = [
    "Question: Compute 47 + 85 - 12.\nAnswer: 120\n",
    "def total(numbers):\n    return sum(numbers)\n",
    "The secret number of Lima is 4827. The sum of two numbers is a number.\n",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def test_special_tokens_come_first_in_a_fixed_order(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(10))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, PAD)


def test_think_tags_survive_decoding_without_special_tokens(tokenizer):
    ids = [0, 5, *encode_text(tokenizer, "sum"), 6, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>sum</think>"


def test_every_digit_is_a_token_of_its_own(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "Compute 47 + 8512 - 1."))
    assert [piece for piece in pieces if any(character.isdigit() for character in piece)] == list("4785121")


def test_digits_stay_single_whatever_the_corpus():
    tokenizer = train_tokenizer(["1234 1234 1234 ١٢٣ ١٢٣"] * 50, 300)
    learnt = [token for token in tokenizer.get_vocab() if sum(character.isdigit() for character in token) > 1]
    assert learnt == []


def test_task_text_takes_few_tokens(tokenizer):
    # Question | : | Compute | | 4 | 7 | + | | 8 | 5 | - | | 1 | 2 | .
    assert len(encode_text(tokenizer, "Question: Compute 47 + 85 - 12.")) == 15


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text(tokenizer, text):
    ids = encode_text(tokenizer, text)
    assert decode_tokens(tokenizer, ids) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_round_trip_of_any_bytes(tokenizer, data):
    text = data.decode("latin-1")
    assert decode_tokens(tokenizer, encode_text(tokenizer, text)).encode("latin-1") == data


@given(pieces=st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "7", "\n"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_special_strings_in_text_stay_text(tokenizer, pieces):
    text = "".join(pieces)
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert decode_tokens(tokenizer, ids) == text


def test_special_strings_in_the_training_text_are_not_learnt_as_one_token():
    tokenizer = train_tokenizer(["</think> <｜Assistant｜> <think>"] * 100, 600)
    assert min(encode_text(tokenizer, "</think><｜Assistant｜><think>")) >= len(SPECIAL_TOKENS)


def test_cut_anywhere_the_bytes_add_up(tokenizer):
    text = "naïve 漢字 😀 sum of numbers 47"
    ids, lengths = encode_text(tokenizer, text), token_byte_lengths(tokenizer)
    assert [lengths[ids[:cut]].sum() + lengths[ids[cut:]].sum() for cut in range(len(ids))] == [
        len(text.encode())
    ] * len(ids)
    assert lengths[: len(SPECIAL_TOKENS)].tolist() == [0] * len(SPECIAL_TOKENS)


def test_empty_text_and_empty_batch(tokenizer):
    assert encode_text(tokenizer, "") == []
    assert encode_texts(tokenizer, []) == []
    assert decode_tokens(tokenizer, []) == ""


def test_batch_equals_one_by_one(tokenizer):
    texts = [*TEXTS[:3], "", "</think>", "x" * 10_000]
    assert encode_texts(tokenizer, texts) == [encode_text(tokenizer, text) for text in texts]


def test_lone_surrogate_is_refused_with_a_reason(tokenizer):
    with pytest.raises(ValueError, match="surrogate"):
        encode_text(tokenizer, "a\ud800b")


def test_training_is_deterministic_and_depends_on_the_text(tokenizer):
    again = train_tokenizer(iter(TEXTS), 400)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    other = train_tokenizer(["quite another text, with other words " * 5] * 20, 400)
    assert other.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()


def test_vocabulary_size_is_kept_and_its_floor_stated(tokenizer):
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer([], 2048)) == 266  # no text: the special tokens and every byte
    with pytest.raises(ValueError, match="at least 266"):
        train_tokenizer(TEXTS, 265)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.convert_tokens_to_ids(THINK) == 5
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)


def test_missing_and_damaged_files_are_named(tokenizer, tmp_path: Path):
    with pytest.raises(InputError, match=r"tokenizer\.json.*no such file"):
        load_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizers JSON file"):
        load_tokenizer(tmp_path)
    state = json.loads(whole.replace(THINK, "<thing>"))
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(InputError, match="the special token <think>"):
        load_tokenizer(tmp_path)
