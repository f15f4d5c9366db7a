"""Code problems: short stdin/stdout programs composed of filter, map, order and reduce steps.

Compositions are held out, not numbers: all programs of the same steps, in whatever order and with whatever k, lie in
one split, since "keep multiples of 3, negate" and "negate, keep multiples of 3" are one function; so do those that
differ in keeping even or odd ones ("add 3, keep the even ones" is "keep the odd ones, add 3"). What is left are
coincidences of numbers. Each split has its dates, so that a window after the training cut-off holds unseen problems
only, as LiveCodeBench's windows do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any

from eval.judge.case import Case, Limits, Test
from eval.judge.shared import shared_judge
from eval.tasks.family import Family, Item, Judgement, Split, ask
from eval.tasks.program_steps import (
    Step,
    composition,
    draw_steps,
    problem_text,
    program_text,
    steps_from_json,
    steps_to_json,
)
from eval.tasks.program_tests import PUBLIC_TESTS, draw_tests, prints
from recipes.rows import Problem, Verdict, sha256_of

UNSEEN_WINDOW = ("2024-08-01", "2024-12-31")  # the test split and nothing else is dated here
_DATES: dict[Split, tuple[date, date]] = {
    "train": (date(2023, 5, 1), date(2024, 6, 30)),
    "validation": (date(2024, 7, 1), date(2024, 7, 31)),
    "test": (date(2024, 8, 1), date(2024, 12, 31)),
}

SHORT_PROGRAMS = Limits(cpu_seconds=1.0, wall_seconds=15.0, memory_bytes=256 << 20, output_bytes=64 << 10)

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def extract_program(answer: str) -> str:
    """The program in an answer: the last complete fenced block, or the whole answer when there is no fence."""
    if "```" not in answer:
        return answer.strip("\n")
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else ""


@dataclass(frozen=True, kw_only=True)
class Code(Family):
    """Composed programs, judged by running them on every test.

    Args:
        limits: what a program may use on one test.
        show_example: whether the prompt ends with the first public test.
    """

    name = "code"
    domain = "code"
    description = "write a short program that filters, maps, orders and reduces a list"

    limits: Limits = SHORT_PROGRAMS
    show_example: bool = True

    def draw(self, rng: Random, split: Split) -> Item | None:
        steps = draw_steps(rng)
        item: Item = {"steps": steps_to_json(steps)}
        if self.split_of(item) != split:  # before the tests, which cost a hundred times as much
            return None
        # From the steps alone: the same task has the same tests, whatever seed or index drew it.
        tests = draw_tests(Random(int(sha256_of(item)[:16], 16)), steps)
        return None if tests is None else {**item, "tests": tests}

    def canonical(self, item: Item) -> Any:
        return sorted("parity" if name in ("even", "odd") else name for name, _ in item["steps"])

    def right_for(self, answer: str, problems: Sequence[Problem]) -> int:
        """By what the reference program of `answer` prints, not by its text; nothing has to be run for it."""
        own = next(problem for problem in problems if self.reference_answer(problem) == answer)
        steps = _steps(own)
        return sum(all(prints(steps, given, output) for given, output in _tests(problem)) for problem in problems)

    def problem_id(self, item: Item) -> str:
        return super().problem_id({"steps": item["steps"]})

    def build(self, item: Item, split: Split) -> Problem:
        steps = steps_from_json(item["steps"])
        text = problem_text(steps)
        if self.show_example:
            given, expected = item["tests"][0]
            text += f" Example: {given.strip()} gives {expected.strip()}."
        key = self.problem_id(item)
        return Problem(
            id=key,
            source=self.name,
            domain=self.domain,
            messages=ask(text),
            verifier="stdin_stdout",
            verification_info={
                "language": "python",
                "test_cases": [
                    {"input": given, "output": expected, "type": "stdin_stdout"} for given, expected in item["tests"]
                ],
                "public_tests": PUBLIC_TESTS,
                "title": composition(steps),
                "platform": "codeforces",
                "contest_id": key.rsplit("-", 1)[-1][:6],
                "metadata": {"steps": item["steps"]},
            },
            difficulty="easy" if len(steps) <= 2 else "medium" if len(steps) == 3 else "hard",
            date=_day(split, key),
        )

    def reference_answer(self, problem: Problem) -> str:
        return program_text(_steps(problem))

    def judge_many(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        sources = [extract_program(answer) for answer in answers]
        answered = [index for index, source in enumerate(sources) if source.strip()]
        cases = [
            Case(sources[index], tuple(Test(*test) for test in _tests(problems[index])), limits=self.limits)
            for index in answered
        ]
        judgements = [Judgement(Verdict.NO_ANSWER)] * len(answers)
        if cases:
            for index, one in zip(answered, shared_judge().judge_many(cases), strict=True):
                judgements[index] = Judgement(one.verdict, one.detail, one.seconds, str(one.isolation))
        return judgements


def _steps(problem: Problem) -> list[Step]:
    return steps_from_json(problem.verification_info["metadata"]["steps"])


def _tests(problem: Problem) -> tuple[tuple[str, str], ...]:
    """The problem's tests; none (an invalid problem to the judge) where they are not understood."""
    cases = problem.verification_info.get("test_cases")
    if not isinstance(cases, list) or any(case.get("type") != "stdin_stdout" for case in cases):
        return ()
    return tuple((case["input"], case["output"]) for case in cases)


def _day(split: Split, key: str) -> str:
    """A day within the split's dates, by the problem's id."""
    first, last = _DATES[split]
    offset = int(key.rsplit("-", 1)[-1], 16) % ((last - first).days + 1)
    return (first + timedelta(days=offset)).isoformat()
