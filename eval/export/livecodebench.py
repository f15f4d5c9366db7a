"""LiveCodeBench's three files of one model: what it wrote, how each test went, and both with grades.

    <model>/Scenario.codegeneration_<n>_<temperature>.json      as the official runner names them
        the problems with `output_list` (what was written) and `code_list` (the programs in it)
    <model>/..._eval.json       [{"pass@k", "detail"}, results by place in the sorted problems, metadata]
    <model>/..._eval_all.json   the first with `graded_list`, `pass@1` and `metadata`; what `compute_scores` reads

Problems are sorted by question_id as text, as the official runner sorts them. The rows of a run hold a verdict and the
number of the first failed test, from which the official list of results follows: True for each test passed, then the
failed one's code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from core_model.errors import InputError
from eval.export.evaluation import Answered, Evaluation, TaskAnswers, only
from eval.judge.extract import extract
from eval.metrics import pass_at_k
from eval.tasks.code import extract_program
from eval.tasks.livecodebench.records import LiveCodeBenchRecord, from_problem
from recipes.rows import JudgedSample, Problem, Verdict

K = (1, 5, 10, 20, 40, 50, 75, 100, 125, 150, 200, 500, 1000)  # those of the official evaluation
NO_PROGRAM = (Verdict.NO_ANSWER, Verdict.TRUNCATED)
# The official codes: -2 wrong answer, -3 time, -4 an error, which is also what an empty program comes to.
CODES: Mapping[Verdict, int] = {
    Verdict.WRONG_ANSWER: -2,
    Verdict.TIME_LIMIT: -3,
    Verdict.MEMORY_LIMIT: -4,
    Verdict.OUTPUT_LIMIT: -4,
    Verdict.RUNTIME_ERROR: -4,
    Verdict.COMPILE_ERROR: -4,
    Verdict.NO_ANSWER: -4,
    Verdict.TRUNCATED: -4,
}
RECORD_KEYS = {"public_tests", "title", "platform", "contest_id", "metadata"}  # what makes a Problem a record again
_FAILED_TEST = re.compile(r"test (\d+): ")

Results = list[bool | int]


def is_record(problem: Problem) -> bool:
    """Whether LiveCodeBench's eleven fields can be had back from a problem."""
    return problem.domain == "code" and problem.verification_info.keys() >= RECORD_KEYS


def files(evaluation: Evaluation, policy: str = "strict") -> dict[str, str]:
    """Text of every file by its name.

    Args:
        evaluation: with what counts alone (`Evaluation.counted`).
        policy: of extraction, as the task judged with.

    Raises:
        InputError: no problem of LiveCodeBench, one question in several tasks, or a right answer in which the policy
            finds no program.
    """
    made: dict[str, str] = {}
    for model in evaluation.models:
        answers = _records(evaluation.of(model))
        if not answers:
            continue
        generations, graded, results, metadata = [], [], {}, []
        for place, (record, one) in enumerate(answers):
            results[str(place)] = [results_of(one.problem, sample) for sample in one.samples]
            metadata.append([_metadata(sample) for sample in one.samples])
            generations.append(_instance(record, one, policy))
            graded.append(generations[-1] | _grades(one, metadata[-1]))
        name = f"{model}/{_stem([one for _, one in answers])}"
        made[f"{name}.json"] = _dump(generations)
        made[f"{name}_eval.json"] = _dump([_metrics([one for _, one in answers]), results, metadata])
        made[f"{name}_eval_all.json"] = _dump(graded)
    if not made:
        found = ", ".join(dict.fromkeys(one.task for one in evaluation.tasks)) or "none that counts"
        raise InputError("tasks", expected="problems in LiveCodeBench's schema", found=found)
    return made


def results_of(problem: Problem, sample: JudgedSample) -> Results:
    """How the tests went, in the official codes, up to the first that failed."""
    if sample.verdict is Verdict.CORRECT:
        return [True] * len(problem.verification_info["test_cases"])
    called = problem.verification_info.get("entry") is not None
    # A wrong value is False to the official judge, a wrong print -2.
    code: bool | int = False if called and sample.verdict is Verdict.WRONG_ANSWER else CODES[sample.verdict]
    failed = _FAILED_TEST.match(sample.detail) if sample.verdict is not Verdict.COMPILE_ERROR else None
    return [True] * (int(failed[1]) - 1 if failed else 0) + [code]


