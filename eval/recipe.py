"""The eval stage's recipe."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from eval.judge.shared import JudgeRecipe, judge_faults
from eval.needle_recipe import NeedleRecipe
from eval.subjects.endpoint import EndpointRecipe
from eval.tasks.task import Mode, Task, build_task
from recipes.faults import shown
from recipes.rows import Condition
from recipes.schema import InputPath, KeyFault, StageRecipe, StrictModel

ID = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class ModelEntry(StrictModel):
    """One model to evaluate. The same folder may stand under two ids with different modes."""

    kind: Literal["trivium", "transformers", "endpoint", "canned", "canonical"] = Field(
        default="trivium",
        description="a model of ours, any of transformers', a server, answers from a file, the reference solutions",
    )
    path: InputPath | None = Field(
        default=None, description="the model's folder, tokenizer included; of canned answers the JSONL file"
    )
    endpoint: EndpointRecipe | None = Field(default=None, description="the server, where kind is endpoint")
    mode: Mode = Field(
        description="how it is asked: base (running text), chat (no system prompt), reasoning (asked to reflect)"
    )
    label: str | None = Field(default=None, min_length=1, description="its name in tables; null: its id")
    problems: bool = Field(default=True, description="whether it answers the tasks' problems")
    budgets: bool = Field(default=False, description="whether it answers again under budgets of thought")
    needle: bool = Field(default=False, description="whether it walks the needle grid")
    trained_length: int | None = Field(
        default=None, ge=1, description="context it was trained to, tokens; null: max_position_embeddings of its config"
    )
    cutoff: str | None = Field(
        default=None, description="last day of its training data, YYYY-MM-DD: a line in the contamination curve"
    )
    report: InputPath | None = Field(
        default=None, description="report.json of the stage that pre-trained or extended it: its losses on text"
    )

    @field_validator("cutoff")
    @classmethod
    def _is_a_day(cls, cutoff: str | None) -> str | None:
        if cutoff is not None:
            datetime.date.fromisoformat(cutoff)
        return cutoff

    @model_validator(mode="after")
    def _is_whole(self) -> ModelEntry:
        needs_path = self.kind in ("trivium", "transformers", "canned")
        if needs_path != (self.path is not None):
            raise ValueError(f"kind {self.kind} {'needs' if needs_path else 'has no'} path")
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError(f"kind {self.kind} {'needs' if self.kind == 'endpoint' else 'has no'} endpoint")
        if self.kind in ("canned", "canonical") and (self.needle or self.budgets):
            raise ValueError(f"kind {self.kind} neither walks the needle grid nor answers under budgets")
        return self


class NewTokens(StrictModel):
    """The longest completion, thoughts and stop token included."""

    base: int = Field(default=64, ge=1, description="in base mode, tokens")
    chat: int = Field(default=96, ge=1, description="in chat mode, tokens")
    reasoning: int = Field(default=256, ge=1, description="in reasoning mode, tokens")


class SamplingRecipe(StrictModel):
    """How answers are drawn."""

    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus, 0 to 1; 1 is off")
    top_k: int = Field(default=0, ge=0, description="most likely tokens to choose from; 0 is off")
    samples: int = Field(default=1, ge=1, description="answers per problem")
    pass_at: tuple[int, ...] = Field(
        default=(1,), description="values of k for pass@k and cons@k (the majority's answer), none above `samples`"
    )
    max_new_tokens: NewTokens = Field(default_factory=NewTokens, description="tokens by mode")

    @model_validator(mode="after")
    def _fits(self) -> SamplingRecipe:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"{self.samples} greedy samples are equal: a temperature above 0, or samples 1")
        if not all(1 <= k <= self.samples for k in self.pass_at):
            raise ValueError(f"pass@k needs 1 <= k <= samples ({self.samples}), not {list(self.pass_at)}")
        return self


class StatisticsRecipe(StrictModel):
    """Intervals and tests."""

    resamples: int = Field(default=10_000, ge=100, description="bootstrap resamples over problems")
    flips: int = Field(default=10_000, ge=100, description="random sign flips of the paired test")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="coverage of the intervals, 0 to 1")


class BudgetsRecipe(StrictModel):
    """Answers under budgets of thought, beside the free ones: what a model's `budgets: true` asks for."""

    tokens: tuple[int, ...] = Field(default=(), description="budgets, tokens of thought; () runs none")
    mechanisms: tuple[Literal["forced", "extended", "stated"], ...] = Field(
        default=("forced", "stated"),
        description="forced: the thought is ended there; extended: made to last as long; stated: named in the prompt",
    )
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1, description="tasks that count; null: all of them")
    problems: int | None = Field(default=None, ge=1, description="problems per task, the first ones; null: all")

    @field_validator("tokens")
    @classmethod
    def _rise(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if list(tokens) != sorted(set(tokens)) or any(one < 0 for one in tokens):
            raise ValueError(f"budgets are 0 or more and rise, not {list(tokens)}")
        return tokens

    @property
    def conditions(self) -> list[Condition]:
        return [Condition(mechanism=each, tokens=tokens) for each in self.mechanisms for tokens in self.tokens]


class LengthsRecipe(StrictModel):
    """What the report of length against accuracy looks at."""

    budgets: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="budgets at which free answers are scored again, tokens; (): powers of two"
    )
    base: str | None = Field(
        default=None, description="id of the model whose pass rates say how difficult a problem is; null: all models"
    )
    groups: int = Field(default=5, ge=1, description="groups of problems by difficulty")


