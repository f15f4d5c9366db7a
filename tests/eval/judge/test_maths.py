"""The maths verifier: verdicts stated one by one, and answers that try to hang, fill or crash it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.judge import child
from eval.judge.child import ChildLimits
from eval.judge.expressions import exact_number, final_answer
from eval.judge.maths import MathVerifier
from recipes.rows import Verdict

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG_ANSWER


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(seconds=1.0) as one:
        yield one


CASES = [
    # equal strings once normalised
    ("42", r"$\boxed{42}$.", RIGHT, "exact"),
    ("1234", "1,234", RIGHT, "exact"),
    ("1234", "$1{,}234", RIGHT, "exact"),
    ("073", "73", RIGHT, "exact"),  # AIME
    ("7", "+7.", RIGHT, "exact"),
    ("-3", "−3", RIGHT, "exact"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", RIGHT, "exact"),
    (r"30^\circ", "30°", RIGHT, "exact"),
    (r"\left(1, 2\right)", "(1,2)", RIGHT, "exact"),
    (r"\text{Evelyn}", "evelyn", RIGHT, "exact"),
    (r"\text{(C)}", "C", RIGHT, "exact"),
    (r"\text{(C)}", "D", WRONG, "exact"),
    # words are no products of variables: math-verify finds these equal
    ("even", "neve", WRONG, "exact"),
    # numbers, exactly
    ("1/2", "0.5", RIGHT, "number"),
    ("-1/2", r"\frac{-1}{2}", RIGHT, "number"),
    (r"\frac12", r"\frac{2}{4}", RIGHT, "number"),
    ("1.5", "1½", RIGHT, "number"),
    ("3/2", r"1\frac{1}{2}", RIGHT, "number"),
    ("-3/2", "-1 1/2", RIGHT, "number"),
    ("1 1/2", "11/2", WRONG, "number"),
    ("300000", r"3 \times 10^{5}", RIGHT, "number"),
    ("0.003", "3e-3", RIGHT, "number"),
    ("5", "1e300", WRONG, "number"),
    # math-verify rounds to six places; here a decimal is its exact value
    ("1/3", "0.333333", WRONG, "number"),
    (r"\pi", "3.141593", WRONG, "math-verify"),
    # percent signs
    (r"50\%", "50", RIGHT, "number"),
    (r"50\%", "1/2", RIGHT, "number"),
    (r"50\%", "50 percent", RIGHT, "exact"),
    (r"50\%", r"5000\%", WRONG, "number"),
    ("1/2", r"50\%", RIGHT, "number"),
    ("1/2", r"0.5\%", WRONG, "number"),
    ("50", r"50\%", RIGHT, "number"),
    # bases: math-verify drops the subscript
    ("101_2", "101_{2}", RIGHT, "number"),
    ("101_2", "101", RIGHT, "number"),
    ("101_2", "101_3", WRONG, "number"),
    # expressions
    ("2", r"\sqrt{4}", RIGHT, "math-verify"),
    ("120", "5!", RIGHT, "math-verify"),
    ("x^2+2x+1", "(x+1)^2", RIGHT, "math-verify"),
    ("x^2+2x+1", "(x-1)^2", WRONG, "math-verify"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", RIGHT, "math-verify"),
    ("5", r"5\text{ cm}", RIGHT, "math-verify"),
    ("5", "the answer is 5", WRONG, "math-verify"),
    (r"\frac{\pi}{6}", r"30^\circ", WRONG, "math-verify"),
    # a letter behind a number is a variable where the gold has one: math-verify drops both as units
    ("5t", "5m", WRONG, "math-verify"),
    ("2m", "2", WRONG, "math-verify"),
    # equations: every side must be right (math-verify takes the last one)
    ("5", "x=5", RIGHT, "math-verify"),
    ("5", "2+3=5", RIGHT, "math-verify"),
    ("5", "6=5", WRONG, "number"),
    ("5", "x+y=5", WRONG, "math-verify"),
    ("5", "x=", WRONG, "exact"),
    ("x=5", "5", RIGHT, "math-verify"),
    ("y=2x", "2x", RIGHT, "math-verify"),
    ("y=2x", "x=2y", WRONG, "math-verify"),
    # tuples, sets, intervals: math-verify takes a set for an ordered pair
    ("(1,2)", "1,2", RIGHT, "math-verify"),
    ("(1,2)", "2,1", WRONG, "math-verify"),
    ("(1,2)", "(2,1)", WRONG, "math-verify"),
    ("(2,1)", "(1,2)", WRONG, "math-verify"),
    ("(1,2)", r"\{1,2\}", WRONG, "math-verify"),
    (r"\{1,2\}", "2, 1", RIGHT, "math-verify"),
    ("1,2", "2,1", RIGHT, "math-verify"),
    ("5", "5 or 6", WRONG, "math-verify"),
    ("[1,2]", "(1,2)", WRONG, "math-verify"),
    ("[1,2)", "[1,2)", RIGHT, "exact"),
    ("x>3", r"(3,\infty)", RIGHT, "math-verify"),
    ("x>3", "3<x", RIGHT, "math-verify"),
]


@pytest.mark.parametrize(("gold", "answer", "verdict", "how"), CASES)
def test_stated_verdicts(verifier: MathVerifier, gold: str, answer: str, verdict: Verdict, how: str) -> None:
    judged = verifier.verify(gold, answer)
    assert (judged.verdict, judged.how) == (verdict, how)


@pytest.mark.parametrize(
    ("text", "unboxed", "hashes", "found"),
    [
        (r"so \boxed{\frac{1}{2}} it is", "no_answer", False, r"\frac{1}{2}"),
        (r"\boxed{5}, no: \boxed{6}", "no_answer", False, "6"),
        (r"\boxed{\boxed{5}}", "no_answer", False, "5"),
        (r"\boxed{5} and then \boxed{6", "no_answer", False, "5"),
        (r"\boxed{\{1, 2\}}", "no_answer", False, r"\{1, 2\}"),
        (r"\fbox {7}", "no_answer", False, "7"),
        (r"\boxed{}", "whole", False, None),
        ("3 + 4 = 7\n#### 1,007\n", "no_answer", True, "1,007"),
        ("3 + 4 = 7\n#### 7\n", "no_answer", False, None),
        ("it is 3, or rather -2/3.", "last_number", False, "-2/3"),
        ("nothing", "last_number", False, None),
        ("  x + 1 ", "whole", False, "x + 1"),
        ("", "whole", False, None),
        (r"\boxed{" * 100_000, "no_answer", False, None),
    ],
)
def test_the_final_answer_is_found(text: str, unboxed: str, hashes: bool, found: str | None) -> None:
    assert final_answer(text, unboxed, hashes) == found  # type: ignore[arg-type]


def test_policies_of_the_verifier() -> None:
    with MathVerifier(unboxed="no_answer", hashes=True) as strict, MathVerifier(unboxed="last_number") as lenient:
        assert strict.verify("5", "so it is 5").verdict is Verdict.NO_ANSWER
        assert strict.verify("5", "so it is\n#### 5").verdict is RIGHT
        assert lenient.verify("5", "so it is 5.").verdict is RIGHT
        assert lenient.verify("5", "so it is 6, not 5 or 7").verdict is WRONG
        assert not any(one.process for one in strict.children._all)  # numbers need no child


@pytest.mark.parametrize("gold", ["", " $ $ ", r"\frac{1", "#%&", "x" * 5000])
def test_an_unfit_gold_is_invalid_whatever_the_answer(verifier: MathVerifier, gold: str) -> None:
    for answer in (gold, "1", ""):
        assert verifier.verify(gold, answer).verdict is Verdict.INVALID_PROBLEM


@given(st.integers(-9999, 9999), st.integers(1, 99), st.integers(-9999, 9999))
@settings(max_examples=60, deadline=None)
def test_spellings_of_a_number_are_one_number(above: int, below: int, other: int) -> None:
    value = Fraction(above, below)
    sign = "-" if above < 0 else ""
    size = abs(above)
    spellings = [f"{above}/{below}", rf"{sign}\frac{{{size}}}{{{below}}}", rf"\tfrac{{{above}}}{{{below}}}"]
    if size % below and size > below:
        spellings += [f"{sign}{size // below} {size % below}/{below}"]
        spellings += [rf"{sign}{size // below}\frac{{{size % below}}}{{{below}}}"]
    assert {exact_number(one) for one in spellings} == {value}
    assert exact_number(f"{other / 1000:.3f}") == exact_number(f"{other}e-3") == Fraction(other, 1000)


@pytest.mark.parametrize("text", ["1/0", "1e99999", "1e999999999", "9" * 5000, "1_000", "１２", "0x10", "1.2.3", "--1"])
def test_no_numbers(text: str) -> None:
    assert exact_number(text) is None


@given(st.text(max_size=60) | st.text(alphabet="0123456789xyz+-*/^=(){}[]\\$.,% ", max_size=30))
@settings(max_examples=80, deadline=None)
def test_any_text_gets_a_verdict(text: str) -> None:
    with_gold = _SHARED.verify("7", text)
    assert with_gold.verdict in (RIGHT, WRONG, Verdict.NO_ANSWER)
    assert _SHARED.verify(text, "7").verdict in (RIGHT, WRONG, Verdict.INVALID_PROBLEM)


_SHARED = MathVerifier(seconds=1.0)


@pytest.fixture(scope="module", autouse=True)
def _close_shared() -> Iterator[None]:
    yield
    _SHARED.close()


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 10**6,
        "9**9**9**9",
        "7 " * 500_000,
        "\0" * 10,
        "7\0",
        "\ud800",
        r"\boxed{" + "{" * 10**6,
        "７",
        "1e999999999",
        r"\text{" * 300,
        "__import__('os').system('true')",
    ],
    ids=range(11),
)
def test_hostile_answers_are_wrong(verifier: MathVerifier, answer: str) -> None:
    assert verifier.verify("7", answer).verdict is WRONG
    assert verifier.verify("x+1", "1+x").verdict is RIGHT  # and the next one is judged as ever


def test_an_answer_that_hangs_is_wrong_and_says_so() -> None:
    with MathVerifier(seconds=0.3) as verifier:
        judged = verifier.verify("7", "9^{9^{9^9}}")
        assert judged.verdict is WRONG
        assert "CPU time" in judged.detail
        assert verifier.verify("x+1", "1+x").verdict is RIGHT


def test_memory_of_an_answer_is_bounded() -> None:
    # 2^9999999999 has 1.2 GB; where it is not stopped, it takes them and far longer than a second.
    with MathVerifier(seconds=20.0, memory_bytes=128 << 20) as verifier:
        judged = verifier.verify("7", "2^{9999999999} + 1")
        assert judged.verdict is WRONG
        assert "memory" in judged.detail
        assert verifier.children._all[0].process is None  # the next one gets a fresh child
        assert verifier.verify("x+1", "1+x").verdict is RIGHT


def test_many_pairs_in_order_and_fresh_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "RECYCLE_AFTER", 2)
    pairs = [("x+1", "1+x"), ("x+1", "x"), ("5", "5"), ("5", "6")] * 2
    with MathVerifier(workers=2) as verifier:
        assert [one.verdict for one in verifier.verify_many(pairs)] == [RIGHT, WRONG, RIGHT, WRONG] * 2
        assert all(one._served < 2 for one in verifier.children._all)


def test_a_child_killed_from_outside_costs_nothing() -> None:
    with MathVerifier() as verifier:
        assert verifier.verify("x+1", "1+x").verdict is RIGHT
        process = verifier.children._all[0].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        assert verifier.verify("x+1", "1+x").verdict is RIGHT
        again = verifier.children._all[0].process
        assert again is not None
        assert again.pid != process.pid
    assert again.poll() is not None  # closed


ENDINGS = {
    "os.kill(os.getpid(), 9)": (Verdict.INFRA_ERROR, "signal 9"),
    "sys.exit(3)": (Verdict.INFRA_ERROR, "exit status 3"),
    "time.sleep(60)": (Verdict.INFRA_ERROR, "no answer within"),
    "os.kill(os.getpid(), 11)": (WRONG, "SIGSEGV"),
    "print(json.dumps({'fault': 'memory', 'tired': True}), flush=True)": (WRONG, "memory limit"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_who_is_to_blame_for_a_lost_child(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys, time\ninput()\nprint(json.dumps({'ready': True}), flush=True)\n"
        "while line := sys.stdin.readline():\n"
        "    if json.loads(line)['task'] == 'gold':\n"
        "        print(json.dumps({'parsed': True, 'tired': False}), flush=True)\n"
        f"    else:\n        {ending}\n"
    )
    monkeypatch.setattr(child, "WORKER", worker)
    monkeypatch.setattr(ChildLimits, "wall_seconds", 0.3)
    with MathVerifier() as verifier:
        judged = verifier.verify("x+1", "x+2")
    verdict, words = ENDINGS[ending]
    assert judged.verdict is verdict
    assert words in judged.detail


def test_a_child_that_cannot_start_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WORKER", Path("/nonexistent/worker.py"))
    with MathVerifier() as verifier:
        assert verifier.verify("x+1", "x+2").verdict is Verdict.INFRA_ERROR
        assert verifier.verify("5", "6").verdict is WRONG
    for unfit in (0, -1):
        with pytest.raises(ValueError, match="more than 0"):
            MathVerifier(seconds=unfit)
        with pytest.raises(ValueError, match="1 or more"):
            MathVerifier(workers=unfit)


def test_thin_spaces_set_thousands_off() -> None:
    with MathVerifier() as verifier:
        assert verifier.verify("1234567", "\\boxed{1\\,234\\,567}").verdict is Verdict.CORRECT
        assert verifier.verify("1234", "\\boxed{1\\!234}").verdict is Verdict.CORRECT
        assert verifier.verify("12", "\\boxed{1\\,2}").verdict is not Verdict.CORRECT
