"""Retrieval: a sentence with a secret number somewhere in a long text, asked for at its end.

Three uses: short generated text in pre-training (`Needle`), long documents in the extension stages and the grid of
lengths and depths (`needle_document`; with needles inside running text, eval/haystack.py). (Place, number) pairs of
training and test are disjoint by hash. The format is a sentence to complete, so that a base model without any tuning
can be asked; a chat model is asked with `needle_request`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from eval.tasks.family import Family, Item, Judgement, Split, ask
from eval.tasks.vocabulary import PLACES
from recipes.rows import Problem, Verdict, sha256_of

Encode = Callable[[str], list[int]]

LONGEST_PIECE = 160  # characters of filler between two places where a needle can go
_ANSWER = re.compile(r"([0-9]{4})\.?")
_LEADING = re.compile(r"\s*([0-9]+)")
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+")  # 1,234,567 is one number


def needle_question(place: str) -> str:
    """The sentence up to its number."""
    return f"The secret number of {place} is"


def leading_number(text: str) -> str:
    """The number a continuation begins with, "" when it begins with none: what the grid scores by exact match."""
    match = _LEADING.match(text)
    return match.group(1) if match else ""


def needle_statement(place: str, number: str) -> str:
    """The sentence that is hidden."""
    return f"{needle_question(place)} {number}."


def needle_request(place: str, text: str) -> str:
    """What a chat model is asked: the text, and after it the question."""
    return (
        "Below is a long text. One sentence in it may state the secret number of a place.\n\n"
        f"{text}\n\n"
        f"What is the secret number of {place} in the text above? Answer with the number alone; if the text does not"
        " state it, answer: not stated."
    )


def stated_numbers(text: str) -> list[str]:
    """The whole numbers in a text, in order, without the commas between thousands."""
    return [match.replace(",", "") for match in _NUMBER.findall(text)]


def answers_needle(answer: str, number: str, others: Sequence[str] = ()) -> bool:
    """Whether a chat model's answer is right: it states the number, and the number of no other needle.

    Digits are compared as whole numbers: 48271 does not state 4827. An answer that lists every needle knows nothing.
    """
    stated = stated_numbers(answer)
    return number in stated and not any(other in stated for other in others)


@dataclass(frozen=True, kw_only=True)
class Needle(Family):
    """A few secret numbers in a row, and the question for one of them.

    Args:
        pairs: smallest and largest count of sentences.
    """

    name = "needle"
    domain = "retrieval"
    description = "recall the secret number of a place from the text"

    pairs: tuple[int, int] = (1, 4)

    def draw(self, rng: Random, split: Split) -> Item:
        pairs = [list(self.draw_pair(rng, place, split)) for place in rng.sample(PLACES, rng.randint(*self.pairs))]
        return {"pairs": pairs, "asked": rng.randrange(len(pairs))}

    def draw_pair(self, rng: Random, place: str, split: Split, digits: int = 4) -> tuple[str, str]:
        """A number of so many digits for `place` such that the pair belongs to `split`."""
        while True:
            number = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
            if self.split_of({"pairs": [[place, number]], "asked": 0}) == split:
                return place, number

    def canonical(self, item: Item) -> Any:
        return item["pairs"][item["asked"]]

    def build(self, item: Item, split: Split) -> Problem:
        sentences = [needle_statement(place, number) for place, number in item["pairs"]]
        place, number = item["pairs"][item["asked"]]
        return Problem(
            id=self.problem_id(item),
            source=self.name,
            domain=self.domain,
            messages=ask(" ".join([*sentences, needle_question(place)])),
            verifier="exact",
            verification_info={"answer": number},
        )

    def reference_answer(self, problem: Problem) -> str:
        return str(problem.verification_info["answer"])

    def judge_many(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        return [self._judge(problem, answer.strip()) for problem, answer in zip(problems, answers, strict=True)]

    def _judge(self, problem: Problem, answer: str) -> Judgement:
        if not answer:
            return Judgement(Verdict.NO_ANSWER)
        match = _ANSWER.fullmatch(answer)
        right = match is not None and match.group(1) == problem.verification_info.get("answer")
        return Judgement(Verdict.CORRECT if right else Verdict.WRONG_ANSWER)


@dataclass(frozen=True)
class NeedleDocument:
    """A text with a needle, tokenised.

    Args:
        token_ids: the document up to and with the question; exactly as long as asked for, no BOS.
        answer_ids: the tokens that complete it in training: the number and a full stop.
        number: the right completion.
        depth: where the needle came to stand, 0 (start) to 1 (just before the question), measured in filler tokens;
            None where there is no needle.
        others: the distractors' numbers.
    """

    token_ids: list[int]
    answer_ids: list[int]
    number: str
    depth: float | None
    others: tuple[str, ...] = ()


def needle_document(
    length: int,
    depth: float | None,
    seed: int,
    filler: Sequence[str],
    encode: Encode,
    *,
    split: Split = "test",
    distractors: int = 0,
    digits: int = 4,
) -> NeedleDocument:
    """A document of exactly `length` tokens with a needle at `depth` of its filler.

    The needle goes to the boundary between two pieces of filler (a line, or a part of a long one) nearest to `depth`.

    Args:
        length: tokens, question included.
        depth: 0 to 1; None hides no needle and asks for it all the same.
        seed: chooses the place, the number, where in the filler the text starts, and the distractors' places.
        filler: texts to fill up with, from a random one on, cyclically.
        encode: text -> tokens, without special tokens.
        split: of the (place, number) pairs.
        distractors: how many needles about other places stand elsewhere in the text.
        digits: of every number.

    Raises:
        ValueError: no filler, a depth outside 0..1, or a length too small for needles and question.
    """
    check_depth(depth)
    rng = Random(int(sha256_of("needle document", seed, split)[:16], 16))
    family = Needle()
    pairs = [family.draw_pair(rng, place, split, digits) for place in rng.sample(PLACES, 1 + distractors)]
    needles = [encode(f"{needle_statement(place, number)}\n") for place, number in pairs]
    question = encode(needle_question(pairs[0][0]))
    hidden = needles if depth is not None else needles[1:]
    room = length - len(question) - sum(map(len, hidden))
    if room < 0:
        raise ValueError(f"{length} tokens are too few for {len(hidden)} needles and the question")

    pieces = _fill(rng, filler, encode, room)
    ends = [0, *accumulate(map(len, pieces))]
    at = nearest(ends, (depth or 0.0) * room)
    placed: dict[int, list[list[int]]] = {at: [needles[0]]} if depth is not None else {}
    for needle in needles[1:]:
        placed.setdefault(rng.randrange(len(ends)), []).append(needle)

    token_ids: list[int] = []
    for index in range(len(ends)):
        token_ids += [token for needle in placed.get(index, ()) for token in needle]
        if index < len(pieces):
            token_ids += pieces[index]
    return NeedleDocument(
        token_ids=token_ids + question,
        answer_ids=encode(f" {pairs[0][1]}.\n"),
        number=pairs[0][1],
        depth=None if depth is None else ends[at] / room if room else 0.0,
        others=tuple(number for _, number in pairs[1:]),
    )


def check_depth(depth: float | None) -> None:
    """Raises ValueError for a depth that is not between 0 and 1."""
    if depth is not None and not 0.0 <= depth <= 1.0:
        raise ValueError(f"a depth is between 0 and 1, not {depth}")


def nearest(ends: Sequence[int], place: float) -> int:
    """The index of the end nearest to a place; of two the first."""
    return min(range(len(ends)), key=lambda index: abs(ends[index] - place))


def _fill(rng: Random, filler: Sequence[str], encode: Encode, room: int) -> list[list[int]]:
    """Tokenised pieces of filler, `room` tokens in all; the last is cut to fit, and still ends its line."""
    if not any(text.strip() for text in filler):
        raise ValueError("a needle document needs filler text")
    newline = encode("\n")
    index, filled, pieces = rng.randrange(len(filler)), 0, []
    while filled < room:
        for text in split_long(filler[index % len(filler)]):
            piece = encode(text + "\n")
            if len(piece) > room - filled:
                piece = [*piece[: max(0, room - filled - len(newline))], *newline][: room - filled]
            if piece:
                pieces.append(piece)
                filled += len(piece)
        index += 1
    return pieces


def split_long(text: str) -> list[str]:
    """The lines of a text, long ones broken at spaces, so that any depth has a boundary near it."""
    pieces: list[str] = []
    for line in text.splitlines():
        while len(line) > LONGEST_PIECE:
            cut = line.rfind(" ", 1, LONGEST_PIECE)
            cut = cut if cut > 0 else LONGEST_PIECE
            pieces.append(line[:cut])
            line = line[cut:].lstrip()
        if line.strip():
            pieces.append(line)
    return pieces
