"""The rows that pass between stages, one schema each, as JSONL on disk.

Every row is a frozen pydantic model with unknown keys forbidden, so that a file written by another
version is refused with the offending key instead of being half understood.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from core_model.errors import InputError

SCHEMA_VERSION = 1


class Verdict(StrEnum):
    """What became of one answer. The last two are never "wrong": such samples leave every statistic."""

    CORRECT = "CORRECT"
    WRONG_ANSWER = "WRONG_ANSWER"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    COMPILE_ERROR = "COMPILE_ERROR"
    NO_ANSWER = "NO_ANSWER"
    TRUNCATED = "TRUNCATED"
    INVALID_PROBLEM = "INVALID_PROBLEM"
    INFRA_ERROR = "INFRA_ERROR"

    @property
    def counts(self) -> bool:
        """Whether the sample enters means, groups and losses."""
        return self not in (Verdict.INVALID_PROBLEM, Verdict.INFRA_ERROR)


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Row):
    role: Literal["system", "user", "assistant"]
    content: str
    reasoning_content: str | None = None


class Problem(Row):
    """One task with everything needed to verify an answer to it.

    `verification_info` is the family's own for reasoning families; for code it is open-r1-compatible:
    `{"language": "python", "test_cases": [{"input", "output", "type"}]}`.
    """

    id: str
    source: str  # the family's name
    domain: Literal["math", "code", "logic", "retrieval", "knowledge"]
    messages: list[Message]
    verifier: str
    verification_info: dict[str, Any]
    difficulty: str | None = None
    language: str = "en"
    date: str | None = None  # ISO day; evaluation windows select on it


class Condition(Row):
    """How a completion's length was controlled.

    free: not at all. forced: the thought was ended at `tokens` tokens and the answer asked for. extended: a thought
    that would have ended before `tokens` tokens was made to go on. stated: the prompt named a budget of as many.
    """

    mechanism: Literal["free", "forced", "extended", "stated"] = "free"
    tokens: int | None = None

    @property
    def id(self) -> str:
        """ "free", or as in "forced-64"."""
        return self.mechanism if self.tokens is None else f"{self.mechanism}-{self.tokens}"


class Generation(Row):
    """One completion of one problem. `key` is the sha256 of everything that determined it; `task` is the recipe's name
    for the set of problems it belongs to."""

    key: str
    task: str = ""
    problem_id: str
    index: int
    seed: int
    text: str
    reasoning: str | None
    answer: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    sampling: dict[str, Any]
    teacher: dict[str, str]  # {"name", "revision"} of the model that wrote it
    template_sha256: str
    condition: Condition = Condition()


class JudgedSample(Generation):
    """`verdict_key` is the sha256 of the generation's key and of what judged it."""

    verdict_key: str = ""
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0
    memory_mb: float | None = None
    isolation: str = "none"


class Budget(Row):
    kind: Literal["exact", "max", "none"] = "none"
    tokens: int | None = None


class SFTRow(Row):
    problem_id: str
    messages: list[Message]
    system_variant: Literal["none", "reflect", "concise", "budget"]
    budget: Budget = Budget()
    weight: float = 1.0


def sha256_of(*parts: Any) -> str:
    """The sha256 of JSON-serialisable parts, order and types included."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


R = TypeVar("R", bound=Row)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows to `path` as JSONL, whole or not at all; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")
            count += 1
    partial.replace(path)
    return count


def read_rows(path: Path, kind: type[R]) -> Iterator[R]:
    """Read a JSONL file of `kind`.

    Raises:
        InputError: the file is missing, or a line is not a row of that kind (file, line and key are named).
    """
    if not path.is_file():
        raise InputError(path, expected=f"a JSONL file of {kind.__name__} rows", found="no such file")
    with path.open("rb") as file:  # pydantic decodes, so that bytes that are no UTF-8 are an error of their line
        for number, line in enumerate(file, 1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in first["loc"]) or "the line"
                raise InputError(
                    path, where=f"line {number}, {key}", expected=f"a {kind.__name__} row", found=first["msg"]
                ) from error
