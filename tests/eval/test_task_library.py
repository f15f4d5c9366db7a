"""The tasks that come along: their problems from rows, their prompts, right and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_model.errors import InputError
from eval.tasks.lcb_prompts import PROMPTS
from eval.tasks.livecodebench import read_records, write_records
from eval.tasks.task import Task, build_task, chosen_problems
from recipes.rows import Verdict, sha256_of


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def verdicts(task: Task, answers: list[str], name: str = "t") -> list[Verdict]:
    asked = chosen_problems(name, task)
    return [one.verdict for one in task.judge([asked[0]] * len(answers), answers)]


def references_are_right(task: Task) -> int:
    asked = chosen_problems("t", task)
    references = [task.reference(problem) for problem in asked]
    assert None not in references
    assert {one.verdict for one in task.judge(asked, references)} == {Verdict.CORRECT}
    return len(asked)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 apples and 40 apples?", "answer": "Add: 2 + 40 = <<2+40=42>>42\n#### 42"},
        {"id": "gsm8k-test-1", "source": "gsm8k", "prompt": "2 apples and 40 apples?", "expected": "42"},
    ],
)
def test_gsm8k(row, tmp_path):
    task = build_task("gsm8k", {"path": write(tmp_path / "rows.jsonl", [row])})
    assert references_are_right(task) == 1
    right = ["\\boxed{42}", "so 42", "40 + 2 = 42.0 apples", "#### 42", "It is \\boxed{\\text{42}}."]
    assert verdicts(task, right) == [Verdict.CORRECT] * 5
    assert verdicts(task, ["\\boxed{41}", "42 or 41", ""]) == [
        Verdict.WRONG_ANSWER,
        Verdict.WRONG_ANSWER,
        Verdict.NO_ANSWER,
    ]
    (problem,) = chosen_problems("t", task)
    assert [message.role for message in task.messages(problem, "reasoning")] == ["system", "user"]
    assert task.messages(problem, "chat")[0].content.endswith("within \\boxed{}.")
    assert (task.vote("\\boxed{ 42 }"), task.vote("it is 42"), task.vote("")) == ("42", "42", None)


def test_aime_wants_a_box(tmp_path):
    task = build_task("aime", {"path": write(tmp_path / "rows.jsonl", [{"problem": "?", "answer": 73}])})
    assert verdicts(task, ["\\boxed{073}", "73", "\\boxed{74}"]) == [
        Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.WRONG_ANSWER
    ]  # fmt: skip


def test_math_has_levels_and_symbols(tmp_path):
    rows = [{"problem": "Half?", "answer": "\\frac{1}{2}", "level": 3, "unique_id": "a/1.json"}]
    task = build_task("math500", {"path": write(tmp_path / "rows.jsonl", rows)})
    (problem,) = chosen_problems("t", task)
    assert (problem.id, problem.difficulty) == ("a/1.json", "3")
    assert verdicts(task, ["\\boxed{0.5}", "\\boxed{\\dfrac12}", "\\boxed{2}"]) == [
        Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG_ANSWER
    ]  # fmt: skip


def test_a_base_model_is_shown_worked_problems(tmp_path):
    shots = write(tmp_path / "shots.jsonl", [{"question": f"Q{i}", "answer": f"so #### {i}"} for i in range(3)])
    rows = write(tmp_path / "rows.jsonl", [{"question": "asked", "answer": "#### 9"}])
    task = build_task("gsm8k", {"path": rows, "shots": 2, "shots_path": shots})
    (problem,) = chosen_problems("t", task)
    assert task.text(problem) == (
        "Problem:\nQ0\nSolution:\nso #### 0\n\nProblem:\nQ1\nSolution:\nso #### 1\n\nProblem:\nasked\nSolution:\n"
    )
    for options, message in (({"shots": 4, "shots_path": shots}, "4 rows"), ({"shots": 1}, "rows for 1 shots")):
        with pytest.raises(InputError, match=message):
            build_task("gsm8k", {"path": rows, **options}).text(problem)


def test_rows_that_cannot_be_used_are_named(tmp_path):
    cases = {
        '{"question": "a", "answer": "1"}\n{"question": \n': "line 2",
        '{"question": "a"}\n': "answer or expected",
        "[1]\n": "row 1",
        '{"question": ["a"], "answer": "1"}\n': "question",
        "": "problems with distinct ids",
    }
    for text, message in cases.items():
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            chosen_problems("t", build_task("maths", {"path": str(path)}))
    with pytest.raises(InputError, match="no such file"):
        chosen_problems("t", build_task("maths", {"path": str(tmp_path / "none.jsonl")}))
    for options in ({}, {"path": "x", "dataset": "y"}):
        with pytest.raises(ValueError, match="one of them"):
            build_task("maths", options)


def test_rows_come_in_three_kinds_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": f"Q{i}", "answer": str(i)} for i in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write(tmp_path / "rows.jsonl", rows)
    found = [
        [problem.messages[0].content for problem in chosen_problems("t", build_task("maths", {"path": str(path)}))]
        for path in sorted(tmp_path.iterdir())
    ]
    assert found == [["Q0", "Q1", "Q2"]] * 3


CHOICES = {
    "hellaswag": (
        {"ind": 4, "activity_label": "Paintball", "ctx": "A man [step] runs [title] they", "label": "1",
         "endings": ["stop.", "go on [substeps] fast."]},
        "Paintball: A man runs. they", [" stop.", " go on fast."], 1,
    ),
    "arc": (
        {"id": "x", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        "Question: Which?\nAnswer:", [" a", " b"], 1,
    ),
    "mmlu": (
        {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "subject": "logic"},
        "Which?\nA. a\nB. b\nC. c\nAnswer:", [" A", " B", " C"], 2,
    ),
    "truthfulqa_mc1": (
        {"id": "q", "question": "Which?", "choices": ["a", "b"], "expected_index": 0}, "Q: Which?\nA:", [" a", " b"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_multiple_choice(name, tmp_path):
    row, text, choices, right = CHOICES[name]
    task = build_task(name, {"path": write(tmp_path / "rows.jsonl", [row])})
    (problem,) = chosen_problems("t", task)
    assert task.kind == "choices" and task.text(problem) == text
    assert problem.verification_info == {"choices": choices, "answer": right}
    assert task.best_constant([problem]) == (f"choice {right + 1}", 1.0)
    shots = write(tmp_path / "shots.jsonl", [row] * 2)
    shown = build_task(name, {"path": task.model_dump(mode="json")["path"], "shots": 2, "shots_path": shots})
    (problem,) = chosen_problems("t", shown)
    assert shown.text(problem) == 2 * f"{text}{choices[right]}\n\n" + text


@pytest.mark.parametrize("answer", ["5", "E", "-1", "x", ""])
def test_a_right_choice_that_is_none_is_said(answer, tmp_path):
    rows = [{"question": "?", "choices": ["a", "b"], "answer": answer}]
    with pytest.raises(InputError, match="one of 2 choices"):
        chosen_problems("t", build_task("mmlu", {"path": write(tmp_path / "r.jsonl", rows)}))


def test_running_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text\nmore")
    task = build_task("text", {"path": str(tmp_path / "a.txt")})
    assert [problem.verification_info["text"] for problem in chosen_problems("t", task)] == ["some text\nmore"]


def test_reasoning_gym():
    task = build_task(
        "reasoning_gym", {"dataset": "chain_sum", "count": 5, "options": {"min_terms": 2, "max_terms": 3}}
    )
    assert references_are_right(task) == 5
    asked = chosen_problems("t", task)
    right = task.reference(asked[0])
    assert verdicts(task, [f"so <answer>{right}</answer>", f"<answer>{right}1</answer>", ""]) == [
        Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.NO_ANSWER
    ]  # fmt: skip
    with pytest.raises(ValueError, match="game_of_life_halting"):
        build_task("reasoning_gym", {"dataset": "game_of_life_halting", "count": 5})
    with pytest.raises(InputError, match="its settings"):
        chosen_problems("t", build_task("reasoning_gym", {"dataset": "gcd", "count": 1, "options": {"no": 1}}))


def test_humaneval():
    task = build_task("humaneval", {"limit": 3})
    assert references_are_right(task) == 3
    (problem, *_) = chosen_problems("t", task)
    whole = problem.verification_info["starter_code"] + task.reference(problem)
    assert verdicts(task, [f"Here:\n```python\n{whole}```", "```python\nx = 1\n```", "", "I cannot."]) == [
        Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.NO_ANSWER, Verdict.COMPILE_ERROR
    ]  # fmt: skip
    assert task.text(problem).endswith('"""\n') and len(build_task("humaneval", {}).problems()) == 164


