"""Every family: gold passes, anything else does not, splits are apart, no constant answer does well."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.tasks import (
    FAMILIES,
    REASONING_FAMILIES,
    best_constant,
    family_names,
    get_family,
    judge_answers,
    problems,
    reasoning,
)
from eval.tasks.reasoning import BaseConversion, ChainSum, Gcd, LetterCounting, NumberSorting
from eval.tasks.text import prompt_messages, question_answer_text
from recipes.rows import Problem, Verdict

DRAWN = [*REASONING_FAMILIES, "needle"]
QUICK = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("name", FAMILIES)
def test_gold_is_correct_and_corrupted_is_not(name: str) -> None:
    family = get_family(name)
    asked = problems(name, "test", 40) + problems(name, "train", 40)
    gold = [family.reference_answer(problem) for problem in asked]
    assert {one.verdict for one in judge_answers(asked, gold)} == {Verdict.CORRECT}
    shifted = gold[1:] + gold[:1]
    for one, right, given_answer in zip(judge_answers(asked, shifted), gold, shifted, strict=True):
        assert (one.verdict is Verdict.CORRECT) <= (right == given_answer or name == "code")
    for spoil in (lambda a: a + a, lambda a: "x" + a, lambda a: f"the answer is {a}", lambda a: a[1:] + "?"):
        assert Verdict.CORRECT not in {one.verdict for one in judge_answers(asked, [spoil(a) for a in gold])}
    assert {one.verdict for one in judge_answers(asked, [" \n"] * len(asked))} == {Verdict.NO_ANSWER}


@pytest.mark.parametrize("name", DRAWN)
def test_splits_are_disjoint_over_thousands(name: str) -> None:
    count = 100  # less than the smallest held-out split (validation of the families about one number) gives
    splits = {"train": 3000, "validation": count, "test": count}
    family = get_family(name)
    drawn = {split: problems(family, split, n) for split, n in splits.items()}  # type: ignore[arg-type]
    contents = {split: {_solution_key(problem) for problem in rows} for split, rows in drawn.items()}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["validation"]
    assert not contents["validation"] & contents["test"]
    assert len({problem.id for problem in drawn["test"]}) == count
    # No other seed may bring a held-out item into training either.
    other = get_family(name, seed=7)
    assert not {_solution_key(p) for p in problems(other, "train", 2000)} & contents["test"]
    assert [p.id for p in problems(other, "train", 50)] != [p.id for p in drawn["train"][:50]]


def _solution_key(problem: Problem) -> str:
    """The content whose repetition in training would give a held-out answer away, from the problem alone."""
    info = problem.verification_info.get("metadata", {})
    if problem.source == "needle":
        return problem.messages[0].content.rsplit("secret number of ", 1)[1] + problem.verification_info["answer"]
    if problem.source == "letter_counting":
        return json.dumps([info["target_letter"], sorted(info["span"])])
    if problem.source in ("base_conversion", "count_bits"):
        return str(info["decimal_value" if "decimal_value" in info else "number"])
    return json.dumps(sorted(map(int, info["original_numbers"] if "original_numbers" in info else info["numbers"])))


@pytest.mark.parametrize(
    ("name", "bound"), [("gcd", 0.25), ("letter_counting", 0.35), ("chain_sum", 0.05), ("count_bits", 0.3)]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_constant_answer_does_well(name: str, bound: float, split: Any) -> None:
    assert best_constant(problems(name, split, 250))[1] <= bound


def test_best_constant_is_counted_over_problems() -> None:
    asked = problems("gcd", "train", 300)
    answer, accuracy = best_constant(asked)
    counts = Counter(problem.verification_info["answer"] for problem in asked)
    assert counts[answer] == max(counts.values())
    assert accuracy == counts[answer] / 300
    for unfit in ([], asked[:1] + problems("count_bits", "train", 1)):
        with pytest.raises(ValueError, match="one family"):
            best_constant(unfit)


def test_best_constant_program_is_the_one_that_passes_most() -> None:
    asked = problems("code", "test", 60)
    program, accuracy = best_constant(asked)
    passed = [one.verdict is Verdict.CORRECT for one in judge_answers(asked, [program] * len(asked))]
    assert 0 < sum(passed) == accuracy * len(asked)


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_are_the_same_in_any_order_of_asking(name: str) -> None:
    ahead = dataclasses.replace(get_family(name))
    fifth = ahead.problem(4, "test")
    family = dataclasses.replace(get_family(name))
    assert [family.problem(index, "test") for index in range(5)][4] == fifth
    assert family.problem(3, "train") == problems(name, "train", 2, start=2)[1]
    assert Problem.model_validate_json(fifth.model_dump_json()) == fifth


def test_families_about_one_number_hold_out_the_same_numbers() -> None:
    asked = {}
    for name, key in (("base_conversion", "decimal_value"), ("count_bits", "number")):
        items = get_family(name)._members("test").items
        rows = problems(name, "test", len(items))
        asked[name] = {row.verification_info["metadata"][key] for row in rows}
    assert asked["base_conversion"] - {0} == asked["count_bits"]


def test_no_training_number_is_halved_into_a_held_out_one() -> None:
    family = get_family("count_bits")
    train, validation, test = (
        {item["value"] for item in family._members(split).items}  # type: ignore[arg-type]
        for split in ("train", "validation", "test")
    )
    assert {value >> shift for value in train for shift in range(value.bit_length())} == train
    assert len(test) >= 250 and not test & {value >> shift for value in validation for shift in range(11)}


def test_base_conversion_divides_its_whole_range() -> None:
    family = BaseConversion(max_value=255)
    members: list[int] = []
    for split in ("train", "validation", "test"):
        count = len(family._members(split).items)  # type: ignore[arg-type]
        rows = problems(family, split, count)  # type: ignore[arg-type]
        members += [row.verification_info["metadata"]["decimal_value"] for row in rows]
    assert sorted(members) == list(range(256))
    for name in ("base_conversion", "count_bits"):
        assert len(get_family(name)._members("test").items) >= 250  # enough for 200 held-out ones and more
    train = len(family._members("train").items)
    assert family.problem(train + 3, "train") == family.problem(3, "train")  # goes round


@pytest.mark.parametrize("family", [BaseConversion(max_value=255), Gcd(max_value=12, max_answer=3)])
def test_exhausted_held_out_split_says_so(family: Any) -> None:
    with pytest.raises(InputError, match=r"test split.*no more distinct ones; found 500"):
        family.problem(499, "test")
    with pytest.raises(ValueError, match="index"):
        family.problem(-1, "train")


def test_unknown_family_is_named_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean chain_sum"):
        get_family("chain_sums")
    assert set(family_names()) == {*REASONING_FAMILIES, "code", "needle"}
    assert get_family("gcd", max_value=50) is get_family("gcd", max_value=50)


def _answer(family: Any, **metadata: Any) -> Problem:
    return family.build(metadata, "train")


@pytest.mark.parametrize(
    ("problem", "trap"),
    [
        # Each of these gets full marks from reasoning-gym's own scorer.
        (_answer(ChainSum(), numbers=[47, 85, -12]), "1,20"),
        (_answer(ChainSum(), numbers=[47, 85, -12]), "1_20"),
        (_answer(ChainSum(), numbers=[47, 85, -12]), "１２０"),
        (_answer(ChainSum(), numbers=[47, 85, -12]), "120.0"),
        (_answer(ChainSum(), numbers=[47, 85, -12]), "+120"),
        (_answer(ChainSum(), numbers=[47, 85, -12]), "0120"),
        (_answer(NumberSorting(), numbers=[14, 3, 92, 7]), "3 7 14 91"),
        (_answer(NumberSorting(), numbers=[14, 3, 92, 7]), "2 8 13 93"),
        # And these partial ones.
        (_answer(Gcd(), numbers=[36, 84]), "12 12"),
        (_answer(LetterCounting(), letter="e", words=["apple", "tree"]), "3."),
        (_answer(LetterCounting(), letter="e", words=["apple", "tree"]), "three"),
        (_answer(BaseConversion(), value=5), "0101"),
        (_answer(BaseConversion(), value=5), "0b101"),
        (_answer(NumberSorting(), numbers=[14, 3, 92, 7]), "3, 7, 14, 92"),
        (_answer(NumberSorting(), numbers=[14, 3, 92, 7]), "92 14 7 3"),
        (_answer(NumberSorting(), numbers=[14, 3, 92, 7]), "3 7 14"),
        (_answer(ChainSum(), numbers=[10, 10, -20]), "-0"),
        (_answer(ChainSum(), numbers=[10, 10, 10]), "9" * 100_000),
    ],
)
def test_traps_of_the_scorers_are_closed(problem: Problem, trap: str) -> None:
    family = get_family(problem.source)
    assert family.verify(problem, trap) is Verdict.WRONG_ANSWER
    assert family.verify(problem, f"\n {family.reference_answer(problem)} ") is Verdict.CORRECT


def test_scorer_that_raises_means_wrong_and_broken_problem_means_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems("gcd", "train", 1)[0]

    def raising(_: str, __: dict[str, Any]) -> float:
        raise ValueError("cannot parse")

    monkeypatch.setattr(reasoning, "gym_scorer", lambda name: raising)
    (judged,) = get_family("gcd").judge_many([problem], ["4"])
    assert (judged.verdict, judged.detail) == (Verdict.WRONG_ANSWER, "the scorer raised ValueError")
    broken = problem.model_copy(update={"verification_info": {}})
    assert get_family("gcd").verify(broken, "4") is Verdict.INVALID_PROBLEM


@QUICK
@given(st.text(max_size=40))
def test_no_text_makes_a_verifier_raise(answer: str) -> None:
    for name in DRAWN:
        problem = problems(name, "train", 1)[0]
        right = answer.strip().rstrip("." if name == "needle" else "") == get_family(name).reference_answer(problem)
        assert (get_family(name).verify(problem, answer) is Verdict.CORRECT) == right


@QUICK
@given(st.integers(0, 10**9))
def test_any_training_index_can_be_had_at_once(index: int) -> None:
    problem = get_family("chain_sum").problem(index, "train")
    numbers = problem.verification_info["metadata"]["numbers"]
    assert len(numbers) == 3 and all(10 <= abs(number) <= 99 for number in numbers)
    assert problem.verification_info["answer"] == str(sum(numbers))
    assert str(numbers[0]) in problem.messages[0].content


def test_knobs_widen_the_items() -> None:
    for problem in problems(ChainSum(terms=(2, 5), digits=3), "train", 50):
        numbers = problem.verification_info["metadata"]["numbers"]
        assert 2 <= len(numbers) <= 5 and all(100 <= abs(number) <= 999 for number in numbers)
    for problem in problems(NumberSorting(count=(7, 8), max_value=500), "train", 50):
        assert problem.verification_info["metadata"]["numbers"] in (7, 8)
    for problem in problems(LetterCounting(letters=(20, 30)), "train", 50):
        assert 20 <= len("".join(problem.verification_info["metadata"]["span"])) <= 30


def test_prompts_are_short() -> None:
    longest = {
        name: max(len(p.messages[0].content) for p in problems(name, "train", 300)) for name in REASONING_FAMILIES
    }
    assert max(longest.values()) <= 50, longest


def test_text_for_pretraining_and_prompts() -> None:
    problem = _answer(ChainSum(), numbers=[47, 85, -12])
    assert question_answer_text(problem, "120") == "Question:\nCompute 47+85-12.\nAnswer:\n120\n"
    code = problems("code", "train", 1)[0]
    program = get_family("code").reference_answer(code)
    assert question_answer_text(code, program).endswith(f"\nAnswer:\n{program}\n")
    needle = problems("needle", "train", 1)[0]
    text = question_answer_text(needle, get_family("needle").reference_answer(needle))
    assert text.count(needle.verification_info["answer"]) == 2 and text.endswith(".\n")
    assert [message.role for message in prompt_messages(problem, reflect=False)] == ["user"]
    reflect = prompt_messages(problem, reflect=True)
    assert [message.content for message in reflect] == [REFLECT_SYSTEM_PROMPT, "Compute 47+85-12."]


def test_judge_answers_mixes_families_in_order() -> None:
    asked = [problems(name, "train", 1)[0] for name in ("code", "gcd", "needle", "gcd")]
    answers = [get_family(problem.source).reference_answer(problem) for problem in asked]
    answers[3] = "1000"
    verdicts = [one.verdict for one in judge_answers(asked, answers)]
    assert verdicts == [Verdict.CORRECT] * 3 + [Verdict.WRONG_ANSWER]
    assert judge_answers([], []) == []
    with pytest.raises(ValueError, match="4 problems, but 1"):
        judge_answers(asked, ["1"])