class Comparison(StrictModel):
    """Two models on the same problems."""

    better: str = Field(description="id of the model expected to be better")
    baseline: str = Field(description="id of the model it is compared with")
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1, description="tasks that count; null: all of them")


class Recipe(StageRecipe):
    """What to evaluate: which models, on which problems, and what to compare."""

    models: dict[str, ModelEntry] = Field(
        min_length=1, description="the models by id, in the order of the table's rows"
    )
    tasks: dict[str, SerializeAsAny[Task]] = Field(
        default={}, description="what is asked, by name: each with its task's own keys (python -m eval tasks)"
    )
    sampling: SamplingRecipe = Field(default_factory=SamplingRecipe, description="how answers are drawn")
    comparisons: tuple[Comparison, ...] = Field(
        default=(), description="pairs of models to compare, problem by problem"
    )
    statistics: StatisticsRecipe = Field(default_factory=StatisticsRecipe, description="intervals and tests")
    budgets: BudgetsRecipe = Field(default=BudgetsRecipe(), description="budgets of thought")
    lengths: LengthsRecipe = Field(default=LengthsRecipe(), description="length against accuracy")
    needle: NeedleRecipe = Field(default_factory=NeedleRecipe, description="the needle grid")
    curves: dict[str, InputPath] = Field(
        default={}, description="metrics.jsonl of other stages' runs, by label: drawn in the report"
    )
    judge: JudgeRecipe = Field(default=JudgeRecipe(), description="how programs are judged")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of activations while generating")
    max_batch: int = Field(default=128, ge=1, description="sequences decoded together")
    chunk: int = Field(default=512, ge=1, description="problems between two writes to disk; what a kill can cost")

    @field_validator("models")
    @classmethod
    def _have_ids(cls, models: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
        for name in models:
            if not re.fullmatch(ID, name):
                raise ValueError(f"a model's id is made of letters, digits, _ and -, not {name!r}")
        return models

    @field_validator("tasks", mode="before")
    @classmethod
    def _are_built(cls, tasks: Any) -> Any:
        if not isinstance(tasks, dict):
            return tasks
        built = {}
        for name, options in tasks.items():
            if not re.fullmatch(ID, name):
                raise ValueError(f"a task's name is made of letters, digits, _ and -, not {name!r}")
            if not isinstance(options, dict):
                raise KeyFault((name,), expected="a mapping of keys", found=shown(options))
            built[name] = build_task(name, options)
        return built

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        written = [name for name, task in self.tasks.items() if task.kind == "answers"]
        answering = [name for name, entry in self.models.items() if entry.problems and written]
        for pair in self.comparisons:
            for name in (pair.better, pair.baseline):
                if name not in answering:
                    known = ", ".join(answering) or "none"
                    raise ValueError(f"comparisons: {name!r} is no model that answers problems (they are: {known})")
            if pair.better == pair.baseline:
                raise ValueError(f"comparisons: {pair.better!r} with itself")
            self._check_tasks("comparisons", pair.tasks, written)
        if self.lengths.base is not None and self.lengths.base not in answering:
            raise ValueError(f"lengths.base: {self.lengths.base!r} is no model that answers problems")
        self._check_tasks("budgets", self.budgets.tasks, written)
        if any(entry.budgets for entry in self.models.values()) and not self.budgets.tokens:
            raise ValueError("budgets.tokens: a model asks for budgets, and there are none")
        return self

    @staticmethod
    def _check_tasks(where: str, names: tuple[str, ...] | None, written: list[str]) -> None:
        for name in names or ():
            if name not in written:
                known = ", ".join(written) or "none"
                raise ValueError(f"{where}: {name!r} is not among the tasks with answers (they are: {known})")

    def machine_faults(self) -> list[KeyFault]:
        return judge_faults(self.judge, needed=any(task.needs_judge for task in self.tasks.values()))

    def label(self, model: str) -> str:
        """The model's name in tables."""
        return self.models[model].label or model.replace("_", " ")
