"""The haystack: its texts, where a needle can go, and prompts of exactly the length asked for."""

from __future__ import annotations

import json
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer import encode_text, train_tokenizer
from eval.haystack import LONGEST_SENTENCE, Haystack, draw_haystack, haystack_sha256, read_filler, split_sentences
from eval.haystack_sentences import generated_paragraphs
from eval.tasks.vocabulary import PLACES

PROMPT = "Read this:\n{}\n\nThe secret number of Lima is"
NEEDLES = ["The secret number of Lima is 1234567.", "The secret number of Rome is 7654321."]
CHINESE = ["他走进了房间，看见了一把椅子。", "然后他离开了！你知道为什么吗？", "河水在上涨。路已经封了。"]


@pytest.fixture(scope="module")
def paragraphs():
    return generated_paragraphs(0.1, 3)


@pytest.fixture(scope="module")
def count(paragraphs):
    tokenizer = train_tokenizer(paragraphs[:60], 700)
    return lambda text: len(encode_text(tokenizer, text))


def count_bytes(text):
    return len(text.encode())


# -- texts -----------------------------------------------------------------------------------------------------------


def test_generated_text_is_enough_for_128k_tokens_and_repeats_nothing():
    paragraphs = generated_paragraphs(0.75, 0)  # 128K tokens of 5.7 characters
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.?]) ", paragraph)]
    assert sum(map(len, paragraphs)) >= 750_000
    assert len(sentences) == len(set(sentences)) > 7500
    assert all(sentence[0].isupper() and sentence[-1] in ".?" for sentence in sentences)
    text = " ".join(sentences)
    assert not re.search(r"[0-9{}]|  | ,| an [^aeiou]| a [aeiou]|secret|number", text)
    assert not set(re.findall(r"[A-Z][a-z]+", text)) & set(PLACES)


def test_a_seed_decides_the_text():
    assert generated_paragraphs(0.01, 5) == generated_paragraphs(0.01, 5)
    assert not set(generated_paragraphs(0.01, 5)) & set(generated_paragraphs(0.01, 6))
    assert draw_haystack(None, 0.01, 5) == generated_paragraphs(0.01, 5)
    assert haystack_sha256(["ab", "c"]) != haystack_sha256(["a", "bc"])


def test_filler_leaves_out_other_needles_and_tasks(tmp_path):
    path = tmp_path / "documents.jsonl"
    rows = [
        {"text": "a task", "meta": {"source": "tasks/gcd"}},
        {"text": "a book", "meta": {"source": "stdlib"}},
        {"text": "The secret number of Lima is 1.", "meta": {"source": "needles"}},
        {"text": "a page"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_filler(path, 1.0) == draw_haystack(path, 1.0, 7) == ["a book", "a page"]
    assert read_filler(path, 5e-6) == ["a boo"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("third")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "aa.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "c.png").write_bytes(b"\xff")
    assert read_filler(tmp_path, 1.0) == ["first", "second", "third"]
    assert read_filler(tmp_path, 6e-6) == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "found none"),
        ("a.jsonl", '{"text": "  "}\n', "found none"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "line 2"),
        ("a.jsonl", '{"text": 1}\n', "line 1"),
        ("a.jsonl", "{nonsense\n", "line 1"),
        ("a.txt", " \n", "found none"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("folder/a.csv", "x", "found none"),
        (None, None, "no such file"),
    ],
)
def test_unusable_filler_is_refused(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.txt")
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_filler(path if path.parent == tmp_path else path.parent, 1.0)


# -- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two!  Three?\nFour", ["One. ", "Two!  ", "Three?\n", "Four"]),
        ('She said "No." He left... Then', ['She said "No." ', "He left... ", "Then"]),
        ("Dr. Ames met J. Smith at 3.5 km, i.e. here.", ["Dr. Ames met J. Smith at 3.5 km, i.e. here."]),
        ("etc. and so on. Next", ["etc. and so on. ", "Next"]),
        ("It fell.\nthen rose", ["It fell.\nthen rose"]),
        ("A heading\n\nIts text is hard\nwrapped. End", ["A heading\n\n", "Its text is hard\nwrapped. ", "End"]),
        ("河水在上涨。路封了！走吧", ["河水在上涨。", "路封了！", "走吧"]),
        ("", []),
    ],
)
def test_ends_of_sentences(text, pieces):
    assert split_sentences(text) == pieces


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab A.!?。\n\t\"')")), max_size=1500))
def test_sentences_are_the_text(text):
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert all(pieces) and max(map(len, pieces), default=0) <= LONGEST_SENTENCE


