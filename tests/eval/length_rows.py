"""Rows made up by hand for the tests of the length analysis."""

from __future__ import annotations

import pytest

from eval.lengths.runs import LengthOptions, LengthRun
from recipes.rows import Condition, JudgedSample, Message, Problem, Verdict

OPTIONS = LengthOptions(resamples=40)
FREE = Condition()
RIGHT, WRONG, CUT = Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.TRUNCATED


def make_problem(name: str, task: str = "sums", domain="math") -> Problem:
    return Problem(
        id=name,
        source=task,
        domain=domain,
        messages=[Message(role="user", content="?")],
        verifier=task,
        verification_info={},
    )


def make_row(problem: Problem, tokens: int, verdict: Verdict = RIGHT, condition=FREE, **more) -> JudgedSample:
    """`tokens` of thought and answer together, 2 of them the answer's (unless there are fewer)."""
    answer = min(2, tokens)
    fields = {
        "key": problem.id,
        "task": problem.source,
        "problem_id": problem.id,
        "index": 0,
        "seed": 0,
        "text": "<think>t</think>1",
        "reasoning": "t",
        "answer": "1",
        "finish_reason": "length" if verdict is CUT else "stop",
        "prompt_tokens": 4,
        "reasoning_tokens": tokens - answer,
        "answer_tokens": answer,
        "sampling": {"max_new_tokens": 128},
        "teacher": {"name": "m", "revision": "0"},
        "template_sha256": "t",
        "condition": condition,
        "verdict": verdict,
    }
    return JudgedSample.model_validate(fields | more)


PROBLEMS = [make_problem(f"p{index}") for index in range(10)]


def run_of(lengths, verdicts=None, model="m", condition=FREE, problems=PROBLEMS, seconds=None) -> LengthRun:
    verdicts = verdicts or [RIGHT] * len(lengths)
    rows = [make_row(*each, condition) for each in zip(problems, lengths, verdicts, strict=False)]
    return LengthRun(model, model.upper(), rows, seconds)


def budget(mechanism: str, tokens: int) -> Condition:
    return Condition.model_validate({"mechanism": mechanism, "tokens": tokens})


def free_run(found, model="m"):
    return found["models"][model]["runs"][0]


def accuracies(points) -> dict[int, float]:
    return {point["budget"]: pytest.approx(point["accuracy"]["value"]) for point in points}
