"""The recipe of pre-training and of context extension: one schema, one loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from core_model.config import PRESETS, V3Config
from core_model.moe import RankCap
from pretrain.data.config import CorpusConfig
from pretrain.schedule import LearningRate, Phase, Phases
from recipes.faults import did_you_mean
from recipes.schema import ComputeDtype, InputPath, KeyFault, RecomputePolicy, StageRecipe, StrictModel


class Model(StrictModel):
    """A model from scratch."""

    preset: str = Field(default="nano", description="preset of core_model.V3Config")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="configuration fields that replace the preset's"
    )
    init_std: float = Field(
        default=0.006, gt=0, description="standard deviation of every matrix (V3 report 4.2: 0.006)"
    )

    @field_validator("preset")
    @classmethod
    def _is_one(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"one of {', '.join(PRESETS)}")
        return preset

    @field_validator("overrides")
    @classmethod
    def _are_fields(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        known = V3Config.__annotations__
        for name in overrides:
            if name == "rope_scaling":
                raise KeyFault((name,), expected="it beside `model`: it is the stage's", found="it among the model's")
            if name not in known:
                expected = f"a field of V3Config{did_you_mean(name, known)}"
                raise KeyFault((name,), expected=expected, found=f"the unknown field {name!r}")
        return overrides

    @model_validator(mode="after")
    def _fit_together(self) -> Model:
        try:
            V3Config.preset(self.preset, **self.overrides)
        except ValueError as error:
            raise _misfit("overrides", error) from error
        return self


class Cap(StrictModel):
    """A bound on the rows of an expert-parallel rank; V3 has none. What it leaves out is logged as `left_out`."""

    ranks: int = Field(ge=2, description="expert-parallel ranks, which hold equal runs of experts")
    factor: float = Field(
        ge=1, description="most (token, expert) pairs of a rank, times what an even load brings it (V2: 1)"
    )


class Data(StrictModel):
    """What a step trains on."""

    sequence_length: int = Field(ge=8, description="tokens of a sequence")
    sequences_per_step: int = Field(ge=1, description="sequences of that length in one optimiser step")
    micro_batch: int = Field(ge=1, description="sequences in one forward and backward")
    rows: Literal["packed", "long"] = Field(
        default="packed", description="packed: documents end to end; long: the corpus's rows of this length"
    )
    replay_sequences: int = Field(
        default=0, ge=0, description="packed sequences of base_length added to each step of an extension stage"
    )
    base_length: int = Field(
        default=256, ge=8, description="sequence length of pre-training, for replay and evaluation"
    )


class Optimizer(StrictModel):
    """AdamW as V3 report 4.2 gives it; eps is not published, 1e-8 is torch's."""

    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW betas (V3: 0.9, 0.95)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices, not on norms (V3: 0.1)")
    clip: float = Field(default=1.0, gt=0, description="gradient norm (V3: 1.0)")


class Evaluation(StrictModel):
    """Validation loss: short text in bits per byte; in extension stages also by position in long text."""

    every: int = Field(default=0, ge=0, description="steps between evaluations of short text; 0: only before and after")
    short_tokens: int = Field(default=65536, ge=256, description="validation tokens at base_length")
    long_rows: int = Field(default=0, ge=0, description="validation rows of sequence_length, for the loss by position")


class Recipe(StageRecipe):
    """Pre-training (`model` and `corpus` given) or an extension stage (`init_from` and `corpus_from` given)."""

    model: Model | None = Field(default=None, description="a model from scratch; null with init_from")
    init_from: InputPath | None = Field(default=None, description="folder of the model to go on with")
    rope_scaling: dict[str, Any] | None = Field(
        default=None, description="YaRN of this stage in DeepSeek's fields; null: plain RoPE (pre-training)"
    )
    corpus: CorpusConfig | None = Field(
        default=None, description="corpus to prepare in this run; null with corpus_from"
    )
    corpus_from: InputPath | None = Field(default=None, description="folder of a corpus that an earlier run prepared")
    data: Data = Field(description="sequences of a step")
    steps: int = Field(ge=1, description="optimiser steps")
    learning_rate: LearningRate = Field(description="schedule over steps")
    optimizer: Optimizer = Field(default=Optimizer(), description="AdamW and clipping")
    mtp_weight: Phases = Field(
        default=Phases(phases=(Phase(from_step=0, value=0.3),)), description="MTP lambda (V3: 0.3, then 0.1)"
    )
    bias_speed: Phases = Field(
        default=Phases(phases=(Phase(from_step=0, value=0.001),)), description="routing bias speed (V3: 0.001, then 0)"
    )
    balance_alpha: float = Field(default=1e-4, ge=0, description="sequence-wise balance loss (V3: 1e-4)")
    rank_cap: Cap | None = Field(
        default=None,
        description="leaves a rank's lightest pairs out in training where more fall on it; null: nothing (V3)",
    )
    unbalanced: bool = Field(default=False, description="allow neither bias nor balance loss (for the ablation)")
    compute_dtype: ComputeDtype
    recompute: RecomputePolicy = "none"
    evaluation: Evaluation = Field(default=Evaluation(), description="validation")
    log_every: int = Field(default=10, ge=1, description="steps between metrics")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _one_source_each(self) -> Recipe:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give model (from scratch) or init_from (a folder), one of them")
        if (self.corpus is None) == (self.corpus_from is None):
            raise ValueError("give corpus (to prepare) or corpus_from (a folder), one of them")
        if self.data.sequences_per_step % self.data.micro_batch:
            raise ValueError(
                f"data.sequences_per_step {self.data.sequences_per_step} is not a multiple of "
                f"data.micro_batch {self.data.micro_batch}"
            )
        if self.model is not None:
            try:
                config = V3Config.preset(self.model.preset, **self.model.overrides, rope_scaling=self.rope_scaling)
            except ValueError as error:  # the model has been built without it
                raise _misfit("rope_scaling", error) from error
            if self.corpus is not None and config.vocab_size != self.corpus.vocabulary_size:
                raise ValueError(
                    f"the model's vocab_size {config.vocab_size} is not corpus.vocabulary_size "
                    f"{self.corpus.vocabulary_size}"
                )
            if self.rank_cap is not None:
                RankCap(self.rank_cap.ranks, self.rank_cap.factor).check(config)
        reached = [phase for phase in self.bias_speed.phases if phase.from_step < self.steps]
        balanced = self.balance_alpha > 0 or any(phase.value > 0 for phase in reached)
        if not balanced and not self.unbalanced:
            raise ValueError(
                "neither bias_speed nor balance_alpha: the router would be unbalanced; say unbalanced: true"
            )
        return self


def _misfit(key: str, error: ValueError) -> KeyFault:
    """What a configuration says against a key of the recipe."""
    return KeyFault((key,), expected="fields that fit together", found=str(error).removeprefix("V3Config: "))
