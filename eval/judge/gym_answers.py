"""Comparisons of an answer with the one right answer of a reasoning-gym entry, and forms that answers must have.

All exact, all linear in the answer's length, none evaluates it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import chain
from typing import Any

from eval.judge.expressions import exact_number

Entry = Mapping[str, Any]
Compare = Callable[[str, str], bool]  # (answer, right answer)
Check = Callable[[str, Entry], bool]

LONGEST_SUM = 300  # characters of an arithmetic expression over a handful of numbers


def lines(answer: str, right: str) -> bool:
    """Equal but for blank lines and the amount of space between words: sentences, words, grids."""
    return _lines(answer) == _lines(right)


def _lines(text: str) -> list[list[str]]:
    return [words for line in text.splitlines() if (words := line.split())]


def letters(answer: str, right: str) -> bool:
    """As `lines`, upper and lower case alike."""
    return lines(answer.casefold(), right.casefold())


def number(answer: str, right: str) -> bool:
    """Equal as exact numbers; digits that only Python reads ("1_20", full-width ones) are none."""
    value = exact_number(answer)
    return value is not None and "%" not in answer and value == exact_number(right)


def number_or_letters(answer: str, right: str) -> bool:
    return number(answer, right) or letters(answer, right)


def rounded(answer: str, right: str) -> bool:
    """Numbers in the same layout, each equal to the right one when rounded to as many decimals as that has."""
    plain, expected = (_lines(re.sub(r"[°(),]", " ", text)) for text in (answer, right))
    if [len(row) for row in plain] != [len(row) for row in expected]:
        return False
    pairs = zip(chain.from_iterable(plain), chain.from_iterable(expected), strict=True)
    return all(_rounds_to(one, other) for one, other in pairs)


def _rounds_to(answer: str, right: str) -> bool:
    value, expected = exact_number(answer), exact_number(right)
    decimals = len(right.partition(".")[2])
    return value is not None and expected is not None and abs(value - expected) <= Fraction(1, 2 * 10**decimals)


def largest_rounded(answer: str, right: str) -> bool:
    """One number, thousands separators allowed, equal when rounded to the right one's decimals."""
    return _rounds_to(answer.replace(",", ""), right)


def three_digits(answer: str, right: str) -> bool:
    """Equal to three significant digits."""
    value, expected = exact_number(answer), exact_number(right)
    if value is None or expected is None:
        return False
    if expected == 0:
        return value == 0
    unit, size = Fraction(1), abs(expected)
    while size >= unit * 1000:
        unit *= 10
    while size < unit * 100:
        unit /= 10
    return abs(value - expected) <= unit / 2


def probability(answer: str, right: str) -> bool:
    """Within 1e-4 and within 1 %: a small probability is not 0."""
    value, expected = exact_number(answer), exact_number(right)
    if value is None or expected is None or "%" in answer:
        return False
    return abs(value - expected) <= min(Fraction(1, 10**4), expected / 100)


def complex_number(answer: str, right: str) -> bool:
    value = _complex(answer)
    return value is not None and value == _complex(right)


def _complex(text: str) -> tuple[Fraction, Fraction] | None:
    plain = "".join(text.split()).lower().replace("j", "i").strip("()")
    decimal = r"(?:\d+\.?\d*|\.\d+)"
    match = re.fullmatch(rf"([+-]?{decimal}(?![\d.i]))?(?:([+-]?)({decimal})?i)?", plain, re.ASCII)
    if match is None or not plain or len(plain) > 60:
        return None
    real, sign, size = match.groups()
    if real and "i" in plain and not sign:
        return None
    imaginary = Fraction(size or 1) if "i" in plain else Fraction(0)
    return Fraction(real or 0), -imaginary if sign == "-" else imaginary


def roots(answer: str, right: str) -> bool:
    """The same real solutions in any order, each within a unit of the fourth decimal; no solutions, no numbers."""
    found, expected = _decimals(answer), _decimals(right)
    if found is None or expected is None or len(found) != len(expected):
        return False
    pairs = zip(sorted(found), sorted(expected), strict=True)
    return all(abs(one - other) <= Fraction(1, 10**4) for one, other in pairs)


def _decimals(text: str) -> list[Fraction] | None:
    numbers = [exact_number(part) for part in text.split(",")] if text else []
    return [one for one in numbers if one is not None] if None not in numbers else None


def fraction(answer: str, right: str) -> bool:
    """The same numerator and denominator: 2/4 is not 1/2 in lowest terms."""
    value = _fraction(answer)
    return value is not None and value == _fraction(right)


