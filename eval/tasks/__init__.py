"""Problem families with exact verifiers, by name.

`problems("gcd", "test", 200)` gives held-out problems, `judge_answers(problems, answers)` their verdicts.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from core_model.errors import InputError
from eval.tasks.code import Code
from eval.tasks.family import Family, Judgement, Split
from eval.tasks.needle import Needle
from eval.tasks.reasoning import BaseConversion, ChainSum, CountBits, Gcd, LetterCounting, NumberSorting
from recipes.rows import Problem

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (ChainSum, CountBits, BaseConversion, NumberSorting, Gcd, LetterCounting, Code, Needle)
}
REASONING_FAMILIES = ("chain_sum", "count_bits", "base_conversion", "number_sorting", "gcd", "letter_counting")


def family_names() -> list[str]:
    """The names of all families."""
    return list(FAMILIES)


def refuse_unknown_families(names: Iterable[str]) -> None:
    """For recipes, which name families long before any problem is drawn.

    Raises:
        ValueError: a name that is none.
    """
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"no task family {name!r}; there are {', '.join(FAMILIES)}")


def get_family(name: str, **knobs: Any) -> Family:
    """The family of that name; one object for equal knobs, so that its drawn items are kept.

    Raises:
        InputError: no family of that name.
        TypeError: a knob it does not have.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, FAMILIES, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError("task family", expected=f"one of {', '.join(FAMILIES)}", found=f"{name}{hint}")
    return _family(name, tuple(sorted(knobs.items())))


@functools.lru_cache(maxsize=64)
def _family(name: str, knobs: tuple[tuple[str, Any], ...]) -> Family:
    return FAMILIES[name](**dict(knobs))


def problems(family: str | Family, split: Split, count: int, start: int = 0) -> list[Problem]:
    """`count` problems of a split from index `start` on.

    Raises:
        InputError: unknown family, or a held-out split that has not so many distinct problems.
    """
    source = get_family(family) if isinstance(family, str) else family
    return [source.problem(index, split) for index in range(start, start + count)]


def judge_answers(asked: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
    """Judge one answer to each problem, families mixed, in order."""
    if len(asked) != len(answers):
        raise ValueError(f"{len(asked)} problems, but {len(answers)} answers")
    by_family: dict[str, list[int]] = {}
    for index, problem in enumerate(asked):
        by_family.setdefault(problem.source, []).append(index)
    judged: dict[int, Judgement] = {}
    for name, indices in by_family.items():
        results = get_family(name).judge_many([asked[i] for i in indices], [answers[i] for i in indices])
        judged.update(zip(indices, results, strict=True))
    return [judged[index] for index in range(len(asked))]


def best_constant(asked: Sequence[Problem]) -> tuple[str, float]:
    """The reference answer right most often over all problems, and how often: the accuracy of knowing nothing.

    Raises:
        ValueError: no problems, or problems of several families.
    """
    if len({problem.source for problem in asked}) != 1:
        raise ValueError("the best constant answer is asked of the problems of one family")
    family = get_family(asked[0].source)
    answers = dict.fromkeys(family.reference_answer(problem) for problem in asked)
    times = {answer: family.right_for(answer, asked) for answer in answers}
    answer = max(times, key=times.__getitem__)
    return answer, times[answer] / len(asked)
