"""The generated problem families as tasks: held-out problems with exact verifiers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from eval.tasks import FAMILIES, best_constant, get_family
from eval.tasks.family import Judgement
from eval.tasks.task import Task
from recipes.rows import Problem, sha256_of


class FamilyTask(Task):
    """Problems of one family's held-out splits."""

    family: ClassVar[str]

    count: int = Field(ge=1, description="problems, drawn from the held-out split")
    split: Literal["validation", "test"] = Field(default="test", description="held-out split they are drawn from")
    start: int = Field(default=0, ge=0, description="index of the first problem")
    seed: int = Field(
        default=0, ge=0, description="which held-out problems are drawn; apart from the recipe's, so that runs compare"
    )

    def problems(self) -> list[Problem]:
        source = get_family(self.family, seed=self.seed)
        return [source.problem(index, self.split) for index in range(self.start, self.start + self.count)]

    def judge(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        return get_family(self.family).judge_many(problems, answers)

    def best_constant(self, problems: Sequence[Problem]) -> tuple[str, float] | None:
        return best_constant([problem.model_copy(update={"source": self.family}) for problem in problems])

    def reference(self, problem: Problem) -> str | None:
        return get_family(self.family).reference_answer(problem)

    def revision(self) -> str:
        source = inspect.getsource(FAMILIES[self.family])
        return sha256_of(super().revision(), source)


@functools.cache
def family_task(name: str) -> type[FamilyTask]:
    """The task class of a family."""
    stop = ("\nQuestion",) if FAMILIES[name].domain == "code" else ("\n",)
    members = {"family": name, "needs_judge": FAMILIES[name].domain == "code", "base_stop": stop}
    annotations = {"family": ClassVar[str], "needs_judge": ClassVar[bool], "base_stop": ClassVar[tuple[str, ...]]}
    described = {"__module__": __name__, "__doc__": FAMILIES[name].description, "__annotations__": annotations}
    return type(f"{name}_task", (FamilyTask,), described | members)
