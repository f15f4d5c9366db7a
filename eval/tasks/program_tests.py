"""Tests for composed programs: two short public ones and eight private ones with edge cases.

Never an empty line of input, and the list never runs empty on the way where what is printed would not be defined or
would be an empty line. Every step matters on at least one test, so that a program without it does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from eval.tasks.program_steps import Numbers, Step, printed, stages

Sort = Callable[[Random, Sequence[Step]], Numbers]  # draws one input of its sort

PUBLIC_TESTS = 2
LOWEST, HIGHEST = -12, 30
ATTEMPTS = 12  # at one test of one sort before a plain list is taken instead


def _mixed(rng: Random, low: int, high: int) -> Numbers:
    return [rng.randint(LOWEST, HIGHEST) for _ in range(rng.randint(low, high))]


def _equal(rng: Random, steps: Sequence[Step]) -> Numbers:
    return [rng.randint(LOWEST, HIGHEST)] * rng.randint(2, 5)


def _negative(rng: Random, steps: Sequence[Step]) -> Numbers:
    return [rng.randint(LOWEST, -1) for _ in range(rng.randint(3, 6))]


def _repeats(rng: Random, steps: Sequence[Step]) -> Numbers:
    few = _mixed(rng, 2, 4)
    return [rng.choice(few) for _ in range(rng.randint(6, 9))]


def _boundary(rng: Random, steps: Sequence[Step]) -> Numbers:
    """Numbers at and beside every k of the program: where > and >= differ."""
    edges = [step.k + delta for step in steps if step.of.numbers for delta in (-1, 0, 1)]
    numbers = edges + _mixed(rng, 2, 4)
    rng.shuffle(numbers)
    return numbers


PRIVATE_SORTS: tuple[Sort, ...] = (
    lambda rng, _: _mixed(rng, 1, 1),
    _equal,
    _negative,
    lambda rng, _: sorted(_mixed(rng, 4, 7)),
    _repeats,
    _boundary,
    lambda rng, _: _mixed(rng, 5, 8),
    lambda rng, _: _mixed(rng, 9, 12),
)


def draw_tests(rng: Random, steps: Sequence[Step]) -> list[tuple[str, str]] | None:
    """(stdin, stdout) pairs, public ones first; None when the steps leave too little to test."""
    inputs: list[Numbers] = []
    for _ in range(PUBLIC_TESTS):
        numbers = _valid(rng, steps, lambda rng, _: _mixed(rng, 3, 4))
        if numbers is None or numbers in inputs:
            return None
        inputs.append(numbers)
    sums_nothing_to_0 = steps[-1].of.name in ("sum", "count")
    for sort in PRIVATE_SORTS:
        numbers = _valid(rng, steps, sort, sums_nothing_to_0) or _valid(rng, steps, PRIVATE_SORTS[-1])
        if numbers is None:
            return None
        inputs.append(numbers)
    outputs = [stages(steps, numbers)[-1] for numbers in inputs]
    if not _every_step_matters(steps, inputs, outputs) or len({tuple(output) for output in outputs}) < 3:
        return None
    return [(printed(numbers), printed(output)) for numbers, output in zip(inputs, outputs, strict=True)]


def prints(steps: Sequence[Step], given: str, expected: str) -> bool:
    """Whether the program of these steps passes a test drawn for any program."""
    return _same(steps, list(map(int, given.split())), list(map(int, expected.split())))


def _valid(rng: Random, steps: Sequence[Step], sort: Sort, may_run_empty: bool = False) -> Numbers | None:
    for _ in range(ATTEMPTS):
        numbers = sort(rng, steps)
        if may_run_empty or stages(steps[:-1], numbers)[-1:] != [[]]:
            return numbers
    return None


def _every_step_matters(steps: Sequence[Step], inputs: Sequence[Numbers], outputs: Sequence[Numbers]) -> bool:
    for position in range(len(steps) - 1):
        without = [*steps[:position], *steps[position + 1 :]]
        if all(_same(without, numbers, output) for numbers, output in zip(inputs, outputs, strict=True)):
            return False
    return True


def _same(steps: Sequence[Step], numbers: Numbers, output: Numbers) -> bool:
    try:
        return stages(steps, numbers)[-1] == output
    except ValueError:  # the largest of nothing: only the steps that a test was drawn for never ask for it
        return False
