"""Problems with a final answer: asked for in a box, compared by eval/judge/maths.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from core_model.errors import InputError
from eval.judge.expressions import exact_number, final_answer, normalise
from eval.judge.maths import MathVerifier
from eval.tasks.family import Judgement, ask
from eval.tasks.rows_file import Row, RowsTask, read_rows_of, row_id, text_of
from eval.tasks.task import Mode
from eval.tasks.text import prompt_messages
from recipes.rows import Message, Problem
from recipes.schema import InputPath

INSTRUCTION = "Put your final answer within \\boxed{}."
QUESTION, ANSWER, SOLUTION = ("problem", "question", "prompt"), ("answer", "expected"), ("solution", "upstream_answer")


class MathsTask(RowsTask):
    """Problems with a final answer. A base model is shown `shots` worked ones before each."""

    base_stop: ClassVar[tuple[str, ...]] = ("\nProblem:", "\n\n\n")

    shots: int = Field(default=0, ge=0, description="worked problems before each, in base mode (V3 report: 8 or 4)")
    shots_path: InputPath | None = Field(default=None, description="rows with question and answer to show")
    unboxed: Literal["whole", "last_number", "no_answer"] = Field(
        default="last_number", description="an answer without a box counts as itself, as its last number, as none"
    )

    def gold(self, row: Row, place: str) -> str:
        """The right answer of a row.

        Raises:
            InputError: there is none.
        """
        return _filled(row, place, ANSWER)

    def problems(self) -> list[Problem]:
        found = []
        for number, (place, row) in enumerate(self.rows()):
            level = row.get("level")
            found.append(
                Problem(
                    id=row_id(row, place, number),
                    source="maths",
                    domain="math",
                    messages=ask(_filled(row, place, QUESTION)),
                    verifier="maths",
                    verification_info={"answer": self.gold(row, place)},
                    difficulty=str(level) if isinstance(level, str | int) else None,
                )
            )
        return found

    def messages(self, problem: Problem, mode: Mode) -> list[Message]:
        question = problem.messages[-1].content
        asked = problem.model_copy(update={"messages": ask(f"{question}\n\n{INSTRUCTION}")})
        return prompt_messages(asked, reflect=mode == "reasoning")

    def text(self, problem: Problem) -> str:
        worked = "".join(shot + "\n\n" for shot in shots_of(self.shots_path, self.shots))
        return f"{worked}Problem:\n{problem.messages[-1].content}\nSolution:\n"

    def judge(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        verifier = _verifier(self.unboxed, True)
        pairs = [
            (problem.verification_info["answer"], answer) for problem, answer in zip(problems, answers, strict=True)
        ]
        return [Judgement(one.verdict, one.detail or one.how) for one in verifier.verify_many(pairs)]

    def vote(self, answer: str) -> str | None:
        given = final_answer(answer, self.unboxed, True)
        if given is None:
            return None
        number = exact_number(given)  # 1,234 and 1234.0 are one vote
        return str(number) if number is not None else "".join(normalise(given).split()) or None

    def reference(self, problem: Problem) -> str | None:
        return f"\\boxed{{{problem.verification_info['answer']}}}"


def _filled(row: Row, place: str, names: Sequence[str]) -> str:
    """A field's text, which is not blank."""
    text = text_of(row, place, names)
    if not text.strip():
        raise InputError(place, where=" or ".join(names), expected="text", found="blanks")
    return text


@functools.cache
def _verifier(unboxed: Literal["whole", "last_number", "no_answer"], hashes: bool) -> MathVerifier:
    return MathVerifier(unboxed=unboxed, hashes=hashes)


@functools.cache
def shots_of(path: Path | None, count: int) -> tuple[str, ...]:
    """The first worked problems of a file, each as a base model is shown it.

    Raises:
        InputError: no file, or not as many in it.
    """
    if count == 0:
        return ()
    if path is None:
        raise InputError("task", where="shots_path", expected=f"rows for {count} shots", found="none")
    shots: list[str] = []
    for place, row in read_rows_of(path):
        if len(shots) == count:
            break
        worked = text_of(row, place, (*SOLUTION, *ANSWER))
        shots.append(f"Problem:\n{text_of(row, place, QUESTION)}\nSolution:\n{worked}")
    if len(shots) < count:
        raise InputError(path, where="shots", expected=f"{count} rows", found=str(len(shots)))
    return tuple(shots)
