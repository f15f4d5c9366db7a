"""LiveCodeBench's record (its `code_generation` benchmark): eleven fields, every one a string in the JSONL.

Private tests are published as JSON or as base64(zlib(pickle(JSON))). Loading a pickle runs whatever it says, so here
it is read by an unpickler that knows no class and no function, inflated no further than a cap; a record that has been
read holds the JSON. Problems of the generated code family are written in the same schema.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from core_model.errors import InputError
from eval.judge.case import Test
from eval.tasks.family import ask
from recipes.rows import Problem, Row, write_rows

MOST_BYTES = 512 << 20  # of one problem's private tests, inflated


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

    @field_validator("public_test_cases")
    @classmethod
    def _are_tests(cls, value: str) -> str:
        _tests(value)
        return value

    @field_validator("private_test_cases")
    @classmethod
    def _are_decoded(cls, value: str, info: ValidationInfo) -> str:
        value = decode_private_tests(value, (info.context or {}).get("most_bytes", MOST_BYTES))
        _tests(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _is_an_object(cls, value: str) -> str:
        metadata = json.loads(value)
        if not isinstance(metadata, dict):
            raise ValueError("metadata is not a JSON object")
        name = metadata.get("func_name")
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"func_name is not the name of a function: {str(name)[:80]!r}")
        return value

    @property
    def entry(self) -> str | None:
        """The function to be called; None: a program that reads stdin. It alone decides, as it does officially."""
        return json.loads(self.metadata).get("func_name")

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
    except (ValueError, RecursionError) as error:
        raise ValueError("tests are not plain JSON") from error
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


# -- private tests -------------------------------------------------------------------------------------------------


class _ClassAsked(pickle.UnpicklingError):
    pass


class _TextUnpickler(pickle.Unpickler):
    """Reads numbers, texts and collections of them, which need no class; a string, in particular."""

    def find_class(self, module: str, name: str) -> Any:
        raise _ClassAsked(f"a pickle that asks for {module}.{name}"[:200])


def decode_private_tests(text: str, most_bytes: int = MOST_BYTES) -> str:
    """The JSON in a `private_test_cases` field, whichever way it is written.

    Args:
        text: JSON, or base64(zlib(pickle(a string of JSON))).
        most_bytes: the most the compressed data may come to.

    Raises:
        ValueError: which of the steps fails.
    """
    if text.lstrip()[:1] in ("[", "{"):  # neither is in base64's alphabet
        return text
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("private tests are not plain JSON, and not base64 either") from error
    try:
        decoded = _TextUnpickler(io.BytesIO(_inflate(packed, most_bytes))).load()
    except _ClassAsked as error:
        raise ValueError(f"private tests: {error}, not a string; refused") from error
    except _NotInflated as error:
        raise ValueError(f"private tests: {error}") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError("private tests: the inflated data is not a pickle") from error
    if not isinstance(decoded, str):
        raise ValueError(f"private tests: a pickle of {type(decoded).__name__}, not of a string")
    try:
        json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise ValueError("private tests: the pickled string is not JSON") from error
    return decoded


class _NotInflated(Exception):
    pass


def _inflate(packed: bytes, most_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, most_bytes + 1)
    except zlib.error as error:
        raise _NotInflated("not zlib data") from error
    if len(data) > most_bytes:
        raise _NotInflated(f"more than {most_bytes} bytes when inflated")
    if not inflater.eof:
        raise _NotInflated("zlib data that ends too early")
    return data


# -- records and problems ------------------------------------------------------------------------------------------


def to_problem(record: LiveCodeBenchRecord, source: str = "livecodebench") -> Problem:
    """The record as a Problem; `verification_info` keeps what the way back needs, and for a call-based record `entry`
    and `starter_code`. The message is the question alone: prompts that show the starter code are made of it.

    Raises:
        InputError: a record that looks call-based (starter code, tests of that type) but names no function.
    """
    entry = record.entry
    public, private = record.public_tests, record.private_tests
    tests = [*public, *private]
    if entry is None and (record.starter_code or any(test["testtype"] != "stdin" for test in tests)):
        raise InputError(
            record.question_id,
            where="metadata",
            expected="func_name, the record being call-based",
            found=record.metadata,
        )
    kind = "stdin_stdout" if entry is None else "functional"
    called = {} if entry is None else {"entry": entry, "starter_code": record.starter_code}
    return Problem(
        id=record.question_id,
        source=source,
        domain="code",
        messages=ask(record.question_content),
        verifier=kind,
        verification_info={
            "language": "python",
            "test_cases": [{"input": test["input"], "output": test["output"], "type": kind} for test in tests],
            "public_tests": len(public),
            "title": record.question_title,
            "platform": record.platform,
            "contest_id": record.contest_id,
            "metadata": json.loads(record.metadata),
            **called,
        },
        difficulty=record.difficulty,
        date=record.contest_date,
    )


def from_problem(problem: Problem) -> LiveCodeBenchRecord:
    """The record of a problem that `to_problem` or the code family made; `from_problem(to_problem(r)) == r` up to
    the spacing of the JSON inside its strings (and the test type, where a record that names a function has tests of
    another)."""
    info = problem.verification_info
    cases, public = info["test_cases"], info["public_tests"]
    return LiveCodeBenchRecord(
        question_title=info["title"],
        question_content=problem.messages[-1].content,
        platform=info["platform"],
        question_id=problem.id,
        contest_id=info["contest_id"],
        contest_date=problem.date or "",
        starter_code=info.get("starter_code", ""),
        difficulty=problem.difficulty,  # type: ignore[arg-type]  # validated by the record
        public_test_cases=_test_field(cases[:public]),
        private_test_cases=_test_field(cases[public:]),
        metadata=json.dumps(info["metadata"]),
    )


def _test_field(cases: Sequence[Mapping[str, str]]) -> str:
    kinds = {"stdin_stdout": "stdin", "functional": "functional"}
    return json.dumps(
        [{"input": case["input"], "output": case["output"], "testtype": kinds[case["type"]]} for case in cases]
    )


def to_cases(problem: LiveCodeBenchRecord | Problem) -> tuple[tuple[Test, ...], str | None]:
    """What the judge needs besides a program: all tests, public ones first, and the function to be called (None: a
    program that reads stdin).

    Raises:
        InputError: tests of a type that the judge does not know, or that does not fit.
    """
    if isinstance(problem, LiveCodeBenchRecord):
        problem = to_problem(problem)
    info = problem.verification_info
    entry = info.get("entry")
    kind = "stdin_stdout" if entry is None else "functional"
    tests = []
    for number, case in enumerate(info["test_cases"], 1):
        if case["type"] != kind:
            raise InputError(problem.id, where=f"test {number}", expected=f"type {kind}", found=repr(case["type"]))
        tests.append(Test(case["input"], case["output"]))
    return tuple(tests), entry


# -- files ---------------------------------------------------------------------------------------------------------


def iter_records(
    path: Path, *, most_bytes: int = MOST_BYTES, keep_date: Callable[[str], bool] | None = None
) -> Iterator[LiveCodeBenchRecord]:
    """Read a JSONL file, a record at a time.

    Args:
        most_bytes: the most the private tests of one record may come to.
        keep_date: of a contest's date; records for which it is False are passed over, their tests never inflated.

    Raises:
        InputError: missing file, or a line that is not a record (line and key are named).
    """
    if not path.is_file():
        raise InputError(path, expected="a JSONL file of LiveCodeBench records", found="no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                data = json.loads(line)
                if keep_date is not None and not keep_date(data["contest_date"]):
                    continue
                record = LiveCodeBenchRecord.model_validate(data, context={"most_bytes": most_bytes})
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in first["loc"]) or "the line"
                found = first["msg"]
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                key, found = "the line", f"{type(error).__name__}: {error}"
            else:
                yield record
                continue
            raise InputError(path, where=f"line {number}, {key}", expected="a LiveCodeBench record", found=found)


def read_records(path: Path, *, most_bytes: int = MOST_BYTES) -> list[LiveCodeBenchRecord]:
    """All records of a JSONL file; raises as `iter_records` does."""
    return list(iter_records(path, most_bytes=most_bytes))


def write_records(path: Path, records: Iterable[LiveCodeBenchRecord]) -> int:
    """Write records as JSONL, whole or not at all; returns how many. Private tests are written as JSON."""
    return write_rows(path, records)
