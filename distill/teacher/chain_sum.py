"""Running totals, sums column by column and differences digit by digit; checked by going back."""

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
    """One step of the running total; columns need a sum of numbers that are not negative."""
    return _columns(total, number, rng) if total >= 0 and number >= 0 else _digits_in_turn(total, number, rng)


def _columns(total: int, number: int, rng: Random) -> Line:
    """Add digit to digit from the right, the carry as a third term: nothing but sums of single digits."""
    width = max(len(str(total)), len(str(number)))
    slip_at, slip = rng.randrange(width), rng.choice((-1, 1))
    right, wrong, remark = [], [], ""
    carry = slipped_carry = 0
    digits = slipped_digits = ""
    for index in range(width):
        pair = [int(str(term).zfill(width)[width - 1 - index]) for term in (total, number)]
        right.append(_column(pair, carry, 0))
        error = 0
        if index == slip_at:
            error = slip if sum(pair) + slipped_carry + slip >= 0 else -slip
        wrong.append(_column(pair, slipped_carry, error))
        if error:
            remark = f"{wrong[-1]} is wrong"
        carry, digit = divmod(sum(pair) + carry, 10)
        slipped_carry, slipped = divmod(sum(pair) + slipped_carry + error, 10)
        digits, slipped_digits = f"{digit}{digits}", f"{slipped}{slipped_digits}"
    head = f"{total}+{number}:"
    result = str(int(f"{carry}{digits}"))
    slipped_result = str(int(f"{slipped_carry}{slipped_digits}"))
    line = f"{head}{','.join([*right, result])}."
    return Line(line, f"{head}{','.join([*wrong, slipped_result])}.", remark)


def _column(pair: list[int], carry: int, error: int) -> str:
    terms = [*pair, carry] if carry else pair
    return f"{'+'.join(map(str, terms))}={sum(terms) + error}"


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
