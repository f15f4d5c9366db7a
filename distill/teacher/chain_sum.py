"""Sums column by column, differences digit by digit in a running total; checked by going back."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"numbers": [first, signed, ...]}`."""
    numbers: list[int] = metadata["numbers"]
    total = sum(numbers)
    if len(numbers) == 1:
        return Trace(f"Only {total}.", "Check: one number. Correct.", str(total))
    if min(numbers) < 0:
        return _running_total(numbers, rng, mistake)
    # All numbers at once: every digit that is added stands in the problem, at a place that never moves.
    lines = [*_columns(numbers, rng), Line(f"Sum {total}.")]
    back = ";".join(line.right for line in _columns(numbers[::-1], rng))
    return Trace(write_out(lines, rng, mistake), f"Check: {back};{total}. Correct.", str(total))


def _columns(numbers: list[int], rng: Random) -> list[Line]:
    """A line per decimal place from the right: digit after digit, then the carry; only sums of two small numbers."""
    lines = []
    carry = 0
    for place in range(len(str(max(numbers)))):
        digits = [number // 10**place % 10 for number in numbers]
        terms = [*digits, carry] if carry else digits
        slip_at, slip = rng.randrange(1, len(terms)), rng.choice((-1, 1))
        slip = abs(slip) if sum(terms[: slip_at + 1]) == 0 else slip
        wrong = _partial_sums(terms, slip_at, slip)
        lines.append(Line(",".join(_partial_sums(terms)), ",".join(wrong), f"{wrong[slip_at - 1]} is wrong"))
        carry = sum(terms) // 10
    return lines


def _partial_sums(terms: list[int], slip_at: int | None = None, slip: int = 0) -> list[str]:
    """`8+5=13`, `13+7=20`, ...; the sum with the term at `slip_at` is off by `slip`, what follows goes on from it."""
    shown, total = [], terms[0]
    for index, term in enumerate(terms[1:], 1):
        after = total + term + (slip if index == slip_at else 0)
        shown.append(f"{total}+{term}={after}")
        total = after
    return shown


def _running_total(numbers: list[int], rng: Random, mistake: bool) -> Trace:
    total, *rest = numbers
    lines, totals = [], [total]
    for number in rest:
        lines.append(_digits_in_turn(total, number, rng))
        total += number
        totals.append(total)
    back = [
        f"{after}{_sign(-number)}{abs(number)}={before}"
        for number, before, after in zip(reversed(rest), totals[-2::-1], totals[:0:-1], strict=True)
    ]
    return Trace(write_out(lines, rng, mistake), f"Check: {','.join(back)}. Correct.", str(total))


def _digits_in_turn(total: int, number: int, rng: Random) -> Line:
    """Add the number's digits from the highest place down, each to the running total."""
    parts = _places(number)
    slip_at, slip = rng.randrange(len(parts)), rng.choice((-10, -1, 1, 10))
    head = f"{total}{_sign(number)}{abs(number)}"
    right, wrong, remark = [], [], ""
    value = slipped = total
    for index, part in enumerate(parts):
        step = f"{_sign(number)}{abs(part)}"
        right.append(f"{value}{step}={value + part}")
        after = slipped + part + (slip if index == slip_at else 0)
        wrong.append(f"{slipped}{step}={after}")
        if index == slip_at:
            remark = f"{wrong[-1]} is wrong"
        value, slipped = value + part, after
    if len(parts) == 1:
        return Line(f"{right[0]}.", f"{wrong[0]}.", remark)
    return Line(f"{head}:{','.join(right)}.", f"{head}:{','.join(wrong)}.", remark)


def _places(number: int) -> list[int]:
    """The non-zero places of a number, highest first, with its sign: -47 is -40, -7."""
    digits = str(abs(number))
    parts = [int(digit) * 10 ** (len(digits) - 1 - index) for index, digit in enumerate(digits) if digit != "0"]
    return [part if number > 0 else -part for part in parts] or [0]


def _sign(number: int) -> str:
    return "-" if number < 0 else "+"
