"""Subjects besides our own model: transformers', answers from a file, the reference solutions."""

from __future__ import annotations

import json

import pytest

from core_model.errors import InputError
from eval.generate import Part, generate
from eval.subjects.canned import CannedSubject, CanonicalSubject
from eval.subjects.local import TransformersSubject, TriviumSubject, Workers
from eval.subjects.subject import FREE, Ask, Sampling, wanted_samples
from eval.tasks.task import build_task, chosen_problems
from recipes.progress import progress_bar
from recipes.rows import Condition

GCD = build_task("gcd", {"count": 4})


def asks(mode="chat", n=1, condition=FREE, tokens=12):
    return [
        Ask("gcd", GCD, problem, mode, Sampling(tokens, 1.0, 1.0, 0, n), seed=number, condition=condition)
        for number, problem in enumerate(chosen_problems("gcd", GCD))
    ]


def run(subject, folder, **settings):
    part = Part(subject, FREE, wanted_samples(subject, asks(**settings)))
    with progress_bar(1, "test") as bar:
        return generate(part, folder / "generated", 3, bar)


def test_the_reference_solutions_are_right(tmp_path):
    rows = run(CanonicalSubject("canonical"), tmp_path)
    asked = chosen_problems("gcd", GCD)
    assert {one.verdict for one in GCD.judge(asked, [row.answer for row in rows])} == {"CORRECT"}


def test_answers_from_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    asked = chosen_problems("gcd", GCD)
    lines = [{"problem_id": problem.id, "answer": f" {number} "} for number, problem in enumerate(asked)]
    lines.append(lines[1] | {"task": "gcd", "answer": "mine", "reasoning": "so", "answer_tokens": 3})
    lines.append(lines[1] | {"task": "other", "answer": "another's"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = run(CannedSubject("canned", path), tmp_path)
    assert [row.answer for row in rows] == ["0", "mine", "2", "3"]
    assert rows[1].reasoning == "so" and rows[1].answer_tokens == 3
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    with pytest.raises(InputError, match=asked[0].id):
        run(CannedSubject("canned", path), tmp_path)
    with pytest.raises(InputError, match="answers from a file"):
        wanted_samples(CannedSubject("canned", path), asks(condition=Condition(mechanism="stated", tokens=5)))


def test_our_folder_through_transformers_says_the_same(models, tmp_path):
    """The same weights behind transformers' own class: the same prompts, greedy tokens and counts."""
    settings = {"dtype": "float32", "max_batch": 4, "workers": Workers()}
    ours = TriviumSubject("a", models["first"], **settings)
    theirs = TransformersSubject("b", models["first"], **settings)
    for mode in ("chat", "reasoning"):
        greedy = [Ask(one.name, one.task, one.problem, mode, Sampling(12, 0.0, 1.0, 0, 1), 0) for one in asks()]
        rows = []
        for subject in (ours, theirs):
            part = Part(subject, FREE, wanted_samples(subject, greedy))
            with progress_bar(1, "test") as bar:
                rows.append(generate(part, tmp_path / mode / subject.name / "generated", 3, bar))
        assert [row.prompt_tokens for row in rows[0]] == [row.prompt_tokens for row in rows[1]]
        assert [row.answer for row in rows[0]] == [row.answer for row in rows[1]]
        assert [row.answer_tokens for row in rows[0]] == [row.answer_tokens for row in rows[1]]


def test_transformers_models_are_not_forced(models):
    theirs = TransformersSubject("b", models["first"], dtype="float32", max_batch=4, workers=Workers())
    with pytest.raises(InputError, match="budgets"):
        wanted_samples(theirs, asks("reasoning", condition=Condition(mechanism="forced", tokens=5)))


def test_a_folder_that_is_no_model_is_said(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="with its tokenizer"):
        wanted_samples(
            TransformersSubject("b", tmp_path / "x", dtype="float32", max_batch=4, workers=Workers()), asks()
        )
