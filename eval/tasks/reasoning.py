"""Reasoning families: reasoning-gym's tasks and scorers with prompts a nano model can read.

reasoning-gym's own prompts run to hundreds of characters and its generators cannot be told which items to leave out,
so the numbers are drawn here and put into an entry of its format (`question, answer, metadata`), which its scorer
judges. Its scorers have traps, closed before they are asked: the default one pays for merely containing the answer
(hence score >= 0.99), the decimal one takes "1_20" and full-width digits for 120, the sorting one forgives each number
a difference of up to 1. So an answer must first have the exact form of the family's answers.
"""

from __future__ import annotations

import functools
import json
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from eval.tasks.family import Family, Item, Judgement, Split, ask
from eval.tasks.vocabulary import COUNTING_WORDS
from recipes.rows import Problem, Verdict

FULL_SCORE = 0.99
LONGEST_ANSWER = 200  # characters: no family's answer comes near, and a longer one is noise

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
BITS = re.compile(r"[01]+")
NUMBER_LIST = re.compile(r"(0|[1-9][0-9]*)( (0|[1-9][0-9]*))*")


@functools.cache
def gym_scorer(name: str) -> Callable[[str, dict[str, Any]], float]:
    """reasoning-gym's scorer of one data set (the import takes over a second, hence here)."""
    from reasoning_gym.factory import get_score_answer_fn

    return get_score_answer_fn(name)


