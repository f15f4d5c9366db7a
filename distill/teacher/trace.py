"""What a teacher returns, and how a worked solution with a mended mistake is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from recipes.rows import Problem, sha256_of


@dataclass(frozen=True)
class Trace:
    """Reasoning and answer to one problem.

    Args:
        solution: the work that leads to the answer; it stands alone.
        check: the verification after it, a tail that can be dropped without losing the answer ("" for none).
        answer: what stands outside the thoughts.
    """

    solution: str
    check: str
    answer: str

    @property
    def reasoning(self) -> str:
        return f"{self.solution}\n{self.check}" if self.check else self.solution


class Teacher(Protocol):
    """Anything that answers problems. A teacher behind a network fits as well as a renderer."""

    @property
    def identity(self) -> dict[str, Any]:
        """Name, revision and every setting that decides what it writes."""
        ...

    def generate(self, problem: Problem, seed: int) -> Trace:
        """One answer; equal for equal problem and seed."""
        ...


def generation_key(teacher: Teacher, problem: Problem, seed: int) -> str:
    """The content address of one generation: the sha256 of everything that determined it."""
    messages = [message.model_dump() for message in problem.messages]
    return sha256_of(teacher.identity, messages, problem.verification_info, seed)


@dataclass(frozen=True)
class Line:
    """One line of work, with the slip that could happen in it.

    Args:
        right: the line.
        wrong: the line with the slip; "" where none is likely.
        remark: what is wrong there, the rest of a sentence that begins with "Wait, ".
    """

    right: str
    wrong: str = ""
    remark: str = ""


def write_out(lines: Sequence[Line], rng: Random, mistake: bool) -> str:
    """The lines as text; with `mistake`, one of them goes wrong first, is noticed and done again.

    It is mended on the spot, so that the solution is right without the check that follows it.
    """
    slippery = [index for index, line in enumerate(lines) if line.wrong]
    slip = rng.choice(slippery) if mistake and slippery else None
    text: list[str] = []
    for index, line in enumerate(lines):
        if index == slip:
            text += [line.wrong, f"Wait, {line.remark}."]
        text.append(line.right)
    return "\n".join(text)
