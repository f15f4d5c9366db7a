"""The maths verifier: is a final answer equal to the gold answer.

Three steps, the cheap and exact ones first. The answer is extracted and normalised; equal strings are equal; two
numbers are compared as fractions, and that decides. Only what is left, expressions, sets, equations, goes to
math-verify (sympy behind a LaTeX grammar), in a child process with limits on CPU time and memory, since a short
answer such as 9^{9^{9^9}} can hang it. The text of an answer is never evaluated in this process.

Where this differs from math-verify, on purpose:

* a decimal is its exact value: 0.333333 is not 1/3, and 3.141593 is not pi (math-verify rounds to 6 places);
* a chain of equations is right when every side is: "6=5" and "x+y=5" are not 5 ("x=5" and "2+3=5" are);
* an ordered tuple is neither a set nor another order: (1,2) is not {1,2} (but "1,2" without brackets is);
* a base is part of a number: 101_2 is not 101_3 (math-verify drops the subscript); without it the gold's is meant;
* words are compared letter by letter, not as products of variables: "even" is not "neve";
* a letter behind a number is a unit only where the gold has no variable: 5m is not 5t where the gold is 5t;
* a percent sign on the gold may be left out or worked out: 50% is 50 and 1/2; one on the answer alone is worked out
  (50% is 1/2), or left out where the gold is 1 or more (50% is 50).

As math-verify has it: [1,2] is not (1,2); {1,2} is {2,1}, with or without braces; 5 is {5}; x>3 as gold takes
(3,oo); degrees are not radians; units behind a number are dropped.
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import Literal

from eval.judge.child import ChildLimits, Children
from eval.judge.expressions import base_number, exact_number, final_answer, normalise
from recipes.rows import Verdict

Unboxed = Literal["whole", "last_number", "no_answer"]
LONGEST = 2_000  # characters of an answer or a gold; nobody's final answer is longer
GOLDS_KEPT = 4096  # of which it is remembered whether math-verify can read them

WORD = re.compile(r"[A-Za-z][A-Za-z' .-]*")
PLAIN_EQUALS = re.compile(r"(?<![\\<>!:=])=(?!=)")
NAME = re.compile(r"\\?[A-Za-z]+(_\{?\w+\}?)?'*(\([^()=]{1,20}\))?")
TUPLE = re.compile(r"\(([^()]*,[^()]*)\)")


@dataclass(frozen=True)
class MathJudgement:
    """The verdict on one answer.

    Args:
        how: what decided: equal (or unlike) strings, numbers, or math-verify.
        detail: what there is to say about a verdict that is not plain.
    """

    verdict: Verdict
    how: Literal["exact", "number", "math-verify"] = "exact"
    detail: str = ""


class MathVerifier:
    """Judges final answers; a context manager, safe to share among threads.

    Args:
        workers: child processes, started when first needed.
        seconds: CPU time for one comparison in a child.
        memory_bytes: what one comparison may take there, beyond the libraries.
        unboxed: what an answer without \\boxed{} counts as: the answer itself, its last number, or no answer.
        hashes: whether the text behind the last "####" is the answer where nothing is boxed (GSM8K).
    """

    def __init__(
        self,
        workers: int = 1,
        seconds: float = 5.0,
        memory_bytes: int = 1 << 30,
        unboxed: Unboxed = "whole",
        hashes: bool = False,
    ) -> None:
        self.workers, self.unboxed, self.hashes = workers, unboxed, hashes
        self.children = Children(workers, ChildLimits("math_verify", seconds, memory_bytes))
        self._golds: OrderedDict[str, MathJudgement | None] = OrderedDict()
        self._lock = Lock()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes."""
        self.children.close()

    def verify_many(self, pairs: Iterable[tuple[str, str]]) -> list[MathJudgement]:
        """The judgements on (gold, answer) pairs, in order."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def verify(self, gold: str, answer: str) -> MathJudgement:
        """The judgement on one answer; never raises for anything an answer contains.

        INVALID_PROBLEM depends on the gold alone: it would favour right answers otherwise.
        """
        gold = final_answer(gold, "whole", hashes=False) or ""
        unfit = self._unfit(gold)
        if unfit is not None:
            return unfit
        given = final_answer(answer, self.unboxed, self.hashes)
        if given is None:
            return MathJudgement(Verdict.NO_ANSWER, detail="no answer in the form asked for")
        if len(given) > LONGEST:
            return MathJudgement(Verdict.WRONG_ANSWER, detail=f"more than {LONGEST} characters")
        decided = _without_child(gold, given)
        return decided if decided is not None else self._by_math_verify(gold, given)

    def _unfit(self, gold: str) -> MathJudgement | None:
        """Why no answer can be judged against this gold; None where one can."""
        if len(gold) > LONGEST:
            return MathJudgement(Verdict.INVALID_PROBLEM, detail=f"the gold answer has more than {LONGEST} characters")
        if not normalise(gold):
            return MathJudgement(Verdict.INVALID_PROBLEM, detail="the gold answer is empty")
        if exact_number(gold) is not None or _is_text(gold) or base_number(gold) is not None:
            return None
        with self._lock:
            if gold in self._golds:
                self._golds.move_to_end(gold)
                return self._golds[gold]
        unfit = self._unread(gold)
        if unfit is None or unfit.verdict is not Verdict.INFRA_ERROR:
            with self._lock:
                self._golds[gold] = unfit
                while len(self._golds) > GOLDS_KEPT:
                    self._golds.popitem(last=False)
        return unfit

    def _unread(self, gold: str) -> MathJudgement | None:
        """As `_unfit`, for a gold that math-verify must read."""
        outcome = self.children.ask({"task": "gold", "gold": _for_sympy(gold), "units": _has_units(gold)})
        if outcome.fault == "lost":
            return MathJudgement(Verdict.INFRA_ERROR, "math-verify", outcome.detail)
        if outcome.fault is None and outcome.reply["parsed"]:
            return None
        detail = "the gold answer cannot be parsed" + (f": {outcome.detail}" if outcome.detail else "")
        return MathJudgement(Verdict.INVALID_PROBLEM, "math-verify", detail)

    def _by_math_verify(self, gold: str, given: str) -> MathJudgement:
        tupled = TUPLE.fullmatch(normalise(gold)) is not None
        if tupled and re.match(r"\\?\{", normalise(given)):
            return MathJudgement(Verdict.WRONG_ANSWER, "math-verify", "a set where an ordered tuple is asked for")
        for side in _sides(given, gold):
            if tupled and not re.match(r"[(\[]", normalise(side)):
                side = f"({side})"
            decided = _without_child(gold, side)
            if decided is not None:
                if decided.verdict is Verdict.CORRECT:
                    continue
                return MathJudgement(Verdict.WRONG_ANSWER, decided.how)
            question = {"gold": _for_sympy(gold), "answer": _for_sympy(side), "units": _has_units(gold)}
            outcome = self.children.ask({"task": "pair", **question})
            if outcome.fault == "lost":
                return MathJudgement(Verdict.INFRA_ERROR, "math-verify", outcome.detail)
            if outcome.fault is not None:
                detail = f"the answer took the comparison down: {outcome.detail}"
                return MathJudgement(Verdict.WRONG_ANSWER, "math-verify", detail)
            if not outcome.reply["equal"]:
                # math-verify takes running out of memory for "unlike" and does not say so.
                detail = "unlike, at the cost of much memory" if outcome.reply["tired"] else ""
                detail = detail if outcome.reply["parsed"] else "the answer cannot be parsed"
                return MathJudgement(Verdict.WRONG_ANSWER, "math-verify", detail)
        return MathJudgement(Verdict.CORRECT, "math-verify")


def _without_child(gold: str, given: str) -> MathJudgement | None:
    """The judgement where strings or numbers decide."""
    plain_gold, plain_given = normalise(gold), normalise(given)
    if _is_text(gold):
        same = _word(plain_gold) == _word(plain_given)
        return MathJudgement(Verdict.CORRECT if same else Verdict.WRONG_ANSWER, "exact")
    if not plain_given:
        return MathJudgement(Verdict.NO_ANSWER, detail="the answer is empty")
    if _without_spaces(plain_gold) == _without_spaces(plain_given):
        return MathJudgement(Verdict.CORRECT, "exact")
    based = base_number(gold)
    if based is not None:
        other = base_number(given)
        same = other == based if other is not None else plain_given == based[0]
        return MathJudgement(Verdict.CORRECT if same else Verdict.WRONG_ANSWER, "number")
    left, right = exact_number(gold), exact_number(given)
    if left is None or right is None:
        return None
    same = _equal_numbers(left, "%" in plain_gold, right, "%" in plain_given)
    return MathJudgement(Verdict.CORRECT if same else Verdict.WRONG_ANSWER, "number")


def _without_spaces(plain: str) -> str:
    """A normalised answer without the spaces that mean nothing; "1 1/2" is not "11/2"."""
    return re.sub(r"(?<!\d) | (?!\d)", "", plain)


def _equal_numbers(gold: Fraction, gold_percent: bool, given: Fraction, given_percent: bool) -> bool:
    """Whether two numbers, without their percent signs, are equal; the head of this file has the rule."""
    if gold_percent == given_percent:
        return gold == given
    if gold_percent:
        return given in (gold, gold / 100)
    return given / 100 == gold or (given == gold and abs(gold) >= 1)


@functools.lru_cache(maxsize=1024)
def _is_text(gold: str) -> bool:
    """Whether a gold is a word or a choice's letter rather than an expression."""
    plain = normalise(gold)
    marked = re.match(r"\s*\$*\s*\\(text|textbf|textit|mathrm|mathbf)\b", gold) is not None
    word = _word(plain)
    if WORD.fullmatch(word) is None:
        return False
    return marked or max(map(len, re.findall("[a-z]+", word)), default=0) >= 4


