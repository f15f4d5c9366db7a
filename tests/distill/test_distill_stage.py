"""The distill stage: what it writes, what it rejects, and that being killed changes nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core_model.errors import InputError
from core_model.tokenizer import train_tokenizer
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from distill import stage
from distill.journal import Attempt, Journal
from distill.recipe import Recipe
from distill.stage import run_stage
from distill.teacher.renderer import Renderer
from distill.teacher.trace import Trace
from eval.tasks import get_family, judge_answers
from eval.tasks.family import Judgement
from recipes.loader import load_recipe
from recipes.rows import Problem, SFTRow, Verdict, read_rows
from recipes.run import Run

FILES = ("generations.jsonl", "problems.jsonl", "short.jsonl", "reasoning.jsonl")


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"families": {"gcd": 30, "code": 25, "chain_sum": 12}, "chunk": 16}
    return Recipe(stage="distill", name="test", run_dir=folder, **(settings | changes))


def distil(recipe: Recipe) -> dict[str, Any]:
    run = Run.open(recipe, ["test"], recipe.input_paths())
    try:
        summary = run_stage(recipe, run)
        run.complete(summary)
    finally:
        run.close()
    return summary


def contents(folder: Path) -> dict[str, str]:
    files = [folder / "samples" / name for name in FILES] + [folder / "report.json", folder / "metrics.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_both_sample_types_from_the_same_problems(tmp_path: Path) -> None:
    summary = distil(recipe_in(tmp_path / "run"))
    samples = tmp_path / "run" / "samples"
    short = list(read_rows(samples / "short.jsonl", SFTRow))
    reasoning = list(read_rows(samples / "reasoning.jsonl", SFTRow))
    rows = {problem.id: problem for problem in read_rows(samples / "problems.jsonl", Problem)}
    assert len(short) == len(reasoning) == summary["traces"] == 67 and summary["rejected"] == 0
    assert [row.problem_id for row in short] == [row.problem_id for row in reasoning]
    assert {row.problem_id for row in short} == set(rows)
    for plain, worked in zip(short, reasoning, strict=True):
        assert (plain.system_variant, worked.system_variant) == ("none", "reflect")
        assert [message.role for message in plain.messages] == ["user", "assistant"]
        assert [message.role for message in worked.messages] == ["system", "user", "assistant"]
        assert worked.messages[0].content == REFLECT_SYSTEM_PROMPT
        assert plain.messages[0] == worked.messages[1] == rows[plain.problem_id].messages[0]
        assert plain.messages[-1].reasoning_content is None
        assert "Check: " in (worked.messages[-1].reasoning_content or "")
        assert plain.messages[-1].content == worked.messages[-1].content
    asked = [rows[row.problem_id] for row in reasoning]
    answers = [row.messages[-1].content for row in reasoning]
    assert {one.verdict for one in judge_answers(asked, answers)} == {Verdict.CORRECT}
    assert all(get_family(p.source).split_of(_item(p)) == "train" for p in asked if p.source != "code")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == summary
    assert report["families"]["gcd"]["verification"] == 1.0 and "tokens" not in report["families"]["gcd"]


def _item(problem: Problem) -> dict[str, Any]:
    return {"numbers": problem.verification_info["metadata"]["numbers"]}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the stage may catch it."""


