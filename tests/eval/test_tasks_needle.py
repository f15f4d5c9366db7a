"""Needle documents: exact length, the needle where it was asked for, a number that can be found only there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import get_family, problems
from eval.tasks.needle import LONGEST_PIECE, leading_number, needle_document
from recipes.rows import Verdict

FILLER = [f"Line {number} says nothing of interest to anybody." for number in range(40)] + ["word " * 200, ""]


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode()


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 6000), st.floats(0, 1), st.integers(0, 1000), st.integers(0, 2))
def test_document_has_the_exact_length_and_one_answer(length: int, depth: float, seed: int, distractors: int) -> None:
    document = needle_document(length, depth, seed, FILLER, encode, distractors=distractors)
    text = decode(document.token_ids)
    assert len(document.token_ids) == length
    question = text[text.rindex("The secret number of") :]
    assert text.count(question) == 2  # the needle and the question
    assert text.count(document.number) == 1 and f"{question} {document.number}.\n" in text
    assert text.count("The secret number of") == 2 + distractors
    assert text.endswith(f"\n{question}")
    assert decode(document.answer_ids) == f" {document.number}.\n"
    filler = length - len(question) - len(f"{question} {document.number}.\n") - 40 * distractors
    assert abs(document.depth - depth) <= (LONGEST_PIECE + 1) / max(1, filler) + 1e-9


def test_extreme_depths_stand_at_the_ends() -> None:
    first = decode(needle_document(1000, 0.0, 5, FILLER, encode).token_ids)
    assert first.startswith("The secret number of")
    document = needle_document(1000, 1.0, 5, FILLER, encode)
    text = decode(document.token_ids)
    assert text.index("The secret number of") > 900 and document.depth == 1.0


def test_depth_grid_moves_the_needle_and_nothing_else() -> None:
    texts = [decode(needle_document(3000, depth / 4, 11, FILLER, encode).token_ids) for depth in range(5)]
    positions = [text.index("The secret number of") for text in texts]
    assert positions == sorted(positions) and len(set(positions)) == 5
    needle = texts[0][: texts[0].index("\n") + 1]
    assert len({text.replace(needle, "") for text in texts}) == 1


def test_seeds_and_splits_give_other_needles() -> None:
    keys = {
        (d.number, decode(d.token_ids)[-30:]) for d in (needle_document(400, 0.5, s, FILLER, encode) for s in range(60))
    }
    assert len(keys) > 55
    family = get_family("needle")
    for split in ("train", "test"):
        for seed in range(40):
            document = needle_document(300, 0.5, seed, FILLER, encode, split=split)  # type: ignore[arg-type]
            place = decode(document.token_ids).rsplit("number of ", 1)[1].removesuffix(" is")
            assert family.split_of({"pairs": [[place, document.number]], "asked": 0}) == split
    assert needle_document(400, 0.5, 1, FILLER, encode) == needle_document(400, 0.5, 1, FILLER, encode)


@pytest.mark.parametrize(
    ("length", "depth", "filler", "message"),
    [
        (40, 0.5, FILLER, "too few"),
        (400, 1.5, FILLER, "between 0 and 1"),
        (400, 0.5, [], "filler"),
        (400, 0.5, ["", " \n"], "filler"),
    ],
)
def test_impossible_documents_are_refused(length: int, depth: float, filler: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        needle_document(length, depth, 0, filler, encode)


def test_shortest_document_is_needle_and_question() -> None:
    full = needle_document(400, 0.5, 3, FILLER, encode)
    question = decode(full.token_ids).rsplit("\n", 1)[1]
    question = question[question.index("The secret") :]
    shortest = len(question) * 2 + len(f" {full.number}.\n")
    document = needle_document(shortest, 0.5, 3, FILLER, encode)
    assert decode(document.token_ids) == f"{question} {full.number}.\n{question}"


@pytest.mark.parametrize(
    ("text", "number"), [(" 4827.\nThe", "4827"), ("4827", "4827"), (" 48275", "48275"), (" not 4827", ""), ("", "")]
)
def test_leading_number(text: str, number: str) -> None:
    assert leading_number(text) == number


def test_needle_problems() -> None:
    family = get_family("needle")
    for problem in problems("needle", "test", 100):
        number, text = problem.verification_info["answer"], problem.messages[0].content
        assert f"{text.rsplit('. ', 1)[-1]} {number}." in text
        assert family.verify(problem, number) is family.verify(problem, f" {number}. ") is Verdict.CORRECT
        assert family.verify(problem, f"{number} or 1234") is Verdict.WRONG_ANSWER
        assert family.verify(problem, str(int(number) + 1)) is Verdict.WRONG_ANSWER
