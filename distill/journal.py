"""Every trace a teacher wrote, with its verdict, in an append-only file that survives being killed.

A line is written whole or does not count: what follows the last newline is dropped on opening. A line's key says what
it was made from, so that a journal of another teacher or other problems is refused and never mixed in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from core_model.errors import InputError
from distill.teacher.trace import Trace
from recipes.rows import Row, Verdict, read_rows

Answered = tuple[str, str]  # a problem's id and an answer to it: equal ones have equal verdicts


class Attempt(Row):
    """One trace of one problem and what the verifier said of it."""

    key: str
    problem_id: str
    family: str
    index: int
    solution: str
    check: str
    answer: str
    verdict: Verdict
    detail: str = ""

    @property
    def answered(self) -> Answered:
        return self.problem_id, self.answer

    @property
    def trace(self) -> Trace:
        return Trace(self.solution, self.check, self.answer)


class Journal:
    """The attempts of one run, in order: `attempts`, those on disk; `by_answer`, one of each answer to a problem."""

    def __init__(self, path: Path) -> None:
        """Open the journal, or begin it.

        Raises:
            InputError: a whole line that is not an Attempt.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _drop_torn_line(path)
        self.attempts: list[Attempt] = list(read_rows(path, Attempt))
        self.by_answer = {attempt.answered: attempt for attempt in self.attempts}

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write attempts through to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(attempt.model_dump_json() + "\n" for attempt in attempts))
            file.flush()
            os.fsync(file.fileno())
        self.attempts.extend(attempts)
        self.by_answer |= {attempt.answered: attempt for attempt in attempts}

    def require_keys(self, keys: Sequence[str]) -> None:
        """Check that the journal is a beginning of the work whose generations have `keys`.

        Raises:
            InputError: a line was made from something else.
        """
        if len(self.attempts) > len(keys):
            raise InputError(self.path, expected=f"at most {len(keys)} lines", found=f"{len(self.attempts)}")
        for number, (attempt, key) in enumerate(zip(self.attempts, keys, strict=False), 1):
            if attempt.key != key:
                raise InputError(
                    self.path, where=f"line {number}, key", expected=f"{key[:12]}...", found=f"{attempt.key[:12]}..."
                )


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
