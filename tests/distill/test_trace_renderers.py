"""Rendered traces: every claim in them is true (but the one that is mended), every answer passes the verifier."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.patterns import pattern_statistics
from distill.teacher import base_conversion, chain_sum, count_bits, gcd, letter_counting, number_sorting
from distill.teacher.renderer import RENDERED_FAMILIES, Renderer
from distill.teacher.trace import Line, Trace, generation_key, write_out
from eval.tasks import get_family, judge_answers, problems
from eval.tasks.program_steps import program_text, steps_from_json
from recipes.rows import Verdict

ALWAYS, NEVER = Renderer(mistake_share=1.0), Renderer(mistake_share=0.0)
CLAIM = re.compile(r"(-?\d+(?: ?[+*/-] ?\d+)+) ?= ?(-?\d+)")
PROPERTY = settings(max_examples=150, deadline=None)


def true_claim(claim: re.Match[str]) -> bool:
    """Left to right, which is how every expression of the traces is meant."""
    expression, result = claim.group(1).replace(" ", ""), int(claim.group(2))
    first = re.match(r"-?\d+", expression)
    assert first is not None
    value = Fraction(first.group())
    for sign, number in re.findall(r"([+*/-])(\d+)", expression[first.end() :]):
        operand = int(number)
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value / max(operand, 1)}[sign]
    return value == result


def assert_all_claims_true(text: str) -> None:
    claims = list(CLAIM.finditer(text))
    assert claims
    assert [claim.group() for claim in claims if not true_claim(claim)] == []


@pytest.mark.parametrize("name", RENDERED_FAMILIES)
@pytest.mark.parametrize("teacher", [NEVER, ALWAYS], ids=["straight", "mended"])
def test_every_trace_passes_the_verifier(name: str, teacher: Renderer) -> None:
    asked = problems(name, "train", 150)
    traces = [teacher.generate(problem, seed) for seed, problem in enumerate(asked)]
    assert {one.verdict for one in judge_answers(asked, [trace.answer for trace in traces])} == {Verdict.CORRECT}
    mended = [trace for trace in traces if "\nWait, " in trace.solution]
    assert len(mended) == (0 if teacher is NEVER else len(traces))
    for trace in traces:
        assert trace.check.startswith("Check: ") and trace.check.endswith("Correct.")
        assert "Wait" not in trace.check and "Check" not in trace.solution
        assert trace.reasoning == f"{trace.solution}\n{trace.check}"


@pytest.mark.parametrize("name", [name for name in RENDERED_FAMILIES if name != "code"])
def test_solution_says_the_answer_without_its_check(name: str) -> None:
    for teacher in (NEVER, ALWAYS):
        for seed, problem in enumerate(problems(name, "train", 50)):
            trace = teacher.generate(problem, seed)
            assert trace.solution.rstrip(".").endswith(trace.answer)
            assert trace.answer == get_family(name).reference_answer(problem)


@pytest.mark.parametrize("name", RENDERED_FAMILIES)
def test_mended_line_stands_beside_the_wrong_one(name: str) -> None:
    """The same trace without the slip is the straight one: the slip adds two lines and changes none."""
    for seed, problem in enumerate(problems(name, "train", 50)):
        lines = ALWAYS.generate(problem, seed).reasoning.split("\n")
        at = next(index for index, line in enumerate(lines) if line.startswith("Wait, "))
        assert lines[at - 1] != lines[at + 1]
        assert lines[: at - 1] + lines[at + 1 :] == NEVER.generate(problem, seed).reasoning.split("\n")


def test_lengths_fit_a_nano_model() -> None:
    for name in RENDERED_FAMILIES:
        traces = [NEVER.generate(problem, 0) for problem in problems(name, "train", 200)]
        statistics = pattern_statistics(traces, None)
        assert statistics["characters"]["reasoning"]["p95"] < 260, name
        assert statistics["characters"]["solution"]["mean"] < statistics["characters"]["reasoning"]["mean"] - 15


@PROPERTY
@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=5)
    | st.lists(st.integers(-999, 999).filter(bool), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_chain_sum_claims(numbers: list[int], seed: int) -> None:
    numbers[0] = abs(numbers[0])
    trace = chain_sum.render({"numbers": numbers}, Random(seed), False)
    assert trace.answer == str(sum(numbers))
    if len(numbers) > 1:
        assert_all_claims_true(trace.reasoning)
        assert trace.check.endswith(f"{sum(numbers) if min(numbers) >= 0 else f'={numbers[0]}'}. Correct.")
        wrong = chain_sum.render({"numbers": numbers}, Random(seed), True).solution.split("\n")
        (at,) = [index for index, line in enumerate(wrong) if line.startswith("Wait, ")]
        blamed = CLAIM.search(wrong[at])
        assert blamed is not None and not true_claim(blamed) and blamed.group() in wrong[at - 1]
        false = [claim for claim in CLAIM.finditer(wrong[at - 1]) if not true_claim(claim)]
        assert len(false) == 1  # one slip, then right with the wrong total


@PROPERTY
@given(st.integers(0, 100_000), st.integers(0, 9))
def test_base_conversion_claims(value: int, seed: int) -> None:
    trace = base_conversion.render({"decimal_value": value}, Random(seed), False)
    assert trace.answer == format(value, "b")
    lines = [line.split(" ") for line in trace.solution.split("\n")]
    assert int(lines[0][0]) == value and int(lines[-1][0]) < 2 and lines[-1][1] == trace.answer
    assert all(bits == format(value % 2 ** len(bits), f"0{len(bits)}b") for _, bits in lines)
    assert all(int(after) == int(before) // 2 for (before, _), (after, _) in pairwise(lines))
    numbers = list(map(int, re.findall(r"\d+", trace.check)))
    assert numbers[-1] == value
    assert all(after in (2 * before, 2 * before + 1) for before, after in pairwise(numbers))


@PROPERTY
@given(st.integers(1, 100_000), st.integers(0, 9))
def test_count_bits_claims(value: int, seed: int) -> None:
    trace = count_bits.render({"number": value}, Random(seed), False)
    assert trace.answer == str(value.bit_count())
    halves = [(int(number), int(count)) for number, count in re.findall(r"(\d+):(\d+)", trace.solution)]
    assert halves[0] == (value, value % 2) and halves[-1] == (1, value.bit_count())
    for (before, count), (after, next_count) in pairwise(halves):
        assert after == before // 2 and next_count == count + after % 2
    assert list(map(int, re.findall(r"\d+", trace.check)))[:-1] == [number for number, _ in halves if number % 2]
    wrong, wait, *_ = count_bits.render({"number": value}, Random(seed), True).solution.split("\n")
    number, parity = re.fullmatch(r"Wait, (\d+) is (odd|even)\.", wait).groups()  # type: ignore[union-attr]
    assert int(number) % 2 == (parity == "odd") and f"{number}:" in wrong


@PROPERTY
@given(st.lists(st.integers(0, 999), min_size=1, max_size=7), st.booleans())
def test_sorting_with_and_without_repeats(numbers: list[int], mistake: bool) -> None:
    trace = number_sorting.render({"original_numbers": list(map(str, numbers))}, Random(0), mistake)
    assert trace.answer == " ".join(map(str, sorted(numbers)))
    assert trace.check.endswith(f", {len(numbers)} numbers. Correct.")
    for before, sign, after in re.findall(r"(?=\b(\d+)([<=])(\d+))", trace.check):
        assert int(before) < int(after) if sign == "<" else int(before) == int(after)


@PROPERTY
@given(st.integers(1, 999), st.integers(1, 999))
def test_gcd_claims(a: int, b: int) -> None:
    trace = gcd.render({"numbers": [a, b]}, Random(0), False)
    assert_all_claims_true(trace.reasoning)
    assert a % int(trace.answer) == b % int(trace.answer) == 0


@PROPERTY
@given(st.lists(st.text("abce", min_size=1, max_size=8), min_size=1, max_size=4), st.sampled_from("abc"))
def test_letter_counting_spells_every_word(words: list[str], letter: str) -> None:
    trace = letter_counting.render({"target_letter": letter, "span": words}, Random(0), False)
    total = 0
    for word, line in zip(words, trace.solution.split("\n"), strict=False):
        head, spelt = line.split(": ")
        symbols = spelt.split(" ")
        assert head == word == "".join(symbol for symbol in symbols if not symbol.isdigit())
        counts = [int(symbol) for symbol in symbols if symbol.isdigit()]
        assert counts == list(range(total + 1, total + word.count(letter) + 1))
        total += word.count(letter)
    assert trace.answer == str(total) and trace.solution.endswith(f"Total {total}.")


def test_code_check_runs_the_example() -> None:
    for problem in problems("code", "train", 100):
        trace = NEVER.generate(problem, 0)
        steps = steps_from_json(problem.verification_info["metadata"]["steps"])
        given_input, expected = (problem.verification_info["test_cases"][0][key].strip() for key in ("input", "output"))
        assert trace.check.startswith(f"Check: {given_input} -> ") or len(steps) == 1
        assert trace.check.endswith(f"{expected}. Correct.")
        assert trace.answer == program_text(steps)
        assert [line.split(": ", 1)[1] for line in trace.solution.split("\n")] == trace.answer.split("\n")[1:]


def test_mistake_share_and_determinism() -> None:
    asked = problems("gcd", "train", 1500)
    traces = [Renderer(0.15).generate(problem, seed) for seed, problem in enumerate(asked)]
    assert 0.11 < pattern_statistics(traces, None)["mended_mistake"] < 0.19
    assert traces == [Renderer(0.15).generate(problem, seed) for seed, problem in enumerate(asked)]
    variants = {Renderer(0.5).generate(asked[0], seed).reasoning for seed in range(40)}
    assert len(variants) > 3  # another seed, another place to slip


def test_check_share_drops_the_check_and_nothing_else() -> None:
    asked = problems("chain_sum", "train", 1000)
    whole = [Renderer(0.0).generate(problem, seed) for seed, problem in enumerate(asked)]
    some = [Renderer(0.0, check_share=0.8).generate(problem, seed) for seed, problem in enumerate(asked)]
    assert [trace.solution for trace in some] == [trace.solution for trace in whole]
    assert 0.76 < sum(trace == other for trace, other in zip(some, whole, strict=True)) / 1000 < 0.84
    assert {trace.reasoning == trace.solution for trace in some if not trace.check} == {True}
    assert Renderer(0.0, check_share=0.8).identity != Renderer(0.0).identity


def test_key_tells_everything_that_decides_a_trace() -> None:
    first, second = problems("gcd", "train", 2)
    keys = {
        generation_key(teacher, problem, seed)
        for teacher in (ALWAYS, NEVER)
        for problem in (first, second)
        for seed in (0, 1)
    }
    assert len(keys) == 8 and generation_key(ALWAYS, first, 0) in keys
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="'needle'"):
        ALWAYS.generate(problems("needle", "train", 1)[0], 0)


def test_write_out_slips_only_where_it_can() -> None:
    lines = [Line("a"), Line("b", "c", "c is wrong"), Line("d")]
    assert write_out(lines, Random(0), False) == "a\nb\nd"
    assert write_out(lines, Random(0), True) == "a\nc\nWait, c is wrong.\nb\nd"
    assert write_out([Line("a")], Random(0), True) == "a"
    assert write_out([], Random(0), True) == ""


def test_patterns_are_read_from_text_alone() -> None:
    traces = [Trace("1 + 1 = 2", "", "2"), Trace("Wait, let me redo this.", "Let me verify: yes.", "2")]
    statistics = pattern_statistics(traces, lambda texts: [len(text.split()) for text in texts])
    assert (statistics["traces"], statistics["verification"], statistics["mended_mistake"]) == (2, 0.5, 0.5)
    assert statistics["tokens"]["reasoning"]["p100"] == 9 and statistics["characters"]["answer"]["mean"] == 1
    assert pattern_statistics([], None) == {"traces": 0}
    unrelated = [Trace("The waiter paid a checkered cheque.", "", "")]
    assert (
        pattern_statistics(unrelated, None)["verification"]
        == pattern_statistics(unrelated, None)["mended_mistake"]
        == 0
    )