@pytest.fixture
def contest(repository, tmp_path) -> str:
    records = read_records(repository / "tests" / "oracles" / "lcb" / "problems.jsonl")
    days = ("2024-08-01T00:00:00", "2024-11-30T23:59:00", "2024-12-01T00:00:00")
    few = [record.model_copy(update={"contest_date": day}) for record, day in zip(records, days, strict=False)]
    write_records(tmp_path / "lcb.jsonl", few)
    return str(tmp_path / "lcb.jsonl")


def test_livecodebench_windows_and_prompts(contest):
    window = {"files": [contest], "window": "2024-08-01..2024-11-30"}
    asked = {kind: build_task("livecodebench", {**window, "prompt": kind}) for kind in ("cot", "direct")}
    problems = chosen_problems("lcb", asked["cot"])
    assert len(problems) == 2 and all(problem.date and problem.difficulty for problem in problems)
    texts = {kind: task.messages(problems[0], "chat")[-1].content for kind, task in asked.items()}
    question = problems[0].messages[-1].content
    assert texts["cot"] != texts["direct"] and all(question in text for text in texts.values())
    assert "step by step" in texts["cot"] and "step by step" not in texts["direct"]
    assert asked["cot"].revision() != asked["direct"].revision()
    for options in ({}, {"files": [contest], "folder": "x"}, {"folder": "x"}):
        with pytest.raises(InputError, match="files, or a folder and a release"):
            build_task("livecodebench", options).problems()


def test_livecodebench_keeps_missing_programs_apart(contest):
    task = build_task("livecodebench", {"files": [contest]})
    asked = chosen_problems("lcb", task)
    answers = [
        "",
        "I do not know.\n```python\n```",
        "```python\nprint(\n```",
        "```python\nprint('no such answer')\n```",
    ]
    found = [one.verdict for one in task.judge([asked[0]] * 4, answers)]
    assert found[:3] == [Verdict.NO_ANSWER, Verdict.NO_ANSWER, Verdict.COMPILE_ERROR]
    assert found[3] in (Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR)


def test_prompts_have_not_changed_without_a_version():
    """A changed text changes what runs can be compared: raise the version in the prompt, then the hash here."""
    hashes = {prompt.version: sha256_of(prompt.text)[:16] for prompt in PROMPTS.values()}
    assert hashes == {"cot-v1": "ccf2f6587f8e423f", "direct-v1": "93ed8f4d3f8b17d3"}


def test_the_official_prompt_needs_its_package(contest, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "livecodebench", None)
    task = build_task("livecodebench", {"files": [contest], "prompt": "official"})
    with pytest.raises(InputError, match="nvidia-livecodebench"):
        task.messages(chosen_problems("lcb", task)[0], "chat")
