"""Whether what a program printed, or a function returned, is what was expected: LiveCodeBench's rules.

Printed text (its `grade_stdio`): strip the whole of it, split it at "\\n", strip every line; as many lines, and each
equal as text, or both of them numbers throughout and equal as exact decimals: no tolerance. So `3.0` is `3`, `1_0` is
`10`, and `0.1` is not `0.10000000000000001`. Returned values (its `grade_call_based`): Python's `==`.

What is found was written by a program that cannot be trusted: nothing here raises, recurses or takes time out of
proportion for any text or value.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation
from itertools import zip_longest
from typing import Any

SHOWN = 80  # characters of a line that a message shows
_TOKEN = re.compile(r"\S+")
# Of our own: the traps of the caller's context must not decide whether a text is a number.
_CONTEXT = Context(traps=[InvalidOperation])


def same_output(found: str, expected: str) -> bool:
    """Whether a program printed what was expected."""
    found, expected = found.strip(), expected.strip()
    if found.count("\n") != expected.count("\n"):
        return False
    return all(map(_same_line, found.split("\n"), expected.split("\n")))


def first_difference(found: str, expected: str) -> str:
    """Where `same_output` finds the first difference, in one line; empty where there is none."""
    lines = zip_longest(found.strip().split("\n"), expected.strip().split("\n"))
    for number, (found_line, expected_line) in enumerate(lines, 1):
        if expected_line is None:
            return f"line {number} is one too many: {_shown(found_line.strip())}"
        if found_line is None:
            return f"line {number} is missing: {_shown(expected_line.strip())}"
        if not _same_line(found_line, expected_line):
            found_line, expected_line = found_line.strip(), expected_line.strip()
            start = _show_from(found_line, expected_line)
            return f"line {number}: found {_shown(found_line, start)}, expected {_shown(expected_line, start)}"
    return ""


def same_value(found: Any, expected: Any) -> bool:
    """Whether a function returned what was expected: Python's `==` on JSON values (`1 == True`, `1.0 == 1`).

    Values are compared one by one, so nesting of any depth is no error, and NaN differs from everything (in a list
    Python takes an object to equal itself, and reading JSON twice gives the same NaN).
    """
    pairs = [(found, expected)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((value, right[key]) for key, value in left.items())
        elif left != right:  # at most one of them is a container of values: this does not recurse
            return False
    return True


def _same_line(found: str, expected: str) -> bool:
    found, expected = found.strip(), expected.strip()
    return found == expected or _same_numbers(found, expected)


def _same_numbers(found: str, expected: str) -> bool:
    """Whether both lines are numbers throughout, as many, and equal. Token by token: a line of a million numbers
    makes no million objects."""
    for one, other in zip_longest(_TOKEN.finditer(found), _TOKEN.finditer(expected)):
        if one is None or other is None:
            return False
        left, right = _number(other.group()), _number(one.group())
        if left is None or right is None or left != right:
            return False
    return True


def _number(token: str) -> Decimal | None:
    """The exact decimal; None where it is none, or a signalling NaN, which does not stand comparison."""
    try:
        number = Decimal(token, _CONTEXT)
    except (InvalidOperation, ValueError, MemoryError):
        return None
    return None if number.is_snan() else number


def _show_from(found: str, expected: str) -> int:
    """The place from which both lines are shown: their start, or shortly before a difference that lies far on."""
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0)
    return 0 if at < SHOWN // 2 else at - SHOWN // 4


def _shown(line: str, start: int = 0) -> str:
    part = line[start : start + SHOWN]
    before, after = "..." if start else "", "..." if start + SHOWN < len(line) else ""
    return f"{before}{part!r}{after}"
