"""The steps that code problems are composed of: what each says, the line of Python it becomes, and what it does.

A composition is a sequence filter? map? order? reduce, with filter and map in either order. Its name, the step names
without their numbers, is what the splits of the code family are made by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Numbers = list[int]
Kind = Literal["filter", "map", "order", "reduce"]

READ_LINE = "a = list(map(int, input().split()))"


@dataclass(frozen=True)
class StepKind:
    """One kind of step; `{k}` in its texts stands for its number.

    Args:
        name: its name in compositions.
        kind: which place in a composition it takes.
        says: the words of the problem text.
        code: the line of the reference program.
        apply: the same on a list (for a reduce step: to what is printed).
        wrong_code: a plausible wrong line, and why it is wrong (for traces with a mended mistake).
        numbers: smallest and largest k; None without one.
    """

    name: str
    kind: Kind
    says: str
    code: str
    apply: Callable[[Numbers, int], Numbers]
    wrong_code: tuple[str, str]
    numbers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Step:
    """A step with its number (0 where it has none)."""

    of: StepKind
    k: int = 0

    @property
    def says(self) -> str:
        return self.of.says.format(k=self.k)

    @property
    def code(self) -> str:
        return self.of.code.format(k=self.k)

    @property
    def wrong_code(self) -> tuple[str, str]:
        line, reason = self.of.wrong_code
        return line.format(k=self.k), reason.format(k=self.k)


def _keep(
    name: str,
    says: str,
    condition: str,
    test: Callable[[int, int], bool],
    wrong: tuple[str, str],
    numbers: tuple[int, int] | None = None,
) -> StepKind:
    line = "a = [x for x in a if {}]"
    wrong_line = (line.format(wrong[0]), wrong[1])
    return StepKind(
        name, "filter", says, line.format(condition), lambda a, k: [x for x in a if test(x, k)], wrong_line, numbers
    )


def _each(
    name: str,
    says: str,
    expression: str,
    value: Callable[[int, int], int],
    wrong: tuple[str, str],
    numbers: tuple[int, int] | None = None,
) -> StepKind:
    line = "a = [{} for x in a]"
    wrong_line = (line.format(wrong[0]), wrong[1])
    return StepKind(
        name, "map", says, line.format(expression), lambda a, k: [value(x, k) for x in a], wrong_line, numbers
    )


FILTERS = (
    _keep("even", "keep the even ones", "x % 2 == 0", lambda x, _: x % 2 == 0, ("x % 2 == 1", "keeps the odd ones")),
    _keep("odd", "keep the odd ones", "x % 2 == 1", lambda x, _: x % 2 == 1, ("x % 2 == 0", "keeps the even ones")),
    _keep(
        "greater", "keep those above {k}", "x > {k}", lambda x, k: x > k, ("x < {k}", "keeps those below {k}"), (0, 9)
    ),
    _keep("less", "keep those below {k}", "x < {k}", lambda x, k: x < k, ("x > {k}", "keeps those above {k}"), (2, 12)),
    _keep(
        "divisible",
        "keep multiples of {k}",
        "x % {k} == 0",
        lambda x, k: x % k == 0,
        ("x % {k} == 1", "keeps remainder 1"),
        (3, 5),
    ),
)

MAPS = (
    _each("add", "add {k} to each", "x + {k}", lambda x, k: x + k, ("x * {k}", "multiplies"), (1, 9)),
    _each("multiply", "multiply each by {k}", "x * {k}", lambda x, k: x * k, ("x + {k}", "adds"), (2, 9)),
    _each("square", "square each", "x * x", lambda x, _: x * x, ("x + x", "doubles")),
    _each("negate", "negate each", "-x", lambda x, _: -x, ("abs(x)", "drops the sign")),
    _each("absolute", "take absolute values", "abs(x)", lambda x, _: abs(x), ("-x", "negates")),
    _each("mod", "take each mod {k}", "x % {k}", lambda x, k: x % k, ("x * {k}", "multiplies"), (2, 9)),
)

ORDERS = (
    StepKind(
        "sort", "order", "sort ascending", "a = sorted(a)", lambda a, _: sorted(a), ("a = a[::-1]", "only reverses")
    ),
    StepKind("reverse", "order", "reverse the order", "a = a[::-1]", lambda a, _: a[::-1], ("a = sorted(a)", "sorts")),
    StepKind(
        "sort_descending",
        "order",
        "sort descending",
        "a = sorted(a, reverse=True)",
        lambda a, _: sorted(a, reverse=True),
        ("a = sorted(a)", "sorts ascending"),
    ),
    StepKind(
        "distinct",
        "order",
        "drop repeats",
        "a = list(dict.fromkeys(a))",
        lambda a, _: list(dict.fromkeys(a)),
        ("a = sorted(a)", "keeps repeats"),
    ),
)

REDUCES = (
    StepKind("sum", "reduce", "print the sum", "print(sum(a))", lambda a, _: [sum(a)], ("print(len(a))", "counts")),
    StepKind(
        "max", "reduce", "print the largest", "print(max(a))", lambda a, _: [max(a)], ("print(a[-1])", "is the last")
    ),
    StepKind(
        "min", "reduce", "print the smallest", "print(min(a))", lambda a, _: [min(a)], ("print(a[0])", "is the first")
    ),
    StepKind("count", "reduce", "print how many", "print(len(a))", lambda a, _: [len(a)], ("print(sum(a))", "sums")),
    StepKind("list", "reduce", "print them", "print(*a)", lambda a, _: a, ("print(a)", "prints brackets")),
    StepKind("first", "reduce", "print the first", "print(a[0])", lambda a, _: a[:1], ("print(a[-1])", "is the last")),
    StepKind("last", "reduce", "print the last", "print(a[-1])", lambda a, _: a[-1:], ("print(a[0])", "is the first")),
)

STEP_KINDS: dict[str, StepKind] = {step.name: step for step in (*FILTERS, *MAPS, *ORDERS, *REDUCES)}

ORDERS_FOR: dict[str, tuple[str, ...]] = {
    # An order step stands only where it can change what is printed, and where no other reduce step says the same
    # ("sort ascending, print the first" is "print the smallest").
    "sum": ("distinct",),
    "count": ("distinct",),
    "max": (),
    "min": (),
    "list": ("sort", "reverse", "sort_descending", "distinct"),
    "first": (),
    "last": ("distinct",),
}


def draw_steps(rng: Random) -> list[Step]:
    """A random composition with random numbers."""
    chosen: list[StepKind] = []
    if rng.random() < 0.85:
        chosen.append(rng.choice(FILTERS))
    if rng.random() < 0.85:
        chosen.append(rng.choice(MAPS))
    if rng.random() < 0.5:
        chosen.reverse()
    reduce = rng.choice(REDUCES)
    orders = ORDERS_FOR[reduce.name]
    if orders and rng.random() < 0.6:
        chosen.append(STEP_KINDS[rng.choice(orders)])
    chosen.append(reduce)
    return [Step(kind, rng.randint(*kind.numbers) if kind.numbers else 0) for kind in chosen]


def composition(steps: Sequence[Step]) -> str:
    """The name of a composition: step names without numbers."""
    return " ".join(step.of.name for step in steps)


def stages(steps: Sequence[Step], numbers: Numbers) -> list[Numbers]:
    """The list after each step, in order; the last entry is what is printed.

    Raises:
        ValueError: `max` or `min` of an empty list.
    """
    values, out = list(numbers), []
    for step in steps:
        values = step.of.apply(values, step.k)
        out.append(values)
    return out


def printed(values: Iterable[int]) -> str:
    return " ".join(map(str, values)) + "\n"


def problem_text(steps: Sequence[Step]) -> str:
    """The problem in words: "Read integers from one line. Keep the even ones, add 3 to each, print the sum." """
    phrases = ", ".join(step.says for step in steps)
    return f"Read integers from one line. {phrases[0].upper()}{phrases[1:]}."


def program_text(steps: Sequence[Step]) -> str:
    """The reference program, one line a step."""
    return "\n".join([READ_LINE, *(step.code for step in steps)])


def steps_to_json(steps: Sequence[Step]) -> list[list[str | int]]:
    return [[step.of.name, step.k] for step in steps]


def steps_from_json(rows: Sequence[Sequence[str | int]]) -> list[Step]:
    """The inverse of `steps_to_json`.

    Raises:
        KeyError: an unknown step name.
    """
    return [Step(STEP_KINDS[str(name)], int(k)) for name, k in rows]
