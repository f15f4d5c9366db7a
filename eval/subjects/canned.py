"""Subjects that write nothing themselves: answers from a file, and the reference solutions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core_model.errors import InputError
from eval.subjects.subject import Answer, Ask, Subject, Wanted
from recipes.rows import Row, read_rows, sha256_of


class CannedRow(Row):
    """One answer in the file of a canned subject. Token counts default to 0: then lengths say nothing."""

    problem_id: str
    task: str | None = None  # the recipe's name for its task; None: any with a problem of this id
    index: int = Field(default=0, ge=0)
    answer: str
    reasoning: str | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    prompt_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)
    answer_tokens: int = Field(default=0, ge=0)


class CannedSubject(Subject):
    """Answers that were written before, one JSONL row each (`CannedRow`)."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    @cached_property
    def revision(self) -> str:
        """The sha256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @cached_property
    def rows(self) -> dict[tuple[str | None, str, int], CannedRow]:
        return {(row.task, row.problem_id, row.index): row for row in read_rows(self.path, CannedRow)}

    def prompt(self, ask: Ask) -> Any:
        if ask.condition.mechanism != "free":
            raise InputError(f"model {self.name}", where="budgets", expected="a model", found="answers from a file")
        return None

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[list[tuple[Wanted, Answer]]]:
        yield [(one, self._answer(one)) for one in wanted]

    def _answer(self, wanted: Wanted) -> Answer:
        problem, name = wanted.ask.problem.id, wanted.ask.name
        row = self.rows.get((name, problem, wanted.index)) or self.rows.get((None, problem, wanted.index))
        if row is None:
            raise InputError(
                self.path, where=f"problem {problem}, index {wanted.index}", expected="an answer", found="none"
            )
        return Answer(
            text=row.answer if row.reasoning is None else f"<think>{row.reasoning}</think>{row.answer}",
            **row.model_dump(exclude={"problem_id", "task", "index"}),
        )


class CanonicalSubject(Subject):
    """The tasks' own reference solutions: what a sound task and judge find all right."""

    @property
    def revision(self) -> str:
        return sha256_of("canonical")

    def prompt(self, ask: Ask) -> Any:
        if ask.condition.mechanism != "free":
            raise InputError(f"model {self.name}", where="budgets", expected="a model", found="reference solutions")
        return None

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[list[tuple[Wanted, Answer]]]:
        yield [(one, self._answer(one)) for one in wanted]

    def _answer(self, wanted: Wanted) -> Answer:
        reference = wanted.ask.task.reference(wanted.ask.problem)
        if reference is None:
            raise InputError(
                f"task {wanted.ask.name}", where=wanted.ask.problem.id, expected="a reference solution", found="none"
            )
        return Answer(reference, None, reference, "stop", 0, 0, 0)
