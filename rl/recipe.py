"""The rl stage's recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from eval.judge.shared import JudgeRecipe, judge_faults
from eval.tasks import refuse_unknown_families
from recipes.schema import KeyFault, StrictModel
from rl.length import AnyLengthReward, NoLength
from rl.rewards import RewardRecipe
from sft.recipe import TrainerRecipe


class ProblemsRecipe(StrictModel):
    families: dict[str, float] = Field(
        min_length=1, description="share of each family's problems (they need not sum to 1), of the training split"
    )
    start: int = Field(
        default=0, ge=0, description="index of each family's first problem; past those that distillation used"
    )
    reflect: bool = Field(
        default=True,
        description="whether the system prompt asks for reasoning, as it does in the reasoned samples of distillation",
    )

    @field_validator("families")
    @classmethod
    def _are_known(cls, families: dict[str, float]) -> dict[str, float]:
        refuse_unknown_families(families)
        for name, weight in families.items():
            if weight <= 0:
                raise ValueError(f"{name}: a share is above 0, not {weight}")
        return families


class RolloutRecipe(StrictModel):
    max_batch: int = Field(default=128, ge=1, description="samples decoded together")
    dtype: Literal["bfloat16", "float32"] | None = Field(
        default=None, description="dtype of the engine's products and cache; null: the policy's compute_dtype"
    )


class PreflightRecipe(StrictModel):
    problems: int = Field(
        default=8, ge=1, description="problems of each family whose reference and corrupted answers are scored first"
    )


class Recipe(TrainerRecipe):
    """Which model to reinforce, on which problems, for which rewards."""

    problems: ProblemsRecipe = Field(description="what is asked")
    rollout: RolloutRecipe = Field(default=RolloutRecipe(), description="how answers are sampled")
    rewards: RewardRecipe = Field(default=RewardRecipe(), description="what a sample earns for itself")
    length: AnyLengthReward = Field(default=NoLength(), description="what a sample earns for its length in its group")
    judge: JudgeRecipe = Field(default=JudgeRecipe(), description="how programs are judged")
    preflight: PreflightRecipe = Field(default=PreflightRecipe(), description="what is checked before training")
    mtp_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the MTP loss on the rollouts' tokens; it moves the MTP modules alone, never the policy",
    )
    compute_dtype: Literal["bfloat16", "float32"] = Field(
        default="float32", description="dtype of the activations and products; the weights stay fp32"
    )
    trainer: dict[str, Any] = Field(
        description="keys of TRL's GRPOConfig, passed on word for word: steps, batch, group size, loss, intervals"
    )

    @staticmethod
    def trainer_fault(trainer: dict[str, Any]) -> KeyFault | None:
        from rl.trainer_config import find_fault

        return find_fault(trainer)

    def machine_faults(self) -> list[KeyFault]:
        return judge_faults(self.judge, needed="code" in self.problems.families)