def _fraction(text: str) -> tuple[int, int] | None:
    plain = text.strip().strip("$").strip()
    match = re.fullmatch(r"(\d{1,40})\s*/\s*(\d{1,40})", plain, re.ASCII)
    match = match or re.fullmatch(r"\\d?frac\s*\{\s*(\d{1,40})\s*\}\s*\{\s*(\d{1,40})\s*\}", plain, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def factors(answer: str, right: str) -> bool:
    """The same factors in any order."""
    if not re.fullmatch(r"\d{1,20}(\s*[×x*]\s*\d{1,20})*", answer, re.ASCII):
        return False
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(map(int, re.findall(r"\d+", right)))


def duration(answer: str, right: str) -> bool:
    """The same days, hours, minutes, seconds and milliseconds, written with the same parts."""
    value = _duration(answer)
    return value is not None and value == _duration(right)


def _duration(text: str) -> list[int | None] | None:
    match = re.fullmatch(
        r"(?:(\d{1,9}) days?)?(?:, )?(?:(\d{1,4}):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,6}))?)?)?", text, re.ASCII
    )
    return [int(part) if part is not None else None for part in match.groups()] if match and text else None


def hexadecimal(answer: str, right: str) -> bool:
    form = re.compile(r"-?0x[0-9a-f]{1,60}", re.IGNORECASE)
    return form.fullmatch(answer) is not None and int(answer, 16) == int(right, 16)


def listed(answer: str, right: str) -> bool:
    """The same words between commas, in order, nothing behind them."""
    return [word.strip() for word in answer.split(",")] == [word.strip() for word in right.split(",")]


def roles(answer: str, right: str) -> bool:
    """The same roles for the same people ("Zoe is a knight, and Owen is a knave"), in any order."""
    found = _roles(answer)
    return found is not None and found == _roles(right)


def _roles(text: str) -> dict[str, str] | None:
    said: dict[str, str] = {}
    for part in re.split(r"\s*,?\s+and\s+|\s*,\s*", text.strip().rstrip(".").casefold()):
        match = re.fullmatch(r"(\w+) is an? (\w+)", part)
        if match is None or match[1] in said:
            return None
        said[match[1]] = match[2]
    return said


def same_json(answer: str, right: str) -> bool:
    """The same JSON value; as text where the right answer is no JSON."""
    value, expected = parsed_json(answer), parsed_json(right)
    if expected is None:
        return lines(answer, right)
    return value is not None and _canonical(value) == _canonical(expected)


def groups(answer: str, right: str) -> bool:
    """The same groups of words, in any order of groups and words."""
    found, expected = _groups(answer), _groups(right)
    return found is not None and expected is not None and sorted(map(sorted, found)) == sorted(map(sorted, expected))


def partitions(answer: str, right: str) -> bool:
    """The same lists of parts, in any order of lists."""
    found, expected = _groups(answer), _groups(right)
    return found is not None and expected is not None and sorted(found) == sorted(expected)


def _groups(text: str) -> list[list[str]] | None:
    value = parsed_json(text)
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        return None
    return value if all(isinstance(word, str) for group in value for word in group) else None


def number_list(answer: str, right: str) -> bool:
    """The same list of numbers, quoted or not, in order, each exactly equal."""
    found, expected = _number_list(answer), _number_list(right)
    return found is not None and found == expected


def _number_list(text: str) -> list[Fraction] | None:
    value = parsed_json(text.replace("'", '"'))
    if not isinstance(value, list) or not all(isinstance(one, str | int | float) for one in value):
        return None
    numbers = [exact_number(str(one)) for one in value]
    return [one for one in numbers if one is not None] if None not in numbers else None


def parsed_json(text: str) -> Any:
    """The value, or None where the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except RecursionError:
        return ""


def arithmetic(answer: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression in + - * / and brackets, with the numbers it uses; None for anything else."""
    if len(answer) > LONGEST_SUM or not re.fullmatch(r"[0-9+\-*/() ]+", answer):
        return None
    used: list[int] = []
    try:
        return _value(ast.parse(answer.strip(), mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, used)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, used), _value(node.right, used)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError("no plain arithmetic")  # powers, floor division


def reaches(target: Callable[[Entry], int]) -> Check:
    """A check that an expression uses each of the entry's numbers once and has the target's exact value."""

    def check(answer: str, entry: Entry) -> bool:
        read = arithmetic(answer)
        return read is not None and read[0] == target(entry) and sorted(read[1]) == sorted(entry["metadata"]["numbers"])

    return check


def form(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> Check:
    """A check that the whole answer has this form."""
    compiled = re.compile(pattern, flags | re.ASCII)
    return lambda answer, entry: compiled.fullmatch(answer) is not None


FUNCTIONS = {"C", "E", "pi", "sin", "cos", "tan", "exp", "log", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh"}


def expression(*allowed: str) -> Check:
    """A check that an answer is an expression in the entry's variables and the names allowed: `Integral(...)` would
    hand the question back, `expand(...)` would have the scorer do the work, and others could run anything."""

    def check(answer: str, entry: Entry) -> bool:
        if not re.fullmatch(r"[A-Za-z0-9+\-*/(). ]+", answer) or re.search(r"\.\s*[A-Za-z]|\d[A-DF-Za-z]", answer):
            return False
        variable = entry["metadata"].get("variable")
        variables = {variable} if variable else set(re.findall(r"\b[A-Za-z]\b", entry["answer"]))
        return set(re.findall("[A-Za-z]+", answer)) <= variables | set(allowed)

    return check


def json_form(kind: type, item: Callable[[Any], bool]) -> Check:
    """A check that an answer is a JSON list, or object with such values."""

    def check(answer: str, entry: Entry) -> bool:
        value = parsed_json(answer)
        if isinstance(value, kind) and isinstance(value, dict):
            return all(map(item, value.values()))
        return isinstance(value, kind) and isinstance(value, list) and all(map(item, value))

    return check
