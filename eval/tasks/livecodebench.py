"""LiveCodeBench's record (its `code_generation` benchmark): all eleven fields, every one a string in the JSONL.

Private tests are plain JSON here. The benchmark also knows base64(zlib(pickle(json))); reading that runs a pickle, so
it is refused with a message instead of being loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from core_model.errors import InputError
from eval.tasks.family import ask
from recipes.rows import Problem, Row, read_rows, write_rows

TestType = Literal["stdin", "functional"]


class LiveCodeBenchRecord(Row):
    """One problem. The two test fields and `metadata` are JSON inside strings, as in the published files."""

    question_title: str
    question_content: str
    platform: Literal["leetcode", "codeforces", "atcoder"]
    question_id: str = Field(min_length=1)
    contest_id: str
    contest_date: str
    starter_code: str
    difficulty: Literal["easy", "medium", "hard"]
    public_test_cases: str
    private_test_cases: str
    metadata: str

    @field_validator("contest_date")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value

    @field_validator("public_test_cases", "private_test_cases")
    @classmethod
    def _are_tests(cls, value: str) -> str:
        _tests(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _is_an_object(cls, value: str) -> str:
        if not isinstance(json.loads(value), dict):
            raise ValueError("metadata is not a JSON object")
        return value

    @property
    def public_tests(self) -> list[dict[str, str]]:
        """Each `{"input", "output", "testtype"}`."""
        return _tests(self.public_test_cases)

    @property
    def private_tests(self) -> list[dict[str, str]]:
        """Each `{"input", "output", "testtype"}`."""
        return _tests(self.private_test_cases)


def _tests(text: str) -> list[dict[str, str]]:
    try:
        tests = json.loads(text)
    except ValueError as error:
        raise ValueError("tests are not plain JSON (encoded or pickled tests are not read)") from error
    if not isinstance(tests, list):
        raise ValueError("tests are not a JSON list")
    for test in tests:
        if not isinstance(test, dict) or set(test) != {"input", "output", "testtype"}:
            raise ValueError("a test has exactly the keys input, output, testtype")
        if not all(isinstance(value, str) for value in test.values()):
            raise ValueError("a test's values are strings")
        if test["testtype"] not in ("stdin", "functional"):
            raise ValueError(f"unknown testtype {test['testtype']!r}")
    return tests


def to_problem(record: LiveCodeBenchRecord, source: str = "livecodebench") -> Problem:
    """The record as a Problem; `verification_info` keeps what the way back needs.

    Raises:
        InputError: a call-based record, which the stdin judge cannot run.
    """
    tests = [*record.public_tests, *record.private_tests]
    if record.starter_code or any(test["testtype"] != "stdin" for test in tests):
        raise InputError(record.question_id, expected="a stdin problem", found="a call-based one")
    return Problem(
        id=record.question_id,
        source=source,
        domain="code",
        messages=ask(record.question_content),
        verifier="stdin_stdout",
        verification_info={
            "language": "python",
            "test_cases": [
                {"input": test["input"], "output": test["output"], "type": "stdin_stdout"} for test in tests
            ],
            "public_tests": len(record.public_tests),
            "title": record.question_title,
            "platform": record.platform,
            "contest_id": record.contest_id,
            "metadata": json.loads(record.metadata),
        },
        difficulty=record.difficulty,
        date=record.contest_date,
    )


def from_problem(problem: Problem) -> LiveCodeBenchRecord:
    """The record of a problem that `to_problem` or the code family made; `from_problem(to_problem(r)) == r` up to
    the spacing of the JSON inside its strings."""
    info = problem.verification_info
    cases, public = info["test_cases"], info["public_tests"]
    return LiveCodeBenchRecord(
        question_title=info["title"],
        question_content=problem.messages[-1].content,
        platform=info["platform"],
        question_id=problem.id,
        contest_id=info["contest_id"],
        contest_date=problem.date or "",
        starter_code="",
        difficulty=problem.difficulty,  # type: ignore[arg-type]  # validated by the record
        public_test_cases=_test_field(cases[:public]),
        private_test_cases=_test_field(cases[public:]),
        metadata=json.dumps(info["metadata"]),
    )


def _test_field(cases: Sequence[dict[str, Any]]) -> str:
    return json.dumps([{"input": case["input"], "output": case["output"], "testtype": "stdin"} for case in cases])


def in_window(contest_date: str, start: str, end: str) -> bool:
    """Whether a contest's day lies in [start, end], both days included.

    Days are compared, not instants: the benchmark's own comparison with midnight of `end` loses that day's contests.
    """
    day = datetime.fromisoformat(contest_date).date()
    return date.fromisoformat(start) <= day <= date.fromisoformat(end)


def select_window(problems: Iterable[Problem], start: str, end: str) -> list[Problem]:
    """The problems dated within [start, end]; those without a date are in no window."""
    return [problem for problem in problems if problem.date is not None and in_window(problem.date, start, end)]


def read_records(path: Path) -> list[LiveCodeBenchRecord]:
    """Read a JSONL file.

    Raises:
        InputError: missing file, or a line that is not a record (line and key are named).
    """
    return list(read_rows(path, LiveCodeBenchRecord))


def write_records(path: Path, records: Iterable[LiveCodeBenchRecord]) -> int:
    """Write records as JSONL, whole or not at all; returns how many."""
    return write_rows(path, records)
