"""The sft stage's recipe, and what it shares with other stages that run one of TRL's trainers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import Field, field_validator, model_validator

from recipes.schema import ComputeDtype, InputPath, KeyFault, RecomputePolicy, StageRecipe


class TrainerRecipe(StageRecipe, ABC):
    """A model that one of TRL's trainers goes on with; `trainer` holds that trainer's own keys."""

    init_from: InputPath = Field(description="the model's folder to start from; its tokenizer is used")
    bias_speed: float = Field(
        default=0.0, ge=0, description="step of the routing bias per optimiser step (V3 ends pre-training with 0)"
    )
    recompute: RecomputePolicy = "none"
    trainer: dict[str, Any]

    @staticmethod
    @abstractmethod
    def trainer_fault(trainer: dict[str, Any]) -> KeyFault | None:
        """The first of the trainer's keys that is at fault, None when none is."""

    @field_validator("trainer")
    @classmethod
    def _fits_the_trainer(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        fault = cls.trainer_fault(trainer)
        if fault is not None:
            raise fault
        return trainer


class Recipe(TrainerRecipe):
    """Which model to tune, on which rows, and how."""

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
    unbalanced: bool = Field(default=False, description="allow neither bias_speed nor balance_alpha")
    compute_dtype: ComputeDtype
    trainer: dict[str, Any] = Field(
        default={},
        description="keys of TRL's SFTConfig, passed on word for word: steps, batch, learning rate, intervals",
    )

    @model_validator(mode="after")
    def _balanced(self) -> Recipe:
        if not (self.bias_speed or self.balance_alpha or self.unbalanced):
            raise ValueError(
                "neither bias_speed nor balance_alpha: the router would be unbalanced; say unbalanced: true"
            )
        return self

    @staticmethod
    def trainer_fault(trainer: dict[str, Any]) -> KeyFault | None:
        from sft.trainer_config import find_fault

        return find_fault(trainer)