# -- documents -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(120, 3000),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 10_000),
    st.sampled_from(["sentence", "line"]),
)
def test_prompts_have_exactly_the_length_asked_for(paragraphs, count, length, depth, seed, boundary):
    haystack = _haystack(tuple(paragraphs), boundary, count)
    made = haystack.document(length, depth, NEEDLES, Random(seed), lambda text: count(PROMPT.format(text)))
    assert count(PROMPT.format(made.text)) == length
    assert made.text.count(NEEDLES[0]) == (depth is not None) and made.text.count(NEEDLES[1]) == 1
    close = "\n" if boundary == "line" else " "
    for needle in NEEDLES[depth is None :]:
        before, after = made.text.split(needle)
        assert after[:1] in ("", close) and (not before or re.search(r"\s\Z", before))
        if boundary == "sentence":  # between sentences, never inside one
            assert not before or before.rstrip()[-1] in ".?"
    if depth is None:
        assert made.depth is None
    else:
        piece = max(count(piece) for piece in haystack.pieces)
        assert abs(made.depth - depth) <= piece / max(1, length - 150)


HAYSTACKS: dict[tuple[int, str], Haystack] = {}


def _haystack(texts, boundary, count):
    """One for all examples: it remembers the lengths of its pieces."""
    return HAYSTACKS.setdefault((id(count), boundary), Haystack(texts, boundary, count))


@pytest.mark.parametrize("texts", [CHINESE, ["x = {1: [2, 3]}\n\n\ndef f(): return x\n" * 4], ["word " * 400]])
@pytest.mark.parametrize("boundary", ["sentence", "line"])
@pytest.mark.parametrize("bytewise", [False, True])
def test_other_texts_and_tokenizers_come_out_too(count, texts, boundary, bytewise):
    measure = count_bytes if bytewise else count
    haystack = Haystack(texts, boundary, measure)
    for length in range(420, 426):
        made = haystack.document(length, 0.5, NEEDLES, Random(length), lambda text: measure(PROMPT.format(text)))
        assert measure(PROMPT.format(made.text)) == length


def test_extreme_depths_are_the_ends_of_the_text(paragraphs, count):
    haystack = Haystack(paragraphs, "sentence", count)
    first, last = (
        haystack.document(900, depth, NEEDLES[:1], Random(1), lambda text: count(PROMPT.format(text)))
        for depth in (0.0, 1.0)
    )
    assert first.text.startswith(NEEDLES[0]) and first.depth == 0.0
    assert last.text.endswith(NEEDLES[0]) and last.depth == 1.0


def test_a_text_of_its_own_length_says_when_it_repeats(count, caplog):
    haystack = Haystack(generated_paragraphs(0.002, 0), "sentence", count)
    haystack.document(300, 0.5, NEEDLES, Random(0), lambda text: count(PROMPT.format(text)))
    assert not haystack.repeats
    haystack.document(3000, 0.5, NEEDLES, Random(0), lambda text: count(PROMPT.format(text)))
    assert haystack.repeats and "repeats its filler" in caplog.text


@pytest.mark.parametrize(("length", "depth", "message"), [(60, 0.5, "too few"), (900, 1.5, "between 0 and 1")])
def test_impossible_documents_are_refused(paragraphs, length, depth, message):
    haystack = Haystack(paragraphs, "sentence", count_bytes)
    with pytest.raises(ValueError, match=message):
        haystack.document(length, depth, NEEDLES, Random(0), lambda text: count_bytes(PROMPT.format(text)))


def test_a_haystack_needs_text():
    with pytest.raises(ValueError, match="needs text"):
        Haystack([" \n"], "sentence", count_bytes)
