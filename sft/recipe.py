"""The sft stage's recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from recipes.schema import InputPath, StageRecipe


class Recipe(StageRecipe):
    """Which model to tune, on which rows, and how."""

    init_from: InputPath = Field(description="the model's folder to start from; its tokenizer is used")
    data: InputPath = Field(description="a JSONL file of SFTRow; all of its rows are used")
    more_data: list[InputPath] = Field(default=[], description="further such files, whose rows are mixed in")
    sequence_length: int = Field(
        ge=8, description="tokens of a pack: whole samples lie in it side by side, isolated from each other"
    )
    validation_share: float = Field(
        default=0.02, ge=0, lt=1, description="share of the problems whose rows are held out for validation, 0 to 1"
    )
    mtp_weight: float = Field(
        default=0.1, ge=0, description="weight of the MTP losses' mean (V3's lambda: 0.1 after 10T tokens, section 4.2)"
    )
    balance_alpha: float = Field(
        default=0.0001, ge=0, description="weight of the sequence-wise balance loss (V3's alpha: 0.0001, section 4.2)"
    )
    bias_speed: float = Field(
        default=0.0, ge=0, description="step of the routing bias per optimiser step (V3 ends pre-training with 0)"
    )
    compute_dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="dtype of the activations and products; the weights stay fp32"
    )
    recompute: Literal["none", "v3", "layer"] = Field(
        default="none",
        description="made again in backward: nothing, norms and MLA up-projections (V3, section 3.2.3), whole layers",
    )
    trainer: dict[str, Any] = Field(
        default={},
        description="keys of TRL's SFTConfig, passed on word for word: steps, batch, learning rate, intervals",
    )

    @field_validator("trainer")
    @classmethod
    def _fits_the_trainer(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        from sft.trainer_config import find_problem

        problem = find_problem(trainer)
        if problem is not None:
            raise ValueError(problem)
        return trainer