@pytest.mark.parametrize("at", [0, 1, 3])
def test_killed_and_resumed_writes_the_same_files(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    distil(recipe_in(tmp_path / "whole"))
    append, calls = Journal.append, []

    def torn(self: Journal, attempts: list[Attempt]) -> None:
        calls.append(len(attempts))
        if len(calls) == at + 1:
            text = "".join(attempt.model_dump_json() + "\n" for attempt in attempts)
            with self.path.open("a") as file:
                file.write(text[: len(text) * 2 // 3])  # some whole lines, and a part of one
            raise Killed
        append(self, attempts)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", torn)
        with pytest.raises(Killed):
            distil(recipe_in(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "samples" / "short.jsonl").exists()
    distil(recipe_in(tmp_path / "killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_killed_between_the_files_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distil(recipe_in(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_summary", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            distil(recipe_in(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "attempt_all", lambda *_: pytest.fail("work was done twice"))
        distil(recipe_in(tmp_path / "killed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_chunks_do_not_show_in_the_files(tmp_path: Path) -> None:
    distil(recipe_in(tmp_path / "one", chunk=1000))
    distil(recipe_in(tmp_path / "many", chunk=7))
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_seed_and_start_give_other_problems(tmp_path: Path) -> None:
    def ids(name: str, **changes: Any) -> list[str]:
        distil(recipe_in(tmp_path / name, families={"chain_sum": 20}, **changes))
        return [row.problem_id for row in read_rows(tmp_path / name / "samples" / "short.jsonl", SFTRow)]

    first = ids("first")
    assert not set(first) & set(ids("seed", seed=1))
    assert ids("start", start=5)[:15] == first[5:]


def test_rejected_traces_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Renderer.generate

    def sloppy(self: Renderer, problem: Problem, seed: int) -> Trace:
        trace = generate(self, problem, seed)
        if problem.source == "gcd" and seed % 3 == 0:
            return Trace(trace.solution, trace.check, "0")
        if problem.source == "code" and seed == 4:
            return Trace(trace.solution, trace.check, "import os")
        return trace

    monkeypatch.setattr(Renderer, "generate", sloppy)
    summary = distil(recipe_in(tmp_path / "run"))
    assert summary["families"]["gcd"]["rejected"] == {"WRONG_ANSWER": 10}
    assert summary["families"]["code"]["rejected"] == {"WRONG_ANSWER": 1}
    assert (summary["traces"], summary["rejected"]) == (56, 11)
    samples = tmp_path / "run" / "samples"
    assert len(list(read_rows(samples / "reasoning.jsonl", SFTRow))) == 56
    details = [a.detail for a in read_rows(samples / "generations.jsonl", Attempt) if a.verdict is not Verdict.CORRECT]
    assert any(detail.startswith("test 1: ") for detail in details)


def test_a_judge_that_fails_is_asked_again_and_then_stops_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"times": 2}

    def flaky(asked: list[Problem], answers: list[str]) -> list[Judgement]:
        judged = judge_answers(asked, answers)
        if judged and broken["times"]:
            broken["times"] -= 1
            judged[0] = Judgement(Verdict.INFRA_ERROR, "no memory")
        return judged

    monkeypatch.setattr(stage, "judge_answers", flaky)
    assert distil(recipe_in(tmp_path / "twice"))["rejected"] == 0
    broken["times"] = 3
    with pytest.raises(RuntimeError, match=r"1 answers \(no memory\); the same command resumes"):
        distil(recipe_in(tmp_path / "thrice"))
    assert distil(recipe_in(tmp_path / "thrice"))["traces"] == 67
    assert contents(tmp_path / "thrice") == contents(tmp_path / "twice")


def test_an_answer_to_a_problem_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem may come again in its chunk, in a later one, or after the run was killed."""
    seen: list[tuple[str, str]] = []

    def judge(asked: list[Problem], answers: list[str]) -> list[Judgement]:
        seen.extend((problem.id, answer) for problem, answer in zip(asked, answers, strict=True))
        return judge_answers(asked, answers)

    monkeypatch.setattr(stage, "judge_answers", judge)
    changes = {"families": {"count_bits": 4000}, "chunk": 1000}
    append, calls = Journal.append, []

    def killed_after_two(self: Journal, attempts: list[Attempt]) -> None:
        append(self, attempts)
        calls.append(len(attempts))
        if len(calls) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed_after_two)
        with pytest.raises(Killed):
            distil(recipe_in(tmp_path / "run", **changes))
    assert distil(recipe_in(tmp_path / "run", **changes))["traces"] == 4000
    rows = list(read_rows(tmp_path / "run" / "samples" / "generations.jsonl", Attempt))
    assert len(rows) == 4000 and len(seen) == len(set(seen)) < 2000
    assert set(seen) == {(row.problem_id, row.answer) for row in rows}


def test_foreign_or_damaged_journal_is_refused(tmp_path: Path) -> None:
    distil(recipe_in(tmp_path / "other", teacher={"mistake_share": 0.9}))
    lines = (tmp_path / "other" / "samples" / "generations.jsonl").read_text().splitlines(keepends=True)
    for name, text, message in (
        ("foreign", lines[0], "line 1, key"),
        ("damaged", "{}\n", "line 1, key: expected a Attempt row"),
        ("long", "".join(lines) + lines[0], "at most 67 lines"),
    ):
        samples = tmp_path / name / "samples"
        samples.mkdir(parents=True)
        (samples / "generations.jsonl").write_text(text)
        with pytest.raises(InputError, match=message):
            distil(recipe_in(tmp_path / name))
        assert not (samples / "short.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": {"needle": 5}}, "no trace renderer for the family 'needle'"),
        ({"families": {"gcd": -1}}, "0 or more, not -1"),
        ({"families": {"gcd": 0}}, "every family's count is 0"),
        ({"families": {}}, "at least 1 item"),
        ({"teacher": {"mistake_share": 1.5}}, "less than or equal to 1"),
        ({"teacher": {"mistakes": 0.5}}, "Extra inputs"),
        ({"chunk": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe_in(tmp_path, **changes)


def test_shipped_recipe_takes_overrides(repository: Path) -> None:
    path = repository / "recipes" / "nano" / "distill.yaml"
    recipe = load_recipe(path, ["families.gcd=7", "teacher.mistake_share=0"])
    assert isinstance(recipe, Recipe)
    assert (recipe.families["gcd"], recipe.teacher.mistake_share) == (7, 0.0)
    with pytest.raises(InputError, match="gcdd"):
        load_recipe(path, ["families.gcdd=7"])


def test_lengths_in_tokens_with_a_tokenizer(tmp_path: Path) -> None:
    train_tokenizer(["The gcd is 12.\nCheck: 36/12 = 3. Correct.\n"] * 20, 300).save_pretrained(tmp_path / "tokenizer")
    recipe = recipe_in(tmp_path / "run", families={"gcd": 5}, tokenizer=tmp_path / "tokenizer")
    found = distil(recipe)["families"]["gcd"]
    assert 0 < found["tokens"]["solution"]["mean"] < found["tokens"]["reasoning"]["mean"]
    assert found["tokens"]["reasoning"]["mean"] < found["characters"]["reasoning"]["mean"]
    answers = [row.messages[-1].content for row in read_rows(tmp_path / "run" / "samples" / "short.jsonl", SFTRow)]
    assert found["tokens"]["answer"]["p100"] == max(map(len, answers))  # digits are tokens of their own
