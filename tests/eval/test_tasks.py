"""Finding and building tasks; a task of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core_model.errors import InputError
from eval.tasks.task import Task, build_task, chosen_problems, find_task, task_names
from eval.tasks_command import main as tasks_main
from recipes.loader import load_recipe
from recipes.rows import Verdict

LARGER = '''
"""Which of two numbers is larger."""

from random import Random

from eval.tasks.family import ask
from eval.tasks.task import Task, graded
from recipes.rows import Problem


class Larger(Task):
    """Say which of two numbers is larger."""

    count: int = 20

    def problems(self):
        rng = Random(0)
        pairs = [rng.sample(range(100), 2) for _ in range(self.count)]
        return [
            Problem(id=f"{a}-{b}", source="larger", domain="math", messages=ask(f"Which is larger, {a} or {b}?"),
                    verifier="exact", verification_info={"answer": str(max(a, b))})
            for a, b in dict.fromkeys(map(tuple, pairs))
        ]

    def judge(self, problems, answers):
        return [graded(answer.strip() == problem.verification_info["answer"], answer)
                for problem, answer in zip(problems, answers, strict=True)]

    def reference(self, problem):
        return problem.verification_info["answer"]
'''


@pytest.fixture
def larger(tmp_path) -> Path:
    path = tmp_path / "larger.py"
    path.write_text(LARGER)
    return path


def test_every_task_that_comes_along_is_found_and_described(capsys):
    for name in task_names():
        kind = find_task(name)
        assert issubclass(kind, Task) and kind.__doc__, name
        assert tasks_main([name]) == 0
    assert tasks_main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in task_names()) and "count" in shown


def test_a_task_in_a_file_of_the_users(larger):
    task = build_task("mine", {"task": str(larger), "count": 7, "limit": 5})
    asked = chosen_problems("mine", task)
    assert len(asked) == 5 and {problem.source for problem in asked} == {"mine"}
    references = [task.reference(problem) for problem in asked]
    assert {one.verdict for one in task.judge(asked, references)} == {Verdict.CORRECT}
    assert [one.verdict for one in task.judge(asked[:2], ["", "x"])] == [Verdict.NO_ANSWER, Verdict.WRONG_ANSWER]


def test_a_revision_is_of_the_verifier_and_not_of_its_place(larger, tmp_path):
    other = tmp_path / "elsewhere" / "larger.py"
    other.parent.mkdir()
    other.write_text(LARGER)
    changed = tmp_path / "changed.py"
    changed.write_text(LARGER.replace("answer.strip()", "answer"))
    first, second, third = (build_task("t", {"task": str(path)}) for path in (larger, other, changed))
    assert first.revision() == second.revision() != third.revision()
    assert first.revision() == build_task("t", {"task": str(larger), "limit": 3, "max_new_tokens": 9}).revision()
    assert first.revision() != build_task("t", {"task": str(larger), "count": 3}).revision()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gdc", {"count": 5}, r"^gdc: .*did you mean 'gcd'\?\); found the unknown task 'gdc'"),
        ("gcd", {}, "^gcd.count: expected a value for this required key"),
        ("gcd", {"count": 5, "splitt": "test"}, r"^gcd.splitt: expected a known key \(did you mean 'split'\?\)"),
        ("gcd", {"count": 5, "zz": 1}, "^gcd.zz: expected one of the keys count, limit"),
        ("gcd", {"count": "5"}, "^gcd.count: expected a valid integer .*; found '5'"),
        ("gcd", {"count": 5, "split": "train"}, "^gcd.split: expected"),
        ("mine", {"task": "nowhere.py"}, "^mine.task: expected a file with a task; found no such file"),
        ("mine", {"task": 3}, "^mine.task: expected a name or a .py file; found 3"),
    ],
)
def test_what_a_task_does_not_take_is_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_task(name, options)


def test_what_a_task_does_not_take_is_named_in_a_recipe(repository):
    with pytest.raises(InputError, match=r"'tasks.gcd.cnt=1': expected a known key \(did you mean 'count'\?\); found"):
        load_recipe(repository / "recipes/nano/eval.yaml", ["tasks={gcd: {count: 3}}", "tasks.gcd.cnt=1"])


def test_files_without_one_task_are_said(tmp_path):
    cases = {
        "x = 1\n": "none",
        "x = (\n": "SyntaxError",
        LARGER + "\n\nclass Other(Larger):\n    pass\n": "Larger, Other",
    }
    for number, (text, message) in enumerate(cases.items()):
        path = tmp_path / f"task{number}.py"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            find_task(str(path))


def test_problems_of_one_id_are_refused(larger, tmp_path):
    path = tmp_path / "twice.py"
    path.write_text(LARGER.replace("in dict.fromkeys(map(tuple, pairs))", "in [(1, 2), (1, 2)]"))
    with pytest.raises(InputError, match="1 ids that occur twice"):
        chosen_problems("t", build_task("t", {"task": str(path)}))
    with pytest.raises(InputError, match="none"):
        chosen_problems("t", build_task("t", {"task": str(larger), "count": 0}))


def test_options_survive_a_round_trip_through_a_recipe(larger, recipe_file):
    from recipes.loader import load_recipe

    recipe = load_recipe(recipe_file, [f"tasks.mine={json.dumps({'task': str(larger), 'count': 9})}"])
    again = type(recipe).model_validate_json(recipe.model_dump_json())
    assert again == recipe and again.tasks["mine"].count == 9 and again.tasks["gcd"].count == 5
