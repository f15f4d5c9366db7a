"""The eval stage's recipe."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from eval.judge.shared import JudgeRecipe
from eval.tasks import refuse_unknown_families
from recipes.schema import InputPath, StageRecipe, StrictModel

Mode = Literal["base", "chat", "reasoning"]
ID = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class ModelEntry(StrictModel):
    """One model to evaluate. The same folder may stand under two ids with different modes."""

    path: InputPath = Field(description="a model folder in DeepSeek's format, tokenizer included")
    mode: Mode = Field(
        description="how it is asked: base (running text), chat (no system prompt), reasoning (asked to reflect)"
    )
    label: str | None = Field(default=None, min_length=1, description="its name in tables; null: its id")
    problems: bool = Field(default=True, description="whether it answers the problems")
    needle: bool = Field(default=False, description="whether it walks the needle grid")
    trained_length: int | None = Field(
        default=None, ge=1, description="context it was trained to, tokens; null: max_position_embeddings of its config"
    )
    report: InputPath | None = Field(
        default=None, description="report.json of the stage that pre-trained or extended it: its losses on text"
    )


class ProblemsRecipe(StrictModel):
    """The held-out problems, the same for every model."""

    families: dict[str, int] = Field(description="problems per family, or an empty mapping for none")
    split: Literal["validation", "test"] = Field(default="test", description="held-out split they are drawn from")
    start: int = Field(default=0, ge=0, description="index of each family's first problem")
    seed: int = Field(
        default=0, ge=0, description="which held-out problems are drawn; apart from `seed`, so that runs compare"
    )

    @field_validator("families")
    @classmethod
    def _are_known(cls, families: dict[str, int]) -> dict[str, int]:
        refuse_unknown_families(families)
        for name, count in families.items():
            if count < 1:
                raise ValueError(f"{name}: a count of problems is 1 or more, not {count}")
        return families


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
    pass_at: tuple[int, ...] = Field(default=(1,), description="values of k for pass@k, none above `samples`")
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


class NeedleRecipe(StrictModel):
    """The grid of lengths and depths (V3 report, figure 8)."""

    lengths: tuple[int, ...] = Field(
        default=(256, 1024, 2048, 4096, 8192), min_length=1, description="contexts, tokens: prompt and answer"
    )
    depths: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="where the needle lies, 0 (start) to 1 (end)"
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="documents per cell, one for each")
    distractors: int = Field(default=0, ge=0, description="needles about other places in the same document")
    filler: InputPath | None = Field(
        default=None, description="text that hides the needle: JSONL with `text`, or a text file; needed by the grid"
    )
    filler_mb: float = Field(default=1.0, gt=0, description="how much of it is used, from its beginning, MB")
    batch_tokens: int = Field(default=16_384, ge=1, description="prompt tokens read at once")

    @model_validator(mode="after")
    def _is_a_grid(self) -> NeedleRecipe:
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"a depth is between 0 and 1, not {list(self.depths)}")
        for name in ("lengths", "depths", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each value once, not {list(values)}")
        return self


class Comparison(StrictModel):
    """Two models on the same problems."""

    better: str = Field(description="id of the model expected to be better")
    baseline: str = Field(description="id of the model it is compared with")
    families: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="families that count; null: all of them"
    )


class Recipe(StageRecipe):
    """What to evaluate: which models, on which problems, and what to compare."""

    models: dict[str, ModelEntry] = Field(
        min_length=1, description="the models by id, in the order of the table's rows"
    )
    problems: ProblemsRecipe = Field(description="the held-out problems")
    sampling: SamplingRecipe = Field(default_factory=SamplingRecipe, description="how answers are drawn")
    comparisons: tuple[Comparison, ...] = Field(
        default=(), description="pairs of models to compare, problem by problem"
    )
    statistics: StatisticsRecipe = Field(default_factory=StatisticsRecipe, description="intervals and tests")
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

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        answering = [name for name, entry in self.models.items() if entry.problems and self.problems.families]
        for pair in self.comparisons:
            for name in (pair.better, pair.baseline):
                if name not in answering:
                    known = ", ".join(answering) or "none"
                    raise ValueError(f"comparisons: {name!r} is no model that answers problems (they are: {known})")
            if pair.better == pair.baseline:
                raise ValueError(f"comparisons: {pair.better!r} with itself")
            for family in pair.families or ():
                if family not in self.problems.families:
                    known = ", ".join(self.problems.families)
                    raise ValueError(f"comparisons: {family!r} is not among the problems (they are: {known})")
        if self.needle.filler is None and any(entry.needle for entry in self.models.values()):
            raise ValueError("needle.filler: the grid needs text to hide needles in")
        return self

    def label(self, model: str) -> str:
        """The model's name in tables."""
        return self.models[model].label or model.replace("_", " ")
