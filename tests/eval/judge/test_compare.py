"""When what was printed or returned is what was expected."""

from __future__ import annotations

import decimal
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.judge.compare import first_difference, same_output, same_value

ORACLE = json.loads((Path(__file__).parents[2] / "oracles/lcb/text.json").read_text())

EQUAL = [
    ("3.0", "3"),
    ("3e0", "3"),
    ("1_0", "10"),
    ("1_000", "1000"),
    ("\u0661\u0662", "12"),  # Arabic digits
    ("\uff11\uff12", "12"),  # full-width digits
    ("nan", "nan"),
    ("inf", "Infinity"),
    ("-0", "0"),
    ("1  2", "1 2"),
    ("1\t2", "1 2"),
    ("1\x0b2", "1 2"),
    ("1\xa02", "1 2"),
    ("1\x852", "1 2"),
    ("\n\n1\n2", "1\n2"),
    ("1\n2\n\n\n", "1\n2"),
    ("1\r\n2", "1\n2"),
    ("1e400", "1e400"),
    ("7" * 6000, "7" * 6000 + ".0"),
    ("", " "),
]
DIFFERENT = [
    ("NaN", "nan"),
    ("0x10", "16"),
    ("1,2", "1 2"),
    ("a  b", "a b"),
    ("1\n\n2", "1\n2"),
    ("YES", "Yes"),
    ("true", "True"),
    ("0.1", "0.10000000000000001"),
    ("1.3333333333333333", "1.3333333333"),
    ("1e-400", "0"),
    ("1.0 a", "1 a"),
    ("sNaN", "sNaN 1"),
]
HOSTILE = [
    "1e999999999",
    "1e-999999999",
    "1e999999999999999999",
    "1e99999999999999999999999",
    "9" * 2_000_000,
    "1e" + "9" * 2_000_000,
    "1 " * 200_000,
    "\n" * 500_000,
    "0." + "0" * 2_000_000 + "1",
    "\ud800 \udfff",
    "1\x00",
    "sNaN",
    "NaN1",
]


@pytest.mark.parametrize(("found", "expected"), EQUAL)
def test_equal_output(found: str, expected: str) -> None:
    assert same_output(found, expected) and same_output(expected, found)
    assert first_difference(found, expected) == ""


@pytest.mark.parametrize(("found", "expected"), DIFFERENT)
def test_different_output(found: str, expected: str) -> None:
    assert not same_output(found, expected) and not same_output(expected, found)
    assert first_difference(found, expected).startswith("line ")


@pytest.mark.parametrize("pair", ORACLE["compare"], ids=lambda pair: repr(pair["pred"]))
def test_recorded_official_comparisons(pair: dict[str, Any]) -> None:
    assert same_output(pair["pred"], pair["gold"]) is pair["equal"]


def official_rule(found: str, expected: str) -> bool:
    """The rule as the benchmark's own judge applies it: whole lists of lines and of decimals."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (found, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    for one, other in zip(*lines, strict=True):
        if one == other:
            continue
        try:
            if [decimal.Decimal(token) for token in one.split()] != [decimal.Decimal(token) for token in other.split()]:
                return False
        except decimal.InvalidOperation:
            return False
    return True


PIECES = st.lists(
    st.sampled_from(["1", "1.0", "10e-1", "a", "nan", "NaN", "-0", "0", "inf", "sNaN", " ", " ", "\n", "\r", "\x1c"])
)


@given(PIECES, PIECES)
def test_agrees_with_the_official_rule(one: list[str], other: list[str]) -> None:
    found, expected = "".join(one), "".join(other)
    assert same_output(found, expected) == official_rule(found, expected)
    assert (first_difference(found, expected) == "") == same_output(found, expected)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:12]!r}x{len(text)}")
def test_hostile_output_is_no_trouble(text: str) -> None:
    for expected in ("1", "1e9999", "1\n2", "1000000000.5 7"):
        assert not same_output(text, expected)
        message = first_difference(text, expected)
        assert message.startswith("line 1") and len(message) < 1000
    assert same_output(text, text)


def test_a_context_of_the_caller_s_changes_nothing() -> None:
    with decimal.localcontext() as context:
        context.prec = 2
        context.traps = dict.fromkeys(context.traps, False)  # type: ignore[assignment]
        assert not same_output("1.234", "1.23") and not same_output("a", "b") and not same_output("sNaN", "sNaN0")
        context.traps = dict.fromkeys(context.traps, True)  # type: ignore[assignment]
        assert same_output("1.2340", "1.234") and not same_output("NaN", "nan") and not same_output("sNaN", "1")


def test_the_first_difference_is_described() -> None:
    assert first_difference("1\n2\n4\n", "1\n2.0\n3\n9") == "line 3: found '4', expected '3'"
    assert first_difference("1", "1\nx") == "line 2 is missing: 'x'"
    assert first_difference("1\ny\nz", "1") == "line 2 is one too many: 'y'"
    assert first_difference("", "1") == "line 1: found '', expected '1'"
    long = first_difference("a" * 500 + "b" + "a" * 500, "a" * 500 + "c")
    assert len(long) < 260 and "b" in long and "'aaaaaaaaaaaaaaaaaaaac'" in long


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True),
        (1, True, True),
        (1.0, 1, True),
        (0.15000000000000002, 0.15, False),
        ("1", 1, False),
        (None, None, True),
        (None, False, False),
        ([1, [2, 3]], [1.0, [True + 1, 3]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([], None, False),
        ([1], 1, False),
        ({"a": [1], "b": None}, {"b": None, "a": [1.0]}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ({}, [], False),
        (10**400, 1e308, False),
        (math.inf, 10**400, False),
        (math.nan, 1, False),
    ],
)
def test_values(found: Any, expected: Any, same: bool) -> None:
    assert same_value(found, expected) is same and same_value(expected, found) is same


def test_nan_differs_from_itself_at_every_depth() -> None:
    assert not same_value(math.nan, math.nan)
    assert not same_value([math.nan], [math.nan])  # where Python, told the same object twice, says they are equal
    assert not same_value(json.loads("[[NaN]]"), json.loads("[[NaN]]"))


def test_values_of_any_depth() -> None:
    def nested(depth: int, inmost: int) -> list[Any]:
        value: list[Any] = [inmost]
        for _ in range(depth):
            value = [value]
        return value

    assert same_value(nested(100_000, 1), nested(100_000, 1))
    assert not same_value(nested(100_000, 1), nested(100_000, 2))
    assert not same_value(nested(100_000, 1), nested(99_999, 1))


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, 0.5, "", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_values_compare_as_python_does(found: Any, expected: Any) -> None:
    assert same_value(found, expected) == (found == expected)
    assert same_value(found, json.loads(json.dumps(found)))