def program_of(problem: Problem, sample: JudgedSample, policy: str) -> str:
    """The program that was judged; empty where none was.

    Raises:
        InputError: the policy finds none in an answer that was judged right.
    """
    if sample.verdict in NO_PROGRAM:
        return ""  # an answer that was cut off may hold a block of code, but was not judged by it
    if "steps" in problem.verification_info["metadata"]:  # the generated code family, which has a rule of its own
        code = extract_program(sample.answer)
    else:
        code = extract(sample.answer, policy).code
    if sample.verdict is Verdict.CORRECT and not code.strip():
        raise InputError(
            problem.id,
            where=f"sample {sample.index}",
            expected="a program where the answer was judged right (--extraction: the policy that the task judged with)",
            found=f"none by {policy}",
        )
    return code


def _records(tasks: Sequence[TaskAnswers]) -> list[tuple[LiveCodeBenchRecord, Answered]]:
    """The answered problems that are records, sorted by question_id."""
    found: dict[str, tuple[LiveCodeBenchRecord, Answered, str]] = {}
    for task in tasks:
        for one in task.answers:
            if not is_record(one.problem):
                continue
            if one.problem.id in found:
                both = f"{found[one.problem.id][2]} and {task.task}"
                raise InputError(
                    one.problem.id, expected="one task with that question (--task chooses)", found=f"it in {both}"
                )
            found[one.problem.id] = (_record(one.problem), one, task.task)
    return [found[key][:2] for key in sorted(found)]


def _record(problem: Problem) -> LiveCodeBenchRecord:
    try:
        return from_problem(problem)
    except (ValidationError, KeyError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": error.args, "msg": "missing"}
        where = ".".join(map(str, first["loc"]))
        raise InputError(problem.id, where=where, expected="a LiveCodeBench record", found=str(first["msg"])) from error


def _instance(record: LiveCodeBenchRecord, one: Answered, policy: str) -> dict[str, Any]:
    # compute_scores compares with times that have no zone; the day as written is what counts.
    held = datetime.fromisoformat(record.contest_date).replace(tzinfo=None)
    return {
        "question_title": record.question_title,
        "question_content": record.question_content,
        "platform": record.platform,
        "question_id": record.question_id,
        "contest_id": record.contest_id,
        "contest_date": held.isoformat(),
        "starter_code": record.starter_code,
        "difficulty": record.difficulty,
        "output_list": [sample.text for sample in one.samples],
        "code_list": [program_of(one.problem, sample, policy) for sample in one.samples],
    }


def _grades(one: Answered, metadata: list[str]) -> dict[str, Any]:
    graded = [sample.verdict is Verdict.CORRECT for sample in one.samples]
    return {"graded_list": graded, "pass@1": sum(graded) / len(graded), "metadata": metadata}


def _metadata(sample: JudgedSample) -> str:
    """What the official one says too, where rows hold it, and our verdict."""
    official: dict[str, Any] = {}
    if sample.verdict is not Verdict.CORRECT:
        message = sample.detail or sample.verdict.value.replace("_", " ").capitalize()
        official = {"error_code": CODES[sample.verdict], "error_message": message}
    elif sample.seconds:
        official = {"execution time": sample.seconds}
    return json.dumps({**official, "verdict": sample.verdict.value})


def _metrics(answers: Sequence[Answered]) -> dict[str, Any]:
    """pass@k for each k that no problem has fewer samples than, and of every problem."""
    counts = [(len(one.samples), sum(sample.verdict is Verdict.CORRECT for sample in one.samples)) for one in answers]
    detail: dict[str, dict[str, float]] = {}
    for k in K:
        if all(total >= k for total, _ in counts):
            detail[f"pass@{k}"] = {str(i): pass_at_k(total, right, k) for i, (total, right) in enumerate(counts)}
    means: dict[str, Any] = {name: _mean(list(values.values())) for name, values in detail.items()}
    return {**means, "detail": detail}


def _mean(values: Sequence[float]) -> float:
    """numpy's, whose order of summation the official number has."""
    import numpy as np

    return float(np.mean(values))


def _stem(answers: Sequence[Answered]) -> str:
    repeats = max(len(one.samples) for one in answers)
    temperature = only(sample.sampling.get("temperature") for one in answers for sample in one.samples)
    return f"Scenario.codegeneration_{repeats}_{'mixed' if temperature is None else temperature}"


def _dump(value: Any) -> str:
    return json.dumps(value, indent=4)
