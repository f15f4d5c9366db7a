"""Running totals, tens before ones; checked by going back."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"numbers": [first, signed, ...]}`."""
    total, *rest = metadata["numbers"]
    lines, totals = [], [total]
    for number in rest:
        lines.append(_line(total, number, rng))
        total += number
        totals.append(total)
    back = []
    for number, before, after in zip(reversed(rest), totals[-2::-1], totals[:0:-1], strict=True):
        back.append(f"{after}{_sign(-number)}{abs(number)}={before}")
    # No spaces inside: a number's digits are a token each, and so would be every space before a number.
    check = f"Check: {','.join(back)}. Correct." if back else "Check: one number. Correct."
    solution = write_out(lines, rng, mistake) if lines else f"Only {total}."
    return Trace(solution, check, str(total))


def _line(total: int, number: int, rng: Random) -> Line:
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
