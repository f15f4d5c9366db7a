"""Composed programs, their tests, and LiveCodeBench's record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from core_model.errors import InputError
from eval.tasks import get_family, judge_answers, problems
from eval.tasks.code import UNSEEN_WINDOW, extract_program
from eval.tasks.livecodebench import (
    LiveCodeBenchRecord,
    from_problem,
    in_window,
    read_records,
    select_window,
    to_problem,
    write_records,
)
from eval.tasks.program_steps import (
    READ_LINE,
    STEP_KINDS,
    Step,
    composition,
    problem_text,
    program_text,
    stages,
    steps_from_json,
)
from recipes.rows import Problem, Verdict


def steps_of(problem: Problem) -> list[Step]:
    return steps_from_json(problem.verification_info["metadata"]["steps"])


def test_every_step_does_what_its_line_says() -> None:
    """The line run by the judge against the function that makes the expected outputs, for every kind of step."""
    asked, answers = [], []
    for kind in STEP_KINDS.values():
        step = Step(kind, kind.numbers[1] if kind.numbers else 0)
        steps = [step] if kind.kind == "reduce" else [step, Step(STEP_KINDS["list"])]
        cases = []
        for numbers in ([7, -12, 0, 12, 3, 7, 24, 1], [5], [-4, -4]):
            out = stages(steps, numbers)[-1]
            cases.append(
                {"input": " ".join(map(str, numbers)), "output": " ".join(map(str, out)), "type": "stdin_stdout"}
            )
        asked.append(problems("code", "train", 1)[0].model_copy(update={"verification_info": {"test_cases": cases}}))
        answers.append(program_text(steps))
    verdicts = {name: one.verdict for name, one in zip(STEP_KINDS, judge_answers(asked, answers), strict=True)}
    assert verdicts == dict.fromkeys(STEP_KINDS, Verdict.CORRECT)


def test_no_program_with_a_step_left_out_or_mistaken_passes() -> None:
    asked, programs = [], []
    for problem in problems("code", "train", 60):
        steps = steps_of(problem)
        for position in range(len(steps) - 1):
            asked.append(problem)
            programs.append(program_text([*steps[:position], *steps[position + 1 :]]))
        for step in steps:
            asked.append(problem)
            programs.append(program_text(steps).replace(step.code, step.wrong_code[0]))
    judged = judge_answers(asked, programs)
    missing = [one.verdict for one in judged]
    # A mistaken line can still be right by chance (the first is the smallest); a missing step never is.
    assert missing.count(Verdict.CORRECT) / len(missing) < 0.05
    lengths = [len(steps_of(problem)) for problem in problems("code", "train", 60)]
    at = 0
    for length in lengths:
        assert Verdict.CORRECT not in missing[at : at + length - 1]
        at += 2 * length - 1


def test_tests_have_the_edge_cases() -> None:
    for problem in problems("code", "train", 200):
        cases = problem.verification_info["test_cases"]
        assert len(cases) == 10 and problem.verification_info["public_tests"] == 2
        inputs = [list(map(int, case["input"].split())) for case in cases]
        assert all(inputs) and all(case["output"].strip() for case in cases)
        assert all(len(numbers) <= 4 for numbers in inputs[:2])
    sorts = {"one": 0, "equal": 0, "negative": 0, "sorted": 0}
    for problem in problems("code", "train", 200):
        inputs = [list(map(int, case["input"].split())) for case in problem.verification_info["test_cases"]][2:]
        sorts["one"] += any(len(numbers) == 1 for numbers in inputs)
        sorts["equal"] += any(len(numbers) > 1 and len(set(numbers)) == 1 for numbers in inputs)
        sorts["negative"] += any(max(numbers) < 0 for numbers in inputs)
        sorts["sorted"] += any(len(numbers) > 2 and numbers == sorted(numbers) for numbers in inputs)
    assert all(count > 120 for count in sorts.values()), sorts


def test_compositions_are_held_out_and_so_are_their_dates() -> None:
    drawn = {
        split: problems("code", split, count) for split, count in (("train", 2000), ("validation", 100), ("test", 300))
    }  # type: ignore[arg-type]
    # In whatever order the steps come: filter and map often commute.
    names = {split: {tuple(sorted(composition(steps_of(p)).split())) for p in rows} for split, rows in drawn.items()}
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]
    assert len(names["test"]) > 60 and len({problem.id for problem in drawn["test"]}) == 300
    assert all(problem.date and problem.date < "2024-07-01" for problem in drawn["train"])
    assert len({problem.date for problem in drawn["train"]}) > 300  # spread over days
    everything = [problem for rows in drawn.values() for problem in rows]
    assert select_window(everything, *UNSEEN_WINDOW) == drawn["test"]
    # Equal problems are equal, whichever seed drew them.
    by_id = {problem.id: problem for problem in drawn["train"]}
    again = [p for p in problems(get_family("code", seed=3), "train", 1000) if p.id in by_id]
    assert len(again) > 50 and all(by_id[problem.id] == problem for problem in again)


def test_problem_text_and_program() -> None:
    steps = [Step(STEP_KINDS["even"]), Step(STEP_KINDS["add"], 3), Step(STEP_KINDS["sum"])]
    assert problem_text(steps) == "Read integers from one line. Keep the even ones, add 3 to each, print the sum."
    assert program_text(steps).split("\n") == [
        READ_LINE,
        "a = [x for x in a if x % 2 == 0]",
        "a = [x + 3 for x in a]",
        "print(sum(a))",
    ]
    assert stages(steps, [4, 7, 2]) == [[4, 2], [7, 5], [12]]
    problem = problems("code", "train", 1)[0]
    first = problem.verification_info["test_cases"][0]
    assert problem.messages[0].content.endswith(f"Example: {first['input'].strip()} gives {first['output'].strip()}.")
    bare = get_family("code", show_example=False).problem(0, "train")
    assert "Example" not in bare.messages[0].content


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)", "print(1)"),
        ("\nprint(1)\n", "print(1)"),
        ("So:\n```python\nprint(1)\n```\n", "print(1)\n"),
        ("```\nprint(1)\n```\nor\n```py\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)", ""),  # cut off: no program
        ("", ""),
    ],
)
def test_program_is_extracted(answer: str, program: str) -> None:
    assert extract_program(answer) == program


def test_code_verdicts() -> None:
    family = get_family("code")
    problem = problems("code", "test", 1)[0]
    gold = family.reference_answer(problem)
    asked = [problem] * 6
    answers = [f"Here:\n```python\n{gold}\n```", "```python\nprint(1", "print(", "import os", "print(10**9)", gold]
    assert [one.verdict for one in judge_answers(asked, answers)] == [
        Verdict.CORRECT,
        Verdict.NO_ANSWER,
        Verdict.COMPILE_ERROR,
        Verdict.WRONG_ANSWER,
        Verdict.WRONG_ANSWER,
        Verdict.CORRECT,
    ]
    empty = problem.model_copy(update={"verification_info": {"test_cases": []}})
    assert family.verify(empty, gold) is Verdict.INVALID_PROBLEM


def record(**changes: str) -> dict[str, str]:
    tests = json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}])
    fields = {
        "question_title": "Echo",
        "question_content": "Print the number.",
        "platform": "atcoder",
        "question_id": "abc001_a",
        "contest_id": "abc001",
        "contest_date": "2024-08-31T10:30:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": tests,
        "private_test_cases": tests,
        "metadata": "{}",
    }
    return fields | changes


def test_record_goes_to_a_problem_and_back(tmp_path: Path) -> None:
    records = [LiveCodeBenchRecord(**record())] + [from_problem(p) for p in problems("code", "test", 20)]  # type: ignore[arg-type]
    assert write_records(tmp_path / "lcb.jsonl", records) == 21
    assert read_records(tmp_path / "lcb.jsonl") == records
    for line in (tmp_path / "lcb.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(row) == 11 and all(isinstance(value, str) for value in row.values())
    for one in records:
        assert from_problem(to_problem(one)) == one
    problem = problems("code", "test", 20)[7]
    assert to_problem(from_problem(problem), source="code") == problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"platform": "kattis"}, "platform"),
        ({"difficulty": "trivial"}, "difficulty"),
        ({"question_id": ""}, "question_id"),
        ({"contest_date": "yesterday"}, "contest_date"),
        ({"public_test_cases": "{}"}, "not a JSON list"),
        ({"public_test_cases": '[{"input": "1"}]'}, "exactly the keys"),
        ({"public_test_cases": '[{"input": 1, "output": "1", "testtype": "stdin"}]'}, "strings"),
        ({"public_test_cases": '[{"input": "1", "output": "1", "testtype": "gui"}]'}, "testtype"),
        ({"metadata": "[]"}, "metadata"),
        ({"surprise": "1"}, "surprise"),
    ],
)
def test_bad_record_is_refused(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        LiveCodeBenchRecord(**record(**changes))  # type: ignore[arg-type]
    (tmp_path / "bad.jsonl").write_text(json.dumps(record()) + "\n" + json.dumps(record(**changes)) + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_records(tmp_path / "bad.jsonl")


def test_call_based_record_is_refused() -> None:
    with pytest.raises(InputError, match="call-based"):
        to_problem(LiveCodeBenchRecord(**record(starter_code="class Solution:")))  # type: ignore[arg-type]


def test_window_includes_its_last_day() -> None:
    assert in_window("2024-08-31T10:30:00", "2024-08-01", "2024-08-31")  # the benchmark's own comparison loses this
    assert in_window("2024-08-01", "2024-08-01", "2024-08-31")
    assert not in_window("2024-07-31T23:59:59", "2024-08-01", "2024-08-31")
    assert not in_window("2024-09-01", "2024-08-01", "2024-08-31")
    undated = problems("gcd", "test", 1)
    assert select_window(undated, "1970-01-01", "2100-01-01") == []
