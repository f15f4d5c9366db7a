"""Euclid's algorithm, every remainder by a product and a difference; checked by dividing both numbers."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"numbers": [a, b]}`."""
    numbers: list[int] = metadata["numbers"]
    larger, smaller = max(numbers), min(numbers)
    lines = []
    while smaller:
        lines.append(_line(larger, smaller, rng))
        larger, smaller = smaller, larger % smaller
    lines.append(Line(f"The gcd is {larger}."))
    check = ", ".join(f"{number}/{larger} = {number // larger}" for number in numbers)
    return Trace(write_out(lines, rng, mistake), f"Check: {check}. Correct.", str(larger))


def _line(larger: int, smaller: int, rng: Random) -> Line:
    quotient, rest = divmod(larger, smaller)
    product = quotient * smaller
    start = f"{larger}: {quotient}*{smaller} = {product}, {larger} - {product} = "
    slip = rest + rng.choice([delta for delta in (-2, -1, 1, 2) if rest + delta >= 0])
    return Line(f"{start}{rest}.", f"{start}{slip}.", f"{larger} - {product} = {slip} is wrong")