def _word(plain: str) -> str:
    """A word or a choice's letter for comparison: "(C)" and "c" are one."""
    choice = re.fullmatch(r"\(([A-Za-z])\)", plain)
    return (choice[1] if choice else plain).casefold()


def _sides(given: str, gold: str) -> list[str]:
    """The sides of an answer that is a chain of equations, all of which must equal a gold that is none; a name on the
    left ("x=5") is no side."""
    if PLAIN_EQUALS.search(gold) or "," in given or ";" in given or "&" in given:
        return [given]
    first, *others = PLAIN_EQUALS.split(normalise(given))
    if not others:
        return [given]
    return others if NAME.fullmatch(first.strip()) else [first, *others]


def _has_units(gold: str) -> bool:
    """Whether letters behind a number are units: not where the gold has a letter of its own."""
    bare = re.sub(r"\\(text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", gold)
    return re.search("[A-Za-z]", bare) is None


def _for_sympy(text: str) -> str:
    """An expression as math-verify should see it: numbers exact, one line, no dollar signs that would end it."""
    number = exact_number(text)
    if number is not None and "%" not in normalise(text):
        sign = "-" if number < 0 else ""
        whole = number.denominator == 1
        return f"{sign}{abs(number)}" if whole else rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
    text = re.sub(r"\\dollar|\\\$|\$", "", text)
    text = re.sub(r"\\[()\[\]](?![A-Za-z])", "", text) if text.lstrip().startswith((r"\(", r"\[")) else text
    return " ".join(text.replace("−", "-").rstrip(" .\n").split())
