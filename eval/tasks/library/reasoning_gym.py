"""Any data set of reasoning-gym, judged with the traps of its scorers closed (eval/judge/gym.py)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from core_model.errors import InputError
from eval.judge.gym import GymScorer
from eval.tasks.family import Judgement, ask
from eval.tasks.task import Mode, Task
from eval.tasks.text import prompt_messages
from recipes.rows import Message, Problem, sha256_of

INSTRUCTION = "Give your final answer between <answer> and </answer>."


class ReasoningGym(Task):
    """Problems of one of reasoning-gym's data sets."""

    dataset: str = Field(description="its name there, such as chain_sum or countdown")
    count: int = Field(ge=1, description="problems")
    seed: int = Field(default=0, ge=0, description="which problems are made")
    options: dict[str, Any] = Field(default={}, description="the data set's own settings")

    @field_validator("dataset")
    @classmethod
    def _is_trusted(cls, dataset: str) -> str:
        try:
            with GymScorer(dataset):
                return dataset
        except InputError as error:
            raise ValueError(str(error)) from error

    def problems(self) -> list[Problem]:
        import reasoning_gym

        try:
            made = reasoning_gym.create_dataset(self.dataset, size=self.count, seed=self.seed, **self.options)
            entries = [json.loads(json.dumps(made[index], default=str)) for index in range(self.count)]
        except (AssertionError, TypeError, ValueError) as error:
            raise InputError(
                f"reasoning-gym {self.dataset}", where="options", expected="its settings", found=str(error)
            ) from error
        return [
            Problem(
                id=f"{self.dataset}-{sha256_of(entry['question'], number)[:12]}",
                source="reasoning_gym",
                domain="logic",
                messages=ask(entry["question"]),
                verifier="reasoning_gym",
                verification_info={"entry": entry},
            )
            for number, entry in enumerate(entries)
        ]

    def messages(self, problem: Problem, mode: Mode) -> list[Message]:
        asked = problem.model_copy(update={"messages": ask(f"{problem.messages[-1].content}\n\n{INSTRUCTION}")})
        return prompt_messages(asked, reflect=mode == "reasoning")

    def judge(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        scorer = _scorer(self.dataset)
        return [
            scorer.judge(problem.verification_info["entry"], self.vote(answer) or "")
            for problem, answer in zip(problems, answers, strict=True)
        ]

    def vote(self, answer: str) -> str | None:
        """What stands between the last tags, or the whole where there are none."""
        tagged = re.findall(r"<answer>(.*?)</answer>", answer, re.DOTALL)
        return (tagged[-1] if tagged else answer).strip() or None

    def reference(self, problem: Problem) -> str | None:
        answer = problem.verification_info["entry"].get("answer")
        return None if answer is None else str(answer)


@functools.cache
def _scorer(dataset: str) -> GymScorer:
    return GymScorer(dataset)