@dataclass(frozen=True, kw_only=True)
class ReasoningFamily(Family):
    """A family judged by the reasoning-gym scorer of its name.

    `verification_info` is that scorer's entry: `{"answer", "metadata"}`, the answer in reasoning-gym's spelling.
    """

    answer_form: ClassVar[re.Pattern[str]]

    @abstractmethod
    def question(self, item: Item) -> str:
        """The short prompt."""

    @abstractmethod
    def answer(self, item: Item) -> str:
        """The right answer in our spelling."""

    @abstractmethod
    def metadata(self, item: Item) -> dict[str, Any]:
        """reasoning-gym's metadata: what its scorer reads, and what a trace is rendered from."""

    def gym_answer(self, answer: str) -> str:
        """An answer of the right form in reasoning-gym's spelling."""
        return answer

    def build(self, item: Item, split: Split) -> Problem:
        return Problem(
            id=self.problem_id(item),
            source=self.name,
            domain=self.domain,
            messages=ask(self.question(item)),
            verifier=f"reasoning_gym/{self.name}",
            verification_info={"answer": self.gym_answer(self.answer(item)), "metadata": self.metadata(item)},
        )

    def reference_answer(self, problem: Problem) -> str:
        return str(problem.verification_info["answer"])

    def judge_many(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        return [self._judge(problem, answer) for problem, answer in zip(problems, answers, strict=True)]

    def _judge(self, problem: Problem, answer: str) -> Judgement:
        answer = answer.strip()
        if not answer:
            return Judgement(Verdict.NO_ANSWER)
        entry = problem.verification_info
        if not isinstance(entry.get("answer"), str) or not isinstance(entry.get("metadata"), dict):
            return Judgement(Verdict.INVALID_PROBLEM, "verification_info needs answer and metadata")
        if len(answer) > LONGEST_ANSWER or not self.answer_form.fullmatch(answer):
            return Judgement(Verdict.WRONG_ANSWER, "not in the form of an answer")
        spelled = self.gym_answer(answer)
        try:
            score = gym_scorer(self.name)(spelled, {"question": problem.messages[-1].content, **entry})
        except Exception as error:  # some of its scorers raise on answers they cannot parse
            return Judgement(Verdict.WRONG_ANSWER, f"the scorer raised {type(error).__name__}")
        # The second condition closes the sorting scorer's tolerance; our forms leave one spelling per answer.
        correct = score >= FULL_SCORE and spelled == entry["answer"]
        return Judgement(Verdict.CORRECT if correct else Verdict.WRONG_ANSWER)


@dataclass(frozen=True, kw_only=True)
class ChainSum(ReasoningFamily):
    """Sums and differences of a few numbers.

    Args:
        terms: smallest and largest count of numbers.
        digits: digits of each number (1 includes 0).
        subtract: share of the later numbers that are taken away.
    """

    name = "chain_sum"
    domain = "math"
    description = "add (or subtract) a few numbers"
    answer_form = INTEGER

    terms: tuple[int, int] = (3, 3)
    digits: int = 2
    subtract: float = 0.0

    def draw(self, rng: Random, split: Split) -> Item:
        count = rng.randint(*self.terms)
        low, high = (0 if self.digits == 1 else 10 ** (self.digits - 1)), 10**self.digits - 1
        numbers = [rng.randint(low, high) for _ in range(count)]
        return {"numbers": [numbers[0]] + [-n if rng.random() < self.subtract else n for n in numbers[1:]]}

    def canonical(self, item: Item) -> Any:
        return sorted(item["numbers"])

    def question(self, item: Item) -> str:
        return f"Compute {self._expression(item)}."

    def answer(self, item: Item) -> str:
        return str(sum(item["numbers"]))

    def metadata(self, item: Item) -> dict[str, Any]:
        return {
            "num_terms": len(item["numbers"]),
            "num_digits": self.digits,
            "expression": self._expression(item),
            "numbers": item["numbers"],
        }

    def _expression(self, item: Item) -> str:
        first, *rest = item["numbers"]
        return str(first) + "".join(f"{number:+d}" for number in rest)


STEM_BITS = 9


@dataclass(frozen=True, kw_only=True)
class OneNumber(ReasoningFamily):
    """A question about one number; its whole range is divided among the splits, alike in all such families.

    Solutions halve a number until nothing is left, so those of 2n and 2n + 1 contain that of n. Numbers are therefore
    divided by their first 9 bits, and smaller ones are trained on: no training solution passes through a held-out
    number, and what is held out is held out with every number that leads to it.

    Args:
        min_value, max_value: smallest and largest number.
    """

    split_name = "one_number"

    min_value: int = 0
    max_value: int = 2047

    def space(self) -> Sequence[Item]:
        return _all_values(self.min_value, self.max_value)

    def draw(self, rng: Random, split: Split) -> Item:
        return {"value": rng.randint(self.min_value, self.max_value)}

    def canonical(self, item: Item) -> Any:
        return item["value"] >> max(0, item["value"].bit_length() - STEM_BITS)

    def split_of(self, item: Item) -> Split:
        return "train" if item["value"].bit_length() < STEM_BITS else super().split_of(item)


@dataclass(frozen=True, kw_only=True)
class BaseConversion(OneNumber):
    """Decimal to binary."""

    name = "base_conversion"
    domain = "math"
    description = "write a decimal number in binary"
    answer_form = BITS

    def question(self, item: Item) -> str:
        return f"Write {item['value']} in binary."

    def answer(self, item: Item) -> str:
        return format(item["value"], "b")

    def metadata(self, item: Item) -> dict[str, Any]:
        value = item["value"]
        return {
            "decimal_value": value,
            "source_base": 10,
            "target_base": 2,
            "source_repr": str(value),
            "target_repr": format(value, "b"),
        }


@dataclass(frozen=True, kw_only=True)
class CountBits(OneNumber):
    """How many 1 bits a number has."""

    name = "count_bits"
    domain = "math"
    description = "count the 1 bits of a number"
    answer_form = INTEGER

    min_value: int = 1

    def question(self, item: Item) -> str:
        return f"Count the 1 bits of {item['value']}."

    def answer(self, item: Item) -> str:
        return str(item["value"].bit_count())

    def metadata(self, item: Item) -> dict[str, Any]:
        value = item["value"]
        return {"number": value, "solution": value.bit_count(), "binary": format(value, "b"), "n": value}


@dataclass(frozen=True, kw_only=True)
class NumberSorting(ReasoningFamily):
    """Sorting distinct non-negative integers.

    Args:
        count: smallest and largest count of numbers.
        min_value, max_value: smallest and largest number.
    """

    name = "number_sorting"
    domain = "logic"
    description = "sort a few numbers in ascending order"
    answer_form = NUMBER_LIST

    count: tuple[int, int] = (4, 5)
    min_value: int = 10
    max_value: int = 99

    def draw(self, rng: Random, split: Split) -> Item | None:
        numbers = rng.sample(range(self.min_value, self.max_value + 1), rng.randint(*self.count))
        return {"numbers": numbers} if numbers != sorted(numbers) else None

    def canonical(self, item: Item) -> Any:
        return sorted(item["numbers"])

    def question(self, item: Item) -> str:
        return f"Sort ascending: {' '.join(map(str, item['numbers']))}."

    def answer(self, item: Item) -> str:
        return " ".join(map(str, sorted(item["numbers"])))

    def gym_answer(self, answer: str) -> str:
        # A JSON list of strings: single quotes would send reasoning-gym's scorer to eval().
        return json.dumps(answer.split(" "))

    def reference_answer(self, problem: Problem) -> str:
        return " ".join(json.loads(problem.verification_info["answer"]))

    def metadata(self, item: Item) -> dict[str, Any]:
        return {
            "original_numbers": [str(number) for number in item["numbers"]],
            "sorted_numbers": [str(number) for number in sorted(item["numbers"])],
            "direction": "ascending",
            "numbers": len(item["numbers"]),
        }


@dataclass(frozen=True, kw_only=True)
class Gcd(ReasoningFamily):
    """Greatest common divisors with balanced answers: pairs g*a, g*b of coprime a, b, with g drawn first.

    For uniform pairs the answer is 1 in 61 % of cases, and a model that always says 1 looks half educated.

    Args:
        max_answer: g is uniform in 1..max_answer.
        max_value: largest number asked about.
    """

    name = "gcd"
    domain = "math"
    description = "find the greatest common divisor of two numbers"
    answer_form = INTEGER

    max_answer: int = 12
    max_value: int = 144

    def draw(self, rng: Random, split: Split) -> Item:
        divisor = rng.randint(1, self.max_answer)
        while True:
            pair = [rng.randint(1, self.max_value // divisor), rng.randint(1, self.max_value // divisor)]
            if math.gcd(*pair) == 1 and pair[0] != pair[1] and divisor * min(pair) > 1:
                return {"numbers": [divisor * pair[0], divisor * pair[1]]}

    def canonical(self, item: Item) -> Any:
        return sorted(item["numbers"])

    def question(self, item: Item) -> str:
        return "Find the gcd of {} and {}.".format(*item["numbers"])

    def answer(self, item: Item) -> str:
        return str(math.gcd(*item["numbers"]))

    def metadata(self, item: Item) -> dict[str, Any]:
        return {"numbers": item["numbers"], "result": math.gcd(*item["numbers"]), "num_terms": 2}


@dataclass(frozen=True, kw_only=True)
class LetterCounting(ReasoningFamily):
    """Counting a letter in a few words, with balanced answers: the count is drawn first.

    Args:
        letters: smallest and largest count of letters in all words together.
        max_count: the answer is uniform in 0..max_count.
    """

    name = "letter_counting"
    domain = "logic"
    description = "count a letter in a few words"
    answer_form = INTEGER

    letters: tuple[int, int] = (8, 16)
    max_count: int = 5

    def draw(self, rng: Random, split: Split) -> Item:
        count = rng.randint(0, self.max_count)
        while True:
            letter, words = rng.choice("aeilnoprst"), []
            # High counts are rare among random words: those take only words that have the letter.
            pool = COUNTING_WORDS if count < 3 else _words_with(letter)
            length = 0
            while length < self.letters[0]:
                words.append(rng.choice(pool))
                length += len(words[-1])
            while length < self.letters[1] and rng.random() < 0.7:
                words.append(rng.choice(pool))
                length += len(words[-1])
            if length <= self.letters[1] and "".join(words).count(letter) == count:
                return {"letter": letter, "words": words}

    def canonical(self, item: Item) -> Any:
        return [item["letter"], sorted(item["words"])]

    def question(self, item: Item) -> str:
        return f"Count the letter {item['letter']} in: {' '.join(item['words'])}."

    def answer(self, item: Item) -> str:
        return str("".join(item["words"]).count(item["letter"]))

    def metadata(self, item: Item) -> dict[str, Any]:
        return {"span_length": len(item["words"]), "target_letter": item["letter"], "span": item["words"]}


@functools.cache
def _all_values(min_value: int, max_value: int) -> tuple[Item, ...]:
    return tuple({"value": value} for value in range(min_value, max_value + 1))


@functools.cache
def _words_with(letter: str) -> tuple[str, ...]:
    return tuple(word for word in COUNTING_WORDS if letter in word)
